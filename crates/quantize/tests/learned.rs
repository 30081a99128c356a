//! Learned rounding: in every family, never worse than its beginning, and the same whatever the run.
#![allow(clippy::unwrap_used)]

mod util;

use halfbyte_model::{Input, Model};
use halfbyte_quantize::{
    Calibration, Job, Progress, QuantizeError, Recipe, Report, Rounding, load_recipe, quantize,
};
use std::collections::BTreeMap;
use std::path::Path;
use util::{Silent, families, family, inputs};

fn job<'a>(model: &'a Model, recipe: &'a Recipe, calibration: &'a [Input], out: &'a Path) -> Job<'a> {
    Job { model, recipe, inputs: calibration, out, activation_memory: 1 << 30, pages: None }
}

/// Integers in groups of 8, which divide the layers of all the small checkpoints, by rounding to nearest or learned.
fn int4(rounding: Rounding, steps: usize) -> Recipe {
    Recipe {
        weight_scheme: Some("int4/group8".parse().unwrap()),
        rounding,
        rounding_steps: steps,
        rounding_tokens: 128,
        ..Recipe::named("int4-g32-w4a16").unwrap()
    }
}

fn run(model: &Model, recipe: &Recipe, calibration: &[Input]) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    quantize(&job(model, recipe, calibration, &out), &mut Silent).unwrap().report
}

#[test]
fn every_family_learns() {
    for dir in families() {
        let model = Model::open(&dir).unwrap();
        let calibration = inputs(&model.architecture, 6, 0);
        let report = run(&model, &int4(Rounding::Learned, 20), &calibration);
        assert_eq!(report.learned.len(), model.architecture.blocks.len(), "{}", dir.display());
        assert!(
            report.learned.iter().all(|b| b.after <= b.before),
            "{}: {:?}",
            dir.display(),
            report.learned
        );
        let mean = |f: fn(&halfbyte_quantize::LearnedBlock) -> f64| report.learned.iter().map(f).sum::<f64>();
        let (before, after) = (mean(|b| b.before), mean(|b| b.after));
        assert!(after < 0.9 * before, "{}: {before} became {after}", dir.display());
    }
}

/// A part of low rank makes up for what the learned codes lack, and leaves them as they are.
#[test]
fn low_rank_comes_on_top() {
    let model = Model::open(&family("llama")).unwrap();
    let calibration = inputs(&model.architecture, 6, 0);
    let of = |low_rank| run(&model, &Recipe { low_rank, ..int4(Rounding::Learned, 20) }, &calibration);
    let (codes, both) = (of(0), of(4));
    assert_eq!(codes.learned, both.learned);
    assert!(both.mean_relative_error < 0.9 * codes.mean_relative_error);
    let given = run(&model, &Recipe { low_rank: 4, ..int4(Rounding::Given, 20) }, &calibration);
    assert!(given.learned.is_empty() && both.bits_per_weight == given.bits_per_weight);
}

#[test]
fn it_goes_with_every_way_to_begin() {
    let model = Model::open(&family("llama")).unwrap();
    let calibration = inputs(&model.architecture, 6, 0);
    let learned = |recipe: Recipe| Recipe {
        rounding: Rounding::Learned,
        rounding_steps: 20,
        rounding_tokens: 128,
        ..recipe
    };
    let named = |name: &str| Recipe::named(name).unwrap();
    let feedback =
        Recipe { feedback: true, calibration: Calibration::Sequential, ..int4(Rounding::Given, 1) };
    let kept = Recipe {
        keep: vec!["layers.0.".into(), "o_proj".into(), "lm_head".into()],
        ..int4(Rounding::Given, 1)
    };
    let cache =
        Recipe { kv_scheme: Some("e4m3fn/channel/dynamic".parse().unwrap()), ..int4(Rounding::Given, 1) };
    let starts = [
        (named("fpq-w4a4"), 2),
        (named("minmax-fp-w4a16"), 2),
        (named("int8-w8a8"), 2),
        (feedback, 2),
        (kept, 1),
        (cache, 2),
    ];
    for (recipe, blocks) in starts {
        let report = run(&model, &learned(recipe), &calibration);
        assert_eq!(report.learned.len(), blocks, "{}", report.recipe.name);
        assert!(report.learned.iter().all(|b| b.after <= b.before), "{:?}", report.learned);
        assert!(report.learned.iter().any(|b| b.after < b.before), "{:?}", report.learned);
    }
}

/// Stops after so many steps.
struct Patience(usize);

impl Progress for Patience {
    fn begin(&mut self, _: usize, _: usize) {}
    fn advance(&mut self, _: usize) {}
    fn steps(&mut self, _: usize, _: usize) {
        self.0 = self.0.saturating_sub(1);
    }
    fn stopped(&self) -> bool {
        self.0 == 0
    }
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn threads_files_and_kills_do_not_change_a_byte() {
    let model = Model::open(&family("qwen3")).unwrap();
    let calibration = inputs(&model.architecture, 12, 0);
    let recipe = Recipe { calibration: Calibration::Sequential, ..int4(Rounding::Learned, 7) };
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| dir.path().join(name);
    quantize(&job(&model, &recipe, &calibration, &folder("plain")), &mut Silent).unwrap();
    let plain = contents(&folder("plain"));

    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let out = folder("threads");
    let spilled = Job { activation_memory: 0, ..job(&model, &recipe, &calibration, &out) };
    pool.install(|| quantize(&spilled, &mut Silent).unwrap());
    assert!(plain == contents(&out), "other threads, activations in files");

    let out = folder("killed");
    let stopping = job(&model, &recipe, &calibration, &out);
    // In the middle of the first block, and of the second.
    for steps in [3, 11] {
        assert!(matches!(quantize(&stopping, &mut Patience(steps)), Err(QuantizeError::Stopped(_))));
    }
    quantize(&stopping, &mut Silent).unwrap();
    assert!(plain == contents(&out), "stopped and gone on");
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let error = |recipe: Recipe| recipe.check().unwrap_err().to_string();
    let learned = int4(Rounding::Learned, 10);
    learned.check().unwrap();
    assert!(learned.needs_calibration());
    assert!(error(Recipe { rounding_steps: 0, ..learned.clone() }).contains("rounding_steps"));
    assert!(error(Recipe { rounding_tokens: 0, ..learned }).contains("rounding_tokens"));
    let fpq = Recipe { rounding: Rounding::Learned, ..Recipe::default() };
    assert!(error(Recipe { attention_bits: 4, ..fpq.clone() }).contains("attention_bits"));
    assert!(error(Recipe { weight_bits: 16, ..fpq }).contains("quantized weights"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "rounding = \"learned\"\nrounding_steps = 50\n").unwrap();
    let read = load_recipe(file.path().to_str().unwrap()).unwrap();
    assert_eq!((read.rounding, read.rounding_steps), (Rounding::Learned, 50));
}
