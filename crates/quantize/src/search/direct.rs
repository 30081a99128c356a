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
    let base: Vec<f32> = (0..weight.rows).map(|r| kernel::max_abs(weight.row(r))).collect();
    let mut choices = Vec::new();
    for &element in elements {
        let mut best =
            RowChoice { element, scales: vec![1.0; weight.rows], errors: vec![f64::INFINITY; weight.rows] };
        for factor in grid.factors() {
            let scales: Vec<f32> =
                base.iter().map(|&max| grid.scale(element, factor, element.scale_from_max(max))).collect();
            let mut candidate = weight.clone();
            candidate.data.par_chunks_mut(weight.cols).zip(&scales).for_each(|(row, &scale)| {
                kernel::fake_quantize_in_place(element, scale, row);
            });
            for (r, error) in output_errors(inputs, quantizer, &candidate, weight)?.into_iter().enumerate() {
                if error < best.errors[r] {
                    (best.errors[r], best.scales[r]) = (error, scales[r]);
                }
            }
        }
        choices.push(best);
    }
    Ok(choices)
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
    let mut best: Option<InputChoice> = None;
    for quantizer in elements.iter().flat_map(|&e| candidates(e)) {
        let error = output_errors(inputs, Some(&quantizer), weight, full)?.iter().sum();
        if best.as_ref().is_none_or(|b| error < b.error) {
            best = Some(InputChoice { quantizer, error });
        }
    }
    Ok(best)
}

/// Squared output error of every row over all tokens.
fn output_errors(
    inputs: &TapInputs,
    quantizer: Option<&InputQuantizer>,
    weight: &Matrix,
    full: &Matrix,
) -> Result<Vec<f64>, QuantizeError> {
    let k = weight.cols;
    let mut errors = vec![0.0; weight.rows];
    for i in 0..inputs.x.windows() {
        let wanted = inputs.x.get(i)?;
        let mut seen = wanted.clone();
        if let Some(q) = quantizer {
            q.apply(&mut seen.data);
        }
        let mut out = product(&Rows::new(&weight.data, k), &Rows::new(&seen.data, k));
        let target = product(&Rows::new(&full.data, k), &Rows::new(&wanted.data, k));
        out.data.iter_mut().zip(&target.data).for_each(|(o, t)| *o -= t);
        if let Some(weights) = &inputs.weights {
            let roots: Vec<f32> = weights[i].iter().map(|w| w.sqrt()).collect();
            scale_columns(&mut out.data, &roots);
        }
        errors.iter_mut().zip(out.data.chunks_exact(out.cols)).for_each(|(e, row)| *e += sum_of_squares(row));
    }
    Ok(errors)
}
