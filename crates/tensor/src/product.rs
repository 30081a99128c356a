//! Matrix products in the manner of GotoBLAS: packed panels, one register tile, fixed order of summation.

use crate::microkernel::{Kernel, MAX_TILE, isa};
use crate::{Matrix, Operand, operand};
use rayon::prelude::*;

/// Depth of a packed panel: 256 × 32 f32 of B stream from the L2 cache while 256 × 12 of A stay in L1.
const DEPTH: usize = 256;
/// Rows of B packed at once (a quarter MiB, half an L2 cache).
const B_ROWS: usize = 256;
/// Rows of A packed at once.
const A_ROWS: usize = 1536;

/// `A · Bᵀ` for `a` [M, K] and `b` [N, K]: a `[M, N]` matrix. Activations times a weight `[out, in]` is this product.
pub fn product(a: &dyn Operand, b: &dyn Operand) -> Matrix {
    let mut out = Matrix::zeros(a.rows(), b.rows());
    let cols = out.cols;
    product_into(a, b, &mut out.data, cols);
    out
}

/// Adds `A · Bᵀ` to `out`, whose rows are `stride` apart. Each element goes on with the chain that it holds, so summing
/// over pieces of the depth gives the same bits as one product over all of it.
pub fn product_into(a: &dyn Operand, b: &dyn Operand, out: &mut [f32], stride: usize) {
    run(a, b, out, stride, false);
}

/// Adds `XᵀX` to the lower triangle of `g` [K, K], for `x` [T, K] row-major: the Gram matrix of T tokens. Call
/// [`mirror`] when all tokens are in; what stands above the diagonal until then has no meaning.
pub fn gram(x: &[f32], channels: usize, g: &mut [f32]) {
    let columns = operand::Columns::new(x, channels, channels);
    run(&columns, &columns, g, channels, true);
}

/// Copies the lower triangle of `g` [n, n] to the upper one, in tiles that stay in the cache.
pub fn mirror(g: &mut [f32], n: usize) {
    const TILE: usize = 64;
    for i0 in (0..n).step_by(TILE) {
        for j0 in (0..=i0).step_by(TILE) {
            for i in i0..(i0 + TILE).min(n) {
                for j in j0..(j0 + TILE).min(i) {
                    g[j * n + i] = g[i * n + j];
                }
            }
        }
    }
}

/// [`product_into`] on the calling thread alone, for callers that are one task of many.
pub(crate) fn product_serial(a: &dyn Operand, b: &dyn Operand, out: &mut [f32], stride: usize) {
    assert_eq!(a.depth(), b.depth(), "a product of rows of different length");
    block(Kernel::of(isa()), a, b, out, stride, (0, a.rows()), false);
}

fn run(a: &dyn Operand, b: &dyn Operand, out: &mut [f32], stride: usize, lower: bool) {
    assert_eq!(a.depth(), b.depth(), "a product of rows of different length");
    let (m, n, depth) = (a.rows(), b.rows(), a.depth());
    if m == 0 || n == 0 || depth == 0 {
        return;
    }
    assert!(out.len() >= (m - 1) * stride + n && stride >= n);
    let kernel = Kernel::of(isa());
    // Rows of the output are split among threads; which thread computes an element does not change its chain.
    let threads = rayon::current_num_threads();
    let work = m * n * depth;
    if threads == 1 || work < 1 << 18 || m < 2 * kernel.mr {
        block(kernel, a, b, out, stride, (0, m), lower);
        return;
    }
    // A triangle's later rows cost more: several pieces a thread even that out.
    let pieces = if lower { threads * 4 } else { threads };
    let rows = m.div_ceil(pieces).next_multiple_of(kernel.mr);
    out.par_chunks_mut(rows * stride).enumerate().for_each(|(i, piece)| {
        let from = i * rows;
        let to = (from + rows).min(m);
        if from < to {
            block(kernel, a, b, piece, stride, (from, to), lower);
        }
    });
}

