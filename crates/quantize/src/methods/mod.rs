//! Methods: each chooses codes and scales for the linear layers of one tap, given their weights and inputs.

pub(crate) mod attention;
pub(crate) mod block_scale;
mod correct;
mod feedback;
mod fpq;
mod gptq;
pub(crate) mod learned;
pub(crate) mod low_rank;
mod minmax;

use crate::QuantizeError;
use crate::clock::{Phase, timed};
use crate::profile::{Profile, short, weight_histogram};
use crate::recipe::{Method, Recipe};
use crate::tap::{Sample, TapInputs, quantized, scale_rows};
use halfbyte_checkpoint::{LowRank, StoredLayer};
use halfbyte_formats::{Element, Granularity, InputQuantizer, QuantizedMatrix, Scheme};
use halfbyte_model::Site;
use halfbyte_tensor::{Matrix, Precision, Rows, product_into, sum_of_squares};
use std::borrow::Cow;

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
    /// What is added to the codes, if the recipe asks for it.
    pub low_rank: Option<LowRank>,
    /// Mean squared error of its output over the sample of tokens.
    pub error: f64,
    /// Mean square of the full-precision output over the same.
    pub signal: f64,
    /// Distributions of its input and weight, for the report.
    pub profile: Profile,
}

impl SiteResult {
    /// `error / signal`, the figure that is comparable between layers.
    pub fn relative_error(&self) -> f64 {
        if self.signal > 0.0 { self.error / self.signal } else { 0.0 }
    }
}

/// Layers that share an input and its quantizer: their weights one below the other, `[outputs of all, inputs]`.
pub(crate) struct Group {
    pub(crate) weight: Matrix,
    /// Rows of every layer.
    pub(crate) rows: Vec<usize>,
}

/// What a method settles for a group.
pub(crate) struct Solution {
    pub(crate) input: Option<InputQuantizer>,
    /// `None` if weights are left alone.
    pub(crate) codes: Option<Codes>,
}

/// Quantized weights of a group.
pub(crate) struct Codes {
    /// Format of every layer, and the scale of each of its rows.
    pub(crate) formats: Vec<(Element, Vec<f32>)>,
    /// Their values, shaped as the group's weight, every one on the grid of its row.
    pub(crate) values: Matrix,
}

impl Group {
    fn new(mut sites: Vec<SiteWeight>) -> Self {
        let rows = sites.iter().map(|s| s.weight.rows).collect();
        let inputs = sites[0].weight.cols;
        let weight = match sites.len() {
            1 => sites.remove(0).weight,
            _ => {
                let mut data = Vec::with_capacity(sites.iter().map(|s| s.weight.data.len()).sum());
                for site in sites {
                    data.extend(site.weight.data);
                }
                Matrix::new(data.len() / inputs, inputs, data)
            }
        };
        Self { weight, rows }
    }
}

/// Quantizes the linear layers of one tap.
///
/// # Errors
/// When the stored activations cannot be read, or a matrix cannot be factorised even with more damping.
pub fn quantize_tap(
    inputs: &TapInputs,
    sites: Vec<SiteWeight>,
    recipe: &Recipe,
) -> Result<Vec<SiteResult>, QuantizeError> {
    let sample = timed(Phase::Statistics, || inputs.sample(recipe.sample_tokens, recipe.seed))?;
    let channel_max = timed(Phase::Statistics, || inputs.channel_max())?;
    if recipe.method == Method::Scheme {
        return block_scale::quantize_tap(inputs, &channel_max, &sample, sites, recipe);
    }
    let size = if recipe.share_input { sites.len() } else { 1 };
    let mut results = Vec::with_capacity(sites.len());
    let mut sites = sites.into_iter().peekable();
    while let Some(first) = sites.next() {
        let bits = recipe.bits_of(&first.site.name);
        let (weight_bits, activation_bits) = bits;
        let recipe = &Recipe { weight_bits, activation_bits, ..recipe.clone() };
        let mut members = vec![first];
        while members.len() < size {
            let Some(next) = sites.next_if(|s| recipe.bits_of(&s.site.name) == bits) else { break };
            members.push(next);
        }
        let described: Vec<Site> = members.iter().map(|m| m.site.clone()).collect();
        let group = Group::new(members);
        let solution = match recipe.method {
            Method::MinmaxInt | Method::MinmaxFp => minmax::solve(&channel_max, &group, recipe),
            // Fixed schemes have had their turn.
            Method::Fpq | Method::Scheme => fpq::solve(inputs, &channel_max, &sample, &group, recipe)?,
        };
        finish(&described, &group, solution, &sample, &channel_max, recipe, &mut results)?;
    }
    Ok(results)
}

