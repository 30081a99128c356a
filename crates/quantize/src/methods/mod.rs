//! Methods: each chooses codes and scales for the linear layers of one tap, given their weights and inputs.

mod correct;
mod feedback;
mod fpq;
mod minmax;

use crate::recipe::{Method, Recipe};
use crate::tap::{Sample, TapInputs};
use crate::QuantizeError;
use halfbyte_formats::{Element, Granularity, InputQuantizer, QuantizedMatrix, Scheme};
use halfbyte_model::Site;
use halfbyte_tensor::{Matrix, Rows, product, sum_of_squares};

/// One linear layer to quantize.
pub struct SiteWeight {
    /// Its description.
    pub site: Site,
    /// Its full-precision weight `[outputs, inputs]`.
    pub weight: Matrix,
}

/// One quantized linear layer.
#[derive(Debug)]
pub struct SiteResult {
    /// The codes; `None` if weights are left alone.
    pub weight: Option<QuantizedMatrix>,
    /// The quantizer of its input; `None` if inputs are left alone.
    pub input: Option<InputQuantizer>,
    /// Mean squared error of its output over the sample of tokens.
    pub error: f64,
    /// Mean square of the full-precision output over the same.
    pub signal: f64,
}

impl SiteResult {
    /// `error / signal`, the figure that is comparable between layers.
    pub fn relative_error(&self) -> f64 {
        if self.signal > 0.0 { self.error / self.signal } else { 0.0 }
    }
}

/// What a method settles for layers that share an input: codes for each, one quantizer for all.
pub(crate) struct Solution {
    pub(crate) input: Option<InputQuantizer>,
    pub(crate) weights: Vec<Option<RowCodes>>,
}

/// A weight whose values already lie on the grid of its scales.
pub(crate) struct RowCodes {
    pub(crate) element: Element,
    pub(crate) scales: Vec<f32>,
    /// `[outputs, inputs]`, every value one of its row's grid.
    pub(crate) values: Matrix,
}

/// Quantizes the linear layers of one tap.
///
/// # Errors
/// When the stored activations cannot be read, or a matrix cannot be factorised even with more damping.
pub fn quantize_tap(
    inputs: &TapInputs,
    sites: &[SiteWeight],
    recipe: &Recipe,
) -> Result<Vec<SiteResult>, QuantizeError> {
    let sample = inputs.sample(recipe.sample_tokens, recipe.seed)?;
    let group = if recipe.share_input { sites.len() } else { 1 };
    let mut results = Vec::with_capacity(sites.len());
    for sites in sites.chunks(group) {
        let solution = match recipe.method {
            Method::MinmaxInt | Method::MinmaxFp => minmax::solve(inputs, sites, recipe)?,
            Method::Fpq => fpq::solve(inputs, &sample, sites, recipe)?,
        };
        for (site, weight) in sites.iter().zip(solution.weights) {
            results.push(finish(site, weight, solution.input.clone(), &sample)?);
        }
    }
    Ok(results)
}

/// Packs the codes and measures the output error on the sample.
fn finish(
    site: &SiteWeight,
    weight: Option<RowCodes>,
    input: Option<InputQuantizer>,
    sample: &Sample,
) -> Result<SiteResult, QuantizeError> {
    let (rows, cols) = (site.weight.rows, site.weight.cols);
    let wanted = product(&Rows::new(&sample.wanted().data, cols), &Rows::new(&site.weight.data, cols));
    let mut seen = sample.seen.clone();
    if let Some(q) = &input {
        q.apply(&mut seen.data);
    }
    let values = weight.as_ref().map_or(&site.weight, |w| &w.values);
    let mut got = product(&Rows::new(&seen.data, cols), &Rows::new(&values.data, cols));
    got.data.iter_mut().zip(&wanted.data).for_each(|(g, w)| *g -= w);
    let count = (wanted.data.len().max(1)) as f64;
    let weight = weight
        .map(|w| {
            let scheme = Scheme::new(w.element, Granularity::Channel);
            QuantizedMatrix::quantize_with_scales(&site.site.name, &w.values.data, rows, cols, scheme, w.scales, 1.0)
        })
        .transpose()?;
    Ok(SiteResult {
        weight,
        input,
        error: sum_of_squares(&got.data) / count,
        signal: sum_of_squares(&wanted.data) / count,
    })
}

/// The weights of several sites, one below the other.
pub(crate) fn stacked(sites: &[SiteWeight]) -> Matrix {
    let data = sites.iter().flat_map(|s| s.weight.data.iter().copied()).collect();
    Matrix::new(sites.iter().map(|s| s.weight.rows).sum(), sites[0].weight.cols, data)
}
