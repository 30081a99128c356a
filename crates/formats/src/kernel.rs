//! The loops that quantize and dequantize: portable code, compiled once per instruction set and chosen at run time.
//!
//! All results are bit-identical on every instruction set: no fused multiply-add, and reductions with a fixed
//! number of lanes, folded in a fixed order. [`reference`](mod@crate::reference) has their plain twins.
//!
//! Scales are positive normal `f32` (see [`Element::scale_from_max`]). Inputs are finite: callers look with
//! [`check_finite`] once, when a tensor is read. An infinity saturates and a NaN becomes the largest value, which is
//! wrong but harmless to memory.
//!
//! # Panics
//! Every function here panics when slices that belong together have different lengths; that is a bug of the caller.

use multiversion::multiversion;

use crate::Element;

/// Partial sums of a reduction: one AVX-512 register, two of AVX2, four of NEON.
const LANES: usize = 16;

/// Terms summed in `f32` before they are folded into the `f64` total.
const FOLD: usize = 1024;

const EXPONENT: u32 = 0x7f80_0000;
const MAGNITUDE: u32 = 0x7fff_ffff;

/// An element in the form the loops use.
///
/// Rounding to a multiple of `2^k` is adding and subtracting `1.5 · 2^(k+23)`: the sum lands where an `f32` step is
/// `2^k`, so the hardware rounds half to even. A minifloat's `k` follows the exponent of the number itself, down to
/// the subnormals' exponent; an integer's is always 0, had by a least exponent above all of its values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// The largest value.
    max: f32,
    /// The smallest value: −max, or 0 without a sign.
    min: f32,
    /// Bits of 2^emin, below which the step is constant.
    min_exponent: u32,
    /// Added to exponent bits, makes the bits of the rounding constant.
    offset: u32,
    /// 23 − M: from `f32` bits to code bits.
    shift: u32,
    /// Position of the sign bit in a code; past its end if it has none.
    sign: u32,
    /// The step below 2^(emin + 1).
    min_step: f32,
    /// Codes are two's complement.
    integer: bool,
}

impl Grid {
    pub(crate) fn of(element: Element) -> Self {
        // 2^emin and M; an integer is a float of 7 mantissa bits that never leaves its subnormal range.
        let (emin, mantissa, integer) = match element.fields() {
            Some((_, mantissa)) => (1 - element.canonical_bias(), u32::from(mantissa), false),
            None => (7, 7, true),
        };
        let min_exponent = ((emin + 127) as u32) << 23;
        let (max, signed) = (element.max_value(), element.is_signed());
        Self {
            max,
            min: if signed { -max } else { 0.0 },
            min_exponent,
            offset: ((23 - mantissa) << 23) + 0x0040_0000,
            shift: 23 - mantissa,
            sign: element.bits() - u32::from(signed),
            min_step: f32::from_bits(min_exponent - (mantissa << 23)),
            integer,
        }
    }

    /// The same signed grid, ending earlier, at a value of its own.
    pub(crate) fn ending_at(self, max: f32) -> Self {
        Self { max, min: -max, ..self }
    }

    /// The value of the grid nearest to `u`, never −0.
    #[inline(always)]
    pub(crate) fn round(self, u: f32) -> f32 {
        // Written so that a NaN takes the second branch: one instruction, and the same on every machine.
        let u = if u < self.max { u } else { self.max };
        let u = if u > self.min { u } else { self.min };
        let exponent = (u.to_bits() & EXPONENT).max(self.min_exponent);
        let magic = f32::from_bits(exponent + self.offset);
        (u + magic) - magic
    }

    /// The code of [`round`](Self::round).
    #[inline(always)]
    pub(crate) fn code<const INTEGER: bool>(self, u: f32) -> u8 {
        // What is below a grid without a sign is 0; a NaN stays.
        let u = if u < self.min { self.min } else { u };
        let a = u.abs();
        let a = if a < self.max { a } else { self.max };
        let exponent = (a.to_bits() & EXPONENT).max(self.min_exponent);
        let magic = exponent + self.offset;
        // The steps of a's binade, 0 ..= 2^(M+1), then the codes below that binade. A carry into the next binade
        // is right by itself.
        let steps = (a + f32::from_bits(magic)).to_bits() - magic;
        let code = steps + ((exponent - self.min_exponent) >> self.shift);
        let negative = u32::from(u < 0.0);
        let code = if INTEGER {
            (code ^ negative.wrapping_neg()).wrapping_add(negative) & ((2 << self.sign) - 1)
        } else {
            code | (negative & u32::from(code != 0)) << self.sign
        };
        code as u8
    }

