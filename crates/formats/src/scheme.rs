//! How the numbers of a matrix are stored: element, granularity, scale format.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::kernel::{self, Grid};
use crate::{Element, FormatError, block};

/// How many values share a scale. Written `tensor`, `channel`, `group16`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Granularity {
    /// One scale for the whole matrix.
    Tensor,
    /// One scale a row: an output channel of a weight, a token of an activation.
    Channel,
    /// One scale for so many neighbours within a row; it divides the columns.
    Group(usize),
}

/// How a scale is stored. Written `f32`, `e8m0`, `e4m3`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum ScaleFormat {
    /// Any positive number; the same as a real-valued exponent bias.
    #[default]
    F32,
    /// A power of two in one byte (OCP MX), 2^−126 … 2^127.
    E8M0,
    /// A `float8_e4m3fn` of at most 448, times one `f32` scale of the tensor (NVFP4).
    E4M3,
}

/// How the numbers of a matrix are stored.
///
/// As text `e2m1/channel`, with `/e8m0` or `/e4m3` for other scales than `f32`, then `/dynamic` and `/shifts`. It is
/// serialized as a map of its fields, and read from a map or from that text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Scheme {
    /// The number type of one code.
    pub element: Element,
    /// How many values share a scale.
    pub granularity: Granularity,
    /// How a scale is stored.
    pub scale: ScaleFormat,
    /// Activations only: scales are taken from the values at run time, rather than from calibration.
    pub dynamic: bool,
    /// Activations only: every column has an integer shift s, and its scale is the shared one times 2^−s (LLM-FP4,
    /// pre-shifted exponent bias).
    pub shifts: bool,
}

impl Scheme {
    /// NVIDIA's 4-bit format: E2M1 in blocks of 16 with an E4M3 scale, and an `f32` scale of the tensor.
    pub const NVFP4: Self = Self::new(Element::E2M1, Granularity::Group(16)).with_scale(ScaleFormat::E4M3);
    /// OCP's 4-bit microscaling format: E2M1 in blocks of 32 with a power-of-two scale.
    pub const MXFP4: Self = Self::new(Element::E2M1, Granularity::Group(32)).with_scale(ScaleFormat::E8M0);

    /// A static scheme with `f32` scales and without shifts.
    pub const fn new(element: Element, granularity: Granularity) -> Self {
        Self { element, granularity, scale: ScaleFormat::F32, dynamic: false, shifts: false }
    }

    /// The same scheme with another scale format.
    pub const fn with_scale(self, scale: ScaleFormat) -> Self {
        Self { scale, ..self }
    }

    /// Checks that a `rows × cols` matrix can be stored this way.
    ///
    /// # Errors
    /// [`FormatError::Shape`] if the group does not divide the columns (or is 0), naming `tensor`.
    pub fn check_shape(&self, tensor: &str, rows: usize, cols: usize) -> Result<(), FormatError> {
        match self.granularity {
            Granularity::Group(group) if group == 0 || !cols.is_multiple_of(group) => {
                Err(FormatError::Shape { tensor: tensor.to_owned(), rows, cols, group })
            }
            _ => Ok(()),
        }
    }

    /// Scales of a `rows × cols` matrix that passes [`check_shape`](Self::check_shape).
    pub fn scale_count(&self, rows: usize, cols: usize) -> usize {
        match self.granularity {
            Granularity::Tensor => 1,
            Granularity::Channel => rows,
            Granularity::Group(group) => rows * (cols / group.max(1)),
        }
    }

