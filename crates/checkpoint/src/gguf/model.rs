//! A GGUF file of the llama family as a checkpoint: its metadata as a Hugging Face config, its tensors under Hugging
//! Face's names, in that order of rows, blocks as their values.

use super::names::{from_gguf, interleaved_heads, source_row};
use super::{GgufFile, GgufType, GgufValue, blocks};
use crate::error::CheckpointError;
use crate::file::TensorInfo;
use crate::{Dtype, RawTensor};
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

/// A GGUF file that can be computed.
#[derive(Debug)]
pub(crate) struct GgufModel {
    pub(crate) file: GgufFile,
    pub(crate) config: Value,
    /// Under Hugging Face's names, sorted.
    pub(crate) tensors: Vec<GgufSource>,
}

/// A tensor and where its values are.
#[derive(Debug)]
pub(crate) struct GgufSource {
    pub(crate) info: TensorInfo,
    /// Its name in the file.
    name: String,
    kind: GgufType,
    /// Heads whose rows are interleaved.
    heads: Option<usize>,
}

/// Names of architectures in GGUF and in `model_type`, and the class that config.json names.
const FAMILIES: [(&str, &str); 3] =
    [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")];

/// Keys of an architecture that are read, or change nothing in the computation. Any other could mean a network that we
/// would compute wrongly.
const KEYS: [&str; 16] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "vocab_size",
    "tensor_data_layout",
];

impl GgufModel {
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = GgufFile::open(path)?;
        let wrong = |message: String| CheckpointError::Gguf { file: path.into(), message };
        let meta = Metadata::of(&file).map_err(wrong)?;
        let config = meta.config(&file)?;
        let shown: Arc<Path> = path.into();
        let mut tensors = Vec::new();
        for name in file.names() {
            let Some(tensor) = file.tensor(name) else { continue };
            // Read with the weight that it scales, and what the config says already.
            if name.ends_with(".scale") || name.ends_with(".input_scale") || name == ROPE_FACTORS {
                continue;
            }
            let hf = from_gguf(name).ok_or_else(|| {
                wrong(format!("there is no place for the tensor {name} in a {}", meta.arch))
            })?;
            let mut shape = Vec::with_capacity(tensor.dims.len());
            for &dim in tensor.dims.iter().rev() {
                shape.push(
                    usize::try_from(dim).map_err(|_| wrong(format!("{name} has a dimension of {dim}")))?,
                );
            }
            let dtype = tensor.kind.dtype().unwrap_or(Dtype::F32);
            let bytes =
                dtype.byte_len(&shape).ok_or_else(|| wrong(format!("{name} has the shape {shape:?}")))?;
            let heads = interleaved_heads(&meta.arch, &hf, meta.heads, meta.kv_heads);
            let rows = shape.first().copied().unwrap_or(1);
            if heads.is_some_and(|h| h == 0 || !rows.is_multiple_of(2 * h)) {
                return Err(wrong(format!("{name} has {rows} rows, which are not those of its heads")));
            }
            let info = TensorInfo::computed(hf, dtype, shape, bytes, shown.clone());
            tensors.push(GgufSource { info, name: name.into(), kind: tensor.kind, heads });
        }
        tensors.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        Ok(Self { file, config, tensors })
    }

    /// The block types of its tensors, in words; empty if all are floats.
    pub(crate) fn block_types(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for source in self.tensors.iter().filter(|t| t.kind.dtype().is_none()) {
            if !names.contains(&source.kind.layout().0) {
                names.push(source.kind.layout().0);
            }
        }
        names.join(" and ")
    }

    /// The name of a tensor's type and its bytes.
    pub(crate) fn stored_as(&self, source: &GgufSource) -> (String, u64) {
        let bytes = self.file.tensor(&source.name).and_then(|t| t.kind.bytes(&t.dims));
        (source.kind.to_string(), bytes.unwrap_or(0))
    }

    /// All values of a tensor, finite, in Hugging Face's order.
    pub(crate) fn read(&self, source: &GgufSource) -> Result<RawTensor, CheckpointError> {
        let bytes = self.file.read(&source.name)?;
        let rows = source.info.shape.first().copied().unwrap_or(1);
        let elements: usize = source.info.shape.iter().product();
        let cols = elements / rows.max(1);
        let raw = match source.kind {
            GgufType::F32 => RawTensor::F32(pieces(&bytes, f32::from_le_bytes)),
            GgufType::F16 => RawTensor::F16(pieces(&bytes, f16::from_le_bytes)),
            GgufType::BF16 => RawTensor::BF16(pieces(&bytes, bf16::from_le_bytes)),
            GgufType::Nvfp4 | GgufType::Mxfp4 => {
                let scale = self.scale(&source.name)?;
                let matrix = blocks::decode(&source.name, source.kind, rows, cols, &bytes, scale)?;
                RawTensor::F32(matrix.dequantize())
            }
            kind => {
                let mut values = vec![0.0; elements];
                kind.values(&bytes, &mut values);
                RawTensor::F32(values)
            }
        };
        let raw = match raw {
            RawTensor::F32(v) => RawTensor::F32(in_order(v, rows, source.heads)),
            RawTensor::F16(v) => RawTensor::F16(in_order(v, rows, source.heads)),
            RawTensor::BF16(v) => RawTensor::BF16(in_order(v, rows, source.heads)),
        };
        source.info.check_finite(&raw)?;
        Ok(raw)
    }

    /// The tensor scale beside an NVFP4 weight.
    fn scale(&self, name: &str) -> Result<f32, CheckpointError> {
        let sidecar = format!("{}.scale", name.trim_end_matches(".weight"));
        match self.file.tensor(&sidecar) {
            None => Ok(1.0),
            Some(t) if t.kind == GgufType::F32 && t.dims.iter().product::<u64>() == 1 => {
                Ok(pieces(&self.file.read(&sidecar)?, f32::from_le_bytes)[0])
            }
            Some(_) => Err(CheckpointError::Damaged { tensor: sidecar, message: "is not one F32".into() }),
        }
    }
}

