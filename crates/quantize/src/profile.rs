//! What the report draws of a layer besides what was chosen for it: the ranges of its input, the distribution of its weight.

use halfbyte_formats::{Granularity, QuantizedMatrix, pack};
use rayon::prelude::*;

/// The distributions of one layer, taken while its full-precision weight and its inputs are in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Largest magnitude of every input channel over the calibration tokens, to 4 significant digits; empty where there
    /// is no input, as for the embedding.
    pub channel_max: Vec<f32>,
    /// The full-precision weight against its grid, see [`weight_histogram`]; empty if weights are left alone.
    pub weight_histogram: Vec<u64>,
}

/// Bins of a weight histogram for each unit, the largest value that a scale can represent. With 24 all boundaries between
/// the codes of E2M1 are boundaries of bins.
pub const BINS_PER_UNIT: usize = 24;
/// The histogram reaches from −1.5 to 1.5 units; what lies beyond is counted in its first and last bin.
pub const HISTOGRAM_BINS: usize = 3 * BINS_PER_UNIT + 2;

/// Counts of the values of `full`, each divided by the largest value that `stored` can represent with the scale it has
/// there: [`HISTOGRAM_BINS`] of them, all but the outer two 1/[`BINS_PER_UNIT`] wide.
///
/// # Panics
/// If `full` has not the shape of `stored`.
pub fn weight_histogram(stored: &QuantizedMatrix, full: &[f32]) -> Vec<u64> {
    assert_eq!(full.len(), stored.rows * stored.cols, "values of {}", stored.name);
    let middle = (HISTOGRAM_BINS / 2) as f32;
    let largest = stored.scheme.element.max_value() * stored.tensor_scale;
    let counted = |mut bins: Vec<u64>, (r, row): (usize, &[f32])| {
        let (scales, width) = match stored.scheme.granularity {
            Granularity::Tensor => (&stored.scales[..], row.len()),
            Granularity::Channel => (&stored.scales[r..=r], row.len()),
            Granularity::Group(n) => (&stored.scales[r * (row.len() / n)..][..row.len() / n], n),
        };
        for (values, scale) in row.chunks(width).zip(scales) {
            let factor = BINS_PER_UNIT as f32 / (scale * largest);
            for value in values {
                // Beyond the ends, infinite quotients included, a cast saturates.
                let bin = (value * factor).floor() + middle;
                bins[(bin as usize).min(HISTOGRAM_BINS - 1)] += 1;
            }
        }
        bins
    };
    full.par_chunks(stored.cols.max(1))
        .enumerate()
        .fold(|| vec![0; HISTOGRAM_BINS], counted)
        .reduce(|| vec![0; HISTOGRAM_BINS], added)
}

/// How often each code occurs, by code: `2^bits` counts.
pub fn code_counts(stored: &QuantizedMatrix) -> Vec<u64> {
    let bits = stored.scheme.element.bits();
    let counted = |mut counts: Vec<u64>, packed: &[u8]| {
        let mut codes = vec![0; stored.cols];
        pack::unpack(bits, packed, stored.cols, &mut codes);
        codes.iter().for_each(|&code| counts[usize::from(code)] += 1);
        counts
    };
    let none = || vec![0; 1 << bits];
    stored.codes.par_chunks(stored.row_bytes().max(1)).fold(none, counted).reduce(none, added)
}

fn added(mut a: Vec<u64>, b: Vec<u64>) -> Vec<u64> {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    a
}

/// Rounded to 4 significant decimal digits, which keeps the report's file short.
pub(crate) fn short(value: f32) -> f32 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_formats::{Element, Scheme};

    #[test]
    fn values_are_counted_in_units_of_the_largest_representable() {
        // Scales 1 and 2: the units are 6 and 12.
        let scheme = Scheme::new(Element::E2M1, Granularity::Channel);
        let full = [0.0, 6.0, -6.0, 100.0, 0.0, 12.0, -100.0, -0.1];
        let stored =
            QuantizedMatrix::quantize_with_scales("w", &full, 2, 4, scheme, vec![1.0, 2.0], 1.0).unwrap();
        let bins = weight_histogram(&stored, &full);
        assert_eq!((bins.len(), bins.iter().sum::<u64>()), (HISTOGRAM_BINS, 8));
        let zero = HISTOGRAM_BINS / 2;
        let found =
            [bins[0], bins[zero - 24], bins[zero - 1], bins[zero], bins[zero + 24], bins[2 * zero - 1]];
        assert_eq!(found, [1, 1, 1, 2, 2, 1]);
    }

    #[test]
    fn groups_have_units_of_their_own() {
        let scheme = Scheme::new(Element::E2M1, Granularity::Group(2));
        let full = [6.0, 0.0, 0.6, 0.0];
        let stored =
            QuantizedMatrix::quantize_with_scales("w", &full, 1, 4, scheme, vec![1.0, 0.1], 1.0).unwrap();
        assert_eq!(weight_histogram(&stored, &full)[HISTOGRAM_BINS / 2 + 24], 2);
    }

    #[test]
    fn codes_are_counted_by_code() {
        let scheme = Scheme::new(Element::E2M1, Granularity::Tensor);
        let full = [6.0, -6.0, 0.1, 0.5, 0.5, -100.0];
        let stored = QuantizedMatrix::quantize_with_scales("w", &full, 2, 3, scheme, vec![1.0], 1.0).unwrap();
        let mut wanted = vec![0; 16];
        (wanted[7], wanted[15], wanted[0], wanted[1]) = (1, 2, 1, 2);
        assert_eq!(code_counts(&stored), wanted);
    }

    #[test]
    fn four_digits_are_kept() {
        assert_eq!((short(1.234_567), short(0.0), short(98_765.4)), (1.235, 0.0, 98_770.0));
    }
}
