//! The number type of one code.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::FormatError;
use crate::kernel::Grid;

/// The number type of one code.
///
/// Make one with the constants, [`Element::float`], [`Element::int`] or by parsing `"e2m1"`, `"int4"`: those
/// check the widths, and the methods rely on them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Element {
    /// Sign, exponent and mantissa bits, from the top of the code down; every code is a finite number.
    ///
    /// At scale 1 it is the usual table with the bias `b0 = 2^(E−1) − 1` (0 for one exponent bit), and with the
    /// codes that IEEE would give to Inf and NaN used as numbers: e2m1 is 0, .5, 1, 1.5, 2, 3, 4, 6, and e4m3
    /// ends at 480. The code "−0" decodes to −0 and is never produced.
    Float {
        /// Exponent bits, 1 or more.
        exponent: u8,
        /// Mantissa bits, 0 or more.
        mantissa: u8,
    },
    /// A symmetric integer in two's complement, levels `−(2^(n−1) − 1) ..= 2^(n−1) − 1`.
    ///
    /// The lowest code (−8 of int4) decodes to its value, and is never produced.
    Int {
        /// Bits with the sign, 2 to 8.
        bits: u8,
    },
    /// OCP's `float8_e4m3fn`, the FP8 that hardware computes with: e4m3 whose code 0x7F is NaN, so that it ends at 448.
    ///
    /// Neither NaN code, 0x7F or 0xFF, is ever produced, and a stored matrix with one is refused.
    E4M3Fn,
    /// [`Float`](Self::Float) without a sign bit, for what is never negative: all codes are its table from zero up, and
    /// negative numbers become 0.
    UnsignedFloat {
        /// Exponent bits, 1 or more.
        exponent: u8,
        /// Mantissa bits, 0 or more.
        mantissa: u8,
    },
    /// An integer `0 ..= 2^n − 1`; negative numbers become 0.
    UnsignedInt {
        /// Bits, 2 to 8.
        bits: u8,
    },
}

impl Element {
    /// 0, .5, 1, 1.5, 2, 3, 4, 6: the element of NVFP4, MXFP4 and most of FPQ.
    pub const E2M1: Self = Self::Float { exponent: 2, mantissa: 1 };
    /// 0, .25, .5, 1, 2, 4, 8, 16: powers of two.
    pub const E3M0: Self = Self::Float { exponent: 3, mantissa: 0 };
    /// 0, .5, 1, … 3.5: a uniform grid, the same as int4 with half the step.
    pub const E1M2: Self = Self::Float { exponent: 1, mantissa: 2 };
    /// Six bits, up to 7.5 (OCP MXFP6).
    pub const E2M3: Self = Self::Float { exponent: 2, mantissa: 3 };
    /// Six bits, up to 28 (OCP MXFP6).
    pub const E3M2: Self = Self::Float { exponent: 3, mantissa: 2 };
    /// Eight bits, up to 480: without the NaN of `float8_e4m3fn`, which ends at 448.
    pub const E4M3: Self = Self::Float { exponent: 4, mantissa: 3 };
    /// Eight bits, up to 114688: without the Inf and NaN of `float8_e5m2`, which ends at 57344.
    pub const E5M2: Self = Self::Float { exponent: 5, mantissa: 2 };
    /// −7 … 7.
    pub const INT4: Self = Self::Int { bits: 4 };
    /// −127 … 127.
    pub const INT8: Self = Self::Int { bits: 8 };

    /// A float element of `1 + exponent + mantissa` bits.
    ///
    /// # Errors
    /// [`FormatError::Float`] without exponent bits, or with more than 8 bits in all.
    pub fn float(exponent: u8, mantissa: u8) -> Result<Self, FormatError> {
        if (1..=7).contains(&exponent) && mantissa <= 7 - exponent {
            Ok(Self::Float { exponent, mantissa })
        } else {
            Err(FormatError::Float { exponent, mantissa })
        }
    }

