//! Calibration streamed block by block and tap by tap: every layer's forward pass runs once.

use crate::QuantizeError;
use crate::clock::{Phase, timed};
use crate::inputs::Packs;
use crate::methods::attention::{OperandStores, QuantizedAttention, quantize_attention};
use crate::methods::learned::{LearnedBlock, Wanted, learn};
use crate::methods::{SiteResult, SiteWeight, low_rank, measured, quantize_tap};
use crate::probe;
use crate::profile::Profile;
use crate::recipe::{Calibration, Recipe, Rounding};
use crate::residual::{Residual, token_weights};
use crate::store::{Place, Store, windows_side_by_side};
use crate::tap::TapInputs;
use halfbyte_checkpoint::{StoredAttention, StoredLayer};
use halfbyte_model::{
    Block, Carry, Head, Input, Linear, Pool, RotaryTables, Stem, Step, Tap, TapKind, Weight,
};
use halfbyte_tensor::{Layout, Matrix};

/// One linear layer's outcome.
pub struct QuantizedSite {
    /// Name of the layer.
    pub name: String,
    /// Codes and quantizer.
    pub stored: StoredLayer,
    /// Mean squared output error over the sample.
    pub error: f64,
    /// Mean square of the full-precision output.
    pub signal: f64,
    /// Distributions of its input and weight, for the report.
    pub profile: Profile,
}

/// How a block goes on.
#[derive(Clone, Copy, Debug)]
pub enum Advance {
    /// So many more layers are finished.
    Layers(usize),
    /// Steps of learned rounding.
    Steps {
        /// How many are done.
        done: usize,
        /// Of how many.
        all: usize,
    },
}

/// Called after every tap and before every step of learning; an error stops the run.
pub type OnTap<'a> = &'a mut dyn FnMut(Advance) -> Result<(), QuantizeError>;

/// What every block of a run shares.
pub struct Surroundings<'a> {
    /// Tables that reach to the longest sequence.
    pub rotary: &'a RotaryTables,
    /// The sequences in the rows of every window.
    pub layouts: &'a [Layout],
    /// Where activations are kept.
    pub place: &'a Place,
}

/// The activations of all calibration windows at a tap.
struct Stream<'a> {
    block: &'a Block,
    around: &'a Surroundings<'a>,
    carry: Store,
    x: Store,
}

impl<'a> Stream<'a> {
    fn enter(
        block: &'a Block,
        around: &'a Surroundings<'a>,
        mut hidden: Store,
    ) -> Result<Self, QuantizeError> {
        let rows = hidden.rows().to_vec();
        let mut carry = Store::new(around.place, block.spec.carried(0, hidden.channels()), &rows)?;
        let mut x = Store::new(around.place, block.spec.taps[0].channels(), &rows)?;
        windows_side_by_side(
            &mut (&mut hidden, &mut carry, &mut x),
            rows.len(),
            |(hidden, ..), i| hidden.take(i),
            |_, hidden| block.enter(hidden),
            |(_, carry, x), i, (c, first)| {
                carry.put(i, c.0)?;
                x.put(i, first)
            },
        )?;
        Ok(Self { block, around, carry, x })
    }

    /// Goes from tap `tap` to the next through `linears`.
    fn advance(&mut self, tap: usize, linears: &[Linear]) -> Result<(), QuantizeError> {
        let rows = self.x.rows().to_vec();
        let next = self.block.spec.taps.get(tap + 1).map_or(0, Tap::channels);
        let mut x = Store::new(self.around.place, next, &rows)?;
        // A parallel block carries half as much once the MLP's input has been used.
        let narrows = self.block.spec.carried(tap, 1) > self.block.spec.carried(tap + 1, 1);
        let half = self.carry.channels() / 2;
        let mut narrow = narrows.then(|| Store::new(self.around.place, half, &rows)).transpose()?;
        let (block, around) = (self.block, self.around);
        windows_side_by_side(
            &mut (&mut self.carry, &mut self.x, &mut narrow, &mut x),
            rows.len(),
            |(carry, x, ..), i| Ok((Carry(carry.take(i)?), x.take(i)?)),
            |i, (carry, x)| block.advance(tap, carry, &x, linears, around.rotary, &around.layouts[i]),
            |(carry, _, narrow, x), i, step| {
                let (left, next) = match step {
                    Step::Tap(left, next) => (left.0, Some(next)),
                    Step::Done(hidden) => (hidden, None),
                };
                narrow.as_mut().unwrap_or(&mut **carry).put(i, left)?;
                next.map_or(Ok(()), |next| x.put(i, next))
            },
        )?;
        if let Some(narrow) = narrow {
            self.carry = narrow;
        }
        self.x = x;
        Ok(())
    }
}

