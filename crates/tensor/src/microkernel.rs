//! The innermost tile of a product, once for each instruction set.
//!
//! `unsafe` is confined to this file: calling code compiled for AVX-512 or AVX2 after the processor was asked for
//! them, and unchecked loads of panels whose length is asserted at the door. One generic source serves all: the
//! compiler turns the constant loops into registers, and every element is the same chain of fused multiply-adds.
#![allow(unsafe_code)]

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

/// The largest tile of any kernel.
pub(crate) const MAX_TILE: usize = 12 * 32;

/// One instruction set's tile: `mr` rows of A by `nr` rows of B.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) mr: usize,
    pub(crate) nr: usize,
    isa: Isa,
}

impl Kernel {
    pub(crate) fn of(isa: Isa) -> Self {
        let (mr, nr) = match isa {
            Isa::Avx512 => (12, 32),
            Isa::Avx2 => (6, 16),
            Isa::Portable => (4, 16),
        };
        Self { mr, nr, isa }
    }

    /// `tile[i][j] += Σ_k a[k][i] · b[k][j]`, each element one chain of fused multiply-adds over k; `tile` is
    /// `[mr, nr]`, `a` `[depth, mr]`, `b` `[depth, nr]`.
    pub(crate) fn run(self, depth: usize, a: &[f32], b: &[f32], tile: &mut [f32]) {
        assert!(a.len() >= depth * self.mr && b.len() >= depth * self.nr && tile.len() >= self.mr * self.nr);
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Kernel::of(isa())` and the tests hand out these only after `detect` saw the features, and the
            // lengths were checked above.
            Isa::Avx512 => unsafe { avx512(depth, a, b, tile) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { avx2(depth, a, b, tile) },
            // SAFETY: the lengths were checked above.
            _ => unsafe { tile_kernel::<4, 16>(depth, a, b, tile) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
unsafe fn avx512(depth: usize, a: &[f32], b: &[f32], tile: &mut [f32]) {
    use std::arch::x86_64::*;
    // SAFETY: the caller checked the lengths for a 12 × 32 tile.
    unsafe {
        let (mut a, mut b, t) = (a.as_ptr(), b.as_ptr(), tile.as_mut_ptr());
        let mut acc = [[_mm512_setzero_ps(); 2]; 12];
        for (i, row) in acc.iter_mut().enumerate() {
            row[0] = _mm512_loadu_ps(t.add(i * 32));
            row[1] = _mm512_loadu_ps(t.add(i * 32 + 16));
        }
        for _ in 0..depth {
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
            _mm512_storeu_ps(t.add(i * 32), row[0]);
            _mm512_storeu_ps(t.add(i * 32 + 16), row[1]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(depth: usize, a: &[f32], b: &[f32], tile: &mut [f32]) {
    use std::arch::x86_64::*;
    // SAFETY: the caller checked the lengths for a 6 × 16 tile.
    unsafe {
        let (mut a, mut b, t) = (a.as_ptr(), b.as_ptr(), tile.as_mut_ptr());
        let mut acc = [[_mm256_setzero_ps(); 2]; 6];
        for (i, row) in acc.iter_mut().enumerate() {
            row[0] = _mm256_loadu_ps(t.add(i * 16));
            row[1] = _mm256_loadu_ps(t.add(i * 16 + 8));
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
            _mm256_storeu_ps(t.add(i * 16), row[0]);
            _mm256_storeu_ps(t.add(i * 16 + 8), row[1]);
        }
    }
}

/// The plain form, with the sizes known to the compiler.
unsafe fn tile_kernel<const MR: usize, const NR: usize>(
    depth: usize,
    a: &[f32],
    b: &[f32],
    tile: &mut [f32],
) {
    let mut acc = [[0.0f32; NR]; MR];
    for (row, t) in acc.iter_mut().zip(tile.chunks_exact(NR)) {
        row.copy_from_slice(t);
    }
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)).take(depth) {
        for (row, &x) in acc.iter_mut().zip(a) {
            for (c, &y) in row.iter_mut().zip(b) {
                *c = x.mul_add(y, *c);
            }
        }
    }
    for (row, t) in acc.iter().zip(tile.chunks_exact_mut(NR)) {
        t.copy_from_slice(row);
    }
}
