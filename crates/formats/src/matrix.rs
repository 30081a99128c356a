//! A matrix stored by a scheme.

use crate::kernel;
use crate::pack::{pack, packed_len, unpack};
use crate::scheme::{check_length, check_matrix};
use crate::{Element, FormatError, Granularity, ScaleFormat, Scheme};

/// Codes that are decoded at a time.
const PIECE: usize = 256;

/// A matrix stored by a scheme.
///
/// The value at (r, c) is `table(code) · (scale · tensor_scale)`, the product of scales rounded to `f32` first.
#[derive(Clone, PartialEq, Debug)]
pub struct QuantizedMatrix {
    /// Name of the tensor, for messages.
    pub name: String,
    /// How it is stored.
    pub scheme: Scheme,
    /// Rows: output channels of a weight.
    pub rows: usize,
    /// Columns: inputs of a weight.
    pub cols: usize,
    /// Packed codes, [`row_bytes`](Self::row_bytes) a row.
    pub codes: Vec<u8>,
    /// 1, `rows`, or `rows × (cols / group)` scales, row by row, each a value of the scale format.
    pub scales: Vec<f32>,
    /// A multiplier of all scales; 1 unless the scale format is E4M3.
    pub tensor_scale: f32,
}

impl QuantizedMatrix {
    /// Quantizes `x [rows, cols]` with MinMax scales, see [`Scheme::max_scales`].
    ///
    /// # Errors
    /// [`FormatError`] for shapes, values that are not finite, and schemes with shifts or dynamic scales.
    pub fn quantize_max(
        name: &str,
        x: &[f32],
        rows: usize,
        cols: usize,
        scheme: Scheme,
    ) -> Result<Self, FormatError> {
        let (scales, tensor_scale) = scheme.max_scales(name, x, rows, cols)?;
        Self::quantize_with_scales(name, x, rows, cols, scheme, scales, tensor_scale)
    }

    /// Quantizes `x [rows, cols]` with the given scales, [`Scheme::scale_count`] of them, and a tensor scale that is 1
    /// unless the scale format is E4M3.
    ///
    /// # Errors
    /// [`FormatError`] for shapes, values that are not finite, scales that the format does not hold, and schemes with
    /// shifts or dynamic scales.
    pub fn quantize_with_scales(
        name: &str,
        x: &[f32],
        rows: usize,
        cols: usize,
        scheme: Scheme,
        scales: Vec<f32>,
        tensor_scale: f32,
    ) -> Result<Self, FormatError> {
        check_matrix(name, x, rows, cols)?;
        let row_bytes = packed_len(scheme.element.bits(), cols);
        let codes = vec![0; rows * row_bytes];
        let mut matrix = Self::from_parts(name, scheme, rows, cols, codes, scales, tensor_scale)?;

        let mut codes = vec![0; cols];
        let mut row = RowScales::new(&matrix);
        for r in 0..rows {
            let x = &x[r * cols..][..cols];
            match row.at(&matrix, r) {
                Shared::Row(scale) => kernel::encode(scheme.element, scale, x, &mut codes),
                Shared::Columns { inverse, .. } => {
                    kernel::encode_columns(scheme.element, inverse, x, &mut codes)
                }
            }
            pack(scheme.element.bits(), &codes, &mut matrix.codes[r * row_bytes..][..row_bytes]);
        }
        Ok(matrix)
    }

    /// A matrix of codes and scales made elsewhere, such as read from a file.
    ///
    /// # Errors
    /// [`FormatError`] if their lengths do not fit the shape, a scale is not one of its format, or the scheme has
    /// shifts or dynamic scales.
    pub fn from_parts(
        name: &str,
        scheme: Scheme,
        rows: usize,
        cols: usize,
        codes: Vec<u8>,
        scales: Vec<f32>,
        tensor_scale: f32,
    ) -> Result<Self, FormatError> {
        if scheme.shifts || scheme.dynamic || !scheme.element.is_signed() {
            return Err(FormatError::Unsupported {
                operation: "storing a matrix",
                scheme: scheme.to_string(),
                hint: "shifts, dynamic scales and elements without a sign are for activations, which are not stored",
            });
        }
        scheme.check_shape(name, rows, cols)?;
        check_length(
            name,
            "code bytes",
            codes.len(),
            rows.saturating_mul(packed_len(scheme.element.bits(), cols)),
        )?;
        check_scales(name, scheme.scale, &scales, scheme.scale_count(rows, cols))?;
        if scheme.element == Element::E4M3Fn
            && let Some(index) = codes.iter().position(|code| code & 0x7f == 0x7f)
        {
            return Err(FormatError::NonFinite { tensor: name.to_owned(), index, value: f32::NAN });
        }
        let unused = scheme.scale != ScaleFormat::E4M3 && tensor_scale != 1.0;
        let mut products = scales.iter().map(|scale| scale * tensor_scale);
        if unused || !products.all(|product| product.is_normal() && product > 0.0) {
            let format = if unused { "a tensor scale of 1" } else { "f32, times each block scale," };
            return Err(FormatError::Scale {
                tensor: name.to_owned(),
                index: 0,
                value: tensor_scale,
                format,
            });
        }
        Ok(Self { name: name.to_owned(), scheme, rows, cols, codes, scales, tensor_scale })
    }