/// Attention in two steps, for blocks whose products are quantized.
impl Stream<'_> {
    /// Queries, keys and values that `linears` make of the activations here, which are used up.
    fn operands(&mut self, linears: &[Linear]) -> Result<OperandStores, QuantizeError> {
        let (rows, shape) = (self.x.rows().to_vec(), &self.block.spec.attention);
        let store = |heads: usize| Store::new(self.around.place, heads * shape.head_dim, &rows);
        let (mut query, mut key, mut value) =
            (store(shape.heads)?, store(shape.kv_heads)?, store(shape.kv_heads)?);
        let (block, around) = (self.block, self.around);
        windows_side_by_side(
            &mut (&mut self.x, &mut query, &mut key, &mut value),
            rows.len(),
            |(x, ..), i| x.take(i),
            |i, x| block.operands(&x, linears, around.rotary, &around.layouts[i]),
            |(_, query, key, value), i, made| {
                query.put(i, made.query)?;
                key.put(i, made.key)?;
                value.put(i, made.value)
            },
        )?;
        Ok(OperandStores::new(query, key, value))
    }

    /// Goes on to the next tap with what attention mixes of `operands` through these quantizers.
    fn attend(
        &mut self,
        mut operands: OperandStores,
        products: Option<&StoredAttention>,
    ) -> Result<(), QuantizeError> {
        let (rows, shape) = (self.x.rows().to_vec(), &self.block.spec.attention);
        let mut x = Store::new(self.around.place, shape.heads * shape.head_dim, &rows)?;
        let (block, layouts) = (self.block, self.around.layouts);
        windows_side_by_side(
            &mut (&mut operands, &mut x),
            rows.len(),
            |(operands, _), i| operands.take(i),
            |i, operands| block.attend(operands, &layouts[i], products),
            |(_, x), i, mixed| x.put(i, mixed),
        )?;
        self.x = x;
        Ok(())
    }
}

/// One block's outcome.
pub struct QuantizedBlock {
    /// Its output: that of the full-precision layers, or in sequential calibration that of the quantized ones.
    pub hidden: Store,
    /// Its linear layers.
    pub sites: Vec<QuantizedSite>,
    /// Its attention, if that is quantized.
    pub attention: Option<QuantizedAttention>,
    /// What learned rounding did, if the recipe has it and a layer is quantized.
    pub learned: Option<LearnedBlock>,
}

/// Quantizes the layers of one block for its input `hidden`.
///
/// # Errors
/// When a weight or activation is not finite, a file fails, or `on_tap` asks to stop.
pub fn quantize_block(
    mut block: Block,
    hidden: Store,
    recipe: &Recipe,
    around: &Surroundings,
    on_tap: OnTap,
) -> Result<QuantizedBlock, QuantizeError> {
    let precision = recipe.products.precision();
    block.linears.iter_mut().flatten().for_each(|linear| linear.precision = precision);
    if recipe.rounding == Rounding::Learned {
        // Parts of low rank make up for what the learned codes lack.
        let codes_alone = Recipe { low_rank: 0, ..recipe.clone() };
        let choose =
            &mut |linears: &[Linear], inputs: &TapInputs| quantize_sites(linears, inputs, &codes_alone);
        return learn_block(block, hidden, recipe, around, choose, on_tap);
    }
    let choose = &mut |linears: &[Linear], inputs: &TapInputs| quantize_sites(linears, inputs, recipe);
    let all = std::mem::take(&mut block.linears);
    stream_block(&block, all, hidden, recipe, around, choose, on_tap)
}

