//! Correction of a weight for the error of its quantized input.
//!
//! Rounding the input adds noise that is known from calibration. The weight that maps the noisy input best onto the
//! full-precision output is a ridge regression, `W' = W − C (G + λI)⁻¹` with `C = X̂ᵀ(X̂ W − X W)`: it leans less on channels
//! that the input's format renders badly. Quantizing W' instead of W costs no bit and no time at inference.

use super::feedback::Factor;
use halfbyte_tensor::Matrix;

/// The corrected weight, and what is left of the linear term for it (that of the damping alone).
pub(super) fn correct(weight: &Matrix, linear: Matrix, factor: &Factor) -> (Matrix, Matrix) {
    let mut step = linear;
    factor.solve(&mut step.data);
    let mut corrected = weight.clone();
    corrected.data.iter_mut().zip(&step.data).for_each(|(w, s)| *w -= s);
    // C' = C − C (G + λI)⁻¹ G = λ C (G + λI)⁻¹.
    let damping = factor.damping();
    step.data.iter_mut().for_each(|s| *s *= damping);
    (corrected, step)
}
