//! The network over many sequences at once, of which some tokens are scored.
//!
//! Sequences are packed side by side into matrices of a few thousand rows, the common beginning of those that belong to
//! one item once. A batch of such packs goes through each block while its weights are there; of the output layer only
//! the rows that are scored are computed. How sequences are batched and packed never changes a bit of the result:
//! every element of a product is a chain of its own, and attention keeps to each sequence.

use crate::EvaluateError;
use crate::progress::Meter;
use halfbyte_model::{Head, Model};
use halfbyte_tensor::{Layout, Matrix, index_of_largest, log_sum_exp, side_by_side};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A sequence whose last tokens are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The tokens; the last one is only a target.
    pub tokens: Vec<u32>,
    /// How many at the end are scored, at least one and fewer than there are.
    pub scored: usize,
}

/// Requests of one question, computed together and sharing what they have in common at the beginning.
pub type Item = Vec<Request>;

/// What the model thinks of a request's scored tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// Sum of their natural log-probabilities.
    pub log_probability: f64,
    /// Whether each of them is the most probable one at its place.
    pub greedy: bool,
}

/// How much is computed at a time. It bounds memory and has no influence on results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Tokens between two readings of the weights.
    batch: usize,
    /// Rows of a matrix, to within an item.
    pack: usize,
    /// Bytes of one model's logits.
    logits: usize,
}

/// Bytes of hidden states that a batch has at most.
const HIDDEN_BYTES: usize = 256 << 20;
/// Tokens of a batch: a weight is then used for twice as many operations each time that it is read. Tests want several
/// batches from few tokens.
const BATCH: usize = if cfg!(test) { 2048 } else { 16_384 };

/// Packs that go through a block side by side, if they have no more rows than [`SIDE_BY_SIDE`] together: two packs of
/// [`Sizes::pack`] and a quarter, by which items do not fit.
const AT_ONCE: usize = 2;
const SIDE_BY_SIDE: usize = 5120;

impl Sizes {
    pub(crate) fn of(model: &Model) -> Self {
        let batch = (HIDDEN_BYTES / (4 * model.architecture.hidden)).min(BATCH);
        Self { batch, pack: 2048, logits: 64 << 20 }
    }

    /// Batches of about the same work where each goes through so many models, so that no more is lost when a run stops.
    pub(crate) fn among(self, models: usize) -> Self {
        Self { batch: (self.batch / models.max(1)).max(self.pack.min(self.batch)), ..self }
    }

    /// Rows between two readings of the weights.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Rows of a matrix.
    pub(crate) fn pack(&self) -> usize {
        self.pack
    }

    #[cfg(test)]
    pub(crate) fn new(batch: usize, pack: usize, logits: usize) -> Self {
        Self { batch, pack, logits }
    }

    /// Cuts items into batches.
    pub(crate) fn batches(&self, items: &[&Item]) -> Vec<Range<usize>> {
        cut(items, self.batch)
    }
}

fn cut(items: &[&Item], most: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (i, item) in items.iter().enumerate() {
        let more = Shape::of(item).rows();
        if i > start && rows + more > most {
            ranges.push(start..i);
            (start, rows) = (i, 0);
        }
        rows += more;
    }
    if start < items.len() {
        ranges.push(start..items.len());
    }
    ranges
}

/// What an item costs, in tokens through blocks.
pub(crate) fn work(model: &Model, item: &Item) -> u64 {
    (Shape::of(item).rows() * (model.architecture.blocks.len() + 1)) as u64
}

/// How an item is laid out: the inputs' common beginning, and how much of each is left.
struct Shape {
    trunk: usize,
    branches: Vec<usize>,
}

impl Shape {
    fn of(item: &Item) -> Self {
        let input = |r: &'_ Request| r.tokens.len() - 1;
        let first = &item[0];
        let trunk = item.iter().fold(input(first), |trunk, r| {
            let same = first.tokens.iter().zip(&r.tokens).take_while(|(a, b)| a == b).count();
            trunk.min(same).min(input(r))
        });
        Self { trunk, branches: item.iter().map(|r| input(r) - trunk).collect() }
    }