    /// The value of a code.
    #[inline(always)]
    pub(crate) fn value(self, code: u8) -> f32 {
        if self.integer { self.value_of::<true>(code) } else { self.value_of::<false>(code) }
    }

    #[inline(always)]
    fn value_of<const INTEGER: bool>(self, code: u8) -> f32 {
        let code = u32::from(code);
        if INTEGER {
            let unused = 31 - self.sign;
            return ((code << unused) as i32 >> unused) as f32;
        }
        let magnitude = code & ((1 << self.sign) - 1);
        let subnormal = magnitude as f32 * self.min_step;
        // Exponent field 1 is 2^emin.
        let normal = f32::from_bits((magnitude << self.shift) + (self.min_exponent - (1 << 23)));
        let value = if magnitude >> (23 - self.shift) == 0 { subnormal } else { normal };
        f32::from_bits(value.to_bits() | (code >> self.sign & 1) << 31)
    }
}

/// Σ term(x_0[i], x_1[i], …) over slices of equal length, with [`LANES`] sums, folded every [`FOLD`] terms.
#[inline(always)]
fn sum<const K: usize>(x: [&[f32]; K], term: impl Fn([f32; K]) -> f32) -> f64 {
    let n = x[0].len();
    let mut totals = [0f64; LANES];
    for start in (0..n).step_by(FOLD) {
        let end = n.min(start + FOLD);
        let blocks = x.map(|x| x[start..end].as_chunks::<LANES>());
        let mut lanes = [0f32; LANES];
        for i in 0..blocks[0].0.len() {
            let chunks = blocks.map(|(chunks, _)| &chunks[i]);
            for lane in 0..LANES {
                lanes[lane] += term(chunks.map(|chunk| chunk[lane]));
            }
        }
        for lane in 0..blocks[0].1.len() {
            lanes[lane] += term(blocks.map(|(_, rest)| rest[lane]));
        }
        for lane in 0..LANES {
            totals[lane] += f64::from(lanes[lane]);
        }
    }
    totals.iter().sum()
}

/// The bodies of the kernels, inlined into each clone.
mod portable {
    use super::*;

    #[inline(always)]
    pub(super) fn fake_quantize(grid: Grid, scale: f32, x: &[f32], out: &mut [f32]) {
        let inverse = 1.0 / scale;
        for (out, &x) in out.iter_mut().zip(x) {
            *out = grid.round(x * inverse) * scale;
        }
    }

    #[inline(always)]
    pub(super) fn fake_quantize_in_place(grid: Grid, scale: f32, x: &mut [f32]) {
        let inverse = 1.0 / scale;
        for x in x {
            *x = grid.round(*x * inverse) * scale;
        }
    }

    #[inline(always)]
    pub(super) fn fake_quantize_columns(
        grid: Grid,
        scales: &[f32],
        inverse: &[f32],
        x: &[f32],
        out: &mut [f32],
    ) {
        for (((out, &x), &scale), &inverse) in out.iter_mut().zip(x).zip(scales).zip(inverse) {
            *out = grid.round(x * inverse) * scale;
        }
    }

    #[inline(always)]
    pub(super) fn fake_quantize_columns_in_place(grid: Grid, scales: &[f32], inverse: &[f32], x: &mut [f32]) {
        for ((x, &scale), &inverse) in x.iter_mut().zip(scales).zip(inverse) {
            *x = grid.round(*x * inverse) * scale;
        }
    }

    #[inline(always)]
    pub(super) fn fake_quantize_shifted(grid: Grid, scale: f32, shifts: &[u8], x: &[f32], out: &mut [f32]) {
        let (scale, inverse) = (scale.to_bits(), (1.0 / scale).to_bits());
        for ((out, &x), &shift) in out.iter_mut().zip(x).zip(shifts) {
            let steps = u32::from(shift) << 23;
            let (scale, inverse) = (f32::from_bits(scale - steps), f32::from_bits(inverse + steps));
            *out = grid.round(x * inverse) * scale;
        }
    }

