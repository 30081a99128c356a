//! Gradients of scaled dot-product attention.

use crate::activation::tanh_of;
use crate::attention::QUERIES;
use crate::layout::Tree;
use crate::ops::softmax;
use crate::product::product_serial;
use crate::{AttentionShape, Columns, Layout, Matrix, Rows, dot};
use rayon::prelude::*;

/// The gradients of [`attention`](crate::attention) with respect to its queries, keys and values, for the gradient `grad` of its
/// result, shaped as the queries. Probabilities are computed again rather than kept.
///
/// With `P = softmax(S)` and `dP = grad Vᵀ`, a row of `dS` is `p ∘ (dp − p · dp)`; `dV = Pᵀ grad`, `dQ = dS K` and `dK = dSᵀ Q`,
/// times the scale and, where scores are capped, `1 − tanh²`.
///
/// # Panics
/// If the layout has branches.
pub fn attention_backward(
    shape: &AttentionShape,
    layout: &Layout,
    [q, k, v]: [&Matrix; 3],
    grad: &Matrix,
) -> [Matrix; 3] {
    assert_eq!((layout.rows(), q.cols), (q.rows, grad.cols), "a layout or gradient of another shape");
    let tasks: Vec<(&Tree, usize)> =
        layout.trees().iter().flat_map(|t| (0..shape.heads).map(move |head| (t, head))).collect();
    let mut done: Vec<[Matrix; 3]> = Vec::new();
    tasks
        .par_iter()
        .map(|&(tree, head)| Head { shape, tree, head }.backward([q, k, v], grad))
        .collect_into_vec(&mut done);
    let (mut dq, mut dk, mut dv) =
        (Matrix::zeros(q.rows, q.cols), Matrix::zeros(k.rows, k.cols), Matrix::zeros(v.rows, v.cols));
    // Heads that share keys are added in their order.
    for ((tree, head), [of_q, of_k, of_v]) in tasks.into_iter().zip(done) {
        let group = head * shape.kv_heads / shape.heads;
        for (whole, part, head) in [(&mut dq, of_q, head), (&mut dk, of_k, group), (&mut dv, of_v, group)] {
            for r in 0..part.rows {
                let row = &mut whole.row_mut(tree.start + r)[head * shape.head_dim..][..shape.head_dim];
                row.iter_mut().zip(part.row(r)).for_each(|(w, p)| *w += p);
            }
        }
    }
    [dq, dk, dv]
}

/// One head of one sequence.
struct Head<'a> {
    shape: &'a AttentionShape,
    tree: &'a Tree,
    head: usize,
}

