//! One safetensors file, written as a stream.

use crate::{
    atomic::AtomicFile,
    error::WriteError,
    file::SafetensorsFile,
    header::{Placed, TensorSpec, lay_out},
    space::require_space,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Writes a safetensors file whose tensors are announced first and arrive piece by piece.
///
/// Every tensor has its place from the beginning, so they may arrive in any order, even interleaved; only the
/// pieces of one tensor must arrive in theirs. The file's bytes depend on specs, metadata and data alone, and
/// are those that the official library writes. Nothing but the header is held in memory.
///
/// The file appears under its name at [`finish`](Self::finish). Dropped before that, nothing remains.
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: AtomicFile,
    tensors: BTreeMap<String, Progress>,
}

#[derive(Debug)]
struct Progress {
    spec: TensorSpec,
    /// From the beginning of the file.
    offset: u64,
    bytes: u64,
    written: u64,
}

impl SafetensorsWriter {
    /// Begins the file `path` with these tensors, in any order, and these texts under `__metadata__`.
    ///
    /// # Errors
    /// A tensor is announced twice, is called `__metadata__` or has an impossible shape; the header exceeds
    /// 100 MB; the disk has too little space for the whole file; or the file cannot be created.
    pub fn create(
        path: &Path,
        tensors: &[TensorSpec],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, WriteError> {
        let (header, placed) = lay_out(path, tensors, metadata)?;
        let start = header.len() as u64;
        let len = start.saturating_add(placed.last().map_or(0, |last| last.end));
        require_space(path, len)?;
        let mut file = AtomicFile::create(path, len)?;
        file.write_at(0, &header)?;
        let progress = |Placed { spec, start: from, end }| {
            (spec.name.clone(), Progress { spec, offset: start + from, bytes: end - from, written: 0 })
        };
        Ok(Self { file, tensors: placed.into_iter().map(progress).collect() })
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Writes the next bytes (little-endian elements) of a tensor.
    ///
    /// # Errors
    /// The tensor was not announced, these are more bytes than it has left, or the disk is full or fails.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let Some(tensor) = self.tensors.get_mut(name) else {
            return Err(WriteError::UnknownTensor { path: self.path().into(), tensor: name.to_owned() });
        };
        let given = tensor.written + bytes.len() as u64;
        if given > tensor.bytes {
            return Err(WriteError::TooManyBytes {
                path: self.file.path().into(),
                tensor: name.to_owned(),
                promised: tensor.bytes,
                given,
            });
        }
        self.file.write_at(tensor.offset + tensor.written, bytes)?;
        tensor.written = given;
        Ok(())
    }

    /// Copies the whole tensor `source` of another file as tensor `name`, 1 MiB at a time.
    ///
    /// # Errors
    /// As [`write`](Self::write); or `from` does not have it, has it with another type or shape than
    /// announced here, or cannot be read.
    pub fn copy(&mut self, name: &str, from: &SafetensorsFile, source: &str) -> Result<(), WriteError> {
        let info = from.find(source)?;
        if let Some(Progress { spec, .. }) = self.tensors.get(name)
            && (spec.dtype != info.dtype || spec.shape != info.shape)
        {
            return Err(WriteError::SourceDiffers {
                path: self.path().into(),
                tensor: name.to_owned(),
                announced: format!("{} {:?}", spec.dtype, spec.shape),
                source_file: from.path().into(),
                found: format!("{} {:?}", info.dtype, info.shape),
            });
        }
        from.read_pieces(source, |piece| self.write(name, piece))
    }

    /// Flushes the file to the disk and gives it its name, replacing what was there. Returns its path.
    ///
    /// # Errors
    /// [`WriteError::Incomplete`] if a tensor has not got all of its bytes, or the disk is full or fails.
    pub fn finish(self) -> Result<PathBuf, WriteError> {
        self.check_complete()?;
        let path = self.path().to_path_buf();
        self.file.commit()?;
        Ok(path)
    }

