//! Transforms change no network, in any family, and make quantizing it easier.
#![allow(clippy::unwrap_used)]

mod util;

use halfbyte_model::Model;
use halfbyte_quantize::transforms::{Assumed, StoredAs, TransformJob, TransformReport, transform_checkpoint};
use halfbyte_quantize::{Recipe, Transform};
use std::path::{Path, PathBuf};
use util::{Silent, asset, families, inputs, logits};

fn transform(model: &Model, with: &[&str], recipe: &str, out: &Path) -> TransformReport {
    let transforms: Vec<Transform> = with.iter().map(|t| t.parse().unwrap()).collect();
    let calibration = inputs(&model.architecture, 6, 0);
    let job = TransformJob {
        model,
        transforms: &transforms,
        assumed: Assumed::of(&Recipe::named(recipe).unwrap()),
        inputs: &calibration,
        out,
        activation_memory: 1 << 30,
        stored_as: StoredAs::Auto,
    };
    transform_checkpoint(&job, &mut Silent).unwrap().0
}

/// Largest difference of the outputs before and after, relative to the largest output.
fn difference(a: &Model, b: &Model) -> f32 {
    let test = inputs(&a.architecture, 5, 77);
    let (before, after) = (logits(a, &test), logits(b, &test));
    let largest = before.data.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    before.data.iter().zip(&after.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// Transforms, opens what was written, and gives the difference and the report.
fn tried(dir: &Path, with: &[&str], recipe: &str) -> (f32, TransformReport) {
    let scratch = tempfile::tempdir().unwrap();
    let model = Model::open(dir).unwrap();
    let out = scratch.path().join("out");
    let report = transform(&model, with, recipe, &out);
    (difference(&model, &Model::open(&out).unwrap()), report)
}

/// The random checkpoints, and the real ones where they are.
fn models() -> Vec<PathBuf> {
    let real = ["models/stories260K", "models/MiniLM-L6-sst2"];
    families().into_iter().chain(real.into_iter().filter_map(asset)).collect()
}

#[test]
fn no_transform_changes_a_network() {
    let mut worst = 0.0f32;
    for dir in models() {
        for (with, recipe) in [
            (vec!["smooth-quant:taps=all"], "int8-w8a8"),
            (vec!["os-plus:steps=5:taps=all"], "minmax-int-w6a6"),
            (vec!["awq"], "minmax-int-w4a16"),
            (vec!["pow2"], "minmax-fp-w4a4"),
            (vec!["os-plus:steps=3", "smooth-quant:alpha=0.9:taps=all", "pow2"], "minmax-int-w4a4"),
        ] {
            let (difference, report) = tried(&dir, &with, recipe);
            let name = dir.file_name().unwrap().to_string_lossy();
            assert!(difference < 1e-4, "{name}: {with:?}: {difference:e}");
            worst = worst.max(difference);
            println!("{name}: {with:?}: {difference:e}");
            // Something was folded wherever there is a norm or a value projection to fold into.
            let folded = report.notes.iter().filter(|n| n.into.is_some()).count();
            assert!(folded > 0 || with.len() == 1, "{name}: {with:?} did nothing");
            assert!(report.notes.iter().all(|n| n.into.is_some() || n.skipped.is_some()));
        }
    }
    println!("largest relative difference of outputs: {worst:e}");
}
