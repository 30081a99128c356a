//! Runs that see no calibration text: weights go from the checkpoint to the output one tap at a time, at about the speed
//! of the disk. There is nothing to resume: a run that was killed starts over, and ends in the same bytes.

use crate::QuantizeError;
use crate::job::{Job, Progress};
use crate::journal::{RunId, make_dir};
use crate::methods::block_scale::{Blocks, Values, is_block};
use crate::output::Output;
use crate::report::{InputReport, LayerReport, Report, WeightReport};
use halfbyte_checkpoint::{CheckpointWriter, LayerScheme, RawTensor, StoredLayer};
use halfbyte_formats::{InputQuantizer, QuantizedMatrix, Scheme};
use halfbyte_model::Site;
use halfbyte_tensor::sum_of_squares;
use std::path::Path;

pub(crate) fn run(
    job: &Job,
    id: &RunId,
    working: &Path,
    progress: &mut dyn Progress,
) -> Result<Report, QuantizeError> {
    let architecture = &job.model.architecture;
    let missing = || QuantizeError::Recipe { field: "weight_scheme".into(), message: "is missing".into() };
    let layer = job.recipe.layer_scheme().ok_or_else(missing)?;
    let scheme = layer.weight.ok_or_else(missing)?;
    let taps: Vec<Vec<&Site>> =
        architecture.groups().map(|sites| sites.iter().filter(|s| !job.recipe.keeps(s)).collect()).collect();
    let sites = || taps.iter().flatten();
    progress.begin(sites().count(), 0);
    let (mut schemes, mut specs) = (std::collections::BTreeMap::new(), Vec::new());
    for site in sites() {
        scheme.check_shape(&site.name, site.outputs, site.inputs)?;
        schemes.insert(site.name.clone(), layer);
        specs.extend(layer.tensors(&site.name, site.outputs, site.inputs));
    }
    make_dir(working)?;
    let mut output = Output::begin(job, working, schemes, specs)?;
    let mut layers = Vec::new();
    for (t, sites) in taps.iter().enumerate() {
        let mut weights = Vec::with_capacity(sites.len());
        for site in sites {
            weights.push(job.model.full_weight(site)?);
        }
        let largest = match is_block(scheme) {
            true => weights.iter().map(|w| Values::from(w).max_abs()).fold(0.0f32, f32::max),
            false => 0.0,
        };
        for (site, weight) in sites.iter().zip(weights) {
            layers.push(quantize(job, &layer, scheme, site, weight, largest, &mut output.writer)?);
        }
        progress.advance(sites.len());
        if progress.stopped() {
            return Err(QuantizeError::Stopped(t / 4));
        }
    }
    output.finish(id, layers)
}

/// Quantizes one layer and writes its tensors.
fn quantize(
    job: &Job,
    layer: &LayerScheme,
    scheme: Scheme,
    site: &Site,
    weight: RawTensor,
    largest: f32,
    writer: &mut CheckpointWriter,
) -> Result<LayerReport, QuantizeError> {
    let (name, rows, cols) = (&site.name, site.outputs, site.inputs);
    let input = job.recipe.input_scheme.map(|s| InputQuantizer::dynamic(s, 1.0, cols)).transpose()?;
    let (error, signal, report);
    if is_block(scheme) {
        let blocks = Blocks::new(scheme, largest, job.recipe.scales)?;
        let coded = blocks.encode(Values::from(&weight), cols, &[]);
        let specs = layer.tensors(name, rows, cols);
        let tensor_scale = blocks.tensor_scale.to_le_bytes();
        let tensors = [coded.codes.as_slice(), coded.scales.as_slice(), tensor_scale.as_slice()];
        for (spec, bytes) in specs.iter().zip(tensors) {
            writer.write(&spec.name, bytes)?;
        }
        (error, signal) = (coded.error, coded.signal);
        let mut used = [false; 256];
        coded.scales.iter().for_each(|&b| used[usize::from(b)] = true);
        let scales = (0..=255u8).filter(|&b| used[usize::from(b)]).filter_map(|b| scheme.scale.from_byte(b));
        report = WeightReport::new(scheme, scales.map(|s| s * blocks.tensor_scale));
    } else {
        let values = weight.into_f32();
        let matrix = QuantizedMatrix::quantize_max(name, &values, rows, cols, scheme)?;
        let mut difference = matrix.dequantize();
        difference.iter_mut().zip(&values).for_each(|(d, v)| *d -= v);
        (error, signal) = (sum_of_squares(&difference), sum_of_squares(&values));
        report = WeightReport::new(scheme, matrix.scales.iter().copied());
        let stored = StoredLayer { weight: Some(matrix), input: input.clone() };
        for (spec, bytes) in stored.tensors(name) {
            writer.write(&spec.name, &bytes)?;
        }
    }
    let bytes: u64 = layer.tensors(name, rows, cols).iter().filter_map(|t| t.dtype.byte_len(&t.shape)).sum();
    let count = (rows * cols).max(1) as f64;
    Ok(LayerReport {
        name: name.clone(),
        shape: [rows, cols],
        bits: 8 * bytes,
        weight: Some(report),
        channel_max: Vec::new(),
        input: input.map(|q| InputReport { scheme: q.scheme(), bias: 0.0, shifts: Vec::new() }),
        error: error / count,
        signal: signal / count,
        relative_error: if signal > 0.0 { error / signal } else { 0.0 },
    })
}
