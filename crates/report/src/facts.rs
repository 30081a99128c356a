//! Everything a report tells, as data. Its JSON form is this.

use crate::evaluation::{Evaluation, Run};
use crate::ranges::{TapRange, taps};
use halfbyte_formats::{Element, pack};
use halfbyte_quantize::{
    AttentionReport, InputReport, LayerReport, ModelReport, Recipe, Report, WeightReport,
};
use serde::Serialize;
use std::collections::BTreeSet;

/// The facts of one quantized folder, and what was measured of it and of others.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// What the model is called.
    pub title: String,
    /// Version of halfbyte that quantized it.
    pub halfbyte: String,
    /// The model before.
    pub model: Option<ModelReport>,
    /// How it was quantized.
    pub recipe: Recipe,
    /// Calibration windows.
    pub calibration_windows: usize,
    /// Calibration tokens in all.
    pub calibration_tokens: usize,
    /// Stored bits per weight over the quantized tensors.
    pub bits_per_weight: f64,
    /// Mean of the layers' relative errors.
    pub mean_relative_error: f64,
    /// Bytes of all tensors.
    pub output_bytes: u64,
    /// What they are for.
    pub size: Size,
    /// Time and memory of the run, where its JSON was given.
    pub run: Option<Run>,
    /// What was measured.
    pub evaluations: Vec<Evaluation>,
    /// Kinds of layers, in the order of the network.
    pub kinds: Vec<Kind>,
    /// All quantized layers, in the order of the network.
    pub layers: Vec<Layer>,
    /// Inputs of layers.
    pub inputs: Vec<TapRange>,
    /// Attention's own products where they are quantized.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attention: Vec<AttentionReport>,
}

/// Bytes of the output by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Size {
    /// Codes of weights.
    pub codes: u64,
    /// Scales of weights and inputs, shifts.
    pub scales: u64,
    /// Parts of low rank beside the codes, in bf16.
    pub low_rank: u64,
    /// Tensors left as they were.
    pub kept: u64,
}

/// One quantized layer.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// Its block; `None` outside of the blocks.
    pub block: Option<usize>,
    /// Its kind: the name within the block, as short as it is unique.
    pub kind: String,
    /// Output and input channels.
    pub shape: [usize; 2],
    /// Error of its output relative to the output; for the embedding that of its values.
    pub relative_error: f64,
    /// Stored bits per weight.
    pub bits_per_weight: f64,
    /// Format of the weight.
    pub weight_format: Option<String>,
    /// Smallest and largest exponent bias of its scales.
    pub weight_biases: Option<[f32; 2]>,
    /// Format of the input.
    pub input_format: Option<String>,
    /// Exponent bias of the input.
    pub input_bias: Option<f32>,
    /// Share of weights that became zero.
    pub zeros: Option<f64>,
    /// Share of weights with the largest or smallest code.
    pub extremes: Option<f64>,
    /// Entropy of the codes in bits: how much of their width they use.
    pub entropy: Option<f64>,
}

/// The layers of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct Kind {
    /// Which.
    pub kind: String,
    /// Their relative errors, in the order of the network.
    pub relative_errors: Vec<f64>,
    /// The format that most of their weights have, with the distribution of those; `None` if they are left alone.
    pub weights: Option<WeightShape>,
}

/// The weights of the layers of one kind with the same format, before and after.
#[derive(Clone, Debug, Serialize)]
pub struct WeightShape {
    /// Their format.
    #[serde(skip)]
    pub element: Element,
    /// Its name.
    pub format: String,
    /// Layers of that format.
    pub layers: usize,
    /// Weights against their grid, see [`halfbyte_quantize::weight_histogram`].
    pub histogram: Vec<u64>,
    /// Stored values at scale 1, rising, and how often each occurs.
    pub codes: Vec<(f32, u64)>,
}

