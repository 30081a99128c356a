//! The format and scale of attention's probabilities.
//!
//! They are far too many to be kept: each head has a histogram of fine logarithmic bins, which is all that the squared error
//! of a candidate needs. Counts are whole numbers, so that the order in which threads add to them does not matter.

use super::Grid;
use super::input::{LATTICE, grid_octaves};
use crate::recipe::ProbabilityScale;
use halfbyte_formats::{Element, ProbabilityQuantizer, kernel};
use rayon::prelude::*;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bits of the mantissa by which numbers are told apart: a bin is at most 0.2 % wide.
const MANTISSA: u32 = 9;
/// What is below 2^−30 is counted with that.
const LEAST: u32 = (127 - 30) << MANTISSA;
const BINS: usize = (30 << MANTISSA) + 1;
/// Bytes of the histogram of one head.
pub const HISTOGRAM_BYTES: u64 = 8 * BINS as u64;
/// What a row counts whose largest probability is 1, where rows count by that.
const UNIT: f32 = (1u64 << 30) as f32;

/// Histograms of the probabilities of every head.
pub struct ProbabilityHistogram {
    scale: ProbabilityScale,
    /// Counts, [`BINS`] for each head.
    counts: Vec<AtomicU64>,
    /// Bits of the largest probability of each head.
    largest: Vec<AtomicU32>,
}

