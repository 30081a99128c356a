//! How many bits each layer gets under a bound on their average (`max_bits`), for the methods that choose formats.
//!
//! Layers that share an input choose together among 4, 6 and 8 bits, from the recipe's own on. What counts is measured: block by
//! block the layers of one input alone are quantized to each width, and the error of the block's output is compared with the
//! full-precision one (see [`output_error`]), so that all figures are errors of the residual stream. The sum of these is made
//! small as `choice` does it for schemes.

use crate::QuantizeError;
use crate::choice::{Cost, choose};
use crate::inputs::Packs;
use crate::job::{Job, Progress, place};
use crate::journal::{RunId, make_dir};
use crate::plan::PlannedSite;
use crate::probe::{copy, forward, output_error, stand_in};
use crate::recipe::{BITS, Calibration, Method, Recipe, Rounding};
use crate::search::ShiftRule;
use crate::store::Store;
use crate::stream::{Surroundings, embed, quantize_block};
use crate::transforms::{Rotation, transform_block};
use halfbyte_checkpoint::write_atomic;
use halfbyte_model::{Architecture, Block, BlockSpec, Input, Site};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Rows of the calibration inputs that sensitivities are measured on.
pub(crate) const ROWS: usize = 4096;

/// What has been measured, in the working folder.
#[derive(Serialize, Deserialize)]
struct Measured {
    run: RunId,
    /// For every block, and every input of it whose layers are quantized, the error at each width.
    blocks: Vec<Vec<Vec<f64>>>,
}

/// The same recipe with the bits of every layer by its name; `None` where the recipe asks for no such choice.
///
/// # Errors
/// As [`crate::quantize`].
pub(crate) fn allocate(
    job: &Job,
    id: &RunId,
    partial: &Path,
    progress: &mut dyn Progress,
) -> Result<Option<Recipe>, QuantizeError> {
    let (recipe, a) = (job.recipe, &job.model.architecture);
    let Some(most) = recipe.max_bits.filter(|_| recipe.allocates()) else { return Ok(None) };
    check_bound(a, recipe)?;
    let measured = sensitivities(job, id, partial, progress)?;
    let sets: Vec<Vec<&Site>> =
        a.blocks.iter().flat_map(|b| sets(b, recipe).map(|(_, sites)| sites)).collect();
    let widths = widths(recipe);
    let options: Vec<Vec<Cost>> = sets
        .iter()
        .zip(measured.iter().flatten())
        .map(|(sites, errors)| {
            let bits = widths.iter().map(|&w| stored_bits(sites, recipe, w));
            errors.iter().zip(bits).map(|(&error, bits)| Cost { error, bits }).collect()
        })
        .collect();
    let budget = (f64::from(most) * weights(&sets) as f64) as u64;
    let mut settled = Recipe { max_bits: None, ..recipe.clone() };
    for (sites, choice) in sets.iter().zip(choose(&options, Some(budget))) {
        settled.layer_bits.extend(sites.iter().map(|s| (s.name.clone(), widths[choice])));
    }
    Ok(Some(settled))
}

/// Checks from shapes alone that `max_bits` can be kept.
///
/// # Errors
/// [`QuantizeError::Recipe`], saying how many bits it takes at least.
pub(crate) fn check_bound(a: &Architecture, recipe: &Recipe) -> Result<(), QuantizeError> {
    let Some(most) = recipe.max_bits.filter(|_| recipe.allocates()) else { return Ok(()) };
    let sets: Vec<Vec<&Site>> =
        a.blocks.iter().flat_map(|b| sets(b, recipe).map(|(_, sites)| sites)).collect();
    let bits: u64 = sets.iter().map(|s| stored_bits(s, recipe, recipe.weight_bits)).sum();
    let least = bits as f64 / weights(&sets).max(1) as f64;
    if f64::from(most) >= least {
        return Ok(());
    }
    let thin =
        if recipe.low_rank > 0 { format!(" and low_rank = {}", recipe.low_rank) } else { String::new() };
    let message = format!(
        "= {most} cannot be kept: with weight_bits = {}{thin} the layers take {least:.4}",
        recipe.weight_bits
    );
    Err(QuantizeError::Recipe { field: "max_bits".into(), message })
}

/// The widths that layers choose among, the recipe's own first.
pub(crate) fn widths(recipe: &Recipe) -> Vec<u32> {
    BITS.into_iter().filter(|&b| b < 16 && b >= recipe.weight_bits).collect()
}

/// The taps of a block with the layers that choose together.
fn sets<'a>(block: &'a BlockSpec, recipe: &'a Recipe) -> impl Iterator<Item = (usize, Vec<&'a Site>)> {
    let chosen = |sites: &'a [Site]| sites.iter().filter(|s| !recipe.keeps(s)).collect::<Vec<_>>();
    block.taps.iter().map(move |t| chosen(&t.sites)).enumerate().filter(|(_, sites)| !sites.is_empty())
}

fn weights(sets: &[Vec<&Site>]) -> u64 {
    sets.iter().flatten().map(|s| (s.outputs * s.inputs) as u64).sum()
}

