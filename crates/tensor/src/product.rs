//! Matrix products in the manner of GotoBLAS: packed panels, one register tile, fixed order of summation.

use crate::microkernel::{Kernel, MAX_TILE, isa, prefetch};
use crate::threads::share;
use crate::{Matrix, Operand, operand};
use bytemuck::{Pod, cast_slice_mut};
use rayon::prelude::*;
use std::cell::Cell;

/// Depth of a packed panel: 256 × 32 f32 of B stream from the L2 cache while 256 × 12 of A stay in L1.
const DEPTH: usize = 256;
/// Rows of B packed at once (a quarter MiB, half an L2 cache).
const B_ROWS: usize = 256;
/// Rows of A packed at once.
const A_ROWS: usize = 1536;

/// Words of a cache line.
const LINE: usize = 16;

/// How exactly a product takes its factors. Sums are of f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Factors as they are.
    #[default]
    F32,
    /// Factors rounded to bfloat16 (8 bits of precision), twice as fast where the processor has products of them. The
    /// result is the same bits everywhere: other instruction sets go through the same chain of fused multiply-adds.
    Bf16,
}

/// `A · Bᵀ` for `a` [M, K] and `b` [N, K]: a `[M, N]` matrix. Activations times a weight `[out, in]` is this product.
pub fn product(a: &dyn Operand, b: &dyn Operand) -> Matrix {
    let mut out = Matrix::zeros(a.rows(), b.rows());
    let cols = out.cols;
    product_into(a, b, &mut out.data, cols, Precision::F32);
    out
}

/// Adds `A · Bᵀ` to `out`, whose rows are `stride` apart. Each element goes on with the chain that it holds, so summing
/// over pieces of the depth (of even length with [`Precision::Bf16`]) gives the same bits as one product over all of it.
pub fn product_into(a: &dyn Operand, b: &dyn Operand, out: &mut [f32], stride: usize, precision: Precision) {
    run(a, b, out, stride, false, precision);
}

/// Adds `XᵀX` to the lower triangle of `g` [K, K], for `x` [T, K] row-major: the Gram matrix of T tokens. Call
/// [`mirror`] when all tokens are in; what stands above the diagonal until then has no meaning.
pub fn gram(x: &[f32], channels: usize, g: &mut [f32], precision: Precision) {
    let columns = operand::Columns::new(x, channels, channels);
    run(&columns, &columns, g, channels, true, precision);
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
    block(&Plain(Kernel::of(isa())), a, b, out, stride, (0, a.rows()), false);
}

/// How panels are packed and multiplied.
trait Panels: Copy + Sync {
    /// Of what panels are made.
    type Unit: Pod;
    /// Depth of a packed panel.
    const DEPTH: usize = DEPTH;
    fn kernel(self) -> Kernel;
    /// Lines of a panel for a piece of the depth.
    fn lines(depth: usize) -> usize;
    fn pack(
        self,
        from: &dyn Operand,
        place: (usize, usize, usize, usize),
        width: usize,
        out: &mut [Self::Unit],
    );
    fn multiply(self, lines: usize, a: &[Self::Unit], b: &[Self::Unit], tile: &mut [f32], stride: usize);
}

/// Factors as they are.
#[derive(Clone, Copy)]
struct Plain(Kernel);

impl Panels for Plain {
    type Unit = f32;
    fn kernel(self) -> Kernel {
        self.0
    }
    fn lines(depth: usize) -> usize {
        depth
    }
    fn pack(
        self,
        from: &dyn Operand,
        (row, count, k, depth): (usize, usize, usize, usize),
        width: usize,
        out: &mut [f32],
    ) {
        from.pack(row, count, k, depth, width, out);
    }
    fn multiply(self, lines: usize, a: &[f32], b: &[f32], tile: &mut [f32], stride: usize) {
        self.0.run(lines, a, b, tile, stride);
    }
}

/// Pairs of bfloat16.
#[derive(Clone, Copy)]
struct Pairs(Kernel);

impl Panels for Pairs {
    type Unit = u32;
    /// Twice as much in the same bytes, so that the output is read and written half as often.
    const DEPTH: usize = 2 * DEPTH;
    fn kernel(self) -> Kernel {
        self.0
    }
    fn lines(depth: usize) -> usize {
        depth.div_ceil(2)
    }
    fn pack(
        self,
        from: &dyn Operand,
        (row, count, k, depth): (usize, usize, usize, usize),
        width: usize,
        out: &mut [u32],
    ) {
        from.pack_pairs(row, count, k, depth, width, out);
    }
    fn multiply(self, lines: usize, a: &[u32], b: &[u32], tile: &mut [f32], stride: usize) {
        self.0.run_pairs(lines, a, b, tile, stride);
    }
}

