//! halfbyte's own form of a quantized model: a Hugging Face folder whose quantized layers are codes and scales.
//!
//! A layer `X` with weight `[rows, cols]` has the tensors
//!
//! | tensor | dtype | shape | meaning |
//! |---|---|---|---|
//! | `X.weight_codes` | U8 | `[rows, ceil(cols · bits / 8)]` | codes, a row from a byte on, first code in the lowest bits |
//! | `X.weight_scale` | F32, F8_E4M3 or F8_E8M0 | `[rows]` (channel), `[1]` (tensor), `[rows, cols / n]` (group) | multiplies the element's table |
//! | `X.weight_tensor_scale` | F32 | `[1]` | multiplies all E4M3 scales |
//! | `X.input_scale` | F32 | `[1]` | scale of the input for a static scheme, NVFP4's tensor scale for a dynamic one |
//! | `X.low_rank_down`, `X.low_rank_up` | BF16 | `[rank, cols]`, `[rows, rank]` | their product is added to the decoded weight |
//! | `X.input_shift` | U8 | `[cols]` | s_j: channel j of the input has scale `input_scale · 2^(−s_j)`, for a scheme with shifts |
//!
//! and a [`LayerScheme`] under `quantization_config.layers` in config.json, repeated as the metadata entry
//! `halfbyte.layers` of every safetensors file, so that either alone tells how to read the codes. A layer whose weight
//! is left alone keeps its `X.weight`. Attention's own products, where they are quantized, are described by the module
//! `attention`.
//!
//! `quantization_config.migrations` (metadata `halfbyte.migrations`) lists names `X.migration` with tensors `X.migration.weight`
//! and `X.migration.bias`, F32 `[cols]`: before it is quantized, the input of X and of the layers beside it that share it is
//! multiplied by the one, channel by channel, and the other is added.

use crate::attention::{AttentionScheme, AttentionWidths, StoredAttention};
use crate::layout::{Layout, scale_shape, with_dtype};
use crate::low_rank::{self, LowRank};
use crate::{Checkpoint, CheckpointError, Dtype, TensorSpec};
use halfbyte_formats::{Granularity, InputQuantizer, QuantizedMatrix, ScaleFormat, Scheme, pack};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `quant_method` of our folders.
const METHOD: &str = "halfbyte";
/// Largest shift of a column.
pub(crate) const MAX_SHIFT: u8 = 31;
/// Version of the layout; those of folders whose attention is quantized too, with low-rank parts, and with migrations, which
/// older readers would ignore.
const VERSION: u32 = 1;
const ATTENTION_VERSION: u32 = 2;
const LOW_RANK_VERSION: u32 = 3;
const MIGRATION_VERSION: u32 = 4;

/// What `quantization_config` of a halfbyte folder holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    quant_method: String,
    version: u32,
    /// The recipe that made it, for the reader's information.
    pub recipe: serde_json::Value,
    /// Schemes by layer name.
    pub layers: BTreeMap<String, LayerScheme>,
    /// Schemes of attention's own products by the name of the attention.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attention: BTreeMap<String, AttentionScheme>,
    /// Names of what multiplies inputs by factors of their channels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub migrations: Vec<String>,
    /// Whose tensors they are.
    #[serde(skip)]
    pub layout: Layout,
}

impl Manifest {
    /// A manifest of this version.
    pub fn new(recipe: serde_json::Value, layers: BTreeMap<String, LayerScheme>) -> Self {
        let (attention, layout) = (BTreeMap::new(), Layout::Halfbyte);
        let low_rank = layers.values().any(|l: &LayerScheme| l.low_rank.is_some());
        let version = if low_rank { LOW_RANK_VERSION } else { VERSION };
        let migrations = Vec::new();
        Self { quant_method: METHOD.into(), version, recipe, layers, attention, migrations, layout }
    }

    /// The same for a model whose attention is quantized too.
    #[must_use]
    pub fn with_attention(self, attention: BTreeMap<String, AttentionScheme>) -> Self {
        let version = if attention.is_empty() { self.version } else { self.version.max(ATTENTION_VERSION) };
        Self { attention, version, ..self }
    }

    /// The same for a model with migrations.
    #[must_use]
    pub fn with_migrations(self, migrations: Vec<String>) -> Self {
        let version = if migrations.is_empty() { self.version } else { MIGRATION_VERSION };
        Self { migrations, version, ..self }
    }