    fn rows(&self) -> usize {
        self.trunk + self.branches.iter().sum::<usize>()
    }
}

/// Items side by side in one matrix.
pub(crate) struct Pack {
    layout: Layout,
    tokens: Vec<u32>,
    /// The rows that are scored, in order.
    scored: Vec<usize>,
    /// Of every request of every item: (place in `scored`, token) for each of its scored tokens.
    targets: Vec<Vec<Vec<(usize, u32)>>>,
}

impl Pack {
    fn new(items: &[&Item]) -> Self {
        let mut pack = Self { layout: Layout::default(), tokens: vec![], scored: vec![], targets: vec![] };
        for item in items {
            let shape = Shape::of(item);
            let start = pack.tokens.len();
            pack.layout.push(shape.trunk, &shape.branches);
            pack.tokens.extend(&item[0].tokens[..shape.trunk]);
            let mut targets = Vec::with_capacity(item.len());
            for (request, branch) in item.iter().zip(&shape.branches) {
                let own = pack.tokens.len();
                pack.tokens.extend(&request.tokens[shape.trunk..shape.trunk + branch]);
                let first = request.tokens.len() - request.scored;
                let row = |input: usize| match input.checked_sub(shape.trunk) {
                    None => start + input,
                    Some(past) => own + past,
                };
                let scored = &request.tokens[first..];
                targets.push(scored.iter().enumerate().map(|(i, &t)| (row(first + i - 1), t)).collect());
            }
            pack.targets.push(targets);
        }
        let mut scored: Vec<usize> =
            pack.targets.iter().flatten().flatten().map(|t: &(usize, u32)| t.0).collect();
        scored.sort_unstable();
        scored.dedup();
        // From rows of the matrix to places among those that are scored.
        let mut place = vec![0; pack.tokens.len()];
        scored.iter().enumerate().for_each(|(i, &row)| place[row] = i);
        pack.targets.iter_mut().flatten().flatten().for_each(|t| t.0 = place[t.0]);
        pack.scored = scored;
        pack
    }

    /// Rows of the matrix.
    pub(crate) fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// How many of them are scored.
    pub(crate) fn scored_rows(&self) -> usize {
        self.scored.len()
    }

    /// Of every item the targets of its requests: (place among the scored rows, token).
    pub(crate) fn targets(&self) -> impl Iterator<Item = &Vec<Vec<(usize, u32)>>> {
        self.targets.iter()
    }
}

/// Packs the items of a batch into matrices of about the same number of rows, as far as items allow it, so that those side by
/// side take equally long.
pub(crate) fn pack(items: &[&Item], sizes: Sizes) -> Vec<Pack> {
    let rows: Vec<usize> = items.iter().map(|item| Shape::of(item).rows()).collect();
    let mut left: usize = rows.iter().sum();
    // Packs for so many rows: as many as go side by side, or a multiple.
    let needed = |left: usize| AT_ONCE * left.div_ceil(AT_ONCE * sizes.pack);
    let mut packs = needed(left);
    let (mut all, mut start, mut filled) = (Vec::with_capacity(packs), 0, 0);
    for (i, &more) in rows.iter().enumerate() {
        // What is left is shared among the packs that are left; an item goes where that is kept more nearly.
        let goal = left / packs;
        if i > start && (filled + more).saturating_sub(goal) > goal.saturating_sub(filled) {
            all.push(Pack::new(&items[start..i]));
            left -= filled;
            packs = if all.len().is_multiple_of(AT_ONCE) { needed(left) } else { packs - 1 };
            (start, filled) = (i, 0);
        }
        filled += more;
    }
    if start < items.len() {
        all.push(Pack::new(&items[start..]));
    }
    all
}

