//! What a quantization chose and what it cost in accuracy: `report.json` of the output folder.

use crate::methods::attention::QuantizedAttention;
use crate::methods::learned::LearnedBlock;
use crate::profile::code_counts;
use crate::recipe::Recipe;
use crate::stream::QuantizedSite;
use crate::transforms::Note;
use halfbyte_checkpoint::{StoredAttention, StoredLayer};
use halfbyte_formats::{Granularity, InputQuantizer, Scheme};
use halfbyte_model::Model;
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// The whole report. It depends on weights, recipe and calibration tokens alone, so that equal runs give equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of halfbyte.
    pub halfbyte: String,
    /// The model before; absent in reports of older versions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<ModelReport>,
    /// The recipe as it was run.
    pub recipe: Recipe,
    /// Calibration inputs: windows of a text, sentences or images.
    pub calibration_windows: usize,
    /// Their tokens in all; for images the rows that they become.
    pub calibration_tokens: usize,
    /// Bytes of all tensors of the output.
    pub output_bytes: u64,
    /// Stored bits per weight over the quantized tensors, scales and shifts included.
    pub bits_per_weight: f64,
    /// Mean of the layers' relative errors.
    pub mean_relative_error: f64,
    /// The quantized layers, in the order of the network.
    pub layers: Vec<LayerReport>,
    /// Attention's own products where they are quantized, block by block.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub attention: Vec<AttentionReport>,
    /// What the recipe's transforms did before, block by block.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub transforms: Vec<Note>,
    /// What learned rounding did, block by block.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub learned: Vec<LearnedBlock>,
}

/// The model that was quantized, as its config and headers describe it. Its folder's name is no part of it: a copy elsewhere
/// gives the same report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// `model_type` of its config.
    pub family: String,
    /// Transformer blocks.
    pub blocks: usize,
    /// Channels of the residual stream.
    pub hidden: usize,
    /// Size of the vocabulary; 0 for a model of images.
    pub vocabulary: usize,
    /// Numbers in all of its tensors.
    pub parameters: u64,
    /// Bytes of all of its tensors.
    pub bytes: u64,
    /// In what form its weights were stored, where they were those of a quantized model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub values_of: Option<String>,
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
    /// Largest magnitude of every input channel over the calibration tokens, to 4 digits; empty for the embedding.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub channel_max: Vec<f32>,
    /// Mean squared output error over a sample of calibration tokens; for the embedding, and where there was no calibration
    /// text, that of the values.
    pub error: f64,
    /// Mean square of the full-precision output over the same.
    pub signal: f64,
    /// `error / signal`.
    pub relative_error: f64,
    /// Rank of the part beside the codes, whose bits are among the stored ones.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub low_rank: Option<usize>,
}

/// The searched parameters of a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightReport {
    /// How it is stored.
    pub scheme: Scheme,
    /// Exponent bias of every row (for integers `−log2` of the scale); for groups the smallest and the largest.
    pub biases: Vec<f32>,
    /// How often each code was stored, by code; empty where nobody counted (runs without calibration text).
    #[serde(default)]
    pub codes: Vec<u64>,
    /// The weight before, against its grid: see [`weight_histogram`](crate::weight_histogram).
    #[serde(default)]
    pub histogram: Vec<u64>,
}

impl WeightReport {
    /// The report of a weight with these scales, tensor scale included, without counts.
    pub fn new(scheme: Scheme, scales: impl Iterator<Item = f32>) -> Self {
        let biases: Vec<f32> = match scheme.granularity {
            Granularity::Group(_) => {
                let (low, high) = scales.fold((f32::INFINITY, 0.0f32), |(l, h), s| (l.min(s), h.max(s)));
                [high, low].map(|s| scheme.element.bias_of_scale(s)).to_vec()
            }
            _ => scales.map(|s| scheme.element.bias_of_scale(s)).collect(),
        };
        Self { scheme, biases, codes: Vec::new(), histogram: Vec::new() }
    }

    /// `E2M1`, or the scheme where what shares a scale matters as much: in groups.
    pub fn format(&self) -> String {
        match self.scheme.granularity {
            Granularity::Group(_) => self.scheme.to_string(),
            _ => self.scheme.element.to_string().to_uppercase(),
        }
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

impl InputReport {
    fn new(q: &InputQuantizer) -> Self {
        let bias = q.element().bias_of_scale(q.scale());
        Self { scheme: q.scheme(), bias, shifts: q.shifts().to_vec() }
    }

    /// `E2M1`, or the scheme where scales are taken at run time.
    pub fn format(&self) -> String {
        match self.scheme.dynamic {
            true => self.scheme.to_string(),
            false => self.scheme.element.to_string().to_uppercase(),
        }
    }

    /// ρ, where it was chosen before.
    pub fn static_bias(&self) -> Option<f32> {
        (!self.scheme.dynamic).then_some(self.bias)
    }

    /// [`format`](Self::format) and exponent bias, such as `E2M1 3.25`.
    pub fn brief(&self) -> String {
        self.format() + &self.static_bias().map_or(String::new(), |b| format!(" {b:.2}"))
    }
}

/// The quantized operands of one block's attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionReport {
    /// Its name.
    pub name: String,
    /// What was chosen for queries.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub query: Option<InputReport>,
    /// For keys.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<InputReport>,
    /// For values.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<InputReport>,
    /// For probabilities; shifts are those of heads.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probability: Option<InputReport>,
    /// Squared error of the mixed values over some calibration windows, relative to their square; absent where there was no
    /// calibration.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub relative_error: Option<f64>,
}

impl AttentionReport {
    /// What stored quantizers themselves tell.
    pub fn of_stored(name: &str, stored: &StoredAttention) -> Self {
        let input = |q: &Option<InputQuantizer>| q.as_ref().map(InputReport::new);
        Self {
            name: name.into(),
            query: input(&stored.query),
            key: input(&stored.key),
            value: input(&stored.value),
            probability: stored.probability.as_ref().map(|q| InputReport {
                scheme: q.scheme(),
                bias: q.scheme().element.bias_of_scale(q.scale()),
                shifts: q.shifts().to_vec(),
            }),
            relative_error: None,
        }
    }

