//! Recipes: what is quantized, to how many bits, and by which method.

mod built_in;
mod check;
mod file;

pub use file::{load_recipe, recipe_toml};

use crate::search::{Exactness, Grid, GridKind, ShiftRule};
use crate::transforms::Transform;
use halfbyte_checkpoint::{AttentionScheme, LayerScheme};
use halfbyte_formats::{Element, Granularity, InputQuantizer, ScaleFormat, ScaleRule, Scheme};
use halfbyte_model::{Part, Site};
use halfbyte_tensor::Precision;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;

/// The method that chooses formats and scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Scales from the largest magnitude, symmetric integers.
    MinmaxInt,
    /// Scales from the largest magnitude, floats with two exponent bits (E2M1, E2M3, E2M5).
    MinmaxFp,
    /// The joint search of format, exponent bias and clipping.
    Fpq,
    /// Schemes that the recipe names, such as NVFP4's: only scales are chosen.
    Scheme,
}

/// How `method = "scheme"` chooses the scales of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scales {
    /// What leaves the lowest perplexity (docs/formats.md): for block scales `Weighted` where there are calibration inputs,
    /// without them `FourOverSix` for NVFP4 and `Sweep` for MXFP4; `Absmax` for f32 scales.
    Auto,
    /// From the largest magnitude.
    Absmax,
    /// MXFP4: the next power of two for a maximum whose mantissa is 1.75 or more.
    RoundUp,
    /// NVFP4: the better of `max / 6` and `max / 4`.
    FourOverSix,
    /// Of least squared error: among the codes of block scales (NVFP4, MXFP4), or for f32 scales among the multiples of the largest
    /// magnitude that `weight_grid` has (clip search).
    Sweep,
    /// The same with errors weighted by the mean squares of the inputs, which a calibration text gives.
    Weighted,
}

impl Scales {
    /// The rule of the kernels for scales of this format.
    pub fn rule(self, scale: ScaleFormat) -> ScaleRule {
        match self {
            Self::Auto => match scale {
                ScaleFormat::F32 => ScaleRule::Absmax,
                ScaleFormat::E4M3 => ScaleRule::FourOverSix,
                ScaleFormat::E8M0 => ScaleRule::Sweep,
            },
            Self::Absmax => ScaleRule::Absmax,
            Self::RoundUp => ScaleRule::RoundUp,
            Self::FourOverSix => ScaleRule::FourOverSix,
            Self::Sweep | Self::Weighted => ScaleRule::Sweep,
        }
    }
}

/// Writes a scheme as text, which keeps a recipe file flat.
fn as_text<S: Serializer>(scheme: &Option<Scheme>, serializer: S) -> Result<S::Ok, S::Error> {
    match scheme {
        Some(scheme) => serializer.collect_str(scheme),
        None => serializer.serialize_none(),
    }
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// The same for a list.
fn as_texts<S: Serializer>(schemes: &[Scheme], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(schemes.iter().map(Scheme::to_string))
}

/// The same for a map.
fn as_map<S: Serializer>(schemes: &BTreeMap<String, Scheme>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(schemes.iter().map(|(name, scheme)| (name, scheme.to_string())))
}

/// The inputs that layers are calibrated on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Calibration {
    /// Those of the full-precision network, as published.
    FullPrecision,
    /// Those that the network sees once everything before has been quantized.
    Sequential,
}

/// What a round of the search begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum First {
    /// The weight, for MinMax-quantized inputs, as published.
    Weight,
    /// The input, for the full-precision weight.
    Input,
}

/// What becomes of the codes of a block once all its layers have theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// They stay as the method gave them, by rounding to nearest or with error feedback.
    Given,
    /// They are learned by the error of the block's output (see `methods::learned`; AutoRound, arXiv 2309.05516).
    Learned,
}

/// How candidates are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Search {
    /// The published products over all tokens, for comparison: very slow.
    Direct,
    /// The same scores for all candidates, from Gram matrices.
    Gram,
    /// Candidates ranked by the diagonal, the best few scored fully.
    Ranked,
}

/// How exactly calibration computes the network and the moments of its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Products {
    /// In f32.
    F32,
    /// From bfloat16 factors, summed in f32: up to twice as fast on processors with AVX512-BF16, and the same bits on others.
    Bf16,
}

