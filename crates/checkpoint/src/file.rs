//! One safetensors file, read with positioned reads.

use crate::{
    dtype::Dtype,
    error::CheckpointError,
    header::{HEADER_LIMIT, Header, PREFIX},
    missing::missing,
    tensor::RawTensor,
};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::Range,
    path::Path,
    sync::Arc,
};

/// Bytes read at once where a tensor is converted or copied: all the memory that reading takes beside the
/// result.
const PIECE: usize = 1 << 20;

/// What a file tells about one of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Length of its data in bytes: exactly what shape and type give.
    pub bytes: u64,
    /// The file that holds it.
    pub file: Arc<Path>,
    /// Where its data begins, from the beginning of the file.
    offset: u64,
}

/// A safetensors file, opened and checked. Reading takes `&self` and no lock: share it between threads.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: Arc<Path>,
    file: File,
    len: u64,
    data_start: u64,
    /// In the order of their data.
    tensors: Vec<TensorInfo>,
    /// Positions in `tensors`, sorted by name.
    by_name: Vec<usize>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens a file, reads its header and checks it against the file's length. Reads no tensor.
    ///
    /// # Errors
    /// The file cannot be read, or its header is not true of it: see the variants of [`CheckpointError`].
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let shown = || path.to_path_buf();
        let read_error = |cause| CheckpointError::Read { path: shown(), cause };
        // Asked before opening: to open a named pipe is to wait for its writer.
        if !fs::metadata(path).map_err(read_error)?.is_file() {
            return Err(CheckpointError::NotAFile { path: shown() });
        }
        let file = File::open(path).map_err(read_error)?;
        let len = file.metadata().map_err(read_error)?.len();
        if len < PREFIX {
            return Err(CheckpointError::FileTooShort { file: shown(), len });
        }
        let read_at = |offset, buffer: &mut [u8]| {
            read_exact_at(&file, offset, buffer).map_err(|cause| match cause.kind() {
                io::ErrorKind::UnexpectedEof => {
                    CheckpointError::FileShrank { file: shown(), tensor: "header".into() }
                }
                _ => read_error(cause),
            })
        };

        let mut prefix = [0; PREFIX as usize];
        read_at(0, &mut prefix)?;
        if &prefix == b"version " {
            return Err(CheckpointError::LfsPointer { file: shown() });
        }
        let header = u64::from_le_bytes(prefix);
        if header > HEADER_LIMIT {
            return Err(CheckpointError::HeaderTooLarge { file: shown(), header });
        }
        let Some(data) = (len - PREFIX).checked_sub(header) else {
            return Err(CheckpointError::HeaderBeyondFile { file: shown(), header, len });
        };
        let mut json = zeroed(header).ok_or_else(|| CheckpointError::OutOfMemory {
            file: shown(),
            tensor: "header".into(),
            bytes: header,
        })?;
        read_at(PREFIX, &mut json)?;

        let Header { tensors, metadata } = Header::parse(path, &json, data)?;
        let data_start = PREFIX + header;
        let path: Arc<Path> = path.into();
        let tensors: Vec<_> = tensors
            .into_iter()
            .map(|placed| TensorInfo {
                name: placed.spec.name,
                dtype: placed.spec.dtype,
                shape: placed.spec.shape,
                bytes: placed.end - placed.start,
                file: path.clone(),
                offset: data_start + placed.start,
            })
            .collect();
        let mut by_name: Vec<usize> = (0..tensors.len()).collect();
        by_name.sort_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
        Ok(Self { path, file, len, data_start, tensors, by_name, metadata })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the whole file in bytes.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// The texts under `__metadata__` in the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors, in the order of their data.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// What the file tells about a tensor, if it holds it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let found = self.by_name.binary_search_by(|&i| self.tensors[i].name.as_str().cmp(name)).ok()?;
        Some(&self.tensors[self.by_name[found]])
    }

    /// Like [`info`](Self::info) for a tensor that must be there.
    ///
    /// # Errors
    /// [`CheckpointError::TensorMissing`], with the nearest name there is.
    pub fn find(&self, name: &str) -> Result<&TensorInfo, CheckpointError> {
        self.info(name).ok_or_else(|| {
            missing(&self.path, name, self.by_name.iter().map(|&i| self.tensors[i].name.as_str()))
        })
    }

    /// Like [`info`](Self::info) for a tensor that must be there with this shape.
    ///
    /// # Errors
    /// [`CheckpointError::TensorMissing`] or [`CheckpointError::WrongShape`].
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, CheckpointError> {
        self.find(name)?.with_shape(shape)
    }

    /// The stored bytes of a tensor (little-endian).
    ///
    /// # Errors
    /// The tensor is missing, the file cannot be read or shrank, or memory is short.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let info = self.find(name)?;
        let mut bytes = zeroed(info.bytes).ok_or_else(|| info.out_of_memory(info.bytes))?;
        self.read_at(info, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Hands the stored bytes of a tensor to `visit`, from first to last, in pieces of at most 1 MiB: for
    /// copying and hashing without holding the tensor. Each piece is a whole number of elements.
    ///
    /// # Errors
    /// The tensor is missing, the file cannot be read or shrank; or what `visit` returned, which ends the
    /// reading.
    pub fn read_pieces<E: From<CheckpointError>>(
        &self,
        name: &str,
        visit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let info = self.find(name)?;
        self.visit_range(info, 0..info.bytes, visit)
    }

    /// The values of a tensor of this shape as `f32`, from F32, F16 or BF16, all of them finite.
    ///
    /// # Errors
    /// The tensor is missing or has another shape or type, a value is NaN or infinite, the file cannot be
    /// read or shrank, or memory is short.
    pub fn read_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let info = self.require(name, shape)?;
        let all = 0..info.bytes;
        match info.dtype {
            Dtype::F32 => self.values(info, all, Vec::new(), push_f32, |v| v.is_finite(), |v| v),
            Dtype::F16 => self.values(info, all, Vec::new(), push_f16_as_f32, |v| v.is_finite(), |v: f32| v),
            Dtype::BF16 => {
                self.values(info, all, Vec::new(), push_bf16_as_f32, |v| v.is_finite(), |v: f32| v)
            }
            _ => Err(info.not_float()),
        }
    }

    /// The values of a tensor of this shape in their stored type (F32, F16 or BF16), all of them finite.
    ///
    /// # Errors
    /// As [`read_f32`](Self::read_f32).
    pub fn read_raw(&self, name: &str, shape: &[usize]) -> Result<RawTensor, CheckpointError> {
        self.read_raw_into(name, shape, None)
    }

    /// As [`read_raw`](Self::read_raw), in the memory of `spare` if it is of the same type: whoever reads many tensors
    /// saves the cost of fresh pages, which is that of reading from the page cache once more.
    ///
    /// # Errors
    /// The same.
    pub fn read_raw_into(
        &self,
        name: &str,
        shape: &[usize],
        spare: Option<RawTensor>,
    ) -> Result<RawTensor, CheckpointError> {
        let info = self.require(name, shape)?;
        self.raw(info, 0..info.bytes, spare)
    }

    /// Rows `rows` of a tensor of this shape, in their stored type: the sub-tensors at these positions of the
    /// first dimension. For tables that need not be in memory as a whole, such as embeddings.
    ///
    /// # Errors
    /// As [`read_f32`](Self::read_f32), or [`CheckpointError::NoSuchRows`].
    pub fn read_rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<RawTensor, CheckpointError> {
        let info = self.require(name, shape)?;
        let count = info.shape.first().copied().unwrap_or(0);
        info.check_rows(&rows)?;
        let row = info.bytes.checked_div(count as u64).unwrap_or(0);
        self.raw(info, rows.start as u64 * row..rows.end as u64 * row, None)
    }

    /// The bytes of the header's JSON, with its padding.
    ///
    /// # Errors
    /// The file cannot be read or shrank, or memory is short.
    pub fn header_bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        self.read_span(PREFIX, self.data_start - PREFIX, "header")
    }

    /// What [`Checkpoint::identity`](crate::Checkpoint::identity) takes from this file's data: the first and
    /// last 64 KiB, and 256 bytes from the middle of every tensor.
    pub(crate) fn identity_samples(&self) -> Result<Vec<u8>, CheckpointError> {
        const ENDS: u64 = 64 << 10;
        const MIDDLE: u64 = 256;
        let data = self.len - self.data_start;
        let mut samples = self.read_span(self.data_start, data.min(ENDS), "data")?;
        samples.extend(self.read_span(self.len - data.min(ENDS), data.min(ENDS), "data")?);
        for info in &self.tensors {
            let len = info.bytes.min(MIDDLE);
            samples.extend(self.read_span(info.offset + (info.bytes - len) / 2, len, &info.name)?);
        }
        Ok(samples)
    }

    fn raw(
        &self,
        info: &TensorInfo,
        bytes: Range<u64>,
        spare: Option<RawTensor>,
    ) -> Result<RawTensor, CheckpointError> {
        Ok(match (info.dtype, spare) {
            (Dtype::F32, spare) => {
                let spare = if let Some(RawTensor::F32(v)) = spare { v } else { Vec::new() };
                RawTensor::F32(self.values(info, bytes, spare, push_f32, |v| v.is_finite(), |v| v)?)
            }
            (Dtype::F16, spare) => {
                let spare = if let Some(RawTensor::F16(v)) = spare { v } else { Vec::new() };
                RawTensor::F16(self.values(info, bytes, spare, push_f16, |v| v.is_finite(), f16::to_f32)?)
            }
            (Dtype::BF16, spare) => {
                let spare = if let Some(RawTensor::BF16(v)) = spare { v } else { Vec::new() };
                RawTensor::BF16(self.values(
                    info,
                    bytes,
                    spare,
                    push_bf16,
                    |v| v.is_finite(),
                    bf16::to_f32,
                )?)
            }
            _ => return Err(info.not_float()),
        })
    }

    /// Reads a byte range of `info` piece by piece into the memory of `values`; `push` appends the elements of a piece, which
    /// are then checked while they are still in the cache.
    fn values<const N: usize, T: Copy>(
        &self,
        info: &TensorInfo,
        bytes: Range<u64>,
        mut values: Vec<T>,
        push: impl Fn(&[[u8; N]], &mut Vec<T>),
        finite: impl Fn(T) -> bool,
        widen: impl Fn(T) -> f32,
    ) -> Result<Vec<T>, CheckpointError> {
        let needed = (bytes.end - bytes.start) / N as u64;
        let short = || info.out_of_memory(needed.saturating_mul(size_of::<T>() as u64));
        values.clear();
        values.try_reserve_exact(usize::try_from(needed).map_err(|_| short())?).map_err(|_| short())?;
        let first = bytes.start / N as u64;
        self.visit_range(info, bytes, |piece| {
            let old = values.len();
            push(piece.as_chunks::<N>().0, &mut values);
            // No early exit: this loop has to be as fast as the reading.
            if values[old..].iter().fold(true, |ok, &v| ok & finite(v)) {
                return Ok(());
            }
            let (at, value) = values
                .iter()
                .enumerate()
                .skip(old)
                .find(|(_, v)| !finite(**v))
                .unwrap_or((old, &values[old]));
            Err(CheckpointError::NotFinite {
                file: info.file.to_path_buf(),
                tensor: info.name.clone(),
                shape: info.shape.as_slice().into(),
                index: first as usize + at,
                value: widen(*value),
            })
        })?;
        Ok(values)
    }

    fn visit_range<E: From<CheckpointError>>(
        &self,
        info: &TensorInfo,
        range: Range<u64>,
        mut visit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // A thread keeps its buffer: fresh pages for every tensor would cost as much as reading them.
        thread_local!(static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) });
        let len = (range.end - range.start).min(PIECE as u64);
        let mut buffer = BUFFER.take();
        if (buffer.len() as u64) < len {
            buffer = zeroed(len).ok_or_else(|| info.out_of_memory(len))?;
        }
        let mut at = range.start;
        while at < range.end {
            let piece = &mut buffer[..(range.end - at).min(len) as usize];
            self.read_at(info, at, piece)?;
            visit(piece)?;
            at += piece.len() as u64;
        }
        BUFFER.set(buffer);
        Ok(())
    }

    /// Fills `buffer` with the tensor's bytes from `start`.
    fn read_at(&self, info: &TensorInfo, start: u64, buffer: &mut [u8]) -> Result<(), CheckpointError> {
        self.read_file_at(info.offset + start, buffer, &info.name)
    }

    fn read_file_at(&self, offset: u64, buffer: &mut [u8], tensor: &str) -> Result<(), CheckpointError> {
        read_exact_at(&self.file, offset, buffer).map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => {
                CheckpointError::FileShrank { file: self.path.to_path_buf(), tensor: tensor.to_owned() }
            }
            _ => CheckpointError::Read { path: self.path.to_path_buf(), cause },
        })
    }

    fn read_span(&self, offset: u64, bytes: u64, tensor: &str) -> Result<Vec<u8>, CheckpointError> {
        let mut buffer = zeroed(bytes).ok_or_else(|| CheckpointError::OutOfMemory {
            file: self.path.to_path_buf(),
            tensor: tensor.to_owned(),
            bytes,
        })?;
        self.read_file_at(offset, &mut buffer, tensor)?;
        Ok(buffer)
    }
}

