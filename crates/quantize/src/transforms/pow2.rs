//! Power-of-two channel scales: the pre-shifted exponent bias of LLM-FP4 (arXiv 2310.16836, section 4) for formats that have no
//! place for it, folded into what makes the inputs. Nothing is rounded by it.
//!
//! A block shares one scale, so that its largest channel costs the others their precision. Exponents begin as the rounded
//! factors of SmoothQuant and are then changed one channel at a time by one, as long as that lowers the error of the blocks
//! concerned: `Σ_j |δX_j|² |W_j|² + |δW_j|² |X_j|²`, where δ is what rounding a block of inputs or weights does to channel j.

use super::assumed::block_quantizer;
use super::fold::{Change, Joint};
use super::smooth_quant::factors;
use super::trial::{Group, Trial};
use crate::QuantizeError;
use halfbyte_formats::{BlockQuantizer, ScaleFormat, Scheme, kernel};
use halfbyte_tensor::Matrix;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Exponents of α that are rounded to begin with: 0, 1/8 … 1.
const ALPHAS: usize = 8;
/// Rows of inputs and of weights that blocks are rounded for.
const ROWS: usize = 256;
/// Rounds over all channels.
const ROUNDS: usize = 3;
/// Largest exponent, either way.
const MOST: i32 = 12;

pub(super) fn choose(trial: &Trial) -> Result<Change, QuantizeError> {
    let (x, w) = (trial.largest(), trial.weight_largest());
    let candidates = (0..=ALPHAS).map(|i| {
        let s = factors(&x, &w, i as f32 / ALPHAS as f32);
        exponents_of(&s).iter().map(|e| exp2(*e)).collect()
    });
    let start = trial.best(candidates.map(Change::scale))?;
    let Some(blocks) = Blocks::new(&trial.groups, &trial.survey.sample, trial.joint)? else {
        return Ok(start);
    };
    let refined = blocks.refine(exponents_of(&start.factors));
    let refined = Change::scale(refined.iter().map(|e| exp2(*e)).collect());
    match trial.error(&refined)? < trial.error(&start)? {
        true => Ok(refined),
        false => Ok(start),
    }
}

/// The nearest exponents, counted from the one that most channels are near: a factor on all of them changes nothing.
fn exponents_of(factors: &[f32]) -> Vec<i32> {
    let mut logs: Vec<f32> = factors.iter().map(|s| s.log2()).collect();
    let own = logs.clone();
    logs.sort_by(f32::total_cmp);
    let middle = logs.get(logs.len() / 2).map_or(0.0, |m| m.round());
    own.iter().map(|l| ((l - middle).round() as i32).clamp(-MOST, MOST)).collect()
}

fn exp2(exponent: i32) -> f32 {
    (exponent as f32).exp2()
}

/// Some rows of inputs and weights, rounded block by block.
struct Blocks<'a> {
    joint: &'a Joint,
    /// Those of inputs and weights that are to have blocks.
    sides: Vec<Side>,
    /// Channels of the tap for every channel of the producer.
    taps: Vec<Vec<usize>>,
}

/// Inputs or weights.
struct Side {
    rows: usize,
    /// `[rows, channels]`
    values: Matrix,
    quantizer: BlockQuantizer,
    /// Whether the channels are divided by the factors, as those of inputs are.
    divided: bool,
    /// What a squared error counts, for each channel.
    counts: Vec<f32>,
}

impl<'a> Blocks<'a> {
    /// `None` where neither inputs nor weights are to have blocks.
    fn new(groups: &[Group], sample: &Matrix, joint: &'a Joint) -> Result<Option<Self>, QuantizeError> {
        let channels = sample.cols;
        let energy = |m: &Matrix| {
            let mut sums = vec![0.0f32; channels];
            m.data.chunks_exact(channels).for_each(|row| {
                sums.iter_mut().zip(row).for_each(|(s, v)| *s += v * v);
            });
            sums
        };
        let mut sides = Vec::new();
        let plain = |s: Scheme| s.scale == ScaleFormat::F32;
        for group in groups {
            let x = some_rows(&[sample]);
            let w = some_rows(&group.weights.iter().collect::<Vec<_>>());
            let (x_counts, w_counts) = (energy(&w), energy(&x));
            for (scheme, values, divided, counts) in
                [(group.assumed.input, x, true, x_counts), (group.assumed.weight, w, false, w_counts)]
            {
                let Some(scheme) = scheme.filter(|s| !plain(*s)) else { continue };
                let quantizer = block_quantizer(scheme, kernel::max_abs(&values.data))?;
                sides.push(Side { rows: values.rows, values, quantizer, divided, counts });
            }
        }
        let mut taps = vec![Vec::new(); joint.channels];
        (0..channels).for_each(|c| taps[joint.source(c)].push(c));
        Ok((!sides.is_empty()).then_some(Self { joint, sides, taps }))
    }

