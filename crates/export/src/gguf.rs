//! One GGUF file for llama.cpp: block weights as they are, everything else as stored, norms and biases in f32.

use crate::safetensors::layer;
use crate::tokenizer;
use crate::{ExportError, OnLayer, Plan, Target};
use halfbyte_checkpoint::gguf::{self, GgufFile, GgufTensor, GgufType, GgufValue, GgufWriter};
use halfbyte_checkpoint::{Dtype, TensorSpec};
use halfbyte_model::{Architecture, Model, Site};
use serde_json::Value;
use std::ffi::OsStr;
use std::path::Path;

/// Checks that llama.cpp computes this architecture as we do.
pub(crate) fn check(a: &Architecture) -> Result<(), String> {
    if !FAMILIES.contains(&a.family.as_str()) {
        return Err(format!("the family {} is not written as GGUF, only {}", a.family, FAMILIES.join(", ")));
    }
    if a.blocks.iter().any(|b| b.attention.window.is_some_and(|w| w < a.context)) {
        return Err("llama.cpp ignores the sliding window of this family".into());
    }
    if a.ropes.iter().any(|r| r.amplitude != 1.0) {
        return Err("its rotary embedding scales amplitudes (YaRN), which is not written yet".into());
    }
    Ok(())
}

/// The families whose tensors we name for llama.cpp.
const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// How llama.cpp calls the family: Mistral is a llama there.
fn family(a: &Architecture) -> &str {
    if a.family == "mistral" { "llama" } else { &a.family }
}

/// GGUF's name of a part of a block.
fn kind(name: &str) -> Option<&'static str> {
    Some(match name {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        _ => return None,
    })
}

/// GGUF's name for a tensor or layer of ours.
fn renamed(name: &str) -> Option<String> {
    let (base, suffix) = match name.rsplit_once('.') {
        Some((base, suffix @ ("weight" | "bias"))) => (base, suffix),
        _ => return None,
    };
    let base = match base {
        "model.embed_tokens" => "token_embd".to_owned(),
        "model.norm" => "output_norm".to_owned(),
        "lm_head" => "output".to_owned(),
        _ => {
            let (layer, part) = base.strip_prefix("model.layers.")?.split_once('.')?;
            format!("blk.{}.{}", layer.parse::<u32>().ok()?, kind(part)?)
        }
    };
    Some(format!("{base}.{suffix}"))
}

/// Heads whose rows are interleaved: llama.cpp's rotary form for the llama family pairs neighbours, Hugging Face's the two
/// halves of a head.
fn interleaved_heads(a: &Architecture, name: &str) -> Option<usize> {
    let shape = &a.blocks.first()?.attention;
    match name {
        _ if family(a) != "llama" => None,
        _ if name.contains(".q_proj.") || name.ends_with(".q_proj") => Some(shape.heads),
        _ if name.contains(".k_proj.") || name.ends_with(".k_proj") => Some(shape.kv_heads),
        _ => None,
    }
}

/// Which of our rows is row `row` of the file, for `rows` rows of so many heads.
fn source_row(row: usize, rows: usize, heads: Option<usize>) -> usize {
    let Some(heads) = heads else { return row };
    let dim = rows / heads.max(1);
    let (head, within) = (row / dim, row % dim);
    head * dim + within / 2 + within % 2 * (dim / 2)
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
    dir: &Path,
    name: &OsStr,
    on_layer: OnLayer,
) -> Result<(), ExportError> {
    let a = &model.architecture;
    let cannot = |message: String| ExportError::Cannot { target, message };
    let block = if target == Target::GgufNvfp4 { GgufType::Nvfp4 } else { GgufType::Mxfp4 };
    let mut tensors: Vec<(GgufTensor, Source)> = Vec::new();
    let ours: std::collections::HashSet<String> = plan
        .layers
        .iter()
        .flat_map(|s| plan.scheme.tensors(&s.name, s.outputs, s.inputs))
        .map(|t: TensorSpec| t.name)
        .collect();
    for tensor in model.checkpoint.names().filter(|n| !ours.contains(*n)) {
        if tensor.ends_with("rotary_emb.inv_freq") {
            continue;
        }
        let info = model.checkpoint.file_of(tensor)?.find(tensor)?;
        let to =
            renamed(tensor).ok_or_else(|| cannot(format!("there is no place for the tensor {tensor}")))?;
        let dims: Vec<u64> = info.shape.iter().rev().map(|&d| d as u64).collect();
        // llama.cpp wants vectors in f32.
        let kind = if dims.len() < 2 { Some(GgufType::F32) } else { GgufType::of(info.dtype) };
        let kind = kind.ok_or_else(|| cannot(format!("{tensor} is stored as {}", info.dtype)))?;
        tensors.push((GgufTensor::new(to, kind, dims), Source::Copy(tensor.to_owned())));
    }
    if let Some(factors) = rope_factors(a, model.checkpoint.config()).map_err(cannot)? {
        let dims = [factors.len() as u64];
        let bytes = floats(&factors);
        tensors.push((GgufTensor::new("rope_freqs.weight", GgufType::F32, dims), Source::Bytes(bytes)));
    }
    for site in &plan.layers {
        let to = renamed(&format!("{}.weight", site.name))
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
    let values = metadata(model, target).map_err(cannot)?;

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

/// The bytes of one of our tensors as the file has them, but for the order of rows.
fn plain(model: &Model, name: &str, kind: GgufType) -> Result<(Vec<u8>, usize), ExportError> {
    let info = model.checkpoint.file_of(name)?.find(name)?;
    let rows = info.shape.first().copied().unwrap_or(1);
    let bytes = match (kind, info.dtype) {
        (GgufType::F32, dtype) if dtype != Dtype::F32 => {
            floats(&model.checkpoint.read_f32(name, &info.shape)?)
        }
        _ => model.checkpoint.read_bytes(name)?,
    };
    Ok((bytes, rows))
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
            wanted.len() == bytes.len()
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
fn metadata(model: &Model, target: Target) -> Result<Vec<(String, GgufValue)>, String> {
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
        // llama.cpp's LLAMA_FTYPE_MOSTLY_NVFP4 and _MXFP4_MOE, the only one it has for MXFP4.
        ("general.file_type".to_owned(), U32(if target == Target::GgufNvfp4 { 39 } else { 38 })),
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
    fn names_of_llama_cpp() {
        assert_eq!(renamed("model.layers.7.mlp.up_proj.weight").as_deref(), Some("blk.7.ffn_up.weight"));
        assert_eq!(renamed("model.layers.0.self_attn.q_proj.bias").as_deref(), Some("blk.0.attn_q.bias"));
        assert_eq!(renamed("lm_head.weight").as_deref(), Some("output.weight"));
        assert_eq!(renamed("model.layers.0.moe.weight"), None);
        assert_eq!(renamed("something"), None);
    }

    #[test]
    fn rotary_halves_become_neighbours() {
        // Two heads of four: halves (0 1 | 2 3) become pairs 0 2, 1 3.
        let rows: Vec<usize> = (0..8).map(|r| source_row(r, 8, Some(2))).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(reorder(vec![0, 1, 2, 3], 4, Some(1)), [0, 2, 1, 3]);
        assert_eq!(source_row(3, 8, None), 3);
    }
}