/// The same products without instructions for pairs: bfloat16 values as f32, the second of a pair before the first.
#[derive(Clone, Copy)]
struct Rounded(Kernel);

impl Panels for Rounded {
    type Unit = f32;
    fn kernel(self) -> Kernel {
        self.0
    }
    fn lines(depth: usize) -> usize {
        depth.next_multiple_of(2)
    }
    fn pack(
        self,
        from: &dyn Operand,
        (row, count, k, depth): (usize, usize, usize, usize),
        width: usize,
        out: &mut [f32],
    ) {
        from.pack_rounded(row, count, k, depth, width, out);
    }
    fn multiply(self, lines: usize, a: &[f32], b: &[f32], tile: &mut [f32], stride: usize) {
        self.0.run(lines, a, b, tile, stride);
    }
}

fn run(a: &dyn Operand, b: &dyn Operand, out: &mut [f32], stride: usize, lower: bool, precision: Precision) {
    let kernel = Kernel::of(isa());
    match precision {
        Precision::F32 => run_panels(Plain(kernel), a, b, out, stride, lower),
        Precision::Bf16 if kernel.pairs => run_panels(Pairs(kernel), a, b, out, stride, lower),
        Precision::Bf16 => run_panels(Rounded(kernel), a, b, out, stride, lower),
    }
}

fn run_panels<P: Panels>(
    panels: P,
    a: &dyn Operand,
    b: &dyn Operand,
    out: &mut [f32],
    stride: usize,
    lower: bool,
) {
    assert_eq!(a.depth(), b.depth(), "a product of rows of different length");
    let (m, n, depth) = (a.rows(), b.rows(), a.depth());
    if m == 0 || n == 0 || depth == 0 {
        return;
    }
    assert!(out.len() >= (m - 1) * stride + n && stride >= n);
    let kernel = panels.kernel();
    // Rows of the output are split among threads; which thread computes an element does not change its chain.
    let threads = share();
    let work = m * n * depth;
    if threads == 1 || work < 1 << 18 || m < 2 * kernel.mr {
        block(&panels, a, b, out, stride, (0, m), lower);
        return;
    }
    let pieces = if lower { threads * 2 } else { threads };
    let rows = m.div_ceil(pieces).next_multiple_of(kernel.mr);
    let mut tasks: Vec<(usize, &mut [f32])> = out.chunks_mut(rows * stride).enumerate().collect();
    if lower {
        // A triangle's later rows cost more: the first with the last and so on, so that halves of the list cost the same.
        let last = m.div_ceil(rows) - 1;
        tasks.sort_by_key(|(i, _)| (*i).min(last.saturating_sub(*i)));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(i, piece)| {
        let from = i * rows;
        let to = (from + rows).min(m);
        if from < to {
            block(&panels, a, b, piece, stride, (from, to), lower);
        }
    });
}