    /// An integer element of `bits` bits.
    ///
    /// # Errors
    /// [`FormatError::Int`] for widths other than 2 to 8.
    pub fn int(bits: u8) -> Result<Self, FormatError> {
        if (2..=8).contains(&bits) { Ok(Self::Int { bits }) } else { Err(FormatError::Int { bits }) }
    }

    /// A float element without a sign, of `exponent + mantissa` bits.
    ///
    /// # Errors
    /// [`FormatError::Float`] without exponent bits, with more than 7 of them, or with more than 8 bits in all.
    pub fn unsigned_float(exponent: u8, mantissa: u8) -> Result<Self, FormatError> {
        if (1..=7).contains(&exponent) && mantissa <= 8 - exponent {
            Ok(Self::UnsignedFloat { exponent, mantissa })
        } else {
            Err(FormatError::Float { exponent, mantissa })
        }
    }

    /// An integer element of `bits` bits without a sign.
    ///
    /// # Errors
    /// [`FormatError::Int`] for widths other than 2 to 8.
    pub fn unsigned_int(bits: u8) -> Result<Self, FormatError> {
        if (2..=8).contains(&bits) { Ok(Self::UnsignedInt { bits }) } else { Err(FormatError::Int { bits }) }
    }

    /// Bits of one code, with the sign if it has one.
    pub fn bits(self) -> u32 {
        match self {
            Self::Float { exponent, mantissa } => 1 + u32::from(exponent) + u32::from(mantissa),
            Self::UnsignedFloat { exponent, mantissa } => u32::from(exponent) + u32::from(mantissa),
            Self::Int { bits } | Self::UnsignedInt { bits } => u32::from(bits),
            Self::E4M3Fn => 8,
        }
    }

    /// Whether it has negative values.
    pub fn is_signed(self) -> bool {
        !matches!(self, Self::UnsignedFloat { .. } | Self::UnsignedInt { .. })
    }

    /// The largest value at scale 1: `(2 − 2^−M) · 2^(2^E − 1 − b0)`, or `2^(n−1) − 1`, without a sign `2^n − 1`.
    pub fn max_value(self) -> f32 {
        match self {
            Self::Float { exponent, mantissa } | Self::UnsignedFloat { exponent, mantissa } => {
                let top = (1 << exponent) - 1 - self.canonical_bias();
                (2.0 - exp2i(-i32::from(mantissa))) * exp2i(top)
            }
            Self::Int { bits } => ((1 << (bits - 1)) - 1) as f32,
            Self::UnsignedInt { bits } => ((1 << bits) - 1) as f32,
            Self::E4M3Fn => 448.0,
        }
    }

    /// Exponent and mantissa bits; `None` for integers.
    pub fn fields(self) -> Option<(u8, u8)> {
        match self {
            Self::Float { exponent, mantissa } | Self::UnsignedFloat { exponent, mantissa } => {
                Some((exponent, mantissa))
            }
            Self::E4M3Fn => Some((4, 3)),
            Self::Int { .. } | Self::UnsignedInt { .. } => None,
        }
    }

    /// The value of `code` at scale 1. Bits above the element's width are ignored.
    pub fn value(self, code: u8) -> f32 {
        Grid::of(self).value(code)
    }

    /// The formats FPQ tries for a width, in the order of its published search: from all exponent bits to one.
    ///
    /// Eight bits start at two mantissa bits (E5M2 … E1M6). Widths outside 2 to 8 give none.
    pub fn searched(bits: u32) -> Vec<Self> {
        if !(2..=8).contains(&bits) {
            return Vec::new();
        }
        let bits = bits as u8;
        let low = if bits == 8 { 2 } else { 0 };
        (low..bits - 1).map(|m| Self::Float { exponent: bits - 1 - m, mantissa: m }).collect()
    }

    /// The same without a sign bit, for attention's probabilities: from all exponent bits to one (UE4M0 … UE1M3); eight bits
    /// start at two mantissa bits (UE6M2 … UE1M7).
    pub fn searched_unsigned(bits: u32) -> Vec<Self> {
        if !(2..=8).contains(&bits) {
            return Vec::new();
        }
        let bits = bits as u8;
        let low = if bits == 8 { 2 } else { 0 };
        (low..bits).map(|m| Self::UnsignedFloat { exponent: bits - m, mantissa: m }).collect()
    }

