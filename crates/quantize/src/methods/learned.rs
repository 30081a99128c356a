//! Learned rounding: which of two neighbouring values of its grid each weight takes, by the error of the block's output.
//!
//! AdaRound (arXiv 2004.10568) as AutoRound does it (arXiv 2309.05516). A weight is a position on its grid, in steps from
//! value to value and between two of them in proportion, which rounding to the nearest whole position makes a code. A step
//! computes the block on a few calibration windows, the gradient of its output's squared error with respect to every rounded
//! weight, and moves all positions by the same little way against the gradient's sign; the way shrinks linearly and adds up
//! to half a step of the grid. Scales stay as they are, and so do the quantizers of inputs, through which gradients pass.
//!
//! Positions begin at the full-precision weight or, where something else was chosen than its nearest value (error feedback,
//! correction), at the end of the chosen value's reach that is nearest to it. So the first codes are those of the recipe
//! without learning.

use crate::QuantizeError;
use crate::clock::{Phase, timed};
use crate::recipe::Recipe;
use crate::residual::inverse;
use crate::store::Store;
use crate::stream::{Advance, OnTap, Surroundings};
use halfbyte_formats::{Element, Granularity, QuantizedMatrix, pack};
use halfbyte_model::{Block, Gradients, Linear, Weight};
use halfbyte_tensor::{Matrix, mix, sum_of_squares};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How far from its code's own place a position may begin, in steps of the grid.
const REACH: f32 = 0.49;
/// How often in all the block is judged on the calibration windows.
pub(crate) const JUDGED: usize = 5;
/// Tokens on which it is judged at most.
pub(crate) const JUDGED_TOKENS: usize = 16_384;

/// What learning did for a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnedBlock {
    /// Name of its attention.
    pub name: String,
    /// Squared error of its output relative to the output's square, tokens weighted as the recipe says, before.
    pub before: f64,
    /// The same with the rounding that was kept.
    pub after: f64,
    /// The step after which it was found; 0 if none was better than the beginning.
    pub step: usize,
}

/// What the outputs of a block are compared with.
pub(crate) struct Wanted<'a> {
    /// The block's input.
    pub(crate) input: &'a Store,
    /// The full-precision block's output.
    pub(crate) output: &'a Store,
    /// How much each token's error counts, for every window.
    weights: Vec<Vec<f32>>,
}

impl<'a> Wanted<'a> {
    /// With the token weights of the recipe: all alike, or one over the mean square of the output.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub(crate) fn new(input: &'a Store, output: &'a Store, recipe: &Recipe) -> Result<Self, QuantizeError> {
        let mut squares = Vec::with_capacity(output.windows());
        for i in 0..output.windows() {
            let y = output.get(i)?;
            squares.push(match recipe.token_weights {
                true => y.data.chunks_exact(y.cols).map(sum_of_squares).collect(),
                false => vec![1.0; y.rows],
            });
        }
        Ok(Self { input, output, weights: inverse(&squares) })
    }

    /// What `y` lacks of the output of window `i`, a token's share times its weight; and the weighted squares of what it lacks
    /// and of the output.
    fn lack(&self, i: usize, mut y: Matrix) -> Result<(Matrix, f64, f64), QuantizeError> {
        let wanted = self.output.get(i)?;
        let (mut error, mut signal) = (0.0, 0.0);
        let rows = y.data.chunks_exact_mut(wanted.cols).zip(wanted.data.chunks_exact(wanted.cols));
        for ((y, wanted), &weight) in rows.zip(&self.weights[i]) {
            y.iter_mut().zip(wanted).for_each(|(y, w)| *y -= w);
            error += f64::from(weight) * sum_of_squares(y);
            signal += f64::from(weight) * sum_of_squares(wanted);
            y.iter_mut().for_each(|y| *y *= weight);
        }
        Ok((y, error, signal))
    }

    /// Relative error of the block's output over these windows.
    fn judge(&self, block: &Block, windows: &[usize], around: &Surroundings) -> Result<f64, QuantizeError> {
        let (mut error, mut signal) = (0.0, 0.0);
        for &i in windows {
            let y = block.forward(self.input.get(i)?, around.rotary, &around.layouts[i]);
            let (_, e, s) = self.lack(i, y)?;
            (error, signal) = (error + e, signal + s);
        }
        Ok(if signal > 0.0 { error / signal } else { 0.0 })
    }
}

