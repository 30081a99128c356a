//! Whether two models differ on the same questions.

use crate::divergence::quantile;
use crate::metrics::SAMPLES;
use halfbyte_data::Random;
use serde::{Deserialize, Serialize};

/// A model beside the reference, question by question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// The model's accuracy less the reference's.
    pub difference: f64,
    /// 95 % interval of the difference: 2.5 % and 97.5 % quantiles over bootstrap samples of the questions (Efron, 1979).
    pub interval: [f64; 2],
    /// Questions that the reference alone answers rightly.
    pub only_reference: usize,
    /// Questions that the model alone answers rightly.
    pub only_model: usize,
    /// Two-sided p-value of McNemar's exact test: how probable so uneven a split of the questions on which they
    /// disagree would be if neither were better.
    pub p_value: f64,
    /// Bootstrap samples.
    pub samples: usize,
}

/// Compares right answers on the same questions. `seed` draws the bootstrap samples.
///
/// # Panics
/// If the lists are of different length or empty.
pub fn paired(reference: &[bool], model: &[bool], seed: u64) -> Paired {
    assert!(reference.len() == model.len() && !model.is_empty(), "answers to the same questions");
    let difference: Vec<i64> =
        reference.iter().zip(model).map(|(&a, &b)| i64::from(b) - i64::from(a)).collect();
    let n = difference.len();
    let only_reference = difference.iter().filter(|&&d| d < 0).count();
    let only_model = difference.iter().filter(|&&d| d > 0).count();
    let mut random = Random::new(seed);
    let mut means: Vec<f64> = (0..SAMPLES)
        .map(|_| (0..n).map(|_| difference[random.below(n)]).sum::<i64>() as f64 / n as f64)
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    Paired {
        difference: (only_model as f64 - only_reference as f64) / n as f64,
        interval: [quantile(&means, 0.025), quantile(&means, 0.975)],
        only_reference,
        only_model,
        p_value: mcnemar(only_reference, only_model),
        samples: SAMPLES,
    }
}

/// `min(1, 2 P(X ≤ min(b, c)))` for X binomial with b + c trials of probability 1/2 (McNemar, 1947, in its exact form).
fn mcnemar(b: usize, c: usize) -> f64 {
    let (n, k) = (b + c, b.min(c));
    // log of the binomial coefficient times 2^-n, from one k to the next.
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut total = 0.0;
    for i in 0..=k {
        total += term.exp();
        term += ((n - i) as f64 / (i + 1) as f64).ln();
    }
    (2.0 * total).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_is_the_binomial_test() {
        // By hand: 2 (1 + 10 + 45) / 2^10, and 2 (C(5,0) + C(5,1)) / 2^5.
        assert!((mcnemar(2, 8) - 112.0 / 1024.0).abs() < 1e-12);
        assert!((mcnemar(4, 1) - 12.0 / 32.0).abs() < 1e-12);
        assert_eq!((mcnemar(0, 0), mcnemar(3, 3)), (1.0, 1.0));
        // Many: close to the normal approximation with continuity correction.
        let z: f64 = (200.0 - 1.0) / 2000f64.sqrt();
        assert!((mcnemar(900, 1100) / erfc(z / 2f64.sqrt()) - 1.0).abs() < 0.02, "{}", mcnemar(900, 1100));
    }

    /// Abramowitz and Stegun 7.1.26.
    fn erfc(x: f64) -> f64 {
        let t = 1.0 / (1.0 + 0.327_591_1 * x);
        let p = [0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429];
        p.iter().rev().fold(0.0, |sum, a| (sum + a) * t) * (-x * x).exp()
    }

    #[test]
    fn the_interval_is_that_of_the_normal_approximation() {
        // 1,000 questions, of which 60 and 100 are answered by one alone: the difference is 0.04 ± 1.96 σ.
        let reference: Vec<bool> = (0..1000).map(|i| i < 60 || i >= 160 && i % 2 == 0).collect();
        let model: Vec<bool> = (0..1000).map(|i| (60..160).contains(&i) || i >= 160 && i % 2 == 0).collect();
        let found = paired(&reference, &model, 7);
        assert_eq!((found.only_reference, found.only_model), (60, 100));
        assert!((found.difference - 0.04).abs() < 1e-12);
        let half = 1.96 * ((0.16 - 0.04f64.powi(2)) / 1000.0).sqrt();
        assert!((found.interval[0] - (0.04 - half)).abs() < 0.002, "{:?}", found.interval);
        assert!((found.interval[1] - (0.04 + half)).abs() < 0.002, "{:?}", found.interval);
        assert_eq!(found, paired(&reference, &model, 7));
        assert_ne!(found.interval, paired(&reference, &model, 8).interval);
    }
}
