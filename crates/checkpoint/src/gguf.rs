//! GGUF, the file of llama.cpp: version 3, little-endian. A header of keys and values, then the tensors' places, then
//! their data, each at a multiple of 32 bytes.
//!
//! Block layouts (ggml-common.h), of which a row takes whole blocks:
//! - `NVFP4`: 36 bytes for 64 values, four E4M3 scales without sign, then 8 bytes for each of the four sub-blocks of 16:
//!   byte `j` has element `j` in its low nibble and `j + 8` in its high one.
//! - `MXFP4`: 17 bytes for 32 values, the E8M0 scale, then byte `j` with elements `j` and `j + 16`.

use crate::error::{CheckpointError, WriteError};
use crate::{AtomicFile, Dtype, require_space};
use halfbyte_formats::{QuantizedMatrix, ScaleFormat, Scheme};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Data begins at multiples of this.
const ALIGNMENT: u64 = 32;
/// Longest header that is read. Those of the largest vocabularies have some tens of megabytes.
const HEADER_LIMIT: u64 = 256 << 20;

/// The tensor types that we read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Brain float.
    BF16,
    /// 32 values in 17 bytes.
    Mxfp4,
    /// 64 values in 36 bytes; a tensor scale is a tensor of its own.
    Nvfp4,
}

impl GgufType {
    const ALL: [Self; 5] = [Self::F32, Self::F16, Self::BF16, Self::Mxfp4, Self::Nvfp4];

    /// ggml's number, the values of a block and its bytes.
    fn layout(self) -> (u32, u64, u64) {
        match self {
            Self::F32 => (0, 1, 4),
            Self::F16 => (1, 1, 2),
            Self::BF16 => (30, 1, 2),
            Self::Mxfp4 => (39, 32, 17),
            Self::Nvfp4 => (40, 64, 36),
        }
    }

    /// Values of a block, which divide a row.
    pub fn block(self) -> usize {
        self.layout().1 as usize
    }

    /// The type that holds a float's bytes as they are.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// Bytes of a tensor with these dimensions, innermost first.
    fn bytes(self, dims: &[u64]) -> Option<u64> {
        let (_, block, size) = self.layout();
        let row = dims.first().copied().unwrap_or(1);
        let rows = dims.iter().skip(1).try_fold(1u64, |n, &d| n.checked_mul(d))?;
        if !row.is_multiple_of(block) {
            return None;
        }
        (row / block).checked_mul(size)?.checked_mul(rows)
    }
}

/// A value of the header.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// Unsigned.
    U32(u32),
    /// Signed, as in token types.
    I32(i32),
    /// Single precision.
    F32(f32),
    /// Truth value.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Signed numbers.
    I32s(Vec<i32>),
    /// Floats.
    F32s(Vec<f32>),
    /// A kind that we do not write, skipped when reading.
    Other,
}

/// A tensor as announced: name, type, dimensions with the innermost first.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: GgufType,
    /// Its dimensions: columns, then rows.
    pub dims: Vec<u64>,
}

impl GgufTensor {
    /// Announces a tensor.
    pub fn new(name: impl Into<String>, kind: GgufType, dims: impl Into<Vec<u64>>) -> Self {
        Self { name: name.into(), kind, dims: dims.into() }
    }
}

/// Writes a GGUF file whose tensors arrive in the order in which they were announced.
#[derive(Debug)]
pub struct GgufWriter {
    file: AtomicFile,
    at: u64,
    /// Names and lengths of the tensors still to come, the next one last.
    rest: Vec<(String, u64)>,
}

