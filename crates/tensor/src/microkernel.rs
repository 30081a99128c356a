//! The innermost parts of a product, its tile and the transposition that makes panels, once for each instruction set.
//!
//! `unsafe` is confined to this file: calling code compiled for AVX-512 or AVX2 after the processor was asked for
//! them, and unchecked loads of panels whose length is asserted at the door. One generic source serves all: the
//! compiler turns the constant loops into registers, and every element is the same chain of fused multiply-adds.
#![allow(unsafe_code)]

use crate::operand::PIECE;
use std::sync::OnceLock;

/// An instruction set that the products can run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// 512-bit vectors on x86-64.
    Avx512,
    /// 256-bit vectors with fused multiply-add on x86-64.
    Avx2,
    /// Whatever the compiler makes of plain Rust: NEON on Arm, and the twin the tests compare with.
    Portable,
}

/// The instruction set in use: the best one that the processor has, unless the environment variable
/// `HALFBYTE_ISA` (`avx512`, `avx2`, `portable`) asks for a lesser one.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let wish = std::env::var("HALFBYTE_ISA").unwrap_or_default();
        let best = detect();
        match wish.as_str() {
            "portable" => Isa::Portable,
            "avx2" if best != Isa::Portable => Isa::Avx2,
            _ => best,
        }
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let fma = std::is_x86_feature_detected!("fma");
    if std::is_x86_feature_detected!("avx512f") && fma {
        Isa::Avx512
    } else if std::is_x86_feature_detected!("avx2") && fma {
        Isa::Avx2
    } else {
        Isa::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Portable
}

