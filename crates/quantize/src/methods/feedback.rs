//! Rounding with error feedback: GPTQ (arXiv 2210.17323) in the form of Babai's nearest plane (arXiv 2507.18553).
//!
//! With `G + Λ = R Rᵀ`, R upper triangular in the order of the columns, the output error of a row is `‖Rᵀ(w − q)‖²`.
//! Going through the columns, each is rounded at `w_i + Σ_{k<i} R_ki (w_k − q_k) / R_ii`, which makes its own term as
//! small as its grid allows. Columns with the largest second moment come first, while there are later ones left to make
//! up for their error.

use crate::QuantizeError;
use halfbyte_formats::{Element, kernel};
use halfbyte_tensor::{
    Columns, Matrix, Precision, Rows, cholesky_in_place, product_into, solve_lower, solve_lower_transposed,
};
use rayon::prelude::*;

/// Columns rounded between two matrix products.
const BLOCK: usize = 64;

/// The factor of a damped Gram matrix.
pub(super) struct Factor {
    /// Lower triangular; of the Gram matrix with its columns in reverse `order`.
    lower: Vec<f32>,
    /// Columns as they are rounded, first to last.
    order: Vec<usize>,
    /// The damped diagonal, column by column.
    diagonal: Vec<f32>,
}

impl Factor {
    /// Factorises `gram + Λ` in place, Λ being `damping` times the diagonal (which shrinks all correlations alike, however
    /// different the channels' magnitudes) and a little of its mean; ten and a hundred times that where f32 does not
    /// suffice.
    ///
    /// With `act_order` the columns of the largest diagonal are rounded first, otherwise they are in their own order.
    ///
    /// # Errors
    /// [`QuantizeError::Singular`] and [`QuantizeError::Overflow`], of a layer that the caller names.
    pub(super) fn new(
        mut gram: Vec<f32>,
        n: usize,
        damping: f32,
        act_order: bool,
    ) -> Result<Self, QuantizeError> {
        let diagonal: Vec<f32> = (0..n).map(|i| gram[i * n + i]).collect();
        if diagonal.iter().any(|d| !d.is_finite()) {
            return Err(QuantizeError::Overflow(String::new()));
        }
        let mean = (diagonal.iter().map(|&d| f64::from(d)).sum::<f64>() / n as f64) as f32;
        let floor = (1e-4 * mean).max(f32::MIN_POSITIVE * 1e6);
        let mut order: Vec<usize> = (0..n).collect();
        if act_order {
            order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
        }
        let reverse: Vec<usize> = order.iter().rev().copied().collect();
        permute(&mut gram, &reverse);
        for raised in [1.0, 10.0, 100.0] {
            let damped: Vec<f32> = diagonal.iter().map(|d| d + damping * raised * (d + floor)).collect();
            reverse.iter().enumerate().for_each(|(i, &column)| gram[i * n + i] = damped[column]);
            if cholesky_in_place(&mut gram, n).is_ok() {
                return Ok(Self { lower: gram, order, diagonal: damped });
            }
            // The upper triangle is still as it was.
            for i in 0..n {
                for j in 0..i {
                    gram[i * n + j] = gram[j * n + i];
                }
            }
        }
        Err(QuantizeError::Singular(String::new()))
    }

    /// The diagonal of `G + Λ`, column by column.
    pub(super) fn diagonal(&self) -> Vec<f32> {
        self.diagonal.clone()
    }

    /// `R_ii²` column by column: how much the rounding error of each column counts once those after it make up for it.
    pub(super) fn pivots(&self) -> Vec<f32> {
        let mut pivots = vec![0.0; self.order.len()];
        for (i, &column) in self.order.iter().enumerate() {
            pivots[column] = self.upper(i, i).powi(2);
        }
        pivots
    }

    /// Replaces every row of `b` by `row (G + Λ)⁻¹`.
    pub(super) fn solve(&self, b: &mut [f32]) {
        let n = self.order.len();
        let mut permuted = vec![0.0f32; b.len()];
        permuted.par_chunks_mut(n).zip(b.par_chunks(n)).for_each(|(p, b)| {
            p.iter_mut().zip(self.order.iter().rev()).for_each(|(p, &c)| *p = b[c]);
        });
        solve_lower(&self.lower, n, &mut permuted);
        solve_lower_transposed(&self.lower, n, &mut permuted);
        b.par_chunks_mut(n).zip(permuted.par_chunks(n)).for_each(|(b, p)| {
            p.iter().zip(self.order.iter().rev()).for_each(|(p, &c)| b[c] = *p);
        });
    }

    /// `R[k][i]` in the order of rounding: the reverse of the lower factor.
    fn upper(&self, k: usize, i: usize) -> f32 {
        let n = self.order.len();
        self.lower[(n - 1 - k) * n + n - 1 - i]
    }
}

