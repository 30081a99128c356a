//! A tensor in memory, in the floating-point type that it is stored in.

use crate::dtype::Dtype;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use std::ops::Range;

/// The values of a tensor, row after row. Keeps 16-bit types, so that a block costs its stored bytes and not
/// twice that. All values read from a file are finite.
#[derive(Debug, Clone, PartialEq)]
pub enum RawTensor {
    /// Single precision.
    F32(Vec<f32>),
    /// Half precision.
    F16(Vec<f16>),
    /// Brain float.
    BF16(Vec<bf16>),
}

impl RawTensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            RawTensor::F32(values) => values.len(),
            RawTensor::F16(values) => values.len(),
            RawTensor::BF16(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        match self {
            RawTensor::F32(_) => Dtype::F32,
            RawTensor::F16(_) => Dtype::F16,
            RawTensor::BF16(_) => Dtype::BF16,
        }
    }

    /// Bytes the elements take.
    pub fn byte_len(&self) -> usize {
        self.len() * self.dtype().bits() / 8
    }

    /// The values as `f32`, which holds each of them exactly. Takes no copy where they are `f32` already.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            RawTensor::F32(values) => values,
            RawTensor::F16(values) => values.to_f32_vec(),
            RawTensor::BF16(values) => values.to_f32_vec(),
        }
    }

    /// The values as a file stores them: little-endian.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            RawTensor::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            RawTensor::F16(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            RawTensor::BF16(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// A stretch of the values.
    ///
    /// # Panics
    /// If there are not as many.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        match self {
            RawTensor::F32(values) => RawTensor::F32(values[range].to_vec()),
            RawTensor::F16(values) => RawTensor::F16(values[range].to_vec()),
            RawTensor::BF16(values) => RawTensor::BF16(values[range].to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_16_bit_value_becomes_the_same_f32() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|v| v.is_finite()).collect();
        let wide = RawTensor::F16(halves.clone()).into_f32();
        assert!(halves.iter().zip(&wide).all(|(h, w)| f16::from_f32(*w).to_bits() == h.to_bits()));
        assert_eq!(wide[1], 2f32.powi(-24), "the smallest subnormal");

        let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|v| v.is_finite()).collect();
        let wide = RawTensor::BF16(brains.clone()).into_f32();
        assert!(brains.iter().zip(&wide).all(|(b, w)| u32::from(b.to_bits()) << 16 == w.to_bits()));
    }

    #[test]
    fn sixteen_bits_stay_sixteen_bits() {
        let tensor = RawTensor::BF16(vec![bf16::ONE; 10]);
        assert_eq!((tensor.len(), tensor.byte_len(), tensor.dtype()), (10, 20, Dtype::BF16));
        assert!(!tensor.is_empty());
    }
}