/// Settles the quantized form of the layers of one tap, `None` for those that are left alone.
type Choose<'a> = &'a mut dyn FnMut(&[Linear], &TapInputs) -> Result<Vec<Option<SiteResult>>, QuantizeError>;

/// The same with learned rounding: once through the block as without it, then the learning, then once more through the block,
/// where errors are measured with the codes that were learned.
fn learn_block(
    mut block: Block,
    hidden: Store,
    recipe: &Recipe,
    around: &Surroundings,
    choose: Choose,
    on_tap: OnTap,
) -> Result<QuantizedBlock, QuantizeError> {
    let full = block.linears.clone();
    let input = probe::copy(&hidden, around.place)?;
    // The full-precision block's output comes with the stream only if that is not the quantized one's.
    let wanted = match recipe.calibration {
        Calibration::FullPrecision => None,
        Calibration::Sequential => Some(timed(Phase::Forward, || {
            probe::forward(&block, &hidden, around.rotary, around.layouts, around.place)
        })?),
    };
    let all = std::mem::take(&mut block.linears);
    let mut quiet = |_| on_tap(Advance::Layers(0));
    let mut first = stream_block(&block, all, hidden, recipe, around, choose, &mut quiet)?;
    let streamed = std::mem::replace(&mut first.hidden, Store::empty());
    let wanted = wanted.unwrap_or(streamed);
    block.linears.clone_from(&full);
    probe::replace(&mut block, first);
    let coded = |l: &Linear| matches!(l.weight, Weight::Quantized(_));
    let mut learned = None;
    if block.linears.iter().flatten().any(coded) {
        let wanted = Wanted::new(&input, &wanted, recipe)?;
        learned = Some(learn(&mut block, &full, &wanted, recipe, around, on_tap)?);
    }
    drop(wanted);
    block.products = None;
    let mut taps = std::mem::take(&mut block.linears).into_iter();
    let measure = &mut |linears: &[Linear], inputs: &TapInputs| {
        measure_sites(linears, taps.next().unwrap_or_default(), inputs, recipe)
    };
    let last = stream_block(&block, full, input, recipe, around, measure, on_tap)?;
    Ok(QuantizedBlock { learned, ..last })
}

/// Goes through a block tap by tap, with the full-precision layers `all`.
fn stream_block(
    block: &Block,
    all: Vec<Vec<Linear>>,
    hidden: Store,
    recipe: &Recipe,
    around: &Surroundings,
    choose: Choose,
    on_tap: OnTap,
) -> Result<QuantizedBlock, QuantizeError> {
    let mut stream = timed(Phase::Forward, || Stream::enter(block, around, hidden))?;
    let (mut done, mut attention) = (Vec::new(), None);
    let mut taps = all.into_iter().enumerate().peekable();
    while let Some((t, linears)) = taps.next() {
        let tap = &block.spec.taps[t];
        let weigh = recipe.token_weights && tap.kind.writes_residual();
        let weights = match weigh {
            true => Some(timed(Phase::Statistics, || {
                let residual = Residual { carry: &stream.carry, scale: block.residual_scale(t) };
                token_weights(&linears[0], &residual, &stream.x, recipe.seed)
            })?),
            false => None,
        };
        // Lend the activations to the method, and take them back.
        let inputs = TapInputs { x: std::mem::replace(&mut stream.x, Store::empty()), weights };
        let results = choose(&linears, &inputs)?;
        stream.x = inputs.x;
        let sequential = recipe.calibration == Calibration::Sequential;
        let (linears, rest) = match sequential {
            true => {
                let (replaced, sites) = replace(linears, results);
                done.extend(sites);
                (replaced, None)
            }
            false => (linears, Some(results)),
        };
        let products =
            tap.kind == TapKind::AttentionInput && recipe.quantizes_attention(block.spec.attention_name());
        match taps.peek().and_then(|(_, next)| next.first()).filter(|_| products) {
            None => timed(Phase::Forward, || stream.advance(t, &linears))?,
            Some(output) => {
                let operands = timed(Phase::Forward, || stream.operands(&linears))?;
                let chosen = quantize_attention(block, &operands, around.layouts, output, recipe)?;
                let through = sequential.then_some(&chosen.stored);
                timed(Phase::Forward, || stream.attend(operands, through))?;
                attention = Some(chosen);
            }
        }
        if let Some(results) = rest {
            done.extend(replace(linears, results).1);
        }
        on_tap(Advance::Layers(tap.sites.len()))?;
    }
    Ok(QuantizedBlock { hidden: stream.carry, sites: done, attention, learned: None })
}

