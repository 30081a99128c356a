//! Searches of number format, scale and clipping, scored by the error of a layer's output.

mod clip;
pub mod direct;
mod grid;
mod input;
mod probability;
mod weight;

pub(crate) use clip::clipped_scales;
pub use grid::{Grid, GridKind};
pub use input::{InputChoice, InputProblem, ShiftRule, Tail, search_input, steps_per_channel};
pub use probability::{HISTOGRAM_BYTES, ProbabilityHistogram};
pub use weight::{RowChoice, WeightProblem, search_weight, search_weight_by_columns};

/// How many candidates are scored by the full quadratic form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// Every one, as published.
    All,
    /// Those that the diagonal of the Gram matrix ranks best.
    Best(usize),
}

impl Exactness {
    /// How many of `candidates` are scored fully.
    pub(crate) fn count(self, candidates: usize) -> usize {
        match self {
            Self::All => candidates,
            Self::Best(n) => n.clamp(1, candidates),
        }
    }
}

/// The `n` indices with the smallest scores, smallest first; equal scores in index order.
pub(crate) fn best_indices(scores: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    order.truncate(n);
    order
}