impl Head<'_> {
    /// The gradients of its queries, keys and values, `[tokens, head_dim]` each.
    fn backward(&self, [q, k, v]: [&Matrix; 3], grad: &Matrix) -> [Matrix; 3] {
        let Self { shape, tree, head } = *self;
        assert!(tree.branches.is_empty(), "gradients of branches");
        let (dim, tokens) = (shape.head_dim, tree.trunk);
        let group = head * shape.kv_heads / shape.heads;
        let [mut dq, mut dk, mut dv] = [0; 3].map(|_| Matrix::zeros(tokens, dim));
        let (mut probabilities, mut grads) = (Vec::new(), Vec::new());
        for first in (0..tokens).step_by(QUERIES) {
            let count = QUERIES.min(tokens - first);
            let from = shape.first_seen(first);
            let keys = if shape.causal { first + count } else { tokens } - from;
            // Some rows of this head, from position `first` on.
            let span = |m: &Matrix, head: usize, first: usize, rows: usize| {
                let at = (tree.start + first) * m.cols + head * dim;
                at..at + (rows - 1) * m.cols + dim
            };
            let queries = &q.data[span(q, head, first, count)];
            let wanted = &grad.data[span(grad, head, first, count)];
            let (k_rows, v_rows) = (&k.data[span(k, group, from, keys)], &v.data[span(v, group, from, keys)]);

            probabilities.clear();
            probabilities.resize(count * keys, 0.0);
            let rows = Rows::strided(queries, q.cols, dim);
            product_serial(&rows, &Rows::strided(k_rows, k.cols, dim), &mut probabilities, keys);
            let products = if shape.soft_cap.is_some() { probabilities.clone() } else { Vec::new() };
            for (i, row) in probabilities.chunks_exact_mut(keys).enumerate() {
                softmax(shape.weigh(head, first + i, from, row));
            }
            grads.clear();
            grads.resize(count * keys, 0.0);
            let rows = Rows::strided(wanted, grad.cols, dim);
            product_serial(&rows, &Rows::strided(v_rows, v.cols, dim), &mut grads, keys);
            // Keys that a query does not see have a probability of 0, and so a gradient of 0.
            for (row, p) in grads.chunks_exact_mut(keys).zip(probabilities.chunks_exact(keys)) {
                let mean = dot(row, p) as f32;
                row.iter_mut().zip(p).for_each(|(g, p)| *g = shape.scale * (p * (*g - mean)));
            }
            if let Some(cap) = shape.soft_cap {
                for (g, s) in grads.iter_mut().zip(&products) {
                    let t = tanh_of(s * shape.scale / cap);
                    *g *= 1.0 - t * t;
                }
            }
            let seen = from * dim..(from + keys) * dim;
            let columns = Columns::new(&probabilities, keys, keys);
            product_serial(&columns, &Columns::new(wanted, grad.cols, dim), &mut dv.data[seen.clone()], dim);
            let columns = Columns::new(&grads, keys, keys);
            product_serial(&columns, &Columns::new(queries, q.cols, dim), &mut dk.data[seen], dim);
            let of_queries = &mut dq.data[first * dim..(first + count) * dim];
            product_serial(&Rows::new(&grads, keys), &Columns::new(k_rows, k.cols, dim), of_queries, dim);
        }
        [dq, dk, dv]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention;

    fn values(rows: usize, cols: usize, seed: usize) -> Matrix {
        let data =
            (0..rows * cols).map(|i| (((i * 7919 + seed * 104_729) % 1000) as f32 - 500.0) / 400.0).collect();
        Matrix::new(rows, cols, data)
    }

    /// `grad · attention(q, k, v)` in f64.
    fn scalar(shape: &AttentionShape, layout: &Layout, operands: &[Matrix; 3], grad: &Matrix) -> f64 {
        let [q, k, v] = operands;
        let out = attention(shape, layout, q, k, v);
        out.data.iter().zip(&grad.data).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    #[test]
    fn gradients_are_differences_for_every_mask() {
        let mut layout = Layout::sequence(110);
        layout.push(7, &[]);
        let rows = layout.rows();
        let plain = AttentionShape { kv_heads: 2, ..AttentionShape::plain(4, 6) };
        let shapes = [
            plain,
            AttentionShape { causal: true, ..plain },
            AttentionShape { causal: true, window: Some(5), ..plain },
            AttentionShape { causal: true, window: Some(99), soft_cap: Some(0.7), ..plain },
            AttentionShape { causal: true, alibi: true, ..plain },
        ];
        let operands = [values(rows, 24, 1), values(rows, 12, 2), values(rows, 12, 3)];
        let grad = values(rows, 24, 4);
        for shape in shapes {
            let [q, k, v] = &operands;
            let got = attention_backward(&shape, &layout, [q, k, v], &grad);
            for (part, got) in got.iter().enumerate() {
                let largest = got.data.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                for at in (0..got.data.len()).step_by(131) {
                    let h = 1.0 / 64.0;
                    let moved = |by: f32| {
                        let mut moved = operands.clone();
                        moved[part].data[at] += by;
                        scalar(&shape, &layout, &moved, &grad)
                    };
                    let expected = ((moved(h) - moved(-h)) / f64::from(2.0 * h)) as f32;
                    let error = (got.data[at] - expected).abs();
                    assert!(error < 2e-3 * largest, "{shape:?} {part} {at}: {} {expected}", got.data[at]);
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let layout = Layout::sequence(130);
        let shape = AttentionShape { kv_heads: 2, causal: true, ..AttentionShape::plain(6, 8) };
        let (q, k, v, grad) =
            (values(130, 48, 1), values(130, 16, 2), values(130, 16, 3), values(130, 48, 4));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| attention_backward(&shape, &layout, [&q, &k, &v], &grad))
        };
        assert_eq!(run(1), run(3));
    }
}
