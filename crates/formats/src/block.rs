//! Block formats of E2M1 with coded scales: NVFP4 (16 values, an E4M3 scale, an `f32` scale of the tensor) and MXFP4
//! (32 values, an E8M0 scale), and the choice of each block's scale code.
//!
//! # To the bit
//! A block with scale code `c` has the scale `s = value(c) · tensor_scale`, one `f32` product. A value becomes the code
//! nearest to `u = x / s`: a division, as in compressed-tensors and OCP MX, where the kernels of [`crate::kernel`]
//! multiply by the inverse. Decoding is the same as for every scheme.
//!
//! # Which scale codes need trying
//! Let `M` be the block's largest magnitude, `w_i ≥ 0` the weights of the squared errors, `E(s)` the weighted error at
//! scale `s`, each value going to the nearest of `s · {0, ½, 1, 1½, 2, 3, 4, 6}`. [`ScaleRule::Sweep`] finds the least
//! `E` over *all* codes, although it tries few, by two facts.
//!
//! **Above.** If `M ≤ 7s`, then `E(s) ≤ E(2s)`. The values of scale `2s` are `s · {0, 1, 2, 3, 4, 6, 8, 12}`; a magnitude
//! of at most `7s` is nearest (at 7 by a tie) to one of the first six, and those are values of scale `s` as well. So no
//! magnitude is farther from the nearest value of `s` than from that of `2s`. Hence a scale `s' ≥ M / 3.5` is never
//! better than `s' / 2`, as far as that has a code: always for E8M0, and for E4M3 from code 16 (2^−5) on, below which a
//! subnormal's half may be missing. Halving again while it holds ends at a scale in `(M / 7, M / 3.5)`, or at a code
//! below 16: going up from the absmax scale `M / 6` until both `s ≥ M / 3.5` and the code is at least 16 leaves nothing
//! out. That is at most one code above the OCP floor for E8M0, and six or seven above absmax for E4M3 (8 an octave).
//!
//! **Below.** A magnitude above `6s` saturates, so `E(s) ≥ C(s) = Σ w_i max(0, |x_i| − 6s)²`. `C` does not fall when `s`
//! does. Once going down `C(s)` reaches the least error found so far, no smaller scale can be better.
//!
//! The same facts hold for the error weighted by the diagonal of a Gram matrix, since they hold value by value.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use crate::kernel::Grid;
use crate::{Element, FormatError, Granularity, ScaleFormat, Scheme};

/// How the scale of a block is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleRule {
    /// E4M3: the nearest to `max / 6`. E8M0: the OCP rule `2^(floor(log2 max) − 2)`.
    Absmax,
    /// E8M0 alone: as `Absmax`, after a maximum with a mantissa of 1.75 or more has been rounded up to the next power of
    /// two (compressed-tensors and vLLM).
    RoundUp,
    /// E4M3 alone: the better of `max / 6` and `max / 4` by squared error.
    FourOverSix,
    /// The code of least (weighted) squared error among all.
    Sweep,
}

/// The largest E2M1.
const TOP: f32 = 6.0;
/// The largest `float8_e4m3fn`.
const E4M3_MAX: f32 = 448.0;

/// The tensor scale of a tensor with largest magnitude `max`: `max / (448 · 6)`, or a little more.
///
/// Files say it as a multiplier `t` (ModelOpt, GGUF) or as a divisor `g` (compressed-tensors). It is chosen such that
/// `s · t = s / g` to the bit for `g = 1 / t` and every E4M3 number `s`, so that all of them hold the same values: the
/// eight mantissas of E4M3 are tried for one `t` after the other; it ends up at most 0.05 % above the quotient.
/// 1 for a maximum of 0 or NaN; never so small that a block's scale would be subnormal.
pub fn tensor_scale(max: f32) -> f32 {
    if max.is_nan() || max <= 0.0 {
        return 1.0;
    }
    // 2^−117: its product with the smallest E4M3 is normal; 2^117: so is its inverse.
    let (least, most) = (2f32.powi(-117), 2f32.powi(117));
    let mut scale = (max.min(f32::MAX) / (E4M3_MAX * TOP)).clamp(least, most);
    while !divides_as_it_multiplies(scale) {
        scale = scale.next_up();
    }
    scale
}