    #[inline(always)]
    pub(super) fn fake_quantize_shifted_in_place(grid: Grid, scale: f32, shifts: &[u8], x: &mut [f32]) {
        let (scale, inverse) = (scale.to_bits(), (1.0 / scale).to_bits());
        for (x, &shift) in x.iter_mut().zip(shifts) {
            let steps = u32::from(shift) << 23;
            let (scale, inverse) = (f32::from_bits(scale - steps), f32::from_bits(inverse + steps));
            *x = grid.round(*x * inverse) * scale;
        }
    }

    #[inline(always)]
    pub(super) fn squared_error(grid: Grid, scale: f32, x: &[f32]) -> f64 {
        let inverse = 1.0 / scale;
        sum([x], |[x]| {
            let e = grid.round(x * inverse) * scale - x;
            e * e
        })
    }

    #[inline(always)]
    pub(super) fn quadratic_error(grid: Grid, scale: f32, x: &[f32], g: &[f32], c: &[f32]) -> f64 {
        let inverse = 1.0 / scale;
        sum([x, g, c], |[x, g, c]| {
            let e = grid.round(x * inverse) * scale - x;
            e * (g * e + (c + c))
        })
    }

    #[inline(always)]
    pub(super) fn encode(grid: Grid, scale: f32, x: &[f32], codes: &mut [u8]) {
        let inverse = 1.0 / scale;
        if grid.integer {
            for (code, &x) in codes.iter_mut().zip(x) {
                *code = grid.code::<true>(x * inverse);
            }
        } else {
            for (code, &x) in codes.iter_mut().zip(x) {
                *code = grid.code::<false>(x * inverse);
            }
        }
    }

    #[inline(always)]
    pub(super) fn encode_columns(grid: Grid, inverse: &[f32], x: &[f32], codes: &mut [u8]) {
        if grid.integer {
            for ((code, &x), &inverse) in codes.iter_mut().zip(x).zip(inverse) {
                *code = grid.code::<true>(x * inverse);
            }
        } else {
            for ((code, &x), &inverse) in codes.iter_mut().zip(x).zip(inverse) {
                *code = grid.code::<false>(x * inverse);
            }
        }
    }

    #[inline(always)]
    pub(super) fn decode(grid: Grid, scale: f32, codes: &[u8], out: &mut [f32]) {
        if grid.integer {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = grid.value_of::<true>(code) * scale;
            }
        } else {
            for (out, &code) in out.iter_mut().zip(codes) {
                *out = grid.value_of::<false>(code) * scale;
            }
        }
    }

    #[inline(always)]
    pub(super) fn decode_columns(grid: Grid, scales: &[f32], codes: &[u8], out: &mut [f32]) {
        if grid.integer {
            for ((out, &code), &scale) in out.iter_mut().zip(codes).zip(scales) {
                *out = grid.value_of::<true>(code) * scale;
            }
        } else {
            for ((out, &code), &scale) in out.iter_mut().zip(codes).zip(scales) {
                *out = grid.value_of::<false>(code) * scale;
            }
        }
    }

    /// The largest magnitude's bits: as integers, magnitudes order like their values, NaN last.
    #[inline(always)]
    pub(super) fn max_magnitude(x: &[f32]) -> u32 {
        x.iter().fold(0, |max, x| max.max(x.to_bits() & MAGNITUDE))
    }

    #[inline(always)]
    pub(super) fn column_max_abs(x: &[f32], acc: &mut [f32]) {
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc = f32::from_bits((acc.to_bits() & MAGNITUDE).max(x.to_bits() & MAGNITUDE));
        }
    }
}

/// Defines clones of portable kernels per instruction set. AArch64 needs none, as NEON is part of its baseline.
macro_rules! dispatch {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        mod dispatch {
            use super::*;
            $(
                #[multiversion(targets(
                    "x86_64+avx512f+avx512bw+avx512vl+avx512dq",
                    "x86_64+avx2"
                ))]
                pub(super) fn $name($($arg: $type),*) $(-> $result)? {
                    portable::$name($($arg),*)
                }
            )*
        }
    };
}

