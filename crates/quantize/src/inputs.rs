//! Calibration inputs side by side.

use crate::QuantizeError;
use halfbyte_model::{Architecture, Input};
use halfbyte_tensor::Layout;
use std::ops::Range;

/// Rows of a pack, unless one input alone has more. Short inputs would waste the products; which are computed together has
/// no influence on results.
pub(crate) const PACK: usize = 512;

/// Which inputs are computed together, and where their rows are.
pub(crate) struct Packs {
    /// The inputs of each pack.
    pub(crate) ranges: Vec<Range<usize>>,
    /// Which rows of a pack are whose.
    pub(crate) layouts: Vec<Layout>,
}

impl Packs {
    /// Packs `inputs` in their order.
    ///
    /// # Errors
    /// [`QuantizeError::Calibration`] for an input that the network cannot take.
    pub(crate) fn new(architecture: &Architecture, inputs: &[Input]) -> Result<Self, QuantizeError> {
        let (mut ranges, mut layouts) = (Vec::<Range<usize>>::new(), Vec::<Layout>::new());
        for (i, input) in inputs.iter().enumerate() {
            let (rows, most) = (architecture.rows(input), architecture.context);
            if rows == 0 || rows > most {
                return Err(QuantizeError::Calibration(format!(
                    "input {i} has {rows} rows for the network, which takes 1 to {most}"
                )));
            }
            match (ranges.last_mut(), layouts.last_mut()) {
                (Some(range), Some(layout)) if layout.rows() + rows <= PACK => {
                    range.end = i + 1;
                    layout.push(rows, &[]);
                }
                _ => {
                    ranges.push(i..i + 1);
                    layouts.push(Layout::sequence(rows));
                }
            }
        }
        Ok(Self { ranges, layouts })
    }

    /// Rows of every pack.
    pub(crate) fn rows(&self) -> Vec<usize> {
        self.layouts.iter().map(Layout::rows).collect()
    }

    /// Positions of the longest sequence.
    pub(crate) fn longest(&self) -> usize {
        self.layouts.iter().flat_map(Layout::ranges).map(|r| r.len()).max().unwrap_or(0)
    }
}
