//! What a product can read: anything that yields pieces of f32 rows.
//!
//! Weights stay in the form in which they are stored (bf16, packed 4-bit codes) and become f32 only inside the small
//! packed panels of a product, so that a layer costs its stored bytes and no more.

/// A matrix `[rows, depth]` whose rows are multiplied along `depth`.
pub trait Operand: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Length of a row: the dimension that a product sums over.
    fn depth(&self) -> usize;
    /// Writes `out.len()` values of row `row`, from column `from`, as f32.
    fn read(&self, row: usize, from: usize, out: &mut [f32]);

    /// Writes rows `row..row + count` and columns `from..from + depth` as a panel: `out[k * width + r]`, rows past
    /// `count` filled with zeros. The default reads row by row and transposes.
    fn pack(&self, row: usize, count: usize, from: usize, depth: usize, width: usize, out: &mut [f32]) {
        let mut piece = [0.0f32; 256];
        for r in 0..width {
            if r >= count {
                for k in 0..depth {
                    out[k * width + r] = 0.0;
                }
                continue;
            }
            let mut k = 0;
            while k < depth {
                let n = (depth - k).min(piece.len());
                self.read(row + r, from + k, &mut piece[..n]);
                for (i, &v) in piece[..n].iter().enumerate() {
                    out[(k + i) * width + r] = v;
                }
                k += n;
            }
        }
    }
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
    fn pack(&self, row: usize, count: usize, from: usize, depth: usize, width: usize, out: &mut [f32]) {
        for k in 0..depth {
            let at = (from + k) * self.stride + row;
            let line = &mut out[k * width..(k + 1) * width];
            line[..count].copy_from_slice(&self.data[at..at + count]);
            line[count..].fill(0.0);
        }
    }
}
