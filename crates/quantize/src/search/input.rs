//! The format, scale and shifts of a layer's input.
//!
//! With the quantized weight `Ŵ`, the input `X` and its quantized form `X + D`, the output error is
//! `‖D Ŵᵀ‖² + 2 Σ D∘P` and a constant, where `P = (X Ŵᵀ − X Wᵀ) Ŵ`.

use super::{Exactness, Grid, best_indices};
use halfbyte_formats::{Element, InputQuantizer, kernel};
use halfbyte_tensor::{Matrix, Precision, Rows, dot, mirror, product, sum_of_squares};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How the channels' integer shifts are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShiftRule {
    /// No shifts: one exponent bias for the tensor.
    None,
    /// From each channel's largest magnitude, as published.
    Maximum,
    /// The shift with the least error of each channel, weighted by the channel's part in the output.
    Error,
}

/// Tokens, and what their quantization does to the output.
pub struct InputProblem<'a> {
    /// Inputs of a sample of tokens, `[tokens, inputs]`.
    pub x: &'a Matrix,
    /// `P` above, `[tokens, inputs]`; absent where it is zero.
    pub linear: Option<&'a Matrix>,
    /// `Ŵ`, `[outputs, inputs]`.
    pub weight: &'a Matrix,
    /// How much each token's error counts; `None` for all alike.
    pub token_weights: Option<&'a [f32]>,
    /// Largest magnitude of every channel over all tokens.
    pub channel_max: &'a [f32],
    /// Largest shift of [`ShiftRule::Error`].
    pub max_shift: u8,
    /// Values that inputs may have though no token has shown them; `None` to look at tokens alone.
    pub tail: Option<Tail>,
}

/// One more token, which has in every channel its largest magnitude times a factor. Of scales that are good for the tokens
/// there are, it favours those that leave room for others: any one text leaves out most of what a network will see.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tail {
    /// The factor on the largest magnitude of a channel.
    pub factor: f32,
    /// How much its error counts, as [`InputProblem::token_weights`].
    pub weight: f32,
}

impl Tail {
    /// A token that counts as the average of `tokens`, of which the problem has a sample with these weights. Nothing where the
    /// factor is 0.
    pub fn new(factor: f32, sample_weights: Option<&[f32]>, tokens: usize) -> Option<Self> {
        let total: f64 = sample_weights.map_or(tokens as f64, |w| w.iter().map(|w| f64::from(*w)).sum());
        let weight = (total / tokens.max(1) as f64) as f32;
        (factor > 0.0).then_some(Self { factor, weight })
    }
}

impl InputProblem<'_> {
    /// The candidates of one format, unranked.
    pub fn candidates(&self, element: Element, grid: &Grid, rule: ShiftRule) -> Vec<InputQuantizer> {
        let candidates = match rule {
            ShiftRule::None | ShiftRule::Maximum => by_maximum(self, element, grid, rule),
            ShiftRule::Error => by_error(self, &Form::new(self), element, grid),
        };
        candidates.into_iter().map(|c| c.quantizer).collect()
    }
}

/// The best quantizer.
#[derive(Clone, Debug)]
pub struct InputChoice {
    /// The quantizer.
    pub quantizer: InputQuantizer,
    /// Its output error over the sample, up to a constant that all candidates share.
    pub error: f64,
}

