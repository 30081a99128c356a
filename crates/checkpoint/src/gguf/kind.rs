//! The number types of GGUF tensors.

use crate::Dtype;
use half::f16;
use std::fmt;

/// The tensor types that we read. `Q4_0` and `Q4_1` are read alone; the others are written too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Brain float.
    BF16,
    /// 32 integers from −8 to 7 in 18 bytes, times an `f16`.
    Q4_0,
    /// 32 integers from 0 to 15 in 20 bytes, times an `f16`, plus an `f16`.
    Q4_1,
    /// 32 integers of a byte in 34 bytes, times an `f16`.
    Q8_0,
    /// 32 values in 17 bytes.
    Mxfp4,
    /// 64 values in 36 bytes; a tensor scale is a tensor of its own.
    Nvfp4,
}

impl GgufType {
    /// All of them.
    pub(super) const ALL: [Self; 8] =
        [Self::F32, Self::F16, Self::BF16, Self::Q4_0, Self::Q4_1, Self::Q8_0, Self::Mxfp4, Self::Nvfp4];

    /// ggml's name and number, the values of a block and its bytes.
    pub(super) fn layout(self) -> (&'static str, u32, u64, u64) {
        match self {
            Self::F32 => ("F32", 0, 1, 4),
            Self::F16 => ("F16", 1, 1, 2),
            Self::BF16 => ("BF16", 30, 1, 2),
            Self::Q4_0 => ("Q4_0", 2, 32, 18),
            Self::Q4_1 => ("Q4_1", 3, 32, 20),
            Self::Q8_0 => ("Q8_0", 8, 32, 34),
            Self::Mxfp4 => ("MXFP4", 39, 32, 17),
            Self::Nvfp4 => ("NVFP4", 40, 64, 36),
        }
    }

    /// Values of a block, which divide a row.
    pub fn block(self) -> usize {
        self.layout().2 as usize
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

    /// The element type of a float; `None` for blocks.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::BF16),
            _ => None,
        }
    }

    /// Bytes of a tensor with these dimensions, innermost first; `None` if blocks do not divide a row, if one is 0 (then
    /// others could be anything), or if they cannot be counted.
    pub(super) fn bytes(self, dims: &[u64]) -> Option<u64> {
        let (_, _, block, size) = self.layout();
        let row = dims.first().copied().unwrap_or(1);
        let rows = dims.iter().skip(1).try_fold(1u64, |n, &d| n.checked_mul(d))?;
        if !row.is_multiple_of(block) || dims.contains(&0) {
            return None;
        }
        (row / block).checked_mul(size)?.checked_mul(rows)
    }

    /// Writes the values of whole blocks `bytes` to `out`; `None` for NVFP4 and MXFP4, which [`decode`](super::decode)
    /// reads.
    ///
    /// # Panics
    /// If `out` has not as many values as the blocks.
    pub fn values(self, bytes: &[u8], out: &mut [f32]) -> Option<()> {
        let (_, _, block, size) = self.layout();
        assert_eq!(bytes.len() / size as usize * block as usize, out.len(), "whole blocks");
        let half = |b: &[u8], at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
        let blocks = bytes.chunks_exact(size as usize).zip(out.chunks_exact_mut(block as usize));
        match self {
            Self::F32 => blocks.for_each(|(b, o)| o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Self::F16 => blocks.for_each(|(b, o)| o[0] = half(b, 0)),
            Self::BF16 => blocks.for_each(|(b, o)| o[0] = f32::from_le_bytes([0, 0, b[0], b[1]])),
            Self::Q4_0 => blocks.for_each(|(b, o)| {
                let (scale, codes) = (half(b, 0), &b[2..]);
                nibbles(codes, o, |q| (f32::from(q) - 8.0) * scale);
            }),
            Self::Q4_1 => blocks.for_each(|(b, o)| {
                let (scale, least, codes) = (half(b, 0), half(b, 2), &b[4..]);
                nibbles(codes, o, |q| f32::from(q) * scale + least);
            }),
            Self::Q8_0 => blocks.for_each(|(b, o)| {
                let scale = half(b, 0);
                o.iter_mut().zip(&b[2..]).for_each(|(o, &q)| *o = f32::from(q as i8) * scale);
            }),
            Self::Mxfp4 | Self::Nvfp4 => return None,
        }
        Some(())
    }

    /// The blocks of `values`, a whole number of them: F32, F16 and BF16 rounded to nearest even, Q8_0 with the scale
    /// `max / 127` and halves away from zero, as ggml has it. `None` for the other types.
    ///
    /// # Panics
    /// If the last block is not whole.
    pub fn blocks(self, values: &[f32]) -> Option<Vec<u8>> {
        assert!(values.len().is_multiple_of(self.block()), "whole blocks");
        Some(match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
            Self::Q8_0 => values.chunks_exact(32).flat_map(q8_0).collect(),
            _ => return None,
        })
    }
}

