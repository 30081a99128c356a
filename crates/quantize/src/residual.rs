//! How much each token's error counts where a layer writes to the residual stream.

use crate::QuantizeError;
use crate::store::Store;
use halfbyte_model::Linear;
use halfbyte_tensor::{
    Columns, Matrix, Precision, Rows, mix, product, product_into, scale_columns, sum_of_squares,
};

/// Random directions along which the residual stream is measured. Its mean square is then known to about
/// `√(2 / 64)`, 18 %, which is plenty for a weight, at a small part of the cost of the layer's product.
const DIRECTIONS: usize = 64;
/// Rows of the weight turned to f32 at a time.
const ROWS: usize = 256;

/// The residual stream that a layer adds to.
pub(crate) struct Residual<'a> {
    /// The stream before, in the first channels of `[tokens, channels]`.
    pub(crate) carry: &'a Store,
    /// The factor on each channel of what the layer gives, if there is one.
    pub(crate) scale: Option<&'a [f32]>,
}

/// One over the mean square of the residual stream behind `linear`, for every token of every window, scaled to a mean of
/// one: the next norm divides by its root. Otherwise the few tokens with massive activations (arXiv 2402.17762) would
/// outweigh all others.
///
/// `x` is the layer's input. The stream behind, `r = c + s (W x + b)`, is only looked at through
/// `P r = P c + (P s W) x + P s b`, P being random signs (or the identity where the stream has no more channels than that):
/// the mean of `(P r)²` is the square of r's length.
///
/// # Errors
/// When a store cannot be read.
pub(crate) fn token_weights(
    linear: &Linear,
    residual: &Residual,
    x: &Store,
    seed: u64,
) -> Result<Vec<Vec<f32>>, QuantizeError> {
    let (hidden, inputs) = (linear.site.outputs, linear.site.inputs);
    let directions = directions(hidden, seed);
    let mut scaled = directions.clone();
    if let Some(scale) = residual.scale {
        scale_columns(&mut scaled.data, scale);
    }
    let projected = projected(linear, &scaled);
    let bias = linear.bias.as_ref().map(|b| product(&Rows::new(b, hidden), &Rows::new(&scaled.data, hidden)));
    let carried = residual.carry.channels();
    let mut squares = Vec::with_capacity(x.windows());
    for i in 0..x.windows() {
        let carry = residual.carry.get(i)?;
        let mut seen =
            product(&Rows::strided(&carry.data, carried, hidden), &Rows::new(&directions.data, hidden));
        let stride = seen.cols;
        product_into(
            &Rows::new(&x.get(i)?.data, inputs),
            &Rows::new(&projected.data, inputs),
            &mut seen.data,
            stride,
            Precision::F32,
        );
        if let Some(bias) = &bias {
            seen.data.chunks_exact_mut(stride).for_each(|row| {
                row.iter_mut().zip(&bias.data).for_each(|(v, b)| *v += b);
            });
        }
        squares.push(seen.data.chunks_exact(stride).map(sum_of_squares).collect::<Vec<f64>>());
    }
    Ok(inverse(&squares))
}

/// The shortest a row counts as, squared, relative to the median of all: rows of tokens that no training has seen, zeros often,
/// would outweigh all others.
const SHORTEST: f64 = 1e-3;

/// Weights of tokens from the squared lengths of their rows, for every window: their inverses, scaled to a mean of one.
pub(crate) fn inverse(squares: &[Vec<f64>]) -> Vec<Vec<f32>> {
    let mut sorted: Vec<f64> = squares.iter().flatten().copied().collect();
    let middle = sorted.len() / 2;
    let median =
        if sorted.is_empty() { 0.0 } else { *sorted.select_nth_unstable_by(middle, f64::total_cmp).1 };
    let floor = (SHORTEST * median).max(f64::from(f32::MIN_POSITIVE));
    let weight = |square: &f64| (1.0 / square.max(floor)) as f32;
    let mut weights: Vec<Vec<f32>> = squares.iter().map(|w| w.iter().map(weight).collect()).collect();
    let total: f64 = weights.iter().flatten().map(|&w| f64::from(w)).sum();
    let factor = sorted.len() as f64 / total;
    weights.iter_mut().flatten().for_each(|w| *w = (f64::from(*w) * factor) as f32);
    weights
}

/// `[directions, hidden]`.
fn directions(hidden: usize, seed: u64) -> Matrix {
    let identity = hidden <= DIRECTIONS;
    let rows = hidden.min(DIRECTIONS);
    let sign = |i: usize| if mix(seed ^ i as u64) & 1 == 0 { 1.0 } else { -1.0 };
    let value = |i: usize| match identity {
        true => f32::from(u8::from(i / hidden == i % hidden)),
        false => sign(i),
    };
    Matrix::new(rows, hidden, (0..rows * hidden).map(value).collect())
}

