//! The scale of every row of a weight, in every candidate format.
//!
//! With the layer's input `X̂`, a row `w` and its quantized form `w + e`, the output error is
//! `eᵀ G e + 2 eᵀ c` and a constant, where `G = X̂ᵀX̂` and `c = X̂ᵀ(X̂ w − X w)`: no candidate needs the tokens.

use super::{Exactness, Grid, best_indices};
use halfbyte_formats::{Element, kernel};
use halfbyte_tensor::{Matrix, Rows, dot, product};
use rayon::prelude::*;

/// Rows of one weight and the quadratic form of their output error.
pub struct WeightProblem<'a> {
    /// `[rows, inputs]`.
    pub weight: &'a [f32],
    /// Length of a row.
    pub inputs: usize,
    /// `X̂ᵀX̂`, `[inputs, inputs]`.
    pub gram: &'a [f32],
    /// `X̂ᵀ(X̂ w − X w)` for every row, `[rows, inputs]`; absent where it is zero.
    pub linear: Option<&'a Matrix>,
}

/// The best scale of every row in one format.
#[derive(Clone, Debug)]
pub struct RowChoice {
    /// The format.
    pub element: Element,
    /// One scale a row.
    pub scales: Vec<f32>,
    /// Output error of every row, up to the same constant in all formats.
    pub errors: Vec<f64>,
}

impl WeightProblem<'_> {
    fn row(&self, r: usize) -> &[f32] {
        &self.weight[r * self.inputs..(r + 1) * self.inputs]
    }
}

impl RowChoice {
    /// Adds the rows of another piece of the same weight in the same format.
    pub fn append(&mut self, more: Self) {
        self.scales.extend(more.scales);
        self.errors.extend(more.errors);
    }
}

/// Finds the best scale of every row in each of `elements`.
pub fn search_weight(
    problem: &WeightProblem,
    elements: &[Element],
    grid: &Grid,
    exactness: Exactness,
) -> Vec<RowChoice> {
    let inputs = problem.inputs;
    let rows = problem.weight.len() / inputs;
    let diagonal: Vec<f32> = (0..inputs).map(|j| problem.gram[j * inputs + j]).collect();
    let zeros = vec![0.0; inputs];
    let linear = |r: usize| problem.linear.map_or(&zeros[..], |m| m.row(r));
    let factors = grid.factors();
    let finalists = exactness.count(factors.len());
    elements
        .iter()
        .map(|&element| {
            // Each row's candidates, best first where a ranking is wanted.
            let candidates: Vec<Vec<f32>> = (0..rows)
                .into_par_iter()
                .map(|r| {
                    let w = problem.row(r);
                    let base = element.scale_from_max(kernel::max_abs(w));
                    let scales: Vec<f32> = factors.iter().map(|&f| grid.scale(element, f, base)).collect();
                    if finalists == factors.len() {
                        return scales;
                    }
                    let score = |&s: &f32| kernel::quadratic_error(element, s, w, &diagonal, linear(r));
                    let scores: Vec<f64> = scales.iter().map(score).collect();
                    best_indices(&scores, finalists).into_iter().map(|i| scales[i]).collect()
                })
                .collect();
            let mut best = RowChoice { element, scales: vec![1.0; rows], errors: vec![f64::INFINITY; rows] };
            for i in 0..finalists {
                let scales: Vec<f32> = candidates.iter().map(|c| c[i]).collect();
                let errors = row_errors(problem, element, &scales);
                for (r, error) in errors.into_iter().enumerate() {
                    if error < best.errors[r] {
                        (best.errors[r], best.scales[r]) = (error, scales[r]);
                    }
                }
            }
            best
        })
        .collect()
}

/// The full quadratic form for one scale a row.
fn row_errors(problem: &WeightProblem, element: Element, scales: &[f32]) -> Vec<f64> {
    let inputs = problem.inputs;
    let rows = problem.weight.len() / inputs;
    let mut e = Matrix::zeros(rows, inputs);
    e.data.par_chunks_mut(inputs).enumerate().for_each(|(r, e)| {
        let w = problem.row(r);
        kernel::fake_quantize(element, scales[r], w, e);
        e.iter_mut().zip(w).for_each(|(q, w)| *q -= w);
    });
    // G is symmetric: its rows are its columns.
    let ge = product(&Rows::new(&e.data, inputs), &Rows::new(problem.gram, inputs));
    (0..rows)
        .into_par_iter()
        .map(|r| dot(e.row(r), ge.row(r)) + problem.linear.map_or(0.0, |c| 2.0 * dot(e.row(r), c.row(r))))
        .collect()
}

/// Finds the scale of every row of `weight` `[rows, counts.len()]` in each of `elements` for which `Σ counts_j e_j²` is least, `e`
/// being the error of rounding to nearest. With error feedback and `counts` the squared pivots of the factor, that is the output
/// error as far as it can be known before the rounding (each column then has its own rounding error, of the same size).
pub fn search_weight_by_columns(
    weight: &[f32],
    counts: &[f32],
    elements: &[Element],
    grid: &Grid,
) -> Vec<RowChoice> {
    let factors = grid.factors();
    let zeros = vec![0.0; counts.len()];
    let search = |element: Element, row: &[f32]| {
        let base = element.scale_from_max(kernel::max_abs(row));
        let scored = factors.iter().map(|&f| {
            let scale = grid.scale(element, f, base);
            (scale, kernel::quadratic_error(element, scale, row, counts, &zeros))
        });
        scored.reduce(|a, b| if b.1 < a.1 { b } else { a }).unwrap_or((base, f64::INFINITY))
    };
    elements
        .iter()
        .map(|&element| {
            let best: Vec<(f32, f64)> =
                weight.par_chunks(counts.len()).map(|row| search(element, row)).collect();
            let (scales, errors) = best.into_iter().unzip();
            RowChoice { element, scales, errors }
        })
        .collect()
}