    /// The largest integer by which a channel's exponent bias may exceed the tensor's: `2^E − 1`; 0 for integers
    /// (LLM-FP4, pre-shifted exponent bias).
    pub fn max_shift(self) -> i32 {
        self.fields().map_or(0, |(exponent, _)| (1 << exponent) - 1)
    }

    /// The scale at which [`max_value`](Self::max_value) maps to `max_abs`: their quotient, rounded to `f32`.
    ///
    /// 1 where `max_abs` is zero (an all-zero row) or NaN. Never subnormal, so that its inverse is finite, and
    /// never so large that the largest value overflows.
    pub fn scale_from_max(self, max_abs: f32) -> f32 {
        if max_abs.is_nan() || max_abs <= 0.0 {
            return 1.0;
        }
        let scale = (max_abs.min(f32::MAX) / self.max_value()).max(f32::MIN_POSITIVE);
        // Rounding the quotient up may carry the product past f32::MAX.
        if (scale * self.max_value()).is_finite() { scale } else { scale.next_down() }
    }

    /// The scale `2^(b0 − bias)` of a real-valued exponent bias; a larger bias means smaller values.
    ///
    /// Integers take `b0 = 0`. The scale is kept positive and normal.
    pub fn scale_of_bias(self, bias: f32) -> f32 {
        let scale = (f64::from(self.canonical_bias()) - f64::from(bias)).exp2();
        scale.max(f64::from(f32::MIN_POSITIVE)).min(f64::from(f32::MAX)) as f32
    }

    /// The real-valued exponent bias of a positive scale: `b0 − log2(scale)`.
    pub fn bias_of_scale(self, scale: f32) -> f32 {
        (f64::from(self.canonical_bias()) - f64::from(scale).log2()) as f32
    }

    /// The exponent bias b0 of the table at scale 1: `2^(E−1) − 1`; 0 for integers.
    pub fn canonical_bias(self) -> i32 {
        self.fields().map_or(0, |(exponent, _)| (1 << (exponent - 1)) - 1)
    }
}

/// 2^n for the exponents of normal `f32`.
fn exp2i(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float { exponent, mantissa } => f.pad(&format!("e{exponent}m{mantissa}")),
            Self::Int { bits } => f.pad(&format!("int{bits}")),
            Self::E4M3Fn => f.pad("e4m3fn"),
            Self::UnsignedFloat { exponent, mantissa } => f.pad(&format!("ue{exponent}m{mantissa}")),
            Self::UnsignedInt { bits } => f.pad(&format!("uint{bits}")),
        }
    }
}

impl FromStr for Element {
    type Err = FormatError;

    /// Reads `e2m1`, `int4`, without a sign `ue2m2`, `uint4`, and the like, in either case.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let lower = text.to_ascii_lowercase();
        if lower == "e4m3fn" {
            return Ok(Self::E4M3Fn);
        }
        // Only plain digits: u8's own parser would take a '+' too.
        let number =
            |t: &str| if t.bytes().all(|b| b.is_ascii_digit()) { t.parse::<u8>().ok() } else { None };
        let (rest, signed) = match lower.strip_prefix('u') {
            Some(rest) => (rest, false),
            None => (lower.as_str(), true),
        };
        if let Some(bits) = rest.strip_prefix("int").and_then(number) {
            return if signed { Self::int(bits) } else { Self::unsigned_int(bits) };
        }
        if let Some((e, m)) = rest.strip_prefix('e').and_then(|rest| rest.split_once('m'))
            && let (Some(exponent), Some(mantissa)) = (number(e), number(m))
        {
            return match signed {
                true => Self::float(exponent, mantissa),
                false => Self::unsigned_float(exponent, mantissa),
            };
        }
        let expected = "a float such as e2m1, or an integer such as int4";
        Err(FormatError::Parse { what: "an element", text: text.to_owned(), expected })
    }
}

