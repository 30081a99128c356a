//! The plain twins of the kernels: one number at a time, in `f64`, after the formula. Slow on purpose; for tests.
//!
//! `fake_quantize`, `encode` and `decode` give the kernels' bits. The errors are exact sums, which the kernels
//! approach within their stated bound.

use crate::Element;

/// The value of `element`'s table at scale 1 nearest to `u`.
///
/// A float of bias b takes (LLM-FP4, section 3; here b is the canonical bias): clamp to the largest value,
/// `p = max(floor(log2 |u| + b), 1)`, `step = 2^(p − M − b)`, `step · round_half_even(u / step)`. Between two normals
/// of an element without mantissa bits, a tie is 1.5 steps and goes up, away from zero.
pub fn nearest(element: Element, u: f32) -> f64 {
    let max = f64::from(element.max_value());
    let u = f64::from(u).clamp(if element.is_signed() { -max } else { 0.0 }, max);
    let step = match element.fields() {
        Some((_, mantissa)) => {
            let bias = element.canonical_bias();
            let p = (floor_log2(u.abs()) + bias).max(1);
            f64::from(p - i32::from(mantissa) - bias).exp2()
        }
        None => 1.0,
    };
    // Adding +0 turns −0 into +0: there is one zero.
    (u / step).round_ties_even() * step + 0.0
}

/// `floor(log2 a)`, exact where `f64::log2` may round up to a whole number.
fn floor_log2(a: f64) -> i32 {
    ((a.to_bits() >> 52) as i32) - 1023
}

/// The value of a code at scale 1, from its fields.
pub fn value(element: Element, code: u8) -> f64 {
    let code = i32::from(code) & ((1 << element.bits()) - 1);
    // The first code with the sign bit, past the end where there is none.
    let half = 1 << (element.bits() - u32::from(element.is_signed()));
    match element.fields() {
        None => f64::from(if code < half { code } else { code - 2 * half }),
        Some((_, mantissa)) => {
            let (m, e) = (code & ((1 << mantissa) - 1), (code & (half - 1)) >> mantissa);
            let fraction = f64::from(m) / f64::from(1 << mantissa);
            let bias = element.canonical_bias();
            let magnitude = if e == 0 {
                fraction * f64::from(1 - bias).exp2()
            } else {
                (1.0 + fraction) * f64::from(e - bias).exp2()
            };
            if code < half { magnitude } else { -magnitude }
        }
    }
}

/// Twin of [`kernel::fake_quantize`](crate::kernel::fake_quantize).
pub fn fake_quantize(element: Element, scale: f32, x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = nearest(element, x * (1.0 / scale)) as f32 * scale;
    }
}

/// Twin of [`kernel::fake_quantize_columns`](crate::kernel::fake_quantize_columns).
pub fn fake_quantize_columns(element: Element, scales: &[f32], inverse: &[f32], x: &[f32], out: &mut [f32]) {
    for i in 0..x.len() {
        out[i] = nearest(element, x[i] * inverse[i]) as f32 * scales[i];
    }
}

/// Twin of [`kernel::squared_error`](crate::kernel::squared_error).
pub fn squared_error(element: Element, scale: f32, x: &[f32]) -> f64 {
    errors(element, scale, x).map(|e| e * e).sum()
}

/// Twin of [`kernel::quadratic_error`](crate::kernel::quadratic_error).
pub fn quadratic_error(element: Element, scale: f32, x: &[f32], g: &[f32], c: &[f32]) -> f64 {
    let terms = errors(element, scale, x).zip(g).zip(c);
    terms.map(|((e, &g), &c)| f64::from(g) * e * e + 2.0 * f64::from(c) * e).sum()
}

/// `Q(x) − x`.
fn errors(element: Element, scale: f32, x: &[f32]) -> impl Iterator<Item = f64> {
    x.iter().map(move |&x| f64::from(nearest(element, x * (1.0 / scale)) as f32 * scale) - f64::from(x))
}

/// Twin of [`kernel::encode`](crate::kernel::encode): looks the value up among the codes.
pub fn encode(element: Element, scale: f32, x: &[f32], codes: &mut [u8]) {
    let lowest = element.is_signed().then(|| 1u8 << (element.bits() - 1));
    let all = (0..=255u8).take(1 << element.bits()).filter(|&code| Some(code) != lowest);
    let table: Vec<(u8, f64)> = all.map(|code| (code, value(element, code))).collect();
    for (code, x) in codes.iter_mut().zip(x) {
        let q = nearest(element, x * (1.0 / scale));
        // Every nearest value is in the table; the tests would see this 0 if one were not.
        *code = table.iter().find(|entry| entry.1 == q).map_or(0, |entry| entry.0);
    }
}

/// Twin of [`kernel::decode`](crate::kernel::decode).
pub fn decode(element: Element, scale: f32, codes: &[u8], out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = value(element, code) as f32 * scale;
    }
}
