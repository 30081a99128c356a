//! FPQ: the joint search of format, exponent bias and clipping, with a pre-shifted exponent bias for every input
//! channel (LLM-FP4, arXiv 2310.16836). Without shifts it is the paper's baseline.
//!
//! One objective throughout: the squared error of the layers' output against the full-precision output, in the forms
//! of `search::weight` and `search::input`, which need the tokens only for second moments.

use super::{RowCodes, SiteWeight, Solution, correct, feedback, stacked};
use crate::QuantizeError;
use crate::recipe::{First, Recipe};
use crate::search::{InputProblem, RowChoice, ShiftRule, WeightProblem, search_input, search_weight};
use crate::tap::{Moments, Sample, TapInputs};
use halfbyte_formats::{Element, InputQuantizer, kernel};
use halfbyte_tensor::{Columns, Matrix, Rows, product};
use rayon::prelude::*;

pub(super) fn solve(
    inputs: &TapInputs,
    sample: &Sample,
    sites: &[SiteWeight],
    recipe: &Recipe,
) -> Result<Solution, QuantizeError> {
    let weight = stacked(sites);
    let mut search = GroupSearch {
        inputs,
        sample,
        recipe,
        channel_max: inputs.channel_max()?,
        rows: sites.iter().map(|s| s.weight.rows).collect(),
        input: None,
        codes: None,
        weight,
    };
    if recipe.first == First::Weight && recipe.activation_bits < 16 {
        search.input = Some(search.initial_input());
    }
    for _ in 0..recipe.rounds {
        match recipe.first {
            First::Weight => {
                search.search_weight()?;
                search.search_input();
            }
            First::Input => {
                search.search_input();
                search.search_weight()?;
            }
        }
    }
    Ok(search.finish())
}

/// The layers of one group on their way through the rounds.
struct GroupSearch<'a> {
    inputs: &'a TapInputs,
    sample: &'a Sample,
    recipe: &'a Recipe,
    channel_max: Vec<f32>,
    /// Rows of every layer.
    rows: Vec<usize>,
    /// All layers' full-precision weights, one below the other.
    weight: Matrix,
    input: Option<InputQuantizer>,
    /// For every layer format and scales, and all their values.
    codes: Option<(Vec<(Element, Vec<f32>)>, Matrix)>,
}

