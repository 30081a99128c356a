//! The generic block: whatever lies between the taps that an architecture lists.

use crate::RotaryTables;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::spec::{BlockSpec, Mlp, Projections, TapKind};
use halfbyte_checkpoint::StoredAttention;
use halfbyte_formats::InputQuantizer;
use halfbyte_tensor::{Layout, Matrix, OnProbabilities, add_assign, attention_through, scale_columns};
use rayon::prelude::*;

/// One block with its weights.
#[derive(Clone, Debug)]
pub struct Block {
    /// The description that it was loaded from.
    pub spec: BlockSpec,
    /// The linear layers of every tap, in the spec's order.
    pub linears: Vec<Vec<Linear>>,
    pub(crate) attention: Around,
    pub(crate) mlp: Around,
    /// Norms on query and key heads.
    pub(crate) query_key: Option<(Norm, Norm)>,
    /// The quantizers of attention's own products; `None` if those are left alone.
    pub products: Option<StoredAttention>,
}

/// What the attention of some sequences mixes, a token a row: queries and keys as they meet, normed and rotated, and values.
#[derive(Clone, Debug, PartialEq)]
pub struct Operands {
    /// Queries `[tokens, heads · head_dim]`.
    pub query: Matrix,
    /// Keys `[tokens, kv_heads · head_dim]`.
    pub key: Matrix,
    /// Values, likewise.
    pub value: Matrix,
}

impl Operands {
    /// As the products see them through these quantizers.
    pub fn quantize(&mut self, quantizers: &StoredAttention) {
        let pairs = [
            (&mut self.query, &quantizers.query),
            (&mut self.key, &quantizers.key),
            (&mut self.value, &quantizers.value),
        ];
        for (operand, quantizer) in pairs {
            if let Some(quantizer) = quantizer {
                apply(operand, quantizer);
            }
        }
    }
}

/// Quantizes every row.
fn apply(x: &mut Matrix, quantizer: &InputQuantizer) {
    const ROWS: usize = 32;
    x.data.par_chunks_mut((ROWS * x.cols).max(1)).for_each(|rows| quantizer.apply(rows));
}

/// Norms and scale around attention or the MLP, see [`crate::Sublayer`].
#[derive(Clone, Debug)]
pub(crate) struct Around {
    pub(crate) before: Option<Norm>,
    pub(crate) after: Option<Norm>,
    pub(crate) scale: Option<Vec<f32>>,
    pub(crate) post: Option<Norm>,
    pub(crate) inside: Option<Norm>,
}

impl Around {
    pub(crate) fn enter(&self, hidden: &Matrix) -> Matrix {
        self.before.as_ref().map_or_else(|| hidden.clone(), |n| n.apply(hidden))
    }

    /// What the last layer reads, for what comes before it.
    pub(crate) fn inner(&self, x: Matrix) -> Matrix {
        match &self.inside {
            Some(migration) => migration.apply(&x),
            None => x,
        }
    }

    /// The residual stream `hidden` after `y` has been added.
    fn leave(&self, mut hidden: Matrix, mut y: Matrix) -> Matrix {
        if let Some(norm) = &self.after {
            y = norm.apply(&y);
        }
        if let Some(scale) = &self.scale {
            scale_columns(&mut y.data, scale);
        }
        add_assign(&mut hidden.data, &y.data);
        match &self.post {
            Some(norm) => norm.apply(&hidden),
            None => hidden,
        }
    }
}