dispatch! {
    fake_quantize(grid: Grid, scale: f32, x: &[f32], out: &mut [f32]);
    fake_quantize_in_place(grid: Grid, scale: f32, x: &mut [f32]);
    fake_quantize_columns(grid: Grid, scales: &[f32], inverse: &[f32], x: &[f32], out: &mut [f32]);
    fake_quantize_columns_in_place(grid: Grid, scales: &[f32], inverse: &[f32], x: &mut [f32]);
    fake_quantize_shifted(grid: Grid, scale: f32, shifts: &[u8], x: &[f32], out: &mut [f32]);
    fake_quantize_shifted_in_place(grid: Grid, scale: f32, shifts: &[u8], x: &mut [f32]);
    squared_error(grid: Grid, scale: f32, x: &[f32]) -> f64;
    quadratic_error(grid: Grid, scale: f32, x: &[f32], g: &[f32], c: &[f32]) -> f64;
    encode(grid: Grid, scale: f32, x: &[f32], codes: &mut [u8]);
    encode_columns(grid: Grid, inverse: &[f32], x: &[f32], codes: &mut [u8]);
    decode(grid: Grid, scale: f32, codes: &[u8], out: &mut [f32]);
    decode_columns(grid: Grid, scales: &[f32], codes: &[u8], out: &mut [f32]);
    max_magnitude(x: &[f32]) -> u32;
    column_max_abs(x: &[f32], acc: &mut [f32]);
}

/// `out_i = Q(x_i)`: the nearest value of `element` at `scale`.
pub fn fake_quantize(element: Element, scale: f32, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "x and out");
    dispatch::fake_quantize(Grid::of(element), scale, x, out);
}

/// [`fake_quantize`] over its own input.
pub fn fake_quantize_in_place(element: Element, scale: f32, x: &mut [f32]) {
    dispatch::fake_quantize_in_place(Grid::of(element), scale, x);
}

/// [`fake_quantize`] with one scale per position: a row whose columns have scales of their own.
///
/// `inverse` holds `1.0 / scales`, which the caller computes once for all rows.
pub fn fake_quantize_columns(element: Element, scales: &[f32], inverse: &[f32], x: &[f32], out: &mut [f32]) {
    assert!(x.len() == out.len() && x.len() == scales.len() && x.len() == inverse.len(), "x, out and scales");
    dispatch::fake_quantize_columns(Grid::of(element), scales, inverse, x, out);
}

/// [`fake_quantize_columns`] over its own input.
pub fn fake_quantize_columns_in_place(element: Element, scales: &[f32], inverse: &[f32], x: &mut [f32]) {
    assert!(x.len() == scales.len() && x.len() == inverse.len(), "x and scales");
    dispatch::fake_quantize_columns_in_place(Grid::of(element), scales, inverse, x);
}

/// Whether all of `scale · 2^(−shift)` and their reciprocals are normal numbers, as
/// [`fake_quantize_shifted`] needs them.
pub fn can_shift(scale: f32, shifts: &[u8]) -> bool {
    let exponent = |v: f32| (v.to_bits() & EXPONENT) >> 23;
    let largest = u32::from(shifts.iter().copied().max().unwrap_or(0));
    exponent(scale) > largest && exponent(1.0 / scale) > 0 && exponent(1.0 / scale) + largest < 255
}

/// [`fake_quantize_columns`] for scales `scale · 2^(−shift)`, from one byte a column instead of two `f32`.
///
/// Values are meaningless where not [`can_shift`].
pub fn fake_quantize_shifted(element: Element, scale: f32, shifts: &[u8], x: &[f32], out: &mut [f32]) {
    assert!(x.len() == out.len() && x.len() == shifts.len(), "x, out and shifts");
    debug_assert!(can_shift(scale, shifts));
    dispatch::fake_quantize_shifted(Grid::of(element), scale, shifts, x, out);
}

/// [`fake_quantize_shifted`] in place.
pub fn fake_quantize_shifted_in_place(element: Element, scale: f32, shifts: &[u8], x: &mut [f32]) {
    assert_eq!(x.len(), shifts.len(), "x and shifts");
    debug_assert!(can_shift(scale, shifts));
    dispatch::fake_quantize_shifted_in_place(Grid::of(element), scale, shifts, x);
}

