//! The working folder of a run, from which it can go on after being killed at any instant.
//!
//! `OUT.partial/` holds `journal.json` (what the run is), a `block-NNNN.safetensors` for every finished block and
//! `state-NNNN.safetensors`, the hidden states before block NNNN. Every file appears whole, by rename. A block counts as
//! done when the state behind it exists; the state before it goes once the next is safe. When all blocks are done
//! the output is assembled in `OUT.partial/output` and that folder renamed to OUT.

use crate::QuantizeError;
use crate::store::{Place, Store};
use halfbyte_checkpoint::{Dtype, SafetensorsFile, SafetensorsWriter, TensorSpec, write_atomic};
use halfbyte_tensor::Matrix;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The file of the working folder that says what the run is.
pub const JOURNAL_FILE: &str = "journal.json";

/// The file of the working folder that whoever works there holds locked. It comes first and goes last.
pub const LOCK_FILE: &str = "lock";

/// What identifies a run: the same model, recipe and calibration tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunId {
    /// Version of halfbyte.
    pub halfbyte: String,
    /// BLAKE3 of the checkpoint's identity.
    pub model: String,
    /// BLAKE3 of the recipe.
    pub recipe: String,
    /// BLAKE3 of the calibration tokens and their windows.
    pub calibration: String,
}

/// The working folder.
pub struct Journal {
    dir: PathBuf,
}

impl Journal {
    /// Opens `dir` for the run `id`, making it if it is not there.
    ///
    /// # Errors
    /// [`QuantizeError::Output`] if the folder holds another run.
    pub fn open(dir: PathBuf, id: &RunId) -> Result<Self, QuantizeError> {
        if !Self::exists(&dir, id)? {
            make_dir(&dir)?;
            let bytes = serde_json::to_vec_pretty(id).map_err(|e| QuantizeError::Output(e.to_string()))?;
            write_atomic(&dir.join(JOURNAL_FILE), &bytes)?;
        }
        Ok(Self { dir })
    }

    /// Whether `dir` holds the run `id`; nothing is written.
    ///
    /// # Errors
    /// [`QuantizeError::Output`] if it holds another run.
    pub(crate) fn exists(dir: &Path, id: &RunId) -> Result<bool, QuantizeError> {
        let Ok(bytes) = fs::read(dir.join(JOURNAL_FILE)) else { return Ok(false) };
        let found: Option<RunId> = serde_json::from_slice(&bytes).ok();
        if found.as_ref() == Some(id) {
            return Ok(true);
        }
        let what = found.map_or("an unreadable journal".to_string(), |f| f.difference(id));
        Err(QuantizeError::Output(format!(
            "{} holds an unfinished run with {what}; choose another --out, or delete that folder to start over",
            dir.display()
        )))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn block_path(&self, block: usize) -> PathBuf {
        self.dir.join(format!("block-{block:04}.safetensors"))
    }

    fn state_path(&self, block: usize) -> PathBuf {
        self.dir.join(format!("state-{block:04}.safetensors"))
    }

    /// The parts finished so far out of `parts`, each with the state behind it.
    pub fn finished(&self, parts: usize) -> usize {
        (0..parts)
            .rev()
            .find(|&b| self.state_path(b + 1).exists() && self.blocks_exist(b))
            .map_or(0, |b| b + 1)
    }

    fn blocks_exist(&self, last: usize) -> bool {
        (0..=last).all(|b| self.block_path(b).exists())
    }

    /// Writes the tensors of part `block`, with `note` in its metadata.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_block(
        &self,
        block: usize,
        tensors: &[(TensorSpec, Vec<u8>)],
        note: String,
    ) -> Result<(), QuantizeError> {
        let specs: Vec<TensorSpec> = tensors.iter().map(|t| t.0.clone()).collect();
        let metadata = BTreeMap::from([("note".to_string(), note)]);
        let mut writer = SafetensorsWriter::create(&self.block_path(block), &specs, &metadata)?;
        for (spec, bytes) in tensors {
            writer.write(&spec.name, bytes)?;
        }
        writer.finish()?;
        Ok(())
    }

    /// Opens a finished part; its note is the metadata entry `note`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_block(&self, block: usize) -> Result<SafetensorsFile, QuantizeError> {
        Ok(SafetensorsFile::open(&self.block_path(block))?)
    }

    /// Keeps the hidden states before part `block` and drops older ones.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_state(&self, block: usize, hidden: &Store) -> Result<(), QuantizeError> {
        let rows = hidden.rows().iter().sum::<usize>();
        let spec = TensorSpec::new(HIDDEN, Dtype::F32, [rows, hidden.channels()]);
        let mut writer = SafetensorsWriter::create(&self.state_path(block), &[spec], &BTreeMap::new())?;
        for i in 0..hidden.windows() {
            writer.write(HIDDEN, bytemuck::cast_slice(&hidden.get(i)?.data))?;
        }
        writer.finish()?;
        if block > 0 {
            let _ = fs::remove_file(self.state_path(block - 1));
        }
        Ok(())
    }

    /// Reads the hidden states before part `block`, for windows of `rows` tokens.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_state(
        &self,
        block: usize,
        rows: &[usize],
        hidden: usize,
        place: &Place,
    ) -> Result<Store, QuantizeError> {
        let file = SafetensorsFile::open(&self.state_path(block))?;
        let total: usize = rows.iter().sum();
        let mut store = Store::new(place, hidden, rows)?;
        let mut from = 0;
        for (i, &n) in rows.iter().enumerate() {
            let values = file.read_rows(HIDDEN, &[total, hidden], from..from + n)?.into_f32();
            store.put(i, Matrix::new(n, hidden, values))?;
            from += n;
        }
        Ok(store)
    }
}

/// The tensor of a state file.
const HIDDEN: &str = "hidden";

impl RunId {
    fn difference(&self, other: &Self) -> String {
        let parts = [
            ("another version of halfbyte", self.halfbyte != other.halfbyte),
            ("another model", self.model != other.model),
            ("another recipe", self.recipe != other.recipe),
            ("other calibration tokens", self.calibration != other.calibration),
        ];
        parts.iter().filter(|p| p.1).map(|p| p.0).collect::<Vec<_>>().join(" and ")
    }
}

/// Makes a folder and those above it.
pub(crate) fn make_dir(dir: &Path) -> Result<(), QuantizeError> {
    fs::create_dir_all(dir)
        .map_err(|e| QuantizeError::Output(format!("cannot make the folder {}: {e}", dir.display())))
}