fn divides_as_it_multiplies(scale: f32) -> bool {
    let divisor = 1.0 / scale;
    // Powers of two change nothing: the eight mantissas stand for all codes.
    (8..16u8).all(|m| f32::from(m) * scale == f32::from(m) / divisor)
}

/// Chooses scale codes and encodes, for one tensor.
#[derive(Clone, Debug)]
pub struct BlockQuantizer {
    rule: ScaleRule,
    format: ScaleFormat,
    tensor_scale: f32,
    /// E2M1's values and E4M3's.
    grid: Grid,
    scale_grid: Grid,
    /// Scale of every code, times the tensor scale; 0 where there is no such code.
    scales: [f32; 256],
}

/// Codes without a half of their own among E4M3's subnormals are below this one.
const E4M3_HALVES: u8 = 16;

impl BlockQuantizer {
    /// A quantizer for `scheme`, NVFP4's or MXFP4's; `tensor_scale` is 1 for the latter.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for other schemes, and for a rule that the scale format does not have;
    /// [`FormatError::Scale`] for a tensor scale that cannot be used.
    pub fn new(scheme: Scheme, tensor_scale: f32, rule: ScaleRule) -> Result<Self, FormatError> {
        let unsupported =
            |operation, hint| Err(FormatError::Unsupported { operation, scheme: scheme.to_string(), hint });
        let size = match (scheme.element, scheme.granularity, scheme.scale) {
            (Element::E2M1, Granularity::Group(n @ 16), ScaleFormat::E4M3)
            | (Element::E2M1, Granularity::Group(n @ 32), ScaleFormat::E8M0) => n,
            _ => {
                return unsupported(
                    "choosing block scales",
                    "block formats are NVFP4, e2m1/group16/e4m3, and MXFP4, e2m1/group32/e8m0",
                );
            }
        };
        match (rule, size) {
            (ScaleRule::RoundUp, 16) => return unsupported("round-up", "it is a rule for E8M0 scales"),
            (ScaleRule::FourOverSix, 32) => {
                return unsupported("four-over-six", "it is a rule for E4M3 scales; try sweep");
            }
            _ => {}
        }
        let normal = tensor_scale >= 2f32.powi(-117) && tensor_scale <= 2f32.powi(117);
        if !normal || (size == 32 && tensor_scale != 1.0) {
            let (tensor, format) = (String::new(), "the tensor scale");
            return Err(FormatError::Scale { tensor, index: 0, value: tensor_scale, format });
        }
        let mut scales = [0.0; 256];
        for (code, scale) in scales.iter_mut().enumerate() {
            *scale = scheme.scale.from_byte(code as u8).map_or(0.0, |s| s * tensor_scale);
        }
        let (grid, scale_grid) = (Grid::of(Element::E2M1), Grid::of(Element::E4M3Fn));
        Ok(Self { rule, format: scheme.scale, tensor_scale, grid, scale_grid, scales })
    }

    /// Values of one block: 16 or 32.
    pub fn size(&self) -> usize {
        if self.format == ScaleFormat::E4M3 { 16 } else { 32 }
    }

    /// Quantizes `x`, whole rows of `cols` values: packed codes, half a byte each, and a scale byte a block. `weights`
    /// are the weights of a row's squared errors, which `Sweep` minimises; empty for all alike. Gives the plain squared
    /// error of all values.
    ///
    /// # Panics
    /// If lengths do not fit each other: blocks divide `cols`, `weights` is empty or `cols` long.
    pub fn quantize(
        &self,
        x: &[f32],
        cols: usize,
        weights: &[f32],
        codes: &mut [u8],
        scales: &mut [u8],
    ) -> f64 {
        let n = self.size();
        assert!(cols.is_multiple_of(n) && x.len().is_multiple_of(cols.max(1)), "whole blocks and rows");
        assert!(codes.len() == x.len() / 2 && scales.len() == x.len() / n, "room for codes and scales");
        assert!(weights.is_empty() || weights.len() == cols, "a weight for each column");
        match n {
            16 => quantize_16(self, x, cols, weights, codes, scales),
            _ => quantize_32(self, x, cols, weights, codes, scales),
        }
    }

    /// Fake-quantizes `x`, whole blocks, in place: what an engine does to activations while it runs.
    ///
    /// # Panics
    /// If `x` is not made of whole blocks.
    pub fn apply(&self, x: &mut [f32]) {
        assert!(x.len().is_multiple_of(self.size()), "whole blocks");
        match self.size() {
            16 => apply_16(self, x),
            _ => apply_32(self, x),
        }
    }