    /// The report of one attention.
    pub fn new(attention: &QuantizedAttention) -> Self {
        let QuantizedAttention { name, stored, error, signal } = attention;
        let relative_error = if *signal > 0.0 { error / signal } else { 0.0 };
        Self { relative_error: Some(relative_error), ..Self::of_stored(name, stored) }
    }
}

impl LayerReport {
    /// What a stored layer itself tells, in `bits` bits: no errors (NaN), no counts.
    pub fn of_stored(name: &str, shape: [usize; 2], bits: u64, stored: &StoredLayer) -> Self {
        let weight = stored
            .weight
            .as_ref()
            .map(|w| WeightReport::new(w.scheme, w.scales.iter().map(|&s| s * w.tensor_scale)));
        Self {
            name: name.into(),
            shape,
            bits,
            weight,
            input: stored.input.as_ref().map(InputReport::new),
            channel_max: Vec::new(),
            error: f64::NAN,
            signal: f64::NAN,
            relative_error: f64::NAN,
            low_rank: stored.low_rank.as_ref().map(|l| l.rank),
        }
    }

    /// The report of one layer with a weight of this shape.
    pub fn new(site: &QuantizedSite, shape: [usize; 2]) -> Self {
        let tensors = site.stored.scheme().tensors(&site.name, shape[0], shape[1]);
        let bits: u64 =
            tensors.iter().filter_map(|t| t.dtype.byte_len(&t.shape)).map(|bytes| 8 * bytes).sum();
        let left_alone = if site.stored.weight.is_none() { 16 * (shape[0] * shape[1]) as u64 } else { 0 };
        let weight = site.stored.weight.as_ref().map(|w| WeightReport {
            codes: code_counts(w),
            histogram: site.profile.weight_histogram.clone(),
            ..WeightReport::new(w.scheme, w.scales.iter().map(|&s| s * w.tensor_scale))
        });
        let input = site.stored.input.as_ref().map(InputReport::new);
        let relative_error = if site.signal > 0.0 { site.error / site.signal } else { 0.0 };
        Self {
            name: site.name.clone(),
            shape,
            bits: bits + left_alone,
            weight,
            input,
            channel_max: site.profile.channel_max.clone(),
            error: site.error,
            signal: site.signal,
            relative_error,
            low_rank: site.stored.low_rank.as_ref().map(|l| l.rank),
        }
    }
}

impl Report {
    /// The report as indented JSON in which an array is one line: a bias for every row and a range for every channel would
    /// make most of the file indentation.
    ///
    /// # Errors
    /// As [`serde_json::to_string`].
    pub fn to_json(&self) -> serde_json::Result<String> {
        let mut out = Vec::new();
        self.serialize(&mut Serializer::with_formatter(&mut out, Lines(PrettyFormatter::new())))?;
        String::from_utf8(out).map_err(serde::ser::Error::custom)
    }
}

/// Objects indented, arrays in one line.
struct Lines(PrettyFormatter<'static>);

impl Formatter for Lines {
    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

impl ModelReport {
    /// Describes `model`.
    pub fn new(model: &Model) -> Self {
        let a = &model.architecture;
        let tensors = || model.checkpoint.infos();
        Self {
            family: a.family.clone(),
            blocks: a.blocks.len(),
            hidden: a.hidden,
            vocabulary: a.vocabulary(),
            parameters: tensors().map(|t| t.shape.iter().product::<usize>() as u64).sum(),
            bytes: tensors().map(|t| t.bytes).sum(),
            values_of: model.values_of.clone(),
        }
    }
}

impl Report {
    /// Sums up the layers of a run that saw so many calibration inputs and tokens.
    pub fn new(
        model: ModelReport,
        recipe: &Recipe,
        (inputs, tokens): (usize, usize),
        output_bytes: u64,
        layers: Vec<LayerReport>,
        attention: Vec<AttentionReport>,
    ) -> Self {
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
            model: Some(model),
            recipe: recipe.clone(),
            calibration_windows: inputs,
            calibration_tokens: tokens,
            output_bytes,
            bits_per_weight: bits as f64 / weights.max(1) as f64,
            mean_relative_error: errors.iter().sum::<f64>() / errors.len().max(1) as f64,
            layers,
            attention,
            transforms: Vec::new(),
            learned: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_one_line_and_read_back() {
        let model = ModelReport {
            family: "llama".into(),
            blocks: 1,
            hidden: 4,
            vocabulary: 8,
            parameters: 100,
            bytes: 400,
            values_of: None,
        };
        let layer = LayerReport {
            name: "a".into(),
            shape: [2, 4],
            bits: 32,
            weight: None,
            input: None,
            channel_max: vec![1.5, 2.0, 0.25, 0.0],
            error: 0.5,
            signal: 2.0,
            relative_error: 0.25,
            low_rank: None,
        };
        let report = Report::new(model, &Recipe::default(), (1, 2), 99, vec![layer], Vec::new());
        let text = report.to_json().unwrap();
        assert!(text.contains("\n    \"channel_max\": [1.5,2.0,0.25,0.0],\n"), "{text}");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