    /// The MinMax scales of `x [rows, cols]`: those at which each share's largest magnitude maps to the element's
    /// largest value, rounded as the scale format asks. Returns them with the tensor scale (1 but for E4M3).
    ///
    /// F32 takes the quotient; E8M0 the OCP rule `2^(floor(log2 max) − floor(log2 max_value))`; E4M3 the tensor scale
    /// `max / (448 · max_value)` (see [`block::tensor_scale`]) and the block quotient over it, rounded to nearest even and
    /// never to 0.
    ///
    /// # Errors
    /// [`FormatError::Shape`] or [`FormatError::Length`] for shapes, naming `tensor`; [`FormatError::NonFinite`].
    pub fn max_scales(
        &self,
        tensor: &str,
        x: &[f32],
        rows: usize,
        cols: usize,
    ) -> Result<(Vec<f32>, f32), FormatError> {
        check_matrix(tensor, x, rows, cols)?;
        self.check_shape(tensor, rows, cols)?;
        let share = match self.granularity {
            Granularity::Tensor => x.len(),
            Granularity::Channel => cols,
            Granularity::Group(group) => group,
        };
        // One maximum a share; a share without values has 0, like one of zeros.
        let mut maxima: Vec<f32> = x.chunks(share.max(1)).map(kernel::max_abs).collect();
        maxima.resize(self.scale_count(rows, cols), 0.0);
        let element = self.element;
        let mut tensor_scale = 1.0;
        if self.scale == ScaleFormat::E4M3 {
            let max = kernel::max_abs(&maxima);
            if max > 0.0 {
                tensor_scale = block::tensor_scale(max / element.max_value() * Element::E2M1.max_value());
            }
        }
        let scales = maxima.iter().map(|&max| match self.scale {
            ScaleFormat::F32 => element.scale_from_max(max),
            _ if max == 0.0 => 1.0,
            ScaleFormat::E8M0 => floor_power_of_two(max) / floor_power_of_two(element.max_value()),
            ScaleFormat::E4M3 => 1.0 / tensor_scale * (max / element.max_value()),
        });
        Ok((scales.map(|scale| self.scale.round(scale)).collect(), tensor_scale))
    }
}

/// The largest `float8_e4m3fn`.
const E4M3_MAX: f32 = 448.0;
/// The smallest, 2^−9.
const E4M3_MIN: f32 = 1.0 / 512.0;

/// `2^floor(log2 x)` of a positive number; subnormals count as 2^−126.
fn floor_power_of_two(x: f32) -> f32 {
    f32::from_bits(x.to_bits() & 0x7f80_0000).max(f32::MIN_POSITIVE)
}

impl ScaleFormat {
    /// The nearest positive scale that this format stores; a stored scale is never 0.
    ///
    /// E8M0 rounds to the power of two nearest in value, ties up; E4M3 to nearest even, from 2^−9 to 448. A NaN gives
    /// some number or NaN; [`holds`](Self::holds) refuses it.
    pub fn round(self, scale: f32) -> f32 {
        match self {
            Self::F32 => scale.clamp(f32::MIN_POSITIVE, f32::MAX),
            Self::E8M0 => {
                let low = floor_power_of_two(scale.clamp(f32::MIN_POSITIVE, f32::MAX));
                // 2^127 has no power above it.
                if scale >= 1.5 * low && low < 2f32.powi(127) { 2.0 * low } else { low }
            }
            Self::E4M3 => Grid::of(Element::E4M3).ending_at(E4M3_MAX).round(scale).max(E4M3_MIN),
        }
    }

    /// The byte that stores a scale this format can represent; `None` for F32 and for all other scales.
    pub fn to_byte(self, scale: f32) -> Option<u8> {
        if !self.holds(scale) {
            return None;
        }
        match self {
            Self::F32 => None,
            // The exponent field of an f32 has the same bias.
            Self::E8M0 => Some((scale.to_bits() >> 23) as u8),
            Self::E4M3 => {
                let mut code = [0];
                kernel::encode(Element::E4M3, 1.0, &[scale], &mut code);
                Some(code[0])
            }
        }
    }

    /// The scale that a byte stores; `None` for F32, for NaN, for what is not a positive number, and for E8M0's 2^−127,
    /// whose inverse has no room in `f32`'s normal numbers.
    pub fn from_byte(self, byte: u8) -> Option<f32> {
        let scale = match self {
            Self::F32 => return None,
            Self::E8M0 => f32::from_bits(u32::from(byte) << 23),
            Self::E4M3 => Element::E4M3.value(byte),
        };
        self.holds(scale).then_some(scale)
    }

    /// Whether this format stores exactly this scale.
    pub fn holds(self, scale: f32) -> bool {
        scale.is_normal() && scale > 0.0 && self.round(scale) == scale
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::E8M0 => "e8m0",
            Self::E4M3 => "e4m3",
        }
    }
}