fn q8_0(values: &[f32]) -> [u8; 34] {
    let scale = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut block = [0; 34];
    block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    block[2..].iter_mut().zip(values).for_each(|(b, &v)| *b = (v * inverse).round() as i8 as u8);
    block
}

/// Low nibbles are the first half of a block, high ones the second.
fn nibbles(codes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(codes.len());
    for ((&byte, low), high) in codes.iter().zip(low).zip(high) {
        (*low, *high) = (value(byte & 15), value(byte >> 4));
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.layout().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_integers_have_ggml_s_values() {
        let mut out = [0.0; 32];
        let scale = f16::from_f32(0.5).to_le_bytes();
        let mut q4_0 = scale.to_vec();
        q4_0.extend([0xf0; 16]);
        GgufType::Q4_0.values(&q4_0, &mut out);
        assert_eq!((out[0], out[15], out[16], out[31]), (-4.0, -4.0, 3.5, 3.5));
        let mut q4_1 = scale.to_vec();
        q4_1.extend(f16::from_f32(-1.0).to_le_bytes());
        q4_1.extend([0x21; 16]);
        GgufType::Q4_1.values(&q4_1, &mut out);
        assert_eq!((out[0], out[31]), (-0.5, 0.0));
    }

    #[test]
    fn impossible_shapes_have_no_bytes() {
        assert_eq!(GgufType::Mxfp4.bytes(&[64, 3]), Some(6 * 17));
        for dims in [&[48, 3][..], &[0, 1 << 60], &[64, 0], &[64, 1 << 60, 1 << 60]] {
            assert_eq!(GgufType::Mxfp4.bytes(dims), None);
        }
    }

    #[test]
    fn q8_0_is_within_half_a_step() {
        let values: Vec<f32> =
            (0..64).map(|i| (i as f32 * 1.7).sin() * if i < 32 { 3.0 } else { 1e-3 }).collect();
        let blocks = GgufType::Q8_0.blocks(&values).unwrap();
        let mut back = vec![0.0; 64];
        GgufType::Q8_0.values(&blocks, &mut back);
        for (v, b) in values.chunks(32).zip(back.chunks(32)) {
            let step = v.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
            assert!(v.iter().zip(b).all(|(v, b)| (v - b).abs() <= 0.57 * step));
        }
        let zeros = GgufType::Q8_0.blocks(&[0.0; 32]).unwrap();
        assert_eq!(zeros, [0; 34]);
    }

    #[test]
    fn floats_are_rounded_to_nearest_even() {
        let values = [1.0, 1.0 + f32::EPSILON, -0.1, 65504.0];
        for kind in [GgufType::F32, GgufType::F16, GgufType::BF16] {
            let mut back = [0.0; 4];
            kind.values(&kind.blocks(&values).unwrap(), &mut back);
            let exact: Vec<f32> = match kind {
                GgufType::F16 => values.iter().map(|&v| f16::from_f32(v).to_f32()).collect(),
                GgufType::BF16 => values.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect(),
                _ => values.to_vec(),
            };
            assert_eq!(back.as_slice(), exact);
        }
    }
}
