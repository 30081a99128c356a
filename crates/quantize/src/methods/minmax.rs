//! MinMax: weights scaled by the largest magnitude of each output channel, inputs by the largest of the tensor.

use super::{Codes, Group, Solution};
use crate::recipe::Recipe;
use halfbyte_formats::{InputQuantizer, kernel};
use halfbyte_tensor::Matrix;

pub(super) fn solve(channel_max: &[f32], group: &Group, recipe: &Recipe) -> Solution {
    let input = match recipe.elements(recipe.activation_bits).first() {
        None => None,
        Some(&element) => {
            let max = channel_max.iter().copied().fold(0.0f32, f32::max);
            Some(InputQuantizer::new(element, element.scale_from_max(max), Vec::new()))
        }
    };
    let codes = recipe.elements(recipe.weight_bits).first().map(|&element| {
        let weight = &group.weight;
        let mut values = Matrix::zeros(weight.rows, weight.cols);
        let mut scales = Vec::with_capacity(weight.rows);
        for r in 0..weight.rows {
            let scale = element.scale_from_max(kernel::max_abs(weight.row(r)));
            kernel::fake_quantize(element, scale, weight.row(r), values.row_mut(r));
            scales.push(scale);
        }
        let mut rest = scales.into_iter();
        let formats = group.rows.iter().map(|&n| (element, rest.by_ref().take(n).collect())).collect();
        Codes { formats, values }
    });
    Solution { input, codes }
}
