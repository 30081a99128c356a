//! Reading a GGUF file, whoever wrote it.

use super::{ALIGNMENT, GgufTensor, GgufType, GgufValue};
use crate::error::CheckpointError;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Longest header that is read. Those of the largest vocabularies have some tens of megabytes.
const HEADER_LIMIT: u64 = 256 << 20;

/// A GGUF file, its header checked against its length.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: Mutex<File>,
    len: u64,
    values: Vec<(String, GgufValue)>,
    /// Tensors with their offset in the file and length.
    tensors: BTreeMap<String, (GgufTensor, u64, u64)>,
}

/// A place in the header. Nothing is allocated beyond the bytes that are there.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Parsed<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    fn take(&mut self, n: u64) -> Parsed<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let n = usize::try_from(n).ok().filter(|&n| n <= rest.len());
        let n = n.ok_or_else(|| format!("it ends within the header, after {} bytes", self.bytes.len()))?;
        self.at += n;
        Ok(&rest[..n])
    }

    fn u32(&mut self) -> Parsed<u32> {
        Ok(self.take(4)?.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b)))
    }

    fn u64(&mut self) -> Parsed<u64> {
        Ok(self.take(8)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn text(&mut self) -> Parsed<String> {
        let n = self.u64()?;
        let bytes = self.take(n)?;
        // Token texts of some models are no UTF-8.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: u64) -> Parsed<usize> {
        let n = self.u64()?;
        let room = (self.bytes.len() - self.at) as u64 / least;
        if n > room {
            return Err(format!("a list of {n} entries does not fit into the rest of the header"));
        }
        Ok(n as usize)
    }

    fn value(&mut self) -> Parsed<GgufValue> {
        let kind = self.u32()?;
        Ok(match kind {
            4 => GgufValue::U32(self.u32()?),
            5 => GgufValue::I32(self.u32()? as i32),
            6 => GgufValue::F32(f32::from_bits(self.u32()?)),
            7 => GgufValue::Bool(self.take(1)?[0] != 0),
            8 => GgufValue::Text(self.text()?),
            9 => self.array()?,
            10 => GgufValue::U64(self.u64()?),
            _ => {
                self.take(scalar_bytes(kind)?)?;
                GgufValue::Other
            }
        })
    }

    fn array(&mut self) -> Parsed<GgufValue> {
        match self.u32()? {
            8 => {
                let n = self.count(8)?;
                Ok(GgufValue::Texts((0..n).map(|_| self.text()).collect::<Parsed<_>>()?))
            }
            5 => {
                let n = self.count(4)?;
                Ok(GgufValue::I32s((0..n).map(|_| self.u32().map(|v| v as i32)).collect::<Parsed<_>>()?))
            }
            6 => {
                let n = self.count(4)?;
                Ok(GgufValue::F32s((0..n).map(|_| self.u32().map(f32::from_bits)).collect::<Parsed<_>>()?))
            }
            9 => Err("a list of lists is not read".into()),
            kind => {
                let size = scalar_bytes(kind)?;
                let n = self.count(size)?;
                self.take(n as u64 * size)?;
                Ok(GgufValue::Other)
            }
        }
    }
}

fn scalar_bytes(kind: u32) -> Parsed<u64> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(format!("there is no value type {kind}")),
    }
}