/// The input of the first block for every pack of inputs.
///
/// # Errors
/// When the network cannot take an input or a store cannot be written.
pub(crate) fn embed(
    stem: &Stem,
    inputs: &[Input],
    packs: &Packs,
    hidden: usize,
    place: &Place,
) -> Result<Store, QuantizeError> {
    let mut store = Store::new(place, hidden, &packs.rows())?;
    for (i, range) in packs.ranges.iter().enumerate() {
        store.put(i, stem.embed(&inputs[range.clone()])?.0)?;
    }
    Ok(store)
}

/// Quantizes the layers behind the last block, for its output `hidden`.
///
/// # Errors
/// As [`quantize_block`].
pub(crate) fn quantize_head(
    mut head: Head,
    mut hidden: Store,
    recipe: &Recipe,
    around: &Surroundings,
) -> Result<Vec<QuantizedSite>, QuantizeError> {
    let linears = std::mem::take(&mut head.linears);
    let mut windows: Vec<Matrix> = Vec::with_capacity(hidden.windows());
    let Some(first) = linears.first() else { return Ok(Vec::new()) };
    // Rows that are not pooled are as many as before, and may not fit in memory.
    let mut x = match head.spec.pool {
        Pool::All => Store::new(around.place, first.site.inputs, hidden.rows())?,
        _ => {
            for i in 0..hidden.windows() {
                windows.push(head.enter(&hidden.take(i)?, &around.layouts[i]));
            }
            let rows: Vec<usize> = windows.iter().map(|w| w.rows).collect();
            Store::new(&Place::Memory, first.site.inputs, &rows)?
        }
    };
    for i in 0..hidden.windows() {
        let window = match windows.get_mut(i) {
            Some(pooled) => std::mem::take(pooled),
            None => head.enter(&hidden.take(i)?, &around.layouts[i]),
        };
        x.put(i, window)?;
    }
    drop(hidden);
    let mut done = Vec::new();
    let count = linears.len();
    for (layer, linear) in linears.into_iter().enumerate() {
        let inputs = TapInputs { x, weights: None };
        let linear = [linear];
        let results = quantize_sites(&linear, &inputs, recipe)?;
        x = inputs.x;
        let last = layer + 1 == count;
        let [linear] = linear;
        if last {
            done.extend(results.into_iter().flatten().map(|r| quantized(&linear, r)));
            break;
        }
        let through = match recipe.calibration {
            Calibration::FullPrecision => {
                done.extend(results.into_iter().flatten().map(|r| quantized(&linear, r)));
                linear
            }
            Calibration::Sequential => {
                let (mut replaced, sites) = replace(vec![linear], results);
                done.extend(sites);
                replaced.remove(0)
            }
        };
        let mut next = Store::new(around.place, through.site.outputs, x.rows())?;
        for i in 0..x.windows() {
            next.put(i, head.advance(layer, &x.take(i)?, &through))?;
        }
        x = next;
    }
    Ok(done)
}

fn quantized(linear: &Linear, result: SiteResult) -> QuantizedSite {
    QuantizedSite {
        name: linear.site.name.clone(),
        stored: StoredLayer { weight: result.weight, input: result.input, low_rank: result.low_rank },
        error: result.error,
        signal: result.signal,
        profile: result.profile,
    }
}