    /// The name of the recipe, `unnamed` where it has none.
    pub fn recipe_name(&self) -> &str {
        self.recipe.get("name").and_then(|n| n.as_str()).unwrap_or("unnamed")
    }

    /// The manifest of a folder, ours or one in a [`Layout`] that we read; `None` for an ordinary checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError::Config`] for a folder that another tool quantized in a form that is not read, a newer version, or
    /// a damaged entry.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>, CheckpointError> {
        let Some(found) = checkpoint.config().get("quantization_config").filter(|v| !v.is_null()) else {
            return Ok(None);
        };
        for layout in Layout::FOREIGN {
            if found.get("quant_method").and_then(|m| m.as_str()) == layout.quant_method() {
                return layout.manifest(checkpoint, found).map(Some);
            }
        }
        let fail = |message: String| CheckpointError::Config {
            file: checkpoint.dir().join("config.json"),
            message: format!("quantization_config: {message}"),
        };
        match found.get("quant_method").and_then(|m| m.as_str()) {
            Some(METHOD) => {}
            other => {
                let name = other.unwrap_or("none given");
                return Err(fail(format!(
                    "quant_method is {name:?}; halfbyte reads full-precision checkpoints, its own, compressed-tensors and ModelOpt; give it the original"
                )));
            }
        }
        let known = u64::from(VERSION)..=u64::from(MIGRATION_VERSION);
        if !found.get("version").and_then(|v| v.as_u64()).is_some_and(|v| known.contains(&v)) {
            return Err(fail(format!(
                "its version is not {VERSION} to {MIGRATION_VERSION}; it was written by another halfbyte"
            )));
        }
        serde_json::from_value(found.clone()).map(Some).map_err(|e| fail(e.to_string()))
    }

    /// Checks that the tensors of layer `name`, a `[rows, cols]` weight, are there with the right shapes and types.
    /// `false` if the weight is left alone: then its own tensor is still to be checked.
    ///
    /// # Errors
    /// As [`Checkpoint::require`], and for a scheme that cannot be read.
    pub fn check(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<bool, CheckpointError> {
        match self.layers.get(name) {
            Some(layer) => {
                self.layout.check(layer, checkpoint, name, rows, cols)?;
                Ok(layer.weight.is_some())
            }
            None => Ok(false),
        }
    }

    /// Reads layer `name`, a `[rows, cols]` weight; `None` if it is not quantized.
    ///
    /// # Errors
    /// As [`Manifest::check`], and for scales or shifts that cannot be.
    pub fn read(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<StoredLayer>, CheckpointError> {
        let Some(layer) = self.layers.get(name) else { return Ok(None) };
        self.layout.check(layer, checkpoint, name, rows, cols)?;
        self.layout.read(layer, checkpoint, name, rows, cols).map(Some)
    }

    /// Checks that the tensors of the attention `name` are there with the right shapes and types.
    ///
    /// # Errors
    /// As [`Checkpoint::require`], and for a scheme that cannot be computed.
    pub fn check_attention(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        widths: AttentionWidths,
    ) -> Result<(), CheckpointError> {
        self.attention.get(name).map_or(Ok(()), |scheme| scheme.check_stored(checkpoint, name, widths))
    }

    /// Reads the quantizers of the attention `name`; `None` if it is not quantized.
    ///
    /// # Errors
    /// As [`check_attention`](Self::check_attention), and for scales or shifts that cannot be.
    pub fn read_attention(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        widths: AttentionWidths,
    ) -> Result<Option<StoredAttention>, CheckpointError> {
        self.attention.get(name).map(|scheme| scheme.read(checkpoint, name, widths)).transpose()
    }
}

/// How one layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerScheme {
    /// Of the weight; `None` if it is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Scheme>,
    /// Of the input; `None` if it is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Scheme>,
    /// Rank of the low-rank part beside the codes, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_rank: Option<usize>,
}

/// One layer's codes, scales and shifts.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredLayer {
    /// The weight; `None` if it is left alone.
    pub weight: Option<QuantizedMatrix>,
    /// The quantizer of the input; `None` if it is left alone.
    pub input: Option<InputQuantizer>,
    /// The low-rank part beside the codes, if there is one.
    pub low_rank: Option<LowRank>,
}