/// Finds the best quantizer in any of `elements`; equal ones go to the earlier format and candidate.
pub fn search_input(
    problem: &InputProblem,
    elements: &[Element],
    grid: &Grid,
    rule: ShiftRule,
    exactness: Exactness,
) -> Option<InputChoice> {
    let form = Form::new(problem);
    let mut candidates: Vec<Candidate> = elements
        .iter()
        .flat_map(|&element| match rule {
            ShiftRule::None | ShiftRule::Maximum => by_maximum(problem, element, grid, rule),
            ShiftRule::Error => by_error(problem, &form, element, grid),
        })
        .collect();
    let finalists = match exactness.count(candidates.len()) {
        // As cheap as ranking, and ranking is at its worst here.
        n if n > 1 && problem.weight.rows <= FEW_OUTPUTS => candidates.len(),
        n => n,
    };
    if finalists < candidates.len() {
        let scores: Vec<f64> = candidates
            .par_iter()
            .map(|c| c.score.unwrap_or_else(|| form.diagonal_error(problem, &c.quantizer)))
            .collect();
        let mut keep = best_indices(&scores, finalists);
        if finalists > 1 {
            // The diagonal does not see that channels' errors add up, and its linear term may then favour clipping
            // everything away. The scale of the largest magnitude is always there to compare with.
            let others: Vec<usize> =
                (0..candidates.len()).filter(|i| candidates[*i].unclipped && !keep.contains(i)).collect();
            keep.extend(others);
        }
        candidates = keep.into_iter().map(|i| candidates[i].clone()).collect();
    }
    if let [only] = &candidates[..] {
        return Some(InputChoice {
            quantizer: only.quantizer.clone(),
            error: only.score.unwrap_or_default(),
        });
    }
    let gram = (problem.weight.rows > problem.x.cols).then(|| {
        let inputs = problem.x.cols;
        let mut g = vec![0.0; inputs * inputs];
        halfbyte_tensor::gram(&problem.weight.data, inputs, &mut g, Precision::F32);
        mirror(&mut g, inputs);
        g
    });
    let mut best: Option<InputChoice> = None;
    for candidate in candidates {
        let error = Form::error(problem, gram.as_deref(), &candidate.quantizer);
        if best.as_ref().is_none_or(|b| error < b.error) {
            best = Some(InputChoice { quantizer: candidate.quantizer, error });
        }
    }
    best
}

/// Outputs up to which all candidates are compared by the full error: a classifier's, where channels agree on the output.
const FEW_OUTPUTS: usize = 16;

#[derive(Clone)]
struct Candidate {
    quantizer: InputQuantizer,
    /// The diagonal's error, where it is known already.
    score: Option<f64>,
    /// Whether its scale is the nearest to that of the largest magnitude.
    unclipped: bool,
}

