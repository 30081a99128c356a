//! The files of a model folder: its configuration, and which file has which tensor.

use crate::{error::CheckpointError, file::SafetensorsFile};
use serde::Deserialize;
use serde_json::{Value, error::Category};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

/// Most bytes read of a `config.json`; real ones have a few thousand.
pub(crate) const CONFIG_LIMIT: u64 = 16 << 20;

/// Most bytes read of an index; the largest models have about ten million.
const INDEX_LIMIT: u64 = 256 << 20;

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

pub(crate) fn read_config(path: &Path) -> Result<(Value, Vec<u8>), CheckpointError> {
    if !exists(path)? {
        return Err(CheckpointError::ConfigMissing { path: path.into() });
    }
    let bytes = read_limited(path, CONFIG_LIMIT)?;
    let config: Value = serde_json::from_slice(&bytes)
        .map_err(|cause| CheckpointError::ConfigNotJson { path: path.into(), cause })?;
    let found = match config {
        Value::Object(_) => return Ok((config, bytes)),
        Value::Array(_) => "a list",
        Value::String(_) => "a string",
        Value::Number(_) => "a number",
        Value::Bool(_) => "a truth value",
        Value::Null => "null",
    };
    Err(CheckpointError::ConfigNotObject { path: path.into(), found })
}

/// `model.safetensors.index.json`: which file holds which tensor.
pub(crate) struct Index {
    path: PathBuf,
    /// Tensor to file name.
    weight_map: BTreeMap<String, String>,
}

impl Index {
    pub(crate) fn read(path: PathBuf) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Json {
            weight_map: BTreeMap<String, String>,
        }
        let bytes = read_limited(&path, INDEX_LIMIT)?;
        match serde_json::from_slice(&bytes) {
            Ok(Json { weight_map }) => Ok(Self { path, weight_map }),
            Err(cause) if cause.classify() == Category::Data => {
                Err(CheckpointError::IndexMalformed { index: path, cause })
            }
            Err(cause) => Err(CheckpointError::IndexNotJson { index: path, cause }),
        }
    }

    /// Opens every shard once, sorted by name.
    pub(crate) fn open_shards(&self, dir: &Path) -> Result<Vec<SafetensorsFile>, CheckpointError> {
        // With each shard the first tensor in it, for messages.
        let mut shards: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, shard) in &self.weight_map {
            shards.entry(shard).or_insert(tensor);
        }
        let mut files = Vec::with_capacity(shards.len());
        for (shard, tensor) in shards {
            let (index, tensor) = (self.path.clone(), tensor.to_owned());
            if !stays_inside(shard) {
                return Err(CheckpointError::ShardEscapes { index, tensor, shard: shard.to_owned() });
            }
            let path = dir.join(shard);
            if !exists(&path)? {
                return Err(CheckpointError::ShardMissing { index, tensor, path });
            }
            files.push(SafetensorsFile::open(&path)?);
        }
        Ok(files)
    }

    /// Every tensor of the index must be in the file that the index says. Tensors that only the shards know
    /// are kept: some models were published with an index of fewer tensors.
    pub(crate) fn check<'a>(
        &self,
        dir: &Path,
        file_of: impl Fn(&str) -> Option<&'a Path>,
    ) -> Result<(), CheckpointError> {
        for (tensor, shard) in &self.weight_map {
            let shard = dir.join(shard);
            if file_of(tensor) != Some(&shard) {
                let (index, tensor) = (self.path.clone(), tensor.clone());
                return Err(CheckpointError::ShardLacksTensor { index, tensor, shard });
            }
        }
        Ok(())
    }
}

/// Whether a path from an index leads to a file under the folder: no `..`, nothing absolute. Links are
/// allowed, since the Hugging Face cache is made of them.
fn stays_inside(shard: &str) -> bool {
    let mut components = Path::new(shard).components().peekable();
    components.peek().is_some() && components.all(|c| matches!(c, Component::Normal(_)))
}

pub(crate) fn has_extension(name: &Path, wanted: &[&str]) -> bool {
    name.extension().is_some_and(|found| wanted.iter().any(|w| found.eq_ignore_ascii_case(w)))
}

/// The one GGUF file of a folder without safetensors; `None` if it has any of those, or no GGUF file.
pub(crate) fn only_gguf(dir: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    let read_error = |cause| CheckpointError::Read { path: dir.into(), cause };
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        if has_extension(&path, &["safetensors"]) || path.file_name().is_some_and(|n| n == INDEX) {
            return Ok(None);
        }
        if has_extension(&path, &["gguf"]) {
            found.push(path);
        }
    }
    found.sort();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => {
            let names: Vec<_> =
                found.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy()).collect();
            Err(CheckpointError::SeveralGguf { dir: dir.into(), found: names.join(", ") })
        }
    }
}

/// All `*.safetensors` of a folder that has neither `model.safetensors` nor an index, sorted.
pub(crate) fn loose_files(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let read_error = |cause| CheckpointError::Read { path: dir.into(), cause };
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(read_error)? {
        names.push(entry.map_err(read_error)?.file_name());
    }
    names.sort();
    let found: Vec<&Path> =
        names.iter().map(Path::new).filter(|name| has_extension(name, &["safetensors"])).collect();
    if let Some(shard) = found.iter().find(|name| is_shard_name(&name.to_string_lossy())) {
        // Half of a checkpoint must not pass for one, and only the index tells how many halves there are.
        let shard = shard.to_string_lossy().into_owned();
        return Err(CheckpointError::IndexMissing { dir: dir.into(), shard });
    }
    if !found.is_empty() {
        return Ok(found.into_iter().map(|name| dir.join(name)).collect());
    }
    let others = ["bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx"];
    let is_weights = |name: &&Path| {
        has_extension(name, &others) && name.file_name().is_some_and(|n| n != "training_args.bin")
    };
    Err(match names.iter().map(Path::new).find(is_weights) {
        Some(other) => {
            CheckpointError::OtherFormat { dir: dir.into(), found: other.to_string_lossy().into_owned() }
        }
        None => CheckpointError::NoWeights { dir: dir.into() },
    })
}

/// Whether a name ends like a shard's: `-00001-of-00003.safetensors`.
pub(crate) fn is_shard_name(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.strip_suffix(".safetensors")
        .and_then(|stem| stem.rsplit_once("-of-"))
        .and_then(|(rest, count)| number(count).then_some(rest))
        .and_then(|rest| rest.rsplit_once('-'))
        .is_some_and(|(_, position)| number(position))
}

pub(crate) fn exists(path: &Path) -> Result<bool, CheckpointError> {
    match fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(CheckpointError::Read { path: path.into(), cause }),
    }
}

/// Reads a small file, stopping at `limit` bytes whatever its length claims.
fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let read_error = |cause| CheckpointError::Read { path: path.into(), cause };
    if !fs::metadata(path).map_err(read_error)?.is_file() {
        return Err(CheckpointError::NotAFile { path: path.into() });
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read_error)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > limit {
        return Err(CheckpointError::JsonTooLarge { path: path.into(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards() {
        for name in ["model-00001-of-00002.safetensors", "x-1-of-9.safetensors"] {
            assert!(is_shard_name(name), "{name}");
        }
        for name in ["model.safetensors", "a-of-b.safetensors", "1-of-2.safetensors", "m-00001-of-00002.bin"]
        {
            assert!(!is_shard_name(name), "{name}");
        }
    }
}
