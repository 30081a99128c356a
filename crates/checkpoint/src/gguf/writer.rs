//! Writing a GGUF file.

use super::{ALIGNMENT, GgufTensor, GgufValue};
use crate::error::WriteError;
use crate::{AtomicFile, Dtype, require_space};
use std::path::{Path, PathBuf};

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
            head.extend(tensor.kind.layout().1.to_le_bytes());
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
        GgufValue::U64(v) => {
            head(10, None);
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