impl TensorInfo {
    /// Of a tensor that no safetensors file holds: its values are computed when it is read.
    pub(crate) fn computed(
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: u64,
        file: Arc<Path>,
    ) -> Self {
        Self { name, dtype, shape, bytes, file, offset: 0 }
    }

    /// Checks that there are such rows.
    pub(crate) fn check_rows(&self, rows: &Range<usize>) -> Result<(), CheckpointError> {
        if rows.start <= rows.end && rows.end <= self.shape.first().copied().unwrap_or(0) {
            return Ok(());
        }
        Err(CheckpointError::NoSuchRows {
            file: self.file.to_path_buf(),
            tensor: self.name.clone(),
            start: rows.start,
            end: rows.end,
            shape: self.shape.as_slice().into(),
        })
    }

    /// Checks values that were computed.
    pub(crate) fn check_finite(&self, values: &RawTensor) -> Result<(), CheckpointError> {
        let bad = match values {
            RawTensor::F32(v) => v.iter().position(|v| !v.is_finite()).map(|i| (i, v[i])),
            RawTensor::F16(v) => v.iter().position(|v| !v.is_finite()).map(|i| (i, v[i].to_f32())),
            RawTensor::BF16(v) => v.iter().position(|v| !v.is_finite()).map(|i| (i, v[i].to_f32())),
        };
        match bad {
            None => Ok(()),
            Some((index, value)) => Err(CheckpointError::NotFinite {
                file: self.file.to_path_buf(),
                tensor: self.name.clone(),
                shape: self.shape.as_slice().into(),
                index,
                value,
            }),
        }
    }