/// Bits of the inputs of a layer whose weights get `width`: as many, or 16 where the recipe leaves inputs alone.
fn inputs_beside(recipe: &Recipe, width: u32) -> u32 {
    if recipe.activation_bits < 16 { width } else { 16 }
}

fn stored_bits(sites: &[&Site], recipe: &Recipe, width: u32) -> u64 {
    let shifts = recipe.method == Method::Fpq && recipe.shifts != ShiftRule::None;
    let of = |s: &&Site| {
        let thin = 16 * recipe.low_rank * (s.outputs + s.inputs);
        PlannedSite::new(s, width, inputs_beside(recipe, width), shifts).bits() + thin as u64
    };
    sites.iter().map(of).sum()
}

fn sensitivities(
    job: &Job,
    id: &RunId,
    partial: &Path,
    progress: &mut dyn Progress,
) -> Result<Vec<Vec<Vec<f64>>>, QuantizeError> {
    let (model, recipe, a) = (job.model, job.recipe, &job.model.architecture);
    make_dir(partial)?;
    let file = partial.join("sensitivities.json");
    let found = std::fs::read(&file).ok().and_then(|b| serde_json::from_slice::<Measured>(&b).ok());
    let mut measured =
        found.filter(|m| m.run == *id).unwrap_or(Measured { run: id.clone(), blocks: Vec::new() });
    progress.begin(a.blocks.len(), measured.blocks.len());
    if measured.blocks.len() == a.blocks.len() {
        return Ok(measured.blocks);
    }
    let inputs = sample(a, job.inputs);
    let packs = Packs::new(a, inputs)?;
    let place = place(a, recipe, &packs, job.out, job.activation_memory);
    let rotary = a.rotary(packs.longest());
    let around = Surroundings { rotary: &rotary, layouts: &packs.layouts, place: &place };
    let rotation = Rotation::of(a, recipe)?;
    let mut hidden = embed(&model.stem()?, inputs, &packs, a.hidden, &place)?;
    progress.freed();
    for b in 0..a.blocks.len() {
        let mut stopped = || if progress.stopped() { Err(QuantizeError::Stopped(b)) } else { Ok(()) };
        stopped()?;
        let mut block = model.block(b)?;
        block.linears.iter_mut().flatten().for_each(|l| l.precision = recipe.products.precision());
        let leaving = forward(&block, &hidden, &rotary, &packs.layouts, &place)?;
        if b >= measured.blocks.len() {
            let turned = |r: &Rotation| {
                Ok::<_, QuantizeError>((r.turned(&hidden, &place)?, r.turned(&leaving, &place)?))
            };
            let turned = rotation.as_ref().map(turned).transpose()?;
            let (entering, wanted) = turned.as_ref().map_or((&hidden, &leaving), |(e, l)| (e, l));
            transform_block(&mut block, entering, recipe, &around, &mut stopped)?;
            measured.blocks.push(errors(&block, entering, wanted, recipe, &around, &mut stopped)?);
            let text = serde_json::to_vec(&measured).map_err(|e| QuantizeError::Output(e.to_string()))?;
            write_atomic(&file, &text)?;
            progress.advance(1);
        }
        hidden = leaving;
    }
    Ok(measured.blocks)
}

/// The first inputs, enough of them.
fn sample<'a>(a: &Architecture, inputs: &'a [Input]) -> &'a [Input] {
    let mut rows = 0;
    let enough = inputs.iter().position(|input| {
        rows += a.rows(input);
        rows >= ROWS
    });
    enough.map_or(inputs, |last| &inputs[..=last])
}

/// The error of a block's output with the layers of one input quantized, for every input and width.
fn errors(
    block: &Block,
    entering: &Store,
    leaving: &Store,
    recipe: &Recipe,
    around: &Surroundings,
    stopped: &mut dyn FnMut() -> Result<(), QuantizeError>,
) -> Result<Vec<Vec<f64>>, QuantizeError> {
    let taps: Vec<usize> = sets(&block.spec, recipe).map(|(tap, _)| tap).collect();
    let mut errors = vec![Vec::new(); taps.len()];
    for width in widths(recipe) {
        let wide = Recipe {
            weight_bits: width,
            activation_bits: inputs_beside(recipe, width),
            // Every width sees the same inputs.
            calibration: Calibration::FullPrecision,
            attention_bits: 16,
            kv_scheme: None,
            layer_bits: Default::default(),
            rounding: Rounding::Given,
            ..recipe.clone()
        };
        let hidden = copy(entering, around.place)?;
        let done = quantize_block(block.clone(), hidden, &wide, around, &mut |_| stopped())?;
        let mut through = block.clone();
        for (&tap, errors) in taps.iter().zip(&mut errors) {
            for linear in &mut through.linears[tap] {
                if let Some(site) = done.sites.iter().find(|s| s.name == linear.site.name) {
                    stand_in(linear, site.stored.clone());
                }
            }
            errors.push(output_error(&through, entering, leaving, around.rotary, around.layouts)?);
            through.linears[tap].clone_from(&block.linears[tap]);
            stopped()?;
        }
    }
    Ok(errors)
}
