//! The operands of attention's own products in halfbyte's folders: how queries, keys, values and probabilities are quantized
//! before `q·kᵀ` and `probabilities·v`.
//!
//! The attention `X` of a block, named as its query projection without the last part, has an [`AttentionScheme`] under
//! `quantization_config.attention` and the tensors
//!
//! | tensor | dtype | shape | meaning |
//! |---|---|---|---|
//! | `X.query_scale`, `X.key_scale`, `X.value_scale`, `X.probability_scale` | F32 | `[1]` | scale of a static scheme, NVFP4's tensor scale for a dynamic one |
//! | `X.query_shift`, `X.key_shift`, `X.value_shift` | U8 | `[channels]` | channel j has scale `scale · 2^(−s_j)`, for a scheme with shifts |
//! | `X.probability_shift` | U8 | `[heads]` | the same for a head |
//!
//! A dynamic scale of queries, keys and values belongs to one head of one token.

use crate::halfbyte::{MAX_SHIFT, input_quantizer};
use crate::layout::with_dtype;
use crate::{Checkpoint, CheckpointError, Dtype, TensorSpec};
use halfbyte_formats::{InputQuantizer, ProbabilityQuantizer, Scheme};
use serde::{Deserialize, Serialize};

/// How the operands of one block's attention are quantized; `None` for those that are left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionScheme {
    /// Queries, as they meet the keys: normed and rotated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<Scheme>,
    /// Keys, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Scheme>,
    /// Values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Scheme>,
    /// What the softmax gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<Scheme>,
}

/// The sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionWidths {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

/// The quantizers of one block's attention.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredAttention {
    /// Of queries `[tokens, heads · head_dim]`.
    pub query: Option<InputQuantizer>,
    /// Of keys `[tokens, kv_heads · head_dim]`.
    pub key: Option<InputQuantizer>,
    /// Of values, likewise.
    pub value: Option<InputQuantizer>,
    /// Of probabilities.
    pub probability: Option<ProbabilityQuantizer>,
}

/// The three operands that are matrices.
const OPERANDS: [&str; 3] = ["query", "key", "value"];
const PROBABILITY: &str = "probability";

impl AttentionWidths {
    fn channels(&self, operand: &str) -> usize {
        if operand == OPERANDS[0] { self.heads * self.head_dim } else { self.kv_heads * self.head_dim }
    }
}

fn scale_name(name: &str, operand: &str) -> String {
    format!("{name}.{operand}_scale")
}

fn shift_name(name: &str, operand: &str) -> String {
    format!("{name}.{operand}_shift")
}

/// Names of all tensors that the attention `name` may have.
pub(crate) fn names(name: &str) -> impl Iterator<Item = String> + '_ {
    let operands = OPERANDS.into_iter().chain([PROBABILITY]);
    operands.flat_map(move |operand| [scale_name(name, operand), shift_name(name, operand)])
}