    pub(crate) fn with_shape(&self, shape: &[usize]) -> Result<&Self, CheckpointError> {
        if self.shape == shape {
            return Ok(self);
        }
        Err(CheckpointError::WrongShape {
            file: self.file.to_path_buf(),
            tensor: self.name.clone(),
            expected: shape.into(),
            found: self.shape.as_slice().into(),
        })
    }

    /// What weights are read from.
    pub(crate) fn with_floats(&self) -> Result<&Self, CheckpointError> {
        match self.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(self),
            _ => Err(self.not_float()),
        }
    }

    fn not_float(&self) -> CheckpointError {
        CheckpointError::NotFloat {
            file: self.file.to_path_buf(),
            tensor: self.name.clone(),
            dtype: self.dtype,
        }
    }

    fn out_of_memory(&self, bytes: u64) -> CheckpointError {
        CheckpointError::OutOfMemory { file: self.file.to_path_buf(), tensor: self.name.clone(), bytes }
    }
}

fn push_f32(piece: &[[u8; 4]], values: &mut Vec<f32>) {
    values.extend(piece.iter().map(|b| f32::from_le_bytes(*b)));
}

fn push_f16(piece: &[[u8; 2]], values: &mut Vec<f16>) {
    values.extend(piece.iter().map(|b| f16::from_le_bytes(*b)));
}