impl StoredLayer {
    /// The scheme that describes it.
    pub fn scheme(&self) -> LayerScheme {
        LayerScheme {
            weight: self.weight.as_ref().map(|w| w.scheme),
            input: self.input.as_ref().map(InputQuantizer::scheme),
            low_rank: self.low_rank.as_ref().map(|l| l.rank),
        }
    }

    /// Its tensors in halfbyte's own form and their bytes, for layer `name`.
    pub fn tensors(&self, name: &str) -> Vec<(TensorSpec, Vec<u8>)> {
        let mut out = Vec::new();
        let (rows, cols) = self.weight.as_ref().map_or((0, 0), |w| (w.rows, w.cols));
        let cols = self.input.as_ref().map_or(cols, |q| cols.max(q.shifts().len()));
        for spec in self.scheme().tensors(name, rows, cols) {
            let bytes = match (spec.name.strip_prefix(name), &self.weight, &self.input) {
                (Some(CODES), Some(w), _) => w.codes.clone(),
                (Some(SCALE), Some(w), _) => scale_bytes(w.scheme.scale, &w.scales),
                (Some(TENSOR_SCALE), Some(w), _) => w.tensor_scale.to_le_bytes().to_vec(),
                (Some(INPUT_SCALE), _, Some(q)) => q.scale().to_le_bytes().to_vec(),
                (Some(INPUT_SHIFT), _, Some(q)) => q.shifts().to_vec(),
                (Some(suffix), ..) => match self.low_rank.as_ref().and_then(|l| l.bytes(suffix)) {
                    Some(bytes) => bytes,
                    None => continue,
                },
                _ => continue,
            };
            out.push((spec, bytes));
        }
        out
    }
}

const CODES: &str = ".weight_codes";
const SCALE: &str = ".weight_scale";
const TENSOR_SCALE: &str = ".weight_tensor_scale";
const INPUT_SCALE: &str = ".input_scale";
const INPUT_SHIFT: &str = ".input_shift";

/// Scales as their format stores them.
pub(crate) fn scale_bytes(format: ScaleFormat, scales: &[f32]) -> Vec<u8> {
    match format {
        ScaleFormat::F32 => scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
        _ => scales.iter().filter_map(|&s| format.to_byte(s)).collect(),
    }
}

/// A quantizer of rows of `cols` values, with its scale and shifts if it has any.
///
/// # Errors
/// What cannot be computed, as a message.
pub(crate) fn input_quantizer(
    scheme: Scheme,
    scale: f32,
    shifts: Vec<u8>,
    cols: usize,
) -> Result<InputQuantizer, String> {
    if !(scale.is_normal() && scale > 0.0) {
        return Err(format!("{scale} is not a positive scale"));
    }
    if let Some(bad) = shifts.iter().find(|&&s| s > MAX_SHIFT) {
        return Err(format!("a shift of {bad}, the largest is {MAX_SHIFT}"));
    }
    if !scheme.element.is_signed() {
        return Err(format!("{scheme} has no negative numbers"));
    }
    if scheme.dynamic {
        return InputQuantizer::dynamic(scheme, scale, cols).map_err(|e| e.to_string());
    }
    if scheme.scale != ScaleFormat::F32 || scheme.granularity != Granularity::Tensor {
        return Err(format!("inputs quantized as {scheme} cannot be computed"));
    }
    Ok(InputQuantizer::new(scheme.element, scale, shifts))
}

impl LayerScheme {
    /// The tensors, in halfbyte's own form, of layer `name`, a `[rows, cols]` weight.
    pub fn tensors(&self, name: &str, rows: usize, cols: usize) -> Vec<TensorSpec> {
        let mut out = Vec::new();
        let mut add = |suffix: &str, dtype, shape: &[usize]| {
            out.push(TensorSpec::new(format!("{name}{suffix}"), dtype, shape));
        };
        if let Some(scheme) = &self.weight {
            add(CODES, Dtype::U8, &[rows, pack::packed_len(scheme.element.bits(), cols)]);
            let dtype = match scheme.scale {
                ScaleFormat::F32 => Dtype::F32,
                ScaleFormat::E8M0 => Dtype::F8E8M0,
                ScaleFormat::E4M3 => Dtype::F8E4M3,
            };
            add(SCALE, dtype, &scale_shape(scheme, rows, cols));
            if scheme.scale == ScaleFormat::E4M3 {
                add(TENSOR_SCALE, Dtype::F32, &[1]);
            }
        }
        if let Some(scheme) = &self.input {
            if InputQuantizer::has_scale(*scheme) {
                add(INPUT_SCALE, Dtype::F32, &[1]);
            }
            if scheme.shifts {
                add(INPUT_SHIFT, Dtype::U8, &[cols]);
            }
        }
        if let Some(rank) = self.low_rank {
            out.extend(low_rank::tensors(name, rank, rows, cols));
        }
        out
    }

