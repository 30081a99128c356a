//! A checkpoint written into a folder: one file, or shards with an index.

use crate::{
    atomic::write_atomic,
    error::WriteError,
    file::SafetensorsFile,
    folder::{INDEX, SINGLE, is_shard_name},
    header::TensorSpec,
    source::Checkpoint,
    space::require_space,
    writer::SafetensorsWriter,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The usual limit of one file on the Hugging Face hub: 5 GB of tensors.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes the weights of a checkpoint: `model.safetensors`, or, above a number of bytes, shards
/// `model-00001-of-0000N.safetensors` and their `model.safetensors.index.json`.
///
/// Tensors fill the shards in the order of their specs, so announce those of one block together. They may
/// arrive in any order, as with [`SafetensorsWriter`]. One file is open per shard.
///
/// All files appear at [`finish`](Self::finish), the index last: a folder of shards without an index is
/// refused by [`Checkpoint::open`](crate::Checkpoint::open), so that a killed run cannot leave half a
/// checkpoint that passes for one.
#[derive(Debug)]
pub struct CheckpointWriter {
    dir: PathBuf,
    shards: Vec<SafetensorsWriter>,
    /// Of each tensor, the position of its shard.
    shard_of: BTreeMap<String, usize>,
    total: u64,
}

impl CheckpointWriter {
    /// Begins the weights in the existing folder `dir`. No file takes more than `max_shard_bytes` of tensors
    /// (see [`SHARD_BYTES`]), unless a single tensor does. Each file gets the texts of `metadata`.
    ///
    /// # Errors
    /// [`WriteError::FolderHasWeights`] if the folder holds weights that would not be replaced; too little
    /// space for all; or as [`SafetensorsWriter::create`].
    pub fn create(
        dir: &Path,
        tensors: &[TensorSpec],
        metadata: &BTreeMap<String, String>,
        max_shard_bytes: u64,
    ) -> Result<Self, WriteError> {
        let (groups, total) = distribute(dir, tensors, max_shard_bytes)?;
        let mut shard_of = BTreeMap::new();
        for (shard, group) in groups.iter().enumerate() {
            for spec in *group {
                if shard_of.insert(spec.name.clone(), shard).is_some() {
                    let (path, tensor) = (dir.into(), spec.name.clone());
                    return Err(WriteError::DuplicateTensor { path, tensor });
                }
            }
        }
        let name = |shard: usize| match groups.len() {
            1 => SINGLE.to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
        };
        let names: Vec<String> = (0..groups.len()).map(name).collect();
        refuse_other_weights(dir, &names)?;
        require_space(dir, total)?;
        let shards = groups
            .iter()
            .zip(&names)
            .map(|(group, name)| SafetensorsWriter::create(&dir.join(name), group, metadata))
            .collect::<Result<_, _>>()?;
        Ok(Self { dir: dir.into(), shards, shard_of, total })
    }

    /// The files that there will be, without the index.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(SafetensorsWriter::path)
    }

    /// Writes the next bytes (little-endian elements) of a tensor.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::write`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        self.shard(name)?.write(name, bytes)
    }

    /// Copies the whole tensor `source` of another file as tensor `name`, 1 MiB at a time.
    ///
    /// # Errors
    /// As [`SafetensorsWriter::copy`].
    pub fn copy(&mut self, name: &str, from: &SafetensorsFile, source: &str) -> Result<(), WriteError> {
        self.shard(name)?.copy(name, from, source)
    }

    /// Copies the tensor `source` of a checkpoint as tensor `name`.
    ///
    /// # Errors
    /// It cannot be read, or as [`write`](Self::write).
    pub fn copy_from(&mut self, name: &str, from: &Checkpoint, source: &str) -> Result<(), WriteError> {
        from.read_pieces(source, |piece| self.write(name, piece))
    }

    /// Gives all files their names, then writes the index if there is more than one. Returns the paths of all
    /// of them.
    ///
    /// # Errors
    /// [`WriteError::Incomplete`] if a tensor has not got all of its bytes (then nothing is replaced), or the
    /// disk is full or fails.
    pub fn finish(self) -> Result<Vec<PathBuf>, WriteError> {
        self.shards.iter().try_for_each(SafetensorsWriter::check_complete)?;
        let index = self.dir.join(INDEX);
        let contents = self.index();
        if contents.is_some() {
            // From here to the new index, the folder must not pass for a checkpoint: it has shards of both.
            match fs::remove_file(&index) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(WriteError::Io { action: "replace", path: index, cause });
                }
                _ => {}
            }
        }
        let mut paths =
            self.shards.into_iter().map(SafetensorsWriter::finish).collect::<Result<Vec<_>, _>>()?;
        if let Some(contents) = contents {
            write_atomic(&index, contents.as_bytes())?;
            paths.push(index);
        }
        Ok(paths)
    }

    fn shard(&mut self, name: &str) -> Result<&mut SafetensorsWriter, WriteError> {
        match self.shard_of.get(name) {
            Some(&shard) => Ok(&mut self.shards[shard]),
            None => Err(WriteError::UnknownTensor { path: self.dir.clone(), tensor: name.to_owned() }),
        }
    }

    /// The index's JSON, laid out as transformers does; `None` for a single file.
    fn index(&self) -> Option<String> {
        #[derive(Serialize)]
        struct Metadata {
            total_size: u64,
        }
        #[derive(Serialize)]
        struct Index<'a> {
            metadata: Metadata,
            weight_map: BTreeMap<&'a str, String>,
        }
        if self.shards.len() == 1 {
            return None;
        }
        let file_name = |shard: usize| {
            let name = self.shards[shard].path().file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let weight_map =
            self.shard_of.iter().map(|(name, &shard)| (name.as_str(), file_name(shard))).collect();
        let index = Index { metadata: Metadata { total_size: self.total }, weight_map };
        serde_json::to_string_pretty(&index).ok().map(|json| json + "\n")
    }
}

