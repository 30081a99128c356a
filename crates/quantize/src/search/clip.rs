//! Clip search: the f32 scales of a fixed scheme, by the error of rounding to nearest instead of the largest magnitude.

use super::Grid;
use halfbyte_formats::{Granularity, Scheme, kernel};
use rayon::prelude::*;

/// For every share of `weight` `[rows, cols]` that has one scale (a group, a row, or all), the scale for which `Σ counts_j e_j²` is
/// least, `e` being the error of rounding to nearest: MinMax's or one of the grid's multiples of it. `counts` are weights of the
/// columns, or empty for all alike.
pub(crate) fn clipped_scales(
    weight: &[f32],
    cols: usize,
    scheme: Scheme,
    grid: &Grid,
    counts: &[f32],
) -> Vec<f32> {
    let element = scheme.element;
    let (ones, zeros) = (vec![1.0; if counts.is_empty() { cols } else { 0 }], vec![0.0; cols]);
    let counts = if counts.is_empty() { &ones } else { counts };
    let factors = grid.factors();
    let best = |base: f32, error: &dyn Fn(f32) -> f64| {
        let tried = factors.iter().map(|&f| grid.scale(element, f, base)).map(|s| (error(s), s));
        tried.fold((error(base), base), |a, b| if b.0 < a.0 { b } else { a }).1
    };
    let group = match scheme.granularity {
        Granularity::Tensor => {
            let base = element.scale_from_max(kernel::max_abs(weight));
            let error = |scale: f32| {
                let rows = weight.par_chunks(cols.max(1));
                let errors: Vec<f64> =
                    rows.map(|row| kernel::quadratic_error(element, scale, row, counts, &zeros)).collect();
                errors.into_iter().sum()
            };
            return vec![best(base, &error)];
        }
        Granularity::Channel => cols,
        Granularity::Group(group) => group,
    };
    let share = |(i, values): (usize, &[f32])| {
        let from = i * group % cols.max(1);
        let (counts, zeros) = (&counts[from..from + values.len()], &zeros[..values.len()]);
        let base = element.scale_from_max(kernel::max_abs(values));
        best(base, &|scale| kernel::quadratic_error(element, scale, values, counts, zeros))
    };
    weight.par_chunks(group.max(1)).enumerate().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_tensor::mix;

    /// Rows of ordinary values with an outlier in each.
    fn weight() -> Vec<f32> {
        let value = |i: usize| (mix(i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (0..8 * 64).map(|i| if i % 64 == 9 { 4.0 } else { value(i) }).collect()
    }

    fn error(scheme: Scheme, scales: &[f32], counts: &[f32]) -> f64 {
        let x = weight();
        let share = x.len() / scales.len();
        let of = |(i, values): (usize, &[f32])| {
            let from = i * share % 64;
            let weights: Vec<f32> = (0..values.len()).map(|j| counts[(from + j) % 64]).collect();
            kernel::quadratic_error(scheme.element, scales[i], values, &weights, &vec![0.0; values.len()])
        };
        x.chunks(share).enumerate().map(of).sum()
    }

    #[test]
    fn clipping_outliers_lowers_the_error_in_every_granularity() {
        let grid = crate::Recipe::default().weight_grid;
        let ones = vec![1.0; 64];
        // Whoever counts the outlier's column for everything does not clip it.
        let outlier: Vec<f32> = (0..64).map(|j| if j == 9 { 1e6 } else { 1e-6 }).collect();
        for text in ["int4/tensor", "int4/channel", "int4/group32", "e2m1/channel", "e2m1/group16"] {
            let scheme: Scheme = text.parse().unwrap();
            let (absmax, _) = scheme.max_scales("w", &weight(), 8, 64).unwrap();
            let clipped = clipped_scales(&weight(), 64, scheme, &grid, &[]);
            assert_eq!(clipped.len(), absmax.len(), "{text}");
            let (a, b) = (error(scheme, &clipped, &ones), error(scheme, &absmax, &ones));
            assert!(a < 0.95 * b, "{text}: {a} {b}");
            assert_eq!(clipped, clipped_scales(&weight(), 64, scheme, &grid, &ones), "{text}");
            let weighted = clipped_scales(&weight(), 64, scheme, &grid, &outlier);
            assert!(error(scheme, &weighted, &outlier) <= error(scheme, &clipped, &outlier), "{text}");
        }
    }
}
