//! Activation functions, value by value.

use crate::ops::exp;
use multiversion::multiversion;

/// `x_i ← x_i / (1 + e^(−x_i))`, the SiLU activation.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn silu(x: &mut [f32]) {
    for v in x.iter_mut() {
        *v /= 1.0 + exp(-*v);
    }
}

/// `x_i ← x_i · Φ(x_i)`, the GELU activation (arXiv 1606.08415) with the exact normal distribution function.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn gelu(x: &mut [f32]) {
    for v in x.iter_mut() {
        let tail = upper_tail(v.abs());
        *v *= if *v < 0.0 { tail } else { 1.0 - tail };
    }
}

/// `1 − Φ(x)` for `x ≥ 0`, to about four units in the last place: `e^(−x²/2)` times a polynomial in `1 / (1 + p x)`,
/// fitted for least relative error (1.5e-8) over the range in which the result is a normal number.
#[inline(always)]
fn upper_tail(x: f32) -> f32 {
    const P: f32 = 0.35 * std::f32::consts::FRAC_1_SQRT_2;
    // Half the coefficients of erfcx(z) in t = 1 / (1 + 0.35 z), highest power first.
    const C: [f32; 10] = [
        0.033_447_745,
        -0.201_031_48,
        0.421_796_7,
        -0.372_219_5,
        0.337_624_44,
        -0.038_046_147,
        0.126_441_36,
        0.092_654_22,
        0.099_360_93,
        -2.828_551_2e-5,
    ];
    let t = 1.0 / (1.0 + P * x);
    let mut sum = C[0];
    for c in &C[1..] {
        sum = sum * t + c;
    }
    sum * exp(-0.5 * x * x)
}

/// `x_i ← x_i / 2 · (1 + tanh(√(2/π) (x_i + 0.044715 x_i³)))`, the usual approximation of GELU.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn gelu_tanh(x: &mut [f32]) {
    const ROOT: f32 = 0.797_884_6;
    for v in x.iter_mut() {
        // (1 + tanh u) / 2 = 1 / (1 + e^(−2u))
        let u = ROOT * (*v + 0.044_715 * *v * *v * *v);
        *v /= 1.0 + exp(-2.0 * u);
    }
}

/// `x_i ← max(x_i, 0)`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn relu(x: &mut [f32]) {
    for v in x.iter_mut() {
        *v = v.max(0.0);
    }
}

/// `x_i ← tanh(x_i)`, to a few units in the last place.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn tanh(x: &mut [f32]) {
    for v in x.iter_mut() {
        *v = tanh_of(*v);
    }
}

/// Replaces every value by the derivative of [`silu`] there: `σ (1 + x (1 − σ))`, `σ = 1 / (1 + e^(−x))`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn silu_slope(x: &mut [f32]) {
    for v in x.iter_mut() {
        let s = 1.0 / (1.0 + exp(-*v));
        *v = s * (1.0 + *v * (1.0 - s));
    }
}

/// Replaces every value by the derivative of [`gelu`] there: `Φ(x) + x φ(x)`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn gelu_slope(x: &mut [f32]) {
    // 1 / √(2π)
    const PEAK: f32 = 0.398_942_3;
    for v in x.iter_mut() {
        let tail = upper_tail(v.abs());
        let below = if *v < 0.0 { tail } else { 1.0 - tail };
        *v = below + *v * (PEAK * exp(-0.5 * *v * *v));
    }
}

/// Replaces every value by the derivative of [`gelu_tanh`] there.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn gelu_tanh_slope(x: &mut [f32]) {
    const ROOT: f32 = 0.797_884_6;
    for v in x.iter_mut() {
        let u = ROOT * (*v + 0.044_715 * *v * *v * *v);
        let slope = ROOT * (1.0 + 3.0 * 0.044_715 * *v * *v);
        let s = 1.0 / (1.0 + exp(-2.0 * u));
        // Far out the flank is flat, and the slope of u overflows.
        let flank = if v.abs() < 10.0 { 2.0 * *v * slope * (s * (1.0 - s)) } else { 0.0 };
        *v = s + flank;
    }
}