/// What llama.cpp divides the rotary frequencies by.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The `rope_type` of such frequencies in our config. Not a type that other engines know: they must refuse it, since theirs
/// would be other frequencies.
pub(crate) const DIVIDED: &str = "divided";

fn pieces<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect()
}

/// Rows in Hugging Face's order.
fn in_order<T: Copy>(values: Vec<T>, rows: usize, heads: Option<usize>) -> Vec<T> {
    if heads.is_none() || values.is_empty() {
        return values;
    }
    let size = values.len() / rows;
    let mut out = values.clone();
    for row in 0..rows {
        out[source_row(row, rows, heads) * size..][..size].copy_from_slice(&values[row * size..][..size]);
    }
    out
}

/// The header's keys of the architecture.
struct Metadata<'a> {
    values: &'a [(String, GgufValue)],
    arch: String,
    heads: usize,
    kv_heads: usize,
}

impl<'a> Metadata<'a> {
    fn of(file: &'a GgufFile) -> Result<Self, String> {
        let values = file.values();
        let text = |key: &str| values.iter().find(|v| v.0 == key).map(|v| &v.1);
        let Some(GgufValue::Text(arch)) = text("general.architecture") else {
            return Err("it does not say its general.architecture".into());
        };
        if !FAMILIES.iter().any(|f| f.0 == arch) {
            let known: Vec<&str> = FAMILIES.iter().map(|f| f.0).collect();
            return Err(format!("its architecture {arch:?} is not read from GGUF; {} are", known.join(", ")));
        }
        if let Some(GgufValue::U32(n @ 2..)) = text("split.count") {
            return Err(format!("it is one of {n} parts; join them first (llama-gguf-split --merge)"));
        }
        let prefix = format!("{arch}.");
        let strange =
            values.iter().find(|(k, _)| k.strip_prefix(&prefix).is_some_and(|k| !KEYS.contains(&k)));
        if let Some((key, value)) = strange {
            return Err(format!(
                "{key} = {value:?} is not implemented; refusing rather than computing something else"
            ));
        }
        let mut meta = Self { values, arch: arch.clone(), heads: 0, kv_heads: 0 };
        meta.heads = meta.size("attention.head_count")?;
        meta.kv_heads = match meta.get("attention.head_count_kv") {
            None => meta.heads,
            Some(_) => meta.size("attention.head_count_kv")?,
        };
        Ok(meta)
    }

