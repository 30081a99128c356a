//! The head: from the last block's output to logits.

use crate::linear::Linear;
use crate::norm::Norm;
use crate::spec::{HeadSpec, Pool};
use halfbyte_tensor::{Layout, Matrix, add_assign, tanh};

/// The head with its weights.
#[derive(Debug)]
pub struct Head {
    /// Its description.
    pub spec: HeadSpec,
    /// The layers, in the spec's order.
    pub linears: Vec<Linear>,
    pub(crate) norm: Option<Norm>,
    /// The norm behind each layer, if any.
    pub(crate) norms: Vec<Option<Norm>>,
}

impl Head {
    /// The first layer's input: the norm of the last block's output `[rows, hidden]`, of which the rows that the head looks
    /// at are taken from each sequence of `layout`. Sequences without rows give none.
    pub fn enter(&self, hidden: &Matrix, layout: &Layout) -> Matrix {
        let normed = |x: &Matrix| self.norm.as_ref().map_or_else(|| x.clone(), |n| n.apply(x));
        let sequences = || layout.ranges().filter(|r| !r.is_empty());
        match self.spec.pool {
            Pool::All => normed(hidden),
            Pool::First => {
                let rows: Vec<f32> = sequences().flat_map(|r| hidden.row(r.start)).copied().collect();
                normed(&Matrix::new(rows.len() / hidden.cols, hidden.cols, rows))
            }
            Pool::FirstAndMean { from } => {
                let hidden = normed(hidden);
                let mut out = Matrix::zeros(sequences().count(), 2 * hidden.cols);
                for (i, range) in sequences().enumerate() {
                    let (first, mean) = out.row_mut(i).split_at_mut(hidden.cols);
                    first.copy_from_slice(hidden.row(range.start));
                    let rows = (range.start + from).min(range.end)..range.end;
                    let factor = 1.0 / rows.len().max(1) as f32;
                    rows.for_each(|r| add_assign(mean, hidden.row(r)));
                    mean.iter_mut().for_each(|v| *v *= factor);
                }
                out
            }
        }
    }

    /// Goes from the input `x` of layer `layer` to that of the next, or to the logits, through `linear` (the head's own, or
    /// one that stands in for it).
    pub fn advance(&self, layer: usize, x: &Matrix, linear: &Linear) -> Matrix {
        let mut x = linear.forward(x);
        if let Some(activation) = self.spec.layers[layer].activation {
            activation.apply(&mut x);
        }
        if let Some(norm) = &self.norms[layer] {
            x = norm.apply(&x);
        }
        if let Some(cap) = self.spec.soft_cap.filter(|_| layer + 1 == self.linears.len()) {
            x.data.iter_mut().for_each(|v| *v /= cap);
            tanh(&mut x.data);
            x.data.iter_mut().for_each(|v| *v *= cap);
        }
        x
    }

    /// The network's output for the last block's output `[rows, hidden]`: logits, or the normed rows where there is no
    /// layer. One row a row of `hidden` or, where the head pools, one a sequence of `layout`.
    pub fn output(&self, hidden: &Matrix, layout: &Layout) -> Matrix {
        let x = self.enter(hidden, layout);
        self.linears.iter().enumerate().fold(x, |x, (layer, linear)| self.advance(layer, &x, linear))
    }

    /// [`output`](Self::output) for rows of which the head looks at every one by itself.
    pub fn logits(&self, hidden: &Matrix) -> Matrix {
        self.output(hidden, &Layout::sequence(hidden.rows))
    }
}
