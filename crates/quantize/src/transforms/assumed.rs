//! The quantization that a transform is to make easier.

use crate::QuantizeError;
use crate::recipe::{Method, Recipe};
use halfbyte_formats::block::tensor_scale;
use halfbyte_formats::{BlockQuantizer, Element, Granularity, ScaleFormat, ScaleRule, Scheme, kernel};
use halfbyte_model::Site;
use halfbyte_tensor::Matrix;
use rayon::prelude::*;

/// Schemes of weights and inputs, rounded to nearest: what transforms look at, whatever method comes after them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assumed {
    /// Of weights; `None` if they are left alone.
    pub weight: Option<Scheme>,
    /// Of inputs; `None` if they are left alone. A static one has the scale of the largest magnitude.
    pub input: Option<Scheme>,
    /// Whether the scale of static inputs is searched below the largest magnitude, as FPQ does.
    pub clip: bool,
}

/// Scales of static inputs that are tried, relative to the largest magnitude's.
const CLIPS: [f32; 10] = [1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.12, 0.06];

impl Assumed {
    /// What a recipe does to the layers that it names neither a scheme nor bits for. For FPQ it is E2M1 (E2M3, E2M5) with one
    /// scale a row of weights and one for all inputs.
    pub fn of(recipe: &Recipe) -> Self {
        match recipe.method {
            Method::Scheme => Self { weight: recipe.weight_scheme, input: recipe.input_scheme, clip: false },
            _ => Self::of_bits(recipe, recipe.weight_bits, recipe.activation_bits),
        }
    }

    /// What a recipe does to one layer; nothing if it leaves it alone.
    pub(crate) fn at(recipe: &Recipe, site: &Site) -> Self {
        if recipe.leaves(site) {
            return Self { weight: None, input: None, clip: false };
        }
        match recipe.layer_scheme(&site.name) {
            Some(scheme) => Self { weight: scheme.weight, input: scheme.input, clip: false },
            None => {
                let (weight, input) = recipe.bits_of(&site.name);
                Self::of_bits(recipe, weight, input)
            }
        }
    }

    /// Whether it rounds nothing.
    pub(crate) fn is_none(&self) -> bool {
        self.weight.is_none() && self.input.is_none()
    }

    fn of_bits(recipe: &Recipe, weight: u32, input: u32) -> Self {
        let element = |bits: u32| match recipe.method {
            _ if bits >= 16 => None,
            Method::MinmaxInt => Some(Element::Int { bits: bits as u8 }),
            _ => Some(Element::Float { exponent: 2, mantissa: bits as u8 - 3 }),
        };
        Self {
            weight: element(weight).map(|e| Scheme::new(e, Granularity::Channel)),
            input: element(input).map(|e| Scheme::new(e, Granularity::Tensor)),
            clip: recipe.method == Method::Fpq,
        }
    }

    /// Checks that a layer has the shape for it.
    pub(crate) fn check(&self, site: &Site) -> Result<(), QuantizeError> {
        for scheme in [self.weight, self.input].into_iter().flatten() {
            scheme.check_shape(&site.weight(), site.outputs, site.inputs)?;
        }
        Ok(())
    }

    /// Rounds the weights of layers that share an input.
    pub(crate) fn round_weights(&self, weights: &mut [Matrix]) -> Result<(), QuantizeError> {
        let Some(scheme) = self.weight else { return Ok(()) };
        let largest = weights.iter().map(|w| kernel::max_abs(&w.data)).fold(0.0f32, f32::max);
        weights.iter_mut().try_for_each(|w| round(scheme, largest, w))
    }

    /// Rounds inputs whose largest magnitude over all calibration inputs is `largest`.
    pub(crate) fn round_input(&self, x: &mut Matrix, largest: f32) -> Result<(), QuantizeError> {
        let Some(scheme) = self.input else { return Ok(()) };
        if self.clip && scheme.granularity == Granularity::Tensor {
            let scale = scheme.element.scale_from_max(largest);
            let error = |clip: &f32| {
                let pieces = x.data.par_chunks(1 << 16);
                let errors: Vec<f64> =
                    pieces.map(|p| kernel::squared_error(scheme.element, clip * scale, p)).collect();
                errors.into_iter().sum::<f64>()
            };
            let tried: Vec<(f64, f32)> = CLIPS.iter().map(|c| (error(c), *c)).collect();
            let best = tried.into_iter().reduce(|a, b| if b.0 < a.0 { b } else { a });
            return round(scheme, largest * best.map_or(1.0, |b| b.1), x);
        }
        round(scheme, largest, x)
    }
}

/// Rounds rows in place; `largest` is the magnitude that sets the scale of a whole tensor.
fn round(scheme: Scheme, largest: f32, x: &mut Matrix) -> Result<(), QuantizeError> {
    let element = scheme.element;
    let nearest = |values: &mut [f32], max: f32| {
        kernel::fake_quantize_in_place(element, element.scale_from_max(max), values)
    };
    let (cols, own) = (x.cols.max(1), |values: &mut [f32]| nearest(values, kernel::max_abs(values)));
    match (scheme.granularity, scheme.scale) {
        (Granularity::Tensor, _) => x.data.par_chunks_mut(1 << 14).for_each(|p| nearest(p, largest)),
        (Granularity::Channel, _) => x.data.par_chunks_mut(cols).for_each(own),
        (Granularity::Group(n), ScaleFormat::F32) => {
            x.data.par_chunks_mut(cols).for_each(|row| row.chunks_mut(n.max(1)).for_each(own));
        }
        (Granularity::Group(_), _) => {
            let blocks = block_quantizer(scheme, largest)?;
            x.data.par_chunks_mut(cols).for_each(|row| blocks.apply(row));
        }
    }
    Ok(())
}

/// The kernel of a block format for a tensor with this largest magnitude; inputs and weights have their usual rules.
pub(crate) fn block_quantizer(scheme: Scheme, largest: f32) -> Result<BlockQuantizer, QuantizeError> {
    let nvfp4 = scheme.scale == ScaleFormat::E4M3;
    let scale = if nvfp4 && largest > 0.0 { tensor_scale(largest) } else { 1.0 };
    let rule = if scheme.dynamic && !nvfp4 { ScaleRule::RoundUp } else { ScaleRule::Absmax };
    Ok(BlockQuantizer::new(Scheme { dynamic: false, ..scheme }, scale, rule)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_their_own_are_assumed_as_they_will_be() {
        let site = |name: &str| Site::new(name, 64, 64);
        let (up, down) = (site("layers.0.mlp.up_proj"), site("layers.0.mlp.down_proj"));
        let int8: Scheme = "int8/channel".parse().unwrap();
        let mut recipe = Recipe::named("nvfp4-w4a16").unwrap();
        recipe.schemes.insert("down_proj".into(), int8);
        assert_eq!(Assumed::at(&recipe, &up).weight, Some(Scheme::NVFP4));
        assert_eq!(Assumed::at(&recipe, &down), Assumed { weight: Some(int8), input: None, clip: false });

        let mut recipe = Recipe::named("fpq-w4a4").unwrap();
        recipe.layer_bits.insert("down_proj".into(), 8);
        recipe.keep = vec!["gate_proj".into()];
        let bits = |assumed: Assumed| [assumed.weight, assumed.input].map(|s| s.map(|s| s.element.bits()));
        assert_eq!(bits(Assumed::at(&recipe, &up)), [Some(4); 2]);
        assert_eq!(bits(Assumed::at(&recipe, &down)), [Some(8); 2]);
        assert!(Assumed::at(&recipe, &site("layers.0.mlp.gate_proj")).is_none());
    }
}
