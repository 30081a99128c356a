//! One GGUF file for llama.cpp: block weights as they are, everything else as stored, norms and biases in f32.

use crate::safetensors::layer;
use crate::target::{coded, gguf_type};
use crate::tokenizer;
use crate::{ExportError, OnLayer, Plan, Rest, Target};
use halfbyte_checkpoint::LayerScheme;
use halfbyte_checkpoint::gguf::names::{self, source_row};
use halfbyte_checkpoint::gguf::{self, GgufFile, GgufTensor, GgufType, GgufValue, GgufWriter};
use halfbyte_formats::Scheme;
use halfbyte_model::{Activation, Architecture, Model, Site};
use serde_json::Value;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;

/// Checks that llama.cpp computes this model as we do, and that a file has places for all of it.
pub(crate) fn check(model: &Model, layers: &[(Site, LayerScheme)]) -> Result<(), String> {
    let a = &model.architecture;
    if !FAMILIES.contains(&a.family.as_str()) {
        return Err(format!("the family {} is not written as GGUF, only {}", a.family, FAMILIES.join(", ")));
    }
    if a.blocks.iter().any(|b| b.attention.window.is_some_and(|w| w < a.context)) {
        return Err("llama.cpp ignores the sliding window of this family".into());
    }
    if a.ropes.iter().any(|r| r.amplitude != 1.0) {
        return Err("its rotary embedding scales amplitudes (YaRN), which is not written yet".into());
    }
    if let Some(b) = a.blocks.iter().find(|b| b.activation != Activation::Silu) {
        return Err(format!(
            "llama.cpp computes this family with SiLU and config.json says {:?}, for which GGUF has no key",
            b.activation
        ));
    }
    rope_factors(a, model.checkpoint.config())?;
    let coded = coded(layers);
    copied(model, &coded).try_for_each(|tensor| place(tensor).map(|_| ()))?;
    metadata(model, FILE_TYPE_NVFP4).map(|_| ())
}

/// The tensors that the file has as they are: those of the network that are not `coded`.
fn copied<'a>(model: &'a Model, coded: &'a HashSet<String>) -> impl Iterator<Item = &'a str> {
    let computed = |name: &str| name.ends_with("rotary_emb.inv_freq");
    // llama.cpp refuses files with tensors that it does not load.
    let no_part = move |name: &str| computed(name) || model.architecture.is_beyond(name);
    model.checkpoint.names().filter(move |name| !coded.contains(*name) && !no_part(name))
}

fn place(tensor: &str) -> Result<String, String> {
    names::to_gguf(tensor).ok_or_else(|| format!("there is no place for the tensor {tensor}"))
}

/// llama.cpp's LLAMA_FTYPE_MOSTLY_NVFP4.
const FILE_TYPE_NVFP4: u32 = 39;
/// LLAMA_FTYPE_MOSTLY_MXFP4_MOE, the only one it has for MXFP4.
const FILE_TYPE_MXFP4: u32 = 38;

/// The families whose tensors we name for llama.cpp.
const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// How llama.cpp calls the family: Mistral is a llama there.
fn family(a: &Architecture) -> &str {
    if a.family == "mistral" { "llama" } else { &a.family }
}

/// Heads whose rows are interleaved in the file.
fn interleaved_heads(a: &Architecture, name: &str) -> Option<usize> {
    let shape = &a.blocks.first()?.attention;
    names::interleaved_heads(family(a), name, shape.heads, shape.kv_heads)
}

/// A tensor of the file and where its bytes come from.
enum Source<'a> {
    /// A quantized weight.
    Layer(&'a Site),
    /// A tensor, copied or widened to f32.
    Copy(String),
    /// Bytes that are known already.
    Bytes(Vec<u8>),
}