    /// Exponents at which no single step of one channel lowers the error any more, or those of the last round.
    fn refine(&self, mut exponents: Vec<i32>) -> Vec<i32> {
        let all = self.joint.spread(&exponents.iter().map(|e| *e as f32).collect::<Vec<_>>());
        let spread: Vec<i32> = all.iter().map(|e| *e as i32).collect();
        // What shares no block has no influence on each other, so that threads change nothing.
        let sets = apart(&self.taps, spread.len());
        let found: Vec<Vec<(usize, i32)>> =
            sets.into_par_iter().map(|set| self.refine_set(&set, &exponents, spread.clone())).collect();
        found.into_iter().flatten().for_each(|(channel, exponent)| exponents[channel] = exponent);
        exponents
    }

    /// The exponents of these channels of the producer; `spread` has those of all channels of the tap.
    fn refine_set(&self, channels: &[usize], exponents: &[i32], mut spread: Vec<i32>) -> Vec<(usize, i32)> {
        let mut found: Vec<(usize, i32)> = channels.iter().map(|&c| (c, exponents[c])).collect();
        for _ in 0..ROUNDS {
            let mut moved = false;
            for (channel, exponent) in &mut found {
                let mut error = self.error(*channel, &spread);
                let before = *exponent;
                for step in [1, -1] {
                    while (*exponent + step).abs() <= MOST {
                        self.taps[*channel].iter().for_each(|&c| spread[c] += step);
                        let next = self.error(*channel, &spread);
                        if next >= error {
                            self.taps[*channel].iter().for_each(|&c| spread[c] -= step);
                            break;
                        }
                        (error, *exponent) = (next, *exponent + step);
                    }
                    // What was better one way is not better the other.
                    if *exponent != before {
                        break;
                    }
                }
                moved |= *exponent != before;
            }
            if !moved {
                break;
            }
        }
        found
    }

    /// The error of the blocks in which this channel of the producer is.
    fn error(&self, channel: usize, exponents: &[i32]) -> f64 {
        self.sides
            .iter()
            .map(|side| {
                let mut blocks: Vec<usize> =
                    self.taps[channel].iter().map(|c| c / side.quantizer.size()).collect();
                blocks.dedup();
                blocks.into_iter().map(|b| side.error(b, exponents)).sum::<f64>()
            })
            .sum()
    }
}

impl Side {
    fn error(&self, block: usize, exponents: &[i32]) -> f64 {
        let n = self.quantizer.size();
        let range = block * n..(block + 1) * n;
        let sign = if self.divided { -1 } else { 1 };
        let mut factors = [0.0f32; 32];
        let mut counts = [0.0f32; 32];
        for (i, c) in range.clone().enumerate() {
            factors[i] = exp2(sign * exponents[c]);
            counts[i] = self.counts[c] / (factors[i] * factors[i]);
        }
        let mut total = 0.0;
        let mut scaled = [0.0f32; 32];
        let mut rounded = [0.0f32; 32];
        for row in 0..self.rows {
            let values = &self.values.row(row)[range.clone()];
            for i in 0..n {
                scaled[i] = values[i] * factors[i];
            }
            rounded[..n].copy_from_slice(&scaled[..n]);
            self.quantizer.apply(&mut rounded[..n]);
            let mut sum = 0.0f32;
            for i in 0..n {
                let difference = rounded[i] - scaled[i];
                sum += difference * difference * counts[i];
            }
            total += f64::from(sum);
        }
        total
    }
}

/// Channels of the producer in sets that share no block with each other: those whose channels of the tap, `taps` for each of
/// them and `channels` in all, are in the same or linked stretches of the largest block's length.
fn apart(taps: &[Vec<usize>], channels: usize) -> Vec<Vec<usize>> {
    const STRETCH: usize = 32;
    let mut set: Vec<usize> = (0..channels.div_ceil(STRETCH)).collect();
    for taps in taps {
        let Some(first) = taps.first().map(|c| set[c / STRETCH]) else { continue };
        for other in taps.iter().map(|c| set[c / STRETCH]).collect::<Vec<_>>() {
            set.iter_mut().filter(|s| **s == other).for_each(|s| *s = first);
        }
    }
    let mut sets = BTreeMap::<usize, Vec<usize>>::new();
    for (channel, taps) in taps.iter().enumerate() {
        if let Some(&c) = taps.first() {
            sets.entry(set[c / STRETCH]).or_default().push(channel);
        }
    }
    sets.into_values().collect()
}

