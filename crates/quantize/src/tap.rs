//! The activations at one tap, and the statistics that methods take from them.

use crate::QuantizeError;
use crate::store::Store;
use halfbyte_formats::{InputQuantizer, kernel};
use halfbyte_tensor::{Columns, Matrix, gram, mirror, product_into};

/// What the linear layers of one tap are calibrated on.
pub struct TapInputs {
    /// The inputs that the quantized layers will see.
    pub seen: Store,
    /// The inputs whose full-precision outputs they should reproduce; `None` if they are the same.
    pub wanted: Option<Store>,
    /// How much each token's error counts, token by token for every window; `None` for all alike.
    pub weights: Option<Vec<Vec<f32>>>,
}

/// Second moments over all tokens, for `X̂` the quantized inputs and `X` the wanted ones.
pub struct Moments {
    /// `X̂ᵀX̂`, `[inputs, inputs]`.
    pub gram: Vec<f32>,
    /// `XᵀX̂`, `[inputs, inputs]`; absent where `X̂ = X`.
    pub cross: Option<Vec<f32>>,
}

/// A sample of tokens.
pub struct Sample {
    /// Inputs as the quantized layers will see them, `[tokens, inputs]`.
    pub seen: Matrix,
    /// The wanted ones, where they differ.
    pub wanted: Option<Matrix>,
    /// How much each token's error counts; `None` for all alike.
    pub weights: Option<Vec<f32>>,
}

impl Sample {
    /// The wanted inputs.
    pub fn wanted(&self) -> &Matrix {
        self.wanted.as_ref().unwrap_or(&self.seen)
    }
}

impl TapInputs {
    /// Input channels.
    pub fn channels(&self) -> usize {
        self.seen.channels()
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.seen.rows().iter().sum()
    }

    /// Largest magnitude of every channel.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn channel_max(&self) -> Result<Vec<f32>, QuantizeError> {
        let mut max = vec![0.0; self.channels()];
        for i in 0..self.seen.windows() {
            let window = self.seen.get(i)?;
            for row in window.data.chunks_exact(window.cols) {
                kernel::column_max_abs(row, &mut max);
            }
        }
        Ok(max)
    }

    /// Moments with the inputs quantized by `quantizer`, if there is one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn moments(&self, quantizer: Option<&InputQuantizer>) -> Result<Moments, QuantizeError> {
        let k = self.channels();
        let mut moments = Moments { gram: vec![0.0; k * k], cross: None };
        let mut cross = (self.wanted.is_some() || quantizer.is_some()).then(|| vec![0.0; k * k]);
        for i in 0..self.seen.windows() {
            let mut window = self.seen.get(i)?;
            let wanted = match &self.wanted {
                Some(store) => Some(store.get(i)?),
                None => quantizer.map(|_| window.clone()),
            };
            if let Some(q) = quantizer {
                q.apply(&mut window.data);
            }
            let wanted = match &self.weights {
                None => wanted,
                Some(weights) => {
                    scale_rows(&mut window, &weights[i]);
                    wanted.map(|mut w| {
                        scale_rows(&mut w, &weights[i]);
                        w
                    })
                }
            };
            gram(&window.data, k, &mut moments.gram);
            if let (Some(cross), Some(wanted)) = (&mut cross, wanted) {
                product_into(&Columns::new(&wanted.data, k, k), &Columns::new(&window.data, k, k), cross, k);
            }
        }
        mirror(&mut moments.gram, k);
        moments.cross = cross;
        Ok(moments)
    }

    /// At most `count` tokens, one drawn at random from each of as many equal stretches; the same for the same seed.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn sample(&self, count: usize, seed: u64) -> Result<Sample, QuantizeError> {
        let (total, k) = (self.tokens(), self.channels());
        let count = count.min(total);
        let mut seen = Matrix::zeros(count, k);
        let mut wanted = self.wanted.as_ref().map(|_| Matrix::zeros(count, k));
        let picks: Vec<usize> = (0..count)
            .map(|i| {
                let (from, to) = (i * total / count, (i + 1) * total / count);
                from + (mix(seed ^ i as u64) % (to - from) as u64) as usize
            })
            .collect();
        let mut weights = self.weights.as_ref().map(|_| vec![0.0; count]);
        let (mut next, mut first) = (0, 0);
        for i in 0..self.seen.windows() {
            let last = first + self.seen.rows()[i];
            if next < count && picks[next] < last {
                let here = self.seen.get(i)?;
                let there = self.wanted.as_ref().map(|w| w.get(i)).transpose()?;
                while next < count && picks[next] < last {
                    seen.row_mut(next).copy_from_slice(here.row(picks[next] - first));
                    if let (Some(wanted), Some(there)) = (&mut wanted, &there) {
                        wanted.row_mut(next).copy_from_slice(there.row(picks[next] - first));
                    }
                    if let (Some(weights), Some(all)) = (&mut weights, &self.weights) {
                        weights[next] = all[i][picks[next] - first];
                    }
                    next += 1;
                }
            }
            first = last;
        }
        Ok(Sample { seen, wanted, weights })
    }
}

/// Multiplies every row by the square root of its weight, so that second moments count it by its weight.
pub(crate) fn scale_rows(x: &mut Matrix, weights: &[f32]) {
    for (row, weight) in x.data.chunks_exact_mut(x.cols).zip(weights) {
        let factor = weight.sqrt();
        row.iter_mut().for_each(|v| *v *= factor);
    }
}

/// SplitMix64's finaliser.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
