//! The activations at one tap, and the statistics that methods take from them.

use crate::QuantizeError;
use crate::store::Store;
use halfbyte_formats::{InputQuantizer, kernel};
use halfbyte_tensor::{Columns, Matrix, Precision, gram, mirror, mix, product_into, sum_of_squares};
use rayon::prelude::*;

/// What the linear layers of one tap are calibrated on: their inputs, for which the full-precision layer's outputs are
/// to be reproduced.
pub struct TapInputs {
    /// The inputs, before quantization.
    pub x: Store,
    /// How much each token's error counts, token by token for every window; `None` for all alike.
    pub weights: Option<Vec<Vec<f32>>>,
}

/// Second moments over all tokens, for inputs `X` and their quantized form `X̂`.
pub struct Moments {
    /// `X̂ᵀX̂`, `[inputs, inputs]`.
    pub gram: Vec<f32>,
    /// `XᵀX̂`, `[inputs, inputs]`; absent where `X̂ = X` or nobody asks.
    pub cross: Option<Vec<f32>>,
}

/// A sample of tokens.
pub struct Sample {
    /// Inputs before quantization, `[tokens drawn, inputs]`.
    pub x: Matrix,
    /// How many tokens they stand for.
    pub tokens: usize,
    /// How much each token's error counts; `None` for 1.
    pub weights: Option<Vec<f32>>,
}

impl TapInputs {
    /// Input channels.
    pub fn channels(&self) -> usize {
        self.x.channels()
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.x.rows().iter().sum()
    }

    /// Largest magnitude of every channel.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn channel_max(&self) -> Result<Vec<f32>, QuantizeError> {
        let mut max = vec![0.0; self.channels()];
        for i in 0..self.x.windows() {
            let window = self.x.get(i)?;
            for row in window.data.chunks_exact(window.cols) {
                kernel::column_max_abs(row, &mut max);
            }
        }
        Ok(max)
    }

    /// Moments with the inputs quantized by `quantizer`, if there is one, by products of this precision. `cross` asks for
    /// the cross moments, which are two thirds of the work.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn moments(
        &self,
        quantizer: Option<&InputQuantizer>,
        cross: bool,
        precision: Precision,
    ) -> Result<Moments, QuantizeError> {
        let k = self.channels();
        let cross = quantizer.filter(|_| cross).map(|_| vec![0.0; k * k]);
        let mut moments = Moments { gram: vec![0.0; k * k], cross };
        for i in 0..self.x.windows() {
            let mut x = self.x.get(i)?;
            let quantized = quantizer.map(|q| quantized(&x, q));
            if let Some(weights) = &self.weights {
                scale_rows(&mut x, &weights[i]);
            }
            let Some(mut quantized) = quantized else {
                gram(&x.data, k, &mut moments.gram, precision);
                continue;
            };
            if let Some(weights) = &self.weights {
                scale_rows(&mut quantized, &weights[i]);
            }
            gram(&quantized.data, k, &mut moments.gram, precision);
            if let Some(cross) = &mut moments.cross {
                let (x, quantized) = (Columns::new(&x.data, k, k), Columns::new(&quantized.data, k, k));
                product_into(&x, &quantized, cross, k, precision);
            }
        }
        mirror(&mut moments.gram, k);
        Ok(moments)
    }

    /// At most `count` tokens: an eighth of them those with the most energy, which a random draw would miss and whose
    /// clipping ruins a network (arXiv 2402.17762), the others one from each of as many equal stretches; the same for the
    /// same seed. The weights make sums over the sample estimates of sums over all tokens.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn sample(&self, count: usize, seed: u64) -> Result<Sample, QuantizeError> {
        let (total, k) = (self.tokens(), self.channels());
        let importance = if count < total { self.draw(count, seed)? } else { vec![1.0; total] };
        let mut x = Matrix::zeros(importance.iter().filter(|w| **w > 0.0).count(), k);
        let mut weights = Vec::with_capacity(x.rows);
        let mut token = 0;
        for i in 0..self.x.windows() {
            let window = self.x.get(i)?;
            for r in 0..window.rows {
                if importance[token] > 0.0 {
                    x.row_mut(weights.len()).copy_from_slice(window.row(r));
                    weights.push(importance[token] * self.weights.as_ref().map_or(1.0, |w| w[i][r]));
                }
                token += 1;
            }
        }
        let plain = weights.iter().all(|&w| w == 1.0);
        Ok(Sample { x, tokens: total, weights: (!plain).then_some(weights) })
    }

    /// For every token how many it stands for: 0 if it is not drawn.
    fn draw(&self, count: usize, seed: u64) -> Result<Vec<f32>, QuantizeError> {
        let mut energy = Vec::with_capacity(self.tokens());
        for i in 0..self.x.windows() {
            energy.extend(self.x.get(i)?.data.chunks_exact(self.channels()).map(sum_of_squares));
        }
        let mut order: Vec<usize> = (0..energy.len()).collect();
        order.sort_by(|&a, &b| energy[b].total_cmp(&energy[a]).then(a.cmp(&b)));
        let (strong, rest) = order.split_at(count / 8);
        let mut rest = rest.to_vec();
        rest.sort_unstable();
        let drawn = count - strong.len();
        let mut importance = vec![0.0; energy.len()];
        strong.iter().for_each(|&t| importance[t] = 1.0);
        for i in 0..drawn {
            let (from, to) = (i * rest.len() / drawn, (i + 1) * rest.len() / drawn);
            let pick = from + (mix(seed ^ i as u64) % (to - from) as u64) as usize;
            importance[rest[pick]] = (to - from) as f32;
        }
        Ok(importance)
    }
}

/// The inputs as layers see them through `quantizer`.
pub(crate) fn quantized(x: &Matrix, quantizer: &InputQuantizer) -> Matrix {
    let mut seen = Matrix::zeros(x.rows, x.cols);
    // A few whole rows, enough work for a task.
    let piece = x.cols * (16_384 / x.cols.max(1)).max(1);
    seen.data.par_chunks_mut(piece.max(1)).zip(x.data.par_chunks(piece.max(1))).for_each(|(seen, x)| {
        seen.copy_from_slice(x);
        quantizer.apply(seen);
    });
    seen
}

/// Multiplies every row by the square root of its weight, so that second moments count it by its weight.
pub(crate) fn scale_rows(x: &mut Matrix, weights: &[f32]) {
    for (row, weight) in x.data.chunks_exact_mut(x.cols).zip(weights) {
        let factor = weight.sqrt();
        row.iter_mut().for_each(|v| *v *= factor);
    }
}