/// Improves the codes of the quantized layers of `block`, whose full-precision layers are `full`. The codes of least error are
/// left in the block.
///
/// # Errors
/// When a store cannot be read, or `on_tap` asks to stop.
pub(crate) fn learn(
    block: &mut Block,
    full: &[Vec<Linear>],
    wanted: &Wanted,
    recipe: &Recipe,
    around: &Surroundings,
    on_tap: OnTap,
) -> Result<LearnedBlock, QuantizeError> {
    let steps = recipe.rounding_steps;
    let rows = wanted.input.rows().to_vec();
    let judged = spread(&rows, JUDGED_TOKENS);
    let judge = |block: &Block| timed(Phase::Forward, || wanted.judge(block, &judged, around));
    let before = judge(block)?;
    let mut learned =
        LearnedBlock { name: block.spec.attention_name().into(), before, after: before, step: 0 };
    let mut layers: Vec<Vec<Option<Layer>>> = block
        .linears
        .iter()
        .zip(full)
        .map(|(now, full)| now.iter().zip(full).map(|(now, full)| Layer::new(now, full)).collect())
        .collect();
    let mut gradients: Gradients = block
        .linears
        .iter()
        .zip(&layers)
        .map(|(linears, layers)| {
            let zeros = |(linear, layer): (&Linear, &Option<Layer>)| {
                layer.as_ref().map(|_| Matrix::zeros(linear.site.outputs, linear.site.inputs))
            };
            linears.iter().zip(layers).map(zeros).collect()
        })
        .collect();
    let mut turns = Turns::new(rows.len(), recipe.seed);
    for step in 0..steps {
        on_tap(Advance::Steps { done: step, all: steps })?;
        gradients.iter_mut().flatten().flatten().for_each(|g| g.data.fill(0.0));
        let mut tokens = 0;
        while tokens < recipe.rounding_tokens.min(rows.iter().sum()) {
            let i = turns.next();
            tokens += rows[i];
            timed(Phase::Learn, || {
                let layout = &around.layouts[i];
                let (y, trace) = block.forward_traced(wanted.input.get(i)?, around.rotary, layout);
                let (grad, ..) = wanted.lack(i, y)?;
                block.backward(trace, grad, around.rotary, layout, &mut gradients, false);
                Ok::<_, QuantizeError>(())
            })?;
        }
        // AutoRound's rate: one over the steps, falling to nothing.
        let rate = (1.0 - step as f32 / steps as f32) / steps as f32;
        timed(Phase::Round, || {
            let linears = block.linears.iter_mut().flatten();
            for ((linear, layer), grad) in
                linears.zip(layers.iter_mut().flatten()).zip(gradients.iter().flatten())
            {
                if let (Weight::Quantized(matrix), Some(layer), Some(grad)) =
                    (&mut linear.weight, layer, grad)
                {
                    layer.step(matrix, grad, rate);
                }
            }
        });
        if (step + 1) % steps.div_ceil(JUDGED) != 0 && step + 1 < steps {
            continue;
        }
        let error = judge(block)?;
        if error < learned.after {
            (learned.after, learned.step) = (error, step + 1);
            for (linear, layer) in block.linears.iter().flatten().zip(layers.iter_mut().flatten()) {
                if let (Weight::Quantized(matrix), Some(layer)) = (&linear.weight, layer) {
                    layer.best.clone_from(&matrix.codes);
                }
            }
        }
    }
    for (linear, layer) in block.linears.iter_mut().flatten().zip(layers.into_iter().flatten()) {
        if let (Weight::Quantized(matrix), Some(layer)) = (&mut linear.weight, layer) {
            matrix.codes = layer.best;
        }
    }
    on_tap(Advance::Steps { done: steps, all: steps })?;
    Ok(learned)
}

/// Windows of about `most` tokens in all, spread over all of them.
fn spread(rows: &[usize], most: usize) -> Vec<usize> {
    let all: usize = rows.iter().sum();
    let count = (rows.len() * most).div_ceil(all.max(1)).min(rows.len());
    (0..count).map(|i| i * rows.len() / count).collect()
}