/// `Σ e²` with `e = Q(x) − x`.
///
/// Summed in `f32` over at most 64 terms a lane, then in `f64`: within 1e-5 of the exact sum.
pub fn squared_error(element: Element, scale: f32, x: &[f32]) -> f64 {
    dispatch::squared_error(Grid::of(element), scale, x)
}

/// `Σ g_j e_j² + 2 c_j e_j` with `e = Q(x) − x`: what a weight row's candidate costs, by the diagonal `g` of the
/// Gram matrix and the cross terms `c` of what is fixed already. It may be negative.
pub fn quadratic_error(element: Element, scale: f32, x: &[f32], g: &[f32], c: &[f32]) -> f64 {
    assert!(x.len() == g.len() && x.len() == c.len(), "x, g and c");
    dispatch::quadratic_error(Grid::of(element), scale, x, g, c)
}

/// The code of each `Q(x_i)`, one a byte; [`pack`](crate::pack::pack) makes them dense.
pub fn encode(element: Element, scale: f32, x: &[f32], codes: &mut [u8]) {
    assert_eq!(x.len(), codes.len(), "x and codes");
    dispatch::encode(Grid::of(element), scale, x, codes);
}

/// [`encode`] with one inverse scale, `1.0 / scale`, per position.
pub fn encode_columns(element: Element, inverse: &[f32], x: &[f32], codes: &mut [u8]) {
    assert!(x.len() == codes.len() && x.len() == inverse.len(), "x, codes and scales");
    dispatch::encode_columns(Grid::of(element), inverse, x, codes);
}

/// The value of each code at `scale`. Bits of a code above the element's width are ignored.
pub fn decode(element: Element, scale: f32, codes: &[u8], out: &mut [f32]) {
    assert_eq!(codes.len(), out.len(), "codes and out");
    dispatch::decode(Grid::of(element), scale, codes, out);
}

/// [`decode`] with one scale per position.
pub fn decode_columns(element: Element, scales: &[f32], codes: &[u8], out: &mut [f32]) {
    assert!(codes.len() == out.len() && codes.len() == scales.len(), "codes, out and scales");
    dispatch::decode_columns(Grid::of(element), scales, codes, out);
}

/// Looks for a NaN or an infinity.
///
/// # Errors
/// The index of the first one.
pub fn check_finite(x: &[f32]) -> Result<(), usize> {
    // Blocks, so that a bad value is found soon and looked for only nearby.
    for (block, values) in x.chunks(4096).enumerate() {
        if dispatch::max_magnitude(values) >= EXPONENT {
            let within = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
            return Err(block * 4096 + within);
        }
    }
    Ok(())
}

/// The largest `|x_i|`; 0 for no values, NaN if there is one.
pub fn max_abs(x: &[f32]) -> f32 {
    f32::from_bits(dispatch::max_magnitude(x))
}

