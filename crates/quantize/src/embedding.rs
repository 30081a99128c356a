//! Quantization of the embedding table: a lookup, so that only the error of its own values counts.

use crate::QuantizeError;
use crate::recipe::{Method, Recipe};
use crate::search::best_indices;
use halfbyte_formats::{Element, Granularity, QuantizedMatrix, Scheme, kernel};
use halfbyte_tensor::Matrix;
use rayon::prelude::*;

/// Codes of the table `[vocabulary, hidden]`, one scale a token: that of the largest magnitude for MinMax, else the
/// one of the recipe's weight grid with the least squared error, in the format with the least total.
///
/// # Errors
/// [`QuantizeError::Format`] for values that are not finite.
pub fn quantize_embedding(
    name: &str,
    table: &Matrix,
    recipe: &Recipe,
) -> Result<QuantizedMatrix, QuantizeError> {
    let elements = recipe.elements(recipe.embedding_bits);
    let factors = match recipe.method {
        Method::MinmaxInt | Method::MinmaxFp | Method::Scheme => Vec::new(),
        Method::Fpq => recipe.weight_grid.factors(),
    };
    let search_row = |element: Element, r: usize| {
        let row = table.row(r);
        let base = element.scale_from_max(kernel::max_abs(row));
        if factors.is_empty() {
            return (base, kernel::squared_error(element, base, row));
        }
        let scales: Vec<f32> = factors.iter().map(|&f| recipe.weight_grid.scale(element, f, base)).collect();
        let errors: Vec<f64> = scales.iter().map(|&s| kernel::squared_error(element, s, row)).collect();
        let best = best_indices(&errors, 1)[0];
        (scales[best], errors[best])
    };
    let mut best: Option<(Element, Vec<f32>, f64)> = None;
    for element in elements {
        let rows: Vec<(f32, f64)> = (0..table.rows).into_par_iter().map(|r| search_row(element, r)).collect();
        let error = rows.iter().map(|r| r.1).sum();
        if best.as_ref().is_none_or(|b| error < b.2) {
            best = Some((element, rows.into_iter().map(|r| r.0).collect(), error));
        }
    }
    let (element, scales, _) = best.expect("a recipe that quantizes the embedding has a format for it");
    let scheme = Scheme::new(element, Granularity::Channel);
    Ok(QuantizedMatrix::quantize_with_scales(name, &table.data, table.rows, table.cols, scheme, scales, 1.0)?)
}