impl GroupSearch<'_> {
    /// What the published search starts from: two exponent bits, the bias of the largest magnitude.
    fn initial_input(&self) -> InputQuantizer {
        let element = Element::Float { exponent: 2, mantissa: self.recipe.activation_bits as u8 - 3 };
        let largest = self.channel_max.iter().copied().fold(0.0f32, f32::max);
        let scale = element.scale_from_max(largest);
        match self.recipe.shifts {
            ShiftRule::None => InputQuantizer::new(element, scale, Vec::new()),
            _ => InputQuantizer::with_published_shifts(element, scale, &self.channel_max),
        }
    }

    fn search_input(&mut self) {
        if self.recipe.activation_bits == 16 {
            return;
        }
        let elements = self.recipe.elements(self.recipe.activation_bits);
        let weight = self.codes.as_ref().map_or(&self.weight, |(_, values)| values);
        let linear = self.input_linear(weight);
        let problem =
            InputProblem { x: &self.sample.seen, linear: linear.as_ref(), weight, channel_max: &self.channel_max };
        let recipe = self.recipe;
        let choices =
            search_input(&problem, &elements, &recipe.activation_grid, recipe.shifts, recipe.exactness());
        let best = choices.into_iter().reduce(|a, b| if b.error < a.error { b } else { a });
        self.input = best.map(|b| b.quantizer);
    }

    /// `P = (X Ŵᵀ − target) Ŵ` over the sample, `[tokens, inputs]`.
    fn input_linear(&self, weight: &Matrix) -> Option<Matrix> {
        if self.codes.is_none() && self.sample.wanted.is_none() {
            return None;
        }
        let inputs = weight.cols;
        let output = |x: &Matrix, w: &Matrix| product(&Rows::new(&x.data, inputs), &Rows::new(&w.data, inputs));
        let mut residual = output(&self.sample.seen, weight);
        let wanted = output(self.sample.wanted(), &self.weight);
        residual.data.iter_mut().zip(&wanted.data).for_each(|(r, w)| *r -= w);
        Some(product(&Rows::new(&residual.data, weight.rows), &Columns::new(&weight.data, inputs, inputs)))
    }

    fn search_weight(&mut self) -> Result<(), QuantizeError> {
        if self.recipe.weight_bits == 16 {
            return Ok(());
        }
        let recipe = self.recipe;
        let elements = recipe.elements(recipe.weight_bits);
        let moments = self.inputs.moments(self.input.as_ref())?;
        let mut linear = linear_term(&self.weight, &moments);
        let Moments { gram, .. } = moments;
        let inputs = self.weight.cols;
        let mut corrected = None;
        let factor = if recipe.correct || recipe.feedback {
            Some(feedback::Factor::new(&gram, inputs, recipe.damping)?)
        } else {
            None
        };
        if recipe.correct
            && let Some(factor) = &factor
            && let Some(c) = linear.take()
        {
            let (weight, rest) = correct::correct(&self.weight, c, factor);
            (corrected, linear) = (Some(weight), Some(rest));
        }
        let weight = corrected.as_ref().unwrap_or(&self.weight);
        let problem = WeightProblem { weight, gram: &gram, linear: linear.as_ref() };
        let choices = search_weight(&problem, &elements, &recipe.weight_grid, recipe.exactness());
        let chosen = best_formats(&choices, &self.rows);
        let mut values = Matrix::zeros(weight.rows, inputs);
        let row_formats: Vec<(Element, f32)> =
            chosen.iter().flat_map(|(e, scales)| scales.iter().map(|s| (*e, *s))).collect();
        match factor.filter(|_| recipe.feedback) {
            Some(factor) => feedback::round(weight, &row_formats, &factor, &mut values),
            None => values.data.par_chunks_mut(inputs).zip(&row_formats).enumerate().for_each(|(r, (out, f))| {
                kernel::fake_quantize(f.0, f.1, weight.row(r), out);
            }),
        }
        self.codes = Some((chosen, values));
        Ok(())
    }

    fn finish(self) -> Solution {
        let weights = match self.codes {
            None => self.rows.iter().map(|_| None).collect(),
            Some((formats, values)) => {
                let inputs = values.cols;
                let mut from = 0;
                formats
                    .into_iter()
                    .map(|(element, scales)| {
                        let to = from + scales.len();
                        let rows = values.data[from * inputs..to * inputs].to_vec();
                        let values = Matrix::new(scales.len(), inputs, rows);
                        from = to;
                        Some(RowCodes { element, scales, values })
                    })
                    .collect()
            }
        };
        Solution { input: self.input, weights }
    }
}

/// `X̂ᵀ(X̂ w − X w)` for every row, `[rows, inputs]`; `None` where the inputs are as wanted.
fn linear_term(weight: &Matrix, moments: &Moments) -> Option<Matrix> {
    let inputs = weight.cols;
    let cross = moments.cross.as_ref()?;
    let difference: Vec<f32> = moments.gram.par_iter().zip(cross).map(|(g, c)| g - c).collect();
    Some(product(&Rows::new(&weight.data, inputs), &Columns::new(&difference, inputs, inputs)))
}

/// For every layer the format with the least total error over its rows, and the scales of those rows.
fn best_formats(choices: &[RowChoice], rows: &[usize]) -> Vec<(Element, Vec<f32>)> {
    let mut from = 0;
    rows.iter()
        .map(|n| {
            let range = from..from + n;
            from += n;
            let total = |c: &&RowChoice| c.errors[range.clone()].iter().sum::<f64>();
            let best = choices.iter().reduce(|a, b| if total(&b) < total(&a) { b } else { a });
            let best = best.expect("at least one format is searched");
            (best.element, best.scales[range].to_vec())
        })
        .collect()
}
