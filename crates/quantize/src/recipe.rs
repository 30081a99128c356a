//! Recipes: what is quantized, to how many bits, and by which method.

use crate::QuantizeError;
use crate::search::{Exactness, Grid, GridKind, ShiftRule};
use halfbyte_formats::Element;
use serde::{Deserialize, Serialize};

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
    /// Layers left in full precision: `lm_head`, `embedding`, or parts of names such as `down_proj` or `layers.0.`.
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
    /// Whether the layers that share an input (q/k/v, gate/up) also share its quantizer.
    pub share_input: bool,
    /// Whether the weights are first corrected for the error of their quantized inputs (see `methods::correct`).
    pub correct: bool,
    /// Whether the error of each rounded column is fed back into those after it (GPTQ, arXiv 2210.17323).
    pub feedback: bool,
    /// Damping of correction and feedback, relative to the Gram matrix's diagonal.
    pub damping: f32,
    /// Rounds of coordinate descent.
    pub rounds: usize,
    /// Which of the two a round searches first.
    pub first: First,
    /// Candidates for the scale of a weight row.
    pub weight_grid: Grid,
    /// Candidates for the tensor-wise scale of an input.
    pub activation_grid: Grid,
    /// How candidates are scored. Weights that are rounded by the factor of their Gram matrix (`correct`, `feedback`) are
    /// always scored by that factor's diagonal.
    pub search: Search,
    /// Candidates scored fully when ranked; with one the ranking decides.
    pub finalists: usize,
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
            keep: Vec::new(),
            calibration: Calibration::Sequential,
            coverage: 0.25,
            token_weights: true,
            shifts: ShiftRule::Error,
            max_shift: 15,
            share_input: true,
            correct: true,
            feedback: true,
            damping: 0.3,
            rounds: 1,
            first: First::Input,
            weight_grid: Grid { kind: GridKind::Maxval, low: 0.4, high: 1.1, steps: 40 },
            activation_grid: Grid { kind: GridKind::Maxval, low: 0.03, high: 1.1, steps: 60 },
            search: Search::Ranked,
            finalists: 1,
            sample_tokens: 2048,
            seed: 0,
        }
    }
}

/// The names before the bits.
const METHODS: [&str; 5] = ["minmax-int", "minmax-fp", "fpq-baseline", "fpq", "fpq-published"];
/// Weight and activation bits that have a name.
const BITS: [(&str, u32, u32); 5] =
    [("w4a4", 4, 4), ("w6a6", 6, 6), ("w8a8", 8, 8), ("w4a8", 4, 8), ("w4a16", 4, 16)];

impl Recipe {
    /// All built-in names.
    pub fn names() -> Vec<String> {
        METHODS.iter().flat_map(|m| BITS.iter().map(move |(b, ..)| format!("{m}-{b}"))).collect()
    }

    /// The built-in recipe of this name; `fpq-published` alone means its W4A4.
    ///
    /// # Errors
    /// [`QuantizeError::UnknownRecipe`] with the list of names.
    pub fn named(name: &str) -> Result<Self, QuantizeError> {
        let unknown = || QuantizeError::UnknownRecipe { name: name.into(), known: Self::names().join(", ") };
        let full = if METHODS.contains(&name) { format!("{name}-w4a4") } else { name.to_string() };
        let (method, bits) = full.rsplit_once('-').ok_or_else(unknown)?;
        let &(_, weight_bits, activation_bits) =
            BITS.iter().find(|(b, ..)| *b == bits).ok_or_else(unknown)?;
        let base = Self { name: name.into(), weight_bits, activation_bits, ..Self::default() };
        // MinMax and the published forms look at full-precision inputs and know neither correction nor feedback.
        let plain = Self {
            calibration: Calibration::FullPrecision,
            coverage: 0.0,
            token_weights: false,
            share_input: false,
            correct: false,
            feedback: false,
            ..base.clone()
        };
        Ok(match method {
            "minmax-int" => Self { method: Method::MinmaxInt, shifts: ShiftRule::None, ..plain },
            "minmax-fp" => Self { method: Method::MinmaxFp, shifts: ShiftRule::None, ..plain },
            "fpq-baseline" => Self { shifts: ShiftRule::None, ..plain.published() },
            "fpq-published" => plain.published(),
            "fpq" => base,
            _ => return Err(unknown()),
        })
    }

