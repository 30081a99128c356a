//! What the tests here compute with: the model that is embedded in the binary.

use crate::read_text;
use halfbyte_model::Model;
use std::path::{Path, PathBuf};

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../halfbyte/assets")
}

pub(crate) fn model() -> Model {
    Model::open(&assets().join("stories260K")).unwrap()
}

/// The tokens of the embedded text.
pub(crate) fn tokens(model: &Model) -> Vec<u32> {
    model.tokenizer().unwrap().encode(&read_text(&assets().join("tinystories.txt")).unwrap()).unwrap()
}

/// `n` token ids that look random.
pub(crate) fn numbers(n: usize, seed: u64) -> Vec<u32> {
    let mut random = halfbyte_data::Random::new(seed);
    (0..n).map(|_| 3 + random.below(509) as u32).collect()
}

/// A copy of the model whose first down projection is noisy, and the folder that it lives in.
pub(crate) fn copy_with_noise() -> (tempfile::TempDir, Model) {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(assets().join("stories260K")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offsets = &json["model.layers.0.mlp.down_proj.weight"]["data_offsets"];
    let at = |i: usize| 8 + header + offsets[i].as_u64().unwrap() as usize;
    let mut random = halfbyte_data::Random::new(1);
    for value in bytes[at(0)..at(1)].chunks_exact_mut(4) {
        let old = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        let new = old + (random.below(1000) as f32 - 500.0) / 5000.0;
        value.copy_from_slice(&new.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let model = Model::open(dir.path()).unwrap();
    (dir, model)
}