    /// Whether `finish` would find every tensor whole.
    pub(crate) fn check_complete(&self) -> Result<(), WriteError> {
        match self.tensors.iter().find(|(_, tensor)| tensor.written < tensor.bytes) {
            None => Ok(()),
            Some((name, tensor)) => Err(WriteError::Incomplete {
                path: self.path().into(),
                tensor: name.clone(),
                promised: tensor.bytes,
                written: tensor.written,
            }),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{CheckpointError, Dtype};
    use proptest::prelude::*;
    use std::{collections::HashMap, fs};

    /// Writes a whole file at once.
    #[track_caller]
    pub(crate) fn write_file(path: &Path, tensors: &[(TensorSpec, Vec<u8>)]) {
        let specs: Vec<_> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
        let mut writer = SafetensorsWriter::create(path, &specs, &BTreeMap::new()).unwrap();
        for (spec, bytes) in tensors {
            writer.write(&spec.name, bytes).unwrap();
        }
        writer.finish().unwrap();
    }

    fn two() -> [TensorSpec; 2] {
        [TensorSpec::new("codes", Dtype::U8, [3]), TensorSpec::new("scale", Dtype::F32, [])]
    }

    /// Begins a file of two tensors in a folder of its own.
    fn begun() -> (tempfile::TempDir, SafetensorsWriter) {
        let dir = tempfile::tempdir().unwrap();
        let writer =
            SafetensorsWriter::create(&dir.path().join("w.safetensors"), &two(), &BTreeMap::new()).unwrap();
        (dir, writer)
    }

    fn is_empty(dir: &tempfile::TempDir) -> bool {
        fs::read_dir(dir.path()).unwrap().next().is_none()
    }

    #[test]
    fn the_order_of_arrival_leaves_no_trace() {
        let finished = |pieces: &[(&str, &[u8])]| {
            let (_dir, mut writer) = begun();
            for (name, bytes) in pieces {
                writer.write(name, bytes).unwrap();
            }
            fs::read(writer.finish().unwrap()).unwrap()
        };
        let bytes = finished(&[("codes", &[1, 2, 3]), ("scale", &[4, 5, 6, 7])]);
        assert_eq!(
            bytes,
            finished(&[("scale", &[4]), ("codes", &[1, 2]), ("scale", &[5, 6, 7]), ("codes", &[3])])
        );
        assert!(bytes.ends_with(&[4, 5, 6, 7, 1, 2, 3]), "the aligned tensor comes first");
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    }

    #[test]
    fn bytes_are_counted() {
        let (dir, mut writer) = begun();
        writer.write("codes", &[1, 2]).unwrap();
        let message = writer.write("codes", &[3, 4]).unwrap_err().to_string();
        assert!(
            message.contains(r#"tensor "codes""#) && message.contains("has 3 bytes, and 4 were"),
            "{message}"
        );
        let message = writer.write("other", &[]).unwrap_err().to_string();
        assert!(message.contains(r#"tensor "other" was not announced"#), "{message}");
        let message = writer.finish().unwrap_err().to_string();
        assert!(
            message.contains("w.safetensors") && message.contains(r#"tensor "codes" has 2 of its 3 bytes"#),
            "{message}"
        );
        assert!(is_empty(&dir));
    }

    #[test]
    fn dropped_unfinished_nothing_remains() {
        let (dir, mut writer) = begun();
        writer.write("codes", &[1]).unwrap();
        assert!(!is_empty(&dir));
        drop(writer);
        assert!(is_empty(&dir));
    }

    #[test]
    fn impossible_announcements() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |specs: &[TensorSpec]| {
            let path = dir.path().join("w.safetensors");
            SafetensorsWriter::create(&path, specs, &BTreeMap::new()).unwrap_err()
        };
        let [a, _] = two();
        assert!(matches!(refusal(&[a.clone(), a]), WriteError::DuplicateTensor { .. }));
        let reserved = refusal(&[TensorSpec::new("__metadata__", Dtype::U8, [1])]);
        assert!(matches!(reserved, WriteError::ReservedName { .. }));
        let odd = refusal(&[TensorSpec::new("odd", Dtype::F4, [3])]);
        assert!(odd.to_string().contains(r#"tensor "odd""#) && odd.to_string().contains("F4 [3]"), "{odd}");
        let huge: [_; 16] = std::array::from_fn(|i| TensorSpec::new(i.to_string(), Dtype::U8, [1 << 60]));
        assert!(matches!(refusal(&huge), WriteError::ImpossibleShape { .. }));
        #[cfg(unix)]
        assert!(matches!(refusal(&huge[..1]), WriteError::NotEnoughSpace { .. }));
        assert!(is_empty(&dir));
    }

    #[test]
    fn copies_check_what_they_copy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("source.safetensors");
        let long = vec![7; 2_500_000];
        write_file(
            &path,
            &[
                (TensorSpec::new("long", Dtype::U8, [2_500_000]), long.clone()),
                (TensorSpec::new("scale", Dtype::F16, [2]), vec![0; 4]),
            ],
        );
        let source = SafetensorsFile::open(&path).unwrap();

        let specs =
            [TensorSpec::new("renamed", Dtype::U8, [2_500_000]), TensorSpec::new("scale", Dtype::F32, [])];
        let target = dir.path().join("target.safetensors");
        let mut writer = SafetensorsWriter::create(&target, &specs, &BTreeMap::new()).unwrap();
        writer.copy("renamed", &source, "long").unwrap();
        let message = writer.copy("scale", &source, "scale").unwrap_err().to_string();
        assert!(
            message.contains("announced as F32 [], but") && message.contains("holds F16 [2]"),
            "{message}"
        );
        let error = writer.copy("scale", &source, "absent").unwrap_err();
        assert!(matches!(error, WriteError::Source(CheckpointError::TensorMissing { .. })));
        writer.write("scale", &[0; 4]).unwrap();
        writer.finish().unwrap();
        assert_eq!(SafetensorsFile::open(&target).unwrap().read_bytes("renamed").unwrap(), long);
    }

    fn arbitrary_tensors() -> impl Strategy<Value = Vec<(TensorSpec, Vec<u8>)>> {
        let tensor = (prop::sample::select(&Dtype::ALL[..]), prop::collection::vec(0usize..5, 0..4));
        let named = (tensor, any::<u8>()).prop_filter_map("a part of a byte", |((dtype, shape), fill)| {
            let bytes = dtype.byte_len(&shape)?;
            Some((dtype, shape, (0..bytes).map(|i| fill.wrapping_add(i as u8)).collect::<Vec<u8>>()))
        });
        prop::collection::btree_map("\\PC{0,12}", named, 0..8).prop_map(|tensors| {
            tensors
                .into_iter()
                .map(|(name, (dtype, shape, bytes))| (TensorSpec { name, dtype, shape }, bytes))
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn what_is_written_is_read_by_us_and_by_the_official_library(
            tensors in arbitrary_tensors(),
            format in any::<Option<String>>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("w.safetensors");
            let metadata: BTreeMap<_, _> = format.into_iter().map(|text| ("format".to_owned(), text)).collect();
            let specs: Vec<_> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
            let mut writer = SafetensorsWriter::create(&path, &specs, &metadata).unwrap();
            for (spec, bytes) in tensors.iter().rev() {
                for piece in bytes.chunks(7) {
                    writer.write(&spec.name, piece).unwrap();
                }
            }
            writer.finish().unwrap();

            let ours = SafetensorsFile::open(&path).unwrap();
            prop_assert_eq!(ours.metadata(), &metadata);
            prop_assert_eq!(ours.tensors().len(), tensors.len());
            let bytes = fs::read(&path).unwrap();
            let official = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut views = Vec::new();
            for (spec, data) in &tensors {
                let info = ours.require(&spec.name, &spec.shape).unwrap();
                prop_assert_eq!((info.dtype, &info.shape), (spec.dtype, &spec.shape));
                prop_assert_eq!(&ours.read_bytes(&spec.name).unwrap(), data);
                let view = official.tensor(&spec.name).unwrap();
                prop_assert_eq!(view.dtype().to_string(), spec.dtype.name());
                prop_assert_eq!((view.shape(), view.data()), (&spec.shape[..], &data[..]));
                views.push((spec.name.clone(), view));
            }
            // Not merely readable: the same file.
            let metadata = (!metadata.is_empty()).then(|| metadata.into_iter().collect::<HashMap<_, _>>());
            prop_assert_eq!(safetensors::serialize(views, metadata).unwrap(), bytes);
        }
    }
}