/// Whether the products of bfloat16 pairs ([`Kernel::run_pairs`]) are there: AVX512-BF16, unless `HALFBYTE_ISA` asks for a
/// lesser instruction set.
fn has_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa() == Isa::Avx512 && std::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Asks for the cache lines of `values` before they are needed; a hint without effect on results.
pub(crate) fn prefetch(values: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE, which every x86-64 processor has; prefetching cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Rows and columns that are transposed at a time: the words of a 512-bit register.
pub(crate) const SIDE: usize = 16;

/// Writes [`SIDE`] columns of `words` from column `at` on, or as many as there are lines in `out`, as lines of `rows` values,
/// `stride` apart.
pub(crate) fn transpose(
    words: &[[u32; PIECE]; SIDE],
    at: usize,
    out: &mut [u32],
    stride: usize,
    rows: usize,
) {
    assert!(at + SIDE <= PIECE && rows <= SIDE && rows <= stride);
    let lines = ((out.len() + stride - rows) / stride).min(SIDE);
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512 && lines == SIDE {
        // SAFETY: `isa` says so only after the processor was asked, and there are 16 lines of `rows` values.
        return unsafe { transpose_avx512(words, at, out, stride, rows) };
    }
    for (l, line) in out.chunks_mut(stride).take(lines).enumerate() {
        for (to, row) in line[..rows].iter_mut().zip(words) {
            *to = row[at + l];
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_avx512(
    words: &[[u32; PIECE]; SIDE],
    at: usize,
    out: &mut [u32],
    stride: usize,
    rows: usize,
) {
    use std::arch::x86_64::*;
    // SAFETY: every load is within one row of the words, every store within one line of `out`.
    unsafe {
        let r = words.each_ref().map(|row| _mm512_loadu_si512(row.as_ptr().add(at).cast()));
        // Of every four rows: the 128 bits at place l of number c are column 4 l + c.
        let mut q = r;
        for g in (0..SIDE).step_by(4) {
            let (a, b) = (_mm512_unpacklo_epi32(r[g], r[g + 1]), _mm512_unpackhi_epi32(r[g], r[g + 1]));
            let (c, d) =
                (_mm512_unpacklo_epi32(r[g + 2], r[g + 3]), _mm512_unpackhi_epi32(r[g + 2], r[g + 3]));
            (q[g], q[g + 1]) = (_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c));
            (q[g + 2], q[g + 3]) = (_mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d));
        }
        let (mask, out) = (((1u32 << rows) - 1) as __mmask16, out.as_mut_ptr().cast::<i32>());
        for c in 0..4 {
            let even = _mm512_shuffle_i32x4::<0x88>(q[c], q[4 + c]);
            let odd = _mm512_shuffle_i32x4::<0xdd>(q[c], q[4 + c]);
            let later_even = _mm512_shuffle_i32x4::<0x88>(q[8 + c], q[12 + c]);
            let later_odd = _mm512_shuffle_i32x4::<0xdd>(q[8 + c], q[12 + c]);
            let columns = [
                _mm512_shuffle_i32x4::<0x88>(even, later_even),
                _mm512_shuffle_i32x4::<0x88>(odd, later_odd),
                _mm512_shuffle_i32x4::<0xdd>(even, later_even),
                _mm512_shuffle_i32x4::<0xdd>(odd, later_odd),
            ];
            for (l, column) in columns.into_iter().enumerate() {
                _mm512_mask_storeu_epi32(out.add((4 * l + c) * stride), mask, column);
            }
        }
    }
}

/// Lines of B that are asked for before they are needed: they come from the L2 cache.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8;

/// The largest tile of any kernel.
pub(crate) const MAX_TILE: usize = 12 * 32;

/// One instruction set's tile: `mr` rows of A by `nr` rows of B.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) mr: usize,
    pub(crate) nr: usize,
    isa: Isa,
    /// Whether [`run_pairs`](Self::run_pairs) may be called.
    pub(crate) pairs: bool,
}

impl Kernel {
    pub(crate) fn of(isa: Isa) -> Self {
        let (mr, nr) = match isa {
            Isa::Avx512 => (12, 32),
            Isa::Avx2 => (6, 16),
            Isa::Portable => (4, 16),
        };
        Self { mr, nr, isa, pairs: isa == Isa::Avx512 && has_pairs() }
    }

    /// `tile[i][j] += Σ_k a[k][i] · b[k][j]`, each element one chain of fused multiply-adds over k; `tile` is
    /// `[mr, nr]` with rows `stride` apart, `a` `[depth, mr]`, `b` `[depth, nr]`.
    pub(crate) fn run(self, depth: usize, a: &[f32], b: &[f32], tile: &mut [f32], stride: usize) {
        assert!(a.len() >= depth * self.mr && b.len() >= depth * self.nr);
        assert!(stride >= self.nr && tile.len() >= (self.mr - 1) * stride + self.nr);
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Kernel::of(isa())` and the tests hand out these only after `detect` saw the features, and the
            // lengths were checked above.
            Isa::Avx512 => unsafe { avx512(depth, a, b, tile, stride) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { avx2(depth, a, b, tile, stride) },
            // SAFETY: the lengths were checked above.
            _ => unsafe { tile_kernel::<4, 16>(depth, a, b, tile, stride) },
        }
    }

    /// As [`run`](Self::run) for panels of bfloat16 pairs, `a` `[pairs, mr]` and `b` `[pairs, nr]`, the first of a pair in the
    /// lower half. Every pair is two fused multiply-adds on the chain, the second of the pair first: what VDPBF16PS does, found
    /// by comparing a million random cases, as long as nothing is subnormal (which it flushes).
    ///
    /// # Panics
    /// Where [`pairs`](Self::pairs) is false.
    pub(crate) fn run_pairs(self, pairs: usize, a: &[u32], b: &[u32], tile: &mut [f32], stride: usize) {
        assert!(self.pairs && stride >= self.nr && tile.len() >= (self.mr - 1) * stride + self.nr);
        assert!(a.len() >= pairs * self.mr && b.len() >= pairs * self.nr);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `pairs` is set only after the processor was asked for the feature; lengths were checked above.
        unsafe {
            avx512_pairs(pairs, a, b, tile, stride)
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn avx512_pairs(pairs: usize, a: &[u32], b: &[u32], tile: &mut [f32], stride: usize) {
    use std::arch::x86_64::*;
    use std::mem::transmute;
    // SAFETY: the caller checked the lengths for a 12 × 32 tile; the transmutes are between vectors of equal size.
    unsafe {
        let (mut a, mut b, t) = (a.as_ptr(), b.as_ptr(), tile.as_mut_ptr());
        let mut acc = [[_mm512_setzero_ps(); 2]; 12];
        for (i, row) in acc.iter_mut().enumerate() {
            row[0] = _mm512_loadu_ps(t.add(i * stride));
            row[1] = _mm512_loadu_ps(t.add(i * stride + 16));
        }
        for _ in 0..pairs {
            // Past the end it asks for what is not read: a hint that cannot fault.
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * 32).cast());
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * 32 + 16).cast());
            let b0: __m512bh = transmute(_mm512_loadu_si512(b.cast()));
            let b1: __m512bh = transmute(_mm512_loadu_si512(b.add(16).cast()));
            for (i, row) in acc.iter_mut().enumerate() {
                let x: __m512bh = transmute(_mm512_set1_epi32(*a.add(i) as i32));
                row[0] = _mm512_dpbf16_ps(row[0], x, b0);
                row[1] = _mm512_dpbf16_ps(row[1], x, b1);
            }
            a = a.add(12);
            b = b.add(32);
        }
        for (i, row) in acc.iter().enumerate() {
            _mm512_storeu_ps(t.add(i * stride), row[0]);
            _mm512_storeu_ps(t.add(i * stride + 16), row[1]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
unsafe fn avx512(depth: usize, a: &[f32], b: &[f32], tile: &mut [f32], stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller checked the lengths for a 12 × 32 tile.
    unsafe {
        let (mut a, mut b, t) = (a.as_ptr(), b.as_ptr(), tile.as_mut_ptr());
        let mut acc = [[_mm512_setzero_ps(); 2]; 12];
        for (i, row) in acc.iter_mut().enumerate() {
            row[0] = _mm512_loadu_ps(t.add(i * stride));
            row[1] = _mm512_loadu_ps(t.add(i * stride + 16));
        }
        for _ in 0..depth {
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * 32).cast());
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * 32 + 16).cast());
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (i, row) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(i));
                row[0] = _mm512_fmadd_ps(x, b0, row[0]);
                row[1] = _mm512_fmadd_ps(x, b1, row[1]);
            }
            a = a.add(12);
            b = b.add(32);
        }
        for (i, row) in acc.iter().enumerate() {
            _mm512_storeu_ps(t.add(i * stride), row[0]);
            _mm512_storeu_ps(t.add(i * stride + 16), row[1]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(depth: usize, a: &[f32], b: &[f32], tile: &mut [f32], stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller checked the lengths for a 6 × 16 tile.
    unsafe {
        let (mut a, mut b, t) = (a.as_ptr(), b.as_ptr(), tile.as_mut_ptr());
        let mut acc = [[_mm256_setzero_ps(); 2]; 6];
        for (i, row) in acc.iter_mut().enumerate() {
            row[0] = _mm256_loadu_ps(t.add(i * stride));
            row[1] = _mm256_loadu_ps(t.add(i * stride + 8));
        }
        for _ in 0..depth {
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for (i, row) in acc.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*a.add(i));
                row[0] = _mm256_fmadd_ps(x, b0, row[0]);
                row[1] = _mm256_fmadd_ps(x, b1, row[1]);
            }
            a = a.add(6);
            b = b.add(16);
        }
        for (i, row) in acc.iter().enumerate() {
            _mm256_storeu_ps(t.add(i * stride), row[0]);
            _mm256_storeu_ps(t.add(i * stride + 8), row[1]);
        }
    }
}

/// The plain form, with the sizes known to the compiler.
unsafe fn tile_kernel<const MR: usize, const NR: usize>(
    depth: usize,
    a: &[f32],
    b: &[f32],
    tile: &mut [f32],
    stride: usize,
) {
    let mut acc = [[0.0f32; NR]; MR];
    for (row, t) in acc.iter_mut().zip(tile.chunks(stride)) {
        row.copy_from_slice(&t[..NR]);
    }
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)).take(depth) {
        for (row, &x) in acc.iter_mut().zip(a) {
            for (c, &y) in row.iter_mut().zip(b) {
                *c = x.mul_add(y, *c);
            }
        }
    }
    for (row, t) in acc.iter().zip(tile.chunks_mut(stride)) {
        t[..NR].copy_from_slice(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_transposed_into_lines() {
        let words = std::array::from_fn(|i| std::array::from_fn(|j| (1000 * i + j) as u32));
        for (lines, rows, stride) in
            [(16, 16, 16), (16, 12, 12), (16, 16, 32), (16, 6, 9), (5, 12, 12), (1, 1, 2)]
        {
            let mut out = vec![7; (lines - 1) * stride + rows];
            transpose(&words, 48, &mut out, stride, rows);
            for (i, v) in out.into_iter().enumerate() {
                let (line, row) = (i / stride, i % stride);
                assert_eq!(v, if row < rows { words[row][48 + line] } else { 7 }, "{lines} {rows} {stride}");
            }
        }
    }
}
