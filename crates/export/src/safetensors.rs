//! Folders of safetensors for vLLM and ModelOpt.

use crate::{ExportError, OnLayer, Plan, Target};
use halfbyte_checkpoint::{
    COMPANIONS, CheckpointWriter, LayerScheme, SHARD_BYTES, StoredLayer, TensorSpec, compressed_tensors,
    copy_atomic, modelopt, write_atomic,
};
use halfbyte_model::{Model, Site};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

pub(crate) fn write(
    model: &Model,
    target: Target,
    plan: &Plan,
    dir: &Path,
    on_layer: OnLayer,
) -> Result<(), ExportError> {
    let source = &model.checkpoint;
    let cannot = |message: String| ExportError::Cannot { target, message };
    let mut ours = HashSet::new();
    let mut specs = Vec::new();
    // In the order of the network.
    let mut groups: Vec<(LayerScheme, Vec<String>)> = Vec::new();
    for (site, scheme) in &plan.layers {
        let (rows, cols) = (site.outputs, site.inputs);
        ours.extend(scheme.tensors(&site.name, rows, cols).into_iter().map(|t| t.name));
        specs.extend(target.layout().tensors(scheme, &site.name, rows, cols).map_err(cannot)?);
        match groups.iter_mut().find(|g| g.0 == *scheme) {
            Some(group) => group.1.push(model.architecture.module_name(&site.name)),
            None => groups.push((*scheme, vec![model.architecture.module_name(&site.name)])),
        }
    }
    let copies: Vec<&str> = source.names().filter(|n| !ours.contains(*n)).collect();
    for name in &copies {
        let info = source.find(name)?;
        specs.push(TensorSpec::new(*name, info.dtype, info.shape.clone()));
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = CheckpointWriter::create(dir, &specs, &metadata, SHARD_BYTES)?;
    let steps = 2 * plan.layers.len();
    for (i, (site, _)) in plan.layers.iter().enumerate() {
        if !on_layer(i, steps) {
            return Err(ExportError::Stopped);
        }
        let stored = layer(model, site)?;
        for (spec, bytes) in target.layout().store(&stored, &site.name).map_err(cannot)? {
            writer.write(&spec.name, &bytes)?;
        }
    }
    for name in &copies {
        writer.copy_from(name, source, name)?;
    }
    writer.finish()?;

    let mut config = source.config().clone();
    let quantization = match target {
        Target::ModelOpt => {
            let (inline, file) = modelopt::config(&groups[0].0, &plan.ignore).map_err(cannot)?;
            write_atomic(&dir.join("hf_quant_config.json"), format!("{file:#}\n").as_bytes())?;
            inline
        }
        _ => compressed_tensors::config(&groups, &plan.ignore).map_err(cannot)?,
    };
    if let Some(config) = config.as_object_mut() {
        config.insert("quantization_config".into(), quantization);
    }
    write_atomic(&dir.join("config.json"), format!("{config:#}\n").as_bytes())?;
    for name in COMPANIONS {
        let from = source.dir().join(name);
        if from.is_file() {
            copy_atomic(&from, &dir.join(name))?;
        }
    }
    prove(model, plan, &copies, dir, &mut |done| on_layer(plan.layers.len() + done, steps))
}

/// Opens the folder as any reader would and compares all of it with the source.
fn prove(
    model: &Model,
    plan: &Plan,
    copies: &[&str],
    dir: &Path,
    on_layer: &mut dyn FnMut(usize) -> bool,
) -> Result<(), ExportError> {
    let differs = |what: &str| ExportError::Differs { path: dir.into(), what: what.to_owned() };
    let written = Model::open(dir)?;
    for (i, (site, _)) in plan.layers.iter().enumerate() {
        if !on_layer(i) {
            return Err(ExportError::Stopped);
        }
        let (ours, theirs) = (layer(model, site)?, layer(&written, site)?);
        if !same(&ours, &theirs) {
            return Err(differs(&site.name));
        }
    }
    let quantized = written.manifest.as_ref().map_or(0, |m| m.layers.len());
    let rest = |m: &Model| m.checkpoint.config().as_object().map(without_quantization);
    if quantized != plan.layers.len() || rest(model) != rest(&written) {
        return Err(differs("config.json"));
    }
    for name in copies {
        if model.checkpoint.read_bytes(name)? != written.checkpoint.read_bytes(name)? {
            return Err(differs(name));
        }
    }
    Ok(())
}

fn without_quantization(config: &serde_json::Map<String, Value>) -> serde_json::Map<String, Value> {
    config.iter().filter(|(k, _)| *k != "quantization_config").map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// A layer that is known to be quantized.
pub(crate) fn layer(model: &Model, site: &Site) -> Result<StoredLayer, ExportError> {
    let stored = model.stored_layer(site)?;
    Ok(stored.unwrap_or(StoredLayer { weight: None, input: None, low_rank: None }))
}

/// Whether two layers hold the same values to the bit, and quantize inputs alike.
fn same(a: &StoredLayer, b: &StoredLayer) -> bool {
    match (&a.weight, &b.weight) {
        (Some(x), Some(y)) if (x.rows, x.cols) == (y.rows, y.cols) => {
            let (mut p, mut q) = (vec![0.0; x.cols], vec![0.0; x.cols]);
            let rows = (0..x.rows).all(|r| {
                x.dequantize_row(r, &mut p);
                y.dequantize_row(r, &mut q);
                p.iter().zip(&q).all(|(p, q)| p.to_bits() == q.to_bits())
            });
            rows && a.input == b.input
        }
        _ => false,
    }
}
