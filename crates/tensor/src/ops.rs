//! Norms, activations, softmax, rotary embedding: everything between two products.

use multiversion::multiversion;

/// Lanes of every reduction: a full AVX-512 register, and the same sum on narrower machines.
const LANES: usize = 16;
/// Values after which f32 lanes are folded into f64.
const FOLD: usize = 1024;

/// Reduces `term(x_i, y_i)` in a fixed order: 16 f32 lanes over pieces of 1,024, folded in f64.
#[inline(always)]
fn reduce(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0f64;
    for (x, y) in x.chunks(FOLD).zip(y.chunks(FOLD)) {
        let mut lanes = [0.0f32; LANES];
        let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        for (i, (&a, &b)) in xs.remainder().iter().zip(ys.remainder()).enumerate() {
            lanes[i] = term(a, b);
        }
        for (x, y) in xs.zip(ys) {
            for i in 0..LANES {
                lanes[i] += term(x[i], y[i]);
            }
        }
        total += lanes.iter().map(|&v| f64::from(v)).sum::<f64>();
    }
    total
}

/// `Σ x_i y_i`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn dot(x: &[f32], y: &[f32]) -> f64 {
    reduce(x, y, |a, b| a * b)
}

/// `Σ x_i²`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn sum_of_squares(x: &[f32]) -> f64 {
    reduce(x, x, |a, b| a * b)
}

/// `x += y`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Multiplies column `j` of the row-major `x` by `factors[j]`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn scale_columns(x: &mut [f32], factors: &[f32]) {
    for row in x.chunks_exact_mut(factors.len()) {
        for (v, f) in row.iter_mut().zip(factors) {
            *v *= f;
        }
    }
}

/// RMSNorm of every row of `x` into `out`: `w_j · x_j / sqrt(mean(x²) + eps)` (arXiv 1910.07467).
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = weight.len();
    for (row, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        let mean = reduce(row, row, |a, b| a * b) / n as f64;
        let inverse = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
        for ((o, v), w) in out.iter_mut().zip(row).zip(weight) {
            *o = w * (v * inverse);
        }
    }
}

/// LayerNorm of every row of `x` into `out`: `w_j · (x_j − mean) / sqrt(var + eps) + b_j` (arXiv 1607.06450).
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let n = weight.len();
    for (row, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        let mean = (reduce(row, row, |a, _| a) / n as f64) as f32;
        let var = reduce(row, row, |a, _| (a - mean) * (a - mean)) / n as f64;
        let inverse = (1.0 / (var + f64::from(eps)).sqrt()) as f32;
        for (j, (o, v)) in out.iter_mut().zip(row).enumerate() {
            *o = weight[j] * ((v - mean) * inverse) + bias[j];
        }
    }
}

/// The gradient of [`rms_norm`] with respect to its input, for the gradient `grad` of its output: with `u = w ∘ grad` and
/// `r = 1 / sqrt(mean(x²) + eps)`, `out_j = r (u_j − x_j r² mean(x ∘ u))`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn rms_norm_backward(x: &[f32], weight: &[f32], eps: f32, grad: &[f32], out: &mut [f32]) {
    let n = weight.len();
    let rows = x.chunks_exact(n).zip(grad.chunks_exact(n)).zip(out.chunks_exact_mut(n));
    for ((row, grad), out) in rows {
        let mean = reduce(row, row, |a, b| a * b) / n as f64;
        let inverse = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
        for ((o, g), w) in out.iter_mut().zip(grad).zip(weight) {
            *o = g * w;
        }
        let along = (reduce(row, out, |a, b| a * b) / n as f64) as f32 * inverse * inverse;
        for (o, v) in out.iter_mut().zip(row) {
            *o = inverse * (*o - v * along);
        }
    }
}