/// Puts rows and columns of the square matrix `a` into the order `from`: element (i, j) becomes (from[i], from[j]).
fn permute(a: &mut [f32], from: &[usize]) {
    let n = from.len();
    a.par_chunks_mut(n).for_each_init(
        || vec![0.0f32; n],
        |old, row| {
            old.copy_from_slice(row);
            row.iter_mut().zip(from).for_each(|(v, &j)| *v = old[j]);
        },
    );
    // Rows move along the cycles of the permutation.
    let mut done = vec![false; n];
    let mut kept = vec![0.0f32; n];
    for start in 0..n {
        if done[start] {
            continue;
        }
        kept.copy_from_slice(&a[start * n..(start + 1) * n]);
        let mut at = start;
        while !done[at] {
            done[at] = true;
            let source = from[at];
            if source == start {
                a[at * n..(at + 1) * n].copy_from_slice(&kept);
            } else {
                a.copy_within(source * n..(source + 1) * n, at * n);
            }
            at = source;
        }
    }
}

/// Rows rounded side by side, so that one instruction works on several.
const LANES: usize = 32;

/// Rounds every row of `weight` in place. `formats` has the same number of entries for each row, one for each of the equal
/// groups of neighbouring columns that share a scale: a single one where the row does. A row has one element.
pub(super) fn round(weight: &mut [f32], formats: &[(Element, f32)], factor: &Factor) {
    let n = factor.order.len();
    let rows = weight.len() / n;
    let groups = formats.len() / rows.max(1);
    // What earlier columns push onto each column, `Σ R_ki (w_k − q_k)`, columns in the order of rounding.
    let mut pushed = Matrix::zeros(rows, n);
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        let width = to - from;
        let corner: Vec<f32> = (from..to)
            .flat_map(|k| (from..to).map(move |i| (k, i)))
            .map(|(k, i)| factor.upper(k, i))
            .collect();
        let columns = &factor.order[from..to];
        let mut errors = vec![0.0f32; rows * width];
        let pieces = pushed
            .data
            .par_chunks_mut(n * LANES)
            .zip(weight.par_chunks_mut(n * LANES))
            .zip(errors.par_chunks_mut(width * LANES))
            .zip(formats.par_chunks(groups * LANES));
        pieces.for_each(|(((pushed, weight), errors), formats)| {
            // Layers of one group may have different formats.
            let mut first = 0;
            for alike in formats.chunk_by(|a, b| a.0 == b.0) {
                let rows = first..first + alike.len() / groups;
                first = rows.end;
                round_tile(
                    &mut weight[rows.start * n..rows.end * n],
                    &mut pushed[rows.start * n..rows.end * n],
                    &mut errors[rows.start * width..rows.end * width],
                    alike,
                    (n, from, columns),
                    &corner,
                );
            }
        });
        if to < n {
            // R[from..to, to..] as an operand: row i is column `to + i` of R.
            let right: Vec<f32> = (from..to)
                .flat_map(|k| (to..n).map(move |i| (k, i)))
                .map(|(k, i)| factor.upper(k, i))
                .collect();
            let stride = n;
            product_into(
                &Rows::new(&errors, width),
                &Columns::new(&right, n - to, n - to),
                &mut pushed.data[to..],
                stride,
                Precision::F32,
            );
        }
    }
}