pub(crate) fn write(
    model: &Model,
    target: Target,
    plan: &Plan,
    rest: Rest,
    dir: &Path,
    name: &OsStr,
    on_layer: OnLayer,
) -> Result<(), ExportError> {
    let cannot = |message: String| ExportError::Cannot { target, message };
    let tensors = tensors(model, plan, rest, &cannot)?;
    // That of most layers.
    let is_nvfp4 = |l: &&(Site, LayerScheme)| l.1.weight == Some(Scheme::NVFP4);
    let nvfp4 = plan.layers.iter().filter(is_nvfp4).count();
    let file_type = if 2 * nvfp4 >= plan.layers.len() { FILE_TYPE_NVFP4 } else { FILE_TYPE_MXFP4 };
    let values = metadata(model, file_type).map_err(cannot)?;

    let file_name = format!("{}.gguf", name.to_string_lossy());
    let path = dir.join(file_name);
    let infos: Vec<GgufTensor> = tensors.iter().map(|t| t.0.clone()).collect();
    let mut writer = GgufWriter::create(&path, &values, &infos)?;
    let steps = 2 * tensors.len();
    for (i, (tensor, source)) in tensors.iter().enumerate() {
        if !on_layer(i, steps) {
            return Err(ExportError::Stopped);
        }
        writer.write(&tensor.name, &data(model, tensor, source, &cannot)?)?;
    }
    writer.finish()?;

    let differs = |what: &str| ExportError::Differs { path: path.clone(), what: what.to_owned() };
    let file = GgufFile::open(&path)?;
    if file.values() != values || file.names().count() != tensors.len() {
        return Err(differs("the header"));
    }
    for (i, (tensor, source)) in tensors.iter().enumerate() {
        if !on_layer(tensors.len() + i, steps) {
            return Err(ExportError::Stopped);
        }
        if !proven(model, &file, tensor, source)? {
            return Err(differs(&tensor.name));
        }
    }
    Ok(())
}

/// The tensors of the file.
fn tensors<'a>(
    model: &Model,
    plan: &'a Plan,
    rest: Rest,
    cannot: &dyn Fn(String) -> ExportError,
) -> Result<Vec<(GgufTensor, Source<'a>)>, ExportError> {
    let a = &model.architecture;
    let mut tensors: Vec<(GgufTensor, Source)> = Vec::new();
    let coded = coded(&plan.layers);
    for tensor in copied(model, &coded) {
        let info = model.checkpoint.find(tensor)?;
        let to = place(tensor).map_err(cannot)?;
        let dims: Vec<u64> = info.shape.iter().rev().map(|&d| d as u64).collect();
        // llama.cpp wants vectors in f32.
        let kind = match rest.kind() {
            _ if dims.len() < 2 => Some(GgufType::F32),
            None => GgufType::of(info.dtype),
            chosen => chosen,
        };
        let kind = kind.ok_or_else(|| cannot(format!("{tensor} is stored as {}", info.dtype)))?;
        if !dims.first().is_some_and(|d| d.is_multiple_of(kind.block() as u64)) {
            return Err(cannot(format!(
                "the rows of {tensor} {:?} are no whole blocks of {kind}; choose another --rest",
                info.shape
            )));
        }
        tensors.push((GgufTensor::new(to, kind, dims), Source::Copy(tensor.to_owned())));
    }
    if let Some(factors) = rope_factors(a, model.checkpoint.config()).map_err(cannot)? {
        let dims = [factors.len() as u64];
        let bytes = floats(&factors);
        tensors.push((GgufTensor::new("rope_freqs.weight", GgufType::F32, dims), Source::Bytes(bytes)));
    }
    for (site, scheme) in &plan.layers {
        let block = scheme.weight.map_or(GgufType::Mxfp4, gguf_type);
        let to = names::to_gguf(&format!("{}.weight", site.name))
            .ok_or_else(|| cannot(format!("there is no place for the layer {}", site.name)))?;
        let base = to.trim_end_matches(".weight").to_owned();
        let dims = [site.inputs as u64, site.outputs as u64];
        tensors.push((GgufTensor::new(to, block, dims), Source::Layer(site)));
        if block == GgufType::Nvfp4 {
            let stored = layer(model, site)?;
            let scale = stored.weight.as_ref().map_or(1.0, |w| w.tensor_scale);
            let mut sidecar = |suffix: &str, value: f32| {
                let tensor = GgufTensor::new(format!("{base}.{suffix}"), GgufType::F32, [1]);
                tensors.push((tensor, Source::Bytes(floats(&[value]))));
            };
            sidecar("scale", scale);
            if let Some(input) = &stored.input {
                sidecar("input_scale", input.scale());
            }
        }
    }
    // In the order of the network, as converters write them.
    tensors.sort_by_cached_key(|(t, _)| order(&t.name));
    Ok(tensors)
}

/// The largest finite half-precision number.
const F16_MAX: f32 = 65504.0;

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Embedding, blocks by number, the rest.
fn order(name: &str) -> (usize, String) {
    let block =
        name.strip_prefix("blk.").and_then(|n| n.split('.').next()).and_then(|n| n.parse::<usize>().ok());
    match (name, block) {
        ("token_embd.weight", _) => (0, name.into()),
        (_, Some(block)) => (block + 1, name.into()),
        _ => (usize::MAX, name.into()),
    }
}

/// Rows of `bytes` in the file's order.
fn reorder(bytes: Vec<u8>, rows: usize, heads: Option<usize>) -> Vec<u8> {
    if heads.is_none() {
        return bytes;
    }
    let size = bytes.len() / rows.max(1);
    (0..rows).flat_map(|r| bytes[source_row(r, rows, heads) * size..][..size].to_vec()).collect()
}

