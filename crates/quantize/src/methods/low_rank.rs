//! Low-rank compensation: a product of two thin matrices beside the codes of a weight makes up for what these lack (LQER, arXiv
//! 2402.02446, with the whole second moments of the inputs instead of their diagonal).
//!
//! With `E = W − Ŵ` and `G = X̂ᵀX̂`, the output error of a part `L` is `tr (E − L) G (E − L)ᵀ`. The best L of rank r is `U Uᵀ E`, U
//! being the r leading eigenvectors of `E G Eᵀ`: the singular value decomposition of `E G^½` without the root. They are
//! found by subspace iteration. Where the recipe corrects weights for the rounding of their inputs, W is the corrected one.

use super::feedback::Factor;
use super::{SiteResult, correct, output_error, piece};
use crate::QuantizeError;
use crate::clock::{Phase, timed};
use crate::recipe::Recipe;
use crate::tap::{Moments, TapInputs, quantized};
use half::bf16;
use halfbyte_checkpoint::LowRank;
use halfbyte_model::{Site, Weight};
use halfbyte_tensor::{Columns, Matrix, Rows, mix, product};
use rayon::prelude::*;
use std::borrow::Cow;

/// Steps of the subspace iteration. The eigenvalues that matter stand apart; more changed the error by less than a thousandth.
pub(crate) const STEPS: usize = 6;

/// Gives every quantized weight in `results` its low-rank part and measures its error anew; `full` are the weights before.
///
/// # Errors
/// When the stored activations cannot be read, or a matrix cannot be factorised.
pub(crate) fn compensate<'a>(
    inputs: &TapInputs,
    full: impl Iterator<Item = &'a Weight>,
    results: &mut [SiteResult],
    rank: usize,
    recipe: &Recipe,
) -> Result<(), QuantizeError> {
    let precision = recipe.products.precision();
    let sample = timed(Phase::Statistics, || inputs.sample(recipe.sample_tokens, recipe.seed))?;
    // Layers of one input have one quantizer, but for those with bits of their own.
    let mut last = None;
    for (weight, result) in full.zip(results) {
        let Some(codes) = &result.weight else { continue };
        let own = match last.take() {
            Some((input, moments)) if input == result.input => (input, moments),
            _ => (
                result.input.clone(),
                timed(Phase::Statistics, || {
                    inputs.moments(result.input.as_ref(), recipe.correct, precision)
                })?,
            ),
        };
        let Moments { gram, cross } = &own.1;
        let full = weight.to_f32();
        let mut residual = full.clone();
        if let Some(cross) = cross {
            let mut difference: Vec<f32> = gram.iter().zip(cross).map(|(g, c)| g - c).collect();
            let factor = Factor::new(gram.clone(), full.cols, recipe.damping, recipe.act_order)?;
            timed(Phase::Round, || {
                correct::correct(&mut residual, &mut difference, &factor, piece(full.cols))
            });
        }
        let mut values = codes.dequantize();
        residual.data.par_iter_mut().zip(&values).for_each(|(r, v)| *r -= v);
        let low_rank = timed(Phase::Search, || leading(&residual, gram, rank, recipe.seed));
        drop(residual);
        low_rank.add_to(&mut values);
        let seen = match &result.input {
            Some(q) => Cow::Owned(quantized(&sample.x, q)),
            None => Cow::Borrowed(&sample.x),
        };
        (result.error, result.signal) =
            timed(Phase::Measure, || output_error(&sample, &seen, &full.data, &values, full.cols, precision));
        result.low_rank = Some(low_rank);
        last = Some(own);
    }
    Ok(())
}

/// Checks that a layer has room for a part of this rank.
///
/// # Errors
/// [`QuantizeError::Recipe`], naming the layer.
pub(crate) fn check(site: &Site, rank: usize) -> Result<(), QuantizeError> {
    if rank < site.outputs.min(site.inputs) {
        return Ok(());
    }
    let message =
        format!("= {rank} is not below the size of {} [{}, {}]", site.name, site.outputs, site.inputs);
    Err(QuantizeError::Recipe { field: "low_rank".into(), message })
}

/// `U` and `Uᵀ E`, for U the leading eigenvectors of `E G Eᵀ`.
fn leading(residual: &Matrix, gram: &[f32], rank: usize, seed: u64) -> LowRank {
    let (rows, cols) = (residual.rows, residual.cols);
    let sign = |i: usize| if mix(seed ^ i as u64) & 1 == 0 { 1.0 } else { -1.0 };
    // Vectors are rows, `[rank, rows]`.
    let mut vectors = Matrix::new(rank, rows, (0..rank * rows).map(sign).collect());
    orthonormalize(&mut vectors);
    let project = |vectors: &Matrix| {
        product(&Rows::new(&vectors.data, rows), &Columns::new(&residual.data, cols, cols))
    };
    for _ in 0..STEPS {
        let through = product(&Rows::new(&project(&vectors).data, cols), &Rows::new(gram, cols));
        vectors = product(&Rows::new(&through.data, cols), &Rows::new(&residual.data, cols));
        orthonormalize(&mut vectors);
    }
    let down = project(&vectors).data.into_iter().map(bf16::from_f32).collect();
    let up = (0..rows).flat_map(|r| (0..rank).map(move |k| k * rows + r));
    let up = up.map(|i| bf16::from_f32(vectors.data[i])).collect();
    LowRank { rank, down, up }
}