impl fmt::Display for ScaleFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ScaleFormat {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let known = [Self::F32, Self::E8M0, Self::E4M3];
        known.into_iter().find(|format| format.name() == text).ok_or_else(|| FormatError::Parse {
            what: "a scale format",
            text: text.to_owned(),
            expected: "f32, e8m0 or e4m3",
        })
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.pad("tensor"),
            Self::Channel => f.pad("channel"),
            Self::Group(group) => f.pad(&format!("group{group}")),
        }
    }
}

impl FromStr for Granularity {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let group = |text: &str| {
            let digits = text.strip_prefix("group").filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
            digits.parse().ok().filter(|&group| group > 0)
        };
        match text {
            "tensor" => Ok(Self::Tensor),
            "channel" => Ok(Self::Channel),
            _ => group(text).map(Self::Group).ok_or_else(|| FormatError::Parse {
                what: "a granularity",
                text: text.to_owned(),
                expected: "tensor, channel, or a group such as group16",
            }),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}/{}", self.element, self.granularity);
        if self.scale != ScaleFormat::F32 {
            text += "/";
            text += self.scale.name();
        }
        if self.dynamic {
            text += "/dynamic";
        }
        if self.shifts {
            text += "/shifts";
        }
        f.pad(&text)
    }
}

impl FromStr for Scheme {
    type Err = FormatError;

    /// Reads `e2m1/channel`, then in any order a scale format, `dynamic` and `shifts`, each at most once.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let wrong = || FormatError::Parse {
            what: "a scheme",
            text: text.to_owned(),
            expected: "an element and a granularity, such as e2m1/channel or e2m1/group16/e4m3/dynamic",
        };
        let mut parts = text.split('/');
        let (Some(element), Some(granularity)) = (parts.next(), parts.next()) else { return Err(wrong()) };
        let mut scheme = Self::new(element.parse()?, granularity.parse()?);
        let mut scale = None;
        for part in parts {
            match part {
                "dynamic" if !scheme.dynamic => scheme.dynamic = true,
                "shifts" if !scheme.shifts => scheme.shifts = true,
                _ if scale.is_none() => scale = Some(part.parse().map_err(|_| wrong())?),
                _ => return Err(wrong()),
            }
        }
        scheme.scale = scale.unwrap_or_default();
        Ok(scheme)
    }
}

/// Serializes as the text that `Display` writes and `FromStr` reads.
macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Granularity, ScaleFormat);

impl<'de> Deserialize<'de> for Scheme {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            element: Element,
            granularity: Granularity,
            #[serde(default)]
            scale: ScaleFormat,
            #[serde(default)]
            dynamic: bool,
            #[serde(default)]
            shifts: bool,
        }

        struct TextOrMap;
        impl<'de> de::Visitor<'de> for TextOrMap {
            type Value = Scheme;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a scheme, as text such as \"e2m1/channel\" or as a map of its fields")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scheme, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Scheme, A::Error> {
                let f = Fields::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let Fields { element, granularity, scale, dynamic, shifts } = f;
                Ok(Scheme { element, granularity, scale, dynamic, shifts })
            }
        }

        deserializer.deserialize_any(TextOrMap)
    }
}

/// The scale of each column, `scale · 2^(−shift)`, and its inverse, as the column kernels take them.
///
/// Powers of two leave both exact; results are kept normal.
pub fn shifted_scales(scale: f32, shifts: &[u8]) -> (Vec<f32>, Vec<f32>) {
    let shifted = shifts.iter().map(|&shift| (scale * (-f32::from(shift)).exp2()).max(f32::MIN_POSITIVE));
    shifted.map(|scale| (scale, 1.0 / scale)).unzip()
}

pub(crate) fn check_length(
    tensor: &str,
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), FormatError> {
    if found == expected {
        Ok(())
    } else {
        Err(FormatError::Length { tensor: tensor.to_owned(), what, expected, found })
    }
}

