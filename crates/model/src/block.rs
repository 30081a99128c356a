//! The generic block: whatever lies between the taps that an architecture lists.

use crate::architectures::{BlockSpec, NormSpec, TapKind};
use crate::linear::Linear;
use halfbyte_tensor::{Layout, Matrix, Rotary, add_assign, attention, rms_norm, silu};

/// One block with its weights.
#[derive(Debug)]
pub struct Block {
    /// The description that it was loaded from.
    pub spec: BlockSpec,
    /// The linear layers of every tap, in the spec's order.
    pub linears: Vec<Vec<Linear>>,
    /// Weights of the norms: attention, MLP, and those on query and key heads.
    pub(crate) norms: Norms,
}

#[derive(Debug)]
pub(crate) struct Norms {
    pub(crate) attention: Vec<f32>,
    pub(crate) mlp: Vec<f32>,
    pub(crate) query_key: Option<(Vec<f32>, Vec<f32>)>,
}

/// What a sequence carries from tap to tap besides the activations there: the residual stream, `[tokens, hidden]`.
#[derive(Clone, Debug)]
pub struct Carry(pub Matrix);

/// Where a block's computation has come to.
#[derive(Debug)]
pub enum Step {
    /// At the next tap: the carry, and the activations that its linear layers get, `[tokens, channels]`.
    Tap(Carry, Matrix),
    /// At the end: the block's output `[tokens, hidden]`.
    Done(Matrix),
}

impl Block {
    /// The activations at the first tap, for the block's input `[tokens, hidden]`.
    pub fn enter(&self, hidden: Matrix) -> (Carry, Matrix) {
        let x = normed(&hidden, &self.norms.attention, &self.spec.attention_norm);
        (Carry(hidden), x)
    }

    /// Goes from tap `tap`, with activations `x` of one sequence, to the next one, through the `linears` of this tap (the
    /// block's own, or ones that stand in for them).
    pub fn advance(&self, tap: usize, carry: Carry, x: &Matrix, linears: &[Linear], rotary: &Rotary) -> Step {
        self.advance_packed(tap, carry, x, linears, rotary, &Layout::sequence(x.rows))
    }

    /// As [`advance`](Self::advance) for rows that form the sequences of `layout`.
    pub fn advance_packed(
        &self,
        tap: usize,
        carry: Carry,
        x: &Matrix,
        linears: &[Linear],
        rotary: &Rotary,
        layout: &Layout,
    ) -> Step {
        let Carry(mut hidden) = carry;
        match self.spec.taps[tap].kind {
            TapKind::AttentionInput => {
                let shape = &self.spec.attention;
                let (mut q, mut k, v) = (linears[0].forward(x), linears[1].forward(x), linears[2].forward(x));
                if let (Some((qw, kw)), Some((qs, ks))) = (&self.norms.query_key, &self.spec.query_key_norm) {
                    q.data = normed_heads(&q, qw, qs);
                    k.data = normed_heads(&k, kw, ks);
                }
                rotary.apply(&mut q.data, shape.heads, shape.head_dim, layout.positions());
                rotary.apply(&mut k.data, shape.kv_heads, shape.head_dim, layout.positions());
                Step::Tap(Carry(hidden), attention(shape, layout, &q, &k, &v))
            }
            TapKind::AttentionOutput => {
                add_assign(&mut hidden.data, &linears[0].forward(x).data);
                let x = normed(&hidden, &self.norms.mlp, &self.spec.mlp_norm);
                Step::Tap(Carry(hidden), x)
            }
            TapKind::MlpInput => {
                let (mut gate, up) = (linears[0].forward(x), linears[1].forward(x));
                silu(&mut gate.data);
                gate.data.iter_mut().zip(&up.data).for_each(|(g, u)| *g *= u);
                Step::Tap(Carry(hidden), gate)
            }
            TapKind::MlpInner | TapKind::Head => {
                add_assign(&mut hidden.data, &linears[0].forward(x).data);
                Step::Done(hidden)
            }
        }
    }

    /// The block's output `[tokens, hidden]` for one sequence `hidden`.
    pub fn forward(&self, hidden: Matrix, rotary: &Rotary) -> Matrix {
        let layout = Layout::sequence(hidden.rows);
        self.forward_packed(hidden, rotary, &layout)
    }

    /// The block's output `[tokens, hidden]` for the sequences that `layout` finds in the rows of `hidden`: the same bits
    /// as for each of them alone.
    pub fn forward_packed(&self, hidden: Matrix, rotary: &Rotary, layout: &Layout) -> Matrix {
        let (mut carry, mut x) = self.enter(hidden);
        for (tap, linears) in self.linears.iter().enumerate() {
            match self.advance_packed(tap, carry, &x, linears, rotary, layout) {
                Step::Tap(c, next) => (carry, x) = (c, next),
                Step::Done(hidden) => return hidden,
            }
        }
        carry.0
    }
}

pub(crate) fn normed(x: &Matrix, weight: &[f32], spec: &NormSpec) -> Matrix {
    let mut out = Matrix::zeros(x.rows, x.cols);
    rms_norm(&x.data, weight, spec.eps, &mut out.data);
    out
}

/// The norm of every head, whose channels are the weight's.
fn normed_heads(x: &Matrix, weight: &[f32], spec: &NormSpec) -> Vec<f32> {
    let mut out = vec![0.0; x.data.len()];
    rms_norm(&x.data, weight, spec.eps, &mut out);
    out
}
