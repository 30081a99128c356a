//! Cholesky factorisation and triangular solves, in the f32 products of this crate.

use crate::product::{product, product_into};
use crate::{Columns, Operand, Precision, Rows};
use rayon::prelude::*;

/// Columns factorised at a time; the rest of the work is matrix products.
const BLOCK: usize = 64;

/// The matrix was not positive definite: the pivot of this column was not above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPositiveDefinite(pub usize);

/// Replaces the lower triangle of the symmetric `a` [n, n] by L with `L Lᵀ = a`; the upper triangle becomes zero.
///
/// # Errors
/// [`NotPositiveDefinite`] when a pivot is not positive; `a` is then garbage, and the caller adds damping.
pub fn cholesky_in_place(a: &mut [f32], n: usize) -> Result<(), NotPositiveDefinite> {
    for k in (0..n).step_by(BLOCK) {
        let b = (n - k).min(BLOCK);
        // The diagonal block, in f64: its pivots decide the accuracy of all that follows.
        for j in k..k + b {
            let pivot =
                f64::from(a[j * n + j]) - (k..j).map(|t| f64::from(a[j * n + t]).powi(2)).sum::<f64>();
            if pivot <= 0.0 || pivot.is_nan() {
                return Err(NotPositiveDefinite(j));
            }
            let pivot = pivot.sqrt();
            a[j * n + j] = pivot as f32;
            for i in j + 1..k + b {
                let s: f64 = (k..j).map(|t| f64::from(a[i * n + t]) * f64::from(a[j * n + t])).sum();
                a[i * n + j] = ((f64::from(a[i * n + j]) - s) / pivot) as f32;
            }
        }
        let (head, tail) = a.split_at_mut((k + b) * n);
        // The panel below it.
        let inverse = inverse_of_block(&head[k * n..], n, k, b);
        let below: Vec<f32> = tail.chunks_exact(n).flat_map(|row| row[k..k + b].iter().copied()).collect();
        let panel = product(&Rows::new(&below, b), &Rows::new(&inverse, b)).data;
        for (row, solved) in tail.chunks_exact_mut(n).zip(panel.chunks_exact(b)) {
            row[k..k + b].copy_from_slice(solved);
        }
        // The trailing triangle: minus panel · panelᵀ.
        let rest = n - k - b;
        let minus: Vec<f32> = panel.iter().map(|v| -v).collect();
        let strips = rayon::current_num_threads() * 4;
        let rows = rest.div_ceil(strips).max(1);
        tail.par_chunks_mut(rows * n).enumerate().for_each(|(s, strip)| {
            let (from, count) = (s * rows, strip.len() / n);
            let upto = from + count;
            crate::product::product_serial(
                &Rows::new(&minus[from * b..upto * b], b),
                &Rows::new(&panel[..upto * b], b),
                &mut strip[k + b..],
                n,
            );
        });
    }
    for i in 0..n {
        a[i * n + i + 1..(i + 1) * n].fill(0.0);
    }
    Ok(())
}

/// Inverse of the block of `l` at rows and columns `k..k + b`, `[b, b]`, for the first of whose rows `rows` begins. In f64,
/// so that multiplying by it is as good as solving with the block; products are many times faster.
fn inverse_of_block(rows: &[f32], n: usize, k: usize, b: usize) -> Vec<f32> {
    let l = |i: usize, j: usize| f64::from(rows[i * n + k + j]);
    let mut inverse = vec![0.0f64; b * b];
    for j in 0..b {
        inverse[j * b + j] = 1.0 / l(j, j);
        for i in j + 1..b {
            let s: f64 = (j..i).map(|t| l(i, t) * inverse[t * b + j]).sum();
            inverse[i * b + j] = -s / l(i, i);
        }
    }
    inverse.into_iter().map(|v| v as f32).collect()
}

/// Replaces columns `k..k + width` of every row of `b` by their product with a block's inverse, read along its rows or
/// its columns.
fn multiply_block(b: &mut [f32], n: usize, k: usize, width: usize, inverse: &dyn Operand) {
    let piece: Vec<f32> = b.chunks_exact(n).flat_map(|r| r[k..k + width].iter().copied()).collect();
    let solved = product(&Rows::new(&piece, width), inverse).data;
    for (row, solved) in b.chunks_exact_mut(n).zip(solved.chunks_exact(width)) {
        row[k..k + width].copy_from_slice(solved);
    }
}