pub(crate) fn check_matrix(tensor: &str, x: &[f32], rows: usize, cols: usize) -> Result<(), FormatError> {
    check_length(tensor, "values", x.len(), rows.saturating_mul(cols))?;
    kernel::check_finite(x).map_err(|index| FormatError::NonFinite {
        tensor: tensor.to_owned(),
        index,
        value: x[index],
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::QuantizedMatrix;

    pub(crate) fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.7).sin() * (1.0 + (i % 13) as f32)).collect()
    }

    pub(crate) fn scheme(text: &str) -> Scheme {
        text.parse().unwrap()
    }

    #[test]
    fn a_scheme_is_written_and_read_as_text() {
        for text in ["e2m1/channel", "int4/group128", "e2m1/group16/e4m3/dynamic", "e2m1/tensor/shifts"] {
            assert_eq!(scheme(text).to_string(), text);
        }
        assert_eq!(scheme("e2m1/group32/e8m0").scale, ScaleFormat::E8M0);
        for wrong in
            ["e2m1", "e2m1/row", "e2m1/group0", "e2m1/group", "e2m1/channel/dynamic/dynamic", "e2m1/channel/"]
        {
            assert!(wrong.parse::<Scheme>().is_err(), "{wrong}");
        }
        let message = "e2m1/row".parse::<Scheme>().unwrap_err().to_string();
        assert_eq!(message, "'row' is not a granularity; write tensor, channel, or a group such as group16");
    }

    #[test]
    fn a_scheme_in_a_file_is_a_map_or_the_same_text() {
        let nvfp4 = scheme("e2m1/group16/e4m3");
        let json = serde_json::to_string(&nvfp4).unwrap();
        assert_eq!(
            json,
            r#"{"element":"e2m1","granularity":"group16","scale":"e4m3","dynamic":false,"shifts":false}"#
        );
        let read = |json: &str| serde_json::from_str::<Scheme>(json);
        assert_eq!(read(&json).unwrap(), nvfp4);
        assert_eq!(read(r#""e2m1/group16/e4m3""#).unwrap(), nvfp4);
        let short = read(r#"{"element": "int4", "granularity": "channel"}"#).unwrap();
        assert_eq!(short, Scheme::new(Element::INT4, Granularity::Channel));
        for wrong in
            [r#"{"element": "e9m9", "granularity": "channel"}"#, r#"{"element": "e2m1", "gran": 1}"#, "7"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn e8m0_scales_follow_the_ocp_rule() {
        let mut x = [0.0; 32];
        for (max, scale) in [(6.0, 1.0), (7.9, 1.0), (8.0, 2.0), (4.0, 1.0), (3.9, 0.5), (0.0, 1.0)] {
            x[5] = -max;
            let matrix = QuantizedMatrix::quantize_max("w", &x, 1, 32, scheme("e2m1/group32/e8m0")).unwrap();
            assert_eq!(matrix.scales, [scale], "{max}");
        }
        assert_eq!(ScaleFormat::E8M0.to_byte(2.0), Some(128));
        assert_eq!(ScaleFormat::E8M0.from_byte(128), Some(2.0));
        assert_eq!(ScaleFormat::E8M0.from_byte(255), None);
        assert_eq!([0.74, 0.75, 1.49].map(|s| ScaleFormat::E8M0.round(s)), [0.5, 1.0, 1.0]);
    }

    #[test]
    fn e4m3_scales_use_their_whole_range() {
        let mut x = wave(4 * 32);
        x[40..48].fill(0.0);
        x[48] = 1e-7;
        let matrix = QuantizedMatrix::quantize_max("w", &x, 4, 32, scheme("e2m1/group16/e4m3")).unwrap();
        assert_eq!(kernel::max_abs(&matrix.scales), 448.0);
        for (x, q) in x.iter().zip(matrix.dequantize()) {
            // Half the widest gap of the table, and half a unit of the scale's last place.
            assert!((x - q).abs() <= kernel::max_abs(&matrix.scales) * matrix.tensor_scale * 1.5, "{x} {q}");
        }
        for byte in 0..=255u8 {
            match ScaleFormat::E4M3.from_byte(byte) {
                Some(scale) => assert_eq!(ScaleFormat::E4M3.to_byte(scale), Some(byte)),
                None => assert!(byte == 0 || byte >= 0x7f),
            }
        }
        assert_eq!(
            [449.0, 470.0, 1e9, 1e-9].map(|s| ScaleFormat::E4M3.round(s)),
            [448.0, 448.0, 448.0, 1.0 / 512.0]
        );
    }

    #[test]
    fn shifts_divide_a_scale_by_powers_of_two() {
        let (scales, inverse) = shifted_scales(0.3, &[0, 1, 3]);
        assert_eq!(scales, [0.3, 0.15, 0.0375]);
        assert_eq!(inverse, scales.iter().map(|s| 1.0 / s).collect::<Vec<_>>()[..]);
    }
}