impl Facts {
    /// The facts of `report`; `title` is what the model is called, by default its family and size.
    pub fn new(
        report: &Report,
        title: Option<String>,
        run: Option<Run>,
        evaluations: Vec<Evaluation>,
    ) -> Self {
        let kinds = KindNames::new(report);
        let place = |layer: &LayerReport| kinds.of(&layer.name);
        let layers: Vec<Layer> = report
            .layers
            .iter()
            .map(|l| {
                let (block, kind) = place(l);
                Layer::new(l, block, kind)
            })
            .collect();
        let mut joined: Vec<Evaluation> = Vec::new();
        for evaluation in evaluations {
            match joined.iter_mut().find(|e| e.goes_with(&evaluation)) {
                Some(same) => same.complete(evaluation),
                None => joined.push(evaluation),
            }
        }
        let default_title = || match &report.model {
            Some(m) => format!("{} with {} parameters", m.family, crate::numbers::millions(m.parameters)),
            None => "Quantized model".into(),
        };
        Self {
            title: title.unwrap_or_else(default_title),
            halfbyte: report.halfbyte.clone(),
            model: report.model.clone(),
            recipe: report.recipe.clone(),
            calibration_windows: report.calibration_windows,
            calibration_tokens: report.calibration_tokens,
            bits_per_weight: report.bits_per_weight,
            mean_relative_error: report.mean_relative_error,
            output_bytes: report.output_bytes,
            size: Size::new(report),
            run,
            evaluations: joined,
            kinds: kinds_of(report, &layers),
            layers,
            inputs: taps(report, place),
            attention: report.attention.clone(),
        }
    }
}

/// Short names for the kinds of layers.
struct KindNames {
    /// Whether the last part of a name is enough to tell kinds apart.
    last_is_enough: bool,
}

impl KindNames {
    fn new(report: &Report) -> Self {
        let inner: BTreeSet<String> = report.layers.iter().map(|l| split(&l.name).1).collect();
        let last: BTreeSet<&str> = inner.iter().map(|k| last_part(k)).collect();
        Self { last_is_enough: last.len() == inner.len() }
    }

    /// Block and kind of a layer by its name.
    fn of(&self, name: &str) -> (Option<usize>, String) {
        let (block, inner) = split(name);
        let kind = if self.last_is_enough { last_part(&inner).to_string() } else { inner };
        (block, kind)
    }
}

