//! What a product can read: anything that yields pieces of f32 rows.
//!
//! Weights stay in the form in which they are stored (bf16, packed 4-bit codes) and become f32 only inside the small
//! packed panels of a product, so that a layer costs its stored bytes and no more.

use crate::microkernel::{SIDE, transpose};
use bytemuck::cast_slice_mut;
use multiversion::multiversion;

/// A matrix `[rows, depth]` whose rows are multiplied along `depth`.
pub trait Operand: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Length of a row: the dimension that a product sums over.
    fn depth(&self) -> usize;
    /// Writes `out.len()` values of row `row`, from column `from`, as f32.
    fn read(&self, row: usize, from: usize, out: &mut [f32]);

    /// Writes rows `row..row + count` and columns `from..from + depth` as panels of `width` rows, one after another:
    /// `out[(r - r % width) * depth + k * width + r % width]`, the last one filled up with zeros. The default reads row by row
    /// and transposes.
    fn pack(&self, row: usize, count: usize, from: usize, depth: usize, width: usize, out: &mut [f32]) {
        let read = |r: usize, k: usize, line: &mut [u32; PIECE]| {
            let n = (depth - k).min(PIECE);
            self.read(row + r, from + k, &mut cast_slice_mut(line)[..n]);
        };
        panels(read, count, depth, width, cast_slice_mut(out));
    }

    /// As [`pack`](Self::pack) rounded to bfloat16 and with the two columns of a pair exchanged; a line of zeros stands for the
    /// partner that the last column of an odd depth lacks, so that there are an even number of lines.
    fn pack_rounded(
        &self,
        row: usize,
        count: usize,
        from: usize,
        depth: usize,
        width: usize,
        out: &mut [f32],
    ) {
        let read = |r: usize, k: usize, line: &mut [u32; PIECE]| {
            let n = (depth - k).min(PIECE);
            self.read(row + r, from + k, &mut cast_slice_mut(line)[..n]);
            let used = n.next_multiple_of(SIDE);
            line[n..used].fill(0);
            exchange(&mut line[..used]);
        };
        panels(read, count, depth.next_multiple_of(2), width, cast_slice_mut(out));
    }

    /// As [`pack`](Self::pack) in bfloat16 pairs: a line has column `from + 2p` of a row in the lower half and the next one in
    /// the upper, zero past the end.
    fn pack_pairs(&self, row: usize, count: usize, from: usize, depth: usize, width: usize, out: &mut [u32]) {
        let read = |r: usize, p: usize, line: &mut [u32; PIECE]| {
            let mut values = [0.0f32; 2 * PIECE];
            let n = (depth - 2 * p).min(2 * PIECE);
            self.read(row + r, from + 2 * p, &mut values[..n]);
            pairs(&values, line);
        };
        panels(read, count, depth.div_ceil(2), width, out);
    }
}

/// Lines of a panel that are made at a time: those of one panel's rows stay in the L1 cache.
pub(crate) const PIECE: usize = 256;

/// Writes `count` rows of `depth` words as panels of `width` rows. `read` gives the words of a row from one on, as many as there
/// are.
fn panels(
    read: impl Fn(usize, usize, &mut [u32; PIECE]),
    count: usize,
    depth: usize,
    width: usize,
    out: &mut [u32],
) {
    let mut words = [[0u32; PIECE]; SIDE];
    for (first, panel) in (0..count).step_by(width).zip(out.chunks_exact_mut(depth * width)) {
        for (piece, lines) in panel.chunks_mut(PIECE * width).enumerate() {
            for side in (0..width).step_by(SIDE) {
                let rows = (width - side).min(SIDE);
                for (r, words) in words[..rows].iter_mut().enumerate() {
                    match first + side + r {
                        r if r < count => read(r, piece * PIECE, words),
                        _ => *words = [0; PIECE],
                    }
                }
                for (i, lines) in lines.chunks_mut(SIDE * width).enumerate() {
                    transpose(&words, i * SIDE, &mut lines[side..], width, rows);
                }
            }
        }
    }
}

/// Rounds to bfloat16 and exchanges the two of every pair.
#[multiversion(targets("x86_64+avx512f+avx512bw", "x86_64+avx2"))]
fn exchange(line: &mut [u32]) {
    for bits in line.iter_mut() {
        *bits = bfloat16(f32::from_bits(*bits));
    }
    for pair in line.as_chunks_mut::<2>().0 {
        pair.swap(0, 1);
    }
}