/// The gradient of [`layer_norm`] with respect to its input, for the gradient `grad` of its output: with `u = w ∘ grad`,
/// `r = 1 / sqrt(var + eps)` and `z = (x − mean) r`, `out_j = r (u_j − mean(u) − z_j mean(z ∘ u))`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn layer_norm_backward(x: &[f32], weight: &[f32], eps: f32, grad: &[f32], out: &mut [f32]) {
    let n = weight.len();
    let rows = x.chunks_exact(n).zip(grad.chunks_exact(n)).zip(out.chunks_exact_mut(n));
    for ((row, grad), out) in rows {
        let mean = (reduce(row, row, |a, _| a) / n as f64) as f32;
        let var = reduce(row, row, |a, _| (a - mean) * (a - mean)) / n as f64;
        let inverse = (1.0 / (var + f64::from(eps)).sqrt()) as f32;
        for ((o, g), w) in out.iter_mut().zip(grad).zip(weight) {
            *o = g * w;
        }
        let level = (reduce(out, out, |a, _| a) / n as f64) as f32;
        let along = (reduce(row, out, |a, b| (a - mean) * b) / n as f64) as f32 * inverse * inverse;
        for (o, v) in out.iter_mut().zip(row) {
            *o = inverse * (*o - level - (v - mean) * along);
        }
    }
}

/// `e^x` to about one unit in the last place for `x ≤ 88`, 0 below −87: Cody and Waite's reduction and a polynomial of
/// degree 6, in plain multiplications and additions so that every instruction set gives the same bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding and subtracting it rounds to an integer
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
        + 0.166_666_66)
        * r
        + 0.5;
    let p = p * (r * r) + r + 1.0;
    // The lowest bits of the shifted number are n. `n as i32` would be the same, and lanes would do it one by one.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// The largest value that is a number, −∞ if there is none. Lane by lane: one comparison after the other would wait for each.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let larger = |m: f32, v: f32| if v > m { v } else { m };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let pieces = x.chunks_exact(LANES);
    let rest = pieces.remainder();
    for piece in pieces {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], piece[i]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| larger(m, v))
}

/// The first index of the largest value, those that are no numbers left out; 0 if nothing is a number.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn index_of_largest(x: &[f32]) -> usize {
    let max = largest(x);
    // Piece by piece, so that the comparisons have no exits between them.
    let piece = x.chunks(64).position(|piece| piece.iter().fold(false, |found, &v| found | (v == max)));
    let first = 64 * piece.unwrap_or(0);
    first + x[first..].iter().position(|&v| v == max).unwrap_or(0)
}

/// Replaces `x` by its softmax, `e^(x_i) / Σ e^(x_j)`. An empty slice stays empty.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn softmax(x: &mut [f32]) {
    let max = largest(x);
    for v in x.iter_mut() {
        *v = exp(*v - max);
    }
    let inverse = (1.0 / reduce(x, x, |a, _| a)) as f32;
    for v in x.iter_mut() {
        *v *= inverse;
    }
}

/// `log Σ e^(x_i)`, from which log-probabilities are `x_i − log_sum_exp(x)`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let max = largest(x);
    f64::from(max) + reduce(x, x, |a, _| exp(a - max)).ln()
}

/// `Σ p_i (log p_i − log q_i)` in nats for the distributions `p` and `q` whose logits are `reference` and `x`
/// (Kullback and Leibler, 1951), each with its [`log_sum_exp`]. Zero for equal logits, never less.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub fn kl_divergence((reference, total): (&[f32], f64), (x, other): (&[f32], f64)) -> f64 {
    // Differences of logits first: they are small where the models agree, and lose nothing to the size of the logits.
    let (total, shift) = (total as f32, (total - other) as f32);
    reduce(reference, x, |p, q| exp(p - total) * ((p - q) - shift)).max(0.0)
}

/// Rotary position embedding in the half-split form of Hugging Face: channel `i` is paired with `i + d/2`
/// (arXiv 2104.09864).
#[derive(Clone, Debug)]
pub struct Rotary {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// Tables for `positions` positions; `frequencies` has one angle a position for each pair of channels, and
    /// `amplitude` multiplies both tables (1 but for YaRN).
    pub fn new(frequencies: &[f32], amplitude: f64, positions: usize) -> Self {
        // The angle is rounded to f32, as the models were trained with.
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        let (cos, sin) = angles
            .map(|a| ((a.cos() * amplitude) as f32, (a.sin() * amplitude) as f32))
            .collect::<(Vec<_>, Vec<_>)>();
        Self { half: frequencies.len(), cos, sin }
    }

