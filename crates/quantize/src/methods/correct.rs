//! Correction of a weight for the error of its quantized input.
//!
//! Rounding the input adds noise that is known from calibration. The weight that maps the noisy input best onto the
//! full-precision output is a ridge regression, `W' = W − W D (G + Λ)⁻¹` with `D = X̂ᵀX̂ − XᵀX̂`: it leans less on channels
//! that the input's format renders badly. Quantizing W' instead of W costs no bit and no time at inference.

use super::feedback::Factor;
use halfbyte_tensor::{Columns, Matrix, Rows, product};

/// Corrects `weight` `[rows, inputs]` in place, `piece` values (whole rows) at a time. `difference` is D `[inputs, inputs]`, and is
/// left in another form.
pub(super) fn correct(weight: &mut Matrix, difference: &mut [f32], factor: &Factor, piece: usize) {
    let inputs = weight.cols;
    // Whichever has fewer rows is multiplied by the inverse: D or W D.
    let first = weight.rows > inputs;
    if first {
        factor.solve(difference);
    }
    for rows in weight.data.chunks_mut(piece) {
        let mut step = product(&Rows::new(rows, inputs), &Columns::new(difference, inputs, inputs)).data;
        if !first {
            factor.solve(&mut step);
        }
        rows.iter_mut().zip(&step).for_each(|(w, step)| *w -= step);
    }
}