impl Serialize for Element {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every element of 2 to 8 bits without a sign.
    pub(crate) fn unsigned() -> Vec<Element> {
        let floats = (1..=7).flat_map(|e| (0..=8 - e).map(move |m| Element::unsigned_float(e, m).unwrap()));
        floats.chain((2..=8).map(|n| Element::unsigned_int(n).unwrap())).collect()
    }

    /// Every element of 2 to 8 bits with a sign.
    pub(crate) fn all() -> Vec<Element> {
        let floats = (1..=7).flat_map(|e| (0..=7 - e).map(move |m| Element::float(e, m).unwrap()));
        floats.chain((2..=8).map(|n| Element::int(n).unwrap())).collect()
    }

    fn table(element: Element) -> Vec<f32> {
        (0..1u8 << (element.bits() - 1)).map(|code| element.value(code)).collect()
    }

    #[test]
    fn the_tables_at_scale_one_are_the_usual_ones() {
        assert_eq!(table(Element::E2M1), [0., 0.5, 1., 1.5, 2., 3., 4., 6.]);
        assert_eq!(table(Element::E3M0), [0., 0.25, 0.5, 1., 2., 4., 8., 16.]);
        assert_eq!(table(Element::E1M2), [0., 0.5, 1., 1.5, 2., 2.5, 3., 3.5]);
        assert_eq!(table(Element::INT4)[..8], [0., 1., 2., 3., 4., 5., 6., 7.]);
        assert_eq!(Element::INT4.value(0b1111), -1.0);
        assert_eq!(Element::INT4.value(0b1000), -8.0);
        assert_eq!(Element::E4M3.max_value(), 480.0);
        assert_eq!(Element::float(7, 0).unwrap().max_value(), 2f32.powi(64));
    }

    #[test]
    fn without_a_sign_all_codes_are_numbers_from_zero_up() {
        let values = |text: &str| {
            let element: Element = text.parse().unwrap();
            (0..1u16 << element.bits()).map(|code| element.value(code as u8)).collect::<Vec<_>>()
        };
        let ue2m2 = [0., 0.25, 0.5, 0.75, 1., 1.25, 1.5, 1.75, 2., 2.5, 3., 3.5, 4., 5., 6., 7.];
        assert_eq!(values("ue2m2"), ue2m2);
        assert_eq!(values("uint4"), (0..16u8).map(f32::from).collect::<Vec<_>>());
        for element in unsigned() {
            let values = values(&element.to_string());
            assert!(values[0] == 0.0 && values.windows(2).all(|w| w[0] < w[1]), "{element}");
            assert_eq!(values.last(), Some(&element.max_value()), "{element}");
            assert!(!element.is_signed());
        }
        assert!(all().into_iter().all(Element::is_signed));
    }

    #[test]
    fn codes_rise_with_their_values_and_mirror_at_zero() {
        for element in all() {
            let positive = table(element);
            assert!(positive.windows(2).all(|w| w[0] < w[1]), "{element}");
            assert_eq!(positive.last(), Some(&element.max_value()), "{element}");
            for (code, &value) in positive.iter().enumerate().skip(1) {
                let mirror = match element.fields() {
                    Some(_) => code as u8 | 1 << (element.bits() - 1),
                    None => (code as u8).wrapping_neg(),
                };
                assert_eq!(element.value(mirror), -value, "{element} {code}");
            }
        }
    }

    #[test]
    fn fp8_ends_before_its_nan() {
        let (fp8, whole) = (Element::E4M3Fn, Element::E4M3);
        assert_eq!((fp8.max_value(), fp8.value(0x7e), fp8.value(1)), (448.0, 448.0, 2f32.powi(-9)));
        assert!((0..0x7f).all(|code| fp8.value(code) == whole.value(code)));
        assert_eq!((fp8.bits(), fp8.fields(), fp8.canonical_bias()), (8, whole.fields(), 7));
        assert_eq!("e4m3fn".parse(), Ok(fp8));
        assert_eq!(fp8.to_string(), "e4m3fn");
    }

