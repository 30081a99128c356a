//! FPQ: the joint search of format, exponent bias and clipping, with a pre-shifted exponent bias for every input
//! channel (LLM-FP4, arXiv 2310.16836). Without shifts it is the paper's baseline.
//!
//! One objective throughout: the squared error of the layers' output against the full-precision output, in the forms
//! of `search::weight` and `search::input`, which need the tokens only for second moments.

use super::{COMPARED_ROWS, Codes, Group, Solution, correct, feedback, piece};
use crate::QuantizeError;
use crate::clock::{Phase, timed};
use crate::recipe::{First, Recipe, Search};
use crate::search::{
    InputProblem, RowChoice, ShiftRule, Tail, WeightProblem, direct, search_input, search_weight,
    search_weight_by_columns,
};
use crate::tap::{Moments, Sample, TapInputs, scale_rows};
use halfbyte_formats::{Element, InputQuantizer, kernel};
use halfbyte_tensor::{Columns, Matrix, Precision, Rows, product, product_into};
use rayon::prelude::*;
use std::borrow::Cow;

pub(super) fn solve(
    inputs: &TapInputs,
    channel_max: &[f32],
    sample: &Sample,
    group: &Group,
    recipe: &Recipe,
) -> Result<Solution, QuantizeError> {
    let mut search = GroupSearch { inputs, sample, group, recipe, channel_max, input: None, codes: None };
    if recipe.first == First::Weight && recipe.activation_bits < 16 {
        search.input = Some(search.initial_input());
    }
    for _ in 0..recipe.rounds {
        let before = search.input.clone();
        match recipe.first {
            First::Weight => {
                search.search_weight()?;
                timed(Phase::Search, || search.search_input())?;
            }
            First::Input => {
                timed(Phase::Search, || search.search_input())?;
                search.search_weight()?;
            }
        }
        // Weights are chosen for the input: for the same one, further rounds would find the same again.
        if search.input == before {
            break;
        }
    }
    Ok(Solution { input: search.input, codes: search.codes })
}

/// A group of layers on its way through the rounds.
struct GroupSearch<'a> {
    inputs: &'a TapInputs,
    sample: &'a Sample,
    group: &'a Group,
    recipe: &'a Recipe,
    channel_max: &'a [f32],
    input: Option<InputQuantizer>,
    codes: Option<Codes>,
}