thread_local! {
    /// A thread's panels, of f32 or of pairs. Fresh ones for every product would be fresh pages, and giving those back
    /// interrupts the other threads.
    static PANELS: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// Rows `from..to` of the product, `out` starting at row `from`.
fn block<P: Panels>(
    panels: &P,
    a: &dyn Operand,
    b: &dyn Operand,
    out: &mut [f32],
    stride: usize,
    (from, to): (usize, usize),
    lower: bool,
) {
    let (n, depth) = (b.rows(), a.depth());
    let Kernel { mr, nr, .. } = panels.kernel();
    let slab = (to - from).min(A_ROWS).next_multiple_of(mr);
    let most = P::lines(P::DEPTH.min(depth));
    let (a_len, b_len) = ((slab * most).next_multiple_of(LINE), n.min(B_ROWS).next_multiple_of(nr) * most);
    let mut memory = PANELS.take();
    if memory.len() < a_len + b_len + LINE {
        memory = vec![0; a_len + b_len + LINE];
    }
    // A register of B lies in one cache line, or reading it takes twice as long.
    let aligned = memory.as_ptr().align_offset(LINE * size_of::<u32>()).min(LINE);
    let (a_panels, b_panels) = cast_slice_mut::<u32, P::Unit>(&mut memory[aligned..]).split_at_mut(a_len);
    let mut tile = [0.0f32; MAX_TILE];
    for row in (from..to).step_by(A_ROWS) {
        let rows = (to - row).min(A_ROWS);
        for k in (0..depth).step_by(P::DEPTH) {
            let kc = (depth - k).min(P::DEPTH);
            let lines = P::lines(kc);
            // A few panels at a time, so that what is read and written stays in the cache.
            let some = B_ROWS.next_multiple_of(mr);
            for i in (0..rows).step_by(some) {
                panels.pack(a, (row + i, (rows - i).min(some), k, kc), mr, &mut a_panels[i * lines..]);
            }
            let columns = if lower { n.min(row + rows) } else { n };
            for col in (0..columns).step_by(B_ROWS) {
                let cols = (columns - col).min(B_ROWS);
                panels.pack(b, (col, cols, k, kc), nr, b_panels);
                for i in (0..rows).step_by(mr) {
                    let height = (rows - i).min(mr);
                    for j in (0..cols).step_by(nr) {
                        if lower && col + j >= row + i + height {
                            break;
                        }
                        let width = (cols - j).min(nr);
                        let at = (row - from + i) * stride + col + j;
                        // The next tile of the output is likely in memory, and there is time while this one is computed.
                        let next = (cols - j).saturating_sub(nr).min(nr);
                        (0..height).for_each(|r| prefetch(&out[at + r * stride + width..][..next]));
                        let (a, b) = (&a_panels[i * lines..], &b_panels[j * lines..]);
                        if height == mr && width == nr {
                            panels.multiply(lines, a, b, &mut out[at..], stride);
                            continue;
                        }
                        for r in 0..height {
                            tile[r * nr..][..width].copy_from_slice(&out[at + r * stride..][..width]);
                        }
                        panels.multiply(lines, a, b, &mut tile, nr);
                        for r in 0..height {
                            out[at + r * stride..][..width].copy_from_slice(&tile[r * nr..][..width]);
                        }
                    }
                }
            }
        }
    }
    PANELS.set(memory);
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
                block(&Plain(Kernel::of(kind)), &ra, &rb, &mut out, n, (0, m), false);
                assert_eq!(out, expected, "{kind:?} {m}x{n}x{k}");
            }
        }
    }

    /// The definition in bfloat16: the second of every pair before the first.
    fn plain_bf16(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
        let round = |v: f32| if v.abs() < 2f32.powi(-56) { 0.0 } else { half::bf16::from_f32(v).to_f32() };
        let order: Vec<usize> = (0..k).step_by(2).flat_map(|p| [p + 1, p]).filter(|t| *t < k).collect();
        let mut out = vec![0.0f32; m * n];
        for i in 0..m {
            for j in 0..n {
                let add = |c: f32, &t: &usize| round(a[i * k + t]).mul_add(round(b[j * k + t]), c);
                out[i * n + j] = order.iter().fold(0.0, add);
            }
        }
        out
    }

    #[test]
    fn bfloat16_products_are_the_same_bits_with_and_without_instructions_for_them() {
        for (m, n, k) in [(1, 1, 1), (13, 33, 7), (12, 32, 256), (37, 70, 300), (5, 300, 513)] {
            let (mut a, mut b) = (values(m * k, 1), values(n * k, 2));
            // Small ones, down to where products would be subnormal, and exact ties.
            a.iter_mut().step_by(3).enumerate().for_each(|(i, v)| *v *= 2f32.powi(-(i as i32 % 100)));
            b.iter_mut().step_by(2).enumerate().for_each(|(i, v)| *v *= 2f32.powi(-(i as i32 % 90)));
            a[0] = 1.0 + 2f32.powi(-8);
            let expected = plain_bf16(&a, &b, m, n, k);
            let (ra, rb) = (Rows::new(&a, k), Rows::new(&b, k));
            for kind in [Isa::Portable, isa()] {
                let mut out = vec![0.0; m * n];
                block(&Rounded(Kernel::of(kind)), &ra, &rb, &mut out, n, (0, m), false);
                assert_eq!(out, expected, "{kind:?} {m}x{n}x{k}");
            }
            let mut out = vec![0.0; m * n];
            product_into(&ra, &rb, &mut out, n, Precision::Bf16);
            assert_eq!(out, expected, "{m}x{n}x{k}");
            // Along columns: the same numbers, transposed.
            let transposed: Vec<f32> = (0..m * k).map(|i| a[i % m * k + i / m]).collect();
            let columns = operand::Columns::new(&transposed, m, m);
            let mut out = vec![0.0; m * n];
            product_into(&columns, &rb, &mut out, n, Precision::Bf16);
            assert_eq!(out, expected, "columns of {m}x{n}x{k}");
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
        gram(&x, k, &mut whole, Precision::F32);
        let mut pieces = vec![0.0; k * k];
        for piece in x.chunks(41 * k) {
            gram(piece, k, &mut pieces, Precision::F32);
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
