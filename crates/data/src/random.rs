//! Random numbers that are the same everywhere for the same seed, and rows that are drawn by them.

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n - 1`; the bias of the multiplication is below n / 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// Which rows of a file, or which images of a folder, are used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection {
    /// So many; all if `None`.
    pub limit: Option<usize>,
    /// Draws them at random, the same ones for the same seed; the first ones if `None`.
    pub seed: Option<u64>,
}

impl Selection {
    /// The chosen ones of `n`, in rising order.
    pub fn of(self, n: usize) -> Vec<usize> {
        match self {
            Self { limit: Some(limit), seed: Some(seed) } => subset(n, limit, seed),
            Self { limit, .. } => (0..n.min(limit.unwrap_or(n))).collect(),
        }
    }
}

/// `count` of the numbers 0 .. `n`, drawn without replacement, in rising order.
fn subset(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let mut numbers: Vec<usize> = (0..n).collect();
    let count = count.min(n);
    for i in 0..count {
        numbers.swap(i, i + random.below(n - i));
    }
    numbers.truncate(count);
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subset_has_no_doubles_and_depends_on_the_seed() {
        let some = subset(100, 30, 1);
        assert!(some.windows(2).all(|w| w[0] < w[1]) && some.len() == 30 && some[29] < 100);
        assert_eq!(some, subset(100, 30, 1));
        assert_ne!(some, subset(100, 30, 2));
        assert_eq!(subset(3, 9, 5), [0, 1, 2]);
    }
}
