//! Runs that see no calibration text: weights go from the checkpoint to the output one tap at a time, at about the speed
//! of the disk. There is nothing to resume: a run that was killed starts over, and ends in the same bytes.

use crate::QuantizeError;
use crate::job::{Job, Progress};
use crate::journal::{RunId, make_dir};
use crate::methods::block_scale::{Blocks, Values, f32_scales, is_block};
use crate::output::Output;
use crate::report::{AttentionReport, InputReport, LayerReport, Report, WeightReport};
use halfbyte_checkpoint::{CheckpointWriter, LayerScheme, RawTensor, StoredAttention, StoredLayer};
use halfbyte_formats::{InputQuantizer, QuantizedMatrix, Scheme};
use halfbyte_model::{BlockSpec, Model, Site};
use halfbyte_tensor::sum_of_squares;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;

pub(crate) fn run(
    job: &Job,
    id: &RunId,
    working: &Path,
    progress: &mut dyn Progress,
) -> Result<Report, QuantizeError> {
    let architecture = &job.model.architecture;
    let missing = || QuantizeError::Recipe { field: "weight_scheme".into(), message: "is missing".into() };
    let scheme_of = |site: &Site| {
        let layer = job.recipe.layer_scheme(&site.name);
        layer.and_then(|l| Some((l, l.weight?))).ok_or_else(missing)
    };
    let taps: Vec<Vec<&Site>> =
        architecture.groups().map(|sites| sites.iter().filter(|s| !job.recipe.keeps(s)).collect()).collect();
    let sites = || taps.iter().flatten();
    progress.begin(sites().count(), 0);
    let (mut schemes, mut specs) = (std::collections::BTreeMap::new(), Vec::new());
    for site in sites() {
        let (layer, scheme) = scheme_of(site)?;
        scheme.check_shape(&site.name, site.outputs, site.inputs)?;
        schemes.insert(site.name.clone(), layer);
        specs.extend(layer.tensors(&site.name, site.outputs, site.inputs));
    }
    make_dir(working)?;
    let attention = cached(job)?;
    let attention_schemes = attention.iter().map(|(name, stored)| (name.clone(), stored.scheme())).collect();
    let mut output = Output::begin(job, working, schemes, attention_schemes, specs)?;
    let mut layers = Vec::new();
    let model = job.model;
    let out = &mut output;
    // Reading the next tap and writing the last layer go on beside the work, and so does what is only copied; channels without a buffer bound what is held.
    thread::scope(|scope| {
        let (read, weights) = sync_channel(0);
        let (give_back, returned) = channel();
        let taps = &taps;
        scope.spawn(move || {
            let mut spare = Vec::new();
            for sites in taps {
                spare.extend(returned.try_iter());
                if read.send(read_tap(model, sites, &mut spare)).is_err() {
                    return;
                }
            }
        });
        let (done, tensors) = sync_channel::<Tensors>(0);
        let writing = scope.spawn(move || -> Result<(), QuantizeError> {
            let write = |writer: &mut CheckpointWriter, layer: Tensors| -> Result<(), QuantizeError> {
                Ok(layer.iter().try_for_each(|(name, bytes)| writer.write(name, bytes))?)
            };
            out.copy_rest(|writer| tensors.try_iter().try_for_each(|layer| write(writer, layer)))?;
            tensors.iter().try_for_each(|layer| write(&mut out.writer, layer))
        });
        let work = || -> Result<(), QuantizeError> {
            for (sites, weights) in taps.iter().zip(weights) {
                let weights = weights?;
                let block = |s: &&Site| scheme_of(s).is_ok_and(|(_, scheme)| is_block(scheme));
                let largest = match sites.iter().any(block) {
                    true => weights.iter().map(|w| Values::from(w).max_abs()).fold(0.0f32, f32::max),
                    false => 0.0,
                };
                for (site, weight) in sites.iter().zip(weights) {
                    let (layer, scheme) = scheme_of(site)?;
                    let (tensors, report) = quantize(job, &layer, scheme, site, &weight, largest)?;
                    let _ = give_back.send(weight); // Unless the reader is at its end.
                    if !is_block(scheme) {
                        progress.freed(); // Values in f32, of which the next layer need not have as many.
                    }
                    layers.push(report);
                    if done.send(tensors).is_err() {
                        return Ok(()); // The writer has stopped at an error, which is the answer.
                    }
                }
                progress.advance(sites.len());
                if progress.stopped() {
                    return Err(QuantizeError::StoppedAnew);
                }
            }
            Ok(())
        };
        let worked = work();
        drop(done);
        let written = writing.join().unwrap_or_else(|panic| resume_unwind(panic));
        written.and(worked)
    })?;
    let attention = attention.iter().map(|(name, stored)| AttentionReport::of_stored(name, stored));
    output.finish(id, layers, attention.collect(), Vec::new(), Vec::new())
}