/// Windows in a random order, each once before any comes again.
struct Turns {
    seed: u64,
    order: Vec<usize>,
    at: usize,
}

impl Turns {
    fn new(windows: usize, seed: u64) -> Self {
        Self { seed: mix(seed), order: (0..windows).collect(), at: windows }
    }

    fn next(&mut self) -> usize {
        if self.at == self.order.len() {
            self.at = 0;
            for i in (1..self.order.len()).rev() {
                self.seed = mix(self.seed);
                self.order.swap(i, (self.seed % (i as u64 + 1)) as usize);
            }
        }
        self.at += 1;
        self.order[self.at - 1]
    }
}

/// The values of an element in their order, with their codes.
struct Values {
    values: Vec<f32>,
    codes: Vec<u8>,
    /// The place of every code.
    places: Vec<u8>,
}

impl Values {
    fn of(element: Element) -> Self {
        let all = (0..1u32 << element.bits()).map(|code| (element.value(code as u8), code as u8));
        // One zero, no NaN, and no integer below the range.
        let mut pairs: Vec<(f32, u8)> =
            all.filter(|(v, code)| v.abs() <= element.max_value() && (*v != 0.0 || *code == 0)).collect();
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut places = vec![0; 1 << element.bits()];
        pairs.iter().enumerate().for_each(|(i, (_, code))| places[usize::from(*code)] = i as u8);
        let (values, codes) = pairs.into_iter().unzip();
        Self { values, codes, places }
    }

    /// Where `x` lies among them, from 0 to the last.
    fn position(&self, x: f32) -> f32 {
        let above = self.values.partition_point(|v| *v <= x);
        match (above.checked_sub(1), self.values.get(above)) {
            (None, _) => 0.0,
            (Some(below), None) => below as f32,
            (Some(below), Some(next)) => {
                let value = self.values[below];
                below as f32 + (x - value) / (next - value)
            }
        }
    }
}

/// A quantized layer that learns.
struct Layer {
    values: Values,
    /// Position of every weight among the values.
    positions: Vec<f32>,
    /// The packed codes of least error.
    best: Vec<u8>,
}

impl Layer {
    /// `None` for a layer that is not quantized.
    fn new(now: &Linear, full: &Linear) -> Option<Self> {
        let Weight::Quantized(matrix) = &now.weight else { return None };
        let (cols, bits) = (matrix.cols, matrix.scheme.element.bits());
        let values = Values::of(matrix.scheme.element);
        let mut positions = vec![0.0f32; matrix.rows * cols];
        let room = || (vec![0u8; cols], vec![0.0f32; cols]);
        positions.par_chunks_mut(cols).enumerate().for_each_init(room, |(codes, row), (r, positions)| {
            let bytes = matrix.row_bytes();
            pack::unpack(bits, &matrix.codes[r * bytes..(r + 1) * bytes], cols, codes);
            full.weight.read_row(r, row);
            let (share, scales) = scales_of(matrix, r);
            let spans = positions.chunks_mut(share).zip(codes.chunks(share)).zip(row.chunks(share));
            for (((positions, codes), row), scale) in spans.zip(scales) {
                let inverse = 1.0 / (scale * matrix.tensor_scale);
                for ((position, &code), &x) in positions.iter_mut().zip(codes).zip(row) {
                    let place = f32::from(values.places[usize::from(code)]);
                    *position = values.position(x * inverse).clamp(place - REACH, place + REACH);
                }
            }
        });
        Some(Self { values, positions, best: matrix.codes.clone() })
    }