    /// The absmax code of a block.
    #[inline(always)]
    fn absmax(&self, max: f32) -> u8 {
        match self.format {
            ScaleFormat::E4M3 => self.nearest_e4m3(max / TOP),
            _ => floor_e8m0(max.to_bits()),
        }
    }

    /// The E4M3 code nearest to `scale` over the tensor scale; never that of 0.
    #[inline(always)]
    fn nearest_e4m3(&self, scale: f32) -> u8 {
        self.scale_grid.code::<false>(1.0 / self.tensor_scale * scale).max(1)
    }

    /// The scale code of a block with magnitudes `a`, of which `max` is the largest.
    #[inline(always)]
    fn choose<const N: usize, const WEIGHTED: bool>(&self, a: &[f32; N], w: &[f32; N], max: f32) -> u8 {
        if max == 0.0 {
            // Any will do: 1.
            return if N == 16 { 0x38 } else { 127 };
        }
        let first = self.absmax(max);
        // Errors in units of the first scale, so that no weights are too small or too large for `f32`.
        let unit = self.scales[usize::from(first)];
        let error = |code: u8| {
            let scale = self.scales[usize::from(code)];
            let ratio = scale / unit;
            block_error::<N, WEIGHTED>(self.grid, a, w, scale) * (ratio * ratio)
        };
        match self.rule {
            ScaleRule::Absmax => first,
            ScaleRule::RoundUp => floor_e8m0(max.to_bits().saturating_add(0x0020_0000)),
            ScaleRule::FourOverSix => {
                let four = self.nearest_e4m3(max / 4.0);
                if error(four) < error(first) { four } else { first }
            }
            ScaleRule::Sweep => {
                let mut best = (error(first), first);
                let mut code = first;
                while code > 1 {
                    code -= 1;
                    let scale = self.scales[usize::from(code)];
                    let ratio = scale / unit;
                    if clipping_error::<N, WEIGHTED>(a, w, scale) * (ratio * ratio) >= best.0 {
                        break;
                    }
                    let e = error(code);
                    if e < best.0 {
                        best = (e, code);
                    }
                }
                let (last, halves) = if N == 16 { (0x7e, E4M3_HALVES) } else { (254, 2) };
                code = first;
                while code < last {
                    code += 1;
                    if max <= 3.5 * self.scales[usize::from(code)] && code >= halves {
                        break;
                    }
                    let e = error(code);
                    if e < best.0 {
                        best = (e, code);
                    }
                }
                best.1
            }
        }
    }
}

/// E8M0's code of `2^(floor(log2 max) − 2)`, from the bits of the maximum.
#[inline(always)]
fn floor_e8m0(bits: u32) -> u8 {
    ((bits >> 23) as u8).saturating_sub(2).max(1)
}

/// Adds up in a fixed order.
#[inline(always)]
fn tree<const N: usize>(mut e: [f32; N]) -> f32 {
    let mut n = N;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            e[i] += e[i + n];
        }
    }
    e[0]
}

/// `Σ w (Q(a) − a)² / s²`.
#[inline(always)]
fn block_error<const N: usize, const WEIGHTED: bool>(
    grid: Grid,
    a: &[f32; N],
    w: &[f32; N],
    scale: f32,
) -> f32 {
    let inverse = 1.0 / scale;
    let mut e = [0.0; N];
    for i in 0..N {
        let u = a[i] * inverse;
        let d = grid.round(u) - u;
        e[i] = if WEIGHTED { w[i] * (d * d) } else { d * d };
    }
    tree(e)
}

/// `Σ w max(0, a − 6 s)² / s²`.
#[inline(always)]
fn clipping_error<const N: usize, const WEIGHTED: bool>(a: &[f32; N], w: &[f32; N], scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    let mut e = [0.0; N];
    for i in 0..N {
        let d = (a[i] * inverse - TOP).max(0.0);
        e[i] = if WEIGHTED { w[i] * (d * d) } else { d * d };
    }
    tree(e)
}

/// The magnitudes of a block and the largest.
#[inline(always)]
fn magnitudes<const N: usize>(x: &[f32; N]) -> ([f32; N], f32) {
    let a = x.map(f32::abs);
    let mut bits = a.map(f32::to_bits);
    let mut n = N;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            bits[i] = bits[i].max(bits[i + n]);
        }
    }
    (a, f32::from_bits(bits[0]))
}