/// The quantizers of keys and values by the names of attentions: schemes that take all scales at run time.
fn cached(job: &Job) -> Result<Vec<(String, StoredAttention)>, QuantizeError> {
    let Some(scheme) = job.recipe.kv_scheme else { return Ok(Vec::new()) };
    let quantized = |b: &&BlockSpec| job.recipe.quantizes_attention(b.attention_name());
    let of = |block: &BlockSpec| {
        let q = InputQuantizer::dynamic(scheme, 1.0, block.attention.head_dim)?;
        let stored = StoredAttention { key: Some(q.clone()), value: Some(q), ..StoredAttention::default() };
        Ok((block.attention_name().to_owned(), stored))
    };
    job.model.architecture.blocks.iter().filter(quantized).map(of).collect()
}

/// Names and bytes of a layer's tensors.
type Tensors = Vec<(String, Vec<u8>)>;

/// The stored weights of one tap, in the memory of spare tensors where there is a large enough one.
fn read_tap(
    model: &Model,
    sites: &[&Site],
    spare: &mut Vec<RawTensor>,
) -> Result<Vec<RawTensor>, QuantizeError> {
    let read = |site: &&Site| {
        let fits = |t: &RawTensor| t.len() >= site.outputs * site.inputs;
        let place = (0..spare.len()).filter(|&i| fits(&spare[i])).min_by_key(|&i| spare[i].len());
        let memory = place.map(|i| spare.swap_remove(i));
        if memory.is_none() {
            spare.clear(); // What is too small for one layer is not kept for another.
        }
        Ok(model.full_weight_into(site, memory)?)
    };
    sites.iter().map(read).collect()
}

/// Quantizes one layer: its tensors, and what is said of it.
fn quantize(
    job: &Job,
    layer: &LayerScheme,
    scheme: Scheme,
    site: &Site,
    weight: &RawTensor,
    largest: f32,
) -> Result<(Tensors, LayerReport), QuantizeError> {
    let (name, rows, cols) = (&site.name, site.outputs, site.inputs);
    let input = layer.input.map(|s| InputQuantizer::dynamic(s, 1.0, cols)).transpose()?;
    let (error, signal, report);
    let tensors: Tensors;
    if is_block(scheme) {
        let blocks = Blocks::new(scheme, largest, job.recipe.scales)?;
        let coded = blocks.encode(Values::from(weight), cols, &[]);
        let specs = layer.tensors(name, rows, cols);
        (error, signal) = (coded.error, coded.signal);
        let mut used = [false; 256];
        coded.scales.iter().for_each(|&b| used[usize::from(b)] = true);
        let scales = (0..=255u8).filter(|&b| used[usize::from(b)]).filter_map(|b| scheme.scale.from_byte(b));
        report = WeightReport::new(scheme, scales.map(|s| s * blocks.tensor_scale));
        let bytes = [coded.codes, coded.scales, blocks.tensor_scale.to_le_bytes().to_vec()];
        tensors = specs.into_iter().map(|s| s.name).zip(bytes).collect();
    } else {
        let mut values = vec![0.0; rows * cols];
        Values::from(weight).read(0, &mut values);
        let scales = f32_scales(name, &values, cols, scheme, job.recipe, &[])?;
        let matrix = QuantizedMatrix::quantize_with_scales(name, &values, rows, cols, scheme, scales, 1.0)?;
        let mut difference = matrix.dequantize();
        difference.iter_mut().zip(&values).for_each(|(d, v)| *d -= v);
        (error, signal) = (sum_of_squares(&difference), sum_of_squares(&values));
        drop((difference, values)); // Before the codes are there twice.
        report = WeightReport::new(scheme, matrix.scales.iter().copied());
        let stored = StoredLayer { weight: Some(matrix), input: input.clone(), low_rank: None };
        tensors = stored.tensors(name).into_iter().map(|(spec, bytes)| (spec.name, bytes)).collect();
    }
    let bytes: u64 = layer.tensors(name, rows, cols).iter().filter_map(|t| t.dtype.byte_len(&t.shape)).sum();
    let count = (rows * cols).max(1) as f64;
    let report = LayerReport {
        name: name.clone(),
        shape: [rows, cols],
        bits: 8 * bytes,
        weight: Some(report),
        channel_max: Vec::new(),
        input: input.map(|q| InputReport { scheme: q.scheme(), bias: 0.0, shifts: Vec::new() }),
        error: error / count,
        signal: signal / count,
        relative_error: if signal > 0.0 { error / signal } else { 0.0 },
        low_rank: None,
    };
    Ok((tensors, report))
}
