//! Trying a change: the error that the assumed quantization then makes.

use super::assumed::Assumed;
use super::fold::{Change, Joint, times};
use super::survey::Survey;
use crate::QuantizeError;
use halfbyte_checkpoint::RawTensor;
use halfbyte_model::{Block, Carry, Linear, Mlp, RotaryTables, Step, TapKind, Weight};
use halfbyte_tensor::{Matrix, Precision, sum_of_squares};

/// What an error is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measured {
    /// The outputs of the layers that read the tap.
    Layers,
    /// What the block makes of them up to its next linear layer: attention's output, the gated product.
    Function,
}

/// One tap, for which changes are tried.
pub(crate) struct Trial<'a> {
    pub(crate) survey: &'a Survey,
    pub(crate) joint: &'a Joint,
    pub(crate) assumed: &'a Assumed,
    /// Weights of the readers.
    pub(crate) weights: Vec<Matrix>,
    block: &'a Block,
    tap: usize,
    rotary: &'a RotaryTables,
    function: bool,
    wanted: Vec<Matrix>,
}

impl<'a> Trial<'a> {
    pub(crate) fn new(
        block: &'a Block,
        tap: usize,
        survey: &'a Survey,
        joint: &'a Joint,
        assumed: &'a Assumed,
        rotary: &'a RotaryTables,
        measured: Measured,
    ) -> Self {
        let weights = block.linears[tap].iter().map(|l| l.weight.to_f32()).collect();
        let function = match block.spec.taps[tap].kind {
            TapKind::AttentionInput => true,
            // Of a plain first layer the product itself counts.
            TapKind::MlpInput => block.spec.mlp != Mlp::Plain,
            _ => false,
        } && measured == Measured::Function;
        let mut trial =
            Self { survey, joint, assumed, weights, block, tap, rotary, function, wanted: Vec::new() };
        trial.wanted = trial.outputs(&survey.sample, &block.linears[tap]);
        trial
    }

    /// Largest magnitude of every channel of the producer.
    pub(crate) fn largest(&self) -> Vec<f32> {
        self.joint.gather(&self.survey.largest())
    }

    /// Largest magnitude of the weights that read each of them.
    pub(crate) fn weight_largest(&self) -> Vec<f32> {
        let mut largest = vec![0.0; self.survey.max.len()];
        for weight in &self.weights {
            for row in weight.data.chunks_exact(weight.cols) {
                halfbyte_formats::kernel::column_max_abs(row, &mut largest);
            }
        }
        self.joint.gather(&largest)
    }

    /// Sum of the squared errors over the sample if `change` is made and everything is then rounded.
    pub(crate) fn error(&self, change: &Change) -> Result<f64, QuantizeError> {
        let factors = self.joint.spread(&change.factors);
        let inverse: Vec<f32> = factors.iter().map(|f| 1.0 / f).collect();
        let shifts = if change.shifts.is_empty() { Vec::new() } else { self.joint.spread(&change.shifts) };
        let mut x = self.survey.sample.clone();
        if !shifts.is_empty() {
            x.data
                .chunks_exact_mut(shifts.len())
                .for_each(|row| row.iter_mut().zip(&shifts).for_each(|(v, z)| *v -= z));
        }
        halfbyte_tensor::scale_columns(&mut x.data, &inverse);
        let mut largest = 0.0f32;
        for (c, inverse) in inverse.iter().enumerate() {
            let z = shifts.get(c).copied().unwrap_or(0.0);
            let [max, min] = [self.survey.max[c], self.survey.min[c]].map(|v| (v - z).abs() * inverse);
            largest = largest.max(max).max(min);
        }
        self.assumed.round_input(&mut x, largest)?;
        let mut weights = self.weights.clone();
        weights.iter_mut().for_each(|w| halfbyte_tensor::scale_columns(&mut w.data, &factors));
        self.assumed.round_weights(&mut weights)?;
        let linears: Vec<Linear> = self.block.linears[self.tap]
            .iter()
            .zip(weights)
            .zip(&self.weights)
            .map(|((linear, weight), full)| {
                let mut bias = linear.bias.clone();
                if let (Some(bias), false) = (&mut bias, shifts.is_empty()) {
                    let added = times(&full.data, full.cols, &shifts);
                    bias.iter_mut().zip(added).for_each(|(b, a)| *b += a as f32);
                }
                let weight = Weight::Stored(RawTensor::F32(weight.data), full.cols);
                Linear {
                    site: linear.site.clone(),
                    weight,
                    bias,
                    input: None,
                    low_rank: None,
                    precision: Precision::F32,
                }
            })
            .collect();
        let got = self.outputs(&x, &linears);
        Ok(got
            .into_iter()
            .zip(&self.wanted)
            .map(|(mut got, wanted)| {
                got.data.iter_mut().zip(&wanted.data).for_each(|(g, w)| *g -= w);
                sum_of_squares(&got.data)
            })
            .sum())
    }

    /// The candidate of least error; the first of equals. Doing nothing is one too.
    pub(crate) fn best(&self, candidates: impl Iterator<Item = Change>) -> Result<Change, QuantizeError> {
        let none = Change::none(self.joint.channels);
        let mut best = (self.error(&none)?, none);
        for candidate in candidates {
            let error = self.error(&candidate)?;
            if error < best.0 {
                best = (error, candidate);
            }
        }
        Ok(best.1)
    }

    /// Sum of the squares of what errors are measured against.
    pub(crate) fn signal(&self) -> f64 {
        self.wanted.iter().map(|w| sum_of_squares(&w.data)).sum()
    }

    fn outputs(&self, x: &Matrix, linears: &[Linear]) -> Vec<Matrix> {
        if self.function {
            let carry = Carry(Matrix::default());
            let step = self.block.advance(self.tap, carry, x, linears, self.rotary, &self.survey.layout);
            if let Step::Tap(_, next) = step {
                return vec![next];
            }
        }
        linears.iter().map(|l| l.forward(x)).collect()
    }
}
