//! Norms with their weights.

use crate::spec::{NormKind, NormSpec};
use halfbyte_tensor::{Matrix, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};

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

    /// Its description.
    pub fn spec(&self) -> &NormSpec {
        &self.spec
    }

    /// The weight as the checkpoint stores it.
    pub(crate) fn stored_weight(&self) -> Vec<f32> {
        match self.spec.kind {
            NormKind::Rms { offset } => self.weight.iter().map(|w| w - offset).collect(),
            NormKind::Layer => self.weight.clone(),
        }
    }

    /// The norm of every piece of `x` that is as long as the weight: rows, or the heads of a row.
    pub(crate) fn apply(&self, x: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(x.rows, x.cols);
        match self.spec.kind {
            NormKind::Rms { .. } => rms_norm(&x.data, &self.weight, self.spec.eps, &mut out.data),
            NormKind::Layer => layer_norm(&x.data, &self.weight, &self.bias, self.spec.eps, &mut out.data),
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
        }
        out
    }
}
