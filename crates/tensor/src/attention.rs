//! Scaled dot-product attention over one sequence.

use crate::ops::softmax;
use crate::product::product_serial;
use crate::{Columns, Matrix, Rows};
use rayon::prelude::*;

/// The shape of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Factor on `q · k`, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Whether a token sees only itself and earlier ones.
    pub causal: bool,
    /// How many tokens, itself included, a causal token sees at most.
    pub window: Option<usize>,
}

/// Rows of queries computed together.
const QUERIES: usize = 96;

/// `softmax(q kᵀ · scale) v`, head by head: `q` is `[tokens, heads · head_dim]`, `k` and `v`
/// `[tokens, kv_heads · head_dim]`, the result shaped as `q`.
pub fn attention(shape: &AttentionShape, q: &Matrix, k: &Matrix, v: &Matrix) -> Matrix {
    let (tokens, dim) = (q.rows, shape.head_dim);
    let mut out = Matrix::zeros(tokens, shape.heads * dim);
    let (width, kv_width) = (out.cols, k.cols);
    out.data.par_chunks_mut((QUERIES * width).max(1)).enumerate().for_each(|(i, out)| {
        let first = i * QUERIES;
        let count = out.len() / width;
        let from = match shape.window {
            Some(window) if shape.causal => (first + 1).saturating_sub(window),
            _ => 0,
        };
        let to = if shape.causal { first + count } else { tokens };
        let keys = to - from;
        let mut scores = vec![0.0f32; count * keys];
        for head in 0..shape.heads {
            let group = head * shape.kv_heads / shape.heads;
            let queries =
                Rows::strided(&q.data[first * width + head * dim..][..(count - 1) * width + dim], width, dim);
            let span = from * kv_width + group * dim..(to - 1) * kv_width + (group + 1) * dim;
            scores.fill(0.0);
            product_serial(&queries, &Rows::strided(&k.data[span.clone()], kv_width, dim), &mut scores, keys);
            for (r, row) in scores.chunks_exact_mut(keys).enumerate() {
                let token = first + r;
                let seen = if shape.causal { token + 1 - from } else { keys };
                let hidden = match shape.window {
                    Some(window) if shape.causal => (token + 1).saturating_sub(window) - from,
                    _ => 0,
                };
                row[..hidden].fill(0.0);
                row[seen..].fill(0.0);
                let row = &mut row[hidden..seen];
                row.iter_mut().for_each(|s| *s *= shape.scale);
                softmax(row);
            }
            let probabilities = Rows::new(&scores, keys);
            let at = head * dim;
            product_serial(
                &probabilities,
                &Columns::new(&v.data[span], kv_width, dim),
                &mut out[at..],
                width,
            );
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(rows: usize, cols: usize, seed: usize) -> Matrix {
        let data =
            (0..rows * cols).map(|i| (((i * 7919 + seed * 104_729) % 1000) as f32 - 500.0) / 250.0).collect();
        Matrix::new(rows, cols, data)
    }

    /// The definition, one query at a time in f64.
    fn plain(s: &AttentionShape, q: &Matrix, k: &Matrix, v: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(q.rows, q.cols);
        for t in 0..q.rows {
            for h in 0..s.heads {
                let g = h * s.kv_heads / s.heads * s.head_dim;
                let seen = |j: usize| !s.causal || (j <= t && s.window.is_none_or(|w| t - j < w));
                let score = |j: usize| -> f64 {
                    let pairs = (0..s.head_dim).map(|d| (q.row(t)[h * s.head_dim + d], k.row(j)[g + d]));
                    pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>() * f64::from(s.scale)
                };
                let e: Vec<f64> = (0..k.rows).map(|j| if seen(j) { score(j).exp() } else { 0.0 }).collect();
                let total: f64 = e.iter().sum();
                for d in 0..s.head_dim {
                    let value: f64 = (0..k.rows).map(|j| e[j] / total * f64::from(v.row(j)[g + d])).sum();
                    out.row_mut(t)[h * s.head_dim + d] = value as f32;
                }
            }
        }
        out
    }

    #[test]
    fn agrees_with_the_definition_for_every_mask() {
        let (q, k, v) = (values(210, 32, 1), values(210, 16, 2), values(210, 16, 3));
        for (causal, window) in [(true, None), (false, None), (true, Some(8)), (true, Some(150))] {
            let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, scale: 0.35, causal, window };
            let (fast, slow) = (attention(&shape, &q, &k, &v), plain(&shape, &q, &k, &v));
            let worst = fast.data.iter().zip(&slow.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-5, "causal {causal}, window {window:?}: {worst}");
        }
    }
}