/// `P W`, `[directions, inputs]`.
fn projected(linear: &Linear, directions: &Matrix) -> Matrix {
    let (hidden, inputs) = (linear.site.outputs, linear.site.inputs);
    let mut out = Matrix::zeros(directions.rows, inputs);
    for from in (0..hidden).step_by(ROWS) {
        let rows = ROWS.min(hidden - from);
        let mut weight = Matrix::zeros(rows, inputs);
        (0..rows).for_each(|r| linear.weight.read_row(from + r, weight.row_mut(r)));
        let signs: Vec<f32> =
            directions.data.chunks_exact(hidden).flat_map(|d| d[from..from + rows].iter().copied()).collect();
        product_into(
            &Rows::new(&signs, rows),
            &Columns::new(&weight.data, inputs, inputs),
            &mut out.data,
            inputs,
            Precision::F32,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Place;
    use halfbyte_checkpoint::RawTensor;
    use halfbyte_model::{Site, Weight};

    /// A layer of `hidden` outputs and 5 inputs with a bias, its carry and its input for 40 tokens, the first of which has
    /// activations a hundred times the others'; and the lengths of the residual stream behind it, squared, in f64.
    fn layer(hidden: usize) -> (Linear, Store, Store, Vec<f64>) {
        let value = |i: usize| (mix(i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        let weight: Vec<f32> = (0..hidden * 5).map(value).collect();
        let bias: Vec<f32> = (0..hidden).map(|i| value(i + 7777)).collect();
        let large = |t: usize| if t == 0 { 100.0 } else { 1.0 };
        let c: Vec<f32> = (0..40 * hidden).map(|i| large(i / hidden) * value(i + 999)).collect();
        let x: Vec<f32> = (0..40 * 5).map(|i| large(i / 5) * value(i + 55_555)).collect();
        let square = |t: usize| {
            let channel = |n: usize| {
                let product: f64 =
                    (0..5).map(|k| f64::from(weight[n * 5 + k]) * f64::from(x[t * 5 + k])).sum();
                (f64::from(c[t * hidden + n]) + product + f64::from(bias[n])).powi(2)
            };
            (0..hidden).map(channel).sum::<f64>()
        };
        let squares = (0..40).map(square).collect();
        let store = |data: Vec<f32>, channels| {
            let mut store = Store::new(&Place::Memory, channels, &[40]).unwrap();
            store.put(0, Matrix::new(40, channels, data)).unwrap();
            store
        };
        let site = Site::new("down", hidden, 5).biased(true);
        let weight = Weight::Stored(RawTensor::F32(weight), 5);
        (
            Linear { site, weight, bias: Some(bias), input: None, low_rank: None, precision: Precision::F32 },
            store(c, hidden),
            store(x, 5),
            squares,
        )
    }

    #[test]
    fn weights_are_one_over_the_mean_square() {
        // Exactly for a narrow stream; for a wide one as well as the random directions tell.
        for (hidden, tolerance) in [(48, 1e-4), (700, 0.8)] {
            let (linear, carry, x, squares) = layer(hidden);
            let residual = Residual { carry: &carry, scale: None };
            let weights = token_weights(&linear, &residual, &x, 0).unwrap().remove(0);
            let scale = 40.0 / squares.iter().map(|s| 1.0 / s).sum::<f64>();
            let ratios: Vec<f64> =
                weights.iter().zip(&squares).map(|(&w, s)| f64::from(w) * s / scale).collect();
            assert!(ratios.iter().all(|r| (r - 1.0).abs() < tolerance), "{hidden}: {ratios:?}");
            assert!((weights.iter().sum::<f32>() - 40.0).abs() < 1e-3);
            assert!(weights[0] < 0.01);
        }
    }

    #[test]
    fn tokens_that_no_training_has_seen_do_not_outweigh_the_others() {
        let weights = inverse(&[vec![0.0, 1.0, 2.0], vec![1e9, 1e-30, 1.0, 1.0, 4.0]]);
        let mean = weights.iter().flatten().sum::<f32>() / 8.0;
        assert!((mean - 1.0).abs() < 1e-6);
        // A thousand times the median's, not 1e30 times.
        assert_eq!(weights[0][0], weights[1][1]);
        let ratio = weights[0][0] / weights[0][1];
        assert!((ratio - 1000.0).abs() < 0.1, "{weights:?}");
        assert_eq!(inverse(&[vec![0.0; 4]]), [[1.0; 4]]);
    }
}
