//! What the search of one layer costs beside the published products and beside the layer's own forward pass.
//!
//!     cargo bench -p halfbyte-quantize -- [OUTPUTS INPUTS TOKENS]
//!
//! The layer is random (576 outputs, 1536 inputs, 2048 tokens unless told otherwise), with channels that differ by up to
//! 2^6. Errors are mean squared output errors relative to the direct search's; where it chooses the same they are 1.

use halfbyte_model::Site;
use halfbyte_quantize::methods::{SiteWeight, quantize_tap};
use halfbyte_quantize::{Phase, Place, Recipe, Search, Store, TapInputs, phase_seconds};
use halfbyte_tensor::{Matrix, Rows, product};
use std::error::Error;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let (outputs, channels, tokens) = match sizes[..] {
        [outputs, channels, tokens] => (outputs, channels, tokens),
        _ => (576, 1536, 2048),
    };
    let weight = random(outputs, channels, 3);
    let mut x = random(tokens, channels, 7);
    for row in x.data.chunks_exact_mut(channels) {
        row.iter_mut().enumerate().for_each(|(j, v)| *v *= ((j * 5 % 7) as f32).exp2() * 0.1);
    }
    let mut store = Store::new(&Place::Memory, channels, &[tokens])?;
    store.put(0, x.clone())?;
    let inputs = TapInputs { x: store, weights: None };

    let forward =
        fastest(5, || drop(product(&Rows::new(&x.data, channels), &Rows::new(&weight.data, channels))));
    println!(
        "{outputs} outputs, {channels} inputs, {tokens} tokens, {} threads",
        rayon::current_num_threads()
    );
    println!("forward pass of the layer: {:.1} ms", 1e3 * forward);
    println!(
        "{:<34}{:>10}{:>12}{:>10}{:>10}  statistics, search, round, measure",
        "", "seconds", "/ forward", "/ direct", "error"
    );
    let mut direct = None;
    for (recipe, search) in [
        ("fpq-published-w4a4", Search::Direct),
        ("fpq-published-w4a4", Search::Gram),
        ("fpq-published-w4a4", Search::Ranked),
        ("fpq-w4a4", Search::Ranked),
    ] {
        // One round of each: the published three cost three times as much in every form.
        let recipe = Recipe { search, rounds: 1, ..Recipe::named(recipe)? };
        let site = Site::new("layer", outputs, channels);
        phase_seconds();
        let start = Instant::now();
        let result =
            quantize_tap(&inputs, vec![SiteWeight { site, weight: weight.clone() }], &recipe)?.remove(0);
        let seconds = start.elapsed().as_secs_f64();
        let phases = phase_seconds();
        let (reference, error) = *direct.get_or_insert((seconds, result.error));
        let spent = |p: Phase| phases.iter().find(|(q, _)| *q == p).map_or(0.0, |(_, s)| 1e3 * s);
        println!(
            "{:<34}{seconds:>10.3}{:>12.1}{:>10.1}{:>10.4}  {:.0}, {:.0}, {:.0}, {:.0} ms",
            format!("{} {search:?}", recipe.name),
            seconds / forward,
            reference / seconds,
            result.error / error,
            spent(Phase::Statistics),
            spent(Phase::Search),
            spent(Phase::Round),
            spent(Phase::Measure),
        );
    }
    Ok(())
}

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

/// Seconds of the fastest of a few runs.
fn fastest(runs: usize, mut run: impl FnMut()) -> f64 {
    let times = (0..runs).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}