impl ProbabilityHistogram {
    /// Without any counts. Rows that get a scale of their own are counted in units of their largest probability, by the
    /// square of that.
    pub fn new(heads: usize, scale: ProbabilityScale) -> Self {
        let counts = (0..heads * BINS).map(|_| AtomicU64::new(0)).collect();
        Self { scale, counts, largest: (0..heads).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Counts one row of head `head`.
    pub fn add(&self, head: usize, row: &[f32]) {
        let max = kernel::max_abs(row);
        self.largest[head].fetch_max(max.to_bits(), Ordering::Relaxed);
        let (factor, count) = match self.scale {
            ProbabilityScale::Row if max > 0.0 => (1.0 / max, ((max * max * UNIT) as u64).max(1)),
            _ => (1.0, 1),
        };
        let counts = &self.counts[head * BINS..][..BINS];
        for &p in row.iter().filter(|&&p| p > 0.0) {
            let place = ((p * factor).to_bits() >> (23 - MANTISSA)).saturating_sub(LEAST) as usize;
            counts[place.min(BINS - 1)].fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Middles of the bins that are not empty and their counts, for every head.
    fn lists(&self) -> Vec<(Vec<f32>, Vec<f32>)> {
        let half = 1 << (22 - MANTISSA);
        let middle = |bin: usize| match bin {
            last if last == BINS - 1 => 1.0,
            bin => f32::from_bits(((bin as u32 + LEAST) << (23 - MANTISSA)) + half),
        };
        let counts =
            |head: usize| self.counts[head * BINS..][..BINS].iter().map(|c| c.load(Ordering::Relaxed));
        let list = |head| {
            counts(head).enumerate().filter(|c| c.1 > 0).map(|(bin, n)| (middle(bin), n as f32)).unzip()
        };
        (0..self.largest.len()).map(list).collect()
    }

    /// The largest probability of all.
    fn largest(&self) -> f32 {
        let bits = self.largest.iter().map(|l| l.load(Ordering::Relaxed)).max().unwrap_or(0);
        f32::from_bits(bits)
    }

    /// The quantizer of least squared error in any of `elements`, the error of head `h` counting `weights[h]` times; `grid`
    /// has the scales, `max_shift` bounds the shifts of heads. Equal ones go to the earlier format and candidate.
    pub fn search(
        &self,
        elements: &[Element],
        grid: &Grid,
        max_shift: u8,
        weights: &[f64],
    ) -> Option<ProbabilityQuantizer> {
        let lists = self.lists();
        let head_error = |head: usize, element: Element, scale: f32| {
            let (values, counts) = &lists[head];
            weights[head] * kernel::quadratic_error(element, scale, values, counts, &vec![0.0; values.len()])
        };
        let candidates: Vec<(f64, ProbabilityQuantizer)> = elements
            .iter()
            .flat_map(|&element| match self.scale {
                ProbabilityScale::Row => {
                    let scale = element.scale_from_max(1.0);
                    let error = (0..lists.len()).map(|h| head_error(h, element, scale)).sum();
                    vec![(error, ProbabilityQuantizer::dynamic(element))]
                }
                ProbabilityScale::Tensor => {
                    let base = element.scale_from_max(self.largest());
                    let scales: Vec<f32> =
                        grid.factors().iter().map(|&f| grid.scale(element, f, base)).collect();
                    let error = |scale: f32| (0..lists.len()).map(|h| head_error(h, element, scale)).sum();
                    let of =
                        |&scale: &f32| (error(scale), ProbabilityQuantizer::new(element, scale, Vec::new()));
                    scales.par_iter().map(of).collect()
                }
                ProbabilityScale::Head => {
                    let top = f64::from(element.scale_from_max(self.largest()) * grid.high);
                    let (steps, reach) = (grid_octaves(grid) * LATTICE, usize::from(max_shift) * LATTICE);
                    let scale = |i: usize| (top * (-(i as f64) / LATTICE as f64).exp2()) as f32;
                    let errors: Vec<Vec<f64>> = (0..lists.len())
                        .map(|h| {
                            let all = (0..=steps + reach).into_par_iter();
                            all.map(|i| head_error(h, element, scale(i))).collect()
                        })
                        .collect();
                    let with_shifts = |i: usize| {
                        let mut total = 0.0;
                        let shifts = errors.iter().map(|head| {
                            let at = |k: usize| head[i + k * LATTICE];
                            let best = (0..=usize::from(max_shift))
                                .fold(0, |b, k| if at(k) < at(b) { k } else { b });
                            total += at(best);
                            best as u8
                        });
                        let shifts = shifts.collect();
                        (total, ProbabilityQuantizer::new(element, scale(i), shifts))
                    };
                    (0..=steps).map(with_shifts).collect()
                }
            })
            .collect();
        candidates.into_iter().reduce(|a, b| if b.0 < a.0 { b } else { a }).map(|best| best.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::GridKind;

    const ONE: Grid = Grid { kind: GridKind::Maxval, low: 1.0, high: 1.0, steps: 1 };
    const MANY: Grid = Grid { kind: GridKind::Maxval, low: 0.1, high: 1.0, steps: 40 };

    fn histogram(scale: ProbabilityScale, rows: &[(usize, &[f32])]) -> ProbabilityHistogram {
        let histogram = ProbabilityHistogram::new(2, scale);
        rows.iter().for_each(|(head, row)| histogram.add(*head, row));
        histogram
    }

    #[test]
    fn minmax_maps_the_largest_to_the_last_code() {
        let rows: [(usize, &[f32]); 2] = [(0, &[0.5, 0.3, 0.2]), (1, &[0.75, 0.25])];
        let uint4 = Element::UnsignedInt { bits: 4 };
        let q = histogram(ProbabilityScale::Tensor, &rows).search(&[uint4], &ONE, 0, &[1.0; 2]).unwrap();
        assert_eq!(q, ProbabilityQuantizer::new(uint4, 0.05, Vec::new()));
    }

    #[test]
    fn the_chosen_one_has_the_least_error_of_all() {
        // One sharp head, one that spreads.
        let sharp = [0.9, 0.06, 0.03, 0.01];
        let even: Vec<f32> = (0..64).map(|i| (1.0 + (i % 5) as f32 / 3.0) / 108.0).collect();
        let rows: [(usize, &[f32]); 2] = [(0, &sharp), (1, &even)];
        let elements = Element::searched_unsigned(4);
        let error = |q: &ProbabilityQuantizer| {
            let of = |(head, row): &(usize, &[f32])| {
                let mut seen = row.to_vec();
                q.apply(*head, &mut seen);
                seen.iter().zip(*row).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
            };
            rows.iter().map(of).sum::<f64>()
        };
        let found = |scale, elements: &[Element]| {
            histogram(scale, &rows).search(elements, &MANY, 7, &[1.0; 2]).unwrap()
        };
        let tensor = found(ProbabilityScale::Tensor, &elements);
        for &element in &elements {
            for factor in MANY.factors() {
                let scale = MANY.scale(element, factor, element.scale_from_max(0.9));
                let other = ProbabilityQuantizer::new(element, scale, Vec::new());
                assert!(error(&tensor) <= error(&other) * 1.01, "{tensor:?} {other:?}");
            }
        }
        assert!(error(&found(ProbabilityScale::Head, &elements)) <= error(&tensor) * 1.01);
        assert!(error(&found(ProbabilityScale::Row, &elements)) < error(&tensor));

        // On an even grid the numbers of the second head are zeros beside those of the first.
        let even = [Element::UnsignedInt { bits: 4 }];
        let tensor = error(&found(ProbabilityScale::Tensor, &even));
        let head = found(ProbabilityScale::Head, &even);
        assert!(head.shifts()[0] < head.shifts()[1], "{head:?}");
        assert!(error(&head) < tensor / 2.0 && error(&found(ProbabilityScale::Row, &even)) < tensor / 2.0);
    }
}