impl std::fmt::Display for Products {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16 factors, f32 sums",
        })
    }
}

impl Products {
    /// For the tensor crate.
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

/// Widths of numbers, 16 for what is left alone.
pub(crate) const BITS: [u32; 4] = [4, 6, 8, 16];

/// What shares a scale among attention's probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbabilityScale {
    /// All of a layer: one scale from calibration.
    Tensor,
    /// Those of a head: a scale from calibration, times a power of two for each head.
    Head,
    /// Those of one query: a scale from the largest of them at run time, before the softmax divides by their sum.
    Row,
}

/// How a checkpoint is quantized. Every field has the default recipe's value unless a file says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Its name, for reports.
    pub name: String,
    /// The method.
    pub method: Method,
    /// Bits of linear weights: 4, 6, 8, or 16 for none.
    pub weight_bits: u32,
    /// Bits of linear inputs: 4, 6, 8, or 16 for none.
    pub activation_bits: u32,
    /// Bits of the embedding table: 4, 6, 8, or 16 for none.
    pub embedding_bits: u32,
    /// Bits of the operands of attention's own products: queries, keys, values and probabilities, quantized by the same
    /// method as the inputs of linear layers. 4, 6, 8, or 16 for none. Not for `method = "scheme"`.
    pub attention_bits: u32,
    /// What shares a scale among the probabilities, with `attention_bits`.
    pub probability_scale: ProbabilityScale,
    /// How keys and values alone are quantized, that is the KV cache: a fixed scheme such as `e4m3fn/channel/dynamic`, a scale
    /// for each head of each token. Nothing if they are left alone. Instead of `attention_bits`.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub kv_scheme: Option<Scheme>,
    /// How weights are stored, for `method = "scheme"`; nothing if they are left alone.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub weight_scheme: Option<Scheme>,
    /// How inputs are quantized, for `method = "scheme"`; nothing if they are left alone.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub input_scheme: Option<Scheme>,
    /// Schemes that weights may have instead of `weight_scheme`, for `method = "scheme"`: the layers that share an input
    /// take the one of least error. Inputs, where they are quantized, follow their weights.
    #[serde(serialize_with = "as_texts", skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Scheme>,
    /// Most stored bits of a weight, scales and shifts included. With `alternatives` on average over all quantized layers;
    /// with methods that choose formats on average over the linear layers of the blocks, which then get 4, 6 or 8 bits each,
    /// `weight_bits` at least, by measured sensitivity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bits: Option<f32>,
    /// Schemes of weights by parts of layer names, instead of `weight_scheme`; the longest part that fits counts.
    #[serde(serialize_with = "as_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub schemes: BTreeMap<String, Scheme>,
    /// Bits of layers by parts of their names, instead of `weight_bits` and (unless that is 16) `activation_bits`, for methods that
    /// choose formats; the longest part that fits counts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layer_bits: BTreeMap<String, u32>,
    /// How the scales of weights are chosen, for `method = "scheme"`.
    pub scales: Scales,
    /// What is done to the full-precision network first, block by block and in this order, to make it easier to quantize:
    /// such as `smooth-quant:alpha=0.6` or `os-plus`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transforms: Vec<Transform>,
    /// Layers left in full precision: `lm_head` (whatever lies behind the last block: the output layer, or pooler and
    /// classifier), `embedding` (the table of tokens or the projection of patches), or parts of names such as `down_proj` or
    /// `layers.0.`.
    pub keep: Vec<String>,
    /// Which inputs layers are calibrated on.
    pub calibration: Calibration,
    /// Windows of tokens drawn from the whole vocabulary that are added to the calibration windows, as a share of those:
    /// any one text leaves out most tokens, and inputs beyond the calibrated range are clipped.
    pub coverage: f32,
    /// Whether a token's error counts in inverse proportion to the mean square of the residual stream that the layer
    /// writes to, which is what the next norm divides by.
    pub token_weights: bool,
    /// How the shifts of the pre-shifted exponent bias are found; `none` is the paper's FPQ baseline.
    pub shifts: ShiftRule,
    /// Largest shift that `shifts = "error"` may choose; the published rule always stops at `2^E − 1`.
    pub max_shift: u8,
    /// With `shifts = "error"`: the search for an input's quantizer looks at one more token, which has this many times the largest
    /// magnitude in every channel, so that scales leave room for what the text does not show; 0 for none. Left out, 4 for
    /// inputs of 8 bits, which can afford it, and none for fewer. Shifts and the ranking of candidates see that token, full
    /// scores (`finalists` above 1, `search` other than `ranked`) do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headroom: Option<f32>,
    /// Whether the layers that share an input (q/k/v, gate/up) also share its quantizer.
    pub share_input: bool,
    /// Whether the weights are first corrected for the error of their quantized inputs (see `methods::correct`).
    pub correct: bool,
    /// Whether the error of each rounded column is fed back into those after it (GPTQ, arXiv 2210.17323).
    pub feedback: bool,
    /// Whether feedback begins with the columns of the largest second moments; otherwise with the first.
    pub act_order: bool,
    /// Rank of a product of two thin bf16 matrices that is added to every quantized weight of a linear layer and makes up for what
    /// its codes lack (see `methods::low_rank`); 0 for none.
    #[serde(skip_serializing_if = "is_zero")]
    pub low_rank: usize,
    /// Damping of correction and feedback, relative to the Gram matrix's diagonal.
    pub damping: f32,
    /// Whether the codes of a block are then learned by the error of its output.
    pub rounding: Rounding,
    /// With `rounding = "learned"`: steps for each block.
    pub rounding_steps: usize,
    /// With `rounding = "learned"`: calibration tokens that a step looks at, in whole windows.
    pub rounding_tokens: usize,
    /// Rounds of coordinate descent.
    pub rounds: usize,
    /// Which of the two a round searches first.
    pub first: First,
    /// Candidates for the scale of a weight row.
    pub weight_grid: Grid,
    /// Candidates for the tensor-wise scale of an input.
    pub activation_grid: Grid,
    /// How candidates are scored. Weights that are rounded by the factor of their Gram matrix (`correct`, `feedback`) are
    /// always scored by that factor's diagonal, and refused with `direct`.
    pub search: Search,
    /// Candidates scored fully when ranked; with one the ranking decides.
    pub finalists: usize,
    /// Precision of the products over the calibration tokens: the forward pass and second moments.
    pub products: Products,
    /// Tokens that the search for an input's quantizer looks at.
    pub sample_tokens: usize,
    /// Seed of that sample and of the coverage windows.
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            name: "fpq-w4a4".into(),
            method: Method::Fpq,
            weight_bits: 4,
            activation_bits: 4,
            embedding_bits: 4,
            attention_bits: 16,
            probability_scale: ProbabilityScale::Row,
            kv_scheme: None,
            weight_scheme: None,
            input_scheme: None,
            alternatives: Vec::new(),
            max_bits: None,
            schemes: BTreeMap::new(),
            layer_bits: BTreeMap::new(),
            scales: Scales::Absmax,
            transforms: Vec::new(),
            keep: Vec::new(),
            calibration: Calibration::Sequential,
            coverage: 0.25,
            token_weights: true,
            shifts: ShiftRule::Error,
            max_shift: 15,
            headroom: None,
            share_input: true,
            correct: true,
            feedback: true,
            act_order: true,
            low_rank: 0,
            damping: 0.3,
            rounding: Rounding::Given,
            rounding_steps: 100,
            rounding_tokens: 2048,
            rounds: 1,
            first: First::Input,
            weight_grid: Grid { kind: GridKind::Maxval, low: 0.4, high: 1.1, steps: 40 },
            activation_grid: Grid { kind: GridKind::Maxval, low: 0.03, high: 1.1, steps: 60 },
            search: Search::Ranked,
            finalists: 1,
            products: Products::Bf16,
            sample_tokens: 2048,
            seed: 0,
        }
    }
}