/// Packs the codes of every layer and measures its output error on the sample.
fn finish(
    sites: &[Site],
    group: &Group,
    solution: Solution,
    sample: &Sample,
    channel_max: &[f32],
    recipe: &Recipe,
    results: &mut Vec<SiteResult>,
) -> Result<(), QuantizeError> {
    let precision = recipe.products.precision();
    let inputs = group.weight.cols;
    let seen = match &solution.input {
        Some(q) => Cow::Owned(quantized(&sample.x, q)),
        None => Cow::Borrowed(&sample.x),
    };
    let channel_max: Vec<f32> = channel_max.iter().map(|&max| short(max)).collect();
    let mut from = 0;
    for (i, site) in sites.iter().enumerate() {
        let span = from * inputs..(from + group.rows[i]) * inputs;
        from += group.rows[i];
        let full = &group.weight.data[span.clone()];
        let values = solution.codes.as_ref().map_or(full, |c| &c.values.data[span]);
        let (error, signal) =
            timed(Phase::Measure, || output_error(sample, &seen, full, values, inputs, precision));
        let weight = match &solution.codes {
            None => None,
            Some(codes) => {
                let (element, scales) = &codes.formats[i];
                let scheme = Scheme::new(*element, Granularity::Channel);
                let (name, rows) = (&site.name, group.rows[i]);
                let scales = scales.clone();
                Some(QuantizedMatrix::quantize_with_scales(name, values, rows, inputs, scheme, scales, 1.0)?)
            }
        };
        let weight_histogram = weight.as_ref().map(|w| weight_histogram(w, full)).unwrap_or_default();
        let profile = Profile { channel_max: channel_max.clone(), weight_histogram };
        results.push(SiteResult {
            weight,
            input: solution.input.clone(),
            low_rank: None,
            error,
            signal,
            profile,
        });
    }
    Ok(())
}

/// What layers with these codes and input quantizers do on the sample.
pub(crate) fn measured(
    sample: &Sample,
    channel_max: &[f32],
    sites: Vec<SiteWeight>,
    stored: Vec<StoredLayer>,
    precision: Precision,
) -> Vec<SiteResult> {
    let mut results = Vec::with_capacity(sites.len());
    // The inputs as the layer before saw them: nearly always the same.
    let mut last: Option<(Option<InputQuantizer>, Cow<Matrix>)> = None;
    for (SiteWeight { weight, .. }, StoredLayer { weight: coded, input, .. }) in sites.into_iter().zip(stored)
    {
        let (_, seen) = match last.take().filter(|l| l.0 == input) {
            Some(same) => last.insert(same),
            None => {
                let seen = match &input {
                    Some(q) => Cow::Owned(quantized(&sample.x, q)),
                    None => Cow::Borrowed(&sample.x),
                };
                last.insert((input.clone(), seen))
            }
        };
        let values = coded.as_ref().map(QuantizedMatrix::dequantize);
        let values = values.as_deref().unwrap_or(&weight.data);
        let (error, signal) = timed(Phase::Measure, || {
            output_error(sample, seen, &weight.data, values, weight.cols, precision)
        });
        let profile = Profile {
            channel_max: channel_max.iter().map(|&m| short(m)).collect(),
            weight_histogram: coded.as_ref().map(|q| weight_histogram(q, &weight.data)).unwrap_or_default(),
        };
        results.push(SiteResult { weight: coded, input, low_rank: None, error, signal, profile });
    }
    results
}

/// Bytes of one temporary of a method; rows of a weight are worked on in pieces of that size.
pub(crate) const PIECE_BYTES: usize = 16 << 20;

/// Values of the whole rows that are worked on at a time.
fn piece(inputs: usize) -> usize {
    inputs * (PIECE_BYTES / (4 * inputs)).max(1)
}

/// Rows of a weight whose outputs are compared at a time: an output layer's for all tokens would be the largest matrix of
/// the run.
pub(crate) const COMPARED_ROWS: usize = 2048;

/// Mean squared error of the quantized layer's output over the sample, `seen` being the quantized inputs, and mean square
/// of the full-precision output. Products of bfloat16 add a relative squared error of about 10⁻⁵ at most.
fn output_error(
    sample: &Sample,
    seen: &Matrix,
    full: &[f32],
    values: &[f32],
    inputs: usize,
    precision: Precision,
) -> (f64, f64) {
    let (mut error, mut signal) = (0.0, 0.0);
    let piece = COMPARED_ROWS * inputs;
    for (full, values) in full.chunks(piece).zip(values.chunks(piece)) {
        let outputs = |x: &Matrix, weight: &[f32]| {
            let mut y = Matrix::zeros(x.rows, weight.len() / inputs);
            let stride = y.cols;
            product_into(
                &Rows::new(&x.data, inputs),
                &Rows::new(weight, inputs),
                &mut y.data,
                stride,
                precision,
            );
            y
        };
        let (mut wanted, mut got) = (outputs(&sample.x, full), outputs(seen, values));
        got.data.iter_mut().zip(&wanted.data).for_each(|(g, w)| *g -= w);
        if let Some(weights) = &sample.weights {
            scale_rows(&mut got, weights);
            scale_rows(&mut wanted, weights);
        }
        error += sum_of_squares(&got.data);
        signal += sum_of_squares(&wanted.data);
    }
    let count = (sample.tokens * (full.len() / inputs)).max(1) as f64;
    (error / count, signal / count)
}