/// Splits the tensors into runs of at most `limit` bytes, at least one run; with their sum in bytes.
fn distribute<'a>(
    dir: &Path,
    tensors: &'a [TensorSpec],
    limit: u64,
) -> Result<(Vec<&'a [TensorSpec]>, u64), WriteError> {
    let mut groups = Vec::new();
    let (mut first, mut filled, mut total) = (0, 0u64, 0u64);
    for (i, spec) in tensors.iter().enumerate() {
        let bytes = spec.byte_len(dir)?;
        total = total.saturating_add(bytes);
        if i > first && filled.saturating_add(bytes) > limit {
            groups.push(&tensors[first..i]);
            (first, filled) = (i, 0);
        }
        filled = filled.saturating_add(bytes);
    }
    groups.push(&tensors[first..]);
    Ok((groups, total))
}

/// Weights in the folder that are not about to be replaced would be read instead of ours, or mixed with them.
/// They are the user's: refuse rather than remove.
fn refuse_other_weights(dir: &Path, ours: &[String]) -> Result<(), WriteError> {
    let unreadable = |cause| WriteError::Io { action: "list", path: dir.into(), cause };
    let sharded = ours.len() > 1;
    let mut in_the_way = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        let weights = name == SINGLE || name == INDEX || (name.starts_with("model-") && is_shard_name(&name));
        if weights && !ours.contains(&name) && !(sharded && name == INDEX) {
            in_the_way.push(name);
        }
    }
    match in_the_way.into_iter().min() {
        Some(found) => Err(WriteError::FolderHasWeights { dir: dir.into(), found }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, Dtype, RawTensor};

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Three tensors of 8 bytes.
    fn three() -> [TensorSpec; 3] {
        ["c", "a", "b"].map(|name| TensorSpec::new(name, Dtype::F32, [2]))
    }

    fn create(dir: &Path, limit: u64) -> Result<CheckpointWriter, WriteError> {
        CheckpointWriter::create(dir, &three(), &BTreeMap::from([("format".into(), "pt".into())]), limit)
    }

    fn fill(mut writer: CheckpointWriter, value: f32) -> Vec<PathBuf> {
        for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
            for v in [value, i as f32] {
                writer.write(name, &v.to_le_bytes()).unwrap();
            }
        }
        writer.finish().unwrap()
    }

    fn model_folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        dir
    }

    #[test]
    fn a_small_checkpoint_is_one_file() {
        let dir = model_folder();
        let paths = fill(create(dir.path(), 24).unwrap(), 5.0);
        assert_eq!(paths, [dir.path().join(SINGLE)]);
        assert_eq!(names(dir.path()), ["config.json", SINGLE]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.read_f32("c", &[2]).unwrap(), [5.0, 2.0]);
        assert_eq!(checkpoint.metadata()["format"], "pt");
    }

    #[test]
    fn a_large_checkpoint_is_shards_with_an_index() {
        let dir = model_folder();
        let writer = create(dir.path(), 16).unwrap();
        assert_eq!(writer.paths().count(), 2);
        fill(writer, 5.0);
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        assert_eq!(names(dir.path()), ["config.json", shards[0], shards[1], INDEX]);
        let index = fs::read_to_string(dir.path().join(INDEX)).unwrap();
        let expected = format!(
            "{{\n  \"metadata\": {{\n    \"total_size\": 24\n  }},\n  \"weight_map\": {{\n    \"a\": \"{0}\",\n    \
             \"b\": \"{1}\",\n    \"c\": \"{0}\"\n  }}\n}}\n",
            shards[0], shards[1]
        );
        assert_eq!(index, expected);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.read_f32("b", &[2]).unwrap(), [5.0, 1.0]);

        fill(create(dir.path(), 16).unwrap(), 6.0);
        let again = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(again.read_f32("a", &[2]).unwrap(), [6.0, 0.0], "written again over itself");
        assert_eq!(
            checkpoint.read_f32("a", &[2]).unwrap(),
            [5.0, 0.0],
            "whoever had it open keeps the old one"
        );
    }

    #[test]
    fn nothing_appears_before_everything_is_there() {
        let dir = model_folder();
        let mut writer = create(dir.path(), 8).unwrap();
        writer.write("a", &[0; 8]).unwrap();
        let message = writer.finish().unwrap_err().to_string();
        assert!(message.contains(r#"tensor "c" has 0 of its 8 bytes"#), "{message}");
        assert_eq!(names(dir.path()), ["config.json"]);
    }

    #[test]
    fn other_weights_are_not_mixed_with_ours() {
        let dir = model_folder();
        fill(create(dir.path(), 24).unwrap(), 5.0);
        let message = create(dir.path(), 16).unwrap_err().to_string();
        assert!(message.contains(r#"already has "model.safetensors""#), "{message}");
        fs::remove_file(dir.path().join(SINGLE)).unwrap();
        fill(create(dir.path(), 8).unwrap(), 5.0);
        let message = create(dir.path(), 16).unwrap_err().to_string();
        assert!(message.contains("model-00001-of-00003.safetensors"), "{message}");
        assert!(matches!(create(dir.path(), 24), Err(WriteError::FolderHasWeights { .. })));
    }

    #[test]
    fn tensors_stream_from_several_files() {
        let (one, two, out) = (model_folder(), model_folder(), model_folder());
        fill(create(one.path(), 24).unwrap(), 1.0);
        fill(create(two.path(), 16).unwrap(), 2.0);
        let (one, two) = (Checkpoint::open(one.path()).unwrap(), Checkpoint::open(two.path()).unwrap());
        let mut writer = create(out.path(), 16).unwrap();
        writer.copy_from("a", &one, "a").unwrap();
        writer.copy_from("b", &two, "b").unwrap();
        writer.copy_from("c", &two, "b").unwrap();
        let unknown = writer.copy_from("d", &two, "b").unwrap_err();
        assert!(matches!(unknown, WriteError::UnknownTensor { .. }));
        writer.finish().unwrap();
        let written = Checkpoint::open(out.path()).unwrap();
        let raw = |name| written.read_raw(name, &[2]).unwrap();
        assert_eq!(raw("a"), RawTensor::F32(vec![1.0, 0.0]));
        assert_eq!((raw("b"), raw("c")), (RawTensor::F32(vec![2.0, 1.0]), RawTensor::F32(vec![2.0, 1.0])));
    }

    #[test]
    fn shards_are_filled_in_order_up_to_the_limit() {
        let specs: Vec<_> =
            [5, 5, 20, 1, 9].iter().map(|n| TensorSpec::new(n.to_string(), Dtype::U8, [*n])).collect();
        let sizes = |limit| {
            let (groups, total) = distribute(Path::new("out"), &specs, limit).unwrap();
            assert_eq!(total, 40);
            groups.iter().map(|group| group.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(10), [2, 1, 2], "one tensor is larger than the limit");
        assert_eq!(sizes(0), [1; 5]);
        assert_eq!(sizes(u64::MAX), [5]);
        assert_eq!(distribute(Path::new("out"), &[], 10).unwrap().0, [&[] as &[TensorSpec]]);
    }

    #[test]
    fn a_name_announced_twice_is_refused_even_across_shards() {
        let dir = model_folder();
        let twice = ["a", "b", "a"].map(|name| TensorSpec::new(name, Dtype::U8, [8]));
        let error = CheckpointWriter::create(dir.path(), &twice, &BTreeMap::new(), 8).unwrap_err();
        assert!(matches!(error, WriteError::DuplicateTensor { .. }));
        assert_eq!(names(dir.path()), ["config.json"]);
    }
}