impl Recipe {
    /// `headroom` of inputs of so many bits; 0 where shifts are not chosen by error. SmolLM2 in 8 bits, linear layers, 8×512 tokens,
    /// KL divergence on 4 windows of another text: .081 with none, .016 with 2, .007 with 4 and without any shifts.
    pub(crate) fn headroom(&self, bits: u32) -> f32 {
        let left_out = if bits == 8 { 4.0 } else { 0.0 };
        match (self.method, self.shifts) {
            (Method::Fpq, ShiftRule::Error) => self.headroom.unwrap_or(left_out),
            _ => 0.0,
        }
    }

    /// Whether weights are rounded by the factor of their inputs' Gram matrix.
    pub fn uses_factor(&self) -> bool {
        self.correct || self.feedback
    }

    /// Whether the weights of a method that takes second moments need the cross moments of inputs and quantized inputs too: to
    /// be corrected for the difference, or to be scored with it.
    pub(crate) fn uses_cross_moments(&self) -> bool {
        self.activation_bits < 16 && (self.correct || (self.method == Method::Fpq && !self.feedback))
    }

    /// Replaces automatic scales by what they are with or without calibration inputs, so that reports say it. Without inputs they stay
    /// automatic where layers have block scales of several formats, which have rules of their own.
    pub fn settle_scales(&mut self, calibrated: bool) {
        if self.scales != Scales::Auto || self.method != Method::Scheme {
            return;
        }
        let possible = self.possible();
        let mut coded =
            possible.iter().filter_map(|s| s.weight.map(|w| w.scale)).filter(|s| *s != ScaleFormat::F32);
        self.scales = match (coded.next(), calibrated) {
            (None, _) => Scales::Absmax,
            (Some(_), true) => Scales::Weighted,
            (Some(first), false) if coded.any(|other| other != first) => Scales::Auto,
            (Some(ScaleFormat::E8M0), false) => Scales::Sweep,
            (Some(_), false) => Scales::FourOverSix,
        };
    }