/// The bytes of one of our tensors as the file has them, but for the order of rows; and its rows.
fn plain(model: &Model, name: &str, kind: GgufType) -> Result<(Vec<u8>, usize), ExportError> {
    let info = model.checkpoint.find(name)?;
    let rows = info.shape.first().copied().unwrap_or(1);
    if GgufType::of(info.dtype) == Some(kind) {
        return Ok((model.checkpoint.read_bytes(name)?, rows));
    }
    let bytes = kind.blocks(&model.checkpoint.read_f32(name, &info.shape)?);
    Ok((bytes.unwrap_or_default(), rows))
}

/// Whether `found`, the blocks of the tensor `name`, have its values as nearly as their type can: F16 to 11 bits, BF16 to 8,
/// Q8_0 to half a step (and what rounding the step to an `f16` takes from 127 of them).
fn near(model: &Model, name: &str, kind: GgufType, found: &[u8]) -> Result<bool, ExportError> {
    let info = model.checkpoint.find(name)?;
    let values = model.checkpoint.read_f32(name, &info.shape)?;
    let block = kind.block();
    // Whole blocks, enough of them for a call.
    let piece = 64 * block;
    let piece_bytes = found.len() / (values.len() / block).max(1) * 64;
    let mut read = vec![0.0; piece];
    Ok(values.chunks(piece).zip(found.chunks(piece_bytes.max(1))).all(|(values, bytes)| {
        let read = &mut read[..values.len()];
        if kind.values(bytes, read).is_none() {
            return false;
        }
        values.chunks(block).zip(read.chunks(block)).all(|(values, read)| {
            let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let most = |v: f32| match kind {
                GgufType::F16 => v.abs() / 2048.0 + 2f32.powi(-25),
                GgufType::BF16 => v.abs() / 256.0,
                GgufType::Q8_0 => 0.57 * largest / 127.0 + 127.0 * 2f32.powi(-25),
                _ => 0.0,
            };
            values.iter().zip(read).all(|(v, r)| (v - r).abs() <= most(*v))
        })
    }))
}

fn data(
    model: &Model,
    tensor: &GgufTensor,
    source: &Source,
    cannot: &dyn Fn(String) -> ExportError,
) -> Result<Vec<u8>, ExportError> {
    match source {
        Source::Bytes(bytes) => Ok(bytes.clone()),
        Source::Copy(name) => {
            if matches!(tensor.kind, GgufType::F16 | GgufType::Q8_0) {
                let info = model.checkpoint.find(name)?;
                let values = model.checkpoint.read_f32(name, &info.shape)?;
                let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let most = if tensor.kind == GgufType::F16 { F16_MAX } else { 127.0 * F16_MAX };
                if largest > most {
                    return Err(cannot(format!(
                        "{name} has a value of {largest}, too large for {}; choose --rest bf16",
                        tensor.kind
                    )));
                }
            }
            let (bytes, rows) = plain(model, name, tensor.kind)?;
            Ok(reorder(bytes, rows, interleaved_heads(&model.architecture, name)))
        }
        Source::Layer(site) => {
            let heads = interleaved_heads(&model.architecture, &site.name);
            let weight = layer(model, site)?.weight;
            let coded = weight.and_then(|w| gguf::encode(&w, |r| source_row(r, w.rows, heads)));
            let (_, bytes) =
                coded.ok_or_else(|| cannot(format!("layer {} is not made of its blocks", site.name)))?;
            Ok(bytes)
        }
    }
}

/// Whether what is in the file has the values of the source.
fn proven(model: &Model, file: &GgufFile, tensor: &GgufTensor, source: &Source) -> Result<bool, ExportError> {
    if file.tensor(&tensor.name) != Some(tensor) {
        return Ok(false);
    }
    let bytes = file.read(&tensor.name)?;
    Ok(match source {
        Source::Bytes(wanted) => *wanted == bytes,
        Source::Copy(name) => {
            let (wanted, rows) = plain(model, name, tensor.kind)?;
            let heads = interleaved_heads(&model.architecture, name);
            let size = wanted.len() / rows.max(1);
            let rounded = GgufType::of(model.checkpoint.find(name)?.dtype) != Some(tensor.kind);
            (!rounded || near(model, name, tensor.kind, &wanted)?)
                && wanted.len() == bytes.len()
                && (0..rows)
                    .all(|r| bytes[r * size..][..size] == wanted[source_row(r, rows, heads) * size..][..size])
        }
        Source::Layer(site) => {
            let mut scale = 1.0;
            if tensor.kind == GgufType::Nvfp4 {
                let sidecar = file.read(&tensor.name.replace(".weight", ".scale"))?;
                scale = sidecar.as_chunks::<4>().0.first().map_or(0.0, |b| f32::from_le_bytes(*b));
            }
            let found = gguf::decode(&tensor.name, tensor.kind, site.outputs, site.inputs, &bytes, scale)?;
            let heads = interleaved_heads(&model.architecture, &site.name);
            let ours = layer(model, site)?.weight;
            let (mut p, mut q) = (vec![0.0; site.inputs], vec![0.0; site.inputs]);
            ours.is_some_and(|ours| {
                (0..site.outputs).all(|r| {
                    found.dequantize_row(r, &mut p);
                    ours.dequantize_row(source_row(r, site.outputs, heads), &mut q);
                    p.iter().zip(&q).all(|(p, q)| p.to_bits() == q.to_bits())
                })
            })
        }
    })
}

