//! Small random checkpoints of every family, inputs for them, and a silent driver.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use halfbyte_model::{Architecture, Input, Model, StemSpec};
use halfbyte_quantize::Progress;
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

/// The small random checkpoints of `crates/model/tests/golden`, one folder a family and option.
pub fn families() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(golden).unwrap().map(|e| e.unwrap().path()).collect();
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
