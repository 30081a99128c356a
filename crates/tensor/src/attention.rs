//! Scaled dot-product attention over sequences.

use crate::activation::tanh_of;
use crate::layout::{Run, Tree};
use crate::ops::softmax;
use crate::product::product_serial;
use crate::{Columns, Layout, Matrix, Rows};
use rayon::prelude::*;
use std::ops::Range;

/// The shape of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Factor on `q · k`, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Whether a token sees only itself and earlier ones.
    pub causal: bool,
    /// How many tokens, itself included, a causal token sees at most.
    pub window: Option<usize>,
    /// `c` of `c · tanh(score / c)`, which bounds scores (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f32>,
    /// Whether scores get a bias that falls with the distance (ALiBi, arXiv 2108.12409).
    pub alibi: bool,
}

impl AttentionShape {
    /// Heads that all have keys and values of their own, scores divided by the root of `head_dim`; nothing hidden, bounded
    /// or biased.
    pub fn plain(heads: usize, head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self {
            heads,
            kv_heads: heads,
            head_dim,
            scale,
            causal: false,
            window: None,
            soft_cap: None,
            alibi: false,
        }
    }

    /// The bias of head `head` per position (ALiBi): powers of `2^(−8/n)` for the power of two `n` at or below the number of
    /// heads, and for heads beyond that the odd powers of its root.
    fn slope(&self, head: usize) -> f32 {
        let n = if self.heads.is_power_of_two() { self.heads } else { self.heads.next_power_of_two() / 2 };
        let power = if head < n { (head + 1) as f64 } else { (2 * (head - n) + 1) as f64 / 2.0 };
        2f64.powf(-8.0 * power / n as f64) as f32
    }
}

/// Rows of queries computed together.
pub(crate) const QUERIES: usize = 96;

/// `softmax(q kᵀ · scale) v`, head by head and sequence by sequence: `q` is `[tokens, heads · head_dim]`, `k` and `v`
/// `[tokens, kv_heads · head_dim]`, the result shaped as `q`. `layout` says which rows form sequences.
///
/// # Panics
/// If a layer that is not causal is given branches, which only have a meaning where nobody sees what comes later.
pub fn attention(shape: &AttentionShape, layout: &Layout, q: &Matrix, k: &Matrix, v: &Matrix) -> Matrix {
    attention_through(shape, layout, [q, k, v], None)
}

/// Called with a head and the probabilities of one of its queries, one for each key that it sees, in the order of their
/// positions; may change them. Calls come from many threads in any order.
pub type OnProbabilities<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// [`attention`] with its queries, keys and values, whose probabilities go through `between` before they meet the values.
///
/// # Panics
/// As [`attention`].
pub fn attention_through(
    shape: &AttentionShape,
    layout: &Layout,
    [q, k, v]: [&Matrix; 3],
    between: Option<OnProbabilities>,
) -> Matrix {
    assert_eq!(layout.rows(), q.rows, "a layout of other rows");
    let mut out = Matrix::zeros(q.rows, shape.heads * shape.head_dim);
    let width = out.cols;
    let mut tasks = Vec::new();
    let mut rest = out.data.as_mut_slice();
    for tree in layout.trees() {
        assert!(shape.causal || tree.branches.is_empty(), "branches need a causal layer");
        let end = tree.start + tree.rows();
        for from in (tree.start..end).step_by(QUERIES) {
            let to = (from + QUERIES).min(end);
            let (piece, later) = rest.split_at_mut((to - from) * width);
            rest = later;
            tasks.push((Queries::new(shape, tree, from, to), piece));
        }
    }
    tasks.into_par_iter().for_each(|(queries, out)| queries.attend(shape, [q, k, v], between, out));
    out
}

