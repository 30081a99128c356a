//! The element types of safetensors.

use std::fmt;

/// Type of a stored element. Ordered by increasing alignment, exactly as the official library orders them:
/// our writer sorts by it, and so writes the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// Truth value, one byte each.
    Bool,
    /// 4-bit float E2M1, two a byte.
    F4,
    /// 6-bit float E2M3.
    F6E2M3,
    /// 6-bit float E3M2.
    F6E3M2,
    /// Unsigned byte; packed 4-bit codes are stored as these.
    U8,
    /// Signed byte.
    I8,
    /// 8-bit float E5M2.
    F8E5M2,
    /// 8-bit float E4M3 (without infinities).
    F8E4M3,
    /// 8-bit power of two E8M0, the scale of MX formats.
    F8E8M0,
    /// 8-bit float E4M3, FNUZ variant.
    F8E4M3Fnuz,
    /// 8-bit float E5M2, FNUZ variant.
    F8E5M2Fnuz,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE half precision.
    F16,
    /// Brain float: the upper half of an `f32`.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE single precision.
    F32,
    /// Complex number of two `f32`.
    C64,
    /// IEEE double precision.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
}

impl Dtype {
    /// Every type, in increasing alignment.
    pub const ALL: [Dtype; 22] = [
        Dtype::Bool,
        Dtype::F4,
        Dtype::F6E2M3,
        Dtype::F6E3M2,
        Dtype::U8,
        Dtype::I8,
        Dtype::F8E5M2,
        Dtype::F8E4M3,
        Dtype::F8E8M0,
        Dtype::F8E4M3Fnuz,
        Dtype::F8E5M2Fnuz,
        Dtype::I16,
        Dtype::U16,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I32,
        Dtype::U32,
        Dtype::F32,
        Dtype::C64,
        Dtype::F64,
        Dtype::I64,
        Dtype::U64,
    ];

    /// The name in a safetensors header, such as `F8_E4M3`.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "BOOL",
            Dtype::F4 => "F4",
            Dtype::F6E2M3 => "F6_E2M3",
            Dtype::F6E3M2 => "F6_E3M2",
            Dtype::U8 => "U8",
            Dtype::I8 => "I8",
            Dtype::F8E5M2 => "F8_E5M2",
            Dtype::F8E4M3 => "F8_E4M3",
            Dtype::F8E8M0 => "F8_E8M0",
            Dtype::F8E4M3Fnuz => "F8_E4M3FNUZ",
            Dtype::F8E5M2Fnuz => "F8_E5M2FNUZ",
            Dtype::I16 => "I16",
            Dtype::U16 => "U16",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::I32 => "I32",
            Dtype::U32 => "U32",
            Dtype::F32 => "F32",
            Dtype::C64 => "C64",
            Dtype::F64 => "F64",
            Dtype::I64 => "I64",
            Dtype::U64 => "U64",
        }
    }

    /// The type with this name in a safetensors header, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bits of one element: 4 to 64.
    pub const fn bits(self) -> usize {
        match self {
            Dtype::F4 => 4,
            Dtype::F6E2M3 | Dtype::F6E3M2 => 6,
            Dtype::Bool
            | Dtype::U8
            | Dtype::I8
            | Dtype::F8E5M2
            | Dtype::F8E4M3
            | Dtype::F8E8M0
            | Dtype::F8E4M3Fnuz
            | Dtype::F8E5M2Fnuz => 8,
            Dtype::I16 | Dtype::U16 | Dtype::F16 | Dtype::BF16 => 16,
            Dtype::I32 | Dtype::U32 | Dtype::F32 => 32,
            Dtype::C64 | Dtype::F64 | Dtype::I64 | Dtype::U64 => 64,
        }
    }

    /// Bytes of one element; `None` for the types smaller than a byte.
    pub const fn size(self) -> Option<usize> {
        if self.bits() < 8 { None } else { Some(self.bits() / 8) }
    }

    /// Bytes of a whole tensor of this type; `None` where the count overflows or does not fill whole bytes.
    pub fn byte_len(self, shape: &[usize]) -> Option<u64> {
        let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))?;
        let bits = elements.checked_mul(self.bits() as u64)?;
        (bits % 8 == 0).then_some(bits / 8)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_bits_and_order_are_those_of_the_official_library() {
        let official = Dtype::ALL.map(|dtype| {
            let quoted = format!("{:?}", dtype.name());
            let official: safetensors::Dtype = serde_json::from_str(&quoted).unwrap();
            assert_eq!(official.bitsize(), dtype.bits(), "{dtype}");
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
            official
        });
        assert!(official.is_sorted());
        assert!(Dtype::ALL.is_sorted());
        assert_eq!(Dtype::from_name("f32"), None, "names are exact");
    }

    #[test]
    fn byte_lengths() {
        assert_eq!(Dtype::BF16.byte_len(&[3, 4]), Some(24));
        assert_eq!(Dtype::F32.byte_len(&[]), Some(4), "a scalar");
        assert_eq!(Dtype::F32.byte_len(&[0, 7]), Some(0));
        assert_eq!(Dtype::F4.byte_len(&[6]), Some(3));
        assert_eq!(Dtype::F4.byte_len(&[5]), None, "half a byte left over");
        assert_eq!(Dtype::U8.byte_len(&[usize::MAX, 2]), None, "overflow");
        assert_eq!((Dtype::F4.size(), Dtype::F16.size()), (None, Some(2)));
    }
}
