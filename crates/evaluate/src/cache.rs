//! Finished rows and windows on the disk, so that a long evaluation goes on where it was stopped.
//!
//! A file holds what one program found for one model and one measurement; in it every result stands under a hash of the
//! tokens that were computed. So a result is found again exactly if the same computation would be done again, whatever
//! the options of the run.

use crate::EvaluateError;
use crate::likelihood::Item;
use halfbyte_checkpoint::write_atomic;
use halfbyte_model::Model;
use halfbyte_tensor::Precision;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A folder of finished results.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    program: blake3::Hash,
}

impl Cache {
    /// Keeps results in `dir`, which is made when it is needed. They are for the program in the file `program` alone: any
    /// other build may compute differently.
    ///
    /// # Errors
    /// When `program` cannot be read.
    pub fn open(dir: &Path, program: &Path) -> Result<Self, EvaluateError> {
        let mut hasher = blake3::Hasher::new();
        add_file(&mut hasher, program)?;
        Ok(Self { dir: dir.into(), program: hasher.finalize() })
    }

    /// What was found before for `models` (one, or several that are compared) and `measurement`.
    pub(crate) fn book<T: Serialize + DeserializeOwned>(
        &self,
        models: &[&Fingerprint],
        measurement: &str,
    ) -> Book<T> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.program.as_bytes());
        models.iter().for_each(|m| {
            hasher.update(m.0.as_bytes());
        });
        hasher.update(measurement.as_bytes());
        let path = self.dir.join(format!("{}.json", &hasher.finalize().to_hex()[..32]));
        // What cannot be read is as good as not there: it is computed again.
        let found = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Book { path: Some(path), found: found.unwrap_or_default() }
    }
}

/// Stands for all bytes of a model folder that matter to its output.
#[derive(Clone, Debug)]
pub struct Fingerprint(blake3::Hash);

impl Fingerprint {
    /// Reads the whole model: a second for a gigabyte or two.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of(model: &Model) -> Result<Self, EvaluateError> {
        let mut hasher = blake3::Hasher::new();
        let config = model.checkpoint.config().to_string();
        hasher.update(&(config.len() as u64).to_le_bytes()).update(config.as_bytes());
        hasher.update(&[u8::from(model.precision == Precision::Bf16)]);
        for (path, _) in model.checkpoint.files() {
            add_file(&mut hasher, path)?;
        }
        Ok(Self(hasher.finalize()))
    }
}

fn add_file(hasher: &mut blake3::Hasher, path: &Path) -> Result<(), EvaluateError> {
    let fail = |e: std::io::Error| EvaluateError::Cache(format!("{}: {e}", path.display()));
    let file = File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    hasher.update(&length.to_le_bytes());
    hasher.update_reader(file).map_err(fail)?;
    Ok(())
}

/// Results by the hash of what they are results of.
pub(crate) struct Book<T> {
    path: Option<PathBuf>,
    found: BTreeMap<String, T>,
}

impl<T: Serialize + DeserializeOwned + Clone> Book<T> {
    /// What was found before for `model` and `measurement`; without a `cache` nothing, and it is kept nowhere.
    pub(crate) fn of(cache: Option<&Cache>, model: &Model, measurement: &str) -> Result<Self, EvaluateError> {
        match cache {
            Some(cache) => Ok(cache.book(&[&Fingerprint::of(model)?], measurement)),
            None => Ok(Self::none()),
        }
    }

    /// One that is kept nowhere.
    pub(crate) fn none() -> Self {
        Self { path: None, found: BTreeMap::new() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&T> {
        self.found.get(key)
    }

    pub(crate) fn put(&mut self, key: String, value: T) {
        self.found.insert(key, value);
    }

    /// Writes all of it under a temporary name and renames it.
    pub(crate) fn save(&self) -> Result<(), EvaluateError> {
        let Some(path) = &self.path else { return Ok(()) };
        let fail = |e: String| {
            EvaluateError::Cache(format!("{e}; --cache names another folder, --no-cache does without"))
        };
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir).map_err(|e| fail(format!("cannot make {}: {e}", dir.display())))?;
        let bytes = serde_json::to_vec(&self.found).map_err(|e| fail(e.to_string()))?;
        write_atomic(path, &bytes).map_err(|e| fail(e.to_string()))
    }
}

/// Stands for an item's tokens and which of them are scored.
pub(crate) fn key(item: &Item) -> String {
    let mut hasher = blake3::Hasher::new();
    for request in item {
        hasher.update(&(request.tokens.len() as u64).to_le_bytes());
        hasher.update(&(request.scored as u64).to_le_bytes());
        request.tokens.iter().for_each(|t| {
            hasher.update(&t.to_le_bytes());
        });
    }
    hasher.finalize().to_hex()[..32].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::likelihood::Request;
    use crate::test_model::model;

    #[test]
    fn results_are_found_again_for_the_same_model_and_program_alone() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, "one").unwrap();
        let cache = Cache::open(dir.path(), &program).unwrap();
        let print = Fingerprint::of(&model()).unwrap();
        let mut book = cache.book::<f64>(&[&print], "x");
        let value = -1.0 / 3.0;
        book.put("a".into(), value);
        book.save().unwrap();
        assert_eq!(cache.book::<f64>(&[&print], "x").get("a"), Some(&value), "to the last bit");
        assert_eq!(cache.book::<f64>(&[&print], "y").get("a"), None);
        assert_eq!(cache.book::<f64>(&[&print, &print], "x").get("a"), None);
        fs::write(&program, "two").unwrap();
        let other = Cache::open(dir.path(), &program).unwrap();
        assert_eq!(other.book::<f64>(&[&print], "x").get("a"), None);
        // A damaged file is computed again.
        let path = book.path.unwrap();
        fs::write(&path, "{\"a\": -0.3").unwrap();
        assert_eq!(cache.book::<f64>(&[&print], "x").get("a"), None);
    }

    #[test]
    fn the_key_says_what_is_scored() {
        let item = |scored| vec![Request { tokens: vec![1, 2, 3], scored }];
        assert_eq!(key(&item(1)), key(&item(1)));
        assert_ne!(key(&item(1)), key(&item(2)));
    }
}
