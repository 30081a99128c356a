//! Correction of a weight for the error of its quantized input.
//!
//! Rounding the input adds noise that is known from calibration. The weight that maps the noisy input best onto the
//! full-precision output is a ridge regression, `W' = W − C (G + Λ)⁻¹` with `C = X̂ᵀ(X̂ W − X W)`: it leans less on channels
//! that the input's format renders badly. Quantizing W' instead of W costs no bit and no time at inference.

use super::feedback::Factor;
use halfbyte_tensor::scale_columns;

/// Corrects `weight` `[rows, inputs]` in place, and leaves in `linear` (C, of the same shape) what remains of the linear
/// term for the corrected rows: that of the damping alone.
pub(super) fn correct(weight: &mut [f32], linear: &mut [f32], factor: &Factor) {
    factor.solve(linear);
    weight.iter_mut().zip(&*linear).for_each(|(w, step)| *w -= step);
    // C' = C − C (G + Λ)⁻¹ G = C (G + Λ)⁻¹ Λ.
    scale_columns(linear, factor.damping());
}
