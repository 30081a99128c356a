//! Orthogonal matrices that mix all channels alike: Hadamard matrices with random signs (QuaRot, arXiv 2404.00456).
//!
//! A Hadamard matrix has entries ±1 and orthogonal rows, so that every channel of `x H / √n` has an equal share of each of x.
//! Those of order 2^k are Sylvester's; others are Kronecker products of one and a matrix by Paley's constructions, which
//! need a prime (R. Paley, "On orthogonal matrices", 1933).

use halfbyte_tensor::mix;
use rayon::prelude::*;

/// Largest order of a factor that is no Hadamard matrix; multiplying by it takes the square of that.
const LARGEST_CORE: usize = 1024;
/// Columns of a matrix that are turned at a time.
const PANEL: usize = 512;

/// `Q = S (I ⊗ H ⊗ C)` with random signs S, Sylvester's Hadamard matrix H and a small orthogonal matrix C; rows are multiplied
/// from the right.
#[derive(Clone, Debug)]
pub(crate) struct Orthogonal {
    signs: Vec<f64>,
    /// Channels that are mixed with each other.
    block: usize,
    /// Order of C.
    order: usize,
    /// C, row after row, divided by whatever makes the whole matrix orthogonal.
    core: Vec<f64>,
}

impl Orthogonal {
    /// For `channels` channels, mixed in blocks of `block` or all of them; the same for the same seed. Else why not, for people.
    pub(crate) fn new(channels: usize, block: Option<usize>, seed: u64) -> Result<Self, String> {
        let block = block.unwrap_or(channels);
        if block == 0 || !channels.is_multiple_of(block) {
            return Err(format!("blocks of {block} do not divide {channels} channels"));
        }
        let odd = block >> block.trailing_zeros();
        let orders = || (2..=block.trailing_zeros()).map(|j| odd << j);
        let (order, mut core) = match odd {
            1 => (1, vec![1.0]),
            _ => match orders().find_map(|n| Some((n, paley(n)?))) {
                Some(found) => found,
                None if odd <= LARGEST_CORE => (odd, random(odd, seed)),
                None => {
                    return Err(format!(
                        "there is no Hadamard matrix here for {block} channels; give block=N with a power of two that divides them"
                    ));
                }
            },
        };
        // Entries ±1 have rows as long as the root of the order, and those of Sylvester's as well.
        let entries = if core.iter().all(|v| v.abs() == 1.0) { block } else { block / order };
        let scale = 1.0 / (entries as f64).sqrt();
        core.iter_mut().for_each(|v| *v *= scale);
        let sign = |c: usize| if mix(mix(seed) ^ c as u64) & 1 == 0 { 1.0 } else { -1.0 };
        Ok(Self { signs: (0..channels).map(sign).collect(), block, order, core })
    }

    /// Channels.
    pub(crate) fn channels(&self) -> usize {
        self.signs.len()
    }

    /// `X ← X · diag(gains) · Q` for rows one after the other.
    pub(crate) fn rows(&self, data: &mut [f32], gains: Option<&[f32]>) {
        let n = self.channels();
        data.par_chunks_mut(n * 16).for_each(|rows| {
            let (mut x, mut mixed) = (vec![0.0; n], vec![0.0; self.order]);
            for row in rows.chunks_exact_mut(n) {
                x.iter_mut().zip(row.iter()).for_each(|(x, v)| *x = f64::from(*v));
                if let Some(gains) = gains {
                    x.iter_mut().zip(gains).for_each(|(x, g)| *x *= f64::from(*g));
                }
                self.row(&mut x, &mut mixed);
                row.iter_mut().zip(&x).for_each(|(v, x)| *v = *x as f32);
            }
        });
    }

    /// `W ← Qᵀ · W` for a matrix of `columns` columns, whose rows are the channels.
    pub(crate) fn columns(&self, data: &mut [f32], columns: usize) {
        let n = self.channels();
        for from in (0..columns).step_by(PANEL) {
            let width = PANEL.min(columns - from);
            let mut panel = vec![0.0f32; width * n];
            for (r, row) in data.chunks_exact(columns).enumerate() {
                row[from..from + width].iter().enumerate().for_each(|(c, v)| panel[c * n + r] = *v);
            }
            self.rows(&mut panel, None);
            for (r, row) in data.chunks_exact_mut(columns).enumerate() {
                row[from..from + width].iter_mut().enumerate().for_each(|(c, v)| *v = panel[c * n + r]);
            }
        }
    }

    fn row(&self, x: &mut [f64], mixed: &mut [f64]) {
        x.iter_mut().zip(&self.signs).for_each(|(x, s)| *x *= s);
        for block in x.chunks_exact_mut(self.block) {
            let mut half = self.order;
            while half < block.len() {
                for pair in block.chunks_exact_mut(2 * half) {
                    let (low, high) = pair.split_at_mut(half);
                    for (a, b) in low.iter_mut().zip(high) {
                        (*a, *b) = (*a + *b, *a - *b);
                    }
                }
                half *= 2;
            }
            for piece in block.chunks_exact_mut(self.order) {
                mixed.fill(0.0);
                for (v, row) in piece.iter().zip(self.core.chunks_exact(self.order)) {
                    mixed.iter_mut().zip(row).for_each(|(m, c)| *m += v * c);
                }
                piece.copy_from_slice(mixed);
            }
        }
    }
}