/// About [`ROWS`] evenly spaced rows of matrices one below the other.
fn some_rows(matrices: &[&Matrix]) -> Matrix {
    let all: usize = matrices.iter().map(|m| m.rows).sum();
    let cols = matrices.first().map_or(0, |m| m.cols);
    let step = all.div_ceil(ROWS).max(1);
    let rows = matrices.iter().flat_map(|m| m.data.chunks_exact(cols));
    let data: Vec<f32> = rows.step_by(step).flatten().copied().collect();
    Matrix::new(data.len() / cols.max(1), cols, data)
}

#[cfg(test)]
mod tests {
    use super::super::assumed::Assumed;
    use super::*;
    use halfbyte_tensor::mix;

    #[test]
    fn channels_that_share_no_block_are_apart() {
        let own: Vec<Vec<usize>> = (0..80).map(|c| vec![c]).collect();
        assert_eq!(apart(&own, 80), [(0..32).collect::<Vec<_>>(), (32..64).collect(), (64..80).collect()]);
        // Two value heads of 64 channels, each read by two query heads: stretches of both query heads are linked.
        let shared: Vec<Vec<usize>> =
            (0..128).map(|c| (0..2).map(|h| c / 64 * 128 + h * 64 + c % 64).collect()).collect();
        let stretches: Vec<Vec<usize>> = (0..4).map(|s| (32 * s..32 * (s + 1)).collect()).collect();
        assert_eq!(apart(&shared, 256), stretches);
        // Heads shorter than a stretch link what is beside them.
        let short: Vec<Vec<usize>> =
            (0..32).map(|c| (0..4).map(|h| c / 16 * 64 + h * 16 + c % 16).collect()).collect();
        assert_eq!(apart(&short, 128), [(0..16).collect::<Vec<_>>(), (16..32).collect()]);
    }

    /// Channels of inputs and weights that differ by powers of four within every block, read from a norm and from value heads that
    /// query heads share.
    #[test]
    fn refining_lowers_the_error_of_the_blocks() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../halfbyte/assets/stories260K");
        let spec = halfbyte_model::Model::open(&dir).unwrap().block(0).unwrap().spec;
        let random = |rows: usize, seed: u64, steps: usize| {
            let value = |i: usize| {
                let unit = (mix(seed << 32 ^ i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                unit * exp2(((i % 64) * steps % 5) as i32)
            };
            Matrix::new(rows, 64, (0..rows * 64).map(value).collect())
        };
        for (scheme, tap) in [(Scheme::NVFP4, 0), (Scheme::NVFP4, 1), (Scheme::MXFP4, 0), (Scheme::MXFP4, 1)]
        {
            let joint = Joint::of(&spec, tap, false).unwrap();
            let input = Some(Scheme { dynamic: true, ..scheme });
            let group =
                Group::alike(Assumed { weight: Some(scheme), input, clip: false }, vec![random(48, 1, 3)]);
            let blocks = Blocks::new(&[group], &random(100, 2, 2), &joint).unwrap().unwrap();
            let error = |exponents: &[i32]| {
                let all = joint.spread(&exponents.iter().map(|e| *e as f32).collect::<Vec<_>>());
                let all: Vec<i32> = all.iter().map(|e| *e as i32).collect();
                let of =
                    |side: &Side| (0..64 / side.quantizer.size()).map(|b| side.error(b, &all)).sum::<f64>();
                blocks.sides.iter().map(of).sum::<f64>()
            };
            let start = vec![0; joint.channels];
            let refined = blocks.refine(start.clone());
            let (before, after) = (error(&start), error(&refined));
            assert!(after < 0.9 * before, "{scheme} {tap}: {after} {before}");
            // Nothing is left that a single step would better, or only what another round would find.
            let worse = (0..joint.channels).flat_map(|c| [(c, 1), (c, -1)]).filter(|&(c, step)| {
                let mut moved = refined.clone();
                moved[c] += step;
                error(&moved) >= after
            });
            assert!(worse.count() >= 2 * joint.channels * 9 / 10, "{scheme} {tap}");
        }
    }

    #[test]
    fn exponents_are_counted_from_the_middle() {
        assert_eq!(exponents_of(&[8.0, 8.0, 64.0, 1.0, 9.0]), [0, 0, 3, -3, 0]);
        assert_eq!(exponents_of(&[1e30, 1.0, 1.0]), [MOST, 0, 0]);
    }
}