    /// Whether the run has to see a calibration text: not where weights alone decide.
    pub fn needs_calibration(&self) -> bool {
        self.method != Method::Scheme
            || self.scales == Scales::Weighted
            || self.uses_factor()
            || self.rounding == Rounding::Learned
            || self.low_rank > 0
            || !self.transforms.is_empty()
            || self.possible().iter().any(|s| s.input.is_some_and(InputQuantizer::has_scale))
            || self.kv_scheme.is_some_and(InputQuantizer::has_scale)
    }

    /// How the linear layer `name` is stored, where the recipe alone says so; with `alternatives`, its `weight_scheme`.
    pub fn layer_scheme(&self, name: &str) -> Option<LayerScheme> {
        if self.method != Method::Scheme {
            return None;
        }
        Some(match longest_part(&self.schemes, name) {
            Some(&weight) => self.with_input(weight),
            None => self.of_scheme(self.weight_scheme, self.input_scheme),
        })
    }

    /// How MinMax INT stores a layer of these bits (16: left alone): a scale for each output channel and a static one for all
    /// inputs. `None` for other methods, and where a bound on the average decides on the bits.
    pub fn minmax_scheme(&self, weight_bits: u32, input_bits: u32) -> Option<LayerScheme> {
        let fixed = self.method == Method::MinmaxInt && !self.allocates();
        let scheme = |bits: u32, granularity| {
            (bits < 16).then(|| Scheme::new(Element::Int { bits: bits as u8 }, granularity))
        };
        fixed.then(|| {
            self.of_scheme(scheme(weight_bits, Granularity::Channel), scheme(input_bits, Granularity::Tensor))
        })
    }

    /// Bits of the weight and of the input of the linear layer `name`, for methods that choose formats.
    pub fn bits_of(&self, name: &str) -> (u32, u32) {
        match longest_part(&self.layer_bits, name) {
            Some(&bits) => (bits, if self.activation_bits < 16 { bits } else { 16 }),
            None => (self.weight_bits, self.activation_bits),
        }
    }

    /// Whether the bits of every layer are chosen under a bound on their average.
    pub(crate) fn allocates(&self) -> bool {
        self.max_bits.is_some() && self.method != Method::Scheme
    }

    /// Whether the weight of this linear layer becomes codes.
    pub(crate) fn codes(&self, site: &Site) -> bool {
        self.bits_of(&site.name).0 < 16 && !self.keeps(site)
    }

    /// Whether this linear layer is not quantized.
    pub(crate) fn leaves(&self, site: &Site) -> bool {
        self.keeps(site) || self.bits_of(&site.name) == (16, 16)
    }

    /// The schemes among which layers choose: `weight_scheme` and the alternatives.
    pub fn choices(&self) -> Vec<LayerScheme> {
        let first = self.of_scheme(self.weight_scheme, self.input_scheme);
        [first].into_iter().chain(self.alternatives.iter().map(|&s| self.with_input(s))).collect()
    }