    /// Bytes of codes in one row.
    pub fn row_bytes(&self) -> usize {
        packed_len(self.scheme.element.bits(), self.cols)
    }

    /// Writes the values of row `r` to `out`.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not `cols` long.
    pub fn dequantize_row(&self, r: usize, out: &mut [f32]) {
        let mut codes = vec![0; self.cols];
        self.decode_row(r, &mut codes, &mut RowScales::new(self), out);
    }

    /// Writes `out.len()` values of row `r`, from column `from`: a piece that starts on a byte, as all multiples of 8 do.
    ///
    /// # Panics
    /// If there are no such values, or the piece does not start on a byte.
    pub fn dequantize_piece(&self, r: usize, from: usize, out: &mut [f32]) {
        let (element, bytes) = (self.scheme.element, self.row_bytes());
        let skipped = from * element.bits() as usize;
        assert!(skipped.is_multiple_of(8) && from + out.len() <= self.cols);
        let (mut codes, mut scales) = ([0u8; PIECE], [0f32; PIECE]);
        let (mut at, mut done) = (r * bytes + skipped / 8, 0);
        while done < out.len() {
            let n = (out.len() - done).min(codes.len());
            let packed = packed_len(element.bits(), n);
            unpack(element.bits(), &self.codes[at..at + packed], n, &mut codes[..n]);
            let (codes, out) = (&codes[..n], &mut out[done..done + n]);
            match self.scheme.granularity {
                Granularity::Tensor => {
                    kernel::decode(element, self.scales[0] * self.tensor_scale, codes, out)
                }
                Granularity::Channel => {
                    kernel::decode(element, self.scales[r] * self.tensor_scale, codes, out)
                }
                Granularity::Group(g) => {
                    let mut column = 0;
                    while column < n {
                        // Columns up to the next change of scale.
                        let absolute = from + done + column;
                        let until = (column + g - absolute % g).min(n);
                        let scale = self.scales[r * (self.cols / g) + absolute / g];
                        scales[column..until].fill(scale * self.tensor_scale);
                        column = until;
                    }
                    kernel::decode_columns(element, &scales[..n], codes, out);
                }
            }
            done += n;
            at += n * element.bits() as usize / 8;
        }
    }

    /// All values, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        let mut codes = vec![0; self.cols];
        let mut row = RowScales::new(self);
        for r in 0..self.rows {
            self.decode_row(r, &mut codes, &mut row, &mut out[r * self.cols..][..self.cols]);
        }
        out
    }

    fn decode_row(&self, r: usize, codes: &mut [u8], row: &mut RowScales, out: &mut [f32]) {
        let element = self.scheme.element;
        let bytes = self.row_bytes();
        unpack(element.bits(), &self.codes[r * bytes..][..bytes], self.cols, codes);
        match row.at(self, r) {
            Shared::Row(scale) => kernel::decode(element, scale, codes, out),
            Shared::Columns { scales, .. } => kernel::decode_columns(element, scales, codes, out),
        }
    }
}

/// The scale of a row, or of each of its columns.
enum Shared<'a> {
    Row(f32),
    Columns { scales: &'a [f32], inverse: &'a [f32] },
}

/// Room to spread group scales over columns: one kernel call a row is much faster than one a group.
struct RowScales {
    scales: Vec<f32>,
    inverse: Vec<f32>,
}

impl RowScales {
    fn new(matrix: &QuantizedMatrix) -> Self {
        let grouped = matches!(matrix.scheme.granularity, Granularity::Group(_));
        let room = if grouped { matrix.cols } else { 0 };
        Self { scales: vec![0.0; room], inverse: vec![0.0; room] }
    }

    fn at(&mut self, matrix: &QuantizedMatrix, r: usize) -> Shared<'_> {
        let group = match matrix.scheme.granularity {
            Granularity::Tensor => return Shared::Row(matrix.scales[0] * matrix.tensor_scale),
            Granularity::Channel => return Shared::Row(matrix.scales[r] * matrix.tensor_scale),
            Granularity::Group(group) => group,
        };
        let groups = matrix.cols / group;
        let columns = self.scales.chunks_exact_mut(group).zip(self.inverse.chunks_exact_mut(group));
        for ((scales, inverse), scale) in columns.zip(&matrix.scales[r * groups..][..groups]) {
            let scale = scale * matrix.tensor_scale;
            scales.fill(scale);
            inverse.fill(1.0 / scale);
        }
        Shared::Columns { scales: &self.scales, inverse: &self.inverse }
    }
}