impl AttentionScheme {
    fn operands(&self) -> [(&'static str, Option<Scheme>); 3] {
        [(OPERANDS[0], self.query), (OPERANDS[1], self.key), (OPERANDS[2], self.value)]
    }

    /// Checks that this can be computed for the attention `name`.
    ///
    /// # Errors
    /// A message that names the operand.
    pub fn check(&self, name: &str, widths: AttentionWidths) -> Result<(), String> {
        for (operand, scheme) in self.operands() {
            let Some(scheme) = scheme else { continue };
            input_quantizer(scheme, 1.0, Vec::new(), widths.head_dim)
                .map_err(|message| format!("{name}, {operand}: {message}"))?;
            let shape = scheme.check_shape(&format!("{name}, {operand}"), 1, widths.head_dim);
            shape.map_err(|e| e.to_string())?;
        }
        let probability = self.probability.map(|s| ProbabilityQuantizer::of_scheme(s, 1.0, Vec::new()));
        probability.transpose().map(|_| ()).map_err(|e| format!("{name}: {e}"))
    }

    /// The tensors of the attention `name`.
    pub fn tensors(&self, name: &str, widths: AttentionWidths) -> Vec<TensorSpec> {
        let mut out = Vec::new();
        for (operand, scheme) in self.operands() {
            let Some(scheme) = scheme else { continue };
            if InputQuantizer::has_scale(scheme) {
                out.push(TensorSpec::new(scale_name(name, operand), Dtype::F32, [1]));
            }
            if scheme.shifts {
                let channels = widths.channels(operand);
                out.push(TensorSpec::new(shift_name(name, operand), Dtype::U8, [channels]));
            }
        }
        if let Some(scheme) = self.probability {
            if !scheme.dynamic {
                out.push(TensorSpec::new(scale_name(name, PROBABILITY), Dtype::F32, [1]));
            }
            if scheme.shifts {
                out.push(TensorSpec::new(shift_name(name, PROBABILITY), Dtype::U8, [widths.heads]));
            }
        }
        out
    }

    /// Checks that the tensors of the attention `name` are there.
    ///
    /// # Errors
    /// As [`Checkpoint::require`], and for a scheme that cannot be computed.
    pub(crate) fn check_stored(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        widths: AttentionWidths,
    ) -> Result<(), CheckpointError> {
        self.check(name, widths).map_err(|message| CheckpointError::Config {
            file: checkpoint.dir().join("config.json"),
            message: format!("quantization_config, attention {message}"),
        })?;
        for spec in self.tensors(name, widths) {
            with_dtype(checkpoint.require(&spec.name, &spec.shape)?, &[spec.dtype])?;
        }
        Ok(())
    }

    /// Reads the quantizers of the attention `name`.
    ///
    /// # Errors
    /// As [`check_stored`](Self::check_stored), and for scales or shifts that cannot be.
    pub(crate) fn read(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        widths: AttentionWidths,
    ) -> Result<StoredAttention, CheckpointError> {
        self.check_stored(checkpoint, name, widths)?;
        let damaged = |tensor: String, message: String| CheckpointError::Damaged { tensor, message };
        let scale = |operand: &str, stored: bool| match stored {
            true => Ok::<f32, CheckpointError>(checkpoint.read_f32(&scale_name(name, operand), &[1])?[0]),
            false => Ok(1.0),
        };
        let shifts = |operand: &str, stored: bool| match stored {
            true => checkpoint.read_bytes(&shift_name(name, operand)),
            false => Ok(Vec::new()),
        };
        let mut read = [None, None, None];
        for ((operand, scheme), quantizer) in self.operands().into_iter().zip(&mut read) {
            let Some(scheme) = scheme else { continue };
            let (scale, shifts) =
                (scale(operand, InputQuantizer::has_scale(scheme))?, shifts(operand, scheme.shifts)?);
            let made = input_quantizer(scheme, scale, shifts, widths.head_dim);
            *quantizer = Some(made.map_err(|message| damaged(scale_name(name, operand), message))?);
        }
        let [query, key, value] = read;
        let probability = match self.probability {
            None => None,
            Some(scheme) => {
                let at = scale_name(name, PROBABILITY);
                let (scale, shifts) =
                    (scale(PROBABILITY, !scheme.dynamic)?, shifts(PROBABILITY, scheme.shifts)?);
                if !(scale.is_normal() && scale > 0.0) || shifts.iter().any(|&s| s > MAX_SHIFT) {
                    return Err(damaged(at, format!("{scale} with shifts {shifts:?} is no scale")));
                }
                let made = ProbabilityQuantizer::of_scheme(scheme, scale, shifts);
                Some(made.map_err(|e| damaged(at, e.to_string()))?)
            }
        };
        Ok(StoredAttention { query, key, value, probability })
    }
}

impl StoredAttention {
    /// The scheme that describes it.
    pub fn scheme(&self) -> AttentionScheme {
        let of = |q: &Option<InputQuantizer>| q.as_ref().map(InputQuantizer::scheme);
        AttentionScheme {
            query: of(&self.query),
            key: of(&self.key),
            value: of(&self.value),
            probability: self.probability.as_ref().map(ProbabilityQuantizer::scheme),
        }
    }

    /// Its tensors and their bytes, for the attention `name`.
    pub fn tensors(&self, name: &str, widths: AttentionWidths) -> Vec<(TensorSpec, Vec<u8>)> {
        let of = |q: &Option<InputQuantizer>| q.as_ref().map(|q| (q.scale(), q.shifts().to_vec()));
        let probability = self.probability.as_ref().map(|q| (q.scale(), q.shifts().to_vec()));
        let operands = OPERANDS.into_iter().zip([of(&self.query), of(&self.key), of(&self.value)]);
        let operands: Vec<_> = operands.chain([(PROBABILITY, probability)]).collect();
        let bytes = |tensor: &str| {
            operands.iter().find_map(|(operand, parts)| {
                let (scale, shifts) = parts.as_ref()?;
                match tensor {
                    t if t == scale_name(name, operand) => Some(scale.to_le_bytes().to_vec()),
                    t if t == shift_name(name, operand) => Some(shifts.clone()),
                    _ => None,
                }
            })
        };
        let specs = self.scheme().tensors(name, widths).into_iter();
        specs.filter_map(|spec| bytes(&spec.name).map(|bytes| (spec, bytes))).collect()
    }
}