/// Rounds the columns `columns`, the ones from place `from` in the order of rounding, of at most [`LANES`] rows of one format;
/// leaves `w − q` in `errors` `[rows, width]`. `corner` is R between these columns.
fn round_tile(
    weight: &mut [f32],
    pushed: &mut [f32],
    errors: &mut [f32],
    formats: &[(Element, f32)],
    (n, from, columns): (usize, usize, &[usize]),
    corner: &[f32],
) {
    let (rows, width) = (weight.len() / n, columns.len());
    let groups = formats.len() / rows;
    let element = formats[0].0;
    let (mut scales, mut inverses) = ([1.0f32; LANES], [1.0f32; LANES]);
    let mut group = usize::MAX;
    // A line a column, a lane a row.
    let mut push = [[0.0f32; LANES]; BLOCK];
    for r in 0..rows {
        for (line, &p) in push.iter_mut().zip(&pushed[r * n + from..][..width]) {
            line[r] = p;
        }
    }
    for i in 0..width {
        let own = columns[i] / (n / groups);
        if own != group {
            group = own;
            for (scale, row) in scales.iter_mut().zip(formats.chunks_exact(groups)) {
                *scale = row[group].1;
            }
            for (inverse, scale) in inverses.iter_mut().zip(&scales) {
                *inverse = 1.0 / scale;
            }
        }
        let (mut w, mut wanted, mut q) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
        for r in 0..rows {
            w[r] = weight[r * n + columns[i]];
        }
        let pivot = corner[i * width + i];
        for lane in 0..LANES {
            wanted[lane] = w[lane] + push[i][lane] / pivot;
        }
        kernel::fake_quantize_columns(element, &scales, &inverses, &wanted, &mut q);
        let mut error = [0.0f32; LANES];
        for lane in 0..LANES {
            error[lane] = w[lane] - q[lane];
        }
        for r in 0..rows {
            weight[r * n + columns[i]] = q[r];
            errors[r * width + i] = error[r];
        }
        for (line, &c) in push[i + 1..width].iter_mut().zip(&corner[i * width + i + 1..]) {
            for lane in 0..LANES {
                line[lane] += c * error[lane];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_tensor::{gram, mirror};

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// GPTQ as published, in f64: the inverse itself, one column at a time, each removed from it when it is rounded.
    fn published(weight: &[f32], formats: &[(Element, f32)], matrix: &[f64], order: &[usize]) -> Vec<f32> {
        let n = order.len();
        let mut out = weight.to_vec();
        for (row, (element, scale)) in out.chunks_exact_mut(n).zip(formats) {
            let mut w: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
            let mut inverse = inverse(matrix, n);
            for &i in order {
                let mut q = [0.0f32];
                kernel::fake_quantize(*element, *scale, &[w[i] as f32], &mut q);
                let pivot = inverse[i * n + i];
                let error = (w[i] - f64::from(q[0])) / pivot;
                let line: Vec<f64> = inverse[i * n..(i + 1) * n].to_vec();
                for j in 0..n {
                    w[j] -= error * line[j];
                    for k in 0..n {
                        inverse[j * n + k] -= line[j] * line[k] / pivot;
                    }
                }
                row[i] = q[0];
            }
        }
        out
    }

    /// By Gauss-Jordan elimination.
    fn inverse(matrix: &[f64], n: usize) -> Vec<f64> {
        let mut a = matrix.to_vec();
        let mut b: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
        for i in 0..n {
            let pivot = a[i * n + i];
            for k in 0..n {
                a[i * n + k] /= pivot;
                b[i * n + k] /= pivot;
            }
            for j in (0..n).filter(|&j| j != i) {
                let f = a[j * n + i];
                for k in 0..n {
                    a[j * n + k] -= f * a[i * n + k];
                    b[j * n + k] -= f * b[i * n + k];
                }
            }
        }
        b
    }

    #[test]
    fn a_permutation_moves_rows_and_columns_alike() {
        let from = [3, 1, 0, 2, 5, 4];
        let mut a: Vec<f32> = (0..36).map(|v| v as f32).collect();
        permute(&mut a, &from);
        for (i, &row) in from.iter().enumerate() {
            for (j, &column) in from.iter().enumerate() {
                assert_eq!(a[i * 6 + j], (row * 6 + column) as f32);
            }
        }
    }

    #[test]
    fn a_matrix_that_f32_finds_indefinite_is_damped_more() {
        // Eigenvalues 3 and -1: only a hundred times the damping makes it definite.
        let factor = Factor::new(vec![1.0, 2.0, 2.0, 1.0], 2, 0.02, true).unwrap();
        let damped = 1.0 + 2.0 * (1.0 + 1e-4);
        assert!((factor.diagonal()[0] - damped).abs() < 1e-5, "{:?}", factor.diagonal());
        let l = &factor.lower;
        let back = [l[0] * l[0], l[2] * l[0], l[2] * l[2] + l[3] * l[3]];
        assert!(back.iter().zip([damped, 2.0, damped]).all(|(a, b)| (a - b).abs() < 1e-5), "{back:?}");
        assert!(Factor::new(vec![1.0, 9.0, 9.0, 1.0], 2, 0.02, true).is_err());
    }

    #[test]
    fn rounds_as_published_gptq() {
        // More columns than a block, correlated and of different magnitudes.
        let (n, tokens, rows) = (80, 400, 6);
        let mut x = random(tokens * n, 1);
        for row in x.chunks_exact_mut(n) {
            for j in 1..n {
                row[j] = (row[j] + 0.5 * row[j - 1]) * (1.0 + (j % 5) as f32);
            }
        }
        let mut g = vec![0.0; n * n];
        gram(&x, n, &mut g, Precision::F32);
        mirror(&mut g, n);
        let factor = Factor::new(g.clone(), n, 0.01, true).unwrap();
        let mut damped: Vec<f64> = g.iter().map(|&v| f64::from(v)).collect();
        (0..n).for_each(|i| damped[i * n + i] = f64::from(factor.diagonal()[i]));

        let weight = random(rows * n, 2);
        let formats: Vec<(Element, f32)> = (0..rows)
            .map(|r| (if r % 2 == 0 { Element::E2M1 } else { Element::E1M2 }, 0.15 + 0.01 * r as f32))
            .collect();
        let expected = published(&weight, &formats, &damped, &factor.order);
        let mut rounded = weight.clone();
        round(&mut rounded, &formats, &factor);
        let different = rounded.iter().zip(&expected).filter(|(a, b)| a != b).count();
        // f32 against f64 may settle a tie differently, after which a row goes its own way.
        assert!(different <= rounded.len() / 50, "{different} of {} values differ", rounded.len());

        let mut b = random(2 * n, 3);
        let wanted = b.clone();
        factor.solve(&mut b);
        for (b, wanted) in b.chunks_exact(n).zip(wanted.chunks_exact(n)) {
            for i in 0..n {
                let back: f64 = (0..n).map(|j| damped[i * n + j] * f64::from(b[j])).sum();
                assert!((back - f64::from(wanted[i])).abs() < 1e-2, "{back} {}", wanted[i]);
            }
        }
    }
}