#[inline(always)]
fn quantize<const N: usize>(
    q: &BlockQuantizer,
    x: &[f32],
    cols: usize,
    weights: &[f32],
    codes: &mut [u8],
    scales: &mut [u8],
) -> f64 {
    let mut total = 0.0;
    let blocks = (cols / N).max(1);
    for (b, x) in x.as_chunks::<N>().0.iter().enumerate() {
        let (a, max) = magnitudes(x);
        let code = match weights.as_chunks::<N>().0.get(b % blocks) {
            Some(w) => q.choose::<N, true>(&a, w, max),
            None => q.choose::<N, false>(&a, &a, max),
        };
        scales[b] = code;
        let scale = q.scales[usize::from(code)];
        let (mut nibbles, mut e) = ([0u32; N], [0.0; N]);
        for i in 0..N {
            let u = x[i] / scale;
            nibbles[i] = u32::from(q.grid.code::<false>(u));
            let d = q.grid.round(u) - u;
            e[i] = d * d;
        }
        for (byte, pair) in codes[b * N / 2..][..N / 2].iter_mut().zip(nibbles.as_chunks::<2>().0) {
            *byte = (pair[0] | pair[1] << 4) as u8;
        }
        total += f64::from(tree(e)) * (f64::from(scale) * f64::from(scale));
    }
    total
}

#[inline(always)]
fn apply<const N: usize>(q: &BlockQuantizer, x: &mut [f32]) {
    for x in x.as_chunks_mut::<N>().0 {
        let (a, max) = magnitudes(x);
        let scale = q.scales[usize::from(q.choose::<N, false>(&a, &a, max))];
        for x in x {
            *x = q.grid.round(*x / scale) * scale;
        }
    }
}