impl GgufFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// It cannot be read, is no GGUF of version 2 or 3, or its header is not true of it.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let read_error = |cause| CheckpointError::Read { path: path.into(), cause };
        let mut file = File::open(path).map_err(read_error)?;
        let len = file.metadata().map_err(read_error)?.len();
        let mut head = Vec::new();
        file.by_ref().take(len.min(HEADER_LIMIT)).read_to_end(&mut head).map_err(read_error)?;
        let parsed = parse(&head, len);
        let (values, tensors) =
            parsed.map_err(|message| CheckpointError::Gguf { file: path.into(), message })?;
        Ok(Self { path: path.into(), file: Mutex::new(file), len, values, tensors })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the whole file in bytes.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// Bytes that stand for the file, to be hashed, as [`Checkpoint::identity`](crate::Checkpoint::identity) says: the
    /// first and last 64 KiB, and 256 bytes from the middle of every tensor.
    pub(crate) fn identity_samples(&self) -> Result<Vec<u8>, CheckpointError> {
        const ENDS: u64 = 64 << 10;
        const MIDDLE: u64 = 256;
        let mut samples = self.span(0, self.len.min(ENDS))?;
        samples.extend(self.span(self.len - self.len.min(ENDS), self.len.min(ENDS))?);
        for (_, offset, bytes) in self.tensors.values() {
            let len = *bytes.min(&MIDDLE);
            samples.extend(self.span(offset + (bytes - len) / 2, len)?);
        }
        Ok(samples)
    }

    /// Keys and values, in the file's order.
    pub fn values(&self) -> &[(String, GgufValue)] {
        &self.values
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name).map(|t| &t.0)
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The stored bytes of a tensor.
    ///
    /// # Errors
    /// There is no such tensor, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let (_, offset, bytes) = self.tensors.get(name).ok_or_else(|| CheckpointError::Gguf {
            file: self.path.clone(),
            message: format!("it has no tensor {name}"),
        })?;
        self.span(*offset, *bytes)
    }

    fn span(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, CheckpointError> {
        let read_error = |cause| CheckpointError::Read { path: self.path.clone(), cause };
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(SeekFrom::Start(offset)).map_err(read_error)?;
        let mut data = vec![0; bytes as usize];
        file.read_exact(&mut data).map_err(read_error)?;
        Ok(data)
    }
}

type Header = (Vec<(String, GgufValue)>, BTreeMap<String, (GgufTensor, u64, u64)>);

/// Parses a header at the beginning of a file of `len` bytes.
fn parse(head: &[u8], len: u64) -> Parsed<Header> {
    let mut at = Cursor { bytes: head, at: 0 };
    if at.take(4)? != b"GGUF" {
        return Err("it does not begin with GGUF".into());
    }
    let version = at.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("its version is {version}; 2 and 3 are read"));
    }
    // A tensor takes 24 bytes at least, a value 13.
    let tensor_count = at.count(24)?;
    let value_count = at.count(13)?;
    let mut values = Vec::new();
    let mut alignment = ALIGNMENT;
    for _ in 0..value_count {
        let key = at.text()?;
        let value = at.value().map_err(|e| format!("{key}: {e}"))?;
        if key == "general.alignment" {
            alignment = match value {
                GgufValue::U32(n) if n.is_power_of_two() && n <= 1 << 20 => u64::from(n),
                _ => return Err(format!("general.alignment is {value:?}")),
            };
        }
        values.push((key, value));
    }
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        let name = at.text()?;
        let n = at.u32()?;
        if n > 4 {
            return Err(format!("tensor {name} has {n} dimensions"));
        }
        let dims = (0..n).map(|_| at.u64()).collect::<Parsed<Vec<u64>>>()?;
        let kind = at.u32()?;
        let offset = at.u64()?;
        infos.push((name, dims, kind, offset));
    }
    let start = (at.at as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, dims, kind, offset) in infos {
        let kind = GgufType::ALL.into_iter().find(|k| k.layout().1 == kind).ok_or_else(|| {
            let names: Vec<String> = GgufType::ALL.iter().map(|k| k.to_string()).collect();
            format!(
                "tensor {name} has ggml's type {kind}, which is not read; those read are {}",
                names.join(", ")
            )
        })?;
        let bytes =
            kind.bytes(&dims).ok_or_else(|| format!("tensor {name} has the impossible shape {dims:?}"))?;
        let begin = start.checked_add(offset);
        let inside = begin.and_then(|b| b.checked_add(bytes)).is_some_and(|end| end <= len);
        let Some(begin) = begin.filter(|_| inside) else {
            return Err(format!("tensor {name} ends beyond the file"));
        };
        let tensor = GgufTensor { name: name.clone(), kind, dims };
        if tensors.insert(name.clone(), (tensor, begin, bytes)).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    Ok((values, tensors))
}