/// What a sequence carries from tap to tap besides the activations there, one row a token: the residual stream and, in a
/// parallel block, the MLP's input beside it until it is used (see [`BlockSpec::carried`]).
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
        let x = self.attention.enter(&hidden);
        let carry = if self.spec.parallel { beside(&hidden, &self.mlp.enter(&hidden)) } else { hidden };
        (Carry(carry), x)
    }

    /// Goes from tap `tap`, with activations `x` of the sequences of `layout`, to the next one, through the `linears` of
    /// this tap (the block's own, or ones that stand in for them).
    pub fn advance(
        &self,
        tap: usize,
        carry: Carry,
        x: &Matrix,
        linears: &[Linear],
        rotary: &RotaryTables,
        layout: &Layout,
    ) -> Step {
        let Carry(carry) = carry;
        match self.spec.taps[tap].kind {
            TapKind::AttentionInput => {
                let operands = self.operands(x, linears, rotary, layout);
                Step::Tap(Carry(carry), self.attend(operands, layout, self.products.as_ref()))
            }
            TapKind::AttentionOutput => {
                let y = linears[0].forward(x);
                if self.spec.parallel {
                    let (hidden, x) = apart(&carry);
                    return Step::Tap(Carry(self.attention.leave(hidden, y)), x);
                }
                let hidden = self.attention.leave(carry, y);
                let x = self.mlp.enter(&hidden);
                Step::Tap(Carry(hidden), x)
            }
            TapKind::MlpInput => {
                let (mut first, up) = match self.spec.mlp {
                    Mlp::Plain => (linears[0].forward(x), None),
                    Mlp::Gated => {
                        let [gate, up] = Linear::forward_all([&linears[0], &linears[1]], x);
                        (gate, Some(up))
                    }
                    Mlp::GatedStacked => {
                        let (gate, up) = apart(&linears[0].forward(x));
                        (gate, Some(up))
                    }
                };
                self.spec.activation.apply(&mut first);
                if let Some(up) = up {
                    first.data.iter_mut().zip(&up.data).for_each(|(g, u)| *g *= u);
                }
                Step::Tap(Carry(carry), self.mlp.inner(first))
            }
            TapKind::MlpInner | TapKind::Head => Step::Done(self.mlp.leave(carry, linears[0].forward(x))),
        }
    }

    /// What attention mixes, for activations `x` at the first tap and the `linears` there.
    pub fn operands(
        &self,
        x: &Matrix,
        linears: &[Linear],
        rotary: &RotaryTables,
        layout: &Layout,
    ) -> Operands {
        let [query, key, value] = self.project(x, linears);
        self.meet([query, key, value], rotary, layout)
    }

    /// Projections as they meet in attention.
    pub(crate) fn meet(
        &self,
        [mut query, mut key, value]: [Matrix; 3],
        rotary: &RotaryTables,
        layout: &Layout,
    ) -> Operands {
        let shape = &self.spec.attention;
        if let Some((queries, keys)) = &self.query_key {
            (query, key) = (queries.apply(&query), keys.apply(&key));
        }
        if let Some(rotary) = self.spec.rope.and_then(|r| rotary.0.get(r)) {
            rotary.apply(&mut query.data, shape.heads, shape.head_dim, layout.positions());
            rotary.apply(&mut key.data, shape.kv_heads, shape.head_dim, layout.positions());
        }
        Operands { query, key, value }
    }

    /// The mixed values `[tokens, heads · head_dim]`, the products quantized by `products`.
    pub fn attend(
        &self,
        mut operands: Operands,
        layout: &Layout,
        products: Option<&StoredAttention>,
    ) -> Matrix {
        let Some(products) = products else { return self.mix(&operands, layout, None) };
        operands.quantize(products);
        match &products.probability {
            None => self.mix(&operands, layout, None),
            Some(q) => self.mix(&operands, layout, Some(&|head, row| q.apply(head, row))),
        }
    }

    /// The same for operands as they are, whose probabilities go through `between`.
    pub fn mix(&self, operands: &Operands, layout: &Layout, between: Option<OnProbabilities>) -> Matrix {
        let matrices = [&operands.query, &operands.key, &operands.value];
        attention_through(&self.spec.attention, layout, matrices, between)
    }

    /// Queries, keys and values.
    pub(crate) fn project(&self, x: &Matrix, linears: &[Linear]) -> [Matrix; 3] {
        let shape = &self.spec.attention;
        let (dim, heads, kv_heads) = (shape.head_dim, shape.heads, shape.kv_heads);
        match self.spec.projections {
            Projections::Separate => Linear::forward_all([&linears[0], &linears[1], &linears[2]], x),
            Projections::Stacked => {
                let fused = linears[0].forward(x);
                let (q, kv) = (heads * dim, kv_heads * dim);
                [
                    pieces(&fused, fused.cols, 0, q),
                    pieces(&fused, fused.cols, q, kv),
                    pieces(&fused, fused.cols, q + kv, kv),
                ]
            }
            Projections::PerHead => {
                let fused = linears[0].forward(x);
                [0, 1, 2].map(|part| pieces(&fused, 3 * dim, part * dim, dim))
            }
        }
    }

    /// The block's output `[rows, hidden]` for the sequences that `layout` finds in the rows of `hidden`: the same bits as
    /// for each of them alone.
    pub fn forward(&self, hidden: Matrix, rotary: &RotaryTables, layout: &Layout) -> Matrix {
        let (mut carry, mut x) = self.enter(hidden);
        for (tap, linears) in self.linears.iter().enumerate() {
            match self.advance(tap, carry, &x, linears, rotary, layout) {
                Step::Tap(c, next) => (carry, x) = (c, next),
                Step::Done(hidden) => return hidden,
            }
        }
        carry.0
    }

    /// The factor on each channel of what the layers at `tap` add to the residual stream, if there is one.
    pub fn residual_scale(&self, tap: usize) -> Option<&[f32]> {
        let around = match self.spec.taps[tap].kind {
            TapKind::AttentionOutput => &self.attention,
            TapKind::MlpInner => &self.mlp,
            _ => return None,
        };
        around.scale.as_deref()
    }
}

/// Every row cut into pieces of `period` values, of which those from `from` on are taken, `count` of them.
fn pieces(x: &Matrix, period: usize, from: usize, count: usize) -> Matrix {
    let mut out = Vec::with_capacity(x.data.len() / period * count);
    x.data.chunks_exact(period).for_each(|piece| out.extend_from_slice(&piece[from..from + count]));
    Matrix::new(x.rows, x.cols / period * count, out)
}

/// The left and the right half of every row.
pub(crate) fn apart(x: &Matrix) -> (Matrix, Matrix) {
    let half = x.cols / 2;
    (pieces(x, x.cols, 0, half), pieces(x, x.cols, half, half))
}

/// Two matrices of equal shape side by side.
pub(crate) fn beside(a: &Matrix, b: &Matrix) -> Matrix {
    let mut out = Vec::with_capacity(2 * a.data.len());
    for (a, b) in a.data.chunks_exact(a.cols).zip(b.data.chunks_exact(b.cols)) {
        out.extend_from_slice(a);
        out.extend_from_slice(b);
    }
    Matrix::new(a.rows, a.cols + b.cols, out)
}