fn push_bf16(piece: &[[u8; 2]], values: &mut Vec<bf16>) {
    values.extend(piece.iter().map(|b| bf16::from_le_bytes(*b)));
}

fn push_f16_as_f32(piece: &[[u8; 2]], values: &mut Vec<f32>) {
    // By slices, since the processor's own conversion is chosen once a call.
    let mut halves = [f16::ZERO; 1024];
    for chunk in piece.chunks(halves.len()) {
        let halves = &mut halves[..chunk.len()];
        halves.iter_mut().zip(chunk).for_each(|(h, b)| *h = f16::from_le_bytes(*b));
        let old = values.len();
        values.resize(old + chunk.len(), 0.0);
        halves.convert_to_f32_slice(&mut values[old..]);
    }
}

fn push_bf16_as_f32(piece: &[[u8; 2]], values: &mut Vec<f32>) {
    // A brain float is the upper half of a float: NaNs stay NaNs without the care that `half` takes of them.
    values.extend(piece.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)));
}

/// A zeroed buffer, or `None` where memory is short.
fn zeroed(bytes: u64) -> Option<Vec<u8>> {
    let bytes = usize::try_from(bytes).ok()?;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(bytes).ok()?;
    buffer.resize(bytes, 0);
    Some(buffer)
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    // Moves the file's cursor, which nothing here relies on.
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                offset += read as u64;
                buffer = &mut buffer[read..];
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TensorSpec, writer::tests::write_file};
    use proptest::prelude::*;

    fn open_bytes(bytes: &[u8]) -> Result<SafetensorsFile, CheckpointError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        fs::write(&path, bytes).unwrap();
        SafetensorsFile::open(&path)
    }

    /// A file with one tensor `t`.
    fn one(dtype: Dtype, shape: &[usize], data: &[u8]) -> (tempfile::TempDir, SafetensorsFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        write_file(&path, &[(TensorSpec::new("t", dtype, shape), data.to_vec())]);
        let file = SafetensorsFile::open(&path).unwrap();
        (dir, file)
    }

    fn f32_bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn reads_what_was_written() {
        let values = [1.5, -0.0, f32::MIN_POSITIVE, f32::MAX, 1e-45, 7.0];
        let (_dir, file) = one(Dtype::F32, &[2, 3], &f32_bytes(&values));
        let info = file.info("t").unwrap();
        assert_eq!((info.dtype, &*info.shape, info.bytes), (Dtype::F32, &[2, 3][..], 24));
        assert_eq!(file.read_f32("t", &[2, 3]).unwrap(), values);
        assert_eq!(file.read_raw("t", &[2, 3]).unwrap(), RawTensor::F32(values.to_vec()));
        assert_eq!(file.read_bytes("t").unwrap(), f32_bytes(&values));
        assert_eq!(file.tensors().len(), 1);
        assert!(file.file_len() > 24 && file.header_bytes().unwrap().starts_with(b"{\"t\":"));
    }

    #[test]
    fn sixteen_bit_types_are_kept_or_widened() {
        let halves = [1.0f32, -2.5, 6.0e-8, 65504.0].map(f16::from_f32);
        let bytes: Vec<u8> = halves.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (_dir, file) = one(Dtype::F16, &[4], &bytes);
        assert_eq!(file.read_raw("t", &[4]).unwrap(), RawTensor::F16(halves.to_vec()));
        assert_eq!(file.read_f32("t", &[4]).unwrap(), halves.map(f32::from));

        let brains = [1.0f32, -2.5, 1e-40, 3e38].map(bf16::from_f32);
        let bytes: Vec<u8> = brains.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (_dir, file) = one(Dtype::BF16, &[4], &bytes);
        assert_eq!(file.read_raw("t", &[4]).unwrap(), RawTensor::BF16(brains.to_vec()));
        assert_eq!(file.read_f32("t", &[4]).unwrap(), brains.map(f32::from));
    }

    #[test]
    fn tensors_longer_than_a_piece_are_whole() {
        let n = PIECE / 2 * 3 + 5;
        let bytes: Vec<u8> = (0..n).flat_map(|i| f16::from_f32((i % 2048) as f32).to_le_bytes()).collect();
        let (_dir, file) = one(Dtype::F16, &[n], &bytes);
        let values = file.read_f32("t", &[n]).unwrap();
        assert!(values.len() == n && values.iter().enumerate().all(|(i, &v)| v == (i % 2048) as f32));
        let mut pieces = Vec::new();
        let mut seen = Vec::new();
        file.read_pieces("t", |piece| {
            pieces.push(piece.len());
            seen.extend_from_slice(piece);
            Ok::<(), CheckpointError>(())
        })
        .unwrap();
        assert_eq!(pieces, [PIECE, PIECE, PIECE, 10]);
        assert_eq!(seen, bytes);
    }

    #[test]
    fn rows_of_a_table() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let (_dir, file) = one(Dtype::F32, &[4, 3], &f32_bytes(&values));
        let rows = |range| file.read_rows("t", &[4, 3], range).map(RawTensor::into_f32);
        assert_eq!(rows(1..3).unwrap(), values[3..9]);
        assert!(rows(4..4).unwrap().is_empty());
        let message = rows(3..5).unwrap_err().to_string();
        assert!(message.contains(r#"rows 3..5 of tensor "t""#) && message.contains("[4, 3]"), "{message}");

        let (_dir, empty) = one(Dtype::F32, &[0, 3], &[]);
        assert_eq!(empty.read_rows("t", &[0, 3], 0..0).unwrap().len(), 0);
    }

    #[test]
    fn nan_and_infinity_are_refused_with_their_place() {
        for (dtype, size, nan) in [
            (Dtype::F32, 4, f32::NAN.to_le_bytes().to_vec()),
            (Dtype::F16, 2, f16::NAN.to_le_bytes().to_vec()),
            (Dtype::BF16, 2, bf16::NAN.to_le_bytes().to_vec()),
        ] {
            let mut bytes = vec![0; 300_000 * 10 * size];
            bytes[1_234_567 * size..][..size].copy_from_slice(&nan);
            let (_dir, file) = one(dtype, &[300_000, 10], &bytes);
            for error in [
                file.read_f32("t", &[300_000, 10]).unwrap_err(),
                file.read_raw("t", &[300_000, 10]).unwrap_err(),
                file.read_rows("t", &[300_000, 10], 123_456..123_457).unwrap_err(),
            ] {
                let message = error.to_string();
                assert!(
                    message.contains(r#"tensor "t""#)
                        && message.contains("w.safetensors")
                        && message.contains("NaN at index 1234567 of shape [300000, 10]"),
                    "{message}"
                );
            }
        }
        let (_dir, file) = one(Dtype::F32, &[2], &f32_bytes(&[0.0, f32::NEG_INFINITY]));
        let message = file.read_f32("t", &[2]).unwrap_err().to_string();
        assert!(message.contains("-inf at index 1"), "{message}");
        assert_eq!(file.read_bytes("t").unwrap().len(), 8, "the bytes can still be copied");
    }

    #[test]
    fn a_missing_tensor_comes_with_the_nearest_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let names = ["layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight", "norm.weight"];
        write_file(&path, &names.map(|name| (TensorSpec::new(name, Dtype::F32, [1]), vec![0; 4])));
        let file = SafetensorsFile::open(&path).unwrap();
        let message = file.require("model.layers.0.self_attn.k_proj.weight", &[1]).unwrap_err().to_string();
        assert!(message.contains(r#"the nearest name is "layers.0.self_attn.k_proj.weight""#), "{message}");
        let message = file.require("x", &[1]).unwrap_err().to_string();
        assert!(message.ends_with(r#"has no tensor "x""#), "{message}");
    }

    #[test]
    fn wrong_shapes_and_types_are_refused() {
        let (_dir, file) = one(Dtype::U8, &[4], &[1, 2, 3, 4]);
        let message = file.read_f32("t", &[2, 2]).unwrap_err().to_string();
        assert!(message.contains("has shape [4] where [2, 2] is expected"), "{message}");
        let message = file.read_raw("t", &[4]).unwrap_err().to_string();
        assert!(message.contains(r#"tensor "t""#) && message.contains("stored as U8"), "{message}");
    }

    #[test]
    fn hostile_prefixes() {
        let with_length = |length: u64, rest: &[u8]| [&length.to_le_bytes()[..], rest].concat();
        for (bytes, says) in [
            (vec![], "has 0 bytes, too few"),
            (vec![1; 7], "has 7 bytes, too few"),
            (with_length(100_000_001, b"{}"), "above the limit of 100 MB"),
            (with_length(u64::MAX, b"{}"), "above the limit of 100 MB"),
            (with_length(100_000_000, b"{}"), "header of 100000000 bytes and has only 10"),
            (with_length(3, b"{}"), "header of 3 bytes and has only 10"),
            (with_length(0, b""), "not valid JSON"),
            (b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), "git lfs pull"),
        ] {
            let message = open_bytes(&bytes).unwrap_err().to_string();
            assert!(message.contains(says) && message.contains("w.safetensors"), "{message}");
        }
        assert!(open_bytes(&with_length(2, b"{}")).unwrap().tensors().is_empty());
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(SafetensorsFile::open(dir.path()), Err(CheckpointError::NotAFile { .. })));
        let absent = dir.path().join("absent.safetensors");
        assert!(matches!(SafetensorsFile::open(&absent), Err(CheckpointError::Read { .. })));
    }

    #[test]
    fn a_file_that_shrinks_under_us_is_an_error() {
        let (_dir, file) = one(Dtype::F32, &[64], &[0; 256]);
        let outside = File::options().write(true).open(file.path()).unwrap();
        outside.set_len(file.file_len() - 1).unwrap();
        let message = file.read_f32("t", &[64]).unwrap_err().to_string();
        assert!(message.contains("became shorter") && message.contains(r#""t""#), "{message}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever is done to a file, it is refused or read; and where we accept it, the official library
        /// does.
        #[test]
        fn damaged_files_do_not_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<Option<prop::sample::Index>>(),
        ) {
            let specs = [
                (TensorSpec::new("a", Dtype::F32, [2, 3]), vec![1; 24]),
                (TensorSpec::new("b", Dtype::BF16, [5]), vec![2; 10]),
            ];
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("w.safetensors");
            write_file(&path, &specs);
            let mut bytes = fs::read(&path).unwrap();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            fs::write(&path, &bytes).unwrap();
            if let Ok(file) = SafetensorsFile::open(&path) {
                safetensors::SafeTensors::deserialize(&bytes).unwrap();
                for info in file.tensors() {
                    prop_assert_eq!(file.read_bytes(&info.name).unwrap().len() as u64, info.bytes);
                    let _ = file.read_f32(&info.name, &info.shape);
                }
            }
        }
    }
}