/// Neighbouring values as bfloat16, the first in the lower half.
#[multiversion(targets("x86_64+avx512f+avx512bw", "x86_64+avx2"))]
fn pairs(values: &[f32; 2 * PIECE], out: &mut [u32; PIECE]) {
    for (out, v) in out.iter_mut().zip(values.as_chunks::<2>().0) {
        *out = bfloat16(v[0]) >> 16 | bfloat16(v[1]);
    }
}

/// Values rounded to bfloat16, and zeros to the end of `out`.
#[multiversion(targets("x86_64+avx512f+avx512bw", "x86_64+avx2"))]
fn round_line(values: &[f32], out: &mut [f32]) {
    let (to, past) = out.split_at_mut(values.len());
    for (to, v) in to.iter_mut().zip(values) {
        *to = f32::from_bits(bfloat16(*v));
    }
    past.fill(0.0);
}

/// Bits of the bfloat16 nearest to `x` (ties to even), in the upper half. What is below 2⁻⁵⁶ becomes zero: products of two
/// of the others are multiples of 2⁻¹²⁶, so that no sum of them is ever subnormal, which instruction sets treat differently.
#[inline(always)]
pub(crate) fn bfloat16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    // The exponent field of 2^-56.
    if rounded & 0x7f80_0000 < (127 - 56) << 23 { 0 } else { rounded }
}

/// A storage type that widens exactly to f32.
pub trait Stored: Copy + Sync {
    /// The same value as f32.
    fn widen(self) -> f32;
}
impl Stored for f32 {
    fn widen(self) -> f32 {
        self
    }
}
impl Stored for half::bf16 {
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}
impl Stored for half::f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// Row-major storage read along its rows: a weight `[out, in]`, or activations `[tokens, channels]`.
pub struct Rows<'a, T> {
    data: &'a [T],
    stride: usize,
    depth: usize,
}

impl<'a, T: Stored> Rows<'a, T> {
    /// All of `data` as rows of `depth` values.
    pub fn new(data: &'a [T], depth: usize) -> Self {
        Self { data, stride: depth, depth }
    }

    /// Rows that start every `stride` values and are `depth` long: one head of a fused projection, say.
    pub fn strided(data: &'a [T], stride: usize, depth: usize) -> Self {
        Self { data, stride, depth }
    }
}

impl<T: Stored> Operand for Rows<'_, T> {
    fn rows(&self) -> usize {
        (self.data.len() + self.stride - self.depth).checked_div(self.stride).unwrap_or(0)
    }
    fn depth(&self) -> usize {
        self.depth
    }
    fn read(&self, row: usize, from: usize, out: &mut [f32]) {
        let at = row * self.stride + from;
        for (o, v) in out.iter_mut().zip(&self.data[at..]) {
            *o = v.widen();
        }
    }
}

/// Row-major storage read along its columns: the transpose of what [`Rows`] would give, for products that sum over
/// tokens (Gram matrices) or keys (probabilities times values).
pub struct Columns<'a> {
    data: &'a [f32],
    stride: usize,
    rows: usize,
}

impl<'a> Columns<'a> {
    /// `rows` columns of a matrix whose lines are `stride` apart; the depth is the number of lines.
    pub fn new(data: &'a [f32], stride: usize, rows: usize) -> Self {
        Self { data, stride, rows }
    }
}

