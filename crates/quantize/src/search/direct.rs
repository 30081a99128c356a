//! The published search in its own terms: every candidate is a product over all calibration tokens. It exists to be
//! compared with; `search::weight` and `search::input` find the same from second moments.

use super::{Grid, InputChoice, RowChoice};
use crate::QuantizeError;
use crate::tap::TapInputs;
use halfbyte_formats::{Element, InputQuantizer, kernel};
use halfbyte_tensor::{Matrix, Rows, product, scale_columns, sum_of_squares};
use rayon::prelude::*;

/// The best scale of every row of `weight` in each of `elements`, for inputs quantized by `quantizer`.
///
/// # Errors
/// When the stored activations cannot be read.
pub fn search_weight(
    inputs: &TapInputs,
    quantizer: Option<&InputQuantizer>,
    weight: &Matrix,
    elements: &[Element],
    grid: &Grid,
) -> Result<Vec<RowChoice>, QuantizeError> {
    let largest: Vec<f32> = (0..weight.rows).map(|r| kernel::max_abs(weight.row(r))).collect();
    let scales = |(element, factor): (Element, f32)| -> Vec<f32> {
        largest.iter().map(|&max| grid.scale(element, factor, element.scale_from_max(max))).collect()
    };
    let factors = grid.factors();
    let candidates: Vec<(Element, f32)> =
        elements.iter().flat_map(|&e| factors.iter().map(move |&f| (e, f))).collect();
    let mut errors = vec![vec![0.0; weight.rows]; candidates.len()];
    for i in 0..inputs.x.windows() {
        let window = Window::new(inputs, i, weight)?;
        let mut seen = window.x.clone();
        if let Some(q) = quantizer {
            q.apply(&mut seen.data);
        }
        for (candidate, errors) in candidates.iter().zip(&mut errors) {
            let mut rounded = weight.clone();
            rounded.data.par_chunks_mut(weight.cols).zip(scales(*candidate)).for_each(|(row, scale)| {
                kernel::fake_quantize_in_place(candidate.0, scale, row);
            });
            window.add_errors(&seen, &rounded, errors);
        }
    }
    let choice = |(e, &element): (usize, &Element)| {
        let mut best =
            RowChoice { element, scales: vec![1.0; weight.rows], errors: vec![f64::INFINITY; weight.rows] };
        let range = e * factors.len()..(e + 1) * factors.len();
        for (candidate, errors) in candidates[range.clone()].iter().zip(&errors[range]) {
            let scales = scales(*candidate);
            for (r, &error) in errors.iter().enumerate() {
                if error < best.errors[r] {
                    (best.errors[r], best.scales[r]) = (error, scales[r]);
                }
            }
        }
        best
    };
    Ok(elements.iter().enumerate().map(choice).collect())
}

/// The best quantizer among `candidates` of any element, for the quantized `weight` and the full-precision one.
///
/// # Errors
/// When the stored activations cannot be read.
pub fn search_input(
    inputs: &TapInputs,
    weight: &Matrix,
    full: &Matrix,
    elements: &[Element],
    candidates: &dyn Fn(Element) -> Vec<InputQuantizer>,
) -> Result<Option<InputChoice>, QuantizeError> {
    let candidates: Vec<InputQuantizer> = elements.iter().flat_map(|&e| candidates(e)).collect();
    let mut errors = vec![vec![0.0; weight.rows]; candidates.len()];
    for i in 0..inputs.x.windows() {
        let window = Window::new(inputs, i, full)?;
        for (quantizer, errors) in candidates.iter().zip(&mut errors) {
            let mut seen = window.x.clone();
            quantizer.apply(&mut seen.data);
            window.add_errors(&seen, weight, errors);
        }
    }
    let mut best: Option<InputChoice> = None;
    for (quantizer, errors) in candidates.into_iter().zip(errors) {
        let error = errors.iter().sum();
        if best.as_ref().is_none_or(|b| error < b.error) {
            best = Some(InputChoice { quantizer, error });
        }
    }
    Ok(best)
}

/// One calibration window and what the full-precision layer makes of it.
struct Window {
    x: Matrix,
    /// `W Xᵀ`, `[outputs, tokens]`.
    target: Matrix,
    /// Roots of the tokens' weights.
    roots: Option<Vec<f32>>,
}

impl Window {
    fn new(inputs: &TapInputs, i: usize, full: &Matrix) -> Result<Self, QuantizeError> {
        let x = inputs.x.get(i)?;
        let target = product(&Rows::new(&full.data, full.cols), &Rows::new(&x.data, x.cols));
        let roots = inputs.weights.as_ref().map(|w| w[i].iter().map(|w| w.sqrt()).collect());
        Ok(Self { x, target, roots })
    }

    /// Adds the squared error of every output over this window's tokens, for quantized inputs `seen` and a quantized weight.
    fn add_errors(&self, seen: &Matrix, weight: &Matrix, errors: &mut [f64]) {
        let mut out = product(&Rows::new(&weight.data, weight.cols), &Rows::new(&seen.data, seen.cols));
        out.data.iter_mut().zip(&self.target.data).for_each(|(o, t)| *o -= t);
        if let Some(roots) = &self.roots {
            scale_columns(&mut out.data, roots);
        }
        errors.iter_mut().zip(out.data.chunks_exact(out.cols)).for_each(|(e, row)| *e += sum_of_squares(row));
    }
}
