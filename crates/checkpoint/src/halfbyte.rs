//! halfbyte's own form of a quantized model: a Hugging Face folder whose quantized layers are codes and scales.
//!
//! A layer `X` with weight `[rows, cols]` has the tensors
//!
//! | tensor | dtype | shape | meaning |
//! |---|---|---|---|
//! | `X.weight_codes` | U8 | `[rows, ceil(cols · bits / 8)]` | codes, a row from a byte on, first code in the lowest bits |
//! | `X.weight_scale` | F32 | `[rows]` (channel), `[1]` (tensor), `[rows, cols / n]` (group) | multiplies the element's table |
//! | `X.input_scale` | F32 | `[1]` | scale of the input, for a static input scheme |
//! | `X.input_shift` | U8 | `[cols]` | s_j: channel j of the input has scale `input_scale · 2^(−s_j)`, for a scheme with shifts |
//!
//! and a [`LayerScheme`] under `quantization_config.layers` in config.json, repeated as the metadata entry
//! `halfbyte.layers` of every safetensors file, so that either alone tells how to read the codes. A layer whose weight
//! is left alone keeps its `X.weight`.

use crate::{Checkpoint, CheckpointError, Dtype, TensorSpec};
use halfbyte_formats::{InputQuantizer, QuantizedMatrix, ScaleFormat, Scheme, pack};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `quant_method` of our folders.
const METHOD: &str = "halfbyte";
/// Largest shift of a column.
const MAX_SHIFT: u8 = 31;
/// Version of the layout that this code writes and reads.
const VERSION: u32 = 1;

/// What `quantization_config` of a halfbyte folder holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    quant_method: String,
    version: u32,
    /// The recipe that made it, for the reader's information.
    pub recipe: serde_json::Value,
    /// Schemes by layer name.
    pub layers: BTreeMap<String, LayerScheme>,
}

impl Manifest {
    /// A manifest of this version.
    pub fn new(recipe: serde_json::Value, layers: BTreeMap<String, LayerScheme>) -> Self {
        Self { quant_method: METHOD.into(), version: VERSION, recipe, layers }
    }

    /// The manifest of a folder; `None` for an ordinary checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError::Config`] for a folder that another tool quantized, a newer version, or a damaged entry.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>, CheckpointError> {
        let Some(found) = checkpoint.config().get("quantization_config").filter(|v| !v.is_null()) else {
            return Ok(None);
        };
        let fail = |message: String| CheckpointError::Config {
            file: checkpoint.dir().join("config.json"),
            message: format!("quantization_config: {message}"),
        };
        match found.get("quant_method").and_then(|m| m.as_str()) {
            Some(METHOD) => {}
            other => {
                let name = other.unwrap_or("none given");
                return Err(fail(format!(
                    "quant_method is {name:?}; halfbyte reads full-precision checkpoints and its own, give it the original"
                )));
            }
        }
        if found.get("version").and_then(|v| v.as_u64()) != Some(u64::from(VERSION)) {
            return Err(fail(format!("its version is not {VERSION}; it was written by another halfbyte")));
        }
        serde_json::from_value(found.clone()).map(Some).map_err(|e| fail(e.to_string()))
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
}

/// One layer's codes, scales and shifts.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredLayer {
    /// The weight; `None` if it is left alone.
    pub weight: Option<QuantizedMatrix>,
    /// The quantizer of the input; `None` if it is left alone.
    pub input: Option<InputQuantizer>,
}

impl StoredLayer {
    /// The scheme that describes it.
    pub fn scheme(&self) -> LayerScheme {
        LayerScheme {
            weight: self.weight.as_ref().map(|w| w.scheme),
            input: self.input.as_ref().map(InputQuantizer::scheme),
        }
    }

    /// Its tensors and their bytes, for layer `name`.
    pub fn tensors(&self, name: &str) -> Vec<(TensorSpec, Vec<u8>)> {
        let floats = |v: &[f32]| v.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<u8>>();
        let mut out = Vec::new();
        if let Some(w) = &self.weight {
            let shape = scale_shape(&w.scheme, w.rows, w.cols);
            out.push((
                TensorSpec::new(format!("{name}.weight_codes"), Dtype::U8, [w.rows, w.row_bytes()]),
                w.codes.clone(),
            ));
            out.push((TensorSpec::new(format!("{name}.weight_scale"), Dtype::F32, shape), floats(&w.scales)));
        }
        if let Some(q) = &self.input {
            out.push((TensorSpec::new(format!("{name}.input_scale"), Dtype::F32, [1]), floats(&[q.scale()])));
            if !q.shifts().is_empty() {
                let spec = TensorSpec::new(format!("{name}.input_shift"), Dtype::U8, [q.shifts().len()]);
                out.push((spec, q.shifts().to_vec()));
            }
        }
        out
    }
}