    /// The schemes that the weight of the layer `name` may have, where they are fixed.
    pub(crate) fn schemes_of(&self, name: &str) -> Vec<Scheme> {
        match self.alternatives.is_empty() {
            true => self.layer_scheme(name).and_then(|s| s.weight).into_iter().collect(),
            false => self.choices().into_iter().filter_map(|s| s.weight).collect(),
        }
    }

    /// The schemes that a weight may have.
    pub(crate) fn weight_schemes(&self) -> impl Iterator<Item = Scheme> {
        self.possible().into_iter().filter_map(|s| s.weight)
    }

    /// All schemes that a layer may get.
    fn possible(&self) -> Vec<LayerScheme> {
        let named = self.schemes.values().map(|&s| self.with_input(s));
        self.choices().into_iter().chain(named).collect()
    }

    /// A weight's scheme with that of its input: the recipe's own for the recipe's own, else the same as the weight's.
    fn with_input(&self, weight: Scheme) -> LayerScheme {
        let input = match self.input_scheme {
            own if Some(weight) == self.weight_scheme => own,
            Some(_) => Some(Scheme { dynamic: true, ..weight }),
            None => None,
        };
        self.of_scheme(Some(weight), input)
    }

    fn of_scheme(&self, weight: Option<Scheme>, input: Option<Scheme>) -> LayerScheme {
        let low_rank = weight.and(self.low_rank());
        LayerScheme { weight, input, low_rank }
    }

    /// The rank of the low-rank parts, if there are any.
    pub(crate) fn low_rank(&self) -> Option<usize> {
        (self.low_rank > 0).then_some(self.low_rank)
    }

    /// Whether this linear layer or table is left alone.
    pub fn keeps(&self, site: &Site) -> bool {
        let dotted = format!("{}.", site.name);
        self.keep.iter().any(|k| match k.as_str() {
            "embedding" => site.part == Part::Embedding,
            "lm_head" if site.part == Part::Head => true,
            part => dotted.contains(part),
        })
    }

    /// Whether the products of the attention of this name are quantized.
    pub fn quantizes_attention(&self, name: &str) -> bool {
        let dotted = format!("{name}.");
        let kept =
            self.keep.iter().any(|k| k != "embedding" && k != "lm_head" && dotted.contains(k.as_str()));
        (self.attention_bits < 16 || self.kv_scheme.is_some()) && !kept
    }

    /// What the schemes of the attention of this name are like: those of `kv_scheme`, or any of those that are searched, which
    /// all take the same room. `None` if its products are left alone.
    pub(crate) fn attention_scheme(&self, name: &str) -> Option<AttentionScheme> {
        if !self.quantizes_attention(name) {
            return None;
        }
        if let Some(kv) = self.kv_scheme {
            return Some(AttentionScheme { key: Some(kv), value: Some(kv), ..AttentionScheme::default() });
        }
        let searched = |elements: Vec<Element>, shifts: bool| {
            let scheme = |&element| Scheme { shifts, ..Scheme::new(element, Granularity::Tensor) };
            elements.first().map(scheme)
        };
        let shifts = self.method == Method::Fpq && self.shifts != ShiftRule::None;
        let operand = searched(self.elements(self.attention_bits), shifts);
        let heads = self.probability_scale == ProbabilityScale::Head;
        let probability = searched(self.unsigned_elements(self.attention_bits), heads).map(|s| {
            match self.probability_scale {
                ProbabilityScale::Row => Scheme { granularity: Granularity::Channel, dynamic: true, ..s },
                _ => s,
            }
        });
        Some(AttentionScheme { query: operand, key: operand, value: operand, probability })
    }

    /// Coverage windows beside `windows` windows of text.
    pub fn coverage_windows(&self, windows: usize) -> usize {
        (f64::from(self.coverage) * windows as f64).round() as usize
    }

    /// How many candidates are scored fully.
    pub(crate) fn exactness(&self) -> Exactness {
        match self.search {
            Search::Ranked => Exactness::Best(self.finalists),
            Search::Direct | Search::Gram => Exactness::All,
        }
    }