    fn get(&self, key: &str) -> Option<&'a GgufValue> {
        self.values
            .iter()
            .find(|v| v.0.strip_prefix(&self.arch).is_some_and(|k| k == format!(".{key}")))
            .map(|v| &v.1)
    }

    fn size(&self, key: &str) -> Result<usize, String> {
        match self.get(key) {
            Some(GgufValue::U32(n)) => Ok(*n as usize),
            Some(GgufValue::U64(n)) if *n <= 1 << 32 => Ok(*n as usize),
            found => Err(format!("{}.{key} is {found:?}, not a size", self.arch)),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::F32(v)) if v.is_finite() => Ok(Some(f64::from(*v))),
            found => Err(format!("{}.{key} is {found:?}, not a number", self.arch)),
        }
    }

    /// The config of Hugging Face that says the same.
    fn config(&self, file: &GgufFile) -> Result<Value, CheckpointError> {
        let wrong = |message: String| CheckpointError::Gguf { file: file.path().into(), message };
        let mut config = self.plain(file).map_err(wrong)?;
        if let Some(tensor) = file.tensor(ROPE_FACTORS) {
            if tensor.kind != GgufType::F32 {
                return Err(wrong(format!("{ROPE_FACTORS} is stored as {}, not as F32", tensor.kind)));
            }
            let factors = pieces(&file.read(ROPE_FACTORS)?, f32::from_le_bytes);
            let theta = config.get("rope_theta").cloned().unwrap_or_default();
            config.insert(
                "rope_parameters".into(),
                json!({ "rope_type": DIVIDED, "rope_theta": theta, "divisors": factors }),
            );
        }
        Ok(config.into())
    }

    fn plain(&self, file: &GgufFile) -> Result<Map<String, Value>, String> {
        let arch = &self.arch;
        let class = FAMILIES.iter().find(|f| f.0 == arch).map_or("", |f| f.1);
        let hidden = self.size("embedding_length")?;
        let head_dim = match self.get("attention.key_length") {
            Some(_) => self.size("attention.key_length")?,
            None => hidden / self.heads.max(1),
        };
        for key in ["attention.value_length", "rope.dimension_count"] {
            if self.get(key).is_some() && self.size(key)? != head_dim {
                return Err(format!(
                    "{arch}.{key} is not the {head_dim} channels of a head, which is not implemented"
                ));
            }
        }
        let has = |name: &str| file.tensor(name).is_some();
        let vocabulary = file.tensor("token_embd.weight").and_then(|t| t.dims.get(1)).copied();
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.into(), value);
        put("architectures", json!([class]));
        put("model_type", json!(arch));
        put("hidden_size", json!(hidden));
        put("intermediate_size", json!(self.size("feed_forward_length")?));
        put("num_hidden_layers", json!(self.size("block_count")?));
        put("num_attention_heads", json!(self.heads));
        put("num_key_value_heads", json!(self.kv_heads));
        put("head_dim", json!(head_dim));
        put("max_position_embeddings", json!(self.size("context_length")?));
        put("vocab_size", json!(vocabulary.ok_or("it has no token_embd.weight")?));
        put("rms_norm_eps", json!(self.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5)));
        put("rope_theta", json!(self.number("rope.freq_base")?.unwrap_or(10_000.0)));
        put("hidden_act", json!("silu"));
        put("tie_word_embeddings", json!(!has("output.weight")));
        put("attention_bias", json!(has("blk.0.attn_output.bias")));
        put("mlp_bias", json!(has("blk.0.ffn_up.bias")));
        match self.get("rope.scaling.type") {
            None => {}
            Some(GgufValue::Text(kind)) if kind == "none" => {}
            Some(GgufValue::Text(kind)) if kind == "linear" => {
                let factor = self.number("rope.scaling.factor")?.unwrap_or(1.0);
                put("rope_scaling", json!({ "rope_type": "linear", "factor": factor }));
            }
            Some(other) => return Err(format!("{arch}.rope.scaling.type = {other:?} is not implemented")),
        }
        for role in ["bos", "eos"] {
            let key = format!("tokenizer.ggml.{role}_token_id");
            if let Some((_, GgufValue::U32(id))) = self.values.iter().find(|v| v.0 == key) {
                put(&format!("{role}_token_id"), json!(id));
            }
        }
        Ok(config)
    }
}
