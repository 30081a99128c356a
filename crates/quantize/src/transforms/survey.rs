//! What transforms know of the activations at a tap.

use crate::QuantizeError;
use crate::store::{Store, windows_side_by_side};
use crate::stream::Surroundings;
use halfbyte_model::{Block, Step};
use halfbyte_tensor::{Layout, Matrix};
use rayon::prelude::*;

/// Rows of the sample: enough sequences for the outputs of attention, and few enough to compute them for a hundred
/// candidates.
pub(crate) const SAMPLE: usize = 1024;

/// The activations at one tap: statistics of all rows, and a sample of whole sequences.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Largest value of every channel.
    pub(crate) max: Vec<f32>,
    /// Smallest value of every channel.
    pub(crate) min: Vec<f32>,
    /// Mean magnitude of every channel.
    pub(crate) mean_abs: Vec<f32>,
    /// The sampled rows.
    pub(crate) sample: Matrix,
    /// The sequences that they form.
    pub(crate) layout: Layout,
}

impl Survey {
    /// Largest magnitude of every channel.
    pub(crate) fn largest(&self) -> Vec<f32> {
        self.max.iter().zip(&self.min).map(|(max, min)| max.abs().max(min.abs())).collect()
    }
}

/// Surveys every tap of a block for its input `hidden`, which stays. Memory for the packs that are worked on side by side,
/// beside the samples.
pub(crate) fn survey(
    block: &Block,
    hidden: &Store,
    around: &Surroundings,
) -> Result<Vec<Survey>, QuantizeError> {
    let taps = &block.spec.taps;
    let mut sums: Vec<Vec<f64>> = taps.iter().map(|t| vec![0.0; t.channels()]).collect();
    let empty = |channels: usize| Survey {
        max: vec![f32::NEG_INFINITY; channels],
        min: vec![f32::INFINITY; channels],
        mean_abs: Vec::new(),
        sample: Matrix::zeros(0, channels),
        layout: Layout::default(),
    };
    let mut surveys: Vec<Survey> = taps.iter().map(|t| empty(t.channels())).collect();
    let total: usize = hidden.rows().iter().sum();
    let chosen = spaced(hidden.windows(), total);
    windows_side_by_side(
        &mut (&mut surveys, &mut sums),
        hidden.windows(),
        |_, i| hidden.get(i),
        |i, window| activations(block, window, around, &around.layouts[i]),
        |(surveys, sums), i, found| {
            for ((survey, sums), x) in surveys.iter_mut().zip(sums.iter_mut()).zip(found) {
                add(survey, sums, &x);
                if chosen.contains(&i) {
                    survey.sample.data.extend_from_slice(&x.data);
                    survey.sample.rows += x.rows;
                    around.layouts[i].ranges().for_each(|r| survey.layout.push(r.len(), &[]));
                }
            }
            Ok(())
        },
    )?;
    for (survey, sums) in surveys.iter_mut().zip(sums) {
        survey.mean_abs = sums.into_iter().map(|s| (s / total.max(1) as f64) as f32).collect();
    }
    Ok(surveys)
}

/// The activations at every tap for one window.
fn activations(block: &Block, hidden: Matrix, around: &Surroundings, layout: &Layout) -> Vec<Matrix> {
    let (mut carry, mut x) = block.enter(hidden);
    let mut found = Vec::with_capacity(block.linears.len());
    for (tap, linears) in block.linears.iter().enumerate() {
        if tap + 1 == block.linears.len() {
            break;
        }
        match block.advance(tap, carry, &x, linears, around.rotary, layout) {
            Step::Tap(c, next) => {
                found.push(std::mem::replace(&mut x, next));
                carry = c;
            }
            Step::Done(_) => return found,
        }
    }
    found.push(x);
    found
}

/// Evenly spaced packs that hold about as many rows as the sample should.
fn spaced(packs: usize, rows: usize) -> Vec<usize> {
    let count = (SAMPLE * packs).div_ceil(rows.max(1)).clamp(1, packs.max(1));
    (0..count).map(|i| i * packs / count).collect()
}

/// Rows whose channels are summed in f32 before they go into the f64 sums.
const FOLD: usize = 32;

fn add(survey: &mut Survey, sums: &mut [f64], x: &Matrix) {
    // Threads take channels, so that every sum has one order.
    const PIECE: usize = 64;
    let channels = survey
        .max
        .par_chunks_mut(PIECE)
        .zip(survey.min.par_chunks_mut(PIECE))
        .zip(sums.par_chunks_mut(PIECE));
    channels.enumerate().for_each(|(i, ((max, min), sums))| {
        let from = i * PIECE;
        for rows in x.data.chunks(FOLD * x.cols) {
            let mut sum = [0.0f32; PIECE];
            for row in rows.chunks_exact(x.cols) {
                let row = &row[from..from + max.len()];
                for (((max, min), sum), &v) in max.iter_mut().zip(min.iter_mut()).zip(&mut sum).zip(row) {
                    *max = if v > *max { v } else { *max };
                    *min = if v < *min { v } else { *min };
                    *sum += v.abs();
                }
            }
            sums.iter_mut().zip(sum).for_each(|(total, sum)| *total += f64::from(sum));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_are_spaced_evenly() {
        assert_eq!(spaced(40, 40 * 512), [0, 20]);
        assert_eq!(spaced(3, 150), [0, 1, 2]);
        assert_eq!(spaced(1, 8192), [0]);
    }
}
