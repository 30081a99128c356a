//! Linear layers, from full-precision tensors or from codes.

use crate::spec::Site;
use halfbyte_checkpoint::{LowRank, RawTensor};
use halfbyte_formats::{InputQuantizer, QuantizedMatrix};
use halfbyte_tensor::{Matrix, Operand, Precision, Rows, product_into};
use rayon::prelude::*;
use std::borrow::Cow;

/// A weight `[outputs, inputs]` in the form in which it is stored.
#[derive(Clone, Debug)]
pub enum Weight {
    /// f32, f16 or bf16, and the number of inputs.
    Stored(RawTensor, usize),
    /// Codes and scales.
    Quantized(QuantizedMatrix),
}

impl Weight {
    fn with<R>(&self, f: impl FnOnce(&dyn Operand) -> R) -> R {
        match self {
            Self::Stored(RawTensor::F32(v), inputs) => f(&Rows::new(v, *inputs)),
            Self::Stored(RawTensor::F16(v), inputs) => f(&Rows::new(v, *inputs)),
            Self::Stored(RawTensor::BF16(v), inputs) => f(&Rows::new(v, *inputs)),
            Self::Quantized(q) => f(&Codes(q)),
        }
    }

    /// Writes row `row` as f32.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        self.with(|w| w.read(row, 0, out));
    }

    /// All of it as f32.
    pub fn to_f32(&self) -> Matrix {
        self.with(|w| rows_to_f32(w, 0, w.rows()))
    }

    /// Rows `from..from + rows` as f32.
    pub(crate) fn rows_to_f32(&self, from: usize, rows: usize) -> Matrix {
        self.with(|w| rows_to_f32(w, from, rows))
    }
}

fn rows_to_f32(weight: &dyn Operand, from: usize, rows: usize) -> Matrix {
    let mut out = Matrix::zeros(rows, weight.depth());
    let cols = out.cols;
    out.data.par_chunks_mut(cols).enumerate().for_each(|(r, row)| weight.read(from + r, 0, row));
    out
}

struct Codes<'a>(&'a QuantizedMatrix);

impl Operand for Codes<'_> {
    fn rows(&self) -> usize {
        self.0.rows
    }
    fn depth(&self) -> usize {
        self.0.cols
    }
    fn read(&self, row: usize, from: usize, out: &mut [f32]) {
        self.0.dequantize_piece(row, from, out);
    }
}

/// A linear layer that can be computed: `y = Q(x) Wᵀ + b`, with a low-rank part `y = Q(x) (W + U D)ᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Its description.
    pub site: Site,
    /// The weight.
    pub weight: Weight,
    /// The bias `[outputs]`.
    pub bias: Option<Vec<f32>>,
    /// How the input is quantized first, if it is.
    pub input: Option<InputQuantizer>,
    /// What is added to the weight, as a product of two thin matrices, if anything is.
    pub low_rank: Option<LowRank>,
    /// How exactly its products are computed.
    pub precision: Precision,
}

impl Linear {
    /// The layer's output `[tokens, outputs]` for `x` `[tokens, inputs]`.
    pub fn forward(&self, x: &Matrix) -> Matrix {
        self.through(&self.seen(x))
    }

    /// The outputs of layers that get the same input `x`, which is quantized once for all that quantize it alike.
    pub(crate) fn forward_all<const N: usize>(layers: [&Self; N], x: &Matrix) -> [Matrix; N] {
        let mut last: Option<(&Self, Cow<Matrix>)> = None;
        layers.map(|layer| {
            let seen = match last.take() {
                Some((before, seen)) if before.input == layer.input => seen,
                _ => layer.seen(x),
            };
            let out = layer.through(&seen);
            last = Some((layer, seen));
            out
        })
    }

    /// The output for an input as the product sees it.
    fn through(&self, seen: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(seen.rows, self.site.outputs);
        if let Some(bias) = &self.bias {
            out.data.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
        }
        let x = Rows::new(&seen.data, self.site.inputs);
        let stride = self.site.outputs;
        self.weight.with(|w| product_into(&x, w, &mut out.data, stride, self.precision));
        if let Some(LowRank { rank, down, up }) = &self.low_rank {
            let mut inner = vec![0.0; x.rows() * rank];
            product_into(&x, &Rows::new(down, self.site.inputs), &mut inner, *rank, self.precision);
            let (inner, up) = (Rows::new(&inner, *rank), Rows::new(up, *rank));
            product_into(&inner, &up, &mut out.data, stride, self.precision);
        }
        out
    }

    /// Its input `x` as its product sees it.
    pub(crate) fn seen<'a>(&self, x: &'a Matrix) -> Cow<'a, Matrix> {
        let Some(quantizer) = &self.input else { return Cow::Borrowed(x) };
        let mut x = x.clone();
        x.data.par_chunks_mut(x_chunk(self.site.inputs)).for_each(|rows| quantizer.apply(rows));
        Cow::Owned(x)
    }
}

/// A few whole rows, enough work for a task.
fn x_chunk(channels: usize) -> usize {
    channels * (16_384 / channels).max(1)
}