/// Makes the rows orthogonal to each other and of length one, by Gram and Schmidt, twice; rows that depend on those before
/// become zero.
fn orthonormalize(vectors: &mut Matrix) {
    let n = vectors.cols;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    for k in 0..vectors.rows {
        let (before, rest) = vectors.data.split_at_mut(k * n);
        let own = &mut rest[..n];
        let length = dot(own, own).sqrt();
        for _ in 0..2 {
            for other in before.chunks_exact(n) {
                let share = dot(own, other) as f32;
                own.iter_mut().zip(other).for_each(|(v, o)| *v -= share * o);
            }
        }
        let left = dot(own, own).sqrt();
        let factor = if left > 1e-6 * length { 1.0 / left } else { 0.0 };
        own.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Place, Store};

    fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let value = |i: usize| (mix(seed << 32 ^ i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        Matrix::new(rows, cols, (0..rows * cols).map(value).collect())
    }

    fn error(residual: &Matrix, low_rank: &LowRank, x: &Matrix) -> f64 {
        let mut left = residual.clone();
        left.data.iter_mut().for_each(|v| *v = -*v);
        low_rank.add_to(&mut left.data);
        let y = product(&Rows::new(&x.data, x.cols), &Rows::new(&left.data, left.cols));
        halfbyte_tensor::sum_of_squares(&y.data)
    }

    #[test]
    fn a_matrix_of_low_rank_is_found_whole() {
        // A sum of three outer products.
        let (up, down, x) = (random(40, 3, 1), random(24, 3, 2), random(100, 24, 3));
        let residual = product(&Rows::new(&up.data, 3), &Rows::new(&down.data, 3));
        let mut gram = vec![0.0; 24 * 24];
        halfbyte_tensor::gram(&x.data, 24, &mut gram, halfbyte_tensor::Precision::F32);
        halfbyte_tensor::mirror(&mut gram, 24);
        let of = |rank| error(&residual, &leading(&residual, &gram, rank, 0), &x);
        let none = of(0);
        assert!(of(3) < 2e-5 * none, "{} {none}", of(3));
        assert!(of(1) < none && of(2) < of(1));
        // More than there is: the rest is zero, not noise.
        assert!(of(6) < 2e-5 * none);
    }

    #[test]
    fn what_the_inputs_are_large_in_counts() {
        let residual = random(32, 16, 1);
        let mut x = random(200, 16, 2);
        x.data.chunks_exact_mut(16).for_each(|row| row[3] *= 100.0);
        let mut gram = vec![0.0; 16 * 16];
        halfbyte_tensor::gram(&x.data, 16, &mut gram, halfbyte_tensor::Precision::F32);
        halfbyte_tensor::mirror(&mut gram, 16);
        let plain: Vec<f32> = (0..256).map(|i| f32::from(u8::from(i / 16 == i % 16))).collect();
        let of = |gram: &[f32]| error(&residual, &leading(&residual, gram, 1, 0), &x);
        assert!(of(&gram) < 0.2 * of(&plain), "{} {}", of(&gram), of(&plain));
    }

    #[test]
    fn it_lowers_the_error_of_every_method() {
        let mut store = Store::new(&Place::Memory, 96, &[300]).unwrap();
        let mut x = random(300, 96, 5);
        x.data.chunks_exact_mut(96).for_each(|row| (1..96).for_each(|j| row[j] = 0.3 * row[j] + row[j - 1]));
        store.put(0, x).unwrap();
        let inputs = TapInputs { x: store, weights: None };
        // The error of quantized inputs alone remains.
        for (name, most) in [
            ("nvfp4-w4a16", 0.9),
            ("nvfp4-gptq-w4a16", 0.95),
            ("nvfp4-gptq-w4a4", 0.99),
            ("int4-g32-w4a16", 0.9),
            ("fpq-w4a4", 1.0),
            ("minmax-int-w4a16", 0.9),
        ] {
            let recipe = Recipe { low_rank: 8, ..Recipe::named(name).unwrap() };
            let site = Site::new("layer", 48, 96);
            let weight = random(48, 96, 6);
            let sites = vec![crate::methods::SiteWeight { site, weight: weight.clone() }];
            let mut results = crate::methods::quantize_tap(&inputs, sites, &recipe).unwrap();
            let before = results[0].relative_error();
            let full = Weight::Stored(halfbyte_checkpoint::RawTensor::F32(weight.data), 96);
            compensate(&inputs, [&full].into_iter(), &mut results, 8, &recipe).unwrap();
            let after = results[0].relative_error();
            assert!(after < most * before, "{name}: {after} {before}");
        }
        assert!(check(&Site::new("narrow", 8, 96), 8).is_err());
    }
}
