//! A Hugging Face model folder, opened for reading.

use crate::attention;
use crate::{
    dtype::Dtype,
    error::CheckpointError,
    file::{SafetensorsFile, TensorInfo},
    folder::{INDEX, Index, SINGLE, exists, has_extension, loose_files, only_gguf, read_config},
    gguf::model::{DIVIDED, GgufModel},
    halfbyte::Manifest,
    missing::missing,
    tensor::RawTensor,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

/// A Hugging Face model folder: its configuration and all of its tensors, wherever they are; or a GGUF file of the llama
/// family, seen as such a folder.
///
/// Holds headers only; tensors are read when asked for. Reading takes `&self`, so that threads can share it.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    config_bytes: Vec<u8>,
    backing: Backing,
    /// Of each tensor, its place in the backing.
    tensors: BTreeMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

/// Where the tensors are.
#[derive(Debug)]
enum Backing {
    /// In these files; a tensor's place is the position of its file.
    Files(Vec<SafetensorsFile>),
    /// In a GGUF file; a tensor's place is its position there.
    Gguf(Box<GgufModel>),
    /// In a quantized checkpoint whose weights are to be seen as their values. Place 0 is that checkpoint itself, place `i`
    /// weight `i − 1`.
    Dequantized(Box<Dequantized>),
}

/// The weights of a quantized checkpoint as values.
#[derive(Debug)]
struct Dequantized {
    of: Checkpoint,
    manifest: Manifest,
    weights: Vec<TensorInfo>,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and weights: `model.safetensors`, or else the shards that
    /// `model.safetensors.index.json` names, or else every `*.safetensors` in it. Checks all headers and the
    /// index. Or opens a GGUF file, given by its own name or by that of a folder that holds it and no safetensors.
    ///
    /// # Errors
    /// Anything is missing, unreadable or untrue; each case has its own variant of [`CheckpointError`].
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        if dir.is_file() && has_extension(dir, &["gguf"]) {
            return Self::open_gguf(dir);
        }
        if !dir.is_dir() {
            return Err(CheckpointError::NotAFolder { path: dir.into() });
        }
        if let Some(file) = only_gguf(dir)? {
            return Self::open_gguf(&file);
        }
        let (config, config_bytes) = read_config(&dir.join("config.json"))?;
        let index = dir.join(INDEX);
        let (files, index) = if exists(&dir.join(SINGLE))? {
            (vec![SafetensorsFile::open(&dir.join(SINGLE))?], None)
        } else if exists(&index)? {
            let index = Index::read(index)?;
            (index.open_shards(dir)?, Some(index))
        } else {
            let paths = loose_files(dir)?;
            (paths.iter().map(|path| SafetensorsFile::open(path)).collect::<Result<_, _>>()?, None)
        };

        let mut tensors = BTreeMap::new();
        let mut metadata = BTreeMap::new();
        for (position, file) in files.iter().enumerate() {
            for info in file.tensors() {
                if let Some(first) = tensors.insert(info.name.clone(), position) {
                    return Err(CheckpointError::TensorInTwoFiles {
                        tensor: info.name.clone(),
                        first: files[first].path().into(),
                        second: file.path().into(),
                    });
                }
            }
            for (key, value) in file.metadata() {
                metadata.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        if let Some(index) = index {
            index.check(dir, |tensor| tensors.get(tensor).map(|&position| files[position].path()))?;
        }
        Ok(Self { dir: dir.into(), config, config_bytes, backing: Backing::Files(files), tensors, metadata })
    }

    fn open_gguf(path: &Path) -> Result<Self, CheckpointError> {
        let model = GgufModel::open(path)?;
        let names = model.tensors.iter().map(|t| t.info.name.clone());
        let tensors: BTreeMap<String, usize> = names.enumerate().map(|(i, name)| (name, i)).collect();
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self {
            dir: dir.into(),
            config_bytes: model.config.to_string().into_bytes(),
            config: model.config.clone(),
            backing: Backing::Gguf(Box::new(model)),
            tensors,
            metadata: BTreeMap::new(),
        })
    }

    /// The same checkpoint with the quantized weights of `manifest` as values in f32, under the names of an unquantized
    /// one. `shape_of` says the shape of a layer's weight; layers for which it has none are left out.
    ///
    /// # Errors
    /// A quantized weight is too large for this machine.
    pub fn dequantized(
        self,
        manifest: Manifest,
        shape_of: impl Fn(&str) -> Option<[usize; 2]>,
    ) -> Result<Self, CheckpointError> {
        let mut weights = Vec::new();
        let mut tensors: BTreeMap<String, usize> = self.tensors.keys().map(|n| (n.clone(), 0)).collect();
        for (name, layer) in &manifest.layers {
            let Some([rows, cols]) = shape_of(name) else { continue };
            for tensor in manifest.layout.tensors(layer, name, rows, cols).unwrap_or_default() {
                tensors.remove(&tensor.name);
            }
            if layer.weight.is_some() {
                let (tensor, shape) = (format!("{name}.weight"), vec![rows, cols]);
                let bytes = Dtype::F32.byte_len(&shape).ok_or_else(|| CheckpointError::Damaged {
                    tensor: tensor.clone(),
                    message: format!("has the impossible shape {shape:?}"),
                })?;
                let file = Path::new(&self.dir).into();
                weights.push(TensorInfo::computed(tensor.clone(), Dtype::F32, shape, bytes, file));
                tensors.insert(tensor, weights.len());
            }
        }
        for tensor in manifest.attention.keys().flat_map(|name| attention::names(name)) {
            tensors.remove(&tensor);
        }
        let (mut config, dir) = (self.config.clone(), self.dir.clone());
        if let Some(config) = config.as_object_mut() {
            config.remove("quantization_config");
        }
        let (config_bytes, metadata) = (self.config_bytes.clone(), self.metadata.clone());
        let backing = Backing::Dequantized(Box::new(Dequantized { of: self, manifest, weights }));
        Ok(Self { dir, config, config_bytes, backing, tensors, metadata })
    }

    /// The block types of a GGUF file, in words: its weights are values of those. `None` if all are floats, and for
    /// folders.
    pub fn block_types(&self) -> Option<String> {
        match &self.backing {
            Backing::Gguf(model) => Some(model.block_types()).filter(|t| !t.is_empty()),
            _ => None,
        }
    }

    /// Whether the rotary frequencies are given as a GGUF file gives them, as divisors of the plain ones: a `rope_type` of
    /// our own, which no other engine reads.
    pub fn has_divided_rope(&self) -> bool {
        self.config["rope_parameters"]["rope_type"] == DIVIDED
    }

    /// How a tensor is stored, by the name of its type, and its bytes there; those of what [`info`](Self::info) says, but
    /// for the blocks of a GGUF file.
    pub fn stored_as(&self, name: &str) -> Option<(String, u64)> {
        match (&self.backing, self.tensors.get(name)) {
            (Backing::Gguf(model), Some(&place)) => Some(model.stored_as(&model.tensors[place])),
            _ => self.info(name).map(|info| (info.dtype.to_string(), info.bytes)),
        }
    }

    /// The folder it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The contents of `config.json`, always an object.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Type, shape, length and file of a tensor, if there is one of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let place = *self.tensors.get(name)?;
        match &self.backing {
            Backing::Files(files) => files[place].info(name),
            Backing::Gguf(model) => Some(&model.tensors[place].info),
            Backing::Dequantized(d) if place == 0 => d.of.info(name),
            Backing::Dequantized(d) => Some(&d.weights[place - 1]),
        }
    }

    /// The same of all tensors, sorted by name.
    pub fn infos(&self) -> impl Iterator<Item = &TensorInfo> {
        self.names().filter_map(|name| self.info(name))
    }

    /// Like [`info`](Self::info) for a tensor that must be there.
    ///
    /// # Errors
    /// [`CheckpointError::TensorMissing`], with the nearest name there is.
    pub fn find(&self, name: &str) -> Result<&TensorInfo, CheckpointError> {
        self.info(name).ok_or_else(|| missing(&self.dir, name, self.names()))
    }

    /// Like [`info`](Self::info) for a tensor that must be there with this shape.
    ///
    /// # Errors
    /// [`CheckpointError::TensorMissing`], with the nearest name there is, or
    /// [`CheckpointError::WrongShape`].
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, CheckpointError> {
        self.find(name)?.with_shape(shape)
    }

    /// Like [`require`](Self::require) for a tensor whose values [`read_raw`](Self::read_raw) can give.
    ///
    /// # Errors
    /// The same, and [`CheckpointError::NotFloat`].
    pub fn require_floats(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, CheckpointError> {
        self.require(name, shape)?.with_floats()
    }

    /// The texts under `__metadata__` of all files; where two files disagree, that of the first.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Path and length of every file with weights, sorted by name.
    pub fn files(&self) -> Vec<(&Path, u64)> {
        match &self.backing {
            Backing::Files(files) => files.iter().map(|f| (f.path(), f.file_len())).collect(),
            Backing::Gguf(model) => vec![(model.file.path(), model.file.file_len())],
            Backing::Dequantized(d) => d.of.files(),
        }
    }

    /// The stored bytes of a tensor (little-endian).
    ///
    /// # Errors
    /// The tensor is missing, the file cannot be read or shrank, or memory is short.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let info = self.find(name)?;
        match self.stored(name) {
            Some(file) => file.read_bytes(name),
            None => Ok(self.read_raw(name, &info.shape)?.into_bytes()),
        }
    }

    /// As [`SafetensorsFile::read_pieces`].
    ///
    /// # Errors
    /// The same.
    pub fn read_pieces<E: From<CheckpointError>>(
        &self,
        name: &str,
        mut visit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.stored(name) {
            Some(file) => file.read_pieces(name, visit),
            None => self.read_bytes(name)?.chunks(1 << 20).try_for_each(&mut visit),
        }
    }

    /// As [`SafetensorsFile::read_f32`].
    ///
    /// # Errors
    /// The same.
    pub fn read_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        match self.stored(name) {
            Some(file) => file.read_f32(name, shape),
            None => Ok(self.read_raw(name, shape)?.into_f32()),
        }
    }

    /// As [`SafetensorsFile::read_raw`]; the weights of a GGUF file or a [`dequantized`](Self::dequantized) checkpoint that
    /// are no floats there are computed, in f32.
    ///
    /// # Errors
    /// The same, and for codes that stand for no numbers.
    pub fn read_raw(&self, name: &str, shape: &[usize]) -> Result<RawTensor, CheckpointError> {
        self.read_raw_into(name, shape, None)
    }

    /// As [`SafetensorsFile::read_raw_into`], where the tensor is not computed.
    ///
    /// # Errors
    /// As [`read_raw`](Self::read_raw).
    pub fn read_raw_into(
        &self,
        name: &str,
        shape: &[usize],
        memory: Option<RawTensor>,
    ) -> Result<RawTensor, CheckpointError> {
        let info = self.require(name, shape)?;
        let place = self.tensors.get(name).copied().unwrap_or(0);
        match &self.backing {
            Backing::Files(files) => files[place].read_raw_into(name, shape, memory),
            Backing::Gguf(model) => model.read(&model.tensors[place]),
            Backing::Dequantized(d) if place == 0 => d.of.read_raw_into(name, shape, memory),
            Backing::Dequantized(d) => {
                let layer = name.trim_end_matches(".weight");
                let read = d.manifest.read(&d.of, layer, shape[0], shape[1])?;
                let Some((weight, low_rank)) = read.and_then(|l| Some((l.weight?, l.low_rank))) else {
                    return Err(missing(&self.dir, name, self.names()));
                };
                let mut values = weight.dequantize();
                if let Some(low_rank) = low_rank {
                    low_rank.add_to(&mut values);
                }
                let values = RawTensor::F32(values);
                info.check_finite(&values)?;
                Ok(values)
            }
        }
    }

    /// As [`SafetensorsFile::read_rows`].
    ///
    /// # Errors
    /// The same.
    pub fn read_rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<RawTensor, CheckpointError> {
        let info = self.require(name, shape)?;
        if let Some(file) = self.stored(name) {
            return file.read_rows(name, shape, rows);
        }
        info.check_rows(&rows)?;
        let row: usize = shape.iter().skip(1).product();
        Ok(self.read_raw(name, shape)?.part(rows.start * row..rows.end * row))
    }

    /// The file that holds a tensor as it is.
    fn stored(&self, name: &str) -> Option<&SafetensorsFile> {
        let place = *self.tensors.get(name)?;
        match &self.backing {
            Backing::Files(files) => Some(&files[place]),
            Backing::Dequantized(d) if place == 0 => d.of.stored(name),
            _ => None,
        }
    }

    /// Bytes that stand for this checkpoint, to be hashed: equal for a copy elsewhere, different for nearly
    /// any other checkpoint. In order: `config.json`; then of each file its name in the folder, its length,
    /// its header, the first and last 64 KiB of its data, and 256 bytes from the middle of every tensor (of a GGUF file
    /// its length, its first and last 64 KiB, and the same of every tensor). Modification times have no part.
    ///
    /// It is a sample, taken in well under a second: someone who edits single weights on purpose can evade
    /// it.
    ///
    /// # Errors
    /// A file cannot be read or shrank.
    pub fn identity(&self) -> Result<Vec<u8>, CheckpointError> {
        let mut identity = Vec::new();
        // Each part with its length before it, so that no two lists of parts give the same bytes.
        let mut add = |part: &[u8]| {
            identity.extend((part.len() as u64).to_le_bytes());
            identity.extend(part);
        };
        match &self.backing {
            Backing::Files(files) => {
                add(b"halfbyte checkpoint identity 1");
                add(&self.config_bytes);
                for file in files {
                    let name = file.path().strip_prefix(&self.dir).unwrap_or(file.path());
                    add(name.as_os_str().as_encoded_bytes());
                    add(&file.file_len().to_le_bytes());
                    add(&file.header_bytes()?);
                    add(&file.identity_samples()?);
                }
            }
            Backing::Gguf(model) => {
                add(b"halfbyte GGUF identity 1");
                add(&self.config_bytes);
                add(&model.file.file_len().to_le_bytes());
                add(&model.file.identity_samples()?);
            }
            Backing::Dequantized(d) => return d.of.identity(),
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::CONFIG_LIMIT;
    use crate::{Dtype, TensorSpec, writer::tests::write_file};
    use std::fs::{self, File};

    /// A model folder with a config and nothing else.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
        dir
    }

    /// A file of one-element F32 tensors, each with the value given.
    fn weights(path: &Path, tensors: &[(&str, f32)]) {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, value)| (TensorSpec::new(*name, Dtype::F32, [1]), value.to_le_bytes().to_vec()))
            .collect();
        write_file(path, &tensors);
    }

    fn index(dir: &Path, json: &str) {
        fs::write(dir.join(INDEX), json).unwrap();
    }

    #[track_caller]
    fn refusal(dir: &Path) -> (CheckpointError, String) {
        let error = Checkpoint::open(dir).unwrap_err();
        let message = error.to_string();
        (error, message)
    }

    #[test]
    fn threads_can_share_a_checkpoint() {
        fn shared<T: Send + Sync>() {}
        shared::<Checkpoint>();
    }

    #[test]
    fn one_file() {
        let dir = folder();
        weights(&dir.path().join(SINGLE), &[("b", 2.0), ("a", 1.0)]);
        weights(&dir.path().join("unrelated.safetensors"), &[("a", 9.0)]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.dir(), dir.path());
        assert_eq!(checkpoint.config()["model_type"], "llama");
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert!(checkpoint.contains("a") && !checkpoint.contains("c"));
        assert_eq!(checkpoint.read_f32("a", &[1]).unwrap(), [1.0]);
        assert_eq!(checkpoint.read_raw("b", &[1]).unwrap(), RawTensor::F32(vec![2.0]));
        assert_eq!(checkpoint.read_rows("b", &[1], 0..1).unwrap(), RawTensor::F32(vec![2.0]));
        assert_eq!(checkpoint.read_bytes("b").unwrap(), 2f32.to_le_bytes());
        assert_eq!(checkpoint.info("a").unwrap().bytes, 4);
        assert!(checkpoint.info("c").is_none());
        assert_eq!(checkpoint.files().len(), 1);
        let message = checkpoint.require("a", &[2]).unwrap_err().to_string();
        assert!(message.contains("model.safetensors has shape [1] where [2]"), "{message}");
        let message = checkpoint.require("aa", &[1]).unwrap_err().to_string();
        assert!(message.contains(r#"no tensor "aa""#), "{message}");
    }

    #[test]
    fn shards_with_an_index() {
        let dir = folder();
        fs::create_dir(dir.path().join("sub")).unwrap();
        weights(&dir.path().join("one.safetensors"), &[("a", 1.0), ("only here", 3.0)]);
        weights(&dir.path().join("sub/two.safetensors"), &[("b", 2.0)]);
        weights(&dir.path().join("unlisted.safetensors"), &[("a", 9.0)]);
        index(
            dir.path(),
            r#"{"metadata":{"total_size":8},"weight_map":{"a":"one.safetensors","b":"sub/two.safetensors"}}"#,
        );
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "only here"]);
        assert_eq!(checkpoint.read_f32("b", &[1]).unwrap(), [2.0]);
        assert_eq!(checkpoint.files().len(), 2);
    }

    #[test]
    fn loose_files_are_taken_together() {
        let dir = folder();
        weights(&dir.path().join("text.safetensors"), &[("a", 1.0)]);
        weights(&dir.path().join("vision.safetensors"), &[("b", 2.0)]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);

        weights(&dir.path().join("vision.safetensors"), &[("a", 2.0)]);
        let (error, message) = refusal(dir.path());
        assert!(matches!(error, CheckpointError::TensorInTwoFiles { .. }));
        assert!(
            message.contains(r#"tensor "a""#)
                && message.contains("text.safetensors and in")
                && message.contains("vision.safetensors"),
            "{message}"
        );
    }

    #[test]
    fn an_index_that_is_not_one() {
        let dir = folder();
        for json in ["", "{", "no"] {
            index(dir.path(), json);
            let (error, message) = refusal(dir.path());
            assert!(matches!(error, CheckpointError::IndexNotJson { .. }), "{message}");
            assert!(message.contains(INDEX), "{message}");
        }
        for json in ["3", "{}", r#"{"weight_map":7}"#, r#"{"weight_map":{"a":7}}"#] {
            index(dir.path(), json);
            let (error, message) = refusal(dir.path());
            assert!(matches!(error, CheckpointError::IndexMalformed { .. }), "{message}");
            assert!(message.contains(INDEX), "{message}");
        }
    }

    #[test]
    fn an_index_that_leads_elsewhere() {
        let dir = folder();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("config.json"), "{}").unwrap();
        weights(&dir.path().join("secret.safetensors"), &[("a", 1.0)]);
        let absolute = dir.path().join("secret.safetensors");
        for shard in
            ["../secret.safetensors", "x/../../secret.safetensors", "", ".", absolute.to_str().unwrap()]
        {
            index(&inner, &serde_json::json!({"weight_map": {"a": shard}}).to_string());
            let (error, message) = refusal(&inner);
            assert!(matches!(error, CheckpointError::ShardEscapes { .. }), "{shard}: {message}");
            assert!(message.contains(r#"tensor "a""#) && message.contains(shard), "{message}");
        }
    }

    #[test]
    fn an_index_that_promises_too_much() {
        let dir = folder();
        weights(&dir.path().join("one.safetensors"), &[("a", 1.0), ("b", 2.0)]);
        index(dir.path(), r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#);
        let (error, message) = refusal(dir.path());
        assert!(matches!(error, CheckpointError::ShardMissing { .. }));
        assert!(
            message.contains(r#"tensor "b""#) && message.contains("two.safetensors, which is missing"),
            "{message}"
        );

        weights(&dir.path().join("two.safetensors"), &[("c", 1.0)]);
        let (error, message) = refusal(dir.path());
        assert!(
            matches!(error, CheckpointError::ShardLacksTensor { .. }),
            "it is in the other shard: {message}"
        );
        assert!(
            message.contains(r#"tensor "b""#) && message.contains("two.safetensors, which does not"),
            "{message}"
        );

        weights(&dir.path().join("two.safetensors"), &[("b", 1.0)]);
        let (error, message) = refusal(dir.path());
        assert!(matches!(error, CheckpointError::TensorInTwoFiles { .. }));
        assert!(message.contains("one.safetensors") && message.contains("two.safetensors"), "{message}");
    }

    #[test]
    fn shards_without_their_index() {
        let dir = folder();
        weights(&dir.path().join("model-00001-of-00002.safetensors"), &[("a", 1.0)]);
        let (error, message) = refusal(dir.path());
        assert!(matches!(error, CheckpointError::IndexMissing { .. }));
        assert!(message.contains("model-00001-of-00002.safetensors"), "{message}");
    }

    #[test]
    fn weights_in_no_or_another_format() {
        let dir = folder();
        fs::write(dir.path().join("training_args.bin"), "").unwrap();
        let (error, message) = refusal(dir.path());
        assert!(matches!(error, CheckpointError::NoWeights { .. }), "{message}");
        let name = "pytorch_model.bin";
        fs::write(dir.path().join(name), "").unwrap();
        let (error, message) = refusal(dir.path());
        assert!(matches!(error, CheckpointError::OtherFormat { .. }));
        assert!(message.contains(name) && message.contains("save_pretrained"), "{message}");
        // GGUF is read, wherever there are no safetensors.
        fs::write(dir.path().join("tiny.Q4_1.gguf"), "").unwrap();
        let (error, message) = refusal(dir.path());
        assert!(
            matches!(error, CheckpointError::Gguf { .. }) && message.contains("tiny.Q4_1.gguf"),
            "{message}"
        );
        fs::write(dir.path().join("tiny.Q8_0.gguf"), "").unwrap();
        let (error, message) = refusal(dir.path());
        assert!(matches!(error, CheckpointError::SeveralGguf { .. }), "{message}");
        assert!(message.contains("tiny.Q4_1.gguf, tiny.Q8_0.gguf"), "{message}");
    }

    #[test]
    fn configurations_that_are_none() {
        let dir = folder();
        let config = dir.path().join("config.json");
        for (json, says) in [
            ("{", "not valid JSON"),
            ("[]", "holds a list"),
            ("null", "holds null"),
            ("\"a\"", "holds a string"),
        ] {
            fs::write(&config, json).unwrap();
            let (_, message) = refusal(dir.path());
            assert!(message.contains("config.json") && message.contains(says), "{message}");
        }
        File::create(&config).unwrap().set_len(CONFIG_LIMIT + 1).unwrap();
        assert!(matches!(refusal(dir.path()).0, CheckpointError::JsonTooLarge { .. }));
        fs::remove_file(&config).unwrap();
        let (error, message) = refusal(dir.path());
        assert!(matches!(error, CheckpointError::ConfigMissing { .. }));
        assert!(message.contains("config.json is missing"), "{message}");
        fs::create_dir(&config).unwrap();
        assert!(matches!(refusal(dir.path()).0, CheckpointError::NotAFile { .. }));
    }

    #[test]
    fn a_folder_that_is_none() {
        let dir = folder();
        for path in [dir.path().join("absent"), dir.path().join("config.json")] {
            let (error, message) = refusal(&path);
            assert!(matches!(error, CheckpointError::NotAFolder { .. }));
            assert!(message.contains("is not a folder"), "{message}");
        }
    }

    #[test]
    fn identity_is_of_the_contents_alone() {
        let file = |dir: &Path, value: f32, middle: f32| {
            let mut long = vec![0; 4 * 100_000];
            long[200_000..200_004].copy_from_slice(&middle.to_le_bytes());
            let tensors = [
                (TensorSpec::new("a", Dtype::F32, [1]), value.to_le_bytes().to_vec()),
                (TensorSpec::new("long", Dtype::F32, [100_000]), long),
            ];
            write_file(&dir.join(SINGLE), &tensors);
            Checkpoint::open(dir).unwrap().identity().unwrap()
        };
        let (one, two) = (folder(), folder());
        let identity = file(one.path(), 1.0, 0.0);
        assert_eq!(identity, file(two.path(), 1.0, 0.0), "the same model elsewhere and later");
        assert_ne!(identity, file(one.path(), 2.0, 0.0), "another value");
        assert_ne!(identity, file(one.path(), 1.0, 5.0), "another value, far from both ends");
        fs::write(two.path().join("config.json"), r#"{"model_type":"opt"}"#).unwrap();
        assert_ne!(identity, file(two.path(), 1.0, 0.0), "another configuration");
    }

    #[test]
    fn metadata_of_the_first_file_wins() {
        let dir = folder();
        for (name, text) in [("a", "first"), ("b", "second")] {
            let metadata = BTreeMap::from([("from".into(), text.into()), (name.into(), "own".into())]);
            let path = dir.path().join(format!("{name}.safetensors"));
            crate::SafetensorsWriter::create(&path, &[], &metadata).unwrap().finish().unwrap();
        }
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let metadata: Vec<_> = checkpoint.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(metadata, [("a", "own"), ("b", "own"), ("from", "first")]);
    }
}
