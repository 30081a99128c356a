//! Gradients of the generic block with respect to its weights and its input.
//!
//! Rounding is passed straight through: the gradient of a quantized weight or activation is taken for that of the number
//! before. Everything else is exact, for all that a block is made of; quantized probabilities and low-rank parts are the
//! exceptions ([`Block::gradients_refused`]).

use crate::RotaryTables;
use crate::block::{Around, Block, Operands, apart, beside};
use crate::linear::Linear;
use crate::spec::{Mlp, Projections, TapKind};
use halfbyte_tensor::{
    Columns, Layout, Matrix, Rows, add_assign, attention_backward, product_into, scale_columns,
};

/// Rows of a weight that are read as f32 at a time.
const ROWS: usize = 1024;

/// What a forward pass of a block leaves for the way back: activations of one layout's rows.
pub struct Trace {
    hidden: Matrix,
    /// What the layers of every tap get, before quantization, by the order of [`TapKind`].
    x: [Matrix; 4],
    /// Queries and keys before their norms, where they have some.
    projected: Option<[Matrix; 2]>,
    /// Queries, keys and values as attention's products see them.
    operands: Option<Operands>,
    attention: Left,
    /// The residual stream at the MLP.
    middle: Matrix,
    /// Before the activation function.
    gate: Matrix,
    /// What its result is multiplied by, in a gated MLP.
    up: Option<Matrix>,
    mlp: Left,
}

/// What [`Around::leave`] leaves for the way back.
#[derive(Default)]
struct Left {
    /// What the norm after the layers gets.
    y: Option<Matrix>,
    /// What the norm of the sum gets.
    sum: Option<Matrix>,
}

/// Gradients with respect to the weights of a block, `[outputs, inputs]` for each of its linear layers, to which those of
/// further traces are added; `None` for layers that need none.
pub type Gradients = Vec<Vec<Option<Matrix>>>;

impl Around {
    /// [`leave`](Self::leave), and what its way back needs.
    fn leave_traced(&self, mut hidden: Matrix, mut y: Matrix) -> (Matrix, Left) {
        let mut left = Left::default();
        if let Some(norm) = &self.after {
            let normed = norm.apply(&y);
            left.y = Some(std::mem::replace(&mut y, normed));
        }
        if let Some(scale) = &self.scale {
            scale_columns(&mut y.data, scale);
        }
        add_assign(&mut hidden.data, &y.data);
        if let Some(norm) = &self.post {
            let normed = norm.apply(&hidden);
            left.sum = Some(std::mem::replace(&mut hidden, normed));
        }
        (hidden, left)
    }

    /// The gradients of the residual stream before and of what the layers gave, for that of the stream behind.
    fn leave_backward(&self, left: &Left, grad: Matrix) -> (Matrix, Matrix) {
        let stream = match (&self.post, &left.sum) {
            (Some(norm), Some(sum)) => norm.backward(sum, &grad),
            _ => grad,
        };
        let mut y = stream.clone();
        if let Some(scale) = &self.scale {
            scale_columns(&mut y.data, scale);
        }
        if let (Some(norm), Some(before)) = (&self.after, &left.y) {
            y = norm.backward(before, &y);
        }
        (stream, y)
    }

    /// The gradient of the residual stream that [`enter`](Self::enter) reads.
    fn enter_backward(&self, hidden: &Matrix, grad: Matrix) -> Matrix {
        self.before.as_ref().map_or_else(|| grad.clone(), |n| n.backward(hidden, &grad))
    }
}

impl Linear {
    /// Adds the gradient of the weight to `weight`, for an input `x` before quantization and the gradient of the output.
    fn weight_backward(&self, x: &Matrix, grad: &Matrix, weight: &mut Matrix) {
        let seen = self.seen(x);
        let (rows, columns) =
            (Columns::new(&grad.data, grad.cols, grad.cols), Columns::new(&seen.data, seen.cols, seen.cols));
        let stride = weight.cols;
        product_into(&rows, &columns, &mut weight.data, stride, self.precision);
    }