impl GroupSearch<'_> {
    /// What the published search starts from: two exponent bits, the bias of the largest magnitude.
    fn initial_input(&self) -> InputQuantizer {
        let element = Element::Float { exponent: 2, mantissa: self.recipe.activation_bits as u8 - 3 };
        let largest = self.channel_max.iter().copied().fold(0.0f32, f32::max);
        let scale = element.scale_from_max(largest);
        match self.recipe.shifts {
            ShiftRule::None => InputQuantizer::new(element, scale, Vec::new()),
            _ => InputQuantizer::with_published_shifts(element, scale, self.channel_max),
        }
    }

    fn search_input(&mut self) -> Result<(), QuantizeError> {
        let recipe = self.recipe;
        if recipe.activation_bits == 16 {
            return Ok(());
        }
        let elements = recipe.elements(recipe.activation_bits);
        let factors = self.layer_factors();
        let full = &self.group.weight;
        let (weight, linear) = match &self.codes {
            // Ŵ is W, and the linear term zero.
            None => (balanced(full, &factors), None),
            Some(codes) => {
                let weight = balanced(&codes.values, &factors);
                let linear = self.input_linear(&weight, &balanced(full, &factors));
                (weight, Some(linear))
            }
        };
        let problem = InputProblem {
            x: &self.sample.x,
            linear: linear.as_ref(),
            weight: &weight,
            token_weights: self.sample.weights.as_deref(),
            channel_max: self.channel_max,
            max_shift: recipe.max_shift,
            tail: Tail::new(
                recipe.headroom(recipe.activation_bits),
                self.sample.weights.as_deref(),
                self.sample.tokens,
            ),
        };
        let best = if recipe.search == Search::Direct {
            let candidates = |element| problem.candidates(element, &recipe.activation_grid, recipe.shifts);
            direct::search_input(self.inputs, &weight, &balanced(full, &factors), &elements, &candidates)?
        } else {
            search_input(&problem, &elements, &recipe.activation_grid, recipe.shifts, recipe.exactness())
        };
        self.input = best.map(|b| b.quantizer);
        Ok(())
    }

    /// For every row one over the root mean square of its layer's output, so that the layers that share an input each
    /// count by their relative error: values would otherwise drown beside queries and keys.
    fn layer_factors(&self) -> Vec<f32> {
        let weight = &self.group.weight;
        if self.group.rows.len() == 1 {
            return vec![1.0; weight.rows];
        }
        let inputs = weight.cols;
        let mut outputs = product(&Rows::new(&self.sample.x.data, inputs), &Rows::new(&weight.data, inputs));
        if let Some(weights) = &self.sample.weights {
            scale_rows(&mut outputs, weights);
        }
        let mut energy = vec![0.0f64; weight.rows];
        for row in outputs.data.chunks_exact(weight.rows) {
            energy.iter_mut().zip(row).for_each(|(e, v)| *e += f64::from(*v) * f64::from(*v));
        }
        let mut from = 0;
        let mut factors = Vec::with_capacity(weight.rows);
        for &rows in &self.group.rows {
            let total: f64 = energy[from..from + rows].iter().sum();
            factors.extend(std::iter::repeat_n(
                if total > 0.0 { total.sqrt().recip() as f32 } else { 1.0 },
                rows,
            ));
            from += rows;
        }
        factors
    }

    /// `P = (X Ŵᵀ − X Wᵀ) Ŵ` over the sample, `[tokens, inputs]`.
    fn input_linear(&self, weight: &Matrix, full: &Matrix) -> Matrix {
        let inputs = weight.cols;
        let x = Rows::new(&self.sample.x.data, inputs);
        let mut linear = Matrix::zeros(self.sample.x.rows, inputs);
        let piece = COMPARED_ROWS * inputs;
        for (weight, full) in weight.data.chunks(piece).zip(full.data.chunks(piece)) {
            let mut residual = product(&x, &Rows::new(weight, inputs));
            let wanted = product(&x, &Rows::new(full, inputs));
            residual.data.iter_mut().zip(&wanted.data).for_each(|(r, w)| *r -= w);
            let columns = Columns::new(weight, inputs, inputs);
            let residual = Rows::new(&residual.data, residual.cols);
            product_into(&residual, &columns, &mut linear.data, inputs, Precision::F32);
        }
        linear
    }

    fn search_weight(&mut self) -> Result<(), QuantizeError> {
        let recipe = self.recipe;
        if recipe.weight_bits == 16 {
            return Ok(());
        }
        // The codes of an earlier round are not needed again; two sets would be the peak of the run.
        self.codes = None;
        let elements = recipe.elements(recipe.weight_bits);
        if recipe.search == Search::Direct {
            let full = &self.group.weight;
            let choices = direct::search_weight(
                self.inputs,
                self.input.as_ref(),
                full,
                &elements,
                &recipe.weight_grid,
            )?;
            let formats = best_formats(&choices, &self.group.rows);
            let mut values = full.clone();
            round_nearest(&mut values.data, full.cols, &row_formats(&formats));
            self.codes = Some(Codes { formats, values });
            return Ok(());
        }

        let Moments { gram, cross } = timed(Phase::Statistics, || {
            let cross = recipe.uses_cross_moments();
            self.inputs.moments(self.input.as_ref(), cross, recipe.products.precision())
        })?;
        // X̂ᵀX̂ − XᵀX̂, from which a row's linear term comes.
        let difference = cross.map(|mut c| {
            c.par_iter_mut().zip(&gram).for_each(|(c, g)| *c = g - *c);
            c
        });
        let mut values = self.group.weight.clone();
        let formats = match recipe.feedback || recipe.correct {
            true => self.round_with_factor(gram, difference, &elements, &mut values)?,
            false => self.round_to_nearest(&gram, difference.as_deref(), &elements, &mut values),
        };
        self.codes = Some(Codes { formats, values });
        Ok(())
    }

    /// Searches the scales of `values` by the output error that rounding to nearest makes, and rounds them.
    fn round_to_nearest(
        &self,
        gram: &[f32],
        difference: Option<&[f32]>,
        elements: &[Element],
        values: &mut Matrix,
    ) -> LayerFormats {
        let inputs = values.cols;
        let mut choices = Vec::new();
        for rows in values.data.chunks(piece(inputs)) {
            let linear = difference.map(|d| {
                timed(Phase::Round, || product(&Rows::new(rows, inputs), &Columns::new(d, inputs, inputs)))
            });
            let problem = WeightProblem { weight: rows, inputs, gram, linear: linear.as_ref() };
            let grid = &self.recipe.weight_grid;
            append(
                &mut choices,
                timed(Phase::Search, || search_weight(&problem, elements, grid, self.recipe.exactness())),
            );
        }
        let formats = best_formats(&choices, &self.group.rows);
        timed(Phase::Round, || round_nearest(&mut values.data, inputs, &row_formats(&formats)));
        formats
    }

    /// Corrects `values` for the rounding of the inputs, searches their scales, and rounds them with error feedback, as far
    /// as the recipe asks for these.
    fn round_with_factor(
        &self,
        gram: Vec<f32>,
        mut difference: Option<Vec<f32>>,
        elements: &[Element],
        values: &mut Matrix,
    ) -> Result<LayerFormats, QuantizeError> {
        let (recipe, inputs) = (self.recipe, values.cols);
        let factor =
            timed(Phase::Round, || feedback::Factor::new(gram, inputs, recipe.damping, recipe.act_order))?;
        if let Some(difference) = difference.as_mut() {
            timed(Phase::Round, || correct::correct(values, difference, &factor, piece(inputs)));
        }
        drop(difference);
        // Without feedback the errors of the columns do not make up for each other.
        let counts = if recipe.feedback { factor.pivots() } else { factor.diagonal() };
        let mut choices = Vec::new();
        for rows in values.data.chunks(piece(inputs)) {
            let grid = &recipe.weight_grid;
            append(
                &mut choices,
                timed(Phase::Search, || search_weight_by_columns(rows, &counts, elements, grid)),
            );
        }
        let formats = best_formats(&choices, &self.group.rows);
        let rows = row_formats(&formats);
        timed(Phase::Round, || match recipe.feedback {
            true => {
                let piece = piece(inputs);
                for (piece, rows) in values.data.chunks_mut(piece).zip(rows.chunks(piece / inputs)) {
                    feedback::round(piece, rows, &factor);
                }
            }
            false => round_nearest(&mut values.data, inputs, &rows),
        });
        Ok(formats)
    }
}

