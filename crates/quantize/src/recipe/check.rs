//! What a recipe's types do not check.

use super::{BITS, Method, Recipe, Rounding, Scales, Search};
use crate::QuantizeError;
use crate::transforms::Assumed;
use halfbyte_checkpoint::LayerScheme;
use halfbyte_formats::{BlockQuantizer, Granularity, InputQuantizer, ScaleFormat, Scheme};

/// The least scale that a grid may begin with, relative to the largest magnitude's: nothing below is of use.
const LEAST: f32 = 1e-6;

impl Recipe {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`QuantizeError::Recipe`], naming the field.
    pub fn check(&self) -> Result<(), QuantizeError> {
        let wrong =
            |field: &str, message: String| Err(QuantizeError::Recipe { field: field.into(), message });
        // Folders and files are named after it.
        if ["", ".", ".."].contains(&self.name.as_str()) || self.name.contains(['/', '\\', ':']) {
            return wrong("name", format!("{:?} cannot be the name of a folder", self.name));
        }
        for (field, bits) in [
            ("weight_bits", self.weight_bits),
            ("activation_bits", self.activation_bits),
            ("embedding_bits", self.embedding_bits),
            ("attention_bits", self.attention_bits),
        ] {
            if !BITS.contains(&bits) {
                return wrong(field, format!("{bits} is none of 4, 6, 8 and 16"));
            }
        }
        if let Some((layer, bits)) = self.layer_bits.iter().find(|(_, b)| !BITS.contains(b)) {
            return wrong("layer_bits", format!("{bits} of {layer:?} is none of 4, 6, 8 and 16"));
        }
        match self.method {
            Method::Scheme if !self.layer_bits.is_empty() => {
                return wrong(
                    "layer_bits",
                    "is for methods that choose formats; method = \"scheme\" has schemes".into(),
                );
            }
            Method::Scheme if self.max_bits.is_some() && self.alternatives.is_empty() => {
                return wrong(
                    "max_bits",
                    "has nothing to choose from: with method = \"scheme\" it goes with alternatives, in a recipe file".into(),
                );
            }
            Method::Scheme => self.check_schemes()?,
            Method::MinmaxInt | Method::MinmaxFp if self.uses_factor() => {
                return wrong(
                    "correct",
                    "and feedback are for fpq and scheme: MinMax rounds to the nearest value".into(),
                );
            }
            Method::Fpq if self.search == Search::Direct && self.uses_factor() => {
                return wrong(
                    "search",
                    "= \"direct\" scores weights rounded to the nearest value, as in fpq-published; it goes with correct = false and feedback = false".into(),
                );
            }
            _ if self.weight_scheme.is_some() || self.input_scheme.is_some() => {
                return wrong("weight_scheme", "and input_scheme go with method = \"scheme\"".into());
            }
            _ if !self.alternatives.is_empty() || !self.schemes.is_empty() => {
                return wrong("alternatives", "and schemes go with method = \"scheme\"".into());
            }
            _ if self.max_bits.is_some() && (self.weight_bits == 16 || !self.layer_bits.is_empty()) => {
                return wrong("max_bits", "chooses layer_bits, from weight_bits on; give it without layer_bits and with weight_bits below 16".into());
            }
            _ if self.max_bits.is_some() && ![16, self.weight_bits].contains(&self.activation_bits) => {
                return wrong("max_bits", "gives inputs as many bits as weights; activation_bits must be 16 or equal to weight_bits".into());
            }
            _ => {}
        }
        if let Some(bits) = self.max_bits.filter(|b| !(*b > 0.0 && *b <= 32.0)) {
            return wrong("max_bits", format!("{bits} is not between 0 and 32"));
        }
        self.check_attention()?;
        self.check_rounding()?;
        if self.rounds == 0 || self.rounds > 100 {
            return wrong("rounds", format!("{} is not between 1 and 100", self.rounds));
        }
        for (field, grid) in [("weight_grid", &self.weight_grid), ("activation_grid", &self.activation_grid)]
        {
            let sane = grid.low >= LEAST
                && grid.low <= grid.high
                && grid.high <= 16.0
                && (1..=4096).contains(&grid.steps);
            if !sane {
                return wrong(field, "needs 0.000001 <= low <= high <= 16 and 1 to 4096 steps".into());
            }
        }
        if !(self.damping > 0.0 && self.damping <= 10.0) {
            return wrong("damping", format!("{} is not above 0 and at most 10", self.damping));
        }
        if !(0.0..=4.0).contains(&self.coverage) {
            return wrong("coverage", format!("{} is not between 0 and 4", self.coverage));
        }
        let assumed = Assumed::of(self);
        self.transforms.iter().try_for_each(|t| t.check(&assumed))?;
        if self.max_shift > 31 {
            return wrong("max_shift", format!("{} is more than 31", self.max_shift));
        }
        if let Some(headroom) = self.headroom.filter(|h| !(0.0..=16.0).contains(h)) {
            return wrong("headroom", format!("{headroom} is not between 0 and 16"));
        }
        if self.sample_tokens == 0 || self.finalists == 0 {
            return wrong("sample_tokens", "and finalists must be at least 1".into());
        }
        Ok(())
    }

    fn check_schemes(&self) -> Result<(), QuantizeError> {
        let wrong =
            |field: &str, message: String| Err(QuantizeError::Recipe { field: field.into(), message });
        if !self.alternatives.is_empty() && !self.schemes.is_empty() {
            return wrong(
                "alternatives",
                "and schemes exclude each other: with alternatives every layer chooses; name layers in schemes or keep, or let all choose".into(),
            );
        }
        let Some(weight) = self.weight_scheme else {
            return wrong(
                "weight_scheme",
                "is missing; method = \"scheme\" needs one, such as e2m1/group16/e4m3".into(),
            );
        };
        if self.weight_bits != weight.element.bits() {
            return wrong(
                "weight_bits",
                format!("{} are not those of weight_scheme {weight}", self.weight_bits),
            );
        }
        if self.activation_bits != self.input_scheme.map_or(16, |s| s.element.bits()) {
            let scheme = self.input_scheme.map_or("(none: 16)".into(), |s| s.to_string());
            return wrong(
                "activation_bits",
                format!("{} are not those of input_scheme {scheme}", self.activation_bits),
            );
        }
        if self.embedding_bits != 16 {
            return wrong(
                "embedding_bits",
                "must be 16 for method = \"scheme\"; engines keep the embedding".into(),
            );
        }
        let possible = self.possible();
        for weight in possible.iter().filter_map(|s| s.weight) {
            if weight.dynamic || weight.shifts || !weight.element.is_signed() {
                return wrong("weight_scheme", format!("{weight} is for inputs"));
            }
            if weight.scale != ScaleFormat::F32 {
                BlockQuantizer::new(weight, 1.0, self.scales.rule(weight.scale))
                    .map_err(|e| QuantizeError::Recipe { field: "scales".into(), message: e.to_string() })?;
            }
        }
        let coded = |s: &LayerScheme| s.weight.is_some_and(|w| w.scale != ScaleFormat::F32);
        let any_scheme = !matches!(self.scales, Scales::RoundUp | Scales::FourOverSix);
        if !any_scheme && !possible.iter().any(coded) {
            return wrong(
                "scales",
                format!(
                    "must be \"auto\", \"absmax\", \"sweep\" or \"weighted\" for {weight}: the others are for E4M3 or E8M0 scales"
                ),
            );
        }
        for input in possible.iter().filter_map(|s| s.input) {
            let computed = check_input(input);
            if let Err(message) = computed {
                return wrong("input_scheme", message);
            }
        }
        Ok(())
    }

    fn check_rounding(&self) -> Result<(), QuantizeError> {
        let wrong =
            |field: &str, message: String| Err(QuantizeError::Recipe { field: field.into(), message });
        if !(1..=100_000).contains(&self.rounding_steps) {
            return wrong("rounding_steps", format!("{} is not between 1 and 100000", self.rounding_steps));
        }
        if self.rounding_tokens == 0 {
            return wrong("rounding_tokens", "must be at least 1".into());
        }
        if self.rounding == Rounding::Given {
            return Ok(());
        }
        if self.weight_bits == 16 {
            return wrong("rounding", "= \"learned\" needs quantized weights".into());
        }
        if self.attention_bits < 16 {
            let why = "= \"learned\" and attention_bits exclude each other: quantized probabilities have no gradient here";
            return wrong("rounding", why.into());
        }
        Ok(())
    }

    fn check_attention(&self) -> Result<(), QuantizeError> {
        let wrong = |field: &str, message: &str| {
            Err(QuantizeError::Recipe { field: field.into(), message: message.into() })
        };
        if self.attention_bits < 16 && self.method == Method::Scheme {
            return wrong(
                "attention_bits",
                "goes with the methods that choose formats; with method = \"scheme\" kv_scheme quantizes the KV cache",
            );
        }
        let Some(kv) = self.kv_scheme else { return Ok(()) };
        if self.attention_bits < 16 {
            return wrong(
                "kv_scheme",
                "and attention_bits exclude each other: both quantize keys and values",
            );
        }
        check_input(kv).map_or_else(|message| wrong("kv_scheme", &message), Ok)
    }
}

/// Whether inputs of this scheme can be computed.
///
/// # Errors
/// Why not, as a message.
fn check_input(input: Scheme) -> Result<(), String> {
    // Whole blocks of any kind; whether a layer's channels are is for its shape to say.
    let channels = if let Granularity::Group(group) = input.granularity { group } else { 32 };
    match input.dynamic {
        _ if !input.element.is_signed() => Err(format!("{input} has no negative numbers")),
        true => InputQuantizer::dynamic(input, 1.0, channels).map(|_| ()).map_err(|e| e.to_string()),
        false if input == Scheme::new(input.element, Granularity::Tensor) => Ok(()),
        false => {
            Err(format!("{input} cannot be computed; static inputs have one f32 scale, as e4m3fn/tensor"))
        }
    }
}
