//! Small random checkpoints of every family, inputs for them, and quantizations of them.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use halfbyte_model::{Architecture, Input, Model, StemSpec};
use halfbyte_quantize::{Job, Progress, Recipe, Report, quantize};
use halfbyte_tensor::Matrix;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: usize, _: usize) {}
    fn advance(&mut self, _: usize) {}
    fn stopped(&self) -> bool {
        false
    }
}

/// Stops after so many calls.
pub struct Patience(pub usize);

impl Progress for Patience {
    fn begin(&mut self, _: usize, _: usize) {}
    fn advance(&mut self, _: usize) {
        self.0 = self.0.saturating_sub(1);
    }
    fn stopped(&self) -> bool {
        self.0 == 0
    }
}

/// The files of a folder.
pub fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

/// One of the [`families`].
pub fn family(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden").join(name)
}

/// The small random checkpoints of `crates/model/tests/golden`, one folder a family and option.
pub fn families() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(family("")).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.retain(|d| d.is_dir());
    dirs.sort();
    dirs
}

pub fn tokens(count: usize, vocabulary: usize, seed: u32) -> Vec<u32> {
    let next = |s: &mut u32| {
        *s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*s >> 8) % vocabulary as u32)
    };
    let mut state = seed;
    std::iter::from_fn(|| next(&mut state)).take(count).collect()
}

/// Random inputs of the model's kind: images, or sequences of different lengths.
pub fn inputs(architecture: &Architecture, count: usize, seed: u32) -> Vec<Input> {
    let one = |i: u32| match &architecture.stem {
        StemSpec::Text(_) => {
            let rows = architecture.context.min(64 - 7 * (i as usize % 3));
            Input::Tokens(tokens(rows, architecture.vocabulary(), i))
        }
        StemSpec::Image(image) => {
            let ([height, width], channels) = (image.size, image.channels);
            let numbers = tokens(channels * height * width, 1000, i);
            let values = numbers.into_iter().map(|v| v as f32 / 250.0 - 2.0).collect();
            Input::Pixels { channels, height, width, values }
        }
    };
    (seed..seed + count as u32).map(one).collect()
}

pub fn logits(model: &Model, inputs: &[Input]) -> Matrix {
    model.trace(inputs).unwrap().2
}

/// The squared error of `found`, relative to the squares of `full`.
pub fn relative_error(found: &Matrix, full: &Matrix) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = full.data.iter().zip(&found.data).map(|(a, b)| square(a - b)).sum();
    error / full.data.iter().map(|&v| square(v)).sum::<f64>()
}

/// A run with its activations in memory.
pub fn job<'a>(model: &'a Model, recipe: &'a Recipe, inputs: &'a [Input], out: &'a Path) -> Job<'a> {
    Job { model, recipe, inputs, out, activation_memory: 1 << 30, pages: None }
}

/// The report of a quantization on `calibration`, and the logits of `test` as the folder that it wrote computes them.
pub fn quantized(model: &Model, recipe: &Recipe, calibration: &[Input], test: &[Input]) -> (Report, Matrix) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let report = quantize(&job(model, recipe, calibration, &out), &mut Silent).unwrap().report;
    (report, logits(&Model::open(&out).unwrap(), test))
}

/// The report of a quantization on random inputs, and the relative squared error of the logits of others.
pub fn tried(model: &Model, recipe: &Recipe) -> (Report, f64) {
    let [calibration, test] = [(12, 0), (9, 99)].map(|(n, seed)| inputs(&model.architecture, n, seed));
    let (report, found) = quantized(model, recipe, &calibration, &test);
    (report, relative_error(&found, &logits(model, &test)))
}

/// A folder of real models that is not part of the repository; says so if it is not there.
pub fn asset(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("HALFBYTE_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    println!("SKIPPED: {path} is not under HALFBYTE_ASSETS ({})", root.display());
    None
}
