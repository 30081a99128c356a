use halfbyte_formats::Element;
use serde::{Deserialize, Serialize};

/// What the candidates of a search are multiples of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GridKind {
    /// Multiples of the initial exponent bias, as published. Poor where that bias is near zero.
    Bias,
    /// Multiples of the largest value, evenly spaced in their logarithm.
    Maxval,
}

/// The candidates of a search, relative to the value that MinMax would take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// What is multiplied.
    pub kind: GridKind,
    /// Smallest factor.
    pub low: f32,
    /// Largest factor (for [`GridKind::Bias`] one step beyond the last, as published).
    pub high: f32,
    /// Number of candidates.
    pub steps: usize,
}

impl Grid {
    /// The published one: 100 multiples of the exponent bias, from 0.01 in steps of 0.0119.
    pub const PUBLISHED: Self = Self { kind: GridKind::Bias, low: 0.01, high: 1.2, steps: 100 };

    /// The factors, in the order in which candidates are tried.
    pub fn factors(&self) -> Vec<f32> {
        let n = self.steps;
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let factor = |i: usize| match self.kind {
            GridKind::Bias => low + i as f64 * (high - low) / n as f64,
            GridKind::Maxval => high * (low / high).powf(i as f64 / (n.max(2) - 1) as f64),
        };
        (0..n).map(|i| factor(i) as f32).collect()
    }

    /// The scale of one candidate, where MinMax would take `scale`.
    pub fn scale(&self, element: Element, factor: f32, scale: f32) -> f32 {
        match self.kind {
            GridKind::Bias => element.scale_of_bias(factor * element.bias_of_scale(scale)),
            GridKind::Maxval => (factor * scale).max(f32::MIN_POSITIVE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_grid_multiplies_the_bias() {
        let factors = Grid::PUBLISHED.factors();
        assert_eq!((factors.len(), factors[0]), (100, 0.01));
        assert!((factors[99] - 1.1881).abs() < 1e-6);
        let scale = Element::E2M1.scale_of_bias(4.0);
        assert_eq!(Grid::PUBLISHED.scale(Element::E2M1, 0.5, scale), Element::E2M1.scale_of_bias(2.0));
    }

    #[test]
    fn the_maxval_grid_goes_from_high_to_low_in_even_ratios() {
        let grid = Grid { kind: GridKind::Maxval, low: 0.25, high: 1.0, steps: 3 };
        assert_eq!(grid.factors(), [1.0, 0.5, 0.25]);
        assert_eq!(grid.scale(Element::E2M1, 0.5, 3.0), 1.5);
    }
}