    /// Moves every position by `rate` against the sign of its gradient, and makes codes of them.
    fn step(&mut self, matrix: &mut QuantizedMatrix, grad: &Matrix, rate: f32) {
        let (cols, bits, bytes) = (matrix.cols, matrix.scheme.element.bits(), matrix.row_bytes());
        let (last, values) = ((self.values.codes.len() - 1) as f32, &self.values);
        let rows = self.positions.par_chunks_mut(cols).zip(grad.data.par_chunks(cols));
        rows.zip(matrix.codes.par_chunks_mut(bytes)).for_each_init(
            || vec![0u8; cols],
            |codes, ((positions, grad), packed)| {
                for ((position, &g), code) in positions.iter_mut().zip(grad).zip(codes.iter_mut()) {
                    // A gradient of zero, as of a channel that is always zero, moves nothing.
                    let way = if g > 0.0 {
                        -rate
                    } else if g < 0.0 {
                        rate
                    } else {
                        0.0
                    };
                    *position = (*position + way).clamp(0.0, last);
                    *code = values.codes[(*position + 0.5) as usize];
                }
                pack::pack(bits, codes, packed);
            },
        );
    }
}

/// How many neighbours of row `r` share a scale, and those scales.
fn scales_of(matrix: &QuantizedMatrix, r: usize) -> (usize, &[f32]) {
    match matrix.scheme.granularity {
        Granularity::Tensor => (matrix.cols, &matrix.scales[..1]),
        Granularity::Channel => (matrix.cols, &matrix.scales[r..=r]),
        Granularity::Group(group) => {
            let groups = matrix.cols / group;
            (group, &matrix.scales[r * groups..(r + 1) * groups])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_checkpoint::RawTensor;
    use halfbyte_formats::Scheme;
    use halfbyte_model::Site;
    use halfbyte_tensor::Precision;

    #[test]
    fn values_are_a_grid_without_a_second_zero() {
        let e2m1 = Values::of(Element::E2M1);
        let half = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let expected: Vec<f32> = half[1..].iter().rev().map(|v| -v).chain(half).collect();
        assert_eq!(e2m1.values, expected);
        assert_eq!((e2m1.position(-9.0), e2m1.position(0.25), e2m1.position(5.0)), (0.0, 7.5, 13.5));
        assert_eq!(Values::of(Element::INT4).values.len(), 15);
        assert_eq!(Values::of(Element::E4M3Fn).values.len(), 253);
    }

    #[test]
    fn positions_begin_at_their_codes_and_a_step_moves_them() {
        for scheme in
            ["e2m1/group16/e4m3", "e2m1/group32/e8m0", "int4/group32", "int8/channel", "e4m3fn/tensor"]
        {
            let scheme: Scheme = scheme.parse().unwrap();
            let full: Vec<f32> = (0..4 * 64).map(|i| ((i * 7919) % 1000) as f32 / 300.0 - 1.7).collect();
            let matrix = QuantizedMatrix::quantize_max("w", &full, 4, 64, scheme).unwrap();
            let linear = |weight| Linear {
                site: Site::new("w", 4, 64),
                weight,
                bias: None,
                input: None,
                low_rank: None,
                precision: Precision::F32,
            };
            let before = linear(Weight::Quantized(matrix.clone()));
            let stored = linear(Weight::Stored(RawTensor::F32(full.clone()), 64));
            let mut layer = Layer::new(&before, &stored).unwrap();
            let mut moved = matrix.clone();
            layer.step(&mut moved, &Matrix::zeros(4, 64), 0.1);
            assert_eq!(moved, matrix, "{scheme}: without a gradient nothing moves");
            // Half a step up takes every weight to the value above the full-precision one, if there is one.
            layer.step(&mut moved, &Matrix::new(4, 64, vec![-1.0; 4 * 64]), 0.4999);
            let (values, above) = (matrix.dequantize(), moved.dequantize());
            assert!(values.iter().zip(&above).all(|(a, b)| b >= a) && values != above, "{scheme}");
            let top = |i: usize| {
                let (share, scales) = scales_of(&matrix, i / 64);
                scheme.element.max_value() * scales[i % 64 / share] * matrix.tensor_scale
            };
            assert!((0..4 * 64).all(|i| above[i] >= full[i].min(top(i)) - 1e-4), "{scheme}");
        }
    }

    #[test]
    fn every_window_has_its_turn() {
        let mut turns = Turns::new(5, 3);
        for _ in 0..3 {
            let mut round: Vec<usize> = (0..5).map(|_| turns.next()).collect();
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2, 3, 4]);
        }
        assert_eq!(spread(&[512; 20], 2048), [0, 5, 10, 15]);
        assert_eq!(spread(&[10; 3], 2048), [0, 1, 2]);
    }
}