    /// The quantizer of the input, with its scale and shifts if it has any.
    ///
    /// # Errors
    /// What cannot be computed, as a message.
    pub(crate) fn input_quantizer(
        &self,
        scale: f32,
        shifts: Vec<u8>,
        cols: usize,
    ) -> Result<Option<InputQuantizer>, String> {
        self.input.map(|scheme| input_quantizer(scheme, scale, shifts, cols)).transpose()
    }

    /// Checks what can be known without reading a tensor.
    pub(crate) fn check_schemes(&self, name: &str, rows: usize, cols: usize) -> Result<(), String> {
        if let Some(scheme) = &self.weight {
            if scheme.dynamic || scheme.shifts || !scheme.element.is_signed() {
                return Err(format!("weights stored as {scheme} cannot be read"));
            }
            scheme.check_shape(name, rows, cols).map_err(|e| e.to_string())?;
        }
        if let Some(rank) = self.low_rank
            && (self.weight.is_none() || rank == 0 || rank >= rows.min(cols))
        {
            return Err(format!("a low-rank part of rank {rank} is not one of [{rows}, {cols}] codes"));
        }
        self.input_quantizer(1.0, Vec::new(), cols).map(|_| ())
    }

    pub(crate) fn check(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<(), CheckpointError> {
        for spec in self.tensors(name, rows, cols) {
            with_dtype(checkpoint.require(&spec.name, &spec.shape)?, &[spec.dtype])?;
        }
        Ok(())
    }

    pub(crate) fn read(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<StoredLayer, CheckpointError> {
        let tensor = |suffix: &str| format!("{name}{suffix}");
        let damaged =
            |suffix: &str, message: String| CheckpointError::Damaged { tensor: tensor(suffix), message };
        let single =
            |suffix: &str| Ok::<f32, CheckpointError>(checkpoint.read_f32(&tensor(suffix), &[1])?[0]);
        let weight = match &self.weight {
            None => None,
            Some(scheme) => {
                let codes = checkpoint.read_bytes(&tensor(CODES))?;
                let scales = match scheme.scale {
                    ScaleFormat::F32 => {
                        checkpoint.read_f32(&tensor(SCALE), &scale_shape(scheme, rows, cols))?
                    }
                    format => {
                        let bytes = checkpoint.read_bytes(&tensor(SCALE))?;
                        let scale = |&b: &u8| format.from_byte(b).ok_or(b);
                        let scales: Result<Vec<f32>, u8> = bytes.iter().map(scale).collect();
                        scales.map_err(|b| damaged(SCALE, format!("the byte {b} is no positive scale")))?
                    }
                };
                let tensor_scale =
                    if scheme.scale == ScaleFormat::E4M3 { single(TENSOR_SCALE)? } else { 1.0 };
                let matrix =
                    QuantizedMatrix::from_parts(name, *scheme, rows, cols, codes, scales, tensor_scale);
                Some(matrix.map_err(|e| damaged(SCALE, e.to_string()))?)
            }
        };
        let input = match self.input {
            None => None,
            Some(scheme) => {
                let scale = if InputQuantizer::has_scale(scheme) { single(INPUT_SCALE)? } else { 1.0 };
                let shifts =
                    if scheme.shifts { checkpoint.read_bytes(&tensor(INPUT_SHIFT))? } else { Vec::new() };
                self.input_quantizer(scale, shifts, cols).map_err(|message| damaged(INPUT_SCALE, message))?
            }
        };
        let low_rank =
            self.low_rank.map(|rank| LowRank::read(checkpoint, name, rank, rows, cols)).transpose()?;
        Ok(StoredLayer { weight, input, low_rank })
    }
}