fn check_scales(
    tensor: &str,
    format: ScaleFormat,
    scales: &[f32],
    expected: usize,
) -> Result<(), FormatError> {
    check_length(tensor, "scales", scales.len(), expected)?;
    match scales.iter().position(|&scale| !format.holds(scale)) {
        Some(index) => Err(FormatError::Scale {
            tensor: tensor.to_owned(),
            index,
            value: scales[index],
            format: format.name(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::tests::all;
    use crate::scheme::tests::{scheme, wave};

    #[test]
    fn a_matrix_gives_back_its_fake_quantized_values() {
        let x = wave(6 * 32);
        for element in all() {
            for granularity in [Granularity::Tensor, Granularity::Channel, Granularity::Group(8)] {
                let scheme = Scheme::new(element, granularity);
                let matrix = QuantizedMatrix::quantize_max("w", &x, 6, 32, scheme).unwrap();
                let share = 6 * 32 / matrix.scales.len();
                let mut expected = x.clone();
                for (x, &scale) in expected.chunks_mut(share).zip(&matrix.scales) {
                    kernel::fake_quantize_in_place(element, scale, x);
                }
                assert_eq!(matrix.dequantize(), expected, "{scheme}");
                let mut row = vec![0.0; 32];
                matrix.dequantize_row(3, &mut row);
                assert_eq!(row, expected[96..128], "{scheme}");
                matrix.dequantize_piece(3, 8, &mut row[..19]);
                assert_eq!(row[..19], expected[104..123], "{scheme}");
            }
        }
    }

    #[test]
    fn pieces_longer_than_the_buffer_are_read_whole() {
        let x = wave(2 * 1000);
        for text in ["e2m1/channel", "e2m3/channel", "e4m3/group40"] {
            let matrix = QuantizedMatrix::quantize_max("w", &x, 2, 1000, scheme(text)).unwrap();
            let mut piece = vec![0.0; 600];
            matrix.dequantize_piece(1, 256, &mut piece);
            assert_eq!(piece, matrix.dequantize()[1256..1856], "{text}");
        }
    }

    #[test]
    fn odd_rows_start_on_bytes_and_empty_ones_are_fine() {
        let x = wave(3 * 5);
        let matrix = QuantizedMatrix::quantize_max("w", &x, 3, 5, scheme("e2m1/channel")).unwrap();
        assert_eq!((matrix.row_bytes(), matrix.codes.len()), (3, 9));
        for (rows, cols) in [(0, 4), (4, 0), (0, 0)] {
            for text in ["e2m1/tensor", "e2m1/channel", "e2m1/group4"] {
                let matrix = QuantizedMatrix::quantize_max("w", &[], rows, cols, scheme(text)).unwrap();
                assert!(matrix.dequantize().is_empty());
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |result: Result<QuantizedMatrix, FormatError>| result.unwrap_err().to_string();
        let mut x = wave(24);
        let text = message(QuantizedMatrix::quantize_max("q_proj", &x, 2, 12, scheme("e2m1/group16")));
        assert!(text.contains("'q_proj' [2, 12]") && text.contains("16"), "{text}");
        let text = message(QuantizedMatrix::quantize_max("q_proj", &x, 2, 13, scheme("e2m1/channel")));
        assert!(text.contains("values should have 26 entries and has 24"), "{text}");
        let text = message(QuantizedMatrix::quantize_max("x", &x, 2, 12, scheme("e2m1/channel/dynamic")));
        assert!(text.contains("e2m1/channel/dynamic"), "{text}");
        for (bad, format) in [(0.0, "f32"), (f32::NAN, "f32"), (-1.0, "f32"), (3.0, "e8m0"), (449.0, "e4m3")]
        {
            let scheme = scheme(&format!("e2m1/channel/{format}"));
            let result = QuantizedMatrix::quantize_with_scales("w", &x, 2, 12, scheme, vec![1.0, bad], 1.0);
            assert!(matches!(result, Err(FormatError::Scale { index: 1, .. })), "{bad} {format}");
        }
        x[17] = f32::INFINITY;
        let text = message(QuantizedMatrix::quantize_max("q_proj", &x, 2, 12, scheme("e2m1/channel")));
        assert!(text.contains("'q_proj'") && text.contains("inf at flat index 17"), "{text}");
    }
}