/// Defines clones per instruction set, as in `kernel`.
macro_rules! clones {
    ($($quantize:ident, $apply:ident, $n:literal;)*) => {$(
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
        fn $quantize(
            q: &BlockQuantizer,
            x: &[f32],
            cols: usize,
            weights: &[f32],
            codes: &mut [u8],
            scales: &mut [u8],
        ) -> f64 {
            quantize::<$n>(q, x, cols, weights, codes, scales)
        }

        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
        fn $apply(q: &BlockQuantizer, x: &mut [f32]) {
            apply::<$n>(q, x);
        }
    )*};
}
clones! {
    quantize_16, apply_16, 16;
    quantize_32, apply_32, 32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{QuantizedMatrix, reference};
    use proptest::prelude::*;

    const NVFP4: Scheme = Scheme::NVFP4;
    const MXFP4: Scheme = Scheme::MXFP4;

    /// Codes, scale bytes and squared error of rows of `cols`.
    fn quantized(q: &BlockQuantizer, x: &[f32], cols: usize, w: &[f32]) -> (Vec<u8>, Vec<u8>, f64) {
        let (mut codes, mut scales) = (vec![0; x.len() / 2], vec![0; x.len() / q.size()]);
        let error = q.quantize(x, cols, w, &mut codes, &mut scales);
        (codes, scales, error)
    }

    /// The weighted squared error of a block at one scale, by the plain formula.
    fn plain_error(x: &[f32], w: &[f32], scale: f32) -> f64 {
        let term = |(x, w): (&f32, &f32)| {
            let q = reference::nearest(Element::E2M1, x / scale) * f64::from(scale);
            f64::from(*w) * (q - f64::from(*x)).powi(2)
        };
        x.iter().zip(w).map(term).sum()
    }

    /// The `sample`th million samples of a normal distribution with σ = .02 (Box-Muller over SplitMix64), or fewer.
    fn gaussian(sample: u64, n: usize) -> Vec<f32> {
        let uniform = |i: u64| {
            let x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (((x ^ (x >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let value = |i: u64| {
            let (u, v) = (uniform(2 * i + 1), uniform(2 * i + 2));
            (0.02 * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
        };
        (0..n as u64).map(|i| value(sample * 1_000_000 + i)).collect()
    }

    fn relative_error(scheme: Scheme, rule: ScaleRule, x: &[f32]) -> f64 {
        let scale = if scheme == NVFP4 { tensor_scale(crate::kernel::max_abs(x)) } else { 1.0 };
        let q = BlockQuantizer::new(scheme, scale, rule).unwrap();
        let energy: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        quantized(&q, x, x.len(), &[]).2 / energy
    }

    #[test]
    fn scale_rules_cost_on_gaussian_samples_what_was_published() {
        // The figure of one sample has a standard deviation of about .00001 (NVFP4) and .00002 (MXFP4): take the mean.
        const SAMPLES: u64 = 6;
        let rules = [
            (NVFP4, ScaleRule::Absmax, 904),
            (NVFP4, ScaleRule::FourOverSix, 757),
            (NVFP4, ScaleRule::Sweep, 660),
            (MXFP4, ScaleRule::Absmax, 1301),
            (MXFP4, ScaleRule::RoundUp, 1257),
            (MXFP4, ScaleRule::Sweep, 1242),
        ];
        let mut cost = [0.0; 6];
        for sample in 0..SAMPLES {
            let x = gaussian(sample, 1_000_000);
            for (cost, (scheme, rule, _)) in cost.iter_mut().zip(rules) {
                *cost += relative_error(scheme, rule, &x) / SAMPLES as f64;
            }
        }
        for (cost, (scheme, rule, published)) in cost.iter().zip(rules) {
            println!("{scheme} {rule:?}: {cost:.6}");
            let digits = (cost * 1e5).round() as i32;
            let exact = rule == ScaleRule::Sweep;
            assert!(digits <= published + if exact { 0 } else { 4 }, "{scheme} {rule:?}: {cost}");
        }
    }

    #[test]
    fn a_tensor_scale_divides_as_it_multiplies() {
        let mut worst = 0;
        for i in 0..20_000 {
            let max = (i as f32 * 0.618).sin().abs().max(1e-3) * ((i % 60) as f32 - 30.0).exp2();
            let scale = tensor_scale(max);
            let least = max / 2688.0;
            worst = worst.max(scale.to_bits() - least.to_bits());
            let divisor = 1.0 / scale;
            for byte in 1..=0x7e {
                let s = ScaleFormat::E4M3.from_byte(byte).unwrap();
                assert_eq!(s * scale, s / divisor, "{max} {byte}");
            }
        }
        // A unit in the last place is at most 2^−23.
        assert!(f64::from(worst) / 2f64.powi(23) < 5e-4, "{worst}");
        for odd in [0.0, f32::NAN, f32::from_bits(1), f32::MAX, f32::INFINITY] {
            assert!(tensor_scale(odd).is_normal(), "{odd}");
        }
    }

    #[test]
    fn other_schemes_and_foreign_rules_are_refused() {
        let group8 = Scheme::new(Element::E2M1, Granularity::Group(8)).with_scale(ScaleFormat::E8M0);
        for (scheme, scale, rule) in [
            (group8, 1.0, ScaleRule::Absmax),
            (Scheme::new(Element::INT4, Granularity::Group(16)), 1.0, ScaleRule::Sweep),
            (NVFP4, 1.0, ScaleRule::RoundUp),
            (MXFP4, 1.0, ScaleRule::FourOverSix),
            (MXFP4, 0.5, ScaleRule::Absmax),
            (NVFP4, f32::NAN, ScaleRule::Absmax),
        ] {
            assert!(BlockQuantizer::new(scheme, scale, rule).is_err(), "{scheme} {scale} {rule:?}");
        }
    }

    #[test]
    fn absmax_is_the_scheme_s_own() {
        let x = gaussian(0, 64 * 96);
        for scheme in [NVFP4, MXFP4] {
            let (scales, tensor) = scheme.max_scales("w", &x, 64, 96).unwrap();
            let q = BlockQuantizer::new(scheme, tensor, ScaleRule::Absmax).unwrap();
            let (codes, bytes, error) = quantized(&q, &x, 96, &[]);
            let found: Vec<f32> = bytes.iter().map(|&b| scheme.scale.from_byte(b).unwrap()).collect();
            assert_eq!(found, scales, "{scheme}");
            let matrix = QuantizedMatrix::from_parts("w", scheme, 64, 96, codes, scales, tensor).unwrap();
            let exact: f64 = matrix.dequantize().iter().zip(&x).map(|(q, x)| f64::from(q - x).powi(2)).sum();
            assert!((error / exact - 1.0).abs() < 1e-4, "{scheme} {error} {exact}");
        }
    }

    #[test]
    fn activations_get_the_weights_rule() {
        let x = gaussian(0, 32 * 40);
        for (scheme, rule) in [(NVFP4, ScaleRule::Absmax), (MXFP4, ScaleRule::RoundUp)] {
            let scale = if scheme == NVFP4 { tensor_scale(0.1) } else { 1.0 };
            let q = BlockQuantizer::new(scheme, scale, rule).unwrap();
            let (codes, bytes, _) = quantized(&q, &x, 320, &[]);
            let scales = bytes.iter().map(|&b| scheme.scale.from_byte(b).unwrap()).collect();
            let matrix = QuantizedMatrix::from_parts("w", scheme, 4, 320, codes, scales, scale).unwrap();
            let mut applied = x.clone();
            q.apply(&mut applied);
            assert_eq!(applied, matrix.dequantize());
        }
    }

    #[test]
    fn the_ocp_and_the_rounded_up_exponents() {
        let mx = |rule| BlockQuantizer::new(MXFP4, 1.0, rule).unwrap();
        for (max, floor, up) in
            [(4.0, 127, 127), (6.9, 127, 127), (7.0, 127, 128), (7.9, 127, 128), (8.0, 128, 128)]
        {
            let mut x = [0.1f32; 32];
            x[5] = -max;
            assert_eq!(quantized(&mx(ScaleRule::Absmax), &x, 32, &[]).1, [floor], "{max}");
            assert_eq!(quantized(&mx(ScaleRule::RoundUp), &x, 32, &[]).1, [up], "{max}");
        }
        let nothing = quantized(&mx(ScaleRule::Sweep), &[0.0; 32], 32, &[]);
        assert_eq!(nothing, (vec![0; 16], vec![127], 0.0));
    }

    /// A block, its weights and a tensor scale; some values large, small, equal or zero.
    fn block() -> impl Strategy<Value = (Vec<f32>, Vec<f32>, f32)> {
        let value = prop_oneof![
            4 => -1.0f32..1.0,
            1 => Just(0.0),
            1 => (-6i32..7).prop_map(|k| k as f32 * 0.25),
            1 => (-1.0f32..1.0, -18i32..6).prop_map(|(x, e)| x * 2f32.powi(e)),
        ];
        let weight =
            prop_oneof![3 => 0.0f32..1.0, 1 => Just(0.0), 1 => (0i32..20).prop_map(|e| 2f32.powi(e - 10))];
        (prop::collection::vec(value, 32), prop::collection::vec(weight, 32), -14f32..2.0)
            .prop_map(|(x, w, t)| (x, w, t.exp2()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// The proof above, against all 126 and 254 codes.
        #[test]
        fn no_code_is_better_than_the_sweep_s((x, w, t) in block(), weighted in any::<bool>()) {
            for (scheme, scale) in [(NVFP4, tensor_scale(t)), (MXFP4, 1.0)] {
                let q = BlockQuantizer::new(scheme, scale, ScaleRule::Sweep).unwrap();
                let n = q.size();
                let (x, w) = (&x[..n], if weighted { w[..n].to_vec() } else { vec![1.0; n] });
                let (_, bytes, _) = quantized(&q, x, n, if weighted { &w } else { &[] });
                let error = |byte: u8| scheme.scale.from_byte(byte).map(|s| plain_error(x, &w, s * scale));
                let chosen = error(bytes[0]).unwrap();
                let least = (0..=255).filter_map(error).fold(f64::INFINITY, f64::min);
                let size: f64 = x.iter().zip(&w).map(|(x, w)| f64::from(w * x * x)).sum();
                prop_assert!(chosen <= least * (1.0 + 1e-4) + size * 1e-12, "{scheme} {chosen} {least}");
            }
        }

        /// Rules differ in nothing but the code they choose, and the sweep is the best of them.
        #[test]
        fn the_sweep_is_never_worse((x, _, t) in block()) {
            for (scheme, scale, rules) in [
                (NVFP4, tensor_scale(t), [ScaleRule::Absmax, ScaleRule::FourOverSix]),
                (MXFP4, 1.0, [ScaleRule::Absmax, ScaleRule::RoundUp]),
            ] {
                let error = |rule| quantized(&BlockQuantizer::new(scheme, scale, rule).unwrap(), &x, 32, &[]).2;
                let sweep = error(ScaleRule::Sweep);
                for rule in rules {
                    prop_assert!(sweep <= error(rule) * (1.0 + 1e-4), "{scheme} {rule:?}");
                }
            }
        }
    }
}
