//! NVFP4 and MXFP4 weights as the blocks of a GGUF file, and back.

use super::GgufType;
use crate::error::CheckpointError;
use halfbyte_formats::{QuantizedMatrix, ScaleFormat, Scheme};

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