    #[test]
    fn names_are_read_back() {
        for element in all().into_iter().chain(unsigned()) {
            assert_eq!(element.to_string().parse(), Ok(element));
        }
        assert_eq!("E2M1".parse(), Ok(Element::E2M1));
        for wrong in [
            "", "e", "e2", "e2m", "m1", "e0m3", "e4m4", "e200m200", "e300m1", "int", "int1", "int9", "e+2m1",
            "u", "ue0m4", "ue5m4", "ue8m0", "uint9", "ue4m3fn",
        ] {
            assert!(wrong.parse::<Element>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_search_tries_the_published_formats() {
        let names = |bits| Element::searched(bits).iter().map(Element::to_string).collect::<Vec<_>>();
        assert_eq!(names(4), ["e3m0", "e2m1", "e1m2"]);
        assert_eq!(names(6), ["e5m0", "e4m1", "e3m2", "e2m3", "e1m4"]);
        assert_eq!(names(8), ["e5m2", "e4m3", "e3m4", "e2m5", "e1m6"]);
        assert!(names(1).is_empty() && names(9).is_empty());
        let names =
            |bits| Element::searched_unsigned(bits).iter().map(Element::to_string).collect::<Vec<_>>();
        assert_eq!(names(4), ["ue4m0", "ue3m1", "ue2m2", "ue1m3"]);
        assert_eq!(names(8), ["ue6m2", "ue5m3", "ue4m4", "ue3m5", "ue2m6", "ue1m7"]);
        assert!(names(1).is_empty() && names(9).is_empty());
    }

    #[test]
    fn a_bias_is_a_scale() {
        assert_eq!(Element::E2M1.scale_of_bias(1.0), 1.0);
        assert_eq!(Element::E2M1.scale_of_bias(3.0), 0.25);
        assert_eq!(Element::E3M0.bias_of_scale(2.0), 2.0);
        assert_eq!(Element::INT4.scale_of_bias(1.0), 0.5);
        for element in all() {
            for bias in [-20.0, -0.3, 0.0, 1.7, 33.0] {
                let back = element.bias_of_scale(element.scale_of_bias(bias));
                assert!((back - bias).abs() < 4e-6, "{element} {bias} {back}");
            }
            for extreme in [f32::NAN, 1e30, -1e30] {
                assert!(element.scale_of_bias(extreme).is_normal());
            }
        }
    }

    #[test]
    fn the_bias_of_a_maximum_is_the_published_formula() {
        for element in all() {
            let Element::Float { exponent, mantissa } = element else { continue };
            for max_abs in [0.013f32, 1.0, 97.3] {
                let last = 2.0 - (-f64::from(mantissa)).exp2();
                let published = f64::from((1 << exponent) - 1) - f64::from(max_abs).log2() + last.log2();
                let bias = f64::from(element.bias_of_scale(element.scale_from_max(max_abs)));
                assert!((bias - published).abs() < 1e-5, "{element} {max_abs}: {bias}, {published}");
            }
        }
    }

    #[test]
    fn the_scale_of_a_maximum_maps_it_to_the_last_code() {
        assert_eq!(Element::E2M1.scale_from_max(6.0), 1.0);
        assert_eq!(Element::E2M1.scale_from_max(0.0), 1.0);
        for element in all() {
            for max_abs in [f32::from_bits(1), 1e-30, 0.3, 7.1, 1e30, f32::MAX, f32::INFINITY] {
                let scale = element.scale_from_max(max_abs);
                assert!(
                    scale.is_normal() && (scale * element.max_value()).is_finite(),
                    "{element} {max_abs}"
                );
                if (1e-15..1e30).contains(&max_abs) {
                    let ratio = scale * element.max_value() / max_abs;
                    assert!((ratio - 1.0).abs() < 1e-6, "{element} {max_abs}");
                }
            }
        }
    }
}
