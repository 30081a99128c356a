//! SmoothQuant (arXiv 2211.10438): outliers of the inputs are moved into the weights. For each channel
//! `s = max|X|^α / max|W|^(1−α)`, over the weights of all layers that read it.

use super::fold::Change;
use super::trial::Trial;
use crate::QuantizeError;

/// The exponents that are tried where none is given.
const ALPHAS: usize = 20;

/// The factors for a given α, or for that of 0, 1/20 … 1 with the least error.
pub(super) fn choose(trial: &Trial, alpha: Option<f32>) -> Result<Change, QuantizeError> {
    let (x, w) = (trial.largest(), trial.weight_largest());
    let with = |alpha| Change::scale(factors(&x, &w, alpha));
    match alpha {
        Some(alpha) => Ok(with(alpha)),
        None => trial.best((0..=ALPHAS).map(|i| with(i as f32 / ALPHAS as f32))),
    }
}

/// The factors for channels of inputs and weights with these largest magnitudes. A channel in which either is zero stays.
pub(super) fn factors(x: &[f32], w: &[f32], alpha: f32) -> Vec<f32> {
    let factor = |(&x, &w): (&f32, &f32)| match x > 0.0 && w > 0.0 {
        true => (x.powf(alpha) / w.powf(1.0 - alpha)).clamp(1e-5, 1e5),
        false => 1.0,
    };
    x.iter().zip(w).map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_makes_inputs_and_weights_equally_large() {
        let (x, w) = ([8.0, 0.5, 0.0], [0.5, 2.0, 1.0]);
        let s = factors(&x, &w, 0.5);
        assert_eq!(s, [4.0, 0.5, 1.0]);
        assert!((0..2).all(|j| x[j] / s[j] == w[j] * s[j]));
        // The ends: all of it to the weights, all of it to the inputs.
        assert_eq!(factors(&x, &w, 1.0)[0], 8.0);
        assert_eq!(factors(&x, &w, 0.0)[0], 2.0);
    }
}