/// Solves `X Lᵀ = B` for every row of `b` [rows, n] in place, L lower triangular [n, n]: each row becomes `L⁻¹ rowᵀ`.
pub fn solve_lower(l: &[f32], n: usize, b: &mut [f32]) {
    let rows = b.len() / n;
    for k in (0..n).step_by(BLOCK) {
        let width = (n - k).min(BLOCK);
        let inverse = inverse_of_block(&l[k * n..], n, k, width);
        multiply_block(b, n, k, width, &Rows::new(&inverse, width));
        if k + width < n {
            let minus: Vec<f32> =
                b.chunks_exact(n).flat_map(|r| r[k..k + width].iter().map(|v| -v)).collect();
            let below = Rows::strided(&l[(k + width) * n + k..(n - 1) * n + k + width], n, width);
            product_into(&Rows::new(&minus, width), &below, &mut b[k + width..rows * n], n, Precision::F32);
        }
    }
}

/// Solves `X L = B` for every row of `b` [rows, n] in place: each row becomes `L⁻ᵀ rowᵀ`.
pub fn solve_lower_transposed(l: &[f32], n: usize, b: &mut [f32]) {
    let rows = b.len() / n;
    let mut end = n;
    while end > 0 {
        let k = (end - 1) / BLOCK * BLOCK;
        let width = end - k;
        let inverse = inverse_of_block(&l[k * n..], n, k, width);
        multiply_block(b, n, k, width, &Columns::new(&inverse, width, width));
        if k > 0 {
            let minus: Vec<f32> = b.chunks_exact(n).flat_map(|r| r[k..end].iter().map(|v| -v)).collect();
            let left = Columns::new(&l[k * n..(end - 1) * n + k], n, k);
            product_into(&Rows::new(&minus, width), &left, &mut b[..rows * n], n, Precision::F32);
        }
        end = k;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gram, mirror};

    fn system(n: usize) -> Vec<f32> {
        let mut s = 1u32;
        let mut next = || {
            s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (s >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let x: Vec<f32> = (0..3 * n * n).map(|_| next()).collect();
        let mut g = vec![0.0; n * n];
        gram(&x, n, &mut g, Precision::F32);
        mirror(&mut g, n);
        g
    }

    #[test]
    fn factor_times_its_transpose_is_the_matrix() {
        for n in [1, 5, 64, 65, 200] {
            let g = system(n);
            let mut l = g.clone();
            cholesky_in_place(&mut l, n).unwrap();
            for i in 0..n {
                for j in 0..n {
                    let v: f64 = (0..n).map(|t| f64::from(l[i * n + t]) * f64::from(l[j * n + t])).sum();
                    let scale = (g[i * n + i] * g[j * n + j]).sqrt();
                    assert!((v - f64::from(g[i * n + j])).abs() < 1e-5 * f64::from(scale), "n {n}, {i}, {j}");
                }
            }
        }
    }

    #[test]
    fn solving_both_ways_solves_the_normal_equations() {
        let n = 150;
        let g = system(n);
        let mut l = g.clone();
        cholesky_in_place(&mut l, n).unwrap();
        let x: Vec<f32> = (0..2 * n).map(|i| (i % 13) as f32 - 6.0).collect();
        let mut b: Vec<f32> = x
            .chunks(n)
            .flat_map(|x| g.chunks(n).map(|r| crate::dot(r, x) as f32).collect::<Vec<_>>())
            .collect();
        solve_lower(&l, n, &mut b);
        solve_lower_transposed(&l, n, &mut b);
        let worst = b.iter().zip(&x).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-2, "{worst}");
    }

    #[test]
    fn an_indefinite_matrix_names_its_column() {
        let mut a = vec![1.0, 2.0, 2.0, 1.0];
        assert_eq!(cholesky_in_place(&mut a, 2), Err(NotPositiveDefinite(1)));
    }
}