/// Replaces every value by the derivative of [`relu`] there, 0 at 0.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn relu_slope(x: &mut [f32]) {
    for v in x.iter_mut() {
        *v = if *v > 0.0 { 1.0 } else { 0.0 };
    }
}

/// Replaces every value by the derivative of [`tanh`] there.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn tanh_slope(x: &mut [f32]) {
    for v in x.iter_mut() {
        let t = tanh_of(*v);
        *v = 1.0 - t * t;
    }
}

#[inline(always)]
pub(crate) fn tanh_of(x: f32) -> f32 {
    let (a, s) = (x.abs(), x * x);
    // The series where 1 − 2 / (e^2a + 1) would lose its digits.
    let series = (((62.0 / 2835.0 * s - 17.0 / 315.0) * s + 2.0 / 15.0) * s - 1.0 / 3.0) * s + 1.0;
    let far = (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(x);
    if a < 0.2 { x * series } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Φ(x)` by the trapezoidal rule, which converges fast for a smooth, vanishing integrand.
    fn normal(x: f64) -> f64 {
        let h = 1e-3;
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let n = ((x + 14.0) / h).round() as usize;
        let step = (x + 14.0) / n as f64;
        let inner: f64 = (1..n).map(|i| density(-14.0 + i as f64 * step)).sum();
        step * (inner + 0.5 * density(x))
    }

    #[test]
    fn slopes_are_those_of_the_functions() {
        type Function = fn(&mut [f32]);
        let pairs: [(Function, Function); 5] = [
            (silu, silu_slope),
            (gelu, gelu_slope),
            (gelu_tanh, gelu_tanh_slope),
            (relu, relu_slope),
            (tanh, tanh_slope),
        ];
        for (i, (function, slope)) in pairs.into_iter().enumerate() {
            for k in -80..=80 {
                let x = k as f32 * 0.1 + 0.013;
                let h = 1.0 / 256.0;
                let mut ends = [x - h, x + h];
                function(&mut ends);
                let mut got = [x];
                slope(&mut got);
                let expected = (ends[1] - ends[0]) / (2.0 * h);
                assert!((got[0] - expected).abs() < 3e-4, "function {i} at {x}: {} for {expected}", got[0]);
            }
            let mut far = [-1e30f32, 1e30];
            slope(&mut far);
            assert!(far.iter().all(|v| v.is_finite()), "function {i}: {far:?}");
        }
    }

    #[test]
    fn gelu_is_within_units_in_the_last_place() {
        for i in -240..=240 {
            let x = i as f32 * 0.0371;
            let mut y = [x];
            gelu(&mut y);
            let exact = f64::from(x) * normal(f64::from(x));
            let error = (f64::from(y[0]) - exact).abs();
            assert!(error <= 3e-6 * exact.abs() + 1e-9, "gelu({x}) = {} is off by {error:e}", y[0]);
            if x > -1.0 {
                assert!(error <= 4e-7 * exact.abs() + 1e-12, "gelu({x}) = {} is off by {error:e}", y[0]);
            }
        }
        let mut ends = [-1e30, -50.0, 50.0, 1e30];
        gelu(&mut ends);
        assert!(ends[0].abs() < 1e-7 && ends[1].abs() < 1e-30 && ends[2..] == [50.0, 1e30]);
    }

    #[test]
    fn tanh_and_what_is_made_of_it_follow_their_formulas() {
        for i in -400..=400 {
            let x = i as f32 * 0.0271;
            let (mut t, mut g) = ([x], [x]);
            tanh(&mut t);
            gelu_tanh(&mut g);
            let x = f64::from(x);
            assert!((f64::from(t[0]) - x.tanh()).abs() <= 3e-7 * x.tanh().abs(), "tanh({x}) = {}", t[0]);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            let exact = 0.5 * x * (1.0 + u.tanh());
            assert!((f64::from(g[0]) - exact).abs() <= 3e-6 * exact.abs() + 1e-9, "gelu({x}) = {}", g[0]);
        }
    }
}
