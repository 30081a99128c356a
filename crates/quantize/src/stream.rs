//! Calibration streamed block by block and tap by tap: every layer's forward pass runs once.

use crate::QuantizeError;
use crate::clock::{Phase, timed};
use crate::methods::{SiteResult, SiteWeight, quantize_tap};
use crate::profile::Profile;
use crate::recipe::{Calibration, Recipe};
use crate::residual::token_weights;
use crate::store::{Place, Store};
use crate::tap::TapInputs;
use halfbyte_checkpoint::StoredLayer;
use halfbyte_model::{Block, Carry, Embedding, Linear, Step, Tap, Weight};
use halfbyte_tensor::Rotary;

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

/// Called after every tap with the number of its layers; an error stops the run.
pub type OnTap<'a> = &'a mut dyn FnMut(usize) -> Result<(), QuantizeError>;

/// The activations of all calibration windows at a tap.
struct Stream<'a> {
    block: &'a Block,
    rotary: &'a Rotary,
    place: &'a Place,
    carry: Store,
    x: Store,
}

impl<'a> Stream<'a> {
    fn enter(
        block: &'a Block,
        rotary: &'a Rotary,
        place: &'a Place,
        mut hidden: Store,
    ) -> Result<Self, QuantizeError> {
        let rows = hidden.rows().to_vec();
        let mut carry = Store::new(place, hidden.channels(), &rows)?;
        let mut x = Store::new(place, block.spec.taps[0].channels(), &rows)?;
        for i in 0..rows.len() {
            let (c, first) = block.enter(hidden.take(i)?);
            carry.put(i, c.0)?;
            x.put(i, first)?;
        }
        Ok(Self { block, rotary, place, carry, x })
    }

    /// Goes from tap `tap` to the next through `linears`.
    fn advance(&mut self, tap: usize, linears: &[Linear]) -> Result<(), QuantizeError> {
        let rows = self.x.rows().to_vec();
        let next = self.block.spec.taps.get(tap + 1).map_or(0, Tap::channels);
        let mut x = Store::new(self.place, next, &rows)?;
        for i in 0..rows.len() {
            let carry = Carry(self.carry.take(i)?);
            match self.block.advance(tap, carry, &self.x.take(i)?, linears, self.rotary) {
                Step::Tap(carry, next) => {
                    self.carry.put(i, carry.0)?;
                    x.put(i, next)?;
                }
                Step::Done(hidden) => self.carry.put(i, hidden)?,
            }
        }
        self.x = x;
        Ok(())
    }
}

/// Quantizes the layers of one block for its input `hidden`, and gives its output: that of the full-precision layers,
/// or in sequential calibration that of the quantized ones.
///
/// # Errors
/// When a weight or activation is not finite, a file fails, or `on_tap` asks to stop.
pub fn quantize_block(
    mut block: Block,
    hidden: Store,
    recipe: &Recipe,
    rotary: &Rotary,
    place: &Place,
    on_tap: OnTap,
) -> Result<(Store, Vec<QuantizedSite>), QuantizeError> {
    let mut all = std::mem::take(&mut block.linears);
    all.iter_mut().flatten().for_each(|linear| linear.precision = recipe.products.precision());
    let mut stream = timed(Phase::Forward, || Stream::enter(&block, rotary, place, hidden))?;
    let mut done = Vec::new();
    for (t, linears) in all.into_iter().enumerate() {
        let tap = &block.spec.taps[t];
        let weigh = recipe.token_weights && tap.kind.writes_residual();
        let weights = match weigh {
            true => Some(timed(Phase::Statistics, || {
                token_weights(&linears[0], &stream.carry, &stream.x, recipe.seed)
            })?),
            false => None,
        };
        // Lend the activations to the method, and take them back.
        let inputs = TapInputs { x: std::mem::replace(&mut stream.x, Store::empty()), weights };
        let results = quantize_sites(&linears, &inputs, recipe)?;
        stream.x = inputs.x;
        match recipe.calibration {
            Calibration::FullPrecision => {
                timed(Phase::Forward, || stream.advance(t, &linears))?;
                done.extend(replace(linears, results).1);
            }
            Calibration::Sequential => {
                let (replaced, sites) = replace(linears, results);
                timed(Phase::Forward, || stream.advance(t, &replaced))?;
                done.extend(sites);
            }
        }
        on_tap(tap.sites.len())?;
    }
    Ok((stream.carry, done))
}

/// The input of the first block: the embedding of every window.
///
/// # Errors
/// When a token is outside the vocabulary or a store cannot be written.
pub fn embed(
    table: &Embedding,
    windows: &[Vec<u32>],
    hidden: usize,
    place: &Place,
) -> Result<Store, QuantizeError> {
    let rows: Vec<usize> = windows.iter().map(Vec::len).collect();
    let mut store = Store::new(place, hidden, &rows)?;
    for (i, window) in windows.iter().enumerate() {
        store.put(i, table.embed(window)?)?;
    }
    Ok(store)
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
                    profile: result.profile,
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