/// Some rows of one tree, whose queries are computed together.
struct Queries<'a> {
    tree: &'a Tree,
    first: usize,
    count: usize,
    runs: Vec<Run>,
    /// The first position that any of the rows sees: column `c` of the scores is the key at position `from + c`.
    from: usize,
    /// Positions from there on that any of the rows sees.
    keys: usize,
    /// The end of those that lie in the trunk.
    trunk: usize,
}

impl<'a> Queries<'a> {
    fn new(shape: &AttentionShape, tree: &'a Tree, first: usize, to: usize) -> Self {
        let runs = tree.runs_within(first, to);
        let last = runs.iter().map(|r| r.position + r.rows.len()).max().unwrap_or(0);
        let end = if shape.causal { last } else { tree.trunk };
        let trunk = tree.trunk.min(end);
        let from = runs.iter().map(|r| shape.first_seen(r.position)).min().unwrap_or(0);
        Self { tree, first, count: to - first, runs, from, keys: end - from, trunk: trunk.max(from) }
    }

    fn attend(
        &self,
        shape: &AttentionShape,
        [q, k, v]: [&Matrix; 3],
        between: Option<OnProbabilities>,
        out: &mut [f32],
    ) {
        let (dim, width, kv_width, keys) = (shape.head_dim, q.cols, k.cols, self.keys);
        let mut scores = vec![0.0f32; self.count * keys];
        for head in 0..shape.heads {
            let group = head * shape.kv_heads / shape.heads;
            let queries = |first: usize, count: usize| {
                let piece = &q.data[first * width + head * dim..][..(count - 1) * width + dim];
                Rows::strided(piece, width, dim)
            };
            // The values of this head in some rows of `k` or `v`.
            let span = |rows: Range<usize>| {
                rows.start * kv_width + group * dim..(rows.end - 1) * kv_width + (group + 1) * dim
            };
            scores.fill(0.0);
            let trunk = self.tree.start + self.from..self.tree.start + self.trunk;
            if !trunk.is_empty() {
                let k = Rows::strided(&k.data[span(trunk.clone())], kv_width, dim);
                product_serial(&queries(self.first, self.count), &k, &mut scores, keys);
            }
            for (run, own, column) in self.own_keys() {
                let k = Rows::strided(&k.data[span(own)], kv_width, dim);
                let at = (run.rows.start - self.first) * keys + column;
                product_serial(&queries(run.rows.start, run.rows.len()), &k, &mut scores[at..], keys);
            }
            for run in &self.runs {
                for (i, row) in run.rows.clone().enumerate() {
                    let row = &mut scores[(row - self.first) * keys..][..keys];
                    let row = shape.weigh(head, run.position + i, self.from, row);
                    softmax(row);
                    if let Some(between) = between {
                        between(head, row);
                    }
                }
            }
            // Summed over the trunk's keys and then over a branch's own: the same chain as over one sequence.
            let at = head * dim;
            if !trunk.is_empty() {
                let probabilities =
                    Rows::strided(&scores[..(self.count - 1) * keys + trunk.len()], keys, trunk.len());
                let v = Columns::new(&v.data[span(trunk)], kv_width, dim);
                product_serial(&probabilities, &v, &mut out[at..], width);
            }
            for (run, own, column) in self.own_keys() {
                let row = run.rows.start - self.first;
                let from = row * keys + column;
                let probabilities = Rows::strided(
                    &scores[from..from + (run.rows.len() - 1) * keys + own.len()],
                    keys,
                    own.len(),
                );
                let v = Columns::new(&v.data[span(own)], kv_width, dim);
                product_serial(&probabilities, &v, &mut out[row * width + at..], width);
            }
        }
    }

    /// Of every run within a branch: the rows of the branch's keys that it sees, and the column of the first of them.
    fn own_keys(&self) -> impl Iterator<Item = (&Run, Range<usize>, usize)> {
        self.runs.iter().filter_map(|run| {
            let start = run.branch?;
            // A window may have left the trunk behind.
            let skipped = self.from.saturating_sub(self.tree.trunk);
            Some((run, start + skipped..run.rows.end, self.tree.trunk + skipped - self.from))
        })
    }
}

