//! Calibration streamed block by block and tap by tap: every layer's forward pass runs once in each stream.

use crate::QuantizeError;
use crate::methods::{SiteResult, SiteWeight, quantize_tap};
use crate::recipe::{Recipe, Target};
use crate::store::{Place, Store};
use crate::tap::TapInputs;
use halfbyte_checkpoint::StoredLayer;
use halfbyte_model::{Block, Carry, Embedding, Linear, Step, Tap, Weight};
use halfbyte_tensor::{Rotary, sum_of_squares};

/// The hidden states of all calibration windows between two blocks.
pub struct Streams {
    /// Of the full-precision network, `[tokens, hidden]` a window.
    pub full: Store,
    /// Of the network as quantized so far; `None` when calibrating on full-precision inputs.
    pub quantized: Option<Store>,
}

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
}

/// Called after every tap with the number of its layers; an error stops the run.
pub type OnTap<'a> = &'a mut dyn FnMut(usize) -> Result<(), QuantizeError>;

/// One network's activations at a tap.
struct Stream {
    carry: Store,
    x: Store,
}

impl Stream {
    fn enter(block: &Block, mut hidden: Store, place: &Place) -> Result<Self, QuantizeError> {
        let rows = hidden.rows().to_vec();
        let mut carry = Store::new(place, hidden.channels(), &rows)?;
        let mut x = Store::new(place, block.spec.taps[0].channels(), &rows)?;
        for i in 0..rows.len() {
            let (c, first) = block.enter(hidden.take(i)?);
            carry.put(i, c.0)?;
            x.put(i, first)?;
        }
        Ok(Self { carry, x })
    }

    /// Runs the linears of a tap; `next` is the tap after it, if there is one.
    fn advance(
        &mut self,
        block: &Block,
        tap: usize,
        linears: &[Linear],
        rotary: &Rotary,
        next: Option<&Tap>,
        place: &Place,
    ) -> Result<Self, QuantizeError> {
        let rows = self.x.rows().to_vec();
        let mut x = Store::new(place, next.map_or(0, Tap::channels), &rows)?;
        for i in 0..rows.len() {
            let input = self.x.get(i)?;
            match block.advance(tap, Carry(self.carry.take(i)?), &input, linears, rotary) {
                Step::Tap(carry, next) => {
                    self.carry.put(i, carry.0)?;
                    x.put(i, next)?;
                }
                Step::Done(hidden) => self.carry.put(i, hidden)?,
            }
        }
        Ok(Self { carry: std::mem::replace(&mut self.carry, Store::empty()), x })
    }
}

/// One over the mean square of every token of the residual stream, scaled to a mean of one.
fn token_weights(residual: &Store) -> Result<Vec<Vec<f32>>, QuantizeError> {
    let mut weights = Vec::with_capacity(residual.windows());
    for i in 0..residual.windows() {
        let window = residual.get(i)?;
        let inverse = |row: &[f32]| (row.len() as f64 / sum_of_squares(row).max(f64::MIN_POSITIVE)) as f32;
        weights.push(window.data.chunks_exact(window.cols).map(inverse).collect::<Vec<f32>>());
    }
    let count: usize = weights.iter().map(Vec::len).sum();
    let total: f64 = weights.iter().flatten().map(|&w| f64::from(w)).sum();
    let factor = (count as f64 / total) as f32;
    weights.iter_mut().flatten().for_each(|w| *w *= factor);
    Ok(weights)
}

/// Quantizes the layers of one block, and moves the streams behind it.
///
/// # Errors
/// When a weight or activation is not finite, a file fails, or `on_tap` asks to stop.
pub fn quantize_block(
    mut block: Block,
    streams: Streams,
    recipe: &Recipe,
    rotary: &Rotary,
    place: &Place,
    on_tap: OnTap,
) -> Result<(Streams, Vec<QuantizedSite>), QuantizeError> {
    let taps = block.spec.taps.clone();
    let mut full = Stream::enter(&block, streams.full, place)?;
    let mut quantized = streams.quantized.map(|q| Stream::enter(&block, q, place)).transpose()?;
    let mut done = Vec::new();
    for (t, tap) in taps.iter().enumerate() {
        let linears = std::mem::take(&mut block.linears[t]);
        let next = taps.get(t + 1);
        // The full-precision stream goes first: its residual behind the tap weighs the tokens.
        let advanced = full.advance(&block, t, &linears, rotary, next, place)?;
        let weights = (recipe.token_weights && tap.kind.writes_residual()).then(|| token_weights(&advanced.carry));
        let (seen, wanted) = match quantized.as_mut() {
            Some(q) => {
                let wanted = (recipe.target == Target::Network).then_some(full.x);
                (std::mem::replace(&mut q.x, Store::empty()), wanted)
            }
            None => (full.x, None),
        };
        full = advanced;
        let inputs = TapInputs { seen, wanted, weights: weights.transpose()? };
        let results = quantize_sites(&linears, &inputs, recipe)?;
        if let Some(q) = quantized.as_mut() {
            q.x = inputs.seen;
        }
        let (replaced, sites) = replace(linears, results);
        if let Some(mut q) = quantized.take() {
            quantized = Some(q.advance(&block, t, &replaced, rotary, next, place)?);
        }
        done.extend(sites);
        on_tap(tap.sites.len())?;
    }
    let streams = Streams { full: full.carry, quantized: quantized.map(|q| q.carry) };
    Ok((streams, done))
}

/// Quantizes the layers of one tap but those that the recipe keeps, for which the answer is `None`.
pub(crate) fn quantize_sites(
    linears: &[Linear],
    inputs: &TapInputs,
    recipe: &Recipe,
) -> Result<Vec<Option<SiteResult>>, QuantizeError> {
    let chosen: Vec<bool> = linears.iter().map(|l| !recipe.keeps(&l.site.name)).collect();
    let weights: Vec<SiteWeight> = linears
        .iter()
        .zip(&chosen)
        .filter(|(_, chosen)| **chosen)
        .map(|(l, _)| SiteWeight { site: l.site.clone(), weight: l.weight.to_f32() })
        .collect();
    if weights.is_empty() || (recipe.weight_bits == 16 && recipe.activation_bits == 16) {
        return Ok(linears.iter().map(|_| None).collect());
    }
    let mut results = quantize_tap(inputs, weights, recipe)?.into_iter();
    Ok(chosen.iter().map(|c| if *c { results.next() } else { None }).collect())
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
                sites.push(QuantizedSite {
                    name: linear.site.name.clone(),
                    stored: StoredLayer { weight: result.weight.clone(), input: result.input.clone() },
                    error: result.error,
                    signal: result.signal,
                });
                Linear {
                    weight: result.weight.map_or(linear.weight, Weight::Quantized),
                    input: result.input,
                    ..linear
                }
            }
        })
        .collect();
    (replaced, sites)
}

impl Streams {
    /// The streams before the first block: every window's embedding, in the quantized stream that of the quantized
    /// table.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or a store cannot be written.
    pub fn begin(
        full: &Embedding,
        quantized: Option<&Embedding>,
        windows: &[Vec<u32>],
        hidden: usize,
        place: &Place,
    ) -> Result<Self, QuantizeError> {
        let rows: Vec<usize> = windows.iter().map(Vec::len).collect();
        let fill = |table: &Embedding| {
            let mut store = Store::new(place, hidden, &rows)?;
            for (i, window) in windows.iter().enumerate() {
                store.put(i, table.embed(window)?)?;
            }
            Ok::<_, QuantizeError>(store)
        };
        Ok(Self { full: fill(full)?, quantized: quantized.map(fill).transpose()? })
    }
}