/// The base of the rotary frequencies.
fn theta(config: &Value) -> f64 {
    let nested = config.get("rope_parameters").or(config.get("rope_scaling"));
    let nested = nested.and_then(|r| r.get("rope_theta"));
    nested.or(config.get("rope_theta")).and_then(Value::as_f64).unwrap_or(10_000.0)
}

/// What llama.cpp divides the plain frequencies by; `None` where they are the plain ones.
fn rope_factors(a: &Architecture, config: &Value) -> Result<Option<Vec<f32>>, String> {
    let Some(rope) = a.ropes.first() else { return Ok(None) };
    let (theta, n) = (theta(config), rope.frequencies.len());
    let plain = (0..n).map(|i| 1.0 / theta.powf(2.0 * i as f64 / (2 * n) as f64));
    let factors: Vec<f32> =
        plain.zip(&rope.frequencies).map(|(plain, &f)| (plain / f64::from(f)) as f32).collect();
    if factors.iter().all(|f| (f - 1.0).abs() < 1e-5) {
        return Ok(None);
    }
    if family(a) != "llama" {
        return Err(format!("scaled rotary frequencies of {} have no place in it", a.family));
    }
    Ok(Some(factors))
}

/// Keys and values of the header.
fn metadata(model: &Model, file_type: u32) -> Result<Vec<(String, GgufValue)>, String> {
    use GgufValue::{F32, Text, U32};
    let (a, config) = (&model.architecture, model.checkpoint.config());
    let arch = family(a).to_owned();
    let shape = &a.blocks.first().ok_or("it has no blocks")?.attention;
    let size = |n: usize| U32(n as u32);
    let width = a.blocks[0].taps.iter().find(|t| t.kind == halfbyte_model::TapKind::MlpInner);
    let name = config.get("_name_or_path").and_then(Value::as_str).unwrap_or_default();
    let folder = model.checkpoint.dir().file_name().map(|n| n.to_string_lossy().into_owned());
    let name = if name.is_empty() { folder.unwrap_or_default() } else { name.to_owned() };
    let mut values = vec![
        ("general.architecture".to_owned(), Text(arch.clone())),
        ("general.type".to_owned(), Text("model".into())),
        ("general.name".to_owned(), Text(name)),
        ("general.file_type".to_owned(), U32(file_type)),
        ("general.quantization_version".to_owned(), U32(2)),
    ];
    let mut of_arch = |key: &str, value| values.push((format!("{arch}.{key}"), value));
    of_arch("block_count", size(a.blocks.len()));
    of_arch("context_length", size(a.context));
    of_arch("embedding_length", size(a.hidden));
    of_arch("feed_forward_length", size(width.map_or(0, halfbyte_model::Tap::channels)));
    of_arch("attention.head_count", size(shape.heads));
    of_arch("attention.head_count_kv", size(shape.kv_heads));
    of_arch("attention.key_length", size(shape.head_dim));
    of_arch("attention.value_length", size(shape.head_dim));
    of_arch("attention.layer_norm_rms_epsilon", F32(a.head.norm.as_ref().map_or(0.0, |n| n.eps)));
    of_arch("rope.freq_base", F32(theta(config) as f32));
    of_arch("rope.dimension_count", size(shape.head_dim));
    of_arch("vocab_size", size(a.vocabulary()));
    values.extend(tokenizer::values(model.checkpoint.dir(), config, a.vocabulary())?);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_where_llama_cpp_wants_them() {
        assert_eq!(reorder(vec![0, 1, 2, 3], 4, Some(1)), [0, 2, 1, 3]);
        assert_eq!(reorder(vec![0, 1, 2, 3], 4, None), [0, 1, 2, 3]);
    }
}
