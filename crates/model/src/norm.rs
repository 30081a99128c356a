//! Norms with their weights.

use crate::spec::{NormKind, NormSpec};
use halfbyte_tensor::{Matrix, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward, scale_columns};

/// A norm with its weights.
#[derive(Clone, Debug)]
pub struct Norm {
    spec: NormSpec,
    /// The factor on each channel; what the checkpoint stores lacks an offset in some families.
    pub weight: Vec<f32>,
    /// What is added to each channel; empty for RMSNorm.
    pub bias: Vec<f32>,
}

impl Norm {
    /// From the stored weight and, for LayerNorm, the bias.
    pub(crate) fn new(spec: &NormSpec, mut weight: Vec<f32>, bias: Vec<f32>) -> Self {
        if let NormKind::Rms { offset } = spec.kind
            && offset != 0.0
        {
            weight.iter_mut().for_each(|w| *w += offset);
        }
        Self { spec: spec.clone(), weight, bias }
    }

    /// Factors of 1 and a bias of 0.
    pub(crate) fn identity(spec: &NormSpec, channels: usize) -> Self {
        Self { spec: spec.clone(), weight: vec![1.0; channels], bias: vec![0.0; channels] }
    }

    /// Its description.
    pub fn spec(&self) -> &NormSpec {
        &self.spec
    }

    /// The weight as the checkpoint stores it.
    pub(crate) fn stored_weight(&self) -> Vec<f32> {
        match self.spec.kind {
            NormKind::Rms { offset } => self.weight.iter().map(|w| w - offset).collect(),
            NormKind::Layer | NormKind::Channels => self.weight.clone(),
        }
    }

    /// The norm of every piece of `x` that is as long as the weight: rows, or the heads of a row.
    pub(crate) fn apply(&self, x: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(x.rows, x.cols);
        match self.spec.kind {
            NormKind::Rms { .. } => rms_norm(&x.data, &self.weight, self.spec.eps, &mut out.data),
            NormKind::Layer => layer_norm(&x.data, &self.weight, &self.bias, self.spec.eps, &mut out.data),
            NormKind::Channels => {
                let n = self.weight.len();
                for (row, out) in x.data.chunks_exact(n).zip(out.data.chunks_exact_mut(n)) {
                    for (((o, v), w), b) in out.iter_mut().zip(row).zip(&self.weight).zip(&self.bias) {
                        *o = w * v + b;
                    }
                }
            }
        }
        out
    }

    /// The gradient with respect to `x`, for the gradient `grad` of [`apply`](Self::apply).
    pub(crate) fn backward(&self, x: &Matrix, grad: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(x.rows, x.cols);
        let (x, grad, eps) = (&x.data, &grad.data, self.spec.eps);
        match self.spec.kind {
            NormKind::Rms { .. } => rms_norm_backward(x, &self.weight, eps, grad, &mut out.data),
            NormKind::Layer => layer_norm_backward(x, &self.weight, eps, grad, &mut out.data),
            NormKind::Channels => {
                out.data.copy_from_slice(grad);
                scale_columns(&mut out.data, &self.weight);
            }
        }
        out
    }
}