impl GgufWriter {
    /// Begins the file.
    ///
    /// # Errors
    /// A tensor's row is not whole blocks, the disk is too small, or the file cannot be created.
    pub fn create(
        path: &Path,
        values: &[(String, GgufValue)],
        tensors: &[GgufTensor],
    ) -> Result<Self, WriteError> {
        let mut head = b"GGUF\x03\0\0\0".to_vec();
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((values.len() as u64).to_le_bytes());
        for (key, value) in values {
            text(&mut head, key);
            write_value(&mut head, value);
        }
        let (mut offset, mut rest) = (0u64, Vec::with_capacity(tensors.len()));
        for tensor in tensors {
            let bytes = tensor.kind.bytes(&tensor.dims).ok_or_else(|| WriteError::ImpossibleShape {
                path: path.into(),
                tensor: tensor.name.clone(),
                dtype: Dtype::U8,
                shape: tensor.dims.iter().map(|&d| d as usize).collect(),
            })?;
            text(&mut head, &tensor.name);
            head.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| head.extend(d.to_le_bytes()));
            head.extend(tensor.kind.layout().0.to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset += bytes.next_multiple_of(ALIGNMENT);
            rest.push((tensor.name.clone(), bytes));
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        rest.reverse();
        let len = head.len() as u64 + offset;
        require_space(path, len)?;
        let mut file = AtomicFile::create(path, len)?;
        file.write_at(0, &head)?;
        Ok(Self { file, at: head.len() as u64, rest })
    }

    /// Writes the whole data of the next tensor, which must be `name`.
    ///
    /// # Errors
    /// It is another tensor's turn, the length is wrong, or the disk is full or fails.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let path = self.file.path().to_path_buf();
        match self.rest.pop() {
            Some((next, promised)) if next == name && promised == bytes.len() as u64 => {}
            Some((next, promised)) if next == name => {
                let given = bytes.len() as u64;
                return Err(WriteError::TooManyBytes { path, tensor: next, promised, given });
            }
            _ => return Err(WriteError::UnknownTensor { path, tensor: name.to_owned() }),
        }
        self.file.write_at(self.at, bytes)?;
        let padding = (bytes.len() as u64).next_multiple_of(ALIGNMENT) - bytes.len() as u64;
        self.file.write_at(self.at + bytes.len() as u64, &[0; ALIGNMENT as usize][..padding as usize])?;
        self.at += bytes.len() as u64 + padding;
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// A tensor has not been written, or the disk is full or fails.
    pub fn finish(self) -> Result<PathBuf, WriteError> {
        let path = self.file.path().to_path_buf();
        if let Some((tensor, promised)) = self.rest.last() {
            return Err(WriteError::Incomplete {
                path,
                tensor: tensor.clone(),
                promised: *promised,
                written: 0,
            });
        }
        self.file.commit()?;
        Ok(path)
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_value(out: &mut Vec<u8>, value: &GgufValue) {
    let mut head = |kind: u32, array: Option<usize>| {
        if let Some(n) = array {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((n as u64).to_le_bytes());
        } else {
            out.extend(kind.to_le_bytes());
        }
    };
    match value {
        GgufValue::U32(v) => {
            head(4, None);
            out.extend(v.to_le_bytes());
        }
        GgufValue::I32(v) => {
            head(5, None);
            out.extend(v.to_le_bytes());
        }
        GgufValue::F32(v) => {
            head(6, None);
            out.extend(v.to_le_bytes());
        }
        GgufValue::Bool(v) => {
            head(7, None);
            out.push(u8::from(*v));
        }
        GgufValue::Text(v) => {
            head(8, None);
            text(out, v);
        }
        GgufValue::Texts(v) => {
            head(8, Some(v.len()));
            v.iter().for_each(|v| text(out, v));
        }
        GgufValue::I32s(v) => {
            head(5, Some(v.len()));
            v.iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        GgufValue::F32s(v) => {
            head(6, Some(v.len()));
            v.iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        // Nobody reads one to write it again; an empty text is the least that can stand here.
        GgufValue::Other => {
            head(8, None);
            text(out, "");
        }
    }
}

/// A GGUF file, its header checked against its length.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: Mutex<File>,
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
        Ok(Self { path: path.into(), file: Mutex::new(file), values, tensors })
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
        let read_error = |cause| CheckpointError::Read { path: self.path.clone(), cause };
        let (_, offset, bytes) = self.tensors.get(name).ok_or_else(|| CheckpointError::Gguf {
            file: self.path.clone(),
            message: format!("it has no tensor {name}"),
        })?;
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(SeekFrom::Start(*offset)).map_err(read_error)?;
        let mut data = vec![0; *bytes as usize];
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
        let kind = GgufType::ALL.into_iter().find(|k| k.layout().0 == kind).ok_or_else(|| {
            format!("tensor {name} has the type {kind}; F32, F16, BF16, MXFP4 and NVFP4 are read")
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

/// Blocks of `size` codes whose two halves share bytes, `count` of them behind their scales.
fn repack(matrix: &QuantizedMatrix, size: usize, count: usize, order: impl Fn(usize) -> usize) -> Vec<u8> {
    let half = size / 2;
    let format = matrix.scheme.scale;
    let mut out = Vec::with_capacity(matrix.codes.len() + matrix.scales.len());
    let nibble = |bytes: &[u8], i: usize| bytes[i / 2] >> (4 * (i % 2)) & 15;
    let mut row = 0;
    while row * matrix.row_bytes() < matrix.codes.len() {
        let from = order(row);
        let codes = &matrix.codes[from * matrix.row_bytes()..][..matrix.row_bytes()];
        let blocks = matrix.cols / size;
        let scales = &matrix.scales[from * blocks..][..blocks];
        for (codes, scales) in codes.chunks(half * count).zip(scales.chunks(count)) {
            out.extend(scales.iter().map(|&s| format.to_byte(s).unwrap_or(0)));
            for block in codes.chunks(half) {
                out.extend((0..half).map(|j| nibble(block, j) | nibble(block, j + half) << 4));
            }
        }
        row += 1;
    }
    out
}

/// The data of an NVFP4 or MXFP4 weight; row `r` of the file is row `order(r)` of the matrix. `None` for other schemes and
/// for rows that are not whole blocks.
pub fn encode(matrix: &QuantizedMatrix, order: impl Fn(usize) -> usize) -> Option<(GgufType, Vec<u8>)> {
    let (kind, size, count) = match matrix.scheme {
        Scheme::NVFP4 => (GgufType::Nvfp4, 16, 4),
        Scheme::MXFP4 => (GgufType::Mxfp4, 32, 1),
        _ => return None,
    };
    matrix.cols.is_multiple_of(kind.block()).then(|| (kind, repack(matrix, size, count, order)))
}

/// The matrix that the data of an NVFP4 or MXFP4 tensor holds, its rows in the file's order.
///
/// # Errors
/// A scale that is none, or lengths that do not fit.
pub fn decode(
    name: &str,
    kind: GgufType,
    rows: usize,
    cols: usize,
    data: &[u8],
    tensor_scale: f32,
) -> Result<QuantizedMatrix, CheckpointError> {
    let damaged = |message: String| CheckpointError::Damaged { tensor: name.to_owned(), message };
    let (scheme, size, count) = match kind {
        GgufType::Nvfp4 => (Scheme::NVFP4, 16, 4),
        GgufType::Mxfp4 => (Scheme::MXFP4, 32, 1),
        _ => return Err(damaged("is not made of blocks".into())),
    };
    let half = size / 2;
    let (mut codes, mut bytes) = (Vec::new(), Vec::new());
    for block in data.chunks_exact(count + half * count) {
        let (scales, qs) = block.split_at(count);
        bytes.extend(scales);
        for sub in qs.chunks(half) {
            let nibble = |i: usize| if i < half { sub[i] & 15 } else { sub[i - half] >> 4 };
            codes.extend((0..half).map(|j| nibble(2 * j) | nibble(2 * j + 1) << 4));
        }
    }
    // ggml reads 0x7F as 0 too.
    if scheme.scale == ScaleFormat::E4M3 {
        bytes.iter_mut().filter(|b| **b == 0x7f).for_each(|b| *b = 0);
    }
    let scales = crate::layout::block_scales(scheme, &bytes, &mut codes, name)?;
    QuantizedMatrix::from_parts(name, scheme, rows, cols, codes, scales, tensor_scale)
        .map_err(|e| damaged(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(scheme: Scheme) -> QuantizedMatrix {
        let x: Vec<f32> = (0..6 * 128).map(|i| (i as f32 * 0.7).sin() * (i % 13) as f32).collect();
        QuantizedMatrix::quantize_max("w", &x, 6, 128, scheme).unwrap()
    }

    #[test]
    fn blocks_are_read_back() {
        for scheme in [Scheme::NVFP4, Scheme::MXFP4] {
            let matrix = matrix(scheme);
            let (kind, data) = encode(&matrix, |r| 5 - r).unwrap();
            let back = decode("w", kind, 6, 128, &data, matrix.tensor_scale).unwrap();
            let (mut a, mut b) = (vec![0.0; 128], vec![0.0; 128]);
            for r in 0..6 {
                matrix.dequantize_row(5 - r, &mut a);
                back.dequantize_row(r, &mut b);
                assert_eq!(a, b, "{scheme} row {r}");
            }
        }
    }

    fn write(path: &Path) {
        let matrix = matrix(Scheme::MXFP4);
        let (kind, data) = encode(&matrix, |r| r).unwrap();
        let values = vec![
            ("general.architecture".to_owned(), GgufValue::Text("llama".into())),
            ("a".to_owned(), GgufValue::Texts(vec!["x".into(), String::new()])),
            ("b".to_owned(), GgufValue::F32s(vec![1.5])),
            ("c".to_owned(), GgufValue::I32s(vec![-1, 7])),
            ("d".to_owned(), GgufValue::Bool(true)),
        ];
        let tensors = [GgufTensor::new("n", GgufType::F32, [3]), GgufTensor::new("w", kind, [128, 6])];
        let mut writer = GgufWriter::create(path, &values, &tensors).unwrap();
        writer.write("n", &floats(&[1.0, 2.0, 3.0])).unwrap();
        writer.write("w", &data).unwrap();
        writer.finish().unwrap();
        let file = GgufFile::open(path).unwrap();
        assert_eq!(file.values(), values);
        assert_eq!((file.read("w").unwrap(), file.tensor("w")), (data, Some(&tensors[1])));
    }

    fn floats(v: &[f32]) -> Vec<u8> {
        v.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn a_file_is_read_back_and_a_damaged_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.gguf");
        write(&path);
        let bytes = std::fs::read(&path).unwrap();
        for cut in (0..bytes.len() - 32).step_by(7) {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let message = GgufFile::open(&path).unwrap_err().to_string();
            assert!(message.contains("w.gguf"), "{message}");
        }
        // Any byte of the header may be anything: an error or a file, never a panic.
        for at in 0..bytes.len().min(400) {
            let mut changed = bytes.clone();
            changed[at] = 0xff;
            std::fs::write(&path, &changed).unwrap();
            if let Ok(file) = GgufFile::open(&path) {
                file.names().for_each(|n| drop(file.read(n)));
            }
        }
    }

    #[test]
    fn tensors_come_in_order_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.gguf");
        let tensors = [GgufTensor::new("a", GgufType::F32, [2]), GgufTensor::new("b", GgufType::F16, [2])];
        let writer = || GgufWriter::create(&path, &[], &tensors).unwrap();
        assert!(writer().write("b", &[0; 4]).is_err());
        assert!(writer().write("a", &[0; 4]).is_err());
        assert!(writer().finish().is_err());
        assert!(GgufWriter::create(&path, &[], &[GgufTensor::new("w", GgufType::Nvfp4, [96, 1])]).is_err());
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }
}
