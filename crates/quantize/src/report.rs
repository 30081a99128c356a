//! What a quantization chose and what it cost in accuracy: `report.json` of the output folder.

use crate::recipe::Recipe;
use crate::stream::QuantizedSite;
use halfbyte_formats::{Granularity, Scheme};
use serde::{Deserialize, Serialize};

/// The whole report. It depends on weights, recipe and calibration tokens alone, so that equal runs give equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of halfbyte.
    pub halfbyte: String,
    /// The recipe as it was run.
    pub recipe: Recipe,
    /// Calibration windows.
    pub calibration_windows: usize,
    /// Calibration tokens in all.
    pub calibration_tokens: usize,
    /// Bytes of all tensors of the output.
    pub output_bytes: u64,
    /// Stored bits per weight over the quantized tensors, scales and shifts included.
    pub bits_per_weight: f64,
    /// Mean of the layers' relative errors.
    pub mean_relative_error: f64,
    /// The quantized layers, in the order of the network.
    pub layers: Vec<LayerReport>,
}

/// One quantized layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its name.
    pub name: String,
    /// Output and input channels.
    pub shape: [usize; 2],
    /// Stored bits, scales and shifts included.
    pub bits: u64,
    /// What was chosen for the weight.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<WeightReport>,
    /// What was chosen for the input.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub input: Option<InputReport>,
    /// Mean squared output error over a sample of calibration tokens; for the embedding, and where there was no calibration
    /// text, that of the values.
    pub error: f64,
    /// Mean square of the full-precision output over the same.
    pub signal: f64,
    /// `error / signal`.
    pub relative_error: f64,
}

/// The searched parameters of a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightReport {
    /// How it is stored.
    pub scheme: Scheme,
    /// Exponent bias of every row (for integers `−log2` of the scale); for groups the smallest and the largest.
    pub biases: Vec<f32>,
}

impl WeightReport {
    /// The report of a weight with these scales, tensor scale included.
    pub fn new(scheme: Scheme, scales: impl Iterator<Item = f32>) -> Self {
        let biases: Vec<f32> = match scheme.granularity {
            Granularity::Group(_) => {
                let (low, high) = scales.fold((f32::INFINITY, 0.0f32), |(l, h), s| (l.min(s), h.max(s)));
                [high, low].map(|s| scheme.element.bias_of_scale(s)).to_vec()
            }
            _ => scales.map(|s| scheme.element.bias_of_scale(s)).collect(),
        };
        Self { scheme, biases }
    }
}

/// The searched parameters of an input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputReport {
    /// How it is quantized.
    pub scheme: Scheme,
    /// Tensor-wise exponent bias ρ.
    pub bias: f32,
    /// Integer shift of every channel; empty for none.
    pub shifts: Vec<u8>,
}

impl LayerReport {
    /// The report of one layer with a weight of this shape.
    pub fn new(site: &QuantizedSite, shape: [usize; 2]) -> Self {
        let tensors = site.stored.scheme().tensors(&site.name, shape[0], shape[1]);
        let bits: u64 =
            tensors.iter().filter_map(|t| t.dtype.byte_len(&t.shape)).map(|bytes| 8 * bytes).sum();
        let left_alone = if site.stored.weight.is_none() { 16 * (shape[0] * shape[1]) as u64 } else { 0 };
        let weight = site.stored.weight.as_ref();
        let weight =
            weight.map(|w| WeightReport::new(w.scheme, w.scales.iter().map(|&s| s * w.tensor_scale)));
        let input = site.stored.input.as_ref().map(|q| InputReport {
            scheme: q.scheme(),
            bias: q.element().bias_of_scale(q.scale()),
            shifts: q.shifts().to_vec(),
        });
        let relative_error = if site.signal > 0.0 { site.error / site.signal } else { 0.0 };
        Self {
            name: site.name.clone(),
            shape,
            bits: bits + left_alone,
            weight,
            input,
            error: site.error,
            signal: site.signal,
            relative_error,
        }
    }
}

impl Report {
    /// Sums up the layers.
    pub fn new(recipe: &Recipe, windows: &[Vec<u32>], output_bytes: u64, layers: Vec<LayerReport>) -> Self {
        let weights: usize = layers.iter().map(|l| l.shape[0] * l.shape[1]).sum();
        let bits: u64 = layers.iter().map(|l| l.bits).sum();
        // The embedding has no output of its own to compare.
        let errors: Vec<f64> = layers
            .iter()
            .filter(|l| l.input.is_some() || l.weight.is_some())
            .map(|l| l.relative_error)
            .collect();
        Self {
            halfbyte: env!("CARGO_PKG_VERSION").into(),
            recipe: recipe.clone(),
            calibration_windows: windows.len(),
            calibration_tokens: windows.iter().map(Vec::len).sum(),
            output_bytes,
            bits_per_weight: bits as f64 / weights.max(1) as f64,
            mean_relative_error: errors.iter().sum::<f64>() / errors.len().max(1) as f64,
            layers,
        }
    }
}