    /// The paper's search.
    fn published(self) -> Self {
        Self {
            method: Method::Fpq,
            shifts: ShiftRule::Maximum,
            rounds: 3,
            first: First::Weight,
            weight_grid: Grid::PUBLISHED,
            activation_grid: Grid::PUBLISHED,
            finalists: 8,
            ..self
        }
    }

    /// Whether the linear layer or table `name` is left alone.
    pub fn keeps(&self, name: &str) -> bool {
        let dotted = format!("{name}.");
        self.keep
            .iter()
            .any(|k| if k == "embedding" { name.contains("embed") } else { dotted.contains(k.as_str()) })
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`QuantizeError::Recipe`], naming the field.
    pub fn check(&self) -> Result<(), QuantizeError> {
        let wrong =
            |field: &str, message: String| Err(QuantizeError::Recipe { field: field.into(), message });
        for (field, bits) in [
            ("weight_bits", self.weight_bits),
            ("activation_bits", self.activation_bits),
            ("embedding_bits", self.embedding_bits),
        ] {
            if ![4, 6, 8, 16].contains(&bits) {
                return wrong(field, format!("{bits} is none of 4, 6, 8 and 16"));
            }
        }
        if self.rounds == 0 || self.rounds > 100 {
            return wrong("rounds", format!("{} is not between 1 and 100", self.rounds));
        }
        for (field, grid) in [("weight_grid", &self.weight_grid), ("activation_grid", &self.activation_grid)]
        {
            let sane = grid.low > 0.0
                && grid.low <= grid.high
                && grid.high <= 16.0
                && (1..=4096).contains(&grid.steps);
            if !sane {
                return wrong(field, "needs 0 < low <= high <= 16 and 1 to 4096 steps".into());
            }
        }
        if !(self.damping > 0.0 && self.damping <= 10.0) {
            return wrong("damping", format!("{} is not between 0 and 10", self.damping));
        }
        if !(0.0..=4.0).contains(&self.coverage) {
            return wrong("coverage", format!("{} is not between 0 and 4", self.coverage));
        }
        if self.max_shift > 31 {
            return wrong("max_shift", format!("{} is more than 31", self.max_shift));
        }
        if self.sample_tokens == 0 || self.finalists == 0 {
            return wrong("sample_tokens", "and finalists must be at least 1".into());
        }
        Ok(())
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

    /// The formats among which `bits` are searched; the one of MinMax is a single one.
    pub(crate) fn elements(&self, bits: u32) -> Vec<Element> {
        match (self.method, bits) {
            (_, 16) => Vec::new(),
            (Method::MinmaxInt, _) => vec![Element::Int { bits: bits as u8 }],
            (Method::MinmaxFp, _) => vec![Element::Float { exponent: 2, mantissa: bits as u8 - 3 }],
            (Method::Fpq, _) => Element::searched(bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_valid_recipe() {
        for name in Recipe::names() {
            let recipe = Recipe::named(&name).unwrap();
            recipe.check().unwrap();
            assert_eq!(recipe.name, name);
        }
        assert_eq!(Recipe::named("fpq-published").unwrap().weight_bits, 4);
    }

    #[test]
    fn an_unknown_name_lists_the_known() {
        let error = Recipe::named("fpq-w3a3").unwrap_err().to_string();
        assert!(error.contains("fpq-w3a3") && error.contains("minmax-int-w4a4"), "{error}");
    }

    #[test]
    fn keep_matches_layers_and_parts_of_names() {
        let recipe = Recipe {
            keep: vec!["lm_head".into(), "layers.0.".into(), "embedding".into()],
            ..Recipe::default()
        };
        assert!(
            recipe.keeps("lm_head")
                && recipe.keeps("model.layers.0.mlp.up_proj")
                && recipe.keeps("model.embed_tokens")
        );
        assert!(!recipe.keeps("model.layers.10.mlp.up_proj"));
    }
}
