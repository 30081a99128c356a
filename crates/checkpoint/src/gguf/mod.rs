//! GGUF, the file of llama.cpp: version 3, little-endian. A header of keys and values, then the tensors' places, then
//! their data, each at a multiple of 32 bytes.
//!
//! Block layouts (ggml-common.h), of which a row takes whole blocks:
//! - `NVFP4`: 36 bytes for 64 values, four E4M3 scales without sign, then 8 bytes for each of the four sub-blocks of 16:
//!   byte `j` has element `j` in its low nibble and `j + 8` in its high one.
//! - `Q4_0`, `Q4_1`, `Q8_0`: 32 values, an `f16` scale (and for `Q4_1` an `f16` minimum), then the codes; low nibbles are
//!   the first 16 values.
//! - `MXFP4`: 17 bytes for 32 values, the E8M0 scale, then byte `j` with elements `j` and `j + 16`.

mod blocks;
mod kind;
pub(crate) mod model;
pub mod names;
mod reader;
mod writer;

pub use blocks::{decode, encode};
pub use kind::GgufType;
pub use reader::GgufFile;
pub use writer::GgufWriter;

/// Data begins at multiples of this.
const ALIGNMENT: u64 = 32;

/// A value of the header.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// Unsigned.
    U32(u32),
    /// Unsigned, 64 bits.
    U64(u64),
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

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_formats::{QuantizedMatrix, Scheme};
    use std::path::Path;

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