/// `acc_j = max(acc_j, |x_j|)`: the maxima of columns, fed row by row. A NaN stays.
pub fn column_max_abs(x: &[f32], acc: &mut [f32]) {
    assert_eq!(x.len(), acc.len(), "x and acc");
    dispatch::column_max_abs(x, acc);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::element::tests::{all, unsigned};
    use crate::reference;

    fn quantized(element: Element, scale: f32, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        fake_quantize(element, scale, x, &mut out);
        out
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// Non-negative values of an element at scale 1, rising.
    fn magnitudes(element: Element) -> Vec<f32> {
        (0..1u8 << (element.bits() - 1)).map(|code| element.value(code)).collect()
    }

    #[test]
    fn e2m1_rounds_as_its_table_says() {
        let x = [0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.1, 99.0, -5.0, -0.75];
        let q = [0.0, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0, -4.0, -1.0];
        assert_eq!(quantized(Element::E2M1, 1.0, &x), q);
        assert_eq!(
            quantized(Element::E3M0, 1.0, &[0.125, 0.375, 0.75, 1.5, 12.0]),
            [0.0, 0.5, 1.0, 2.0, 16.0]
        );
        assert_eq!(
            quantized(Element::INT4, 0.5, &[0.25, 0.75, -1.25, 9.0, -9.0]),
            [0.0, 1.0, -1.0, 3.5, -3.5]
        );
    }

    #[test]
    fn zero_is_always_plus_zero_and_code_zero() {
        for element in all() {
            let x = [0.0, -0.0, -1e-30, 1e-30, -f32::from_bits(1)];
            assert_eq!(bits(&quantized(element, 1.0, &x)), [0; 5], "{element}");
            let mut codes = [9; 5];
            encode(element, 1.0, &x, &mut codes);
            assert_eq!(codes, [0; 5], "{element}");
        }
    }

    #[test]
    fn every_value_keeps_its_code() {
        for element in all() {
            let lowest = 1 << (element.bits() - 1);
            let codes: Vec<u8> =
                (0..=255).filter(|&c| u32::from(c) < 1 << element.bits() && c != lowest).collect();
            for scale in [1.0, 0.37, 2f32.powi(-20), 1e3] {
                let mut values = vec![0.0; codes.len()];
                decode(element, scale, &codes, &mut values);
                let mut back = vec![0; codes.len()];
                encode(element, scale, &values, &mut back);
                assert_eq!(back, codes, "{element} at {scale}");
                assert_eq!(bits(&quantized(element, scale, &values)), bits(&values), "{element} at {scale}");
            }
        }
    }

    #[test]
    fn midpoints_round_to_even_and_their_neighbours_to_the_nearest() {
        for element in all() {
            let values = magnitudes(element);
            for (low, pair) in values.windows(2).enumerate() {
                let middle = (pair[0] + pair[1]) / 2.0;
                // Ties go to the even multiple of the step below the midpoint's binade, which is the even code;
                // without mantissa bits all values are odd multiples but the next power of two, so ties go up.
                let up = low % 2 == 1 || (low > 0 && pair[1] == 2.0 * pair[0] && has_no_mantissa(element));
                let tie = if up { pair[1] } else { pair[0] };
                let x = [middle.next_down(), middle, middle.next_up()];
                assert_eq!(quantized(element, 1.0, &x), [pair[0], tie, pair[1]], "{element} {pair:?}");
                let negative = x.map(|x| -x);
                assert_eq!(
                    quantized(element, 1.0, &negative),
                    [-pair[0], -tie, -pair[1]],
                    "{element} {pair:?}"
                );
            }
        }
    }

    fn has_no_mantissa(element: Element) -> bool {
        matches!(element, Element::Float { mantissa: 0, .. })
    }

    #[test]
    fn not_finite_is_found_and_does_no_harm() {
        let mut x = vec![1.0; 10_000];
        assert_eq!(check_finite(&x), Ok(()));
        x[9_000] = f32::NEG_INFINITY;
        assert_eq!(check_finite(&x), Err(9_000));
        x[4_097] = f32::NAN;
        assert_eq!(check_finite(&x), Err(4_097));
        assert!(max_abs(&x).is_nan());
        let odd = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN];
        for element in all() {
            let top = element.max_value();
            assert_eq!(quantized(element, 1.0, &odd), [top, -top, top, top]);
            let mut codes = [0; 4];
            encode(element, 1.0, &odd, &mut codes);
            let mut values = [0.0; 4];
            decode(element, 1.0, &codes, &mut values);
            assert_eq!(values, [top, -top, top, top]);
        }
    }

    #[test]
    fn maxima_ignore_signs() {
        assert_eq!(max_abs(&[]), 0.0);
        assert_eq!(max_abs(&[1.0, -3.0, 2.0]), 3.0);
        let mut columns = [0.5, 9.0];
        column_max_abs(&[-1.0, 2.0], &mut columns);
        assert_eq!(columns, [1.0, 9.0]);
    }

    /// What the clones compute must not depend on their instruction set: the portable body, compiled here without
    /// any, gives the same bits.
    #[test]
    fn sums_do_not_depend_on_the_instruction_set() {
        let x: Vec<f32> = (0..5_003).map(|i| ((i * 7919) as f32 * 0.37).sin() * 3.0).collect();
        let (g, c): (Vec<f32>, Vec<f32>) = x.iter().map(|x| (x * x, x * 0.1)).unzip();
        for element in all() {
            let grid = Grid::of(element);
            for n in [0, 1, 15, 16, 17, 1023, 1024, 1025, 5_003] {
                let (x, g, c) = (&x[..n], &g[..n], &c[..n]);
                let plain = portable::squared_error(grid, 0.11, x);
                assert_eq!(squared_error(element, 0.11, x).to_bits(), plain.to_bits());
                let plain = portable::quadratic_error(grid, 0.11, x, g, c);
                assert_eq!(quadratic_error(element, 0.11, x, g, c).to_bits(), plain.to_bits());
            }
        }
    }

    /// LLM-FP4, section 3, with a real-valued bias and no scale.
    #[test]
    fn a_bias_gives_the_published_quantizer() {
        let x: Vec<f32> = (1..4000).map(|i| (i as f32 * 0.618).sin() * (i as f32 / 700.0).exp2()).collect();
        for element in all() {
            let Element::Float { exponent, mantissa } = element else { continue };
            for bias in [-1.3f32, 0.0, 0.77, 2.0, 3.91] {
                let q = quantized(element, element.scale_of_bias(bias), &x);
                let (b, m) = (f64::from(bias), f64::from(mantissa));
                let max = (2.0 - (-m).exp2()) * (f64::from((1 << exponent) - 1) - b).exp2();
                for (&x, &q) in x.iter().zip(&q) {
                    let x = f64::from(x).clamp(-max, max);
                    let p = (x.abs().log2() + b).floor().max(1.0);
                    let step = (p - m - b).exp2();
                    // At a tie, the roundings of a scale that is no power of two may decide either way.
                    let tie = ((x / step).fract().abs() - 0.5).abs() < 1e-5;
                    let expected = (x / step).round_ties_even() * step;
                    assert!(
                        tie || (f64::from(q) - expected).abs() <= 1e-6 * expected.abs(),
                        "{element} {bias} {x}"
                    );
                }
            }
        }
    }

    #[test]
    fn fp8_never_makes_a_nan() {
        let x: Vec<f32> =
            (0..4000).map(|i| (i as f32 - 2000.0) * 0.3).chain([448.0, 464.0, 465.0, 1e30]).collect();
        let mut codes = vec![0; x.len()];
        encode(Element::E4M3Fn, 1.0, &x, &mut codes);
        assert!(codes.iter().all(|c| c & 0x7f != 0x7f));
        let (mut values, mut plain) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        decode(Element::E4M3Fn, 1.0, &codes, &mut values);
        assert_eq!(values, quantized(Element::E4M3Fn, 1.0, &x));
        reference::fake_quantize(Element::E4M3Fn, 1.0, &x, &mut plain);
        assert_eq!(values, plain);
    }

    #[test]
    fn without_a_sign_negative_numbers_become_zero() {
        for element in unsigned() {
            let x = [-1.0, -0.0, f32::NEG_INFINITY, f32::NAN, f32::INFINITY];
            let (zero, top) = (0.0f32.to_bits(), element.max_value().to_bits());
            assert_eq!(bits(&quantized(element, 1.0, &x)), [zero, zero, zero, top, top]);
            let mut codes = [9; 5];
            encode(element, 1.0, &x, &mut codes);
            let last = ((1u16 << element.bits()) - 1) as u8;
            assert_eq!(codes, [0, 0, 0, last, last], "{element}");
        }
    }

    #[test]
    fn an_exact_row_has_no_error() {
        let x = [0.0, 0.5, -6.0, 4.0];
        assert_eq!(squared_error(Element::E2M1, 1.0, &x), 0.0);
        assert_eq!(squared_error(Element::E2M1, 1.0, &[7.0, 0.1]), 1.0 + f64::from(0.1f32 * 0.1));
        // e = −1: 2·1 − 2·0.25.
        assert_eq!(quadratic_error(Element::E2M1, 1.0, &[7.0], &[2.0], &[0.25]), 1.5);
    }

    fn element() -> impl Strategy<Value = Element> {
        prop::sample::select([all(), unsigned()].concat())
    }

    /// Finite floats of all magnitudes, with many near the tables' range.
    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![
            3 => -8.0f32..8.0,
            1 => any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite()),
            1 => (-64i32..256).prop_map(|k| k as f32 * 0.125),
        ]
    }

    fn scale() -> impl Strategy<Value = f32> {
        (any::<bool>(), -30f32..30.0).prop_map(|(whole, e)| if whole { e.round().exp2() } else { e.exp2() })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn kernels_equal_the_reference_bit_for_bit(
            element in element(), scale in scale(), x in prop::collection::vec(value(), 0..70),
            shifts in prop::collection::vec(0i32..8, 70),
        ) {
            let n = x.len();
            let (mut fast, mut plain) = (vec![0.0; n], vec![1.0; n]);
            fake_quantize(element, scale, &x, &mut fast);
            reference::fake_quantize(element, scale, &x, &mut plain);
            prop_assert_eq!(bits(&fast), bits(&plain));

            let (mut codes, mut plain_codes) = (vec![0; n], vec![1; n]);
            encode(element, scale, &x, &mut codes);
            reference::encode(element, scale, &x, &mut plain_codes);
            prop_assert_eq!(&codes, &plain_codes);

            let mut decoded = vec![0.0; n];
            decode(element, scale, &codes, &mut decoded);
            prop_assert_eq!(bits(&decoded), bits(&fast));
            reference::decode(element, scale, &codes, &mut decoded);
            prop_assert_eq!(bits(&decoded), bits(&fast));

            let mut in_place = x.clone();
            fake_quantize_in_place(element, scale, &mut in_place);
            prop_assert_eq!(bits(&in_place), bits(&fast));

            let scales: Vec<f32> = shifts[..n].iter().map(|&s| scale * 2f32.powi(-s)).collect();
            let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
            fake_quantize_columns(element, &scales, &inverse, &x, &mut fast);
            reference::fake_quantize_columns(element, &scales, &inverse, &x, &mut plain);
            prop_assert_eq!(bits(&fast), bits(&plain));
            encode_columns(element, &inverse, &x, &mut codes);
            decode_columns(element, &scales, &codes, &mut decoded);
            prop_assert_eq!(bits(&decoded), bits(&fast));
            in_place.copy_from_slice(&x);
            fake_quantize_columns_in_place(element, &scales, &inverse, &mut in_place);
            prop_assert_eq!(bits(&in_place), bits(&fast));
        }

        #[test]
        fn shifts_are_columns_of_scales(
            element in element(), scale in -100f32..90.0,
            rows in prop::collection::vec((value(), 0u8..32), 0..200),
        ) {
            let scale = scale.exp2();
            let (x, shifts): (Vec<f32>, Vec<u8>) = rows.into_iter().map(|(x, s)| (x * scale, s)).unzip();
            prop_assume!(can_shift(scale, &shifts));
            let (scales, inverse) = crate::shifted_scales(scale, &shifts);
            let (mut columns, mut shifted) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            fake_quantize_columns(element, &scales, &inverse, &x, &mut columns);
            fake_quantize_shifted(element, scale, &shifts, &x, &mut shifted);
            prop_assert_eq!(bits(&columns), bits(&shifted));
            let mut in_place = x.clone();
            fake_quantize_shifted_in_place(element, scale, &shifts, &mut in_place);
            prop_assert_eq!(bits(&columns), bits(&in_place));
        }

        #[test]
        fn errors_are_close_to_the_exact_sums(
            element in element(), scale in -6f32..4.0, x in prop::collection::vec(-8f32..8.0, 0..3000),
        ) {
            let scale = scale.exp2();
            let exact = reference::squared_error(element, scale, &x);
            prop_assert!((squared_error(element, scale, &x) - exact).abs() <= 1e-5 * exact);

            let (g, c): (Vec<f32>, Vec<f32>) = x.iter().map(|x| (x * x, x * 0.1)).unzip();
            let exact = reference::quadratic_error(element, scale, &x, &g, &c);
            let zeros = vec![0.0; c.len()];
            let size = reference::quadratic_error(element, scale, &x, &g, &zeros) + exact.abs();
            prop_assert!((quadratic_error(element, scale, &x, &g, &c) - exact).abs() <= 2e-5 * size);
        }

        #[test]
        fn no_other_value_is_nearer(element in element(), u in value()) {
            let q = quantized(element, 1.0, &[u])[0];
            let least = if element.is_signed() { -element.max_value() } else { 0.0 };
            let clamped = u.clamp(least, element.max_value());
            let distance = |v: f32| (f64::from(v) - f64::from(clamped)).abs();
            for value in magnitudes(element) {
                prop_assert!(distance(q) <= distance(value) && distance(q) <= distance(-value));
            }
        }
    }
}