/// The first part of a name that is a number is its block, what follows the kind; without one all of it is.
fn split(name: &str) -> (Option<usize>, String) {
    let parts: Vec<&str> = name.split('.').collect();
    let found = parts.iter().position(|p| p.parse::<usize>().is_ok());
    match found {
        Some(at) if at + 1 < parts.len() => (parts[at].parse().ok(), parts[at + 1..].join(".")),
        _ => (None, name.to_string()),
    }
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

impl Layer {
    fn new(layer: &LayerReport, block: Option<usize>, kind: String) -> Self {
        let weights = (layer.shape[0] * layer.shape[1]).max(1);
        let weight = layer.weight.as_ref();
        let biases = weight.map(|w| {
            let fold = |start, f: fn(f32, f32) -> f32| w.biases.iter().copied().fold(start, f);
            [fold(f32::INFINITY, f32::min), fold(f32::NEG_INFINITY, f32::max)]
        });
        let counted = weight.filter(|w| w.codes.iter().any(|&n| n > 0));
        let total = counted.map_or(1.0, |w| w.codes.iter().sum::<u64>() as f64);
        let share = |which: fn(Element, u8) -> bool| {
            counted.map(|w| {
                let element = w.scheme.element;
                let chosen = (0u8..=u8::MAX).zip(&w.codes).filter(|(code, _)| which(element, *code));
                chosen.map(|(_, n)| *n).sum::<u64>() as f64 / total
            })
        };
        Self {
            name: layer.name.clone(),
            block,
            kind,
            shape: layer.shape,
            relative_error: layer.relative_error,
            bits_per_weight: layer.bits as f64 / weights as f64,
            weight_format: weight.map(WeightReport::format),
            weight_biases: biases,
            input_format: layer.input.as_ref().map(InputReport::format),
            input_bias: layer.input.as_ref().and_then(InputReport::static_bias),
            zeros: share(|e, code| e.value(code) == 0.0),
            extremes: share(|e, code| e.value(code).abs() >= e.max_value()),
            entropy: counted.map(|w| {
                let shares = w.codes.iter().filter(|n| **n > 0).map(|&n| n as f64 / total);
                shares.map(|p| -p * p.log2()).sum::<f64>().max(0.0)
            }),
        }
    }
}

impl Size {
    fn new(report: &Report) -> Self {
        let codes = |l: &LayerReport| {
            let bits = l.weight.as_ref().map(|w| w.scheme.element.bits());
            bits.map_or(0, |bits| (l.shape[0] * pack::packed_len(bits, l.shape[1])) as u64)
        };
        // A weight that is left alone is counted in a layer's bits too, and is none of its scales.
        let low_rank = |l: &LayerReport| 2 * (l.low_rank.unwrap_or(0) * (l.shape[0] + l.shape[1])) as u64;
        let scales = |l: &LayerReport| {
            let alone = if l.weight.is_none() { 16 * (l.shape[0] * l.shape[1]) as u64 } else { 0 };
            (l.bits.saturating_sub(alone) / 8).saturating_sub(codes(l) + low_rank(l))
        };
        let sum = |part: &dyn Fn(&LayerReport) -> u64| report.layers.iter().map(part).sum::<u64>();
        let (codes, scales, low_rank) = (sum(&codes), sum(&scales), sum(&low_rank));
        Self { codes, scales, low_rank, kept: report.output_bytes.saturating_sub(codes + scales + low_rank) }
    }
}

/// Each of the texts once, in the order in which they first come.
pub(crate) fn distinct<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for text in texts {
        if !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

fn kinds_of(report: &Report, layers: &[Layer]) -> Vec<Kind> {
    let names = distinct(layers.iter().map(|l| l.kind.as_str()));
    let kind = |name: &&str| {
        let members: Vec<&LayerReport> =
            report.layers.iter().zip(layers).filter(|(_, l)| l.kind == *name).map(|(r, _)| r).collect();
        Kind {
            kind: name.to_string(),
            relative_errors: members.iter().map(|l| l.relative_error).collect(),
            weights: WeightShape::new(&members),
        }
    };
    names.iter().map(kind).collect()
}

impl WeightShape {
    fn new(layers: &[&LayerReport]) -> Option<Self> {
        let weights = || layers.iter().filter_map(|l| l.weight.as_ref()).filter(|w| !w.codes.is_empty());
        let mut formats: Vec<(Element, usize)> = Vec::new();
        for weight in weights() {
            let element = weight.scheme.element;
            match formats.iter_mut().find(|f| f.0 == element) {
                Some(known) => known.1 += 1,
                None => formats.push((element, 1)),
            }
        }
        let (element, count) = formats.into_iter().reduce(|a, b| if b.1 > a.1 { b } else { a })?;
        let mut histogram = vec![0; halfbyte_quantize::HISTOGRAM_BINS];
        let mut counts = vec![0u64; 1 << element.bits()];
        for weight in weights().filter(|w| w.scheme.element == element) {
            histogram.iter_mut().zip(&weight.histogram).for_each(|(a, b)| *a += b);
            counts.iter_mut().zip(&weight.codes).for_each(|(a, b)| *a += b);
        }
        // Both codes of zero are one value.
        let mut codes: Vec<(f32, u64)> = Vec::new();
        for (code, n) in (0u8..=u8::MAX).zip(counts) {
            let value = element.value(code) + 0.0;
            match codes.iter_mut().find(|c| c.0 == value) {
                Some(known) => known.1 += n,
                None => codes.push((value, n)),
            }
        }
        codes.sort_by(|a, b| a.0.total_cmp(&b.0));
        // The lowest code of an integer is never produced.
        if codes.first().is_some_and(|c| c.1 == 0 && -c.0 > element.max_value()) {
            codes.remove(0);
        }
        Some(Self { element, format: element.to_string().to_uppercase(), layers: count, histogram, codes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_block_and_kind() {
        assert_eq!(split("model.layers.12.mlp.up_proj"), (Some(12), "mlp.up_proj".into()));
        assert_eq!(split("lm_head"), (None, "lm_head".into()));
        assert_eq!(split("heads.3"), (None, "heads.3".into()));
        let kinds = KindNames { last_is_enough: false };
        assert_eq!(kinds.of("encoder.layer.0.attention.output.dense").1, "attention.output.dense");
        assert_eq!(KindNames { last_is_enough: true }.of("model.layers.1.mlp.up_proj").1, "up_proj");
    }
}