    /// Adds the gradient of the input to `out`.
    fn input_backward(&self, grad: &Matrix, out: &mut Matrix) {
        let (outputs, inputs) = (self.site.outputs, self.site.inputs);
        for from in (0..outputs).step_by(ROWS) {
            let rows = ROWS.min(outputs - from);
            let weight = self.weight.rows_to_f32(from, rows);
            let piece = &grad.data[from..(grad.rows - 1) * outputs + from + rows];
            product_into(
                &Rows::strided(piece, outputs, rows),
                &Columns::new(&weight.data, inputs, inputs),
                &mut out.data,
                inputs,
                self.precision,
            );
        }
    }
}

impl Block {
    /// Why gradients of this block cannot be computed, if they cannot.
    pub fn gradients_refused(&self) -> Option<&'static str> {
        if self.products.as_ref().is_some_and(|p| p.probability.is_some()) {
            return Some("attention's quantized probabilities have no gradient here");
        }
        let low_rank = self.linears.iter().flatten().any(|l| l.low_rank.is_some());
        low_rank.then_some("low-rank parts have no gradient here")
    }

    /// [`forward`](Self::forward) with what [`backward`](Self::backward) needs.
    pub fn forward_traced(&self, hidden: Matrix, rotary: &RotaryTables, layout: &Layout) -> (Matrix, Trace) {
        let linears = |kind| self.linears_at(kind);
        let first = self.attention.enter(&hidden);
        let [query, key, value] = self.project(&first, linears(TapKind::AttentionInput));
        let projected = self.query_key.as_ref().map(|_| [query.clone(), key.clone()]);
        let mut operands = self.meet([query, key, value], rotary, layout);
        if let Some(products) = &self.products {
            operands.quantize(products);
        }
        let mixed = self.mix(&operands, layout, None);
        let y = linears(TapKind::AttentionOutput)[0].forward(&mixed);
        let (middle, attention) = self.attention.leave_traced(hidden.clone(), y);
        // The MLP of a parallel block reads what attention does.
        let normed = self.mlp.enter(if self.spec.parallel { &hidden } else { &middle });
        let layers = linears(TapKind::MlpInput);
        let mut gate = layers[0].forward(&normed);
        let up = match self.spec.mlp {
            Mlp::Plain => None,
            Mlp::Gated => Some(layers[1].forward(&normed)),
            Mlp::GatedStacked => {
                let (left, right) = apart(&gate);
                gate = left;
                Some(right)
            }
        };
        let mut inner = gate.clone();
        self.spec.activation.apply(&mut inner);
        if let Some(up) = &up {
            multiply(&mut inner, up);
        }
        let inner = self.mlp.inner(inner);
        let y = linears(TapKind::MlpInner)[0].forward(&inner);
        let (out, mlp) = self.mlp.leave_traced(middle.clone(), y);
        let x = [first, mixed, normed, inner];
        (out, Trace { hidden, x, projected, operands: Some(operands), attention, middle, gate, up, mlp })
    }

    /// The way back from the gradient `grad` of the block's output: adds the gradients of the weights to `weights`, and gives
    /// that of the block's input if `input` asks for it.
    ///
    /// # Panics
    /// If the layout has branches.
    pub fn backward(
        &self,
        trace: Trace,
        grad: Matrix,
        rotary: &RotaryTables,
        layout: &Layout,
        weights: &mut Gradients,
        input: bool,
    ) -> Option<Matrix> {
        let mut trace = trace;
        let parallel = self.spec.parallel;
        // The MLP.
        let (mut stream, y) = self.mlp.leave_backward(&trace.mlp, grad);
        let mut inner = self.through(TapKind::MlpInner, &trace, &[y], weights, true);
        if let Some(migration) = &self.mlp.inside {
            // Its input does not matter to its gradient.
            inner = migration.backward(&inner, &inner);
        }
        let mut slope = trace.gate.clone();
        self.spec.activation.slope(&mut slope);
        multiply(&mut slope, &inner);
        let grads = match trace.up.take() {
            None => vec![slope],
            Some(up) => {
                multiply(&mut slope, &up);
                let mut of_up = std::mem::take(&mut trace.gate);
                self.spec.activation.apply(&mut of_up);
                multiply(&mut of_up, &inner);
                match self.spec.mlp {
                    Mlp::GatedStacked => vec![beside(&slope, &of_up)],
                    _ => vec![slope, of_up],
                }
            }
        };
        let x = self.through(TapKind::MlpInput, &trace, &grads, weights, true);
        drop((grads, inner));
        let mut of_input = None;
        match parallel {
            true => of_input = input.then(|| self.mlp.enter_backward(&trace.hidden, x)),
            false => add_assign(&mut stream.data, &self.mlp.enter_backward(&trace.middle, x).data),
        }
        // Attention.
        let (stream, y) = self.attention.leave_backward(&trace.attention, stream);
        let mixed = self.through(TapKind::AttentionOutput, &trace, &[y], weights, true);
        let operands = trace.operands.take()?;
        let matrices = [&operands.query, &operands.key, &operands.value];
        let [mut query, mut key, value] = attention_backward(&self.spec.attention, layout, matrices, &mixed);
        drop((operands, mixed));
        let shape = &self.spec.attention;
        if let Some(rotary) = self.spec.rope.and_then(|r| rotary.0.get(r)) {
            rotary.apply_transposed(&mut query.data, shape.heads, shape.head_dim, layout.positions());
            rotary.apply_transposed(&mut key.data, shape.kv_heads, shape.head_dim, layout.positions());
        }
        if let (Some((queries, keys)), Some([q, k])) = (&self.query_key, &trace.projected) {
            (query, key) = (queries.backward(q, &query), keys.backward(k, &key));
        }
        let grads = self.projections_backward([query, key, value]);
        let x = self.through(TapKind::AttentionInput, &trace, &grads, weights, input);
        if !input {
            return None;
        }
        let mut out = stream;
        add_assign(&mut out.data, &self.attention.enter_backward(&trace.hidden, x).data);
        if let Some(more) = of_input {
            add_assign(&mut out.data, &more.data);
        }
        Some(out)
    }

    /// Where the layers of a kind are.
    fn tap_of(&self, kind: TapKind) -> usize {
        self.spec.taps.iter().position(|t| t.kind == kind).unwrap_or_default()
    }

    fn linears_at(&self, kind: TapKind) -> &[Linear] {
        &self.linears[self.tap_of(kind)]
    }

    /// Through the layers of a tap, for the gradients of their outputs: adds to their weights' and gives that of their input, or
    /// nothing if it is not wanted.
    fn through(
        &self,
        kind: TapKind,
        trace: &Trace,
        grads: &[Matrix],
        weights: &mut Gradients,
        input: bool,
    ) -> Matrix {
        let (tap, mut out) = (self.tap_of(kind), Matrix::default());
        let x = &trace.x[kind as usize];
        if input {
            out = Matrix::zeros(x.rows, x.cols);
        }
        for ((linear, grad), weight) in self.linears[tap].iter().zip(grads).zip(&mut weights[tap]) {
            if let Some(weight) = weight {
                linear.weight_backward(x, grad, weight);
            }
            if input {
                linear.input_backward(grad, &mut out);
            }
        }
        out
    }

    /// The reverse of [`project`](Self::project): gradients of what the layers gave.
    fn projections_backward(&self, [query, key, value]: [Matrix; 3]) -> Vec<Matrix> {
        match self.spec.projections {
            Projections::Separate => vec![query, key, value],
            Projections::Stacked => {
                vec![interleaved(&[&query, &key, &value], [query.cols, key.cols, value.cols])]
            }
            Projections::PerHead => {
                let dim = self.spec.attention.head_dim;
                vec![interleaved(&[&query, &key, &value], [dim; 3])]
            }
        }
    }
}

/// `x ← x ∘ y`.
fn multiply(x: &mut Matrix, y: &Matrix) {
    x.data.iter_mut().zip(&y.data).for_each(|(a, b)| *a *= b);
}

/// Pieces of the rows of three matrices in turn, of these sizes.
fn interleaved(parts: &[&Matrix; 3], sizes: [usize; 3]) -> Matrix {
    let cols = parts.iter().map(|p| p.cols).sum();
    let mut out = Vec::with_capacity(parts[0].rows * cols);
    for r in 0..parts[0].rows {
        for i in 0..parts[0].cols / sizes[0] {
            for (part, size) in parts.iter().zip(sizes) {
                out.extend_from_slice(&part.row(r)[i * size..(i + 1) * size]);
            }
        }
    }
    Matrix::new(parts[0].rows, cols, out)
}
