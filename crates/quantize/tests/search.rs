//! The fast forms of the search against the published products, on seeded random layers with outlier channels.
#![allow(clippy::unwrap_used)]

use halfbyte_model::Site;
use halfbyte_quantize::methods::{SiteResult, SiteWeight, quantize_tap};
use halfbyte_quantize::{Place, Recipe, Search, Store, TapInputs};
use halfbyte_tensor::Matrix;

/// Numbers of about a normal distribution (sum of four uniform ones), seeded.
fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let data = (0..rows * cols).map(|_| uniform() + uniform() + uniform() + uniform()).collect();
    Matrix::new(rows, cols, data)
}

/// Inputs whose channels differ by up to 2^6, in two windows.
fn inputs(tokens: usize, channels: usize) -> TapInputs {
    let mut x = Store::new(&Place::Memory, channels, &[tokens / 2, tokens - tokens / 2]).unwrap();
    for i in 0..2 {
        let mut window = random(x.rows()[i], channels, 7 + i as u64);
        for row in window.data.chunks_exact_mut(channels) {
            row.iter_mut().enumerate().for_each(|(j, v)| *v *= ((j * 5 % 7) as f32).exp2() * 0.1);
        }
        x.put(i, window).unwrap();
    }
    TapInputs { x, weights: None }
}

fn run(inputs: &TapInputs, recipe: &Recipe) -> SiteResult {
    let weight = random(40, inputs.channels(), 3);
    let site = Site::new("layer", 40, inputs.channels());
    quantize_tap(inputs, vec![SiteWeight { site, weight }], recipe).unwrap().remove(0)
}

fn recipe(name: &str, search: Search) -> Recipe {
    Recipe { search, sample_tokens: 1 << 20, ..Recipe::named(name).unwrap() }
}

#[test]
fn second_moments_choose_what_products_over_the_tokens_choose() {
    let inputs = inputs(160, 48);
    for name in ["fpq-baseline-w4a4", "fpq-published-w4a4", "fpq-published-w6a6", "fpq-published-w4a16"] {
        let (direct, gram) =
            (run(&inputs, &recipe(name, Search::Direct)), run(&inputs, &recipe(name, Search::Gram)));
        assert_eq!(direct.weight, gram.weight, "{name}");
        assert_eq!(direct.input, gram.input, "{name}");
    }
}

#[test]
fn ranking_by_the_diagonal_costs_little() {
    let inputs = inputs(160, 48);
    for name in ["fpq-baseline-w4a4", "fpq-published-w4a4"] {
        let (all, ranked) =
            (run(&inputs, &recipe(name, Search::Gram)), run(&inputs, &recipe(name, Search::Ranked)));
        assert!(ranked.error < 1.05 * all.error, "{name}: {} against {}", ranked.error, all.error);
    }
}

#[test]
fn ranking_does_not_clip_everything_where_channels_add_up() {
    // Like a classifier: every channel says the same of a token, and its weights agree with it.
    let (tokens, channels) = (120, 96);
    let sign = |j: usize| if j.is_multiple_of(3) { -1.0 } else { 1.0 };
    let mut x = random(tokens, channels, 11);
    for (t, row) in x.data.chunks_exact_mut(channels).enumerate() {
        let class = if t % 2 == 0 { 0.3 } else { -0.25 };
        row.iter_mut().enumerate().for_each(|(j, v)| *v = 0.05 * *v + class * sign(j));
    }
    let mut store = Store::new(&Place::Memory, channels, &[tokens]).unwrap();
    store.put(0, x).unwrap();
    let inputs = TapInputs { x: store, weights: None };
    for (outputs, limit) in [(2, 5e-3), (40, 0.02)] {
        let mut weight = random(outputs, channels, 12);
        for (i, row) in weight.data.chunks_exact_mut(channels).enumerate() {
            let side = if i % 2 == 0 { 0.05 } else { -0.05 };
            row.iter_mut().enumerate().for_each(|(j, v)| *v = 0.01 * *v + side * sign(j));
        }
        for name in ["fpq-baseline-w4a4", "fpq-published-w4a4"] {
            let site =
                SiteWeight { site: Site::new("classifier", outputs, channels), weight: weight.clone() };
            let found = quantize_tap(&inputs, vec![site], &recipe(name, Search::Ranked)).unwrap().remove(0);
            assert!(found.relative_error() < limit, "{name}, {outputs} outputs: {}", found.relative_error());
        }
    }
}

#[test]
fn each_part_of_the_default_recipe_lowers_the_error() {
    let inputs = inputs(400, 48);
    let error = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = recipe("fpq-w4a4", Search::Ranked);
        change(&mut recipe);
        run(&inputs, &recipe).error
    };
    let default = error(&|_| {});
    assert!(default < error(&|r| r.feedback = false));
    assert!(default < error(&|r| r.correct = false));
    assert!(error(&|r| r.correct = false) < error(&|r| (r.correct, r.feedback) = (false, false)));
    let published = run(&inputs, &recipe("fpq-published-w4a4", Search::Gram)).error;
    let minmax = run(&inputs, &recipe("minmax-fp-w4a4", Search::Gram)).error;
    assert!(default < published && published < minmax, "{default}, {published}, {minmax}");
}

#[test]
fn a_sample_holds_the_token_with_massive_activations() {
    let mut x = Store::new(&Place::Memory, 8, &[1000]).unwrap();
    let mut window = random(1000, 8, 1);
    window.row_mut(617)[3] = 5000.0;
    x.put(0, window).unwrap();
    let sample = TapInputs { x, weights: None }.sample(64, 0).unwrap();
    assert_eq!(sample.x.rows, 64);
    assert!(sample.x.data.contains(&5000.0));
    let stands_for: f32 = sample.weights.unwrap().iter().sum();
    assert_eq!(stands_for, 1000.0);
}

#[test]
fn weights_of_tokens_decide_whose_error_counts() {
    // Weak tokens and strong ones; if the weak ones count, channels get a finer scale.
    let (mut low, high) = (random(64, 8, 5), random(64, 8, 6));
    low.data.iter_mut().for_each(|v| *v *= 0.01);
    let mut both = low.clone();
    both.data.extend(&high.data);
    both.rows = 128;
    let scale = |weights: Vec<f32>| {
        let mut x = Store::new(&Place::Memory, 8, &[128]).unwrap();
        x.put(0, both.clone()).unwrap();
        let tap = TapInputs { x, weights: Some(vec![weights]) };
        let input = run(&tap, &recipe("fpq-w4a4", Search::Ranked)).input.unwrap();
        input.scale() * (-f32::from(input.shifts()[0])).exp2() * input.element().max_value()
    };
    let favour = |first: f32, second: f32| [vec![first; 64], vec![second; 64]].concat();
    assert!(scale(favour(1.0, 1e-6)) < 0.2 * scale(favour(1.0, 1.0)));
}