impl AttentionShape {
    /// Makes what goes into the softmax of the products of one query at `position` with the keys at positions from `from` on:
    /// those that it sees are the result, the others become 0.
    pub(crate) fn weigh<'a>(
        &self,
        head: usize,
        position: usize,
        from: usize,
        row: &'a mut [f32],
    ) -> &'a mut [f32] {
        let hidden = self.first_seen(position) - from;
        let seen = if self.causal { position + 1 - from } else { row.len() };
        row[..hidden].fill(0.0);
        row[seen..].fill(0.0);
        let row = &mut row[hidden..seen];
        row.iter_mut().for_each(|s| *s *= self.scale);
        if let Some(cap) = self.soft_cap {
            row.iter_mut().for_each(|s| *s = cap * tanh_of(*s / cap));
        }
        if self.alibi {
            let slope = self.slope(head);
            let first = hidden + from;
            row.iter_mut().enumerate().for_each(|(c, s)| *s += slope * (first + c) as f32);
        }
        row
    }

    /// The first position that a token at `position` sees.
    pub(crate) fn first_seen(&self, position: usize) -> usize {
        match self.window {
            Some(window) if self.causal => (position + 1).saturating_sub(window),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(rows: usize, cols: usize, seed: usize) -> Matrix {
        let data =
            (0..rows * cols).map(|i| (((i * 7919 + seed * 104_729) % 1000) as f32 - 500.0) / 250.0).collect();
        Matrix::new(rows, cols, data)
    }

    /// The definition, one query at a time in f64.
    fn plain(s: &AttentionShape, q: &Matrix, k: &Matrix, v: &Matrix) -> Matrix {
        plain_through(s, [q, k, v], |_, p| p)
    }

    /// The same with a function of head and probability in between.
    fn plain_through(
        s: &AttentionShape,
        [q, k, v]: [&Matrix; 3],
        between: impl Fn(usize, f64) -> f64,
    ) -> Matrix {
        let mut out = Matrix::zeros(q.rows, q.cols);
        for t in 0..q.rows {
            for h in 0..s.heads {
                let g = h * s.kv_heads / s.heads * s.head_dim;
                let seen = |j: usize| !s.causal || (j <= t && s.window.is_none_or(|w| t - j < w));
                let score = |j: usize| -> f64 {
                    let pairs = (0..s.head_dim).map(|d| (q.row(t)[h * s.head_dim + d], k.row(j)[g + d]));
                    let score =
                        pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>() * f64::from(s.scale);
                    let score = s.soft_cap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh());
                    if s.alibi { score - f64::from(s.slope(h)) * (t as f64 - j as f64) } else { score }
                };
                let e: Vec<f64> = (0..k.rows).map(|j| if seen(j) { score(j).exp() } else { 0.0 }).collect();
                let total: f64 = e.iter().sum();
                for d in 0..s.head_dim {
                    let p = |j: usize| if seen(j) { between(h, e[j] / total) } else { 0.0 };
                    let value: f64 = (0..k.rows).map(|j| p(j) * f64::from(v.row(j)[g + d])).sum();
                    out.row_mut(t)[h * s.head_dim + d] = value as f32;
                }
            }
        }
        out
    }

    #[test]
    fn agrees_with_the_definition_for_every_mask() {
        let (q, k, v) = (values(210, 32, 1), values(210, 16, 2), values(210, 16, 3));
        for (causal, window) in [(true, None), (false, None), (true, Some(8)), (true, Some(150))] {
            let shape = AttentionShape { kv_heads: 2, causal, window, ..AttentionShape::plain(4, 8) };
            let (fast, slow) =
                (attention(&shape, &Layout::sequence(210), &q, &k, &v), plain(&shape, &q, &k, &v));
            let worst = fast.data.iter().zip(&slow.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-5, "causal {causal}, window {window:?}: {worst}");
        }
    }

    #[test]
    fn agrees_with_the_definition_for_bounded_and_biased_scores() {
        let (q, k, v) = (values(110, 48, 1), values(110, 48, 2), values(110, 48, 3));
        for (soft_cap, alibi) in [(Some(1.5), false), (None, true), (Some(2.0), true)] {
            let shape = AttentionShape { causal: true, soft_cap, alibi, ..AttentionShape::plain(6, 8) };
            let (fast, slow) =
                (attention(&shape, &Layout::sequence(110), &q, &k, &v), plain(&shape, &q, &k, &v));
            let worst = fast.data.iter().zip(&slow.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-5, "soft cap {soft_cap:?}, alibi {alibi}: {worst}");
        }
    }

    #[test]
    fn probabilities_can_be_changed_before_they_meet_the_values() {
        let (q, k, v) = (values(130, 32, 1), values(130, 16, 2), values(130, 16, 3));
        for (causal, window) in [(false, None), (true, None), (true, Some(20))] {
            let shape = AttentionShape { kv_heads: 2, causal, window, ..AttentionShape::plain(4, 8) };
            // Not zero for zero: keys that a query does not see must not get anything.
            let change = |head: usize, row: &mut [f32]| {
                row.iter_mut().for_each(|p| *p = 0.5 * *p + (head + 1) as f32 / 64.0);
            };
            let operands = [&q, &k, &v];
            let fast = attention_through(&shape, &Layout::sequence(130), operands, Some(&change));
            let slow = plain_through(&shape, operands, |h, p| 0.5 * p + (h + 1) as f64 / 64.0);
            let worst = fast.data.iter().zip(&slow.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-5, "causal {causal}, window {window:?}: {worst}");
        }
    }

    #[test]
    fn slopes_are_those_of_the_paper() {
        let slopes = |heads| (0..heads).map(|h| AttentionShape::plain(heads, 8).slope(h)).collect::<Vec<_>>();
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        // Six heads: those of four, then the first two odd ones of eight.
        assert_eq!(slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
    }

    /// Rows `rows` of `m`.
    fn pick(m: &Matrix, rows: &[usize]) -> Matrix {
        Matrix::new(rows.len(), m.cols, rows.iter().flat_map(|&r| m.row(r).to_vec()).collect())
    }

    #[test]
    fn branches_get_the_bits_of_sequences_of_their_own() {
        // Short and long ones, so that queries end within trunks and branches, and windows leave the trunk behind.
        let trees: [(usize, &[usize]); 5] =
            [(50, &[3, 0, 40, 7]), (130, &[1, 150]), (0, &[5, 6]), (4, &[]), (3, &[200, 9])];
        let mut layout = Layout::default();
        trees.iter().for_each(|(trunk, branches)| layout.push(*trunk, branches));
        let n = layout.rows();
        let (q, k, v) = (values(n, 32, 1), values(n, 16, 2), values(n, 16, 3));
        for window in [None, Some(8), Some(60)] {
            let shape = AttentionShape { kv_heads: 2, causal: true, window, ..AttentionShape::plain(4, 8) };
            let halve = |head: usize, row: &mut [f32]| row[head % row.len()] *= 0.5;
            let packed = attention_through(&shape, &layout, [&q, &k, &v], Some(&halve));
            let mut start = 0;
            for (trunk, branches) in trees {
                let mut from = start + trunk;
                for &branch in [&[0][..], branches].concat().iter() {
                    let rows: Vec<usize> = (start..start + trunk).chain(from..from + branch).collect();
                    from += branch;
                    let plain = Layout::sequence(rows.len());
                    let operands = [&pick(&q, &rows), &pick(&k, &rows), &pick(&v, &rows)];
                    let alone = attention_through(&shape, &plain, operands, Some(&halve));
                    assert_eq!(alone, pick(&packed, &rows), "trunk {trunk}, branch {branch}, {window:?}");
                }
                start = from;
            }
        }
    }
}
