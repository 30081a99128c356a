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
    /// The readers that are quantized, those alike together.
    pub(crate) groups: Vec<Group>,
    block: &'a Block,
    tap: usize,
    rotary: &'a RotaryTables,
    function: bool,
}

/// Layers that read the tap and are quantized alike.
pub(crate) struct Group {
    pub(crate) assumed: Assumed,
    /// Their places among the readers.
    readers: Vec<usize>,
    pub(crate) weights: Vec<Matrix>,
    /// What they, or the block, make of the sample in full precision.
    wanted: Vec<Matrix>,
}

impl Group {
    /// Layers of these weights.
    #[cfg(test)]
    pub(crate) fn alike(assumed: Assumed, weights: Vec<Matrix>) -> Self {
        Self { assumed, readers: (0..weights.len()).collect(), weights, wanted: Vec::new() }
    }

    /// The readers that `assumed`, of each, says are quantized.
    fn of(linears: &[Linear], assumed: &[Assumed]) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for (i, (linear, &assumed)) in
            linears.iter().zip(assumed).enumerate().filter(|(_, (_, a))| !a.is_none())
        {
            let weight = linear.weight.to_f32();
            match groups.iter_mut().find(|g| g.assumed == assumed) {
                Some(group) => {
                    group.readers.push(i);
                    group.weights.push(weight);
                }
                None => {
                    groups.push(Self { assumed, readers: vec![i], weights: vec![weight], wanted: Vec::new() })
                }
            }
        }
        groups
    }
}

impl<'a> Trial<'a> {
    /// `assumed` has what is done to each of the tap's readers. What the block makes of their outputs is measured only where that is
    /// the same for all; otherwise their outputs are.
    pub(crate) fn new(
        block: &'a Block,
        tap: usize,
        survey: &'a Survey,
        joint: &'a Joint,
        assumed: &[Assumed],
        rotary: &'a RotaryTables,
        measured: Measured,
    ) -> Self {
        let linears = &block.linears[tap];
        let groups = Group::of(linears, assumed);
        let alike = groups.first().is_some_and(|g| g.readers.len() == linears.len());
        let function = match block.spec.taps[tap].kind {
            TapKind::AttentionInput => true,
            // Of a plain first layer the product itself counts.
            TapKind::MlpInput => block.spec.mlp != Mlp::Plain,
            _ => false,
        } && measured == Measured::Function
            && alike;
        let mut trial = Self { survey, joint, groups, block, tap, rotary, function };
        for g in 0..trial.groups.len() {
            trial.groups[g].wanted = trial.outputs(&survey.sample, linears, &trial.groups[g].readers);
        }
        trial
    }

