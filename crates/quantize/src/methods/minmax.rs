//! MinMax: weights scaled by the largest magnitude of each output channel, inputs by the largest of the tensor.

use super::{RowCodes, SiteWeight, Solution};
use crate::QuantizeError;
use crate::recipe::Recipe;
use crate::tap::TapInputs;
use halfbyte_formats::{InputQuantizer, kernel};
use halfbyte_tensor::Matrix;

pub(super) fn solve(inputs: &TapInputs, sites: &[SiteWeight], recipe: &Recipe) -> Result<Solution, QuantizeError> {
    let input = match recipe.elements(recipe.activation_bits).first() {
        None => None,
        Some(&element) => {
            let max = inputs.channel_max()?.into_iter().fold(0.0f32, f32::max);
            Some(InputQuantizer::new(element, element.scale_from_max(max), Vec::new()))
        }
    };
    let weights = sites.iter().map(|s| {
        let &element = recipe.elements(recipe.weight_bits).first()?;
        let mut values = Matrix::zeros(s.weight.rows, s.weight.cols);
        let mut scales = Vec::with_capacity(s.weight.rows);
        for r in 0..s.weight.rows {
            let scale = element.scale_from_max(kernel::max_abs(s.weight.row(r)));
            kernel::fake_quantize(element, scale, s.weight.row(r), values.row_mut(r));
            scales.push(scale);
        }
        Some(RowCodes { element, scales, values })
    });
    Ok(Solution { input, weights: weights.collect() })
}