/// The position of the scale that is nearest to `base`, as a ratio.
fn nearest(scales: &[f32], base: f32) -> Option<usize> {
    let distance = |i: &usize| (f64::from(scales[*i]) / f64::from(base)).ln().abs();
    (0..scales.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// The published candidates: multiples of the least channel bias, shifts by the published rule.
fn by_maximum(problem: &InputProblem, element: Element, grid: &Grid, rule: ShiftRule) -> Vec<Candidate> {
    // The least channel bias is that of the largest magnitude.
    let largest = problem.channel_max.iter().copied().fold(0.0f32, f32::max);
    let base = element.scale_from_max(largest);
    let scales: Vec<f32> = grid.factors().into_iter().map(|f| grid.scale(element, f, base)).collect();
    let whole = nearest(&scales, base);
    scales
        .into_iter()
        .enumerate()
        .map(|(i, scale)| {
            let quantizer = match rule {
                ShiftRule::None => InputQuantizer::new(element, scale, Vec::new()),
                _ => InputQuantizer::with_published_shifts(element, scale, problem.channel_max),
            };
            Candidate { quantizer, score: None, unclipped: whole == Some(i) }
        })
        .collect()
}

/// Steps an octave of the lattice of scales on which [`by_error`] measures every channel.
pub(super) const LATTICE: usize = 8;

/// Octaves above the grid's range for a channel that are looked at all the same: of equally good scales the coarsest is
/// taken, because it leaves room for larger values than calibration has seen. Wide formats have many such.
const HEADROOM: usize = 3;

/// Scales at which [`ShiftRule::Error`] measures every channel, for a grid of tensor-wise scales.
pub fn steps_per_channel(grid: &Grid) -> usize {
    (grid_octaves(grid) + HEADROOM) * LATTICE + 1
}

pub(super) fn grid_octaves(grid: &Grid) -> usize {
    f64::from(grid.high / grid.low).log2().ceil().max(1.0) as usize
}

/// Candidates whose shifts have the least error channel by channel. Scales lie on a lattice of eight to the octave, so
/// that a channel's error at tensor scale `s` and shift `k` is the one at scale `s · 2^(−k)`: each is measured once.
fn by_error(problem: &InputProblem, form: &Form, element: Element, grid: &Grid) -> Vec<Candidate> {
    let largest = problem.channel_max.iter().copied().fold(0.0f32, f32::max);
    // The largest channel cannot shift to where there is room.
    let high = problem.tail.map_or(grid.high, |t| grid.high.max(t.factor));
    let top = element.scale_from_max(largest) * high;
    let tensor_steps = grid_octaves(grid) * LATTICE;
    let base = element.scale_from_max(largest);
    let max_shift = usize::from(problem.max_shift);
    let lattice: Vec<f32> = (0..=tensor_steps + max_shift * LATTICE)
        .map(|i| {
            (f64::from(top) * (-(i as f64) / LATTICE as f64).exp2()).max(f64::from(f32::MIN_POSITIVE)) as f32
        })
        .collect();
    let whole = nearest(&lattice[..=tensor_steps], base);
    // errors[j][i]: channel j at lattice scale i. Scales far beyond the grid's range for this channel are left out as long
    // as every tensor scale leaves one within reach of a shift.
    let errors: Vec<Vec<f64>> = (0..problem.x.cols)
        .into_par_iter()
        .map(|j| {
            if problem.channel_max[j] == 0.0 {
                return vec![0.0; lattice.len()];
            }
            let coarsest = element.scale_from_max(problem.channel_max[j]) * grid.high;
            let within = lattice.partition_point(|&s| s > coarsest).min(max_shift * LATTICE);
            let range = within.saturating_sub(HEADROOM * LATTICE)..=within + tensor_steps;
            let error = |(i, &scale): (usize, &f32)| match range.contains(&i) {
                true => form.channel_error(element, scale, j),
                false => f64::INFINITY,
            };
            lattice.iter().enumerate().map(error).collect()
        })
        .collect();
    (0..=tensor_steps)
        .into_par_iter()
        .map(|i| {
            let mut score = 0.0;
            let shifts = errors
                .iter()
                .map(|channel| {
                    let (mut best, mut error) = (0, channel[i]);
                    for k in 1..=max_shift {
                        if channel[i + k * LATTICE] < error {
                            (best, error) = (k, channel[i + k * LATTICE]);
                        }
                    }
                    score += error;
                    best as u8
                })
                .collect();

            let quantizer = InputQuantizer::new(element, lattice[i], shifts);
            Candidate { quantizer, score: Some(score), unclipped: whole == Some(i) }
        })
        .collect()
}

/// What all candidates share.
struct Form {
    /// `X`, a channel a line.
    x: Vec<f32>,
    /// Weight of every token.
    weights: Vec<f32>,
    /// Weight times `P` over the diagonal, a channel a line.
    linear: Option<Vec<f32>>,
    /// Diagonal of `ŴᵀŴ`.
    diagonal: Vec<f32>,
    tokens: usize,
    /// Of every channel the value of the tail and its weight.
    tail: Vec<(f32, f32)>,
}

impl Form {
    fn new(problem: &InputProblem) -> Self {
        let (tokens, inputs) = (problem.x.rows, problem.x.cols);
        let w = problem.weight;
        let mut diagonal = vec![0.0f32; inputs];
        for row in w.data.chunks_exact(inputs) {
            diagonal.iter_mut().zip(row).for_each(|(d, w)| *d += w * w);
        }
        let weights = problem.token_weights.map_or_else(|| vec![1.0; tokens], <[f32]>::to_vec);
        let linear = problem.linear.map(|p| {
            let mut lines = transposed(p);
            lines.par_chunks_mut(tokens.max(1)).zip(&diagonal).for_each(|(line, d)| {
                let inverse = 1.0 / d.max(f32::MIN_POSITIVE);
                line.iter_mut().zip(&weights).for_each(|(p, w)| *p *= w * inverse);
            });
            lines
        });
        let tail = problem.tail.map_or(Vec::new(), |t| {
            problem.channel_max.iter().map(|max| (max * t.factor, t.weight)).collect()
        });
        Self { x: transposed(problem.x), weights, linear, diagonal, tokens, tail }
    }

    /// The error of channel `j` alone at one scale, as the diagonal sees it.
    fn channel_error(&self, element: Element, scale: f32, j: usize) -> f64 {
        let range = j * self.tokens..(j + 1) * self.tokens;
        let x = &self.x[range.clone()];
        let zeros = [0.0f32; 256];
        let error: f64 = match &self.linear {
            Some(p) => kernel::quadratic_error(element, scale, x, &self.weights, &p[range]),
            None => {
                let pieces = x.chunks(256).zip(self.weights.chunks(256));
                pieces.map(|(x, w)| kernel::quadratic_error(element, scale, x, w, &zeros[..x.len()])).sum()
            }
        };
        let beyond = self
            .tail
            .get(j)
            .map_or(0.0, |&(x, weight)| kernel::quadratic_error(element, scale, &[x], &[weight], &[0.0]));
        f64::from(self.diagonal[j]) * (error + beyond)
    }

    fn diagonal_error(&self, problem: &InputProblem, q: &InputQuantizer) -> f64 {
        let shift = |j: usize| q.shifts().get(j).copied().unwrap_or(0);
        let scale = |j: usize| q.scale() * (-f32::from(shift(j))).exp2();
        (0..problem.x.cols).map(|j| self.channel_error(q.element(), scale(j), j)).sum()
    }

    /// The full form, for `gram` = `ŴᵀŴ` where that is smaller than `Ŵ`.
    fn error(problem: &InputProblem, gram: Option<&[f32]>, q: &InputQuantizer) -> f64 {
        let inputs = problem.x.cols;
        let mut d = problem.x.data.clone();
        d.par_chunks_mut(inputs).zip(problem.x.data.par_chunks(inputs)).enumerate().for_each(
            |(t, (d, x))| {
                q.apply(d);
                let factor = problem.token_weights.map_or(1.0, |w| w[t].sqrt());
                d.iter_mut().zip(x).for_each(|(d, x)| *d = (*d - x) * factor);
            },
        );
        let rows = Rows::new(&d, inputs);
        let square = match gram {
            Some(g) => dot(&product(&rows, &Rows::new(g, inputs)).data, &d),
            None => sum_of_squares(&product(&rows, &Rows::new(&problem.weight.data, inputs)).data),
        };
        let cross = |p: &Matrix| match problem.token_weights {
            None => dot(&d, &p.data),
            // D already has the root of the weight once.
            Some(w) => {
                (0..p.rows).map(|t| f64::from(w[t].sqrt()) * dot(&d[t * inputs..][..inputs], p.row(t))).sum()
            }
        };
        square + problem.linear.map_or(0.0, |p| 2.0 * cross(p))
    }
}

fn transposed(m: &Matrix) -> Vec<f32> {
    let mut out = vec![0.0; m.data.len()];
    out.par_chunks_mut(m.rows.max(1) * 16).enumerate().for_each(|(block, out)| {
        for (t, row) in m.data.chunks_exact(m.cols).enumerate() {
            for (i, line) in out.chunks_exact_mut(m.rows).enumerate() {
                line[t] = row[block * 16 + i];
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of `value` in the first of two channels whose tokens are within 1 and within 64.
    fn beyond(value: f32, bits: u8, headroom: f32) -> f32 {
        let wave = |i: usize| ((i * 7919 % 2001) as f32 - 1000.0) / 1000.0;
        let tokens = 512;
        let data = (0..tokens).flat_map(|i| [wave(i), 64.0 * wave(i + 7)]).collect();
        let x = Matrix::new(tokens, 2, data);
        let problem = InputProblem {
            x: &x,
            linear: None,
            weight: &Matrix::new(1, 2, vec![1.0, 1.0]),
            token_weights: None,
            channel_max: &[1.0, 64.0],
            max_shift: 15,
            tail: Tail::new(headroom, None, tokens),
        };
        let grid = Grid { kind: crate::search::GridKind::Maxval, low: 0.03, high: 1.1, steps: 60 };
        // Steps of one size, so that room costs precision.
        let element = Element::Float { exponent: 1, mantissa: bits - 2 };
        let best = search_input(&problem, &[element], &grid, ShiftRule::Error, Exactness::Best(1)).unwrap();
        let mut row = [value, 0.0];
        best.quantizer.apply(&mut row);
        row[0]
    }

    #[test]
    fn headroom_keeps_values_that_no_token_has_where_bits_suffice() {
        // With 8 bits a value of twice the largest magnitude costs nothing worth clipping it for.
        assert!(beyond(2.0, 8, 0.0) < 1.5);
        assert!((beyond(2.0, 8, 2.0) - 2.0).abs() < 0.05);
        // With 4 bits all tokens together lose more than the one.
        assert!(beyond(2.0, 4, 2.0) < 1.5);
    }

    #[test]
    fn the_tail_counts_as_an_average_token() {
        assert_eq!(Tail::new(0.0, None, 10), None);
        assert_eq!(Tail::new(2.0, None, 10), Some(Tail { factor: 2.0, weight: 1.0 }));
        // Two drawn tokens that stand for three and one.
        assert_eq!(Tail::new(2.0, Some(&[3.0, 1.0]), 4), Some(Tail { factor: 2.0, weight: 1.0 }));
    }
}