impl Operand for Columns<'_> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn depth(&self) -> usize {
        (self.data.len() + self.stride - self.rows).checked_div(self.stride).unwrap_or(0)
    }
    fn read(&self, row: usize, from: usize, out: &mut [f32]) {
        for (k, o) in out.iter_mut().enumerate() {
            *o = self.data[(from + k) * self.stride + row];
        }
    }
    // Line by line over all panels: a line of a panel alone is a few cache lines of a page of its own.
    fn pack(&self, row: usize, count: usize, from: usize, depth: usize, width: usize, out: &mut [f32]) {
        for k in 0..depth {
            let line = &self.data[(from + k) * self.stride + row..][..count];
            for (values, panel) in line.chunks(width).zip(out.chunks_exact_mut(depth * width)) {
                let out = &mut panel[k * width..(k + 1) * width];
                // Registers, where a call of memcpy for a line would take longer than the copy.
                let ((to, last), (from, rest)) = (out.as_chunks_mut::<16>(), values.as_chunks::<16>());
                if to.len() == from.len() && last.len() == rest.len() {
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                    last.copy_from_slice(rest);
                    continue;
                }
                out[..values.len()].copy_from_slice(values);
                out[values.len()..].fill(0.0);
            }
        }
    }
    fn pack_rounded(
        &self,
        row: usize,
        count: usize,
        from: usize,
        depth: usize,
        width: usize,
        out: &mut [f32],
    ) {
        let lines = depth.next_multiple_of(2);
        let zeros = vec![0.0; if lines > depth { count } else { 0 }];
        for k in 0..lines {
            let line = if k < depth { &self.data[(from + k) * self.stride + row..][..count] } else { &zeros };
            for (values, panel) in line.chunks(width).zip(out.chunks_exact_mut(lines * width)) {
                round_line(values, &mut panel[(k ^ 1) * width..][..width]);
            }
        }
    }
    fn pack_pairs(&self, row: usize, count: usize, from: usize, depth: usize, width: usize, out: &mut [u32]) {
        let lines = depth.div_ceil(2);
        let zeros = vec![0.0; if depth % 2 == 1 { count } else { 0 }];
        for p in 0..lines {
            let at = (from + 2 * p) * self.stride + row;
            let first = &self.data[at..][..count];
            let second = if 2 * p + 1 < depth { &self.data[at + self.stride..][..count] } else { &zeros };
            let values = first.chunks(width).zip(second.chunks(width));
            for ((first, second), panel) in values.zip(out.chunks_exact_mut(lines * width)) {
                let out = &mut panel[p * width..(p + 1) * width];
                for ((o, a), b) in out.iter_mut().zip(first).zip(second) {
                    *o = bfloat16(*a) >> 16 | bfloat16(*b);
                }
                out[first.len()..].fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor runs one of the two ways of a bfloat16 product; here both are seen on each.
    #[test]
    fn pairs_are_the_rounded_lines_two_by_two() {
        let (rows, from) = (37, 3);
        for depth in [1, 2, 7, PIECE, 2 * PIECE + 1, 3 * PIECE + 2] {
            let values: Vec<f32> = (0..rows * (from + depth))
                .map(|i| (i as f32 * 0.37).sin() * 1.7f32.powi(i as i32 % 9 - 4))
                .collect();
            let turned: Vec<f32> =
                (0..values.len()).map(|i| values[i % rows * (from + depth) + i / rows]).collect();
            let (along, across) = (Rows::new(&values, from + depth), Columns::new(&turned, rows, rows));
            for width in [4, 6, 12, 16, 32] {
                let panels = rows.div_ceil(width);
                let packed = |x: &dyn Operand| {
                    let mut rounded = vec![f32::NAN; panels * width * depth.next_multiple_of(2)];
                    let mut pairs = vec![u32::MAX; panels * width * depth.div_ceil(2)];
                    x.pack_rounded(0, rows, from, depth, width, &mut rounded);
                    x.pack_pairs(0, rows, from, depth, width, &mut pairs);
                    (rounded, pairs)
                };
                let (rounded, pairs) = packed(&along);
                assert_eq!((&rounded, &pairs), (&packed(&across).0, &packed(&across).1), "{depth} {width}");
                // The second of a pair comes first in the rounded lines.
                for (line, both) in pairs.chunks(width).zip(rounded.chunks(2 * width)) {
                    let (second, first) = both.split_at(width);
                    for ((pair, first), second) in line.iter().zip(first).zip(second) {
                        assert_eq!(*pair, first.to_bits() >> 16 | second.to_bits(), "{depth} {width}");
                    }
                }
                let at = |row: usize, column: usize| {
                    let line = row / width * depth.next_multiple_of(2) + (column ^ 1);
                    rounded[line * width + row % width]
                };
                let expected = |row: usize, column: usize| {
                    half::bf16::from_f32(values[row * (from + depth) + from + column]).to_f32()
                };
                assert!((0..rows).all(|r| (0..depth).all(|c| at(r, c) == expected(r, c))), "{depth} {width}");
            }
        }
    }
}