    /// Number of positions that the tables hold.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }

    /// Rotates every head of `x`, whose rows have these positions and `heads` heads of `head_dim` channels. Channels
    /// past the rotated ones stay.
    pub fn apply(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        positions: impl Iterator<Item = usize>,
    ) {
        self.turn(x, heads * head_dim, head_dim, positions, 1.0);
    }

    /// The transpose of [`apply`](Self::apply), which turns a gradient of its result into one of its argument.
    pub fn apply_transposed(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        positions: impl Iterator<Item = usize>,
    ) {
        self.turn(x, heads * head_dim, head_dim, positions, -1.0);
    }

    /// Turns the heads of rows of `width` values forwards (`sign` 1) or backwards (−1).
    fn turn(
        &self,
        x: &mut [f32],
        width: usize,
        head_dim: usize,
        positions: impl Iterator<Item = usize>,
        sign: f32,
    ) {
        let half = self.half;
        for (row, p) in x.chunks_exact_mut(width).zip(positions) {
            let (cos, sin) = (&self.cos[p * half..][..half], &self.sin[p * half..][..half]);
            for head in row.chunks_exact_mut(head_dim) {
                let (a, rest) = head.split_at_mut(half);
                for (((a, b), c), s) in a.iter_mut().zip(rest).zip(cos).zip(sin) {
                    let (x, y, s) = (*a, *b, sign * s);
                    *a = x * c - y * s;
                    *b = y * c + x * s;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.4e-7, "exp({x}): relative error {error:e}");
            x += 0.0137;
        }
    }

    #[test]
    fn softmax_sums_to_one_and_survives_large_scores() {
        let mut x = vec![1000.0, 1001.0, -1000.0];
        softmax(&mut x);
        assert!((x[1] - 1.0 / (1.0 + (-1.0f32).exp())).abs() < 1e-6 && x[2] < 1e-30);
        let mut none: [f32; 0] = [];
        softmax(&mut none);
    }

    #[test]
    fn the_largest_is_found_wherever_it_stands() {
        for n in [1, 15, 16, 17, 64, 65, 200] {
            for at in 0..n {
                let mut x: Vec<f32> = (0..n).map(|i| -1.0 - (i % 7) as f32).collect();
                x[at] = -0.5;
                assert_eq!((largest(&x), index_of_largest(&x)), (-0.5, at), "{n}");
                // Of equals the first; what is no number does not count.
                x[n - 1] = -0.5;
                if at > 0 {
                    x[0] = f32::NAN;
                }
                assert_eq!((largest(&x), index_of_largest(&x)), (-0.5, at), "{n}");
            }
        }
        assert_eq!(
            (largest(&[]), index_of_largest(&[]), index_of_largest(&[f32::NAN; 3])),
            (f32::NEG_INFINITY, 0, 0)
        );
    }

    #[test]
    fn log_sum_exp_of_equal_values_is_their_value_plus_log_count() {
        assert!((log_sum_exp(&[2.0; 1000]) - (2.0 + 1000f64.ln())).abs() < 1e-6);
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        let p: Vec<f32> = (0..3000).map(|i| ((i * 37) % 101) as f32 / 9.0).collect();
        let q: Vec<f32> =
            (0..3000).map(|i| ((i * 37) % 101) as f32 / 9.0 + ((i * 11) % 7) as f32 / 5.0).collect();
        let log = |x: &[f32]| {
            let total = x.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
            x.iter().map(|&v| f64::from(v) - total).collect::<Vec<_>>()
        };
        let exact: f64 = log(&p).iter().zip(log(&q)).map(|(p, q)| p.exp() * (p - q)).sum();
        let divergence = |p: &[f32], q: &[f32]| kl_divergence((p, log_sum_exp(p)), (q, log_sum_exp(q)));
        assert!((divergence(&p, &q) - exact).abs() < 1e-6 * exact, "{} {exact}", divergence(&p, &q));
        assert_eq!(divergence(&p, &p), 0.0);
    }

    #[test]
    fn norms_follow_their_formula() {
        let (x, w, b) = ([1.0, 2.0, -4.0], [1.0, 0.5, 2.0], [0.1, 0.2, 0.3]);
        let mut out = [0.0; 3];
        rms_norm(&x, &w, 1e-5, &mut out);
        let r = (7.0f64 + 1e-5).sqrt();
        assert!((f64::from(out[2]) + 8.0 / r).abs() < 1e-6);
        layer_norm(&x, &w, &b, 1e-5, &mut out);
        let mean = -1.0 / 3.0;
        let var = ((1.0f64 - mean).powi(2) + (2.0 - mean).powi(2) + (-4.0 - mean).powi(2)) / 3.0;
        assert!((f64::from(out[1]) - (0.5 * (2.0 - mean) / (var + 1e-5).sqrt() + 0.2)).abs() < 1e-6);
    }

    #[test]
    fn gradients_of_norms_are_their_differences() {
        let (n, h) = (19, 1.0 / 128.0);
        let value = |i: usize, k: usize| ((i * 7919 + k * 104_729) % 1000) as f32 / 250.0 - 1.7;
        let [x, w, b, g] = [0, 1, 2, 3].map(|k| (0..n).map(|i| value(i, k)).collect::<Vec<f32>>());
        // The scalar whose gradient is asked for, `g · norm(x)`.
        let scalar = |x: &[f32], layer: bool| {
            let mut out = vec![0.0; n];
            if layer {
                layer_norm(x, &w, &b, 1e-3, &mut out)
            } else {
                rms_norm(x, &w, 1e-3, &mut out)
            }
            out.iter().zip(&g).map(|(o, g)| f64::from(*o) * f64::from(*g)).sum::<f64>()
        };
        for layer in [false, true] {
            let mut got = vec![0.0; n];
            if layer {
                layer_norm_backward(&x, &w, 1e-3, &g, &mut got);
            } else {
                rms_norm_backward(&x, &w, 1e-3, &g, &mut got);
            }
            for j in 0..n {
                let mut moved = [x.clone(), x.clone()];
                moved[0][j] -= h;
                moved[1][j] += h;
                let expected = (scalar(&moved[1], layer) - scalar(&moved[0], layer)) / f64::from(2.0 * h);
                assert!((f64::from(got[j]) - expected).abs() < 1e-3, "{layer} {j}: {} {expected}", got[j]);
            }
        }
    }

    #[test]
    fn turning_back_is_the_transpose() {
        let rotary = Rotary::new(&[1.0, 0.1], 1.3, 5);
        let x: Vec<f32> = (0..24).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        let y: Vec<f32> = (0..24).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
        let (mut turned, mut back) = (x.clone(), y.clone());
        rotary.apply(&mut turned, 2, 6, [1, 4].into_iter());
        rotary.apply_transposed(&mut back, 2, 6, [1, 4].into_iter());
        assert!((dot(&turned, &y) - dot(&x, &back)).abs() < 1e-3);
    }

    #[test]
    fn rotation_keeps_lengths_and_turns_by_the_position() {
        let rotary = Rotary::new(&[1.0, 0.1], 1.0, 3);
        let mut x = [1.0, 0.0, 0.0, 1.0].repeat(3);
        rotary.apply(&mut x, 1, 4, 0..3);
        assert_eq!(&x[..4], &[1.0, 0.0, 0.0, 1.0]);
        assert!((x[8] - 2f32.cos()).abs() < 1e-6 && (x[10] - 2f32.sin()).abs() < 1e-6);
        assert!((x[9] + 0.2f32.sin()).abs() < 1e-6 && (x[11] - 0.2f32.cos()).abs() < 1e-6);
    }
}
