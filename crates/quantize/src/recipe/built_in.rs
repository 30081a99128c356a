//! The built-in recipes.

use super::{Calibration, First, Method, ProbabilityScale, Products, Scales};
use crate::search::{Grid, ShiftRule};
use crate::{QuantizeError, Recipe};
use halfbyte_formats::{ScaleFormat, Scheme};

/// The names before the bits.
const METHODS: [&str; 5] = ["minmax-int", "minmax-fp", "fpq-baseline", "fpq", "fpq-published"];
/// Weight and activation bits that have a name.
const BITS: [(&str, u32, u32); 5] =
    [("w4a4", 4, 4), ("w6a6", 6, 6), ("w8a8", 8, 8), ("w4a8", 4, 8), ("w4a16", 4, 16)];

/// Recipes of fixed schemes: name, scheme of weights, scheme of inputs.
const SCHEMES: [(&str, &str, &str); 14] = [
    ("nvfp4-w4a16", "e2m1/group16/e4m3", ""),
    ("nvfp4-w4a4", "e2m1/group16/e4m3", "e2m1/group16/e4m3/dynamic"),
    ("mxfp4-w4a16", "e2m1/group32/e8m0", ""),
    ("mxfp4-w4a4", "e2m1/group32/e8m0", "e2m1/group32/e8m0/dynamic"),
    ("fp8-w8a16", "e4m3fn/channel", ""),
    ("fp8-w8a8", "e4m3fn/channel", "e4m3fn/channel/dynamic"),
    ("int4-g32-w4a16", "int4/group32", ""),
    ("int8-w8a16", "int8/channel", ""),
    ("int8-w8a8", "int8/channel", "int8/channel/dynamic"),
    ("nvfp4-gptq-w4a16", "e2m1/group16/e4m3", ""),
    ("nvfp4-gptq-w4a4", "e2m1/group16/e4m3", "e2m1/group16/e4m3/dynamic"),
    ("mxfp4-gptq-w4a16", "e2m1/group32/e8m0", ""),
    ("mxfp4-gptq-w4a4", "e2m1/group32/e8m0", "e2m1/group32/e8m0/dynamic"),
    ("int4-g32-gptq-w4a16", "int4/group32", ""),
];

/// Recipes of another one behind a transform: name, the other, transform. Embedding and output layer are left alone, as the papers
/// do and engines expect. SmoothQuant is as published; Outlier Suppression+ looks at all taps, since the inputs of a MLP's last layer
/// are what costs most behind the published places (docs/transforms.md). Static integers for inputs are in no other engine's files, so
/// these may keep factors beside layers.
const TRANSFORMED: [(&str, &str, &str); 6] = [
    ("nvfp4-pow2-gptq-w4a4", "nvfp4-gptq-w4a4", "pow2"),
    ("mxfp4-pow2-gptq-w4a4", "mxfp4-gptq-w4a4", "pow2"),
    ("smooth-quant-w8a8", "minmax-int-w8a8", "smooth-quant:migrate=true"),
    ("smooth-quant-w6a6", "minmax-int-w6a6", "smooth-quant:migrate=true"),
    ("os-plus-w8a8", "minmax-int-w8a8", "os-plus:taps=all:migrate=true"),
    ("os-plus-w6a6", "minmax-int-w6a6", "os-plus:taps=all:migrate=true"),
];

impl Recipe {
    /// All built-in names.
    pub fn names() -> Vec<String> {
        let searched = METHODS.iter().flat_map(|m| BITS.iter().map(move |(b, ..)| format!("{m}-{b}")));
        let named = SCHEMES.iter().chain(&TRANSFORMED).map(|s| s.0.to_owned());
        searched.chain(named).collect()
    }

    /// A recipe of fixed schemes. The embedding and the output layer stay as they are, which is what engines expect.
    fn of_schemes(name: &str, weight: &str, input: &str) -> Option<Self> {
        let weight: Scheme = weight.parse().ok()?;
        let input: Option<Scheme> = input.parse().ok();
        let nearest = Self {
            name: name.into(),
            method: Method::Scheme,
            weight_bits: weight.element.bits(),
            activation_bits: input.map_or(16, |s| s.element.bits()),
            embedding_bits: 16,
            weight_scheme: Some(weight),
            input_scheme: input,
            scales: if weight.scale == ScaleFormat::F32 { Scales::Absmax } else { Scales::Auto },
            keep: vec!["lm_head".into()],
            calibration: Calibration::FullPrecision,
            shifts: ShiftRule::None,
            correct: false,
            feedback: false,
            products: Products::F32,
            ..Self::default()
        };
        if !name.contains("-gptq-") {
            return Some(nearest);
        }
        Some(Self {
            calibration: Calibration::Sequential,
            correct: input.is_some(),
            feedback: true,
            scales: if nearest.scales == Scales::Absmax { Scales::Absmax } else { Scales::Weighted },
            products: Products::Bf16,
            ..nearest
        })
    }

    /// The built-in recipe of this name; `fpq-published` alone means its W4A4.
    ///
    /// # Errors
    /// [`QuantizeError::UnknownRecipe`] with the list of names.
    pub fn named(name: &str) -> Result<Self, QuantizeError> {
        if let Some(recipe) = SCHEMES
            .iter()
            .find(|s| s.0 == name)
            .and_then(|(name, weight, input)| Self::of_schemes(name, weight, input))
        {
            return Ok(recipe);
        }
        if let Some((_, base, transform)) = TRANSFORMED.iter().find(|s| s.0 == name) {
            let wrong = |message| QuantizeError::Recipe { field: "transforms".into(), message };
            let transforms = vec![transform.parse().map_err(wrong)?];
            let (name, keep) = (name.into(), vec!["lm_head".into()]);
            return Ok(Self { name, keep, transforms, embedding_bits: 16, ..Self::named(base)? });
        }
        let unknown = || QuantizeError::UnknownRecipe { name: name.into(), known: Self::names().join(", ") };
        let full = if METHODS.contains(&name) { format!("{name}-w4a4") } else { name.to_string() };
        let (method, bits) = full.rsplit_once('-').ok_or_else(unknown)?;
        let &(_, weight_bits, activation_bits) =
            BITS.iter().find(|(b, ..)| *b == bits).ok_or_else(unknown)?;
        // bfloat16 has 8 bits of precision: enough beside the error of 4 bits, and not beside that of 6.
        let products = if weight_bits == 4 { Products::Bf16 } else { Products::F32 };
        let base = Self { name: name.into(), weight_bits, activation_bits, products, ..Self::default() };
        // MinMax and the published forms look at full-precision inputs and know neither correction nor feedback.
        let plain = Self {
            calibration: Calibration::FullPrecision,
            coverage: 0.0,
            token_weights: false,
            probability_scale: ProbabilityScale::Tensor,
            share_input: false,
            correct: false,
            feedback: false,
            products: Products::F32,
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
}