    /// The same for numbers that are never negative.
    pub(crate) fn unsigned_elements(&self, bits: u32) -> Vec<Element> {
        match (self.method, bits) {
            (_, 16) | (Method::Scheme, _) => Vec::new(),
            (Method::MinmaxInt, _) => vec![Element::UnsignedInt { bits: bits as u8 }],
            (Method::MinmaxFp, _) => vec![Element::UnsignedFloat { exponent: 2, mantissa: bits as u8 - 2 }],
            (Method::Fpq, _) => Element::searched_unsigned(bits),
        }
    }

    /// Candidates for the scales of attention's operands: MinMax has one.
    pub(crate) fn operand_grid(&self) -> Grid {
        match self.method {
            Method::Fpq => self.activation_grid,
            _ => Grid { kind: GridKind::Maxval, low: 1.0, high: 1.0, steps: 1 },
        }
    }

    /// The formats among which `bits` are searched; the one of MinMax is a single one.
    pub(crate) fn elements(&self, bits: u32) -> Vec<Element> {
        match (self.method, bits) {
            (_, 16) => Vec::new(),
            (Method::MinmaxInt, _) => vec![Element::Int { bits: bits as u8 }],
            (Method::MinmaxFp, _) => vec![Element::Float { exponent: 2, mantissa: bits as u8 - 3 }],
            (Method::Fpq, _) => Element::searched(bits),
            (Method::Scheme, _) => self.weight_scheme.map(|s| s.element).into_iter().collect(),
        }
    }
}