    /// Weights of the readers that are quantized.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &Matrix> {
        self.groups.iter().flat_map(|g| &g.weights)
    }

    /// Largest magnitude of every channel of the producer.
    pub(crate) fn largest(&self) -> Vec<f32> {
        self.joint.gather(&self.survey.largest())
    }

    /// Largest magnitude of the weights that read each of them.
    pub(crate) fn weight_largest(&self) -> Vec<f32> {
        let mut largest = vec![0.0; self.survey.max.len()];
        for weight in self.weights() {
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
        let (mut total, last) = (0.0, self.groups.len().saturating_sub(1));
        for (g, group) in self.groups.iter().enumerate() {
            let mut rounded = if g < last { x.clone() } else { std::mem::take(&mut x) };
            group.assumed.round_input(&mut rounded, largest)?;
            total += self.error_of(group, &rounded, &factors, &shifts)?;
        }
        Ok(total)
    }

    /// Sum of the squared errors of a group's outputs for the rounded input `x`, once its weights have taken the factors and are
    /// rounded.
    fn error_of(
        &self,
        group: &Group,
        x: &Matrix,
        factors: &[f32],
        shifts: &[f32],
    ) -> Result<f64, QuantizeError> {
        let mut weights = group.weights.clone();
        weights.iter_mut().for_each(|w| halfbyte_tensor::scale_columns(&mut w.data, factors));
        group.assumed.round_weights(&mut weights)?;
        let members = group.readers.iter().zip(weights).zip(&group.weights);
        let linears: Vec<Linear> = members
            .map(|((&reader, weight), full)| {
                let linear = &self.block.linears[self.tap][reader];
                let mut bias = linear.bias.clone();
                if let (Some(bias), false) = (&mut bias, shifts.is_empty()) {
                    let added = times(&full.data, full.cols, shifts);
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
        let got = self.outputs(x, &linears, &(0..linears.len()).collect::<Vec<_>>());
        Ok(got
            .into_iter()
            .zip(&group.wanted)
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

    /// The best of `steps` candidates whose error changes little from one to the next: every few of them, and then those
    /// around the best of these.
    pub(crate) fn best_of_grid(
        &self,
        steps: usize,
        candidate: impl Fn(usize) -> Change,
    ) -> Result<Change, QuantizeError> {
        let error = |i: usize| Ok((i, self.error(&candidate(i))?));
        let mut tried = coarse(steps).map(error).collect::<Result<Vec<_>, QuantizeError>>()?;
        let least = |tried: &[(usize, f64)]| {
            tried.iter().copied().filter(|t| !t.1.is_nan()).min_by(|a, b| a.1.total_cmp(&b.1))
        };
        if let Some((best, _)) = least(&tried) {
            let fine = around(best, steps).map(error).collect::<Result<Vec<_>, QuantizeError>>()?;
            tried.extend(fine);
        }
        let none = Change::none(self.joint.channels);
        match least(&tried) {
            Some((best, error)) if error < self.error(&none)? => Ok(candidate(best)),
            _ => Ok(none),
        }
    }

    /// Sum of the squares of what errors are measured against.
    pub(crate) fn signal(&self) -> f64 {
        self.groups.iter().flat_map(|g| &g.wanted).map(|w| sum_of_squares(&w.data)).sum()
    }

    /// What the layers `chosen` of these make of `x`, or the block of all.
    fn outputs(&self, x: &Matrix, linears: &[Linear], chosen: &[usize]) -> Vec<Matrix> {
        if self.function {
            let carry = Carry(Matrix::default());
            let step = self.block.advance(self.tap, carry, x, linears, self.rotary, &self.survey.layout);
            if let Step::Tap(_, next) = step {
                return vec![next];
            }
        }
        chosen.iter().map(|&i| linears[i].forward(x)).collect()
    }
}

/// Between candidates of a grid that are looked at first: so many that about as many follow.
fn stride(steps: usize) -> usize {
    ((steps as f64 / 2.0).sqrt() as usize).max(1)
}

fn coarse(steps: usize) -> impl Iterator<Item = usize> {
    (0..steps).step_by(stride(steps))
}

/// The candidates between `best` and its neighbours among the [`coarse`] ones.
fn around(best: usize, steps: usize) -> impl Iterator<Item = usize> {
    let reach = stride(steps) - 1;
    (best.saturating_sub(reach)..(best + reach + 1).min(steps)).filter(move |&i| i != best)
}

/// Candidates that [`Trial::best_of_grid`] looks at, at most.
pub(super) fn tried(steps: usize) -> usize {
    steps.div_ceil(stride(steps)) + 2 * (stride(steps) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_searched_by_a_few_candidates_and_those_around_the_best() {
        assert_eq!(coarse(100).collect::<Vec<_>>(), (0..100).step_by(7).collect::<Vec<_>>());
        assert_eq!(around(14, 100).collect::<Vec<_>>(), [8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20]);
        assert_eq!(around(0, 100).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(around(98, 100).last(), Some(99));
        assert_eq!((tried(100), tried(1), tried(0)), (27, 1, 0));
        for steps in 1..200 {
            // Wherever the best is, it is a coarse one or between two of them, and is looked at from the nearer.
            for best in 0..steps {
                let nearer = coarse(steps).min_by_key(|c| c.abs_diff(best)).unwrap();
                assert!(nearer == best || around(nearer, steps).any(|i| i == best), "{best} of {steps}");
            }
        }
    }
}