/// Format of every layer, and the scale of each of its rows.
type LayerFormats = Vec<(Element, Vec<f32>)>;

/// Adds the choices for further rows.
fn append(choices: &mut Vec<RowChoice>, more: Vec<RowChoice>) {
    match choices.is_empty() {
        true => *choices = more,
        false => choices.iter_mut().zip(more).for_each(|(all, more)| all.append(more)),
    }
}

/// Rows multiplied by their factors.
fn balanced<'a>(weight: &'a Matrix, factors: &[f32]) -> Cow<'a, Matrix> {
    if factors.iter().all(|&f| f == 1.0) {
        return Cow::Borrowed(weight);
    }
    let mut scaled = weight.clone();
    scaled
        .data
        .chunks_exact_mut(weight.cols)
        .zip(factors)
        .for_each(|(row, f)| row.iter_mut().for_each(|v| *v *= f));
    Cow::Owned(scaled)
}

/// Format and scale of every row.
fn row_formats(formats: &[(Element, Vec<f32>)]) -> Vec<(Element, f32)> {
    formats.iter().flat_map(|(e, scales)| scales.iter().map(|s| (*e, *s))).collect()
}

fn round_nearest(values: &mut [f32], inputs: usize, formats: &[(Element, f32)]) {
    values
        .par_chunks_mut(inputs)
        .zip(formats)
        .for_each(|(row, f)| kernel::fake_quantize_in_place(f.0, f.1, row));
}

/// For every layer the format with the least total error over its rows, and the scales of those rows.
fn best_formats(choices: &[RowChoice], rows: &[usize]) -> LayerFormats {
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