/// The last block's output at the scored rows of every pack, `[scored, hidden]`.
pub(crate) fn states(model: &Model, packs: &[Pack], meter: &mut Meter) -> Result<Vec<Matrix>, EvaluateError> {
    let a = &model.architecture;
    let longest = packs.iter().flat_map(|p| p.layout.positions()).max().map_or(0, |p| p + 1);
    let rotary = a.rotary(longest);
    let mut hidden = {
        let stem = model.stem()?;
        packs.iter().map(|p| stem.embed_tokens(&p.tokens, &p.layout)).collect::<Result<Vec<_>, _>>()?
    };
    for layer in 0..a.blocks.len() {
        let block = model.block(layer)?;
        for (states, packs) in hidden.chunks_mut(AT_ONCE).zip(packs.chunks(AT_ONCE)) {
            let forward = |(state, pack): (Matrix, &Pack)| block.forward(state, &rotary, &pack.layout);
            let taken = states.iter_mut().map(std::mem::take).zip(packs);
            // Longer ones one by one, so that two take no more memory than one takes.
            let left: Vec<Matrix> = match packs.iter().map(Pack::rows).sum::<usize>() > SIDE_BY_SIDE {
                true => taken.map(forward).collect(),
                false => side_by_side(taken.collect(), forward),
            };
            states.iter_mut().zip(left).for_each(|(state, left)| *state = left);
            meter.add(packs.iter().map(|p| p.tokens.len() as u64).sum())?;
        }
    }
    let pick = |(state, pack): (&Matrix, &Pack)| {
        let rows: Vec<f32> = pack.scored.iter().flat_map(|&r| state.row(r)).copied().collect();
        Matrix::new(pack.scored.len(), state.cols, rows)
    };
    Ok(hidden.iter().zip(packs).map(pick).collect())
}

/// Rows whose logits are computed together, at most [`Sizes::logits`] bytes.
pub(crate) fn chunks(head: &Head, rows: usize, sizes: Sizes) -> impl Iterator<Item = Range<usize>> + use<> {
    let bytes = head.spec.output().map_or(0, |s| 4 * s.outputs);
    let chunk = (sizes.logits / bytes.max(1)).max(1);
    (0..rows).step_by(chunk).map(move |from| from..(from + chunk).min(rows))
}

/// The logits of some rows of `states`, and what `f` makes of the number and the logits of each.
pub(crate) fn logits<T: Send>(
    head: &Head,
    states: &Matrix,
    rows: Range<usize>,
    f: impl Fn(usize, &[f32]) -> T + Sync,
) -> (Matrix, Vec<T>) {
    let x = states.data[rows.start * states.cols..rows.end * states.cols].to_vec();
    let logits = head.logits(&Matrix::new(rows.len(), states.cols, x));
    let found = rows.clone().into_par_iter().map(|r| f(r, logits.row(r - rows.start))).collect();
    (logits, found)
}