/// What a map says of the layer `name` by the longest part of it that the map has.
fn longest_part<'a, T>(parts: &'a BTreeMap<String, T>, name: &str) -> Option<&'a T> {
    let dotted = format!("{name}.");
    let fitting = parts.iter().filter(|(part, _)| dotted.contains(part.as_str()));
    fitting.max_by_key(|(part, _)| part.len()).map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_may_have_schemes_of_their_own() {
        let recipe = Recipe {
            schemes: BTreeMap::from([
                ("down_proj".into(), Scheme::MXFP4),
                ("layers.0.mlp.down_proj".into(), "e4m3fn/channel".parse().unwrap()),
            ]),
            // What nvfp4 has by itself is a rule of NVFP4 alone.
            scales: Scales::Sweep,
            ..Recipe::named("nvfp4-w4a4").unwrap()
        };
        recipe.check().unwrap();
        let of = |name: &str| {
            let scheme = recipe.layer_scheme(name).unwrap();
            (scheme.weight.unwrap().to_string(), scheme.input.unwrap().to_string())
        };
        let pair = |w: &str| (w.to_owned(), format!("{w}/dynamic"));
        assert_eq!(of("model.layers.0.mlp.up_proj"), pair("e2m1/group16/e4m3"));
        assert_eq!(of("model.layers.1.mlp.down_proj"), pair("e2m1/group32/e8m0"));
        assert_eq!(of("model.layers.0.mlp.down_proj"), pair("e4m3fn/channel"));
        // A scale for all tokens is not known while the network runs.
        let alternatives = |alternatives: &[&str]| Recipe {
            alternatives: alternatives.iter().map(|s| s.parse().unwrap()).collect(),
            schemes: BTreeMap::new(),
            ..recipe.clone()
        };
        let int8 = alternatives(&["int8/tensor"]);
        assert!(int8.check().unwrap_err().to_string().contains("int8/tensor/dynamic"));
        alternatives(&["int4/group32"]).check().unwrap();
        // A layer that is named would choose with the others all the same.
        let both = Recipe { schemes: recipe.schemes.clone(), ..alternatives(&["int4/group32"]) };
        assert!(both.check().unwrap_err().to_string().contains("exclude each other"));
    }

    #[test]
    fn layers_may_have_bits_of_their_own() {
        let bits = BTreeMap::from([("down_proj".into(), 6), ("layers.0.mlp.down_proj".into(), 16)]);
        let recipe = Recipe { layer_bits: bits, ..Recipe::default() };
        recipe.check().unwrap();
        assert_eq!(recipe.bits_of("model.layers.1.mlp.down_proj"), (6, 6));
        assert_eq!(recipe.bits_of("model.layers.1.mlp.up_proj"), (4, 4));
        assert!(recipe.leaves(&Site::new("model.layers.0.mlp.down_proj", 1, 1)));
        let weights = Recipe { activation_bits: 16, ..recipe.clone() };
        assert_eq!(weights.bits_of("model.layers.1.mlp.down_proj"), (6, 16));
        let error = |recipe: Recipe| recipe.check().unwrap_err().to_string();
        assert!(error(Recipe { max_bits: Some(5.0), ..recipe.clone() }).contains("without layer_bits"));
        let three = BTreeMap::from([("up_proj".into(), 3)]);
        assert!(error(Recipe { layer_bits: three, ..recipe.clone() }).contains("up_proj"));
        let mixed = Recipe { max_bits: Some(5.0), activation_bits: 8, ..Recipe::default() };
        assert!(error(mixed).contains("as many bits"));
        let scheme = Recipe { layer_bits: recipe.layer_bits, ..Recipe::named("nvfp4-w4a16").unwrap() };
        assert!(error(scheme).contains("layer_bits"));
    }

    #[test]
    fn automatic_scales_are_settled_by_format_and_inputs() {
        let settled = |name: &str, calibrated: bool, part: Option<&str>| {
            let mut recipe = Recipe { scales: Scales::Auto, ..Recipe::named(name).unwrap() };
            recipe.schemes.extend(part.map(|s| ("down_proj".to_string(), s.parse().unwrap())));
            recipe.check().unwrap();
            recipe.settle_scales(calibrated);
            recipe.check().unwrap();
            recipe.scales
        };
        assert_eq!(settled("nvfp4-w4a16", true, None), Scales::Weighted);
        assert_eq!(settled("nvfp4-w4a16", false, None), Scales::FourOverSix);
        assert_eq!(settled("mxfp4-w4a16", false, Some("int8/channel")), Scales::Sweep);
        assert_eq!(settled("int8-w8a8", true, None), Scales::Absmax);
        assert_eq!(settled("nvfp4-w4a16", false, Some("e2m1/group32/e8m0")), Scales::Auto);
    }

    #[test]
    fn attention_is_quantized_by_a_method_or_as_a_cache() {
        let named = |name| Recipe::named(name).unwrap();
        let error = |recipe: Recipe| recipe.check().unwrap_err().to_string();
        let fp8 = || Some("e4m3fn/channel/dynamic".parse().unwrap());
        let four = Recipe { attention_bits: 4, keep: vec!["layers.0.".into()], ..named("fpq-w4a4") };
        four.check().unwrap();
        assert!(four.quantizes_attention("model.layers.1.self_attn"));
        assert!(!four.quantizes_attention("model.layers.0.self_attn"));
        assert!(!named("fpq-w4a4").quantizes_attention("model.layers.1.self_attn"));
        assert!(error(Recipe { kv_scheme: fp8(), ..four.clone() }).contains("exclude each other"));
        assert!(error(Recipe { attention_bits: 5, ..four }).contains("attention_bits"));

        let cache = Recipe { kv_scheme: fp8(), ..named("nvfp4-w4a16") };
        cache.check().unwrap();
        assert!(!cache.needs_calibration() && cache.quantizes_attention("model.layers.0.self_attn"));
        // The tensor scale of NVFP4 is known from calibration alone.
        let blocks = Recipe { kv_scheme: Some(Scheme { dynamic: true, ..Scheme::NVFP4 }), ..cache.clone() };
        assert!(blocks.check().is_ok() && blocks.needs_calibration());
        assert!(error(Recipe { attention_bits: 8, kv_scheme: None, ..cache.clone() }).contains("kv_scheme"));
        let unsigned = Recipe { kv_scheme: Some("ue4m4/channel/dynamic".parse().unwrap()), ..cache };
        assert!(error(unsigned).contains("no negative numbers"));
    }

    #[test]
    fn keep_matches_layers_and_parts_of_names() {
        let recipe = Recipe {
            keep: vec!["lm_head".into(), "layers.0.".into(), "embedding".into()],
            ..Recipe::default()
        };
        let site = |name: &str, part| Site::new(name, 1, 1).of(part);
        let kept = [
            site("lm_head", Part::Head),
            site("bert.pooler.dense", Part::Head),
            site("model.layers.0.mlp.up_proj", Part::Block),
            site("model.embed_tokens", Part::Embedding),
            site("transformer.wte", Part::Embedding),
        ];
        assert!(kept.iter().all(|s| recipe.keeps(s)));
        assert!(!recipe.keeps(&site("model.layers.10.mlp.up_proj", Part::Block)));
    }
}