/// Quantizes the layers of one tap but those that the recipe keeps, for which the answer is `None`.
pub(crate) fn quantize_sites(
    linears: &[Linear],
    inputs: &TapInputs,
    recipe: &Recipe,
) -> Result<Vec<Option<SiteResult>>, QuantizeError> {
    let chosen: Vec<bool> = linears.iter().map(|l| !recipe.leaves(&l.site)).collect();
    let weights: Vec<SiteWeight> = linears
        .iter()
        .zip(&chosen)
        .filter(|(_, chosen)| **chosen)
        .map(|(l, _)| SiteWeight { site: l.site.clone(), weight: l.weight.to_f32() })
        .collect();
    if weights.is_empty() {
        return Ok(linears.iter().map(|_| None).collect());
    }
    // Layers of one input have one matrix of second moments.
    let name = linears[0].site.name.as_str();
    let results = quantize_tap(inputs, weights, recipe).map_err(|e| e.of_inputs(name))?;
    finish_sites(linears, &chosen, results, inputs, recipe)
}

/// Gives the layers that are `chosen` their results, with the recipe's parts of low rank; `None` to the others.
fn finish_sites(
    linears: &[Linear],
    chosen: &[bool],
    mut results: Vec<SiteResult>,
    inputs: &TapInputs,
    recipe: &Recipe,
) -> Result<Vec<Option<SiteResult>>, QuantizeError> {
    if let Some(rank) = recipe.low_rank() {
        let full = linears.iter().zip(chosen).filter(|(_, chosen)| **chosen).map(|(l, _)| &l.weight);
        low_rank::compensate(inputs, full, &mut results, rank, recipe)
            .map_err(|e| e.of_inputs(&linears[0].site.name))?;
    }
    let mut results = results.into_iter();
    Ok(chosen.iter().map(|c| if *c { results.next() } else { None }).collect())
}

/// Measures the layers of one tap with codes that are known: `linears` are the full-precision ones.
fn measure_sites(
    linears: &[Linear],
    coded: Vec<Linear>,
    inputs: &TapInputs,
    recipe: &Recipe,
) -> Result<Vec<Option<SiteResult>>, QuantizeError> {
    let sample = timed(Phase::Statistics, || inputs.sample(recipe.sample_tokens, recipe.seed))?;
    let channel_max = timed(Phase::Statistics, || inputs.channel_max())?;
    let (mut sites, mut stored, mut chosen) = (Vec::new(), Vec::new(), Vec::new());
    for (full, coded) in linears.iter().zip(coded) {
        let weight = match coded.weight {
            Weight::Quantized(weight) => Some(weight),
            Weight::Stored(..) => None,
        };
        let layer = StoredLayer { weight, input: coded.input, low_rank: None };
        chosen.push(layer.weight.is_some() || layer.input.is_some());
        if layer.weight.is_some() || layer.input.is_some() {
            sites.push(SiteWeight { site: full.site.clone(), weight: full.weight.to_f32() });
            stored.push(layer);
        }
    }
    let results = measured(&sample, &channel_max, sites, stored, recipe.products.precision());
    finish_sites(linears, &chosen, results, inputs, recipe)
}

/// The layers as the quantized network has them, and what is to be stored of them.
fn replace(linears: Vec<Linear>, results: Vec<Option<SiteResult>>) -> (Vec<Linear>, Vec<QuantizedSite>) {
    let mut sites = Vec::new();
    let replaced = linears
        .into_iter()
        .zip(results)
        .map(|(linear, result)| match result {
            None => linear,
            Some(result) => {
                let (weight, input, low_rank) =
                    (result.weight.clone(), result.input.clone(), result.low_rank.clone());
                sites.push(quantized(&linear, result));
                Linear { weight: weight.map_or(linear.weight, Weight::Quantized), input, low_rank, ..linear }
            }
        })
        .collect();
    (replaced, sites)
}