/// Scores the items of one batch. An item whose output is not finite has NaN for a log-probability.
pub(crate) fn score(
    model: &Model,
    items: &[&Item],
    sizes: Sizes,
    meter: &mut Meter,
) -> Result<Vec<Vec<Likelihood>>, EvaluateError> {
    let packs = pack(items, sizes);
    let states = states(model, &packs, meter)?;
    let head = model.head()?;
    let mut all = Vec::with_capacity(items.len());
    for (pack, states) in packs.iter().zip(&states) {
        let mut wanted = vec![Vec::new(); states.rows];
        pack.targets.iter().flatten().flatten().for_each(|&(row, token)| wanted[row].push(token));
        // Of every row log Σ exp, the most probable token and the wanted logits.
        let of = |row: usize, x: &[f32]| {
            let values: Vec<(u32, f32)> = wanted[row].iter().map(|&t| (t, x[t as usize])).collect();
            (log_sum_exp(x), index_of_largest(x), values)
        };
        let rows = chunks(&head, states.rows, sizes);
        let found: Vec<_> = rows.flat_map(|rows| logits(&head, states, rows, of).1).collect();
        for item in &pack.targets {
            let likelihood = |targets: &Vec<(usize, u32)>| {
                let mut sum = Likelihood { log_probability: 0.0, greedy: true };
                for &(row, token) in targets {
                    let (total, top, values) = &found[row];
                    let logit = values.iter().find(|v| v.0 == token).map_or(f32::NAN, |v| v.1);
                    sum.log_probability += f64::from(logit) - total;
                    sum.greedy &= *top == token as usize;
                }
                sum
            };
            all.push(item.iter().map(likelihood).collect());
        }
        meter.add(pack.tokens.len() as u64)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_model::{model, numbers};
    use halfbyte_model::Input;

    /// Items of several requests with common beginnings, some of which are the whole of another.
    fn items() -> Vec<Item> {
        let mut items = Vec::new();
        for seed in 0..12 {
            let common = numbers(3 + 17 * (seed % 5), seed as u64);
            let request = |i: usize| {
                let scored = 1 + (seed + i) % 4;
                let tokens = [common.clone(), numbers(scored + (i % 3), (100 * seed + i) as u64)].concat();
                Request { tokens, scored }
            };
            let mut item: Item = (0..1 + seed % 4).map(request).collect();
            if seed % 3 == 0 {
                item.push(item[0].clone());
            }
            items.push(item);
        }
        items
    }

    fn run(model: &Model, items: &[Item], sizes: Sizes) -> Vec<Vec<Likelihood>> {
        let all: Vec<&Item> = items.iter().collect();
        let mut go_on = |_: u64, _: u64| true;
        let mut meter = Meter::new(&mut go_on, 1);
        let batch = |r: Range<usize>| score(model, &all[r], sizes, &mut meter).unwrap();
        sizes.batches(&all).into_iter().flat_map(batch).collect()
    }

    #[test]
    fn batching_never_changes_a_score() {
        let (model, items) = (model(), items());
        let whole = run(&model, &items, Sizes::of(&model));
        for sizes in [Sizes::new(1, 1, 1), Sizes::new(100, 40, 1 << 20), Sizes::new(500, 200, 9000)] {
            assert_eq!(run(&model, &items, sizes), whole, "{sizes:?}");
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| run(&model, &items, Sizes::of(&model))), whole);
    }

    #[test]
    fn sharing_gives_the_bits_of_plain_sequences() {
        let (model, items) = (model(), items());
        let packed = run(&model, &items, Sizes::of(&model));
        for (item, got) in items.iter().zip(packed) {
            for (request, got) in item.iter().zip(got) {
                // The plain way: all tokens, one sequence, all logits.
                let n = request.tokens.len();
                let logits = model.trace(&[Input::Tokens(request.tokens.clone())]).unwrap().2;
                let (mut sum, mut greedy) = (0.0, true);
                for t in n - request.scored..n {
                    let row = logits.row(t - 1);
                    sum += f64::from(row[request.tokens[t] as usize]) - log_sum_exp(row);
                    greedy &= row.iter().all(|v| *v <= row[request.tokens[t] as usize]);
                }
                assert_eq!(got, Likelihood { log_probability: sum, greedy });
            }
        }
    }

    #[test]
    fn packs_have_about_as_many_rows() {
        let item = |rows: usize| vec![Request { tokens: vec![1; rows + 1], scored: 1 }];
        let packed = |rows: &[usize]| {
            let items: Vec<Item> = rows.iter().map(|&r| item(r)).collect();
            let items: Vec<&Item> = items.iter().collect();
            pack(&items, Sizes::new(16_384, 2048, 1 << 20)).iter().map(Pack::rows).collect::<Vec<_>>()
        };
        assert_eq!(packed(&[2047; 8]), [2047; 8]);
        assert_eq!(packed(&[1500; 10]), [1500; 10]);
        assert_eq!(packed(&[100; 30]), [1500; 2]);
        // A long one does not make those behind it short.
        let some = packed(&[&[7000][..], &[50; 60]].concat());
        assert_eq!(some[0], 7000);
        assert!(some[1..].iter().all(|r| (500..=2048).contains(r)), "{some:?}");
        assert_eq!(packed(&[10]), [10]);
    }

    #[test]
    fn a_common_beginning_is_computed_once() {
        let request = |tail: &[u32]| Request { tokens: [&[5, 6, 7][..], tail].concat(), scored: 1 };
        let shape = Shape::of(&vec![request(&[1]), request(&[2]), request(&[3, 4])]);
        assert_eq!((shape.trunk, shape.branches), (3, vec![0, 0, 1]));
        let shape = Shape::of(&vec![request(&[1, 2]), request(&[1, 2, 3])]);
        assert_eq!((shape.trunk, shape.branches), (4, vec![0, 1]));
    }
}