/// Rows `from..to` of the product, `out` starting at row `from`.
fn block(
    kernel: Kernel,
    a: &dyn Operand,
    b: &dyn Operand,
    out: &mut [f32],
    stride: usize,
    (from, to): (usize, usize),
    lower: bool,
) {
    let (n, depth) = (b.rows(), a.depth());
    let (mr, nr) = (kernel.mr, kernel.nr);
    let slab = (to - from).min(A_ROWS).next_multiple_of(mr);
    let mut a_panels = vec![0.0f32; slab * DEPTH.min(depth)];
    let mut b_panels = vec![0.0f32; n.min(B_ROWS).next_multiple_of(nr) * DEPTH.min(depth)];
    let mut tile = [0.0f32; MAX_TILE];
    for row in (from..to).step_by(A_ROWS) {
        let rows = (to - row).min(A_ROWS);
        for k in (0..depth).step_by(DEPTH) {
            let kc = (depth - k).min(DEPTH);
            for i in (0..rows).step_by(mr) {
                a.pack(row + i, (rows - i).min(mr), k, kc, mr, &mut a_panels[i * kc..(i + mr) * kc]);
            }
            let columns = if lower { n.min(row + rows) } else { n };
            for col in (0..columns).step_by(B_ROWS) {
                let cols = (columns - col).min(B_ROWS);
                for j in (0..cols).step_by(nr) {
                    b.pack(col + j, (cols - j).min(nr), k, kc, nr, &mut b_panels[j * kc..(j + nr) * kc]);
                }
                for i in (0..rows).step_by(mr) {
                    let height = (rows - i).min(mr);
                    for j in (0..cols).step_by(nr) {
                        if lower && col + j >= row + i + height {
                            break;
                        }
                        let width = (cols - j).min(nr);
                        let at = (row - from + i) * stride + col + j;
                        for r in 0..height {
                            tile[r * nr..r * nr + width].copy_from_slice(&out[at + r * stride..][..width]);
                        }
                        kernel.run(kc, &a_panels[i * kc..], &b_panels[j * kc..], &mut tile);
                        for r in 0..height {
                            out[at + r * stride..][..width].copy_from_slice(&tile[r * nr..r * nr + width]);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, Rows};

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(1664525).wrapping_add(1013904223);
                (s >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect()
    }

    /// The definition: one chain of fused multiply-adds an element.
    fn plain(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
        let mut out = vec![0.0f32; m * n];
        for i in 0..m {
            for j in 0..n {
                out[i * n + j] = (0..k).fold(0.0f32, |c, t| a[i * k + t].mul_add(b[j * k + t], c));
            }
        }
        out
    }

    #[test]
    fn every_kernel_gives_the_bits_of_the_plain_chain() {
        for (m, n, k) in [(1, 1, 1), (13, 33, 7), (12, 32, 256), (37, 70, 300), (5, 300, 513)] {
            let (a, b) = (values(m * k, 1), values(n * k, 2));
            let expected = plain(&a, &b, m, n, k);
            let best = isa();
            let mut kinds = vec![Isa::Portable];
            if best != Isa::Portable {
                kinds.push(Isa::Avx2);
            }
            kinds.push(best);
            for kind in kinds {
                let mut out = vec![0.0; m * n];
                let (ra, rb) = (Rows::new(&a, k), Rows::new(&b, k));
                block(Kernel::of(kind), &ra, &rb, &mut out, n, (0, m), false);
                assert_eq!(out, expected, "{kind:?} {m}x{n}x{k}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (m, n, k) = (200, 130, 700);
        let (a, b) = (values(m * k, 3), values(n * k, 4));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| product(&Rows::new(&a, k), &Rows::new(&b, k)))
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(5));
        assert_eq!(one.data, plain(&a, &b, m, n, k));
    }

    #[test]
    fn a_gram_matrix_in_pieces_equals_the_whole() {
        let (t, k) = (300, 77);
        let x = values(t * k, 5);
        let mut whole = vec![0.0; k * k];
        gram(&x, k, &mut whole);
        let mut pieces = vec![0.0; k * k];
        for piece in x.chunks(41 * k) {
            gram(piece, k, &mut pieces);
        }
        mirror(&mut pieces, k);
        mirror(&mut whole, k);
        assert_eq!(whole, pieces);
        let columns = operand::Columns::new(&x, k, k);
        assert_eq!(whole, product(&columns, &columns).data);
    }

    #[test]
    fn stored_types_widen_exactly() {
        let b: Vec<half::bf16> = values(64, 6).into_iter().map(half::bf16::from_f32).collect();
        let wide: Vec<f32> = b.iter().map(|v| v.to_f32()).collect();
        let a = values(32, 7);
        assert_eq!(
            product(&Rows::new(&a, 16), &Rows::new(&b, 16)),
            product(&Rows::new(&a, 16), &Rows::new(&wide, 16))
        );
    }
}