impl LayerScheme {
    /// Checks that the tensors of layer `name` are there and have the shapes of a `[rows, cols]` weight.
    ///
    /// # Errors
    /// As [`Checkpoint::require`], and for a scheme that this version cannot read.
    pub fn check(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<(), CheckpointError> {
        let fail = |message: String| CheckpointError::Config {
            file: checkpoint.dir().join("config.json"),
            message: format!("quantization_config.layers.{name}: {message}"),
        };
        match &self.weight {
            None => {
                checkpoint.require(&format!("{name}.weight"), &[rows, cols])?;
            }
            Some(scheme) => {
                if scheme.scale != ScaleFormat::F32 || scheme.dynamic || scheme.shifts {
                    return Err(fail(format!("weights stored as {scheme} cannot be read")));
                }
                scheme.check_shape(name, rows, cols).map_err(|e| fail(e.to_string()))?;
                let bytes = pack::packed_len(scheme.element.bits(), cols);
                checkpoint.require(&format!("{name}.weight_codes"), &[rows, bytes])?;
                checkpoint.require(&format!("{name}.weight_scale"), &scale_shape(scheme, rows, cols))?;
            }
        }
        if let Some(scheme) = &self.input {
            if scheme.scale != ScaleFormat::F32
                || scheme.dynamic
                || scheme.granularity != halfbyte_formats::Granularity::Tensor
            {
                return Err(fail(format!("inputs quantized as {scheme} cannot be computed")));
            }
            checkpoint.require(&format!("{name}.input_scale"), &[1])?;
            if scheme.shifts {
                checkpoint.require(&format!("{name}.input_shift"), &[cols])?;
            }
        }
        Ok(())
    }

    /// Reads layer `name`, a `[rows, cols]` weight.
    ///
    /// # Errors
    /// As [`LayerScheme::check`], and for scales that are not positive or shifts beyond the element's range.
    pub fn read(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<StoredLayer, CheckpointError> {
        self.check(checkpoint, name, rows, cols)?;
        let damaged = |tensor: String, message: String| CheckpointError::Damaged { tensor, message };
        let weight = match &self.weight {
            None => None,
            Some(scheme) => {
                let codes = checkpoint.read_bytes(&format!("{name}.weight_codes"))?;
                let scale_name = format!("{name}.weight_scale");
                let scales = checkpoint.read_f32(&scale_name, &scale_shape(scheme, rows, cols))?;
                let matrix = QuantizedMatrix::from_parts(name, *scheme, rows, cols, codes, scales, 1.0);
                Some(matrix.map_err(|e| damaged(scale_name, e.to_string()))?)
            }
        };
        let input = match &self.input {
            None => None,
            Some(scheme) => {
                let scale_name = format!("{name}.input_scale");
                let scale = checkpoint.read_f32(&scale_name, &[1])?[0];
                if !(scale.is_normal() && scale > 0.0) {
                    return Err(damaged(scale_name, format!("{scale} is not a positive scale")));
                }
                let shift_name = format!("{name}.input_shift");
                let shifts = if scheme.shifts { checkpoint.read_bytes(&shift_name)? } else { Vec::new() };
                if let Some(bad) = shifts.iter().find(|&&s| s > MAX_SHIFT) {
                    return Err(damaged(shift_name, format!("a shift of {bad}, the largest is {MAX_SHIFT}")));
                }
                Some(InputQuantizer::new(scheme.element, scale, shifts))
            }
        };
        Ok(StoredLayer { weight, input })
    }
}

fn scale_shape(scheme: &Scheme, rows: usize, cols: usize) -> Vec<usize> {
    match scheme.granularity {
        halfbyte_formats::Granularity::Group(n) => vec![rows, cols / n.max(1)],
        _ => vec![scheme.scale_count(rows, cols)],
    }
}
