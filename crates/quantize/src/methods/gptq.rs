//! Fixed schemes rounded by the second moments of their inputs: corrected for the rounding of the inputs (`correct`), and
//! with error feedback (`feedback`, GPTQ, arXiv 2210.17323).
//!
//! All scales are fixed first, by the recipe's rule, from the weights as they are before any feedback, so that they do not
//! depend on the order of the columns. `weighted` weights errors by what they will count: by the squared pivots of the
//! factor where later columns make up for earlier ones, otherwise by its diagonal.

use super::block_scale::{of_mean_one, scales};
use super::feedback::{self, Factor};
use super::{SiteWeight, correct, piece};
use crate::QuantizeError;
use crate::clock::{Phase, timed};
use crate::recipe::{Recipe, Scales};
use crate::tap::{Moments, TapInputs};
use halfbyte_formats::{Element, Granularity, InputQuantizer, QuantizedMatrix, Scheme, kernel};
use halfbyte_tensor::Matrix;
use rayon::prelude::*;

/// Quantizes the layers of one tap in one scheme, for inputs that go through `input`.
pub(super) fn quantize(
    inputs: &TapInputs,
    input: Option<&InputQuantizer>,
    sites: &[&SiteWeight],
    scheme: Scheme,
    recipe: &Recipe,
) -> Result<Vec<QuantizedMatrix>, QuantizeError> {
    let cols = inputs.channels();
    for SiteWeight { site, weight } in sites {
        scheme.check_shape(&site.name, weight.rows, cols)?;
    }
    let Moments { gram, cross } =
        timed(Phase::Statistics, || inputs.moments(input, recipe.correct, recipe.products.precision()))?;
    // X̂ᵀX̂ − XᵀX̂.
    let difference = cross.map(|mut c| {
        c.par_iter_mut().zip(&gram).for_each(|(c, g)| *c = g - *c);
        c
    });
    let factor = timed(Phase::Round, || Factor::new(gram, cols, recipe.damping, recipe.act_order))?;
    let rows = sites.iter().map(|s| s.weight.rows).sum();
    // All at once: a vector that grows leaves holes as large as the weights.
    let weights: Vec<&[f32]> = sites.iter().map(|s| s.weight.data.as_slice()).collect();
    let mut values = Matrix::new(rows, cols, weights.concat());
    if let Some(mut difference) = difference {
        timed(Phase::Round, || correct::correct(&mut values, &mut difference, &factor, piece(cols)));
    }

    let counts = match (recipe.scales, recipe.feedback) {
        (Scales::Weighted, true) => factor.pivots(),
        (Scales::Weighted, false) => factor.diagonal(),
        _ => Vec::new(),
    };
    let counts = of_mean_one(&counts.into_iter().map(f64::from).collect::<Vec<_>>());
    let largest = kernel::max_abs(&values.data);
    let mut rest = values.data.as_mut_slice();
    let mut results = Vec::with_capacity(sites.len());
    for SiteWeight { site, weight } in sites {
        let own;
        (own, rest) = rest.split_at_mut(weight.data.len());
        let (scales, tensor_scale) =
            timed(Phase::Search, || scales(&site.name, own, cols, scheme, largest, recipe, &counts))?;
        if recipe.feedback {
            timed(Phase::Round, || {
                let rows = piece(cols) / cols;
                for (i, piece) in own.chunks_mut(rows * cols).enumerate() {
                    let formats = formats(scheme, &scales, tensor_scale, cols, i * rows, piece.len() / cols);
                    feedback::round(piece, &formats, &factor);
                }
            });
        }
        let (name, rows) = (&site.name, weight.rows);
        results.push(QuantizedMatrix::quantize_with_scales(
            name,
            own,
            rows,
            cols,
            scheme,
            scales,
            tensor_scale,
        )?);
    }
    Ok(results)
}

/// The formats of `rows` rows of `cols` columns from row `from` on, as [`feedback::round`] wants them.
fn formats(
    scheme: Scheme,
    scales: &[f32],
    tensor_scale: f32,
    cols: usize,
    from: usize,
    rows: usize,
) -> Vec<(Element, f32)> {
    let groups = match scheme.granularity {
        Granularity::Tensor => return vec![(scheme.element, scales[0] * tensor_scale); rows],
        Granularity::Channel => 1,
        Granularity::Group(group) => cols / group,
    };
    scales[from * groups..(from + rows) * groups].iter().map(|s| (scheme.element, s * tensor_scale)).collect()
}

#[cfg(test)]
mod tests {
    use crate::methods::{SiteResult, SiteWeight, quantize_tap};
    use crate::recipe::{Recipe, Scales};
    use crate::{Place, Store, TapInputs};
    use halfbyte_formats::Scheme;
    use halfbyte_model::Site;
    use halfbyte_tensor::{Matrix, mix};

    fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let value = |i: usize| (mix(seed << 32 ^ i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        Matrix::new(rows, cols, (0..rows * cols).map(value).collect())
    }

    /// Inputs of 300 tokens whose neighbouring channels move together, at different magnitudes.
    fn correlated(channels: usize) -> TapInputs {
        let mut x = random(300, channels, 1);
        for row in x.data.chunks_exact_mut(channels) {
            for j in 1..channels {
                row[j] = 0.4 * row[j] + 0.9 * row[j - 1];
            }
            row.iter_mut().enumerate().for_each(|(j, v)| *v *= ((j * 5 % 7) as f32).exp2());
        }
        let mut store = Store::new(&Place::Memory, channels, &[300]).unwrap();
        store.put(0, x).unwrap();
        TapInputs { x: store, weights: None }
    }

    /// Two layers of one input.
    fn run(inputs: &TapInputs, recipe: &Recipe) -> Vec<SiteResult> {
        let site = |rows: usize, seed: u64| {
            let site = Site::new(format!("layer{seed}"), rows, inputs.channels());
            SiteWeight { site, weight: random(rows, inputs.channels(), seed) }
        };
        recipe.check().unwrap();
        quantize_tap(inputs, vec![site(40, 2), site(24, 3)], recipe).unwrap()
    }

    fn recipe(weight: &str, input: &str, scales: Scales, correct: bool, feedback: bool) -> Recipe {
        let (weight, input): (Scheme, Option<Scheme>) = (weight.parse().unwrap(), input.parse().ok());
        Recipe {
            weight_bits: weight.element.bits(),
            activation_bits: input.map_or(16, |s| s.element.bits()),
            weight_scheme: Some(weight),
            input_scheme: input,
            scales,
            correct,
            feedback,
            damping: 0.01,
            ..Recipe::named("nvfp4-w4a16").unwrap()
        }
    }

    fn error(results: &[SiteResult]) -> f64 {
        results.iter().map(SiteResult::relative_error).sum()
    }

    #[test]
    fn feedback_lowers_the_output_error_in_every_scheme() {
        let inputs = correlated(96);
        for (scheme, scales) in [
            ("e2m1/group16/e4m3", Scales::Absmax),
            ("e2m1/group16/e4m3", Scales::FourOverSix),
            ("e2m1/group16/e4m3", Scales::Sweep),
            ("e2m1/group32/e8m0", Scales::Sweep),
            ("int4/group32", Scales::Absmax),
            ("int4/group32", Scales::Sweep),
            ("int8/channel", Scales::Absmax),
            ("e4m3fn/channel", Scales::Absmax),
            ("e4m3fn/tensor", Scales::Absmax),
        ] {
            let nearest = run(&inputs, &recipe(scheme, "", scales, false, false));
            for act_order in [false, true] {
                let recipe = Recipe { act_order, ..recipe(scheme, "", scales, false, true) };
                let fed_back = run(&inputs, &recipe);
                let (a, b) = (error(&fed_back), error(&nearest));
                assert!(a < 0.7 * b, "{scheme} {scales:?}: {a} against {b}");
                // The scales are those of rounding to nearest.
                for (a, b) in fed_back.iter().zip(&nearest) {
                    let (a, b) = (a.weight.as_ref().unwrap(), b.weight.as_ref().unwrap());
                    assert_eq!((&a.scales, a.tensor_scale), (&b.scales, b.tensor_scale), "{scheme}");
                }
            }
        }
    }

    #[test]
    fn quantized_inputs_can_be_corrected_for() {
        let inputs = correlated(96);
        for (weight, input) in [
            ("e2m1/group16/e4m3", "e2m1/group16/e4m3/dynamic"),
            ("e2m1/group32/e8m0", "e2m1/group32/e8m0/dynamic"),
            ("int8/channel", "int8/channel/dynamic"),
            ("e4m3fn/tensor", "e4m3fn/tensor"),
        ] {
            let of = |correct, feedback| {
                let recipe = recipe(weight, input, Scales::Absmax, correct, feedback);
                error(&run(&inputs, &Recipe { damping: 0.3, ..recipe }))
            };
            let (nearest, corrected, fed_back, both) =
                (of(false, false), of(true, false), of(false, true), of(true, true));
            let all = format!("{weight}: {both}, {fed_back}, {corrected}, {nearest}");
            assert!(both < fed_back && both < corrected && fed_back < nearest, "{all}");
        }
    }

    #[test]
    fn weights_of_the_errors_are_the_factor_s() {
        let inputs = correlated(96);
        for scheme in ["e2m1/group16/e4m3", "e2m1/group32/e8m0", "int4/group32", "int4/channel"] {
            let of = |scales| error(&run(&inputs, &recipe(scheme, "", scales, false, true)));
            let (weighted, absmax) = (of(Scales::Weighted), of(Scales::Absmax));
            assert!(weighted < absmax, "{scheme}: {weighted}, {absmax}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        let inputs = correlated(160);
        let recipe = recipe("e2m1/group16/e4m3", "e2m1/group16/e4m3/dynamic", Scales::Weighted, true, true);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&inputs, &recipe))
        };
        for (one, three) in on(1).iter().zip(on(3)) {
            assert_eq!((&one.weight, one.error), (&three.weight, three.error));
        }
    }
}