/// A Hadamard matrix of this order, if one of Paley's constructions has it: from a prime q = 3 modulo 4 of order q + 1, from one
/// q = 1 modulo 4 of order 2 (q + 1).
fn paley(order: usize) -> Option<Vec<f64>> {
    let q = order.checked_sub(1)?;
    if q % 4 == 3 && is_prime(q) {
        // I + S with the skew S.
        let mut h = conference(q, -1.0);
        (0..order).for_each(|i| h[i * order + i] = 1.0);
        return Some(h);
    }
    let q = (order / 2).checked_sub(1)?;
    if !order.is_multiple_of(2) || q % 4 != 1 || !is_prime(q) {
        return None;
    }
    // Every entry of the symmetric matrix becomes a matrix of order 2.
    let s = conference(q, 1.0);
    let mut h = vec![0.0; order * order];
    for (i, row) in s.chunks_exact(q + 1).enumerate() {
        for (j, &v) in row.iter().enumerate() {
            let of = if i == j { [1.0, -1.0, -1.0, -1.0] } else { [v, v, v, -v] };
            for (part, value) in of.into_iter().enumerate() {
                h[(2 * i + part / 2) * order + 2 * j + part % 2] = value;
            }
        }
    }
    Some(h)
}

/// Paley's matrix of order q + 1: zeros on the diagonal, a border of ones (below of `border`), and inside whether `i − j` is a
/// square modulo q.
fn conference(q: usize, border: f64) -> Vec<f64> {
    let mut residue = vec![-1.0; q];
    (1..q).for_each(|i| residue[i * i % q] = 1.0);
    residue[0] = 0.0;
    let entry = |i: usize, j: usize| match (i, j) {
        (0, 0) => 0.0,
        (0, _) => 1.0,
        (_, 0) => border,
        _ => residue[(i + q - j) % q],
    };
    let order = q + 1;
    (0..order * order).map(|at| entry(at / order, at % order)).collect()
}

fn is_prime(n: usize) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// A random orthogonal matrix: random rows, each made orthogonal to those before. Nothing but sums, products and roots, which
/// are the same on every machine.
fn random(order: usize, seed: u64) -> Vec<f64> {
    let mut state = mix(seed ^ 0x6f72_7468);
    let mut uniform = || {
        state = mix(state);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    // Nearly normal.
    let mut q: Vec<f64> = (0..order * order).map(|_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0).collect();
    for i in 0..order {
        let (before, rest) = q.split_at_mut(i * order);
        let row = &mut rest[..order];
        // Twice, because the first time leaves rounding errors as large as what was taken away.
        for _ in 0..2 {
            for other in before.chunks_exact(order) {
                let along: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v /= length);
    }
    q
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The matrix itself.
    fn dense(q: &Orthogonal) -> Vec<f32> {
        let n = q.channels();
        let mut identity: Vec<f32> = (0..n * n).map(|i| f32::from(u8::from(i / n == i % n))).collect();
        q.rows(&mut identity, None);
        identity
    }

    #[test]
    fn matrices_of_all_orders_are_orthogonal() {
        // Powers of two, Paley's of both kinds (12, 20 and 28, 36), 15 * 4, and orders without one: 9, 14, 92.
        for n in [1, 2, 16, 64, 12, 24, 20, 28, 56, 36, 576 / 8, 60, 9, 14, 92] {
            let q = dense(&Orthogonal::new(n, None, 3).unwrap());
            for i in 0..n {
                for j in 0..n {
                    let product: f64 =
                        (0..n).map(|k| f64::from(q[i * n + k]) * f64::from(q[j * n + k])).sum();
                    let wanted = f64::from(u8::from(i == j));
                    assert!((product - wanted).abs() < 1e-6, "{n}: {i} {j}: {product}");
                }
            }
        }
    }

    #[test]
    fn hadamard_matrices_spread_every_channel_evenly() {
        for n in [8, 12, 28, 576, 960, 896, 1536] {
            let q = Orthogonal::new(n, None, 0).unwrap();
            let mut x = vec![0.0f32; n];
            x[n / 3] = 1.0;
            q.rows(&mut x, None);
            let share = 1.0 / (n as f32).sqrt();
            assert!(x.iter().all(|v| (v.abs() - share).abs() < 1e-6), "{n}");
        }
    }

    #[test]
    fn blocks_keep_to_themselves() {
        let q = Orthogonal::new(24, Some(8), 1).unwrap();
        let dense = dense(&q);
        assert!((0..24 * 24).all(|at| (at / 24 / 8 == at % 24 / 8) == (dense[at] != 0.0)));
        assert!(Orthogonal::new(24, Some(16), 0).unwrap_err().contains("blocks of 16"));
        assert!(Orthogonal::new(24, Some(0), 0).is_err());
        assert!(Orthogonal::new(2 * 1031, None, 0).unwrap_err().contains("block=N"));
    }

    #[test]
    fn columns_are_rows_of_the_transpose() {
        let (n, columns) = (12, PANEL + 3);
        let q = Orthogonal::new(n, None, 5).unwrap();
        let weight: Vec<f32> = (0..n * columns).map(|i| (i % 37) as f32 - 18.0).collect();
        let turn = |w: &[f32], width: usize| -> Vec<f32> {
            let height = w.len() / width;
            (0..w.len()).map(|i| w[i % height * width + i / height]).collect()
        };
        let mut wanted = turn(&weight, columns);
        q.rows(&mut wanted, None);
        let mut found = weight;
        q.columns(&mut found, columns);
        assert_eq!(found, turn(&wanted, n));
    }

    #[test]
    fn gains_come_before() {
        let q = Orthogonal::new(16, None, 5).unwrap();
        let gains: Vec<f32> = (0..16).map(|i| 0.5 + i as f32).collect();
        let (mut a, mut b) = (vec![1.0; 32], [&gains[..], &gains[..]].concat());
        q.rows(&mut a, Some(&gains));
        q.rows(&mut b, None);
        assert_eq!(a, b);
    }
}
