//! Attention's own products: quantizers of queries, keys, values and probabilities.
//!
//! Each operand is searched alone, by what its rounding does to the product: an error in channel `j` of a query counts by the
//! variance of the keys there (what all keys have in common moves all scores alike, which the softmax does not see), one of a
//! key by the mean square of the queries, one of a value by what the output projection makes of that channel. Probabilities
//! count by the variance of the values of their head. Shifts of channels and heads are powers of two and move through the
//! products as those of linear layers do.

use super::block_scale::fixed_quantizer;
use crate::QuantizeError;
use crate::clock::{Phase, timed};
use crate::recipe::{Method, Recipe};
use crate::search::{Exactness, InputProblem, ProbabilityHistogram, ShiftRule, Tail, search_input};
use crate::store::Store;
use crate::tap::{Sample, TapInputs};
use halfbyte_checkpoint::StoredAttention;
use halfbyte_formats::InputQuantizer;
use halfbyte_model::{Block, Linear, Operands};
use halfbyte_tensor::{AttentionShape, Layout, Matrix, sum_of_squares};

/// The attention of one block.
#[derive(Debug)]
pub struct QuantizedAttention {
    /// Its name.
    pub name: String,
    /// The quantizers.
    pub stored: StoredAttention,
    /// Mean squared error of the mixed values over some windows.
    pub error: f64,
    /// Mean square of the unquantized ones over the same.
    pub signal: f64,
}

/// Queries, keys and values of all calibration windows.
pub(crate) struct OperandStores {
    pub(crate) query: TapInputs,
    pub(crate) key: TapInputs,
    pub(crate) value: TapInputs,
}

impl OperandStores {
    pub(crate) fn new(query: Store, key: Store, value: Store) -> Self {
        let inputs = |x| TapInputs { x, weights: None };
        Self { query: inputs(query), key: inputs(key), value: inputs(value) }
    }

    fn get(&self, window: usize) -> Result<Operands, QuantizeError> {
        let get = |inputs: &TapInputs| inputs.x.get(window);
        Ok(Operands { query: get(&self.query)?, key: get(&self.key)?, value: get(&self.value)? })
    }

    /// The operands of a window, which may not be read again.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub(crate) fn take(&mut self, window: usize) -> Result<Operands, QuantizeError> {
        Ok(Operands {
            query: self.query.x.take(window)?,
            key: self.key.x.take(window)?,
            value: self.value.x.take(window)?,
        })
    }
}

/// Chooses the quantizers of one block's attention; `output` is the projection of the mixed values.
///
/// # Errors
/// When a store cannot be read, or the recipe's scheme cannot be computed.
pub(crate) fn quantize_attention(
    block: &Block,
    operands: &OperandStores,
    layouts: &[Layout],
    output: &Linear,
    recipe: &Recipe,
) -> Result<QuantizedAttention, QuantizeError> {
    let windows = some_windows(operands.query.x.rows(), recipe.sample_tokens);
    let stored = match recipe.kv_scheme {
        Some(scheme) => {
            let dim = block.spec.attention.head_dim;
            let fixed = |inputs: &TapInputs| {
                let largest = inputs.channel_max()?.into_iter().fold(0.0f32, f32::max);
                fixed_quantizer(scheme, largest, dim)
            };
            let (key, value) = timed(Phase::Statistics, || (fixed(&operands.key), fixed(&operands.value)));
            StoredAttention { key: Some(key?), value: Some(value?), ..StoredAttention::default() }
        }
        None => searched(block, operands, layouts, &windows, output, recipe)?,
    };
    let (mut error, mut signal, mut count) = (0.0, 0.0, 0);
    timed(Phase::Measure, || {
        for &i in &windows {
            let full = operands.get(i)?;
            let wanted = block.mix(&full, &layouts[i], None);
            let mut got = block.attend(full, &layouts[i], Some(&stored));
            got.data.iter_mut().zip(&wanted.data).for_each(|(g, w)| *g -= w);
            error += sum_of_squares(&got.data);
            signal += sum_of_squares(&wanted.data);
            count += wanted.data.len();
        }
        Ok::<(), QuantizeError>(())
    })?;
    let count = count.max(1) as f64;
    let name = block.spec.attention_name().to_owned();
    Ok(QuantizedAttention { name, stored, error: error / count, signal: signal / count })
}

/// Evenly spread windows of about twice so many tokens, at least one.
fn some_windows(rows: &[usize], tokens: usize) -> Vec<usize> {
    let all = rows.iter().sum::<usize>().max(1);
    let count = (2 * tokens * rows.len() / all).clamp(1.min(rows.len()), rows.len());
    (0..count).map(|i| i * rows.len() / count).collect()
}

fn searched(
    block: &Block,
    operands: &OperandStores,
    layouts: &[Layout],
    windows: &[usize],
    output: &Linear,
    recipe: &Recipe,
) -> Result<StoredAttention, QuantizeError> {
    let shape = &block.spec.attention;
    let sample = |inputs: &TapInputs| inputs.sample(recipe.sample_tokens, recipe.seed);
    let [query, key, value] = [&operands.query, &operands.key, &operands.value].map(|inputs| {
        timed(Phase::Statistics, || Ok::<_, QuantizeError>((sample(inputs)?, inputs.channel_max()?)))
    });
    let (query, key, value) = (query?, key?, value?);

    let spread =
        |x: &Sample| moments(x).into_iter().map(|(mean, square)| (square - mean * mean).max(0.0)).collect();
    let (keys, values): (Vec<f64>, Vec<f64>) = (spread(&key.0), spread(&value.0));
    let of_queries = to_queries(shape, &keys);
    let squares: Vec<f64> = moments(&query.0).into_iter().map(|m| m.1).collect();
    let columns = column_squares(&output.weight.to_f32());
    let (of_keys, of_values) = (to_keys(shape, &squares), to_keys(shape, &columns));
    let stored = timed(Phase::Search, || StoredAttention {
        query: operand(&query, &of_queries, recipe),
        key: operand(&key, &of_keys, recipe),
        value: operand(&value, &of_values, recipe),
        probability: None,
    });

    // The probabilities of queries and keys as they will be.
    let histogram = ProbabilityHistogram::new(shape.heads, recipe.probability_scale);
    timed(Phase::Statistics, || {
        for &i in windows {
            let mut operands = operands.get(i)?;
            operands.quantize(&stored);
            block.mix(&operands, &layouts[i], Some(&|head, row| histogram.add(head, row)));
        }
        Ok::<(), QuantizeError>(())
    })?;
    let spread = to_queries(shape, &values);
    let products: Vec<f64> = spread.iter().zip(&columns).map(|(v, c)| v * c).collect();
    let heads: Vec<f64> = products.chunks_exact(shape.head_dim).map(|head| head.iter().sum()).collect();
    let elements = recipe.unsigned_elements(recipe.attention_bits);
    let probability = timed(Phase::Search, || {
        histogram.search(&elements, &recipe.operand_grid(), recipe.max_shift, &heads)
    });
    Ok(StoredAttention { probability, ..stored })
}

/// The quantizer of one operand; `counts` says how much an error in each channel counts.
fn operand(
    (sample, channel_max): &(Sample, Vec<f32>),
    counts: &[f64],
    recipe: &Recipe,
) -> Option<InputQuantizer> {
    let roots = counts.iter().map(|c| c.sqrt() as f32).collect();
    let problem = InputProblem {
        x: &sample.x,
        linear: None,
        // Its Gram matrix has the counts on the diagonal, which is all that ranking looks at.
        weight: &Matrix::new(1, counts.len(), roots),
        token_weights: sample.weights.as_deref(),
        channel_max,
        max_shift: recipe.max_shift,
        tail: Tail::new(recipe.headroom(recipe.attention_bits), sample.weights.as_deref(), sample.tokens),
    };
    let rule = if recipe.method == Method::Fpq { recipe.shifts } else { ShiftRule::None };
    let elements = recipe.elements(recipe.attention_bits);
    search_input(&problem, &elements, &recipe.operand_grid(), rule, Exactness::Best(1))
        .map(|best| best.quantizer)
}

/// Mean and mean square of every channel.
fn moments(sample: &Sample) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0.0); sample.x.cols];
    let mut total = 0.0;
    for (t, row) in sample.x.data.chunks_exact(sample.x.cols.max(1)).enumerate() {
        let weight = sample.weights.as_ref().map_or(1.0, |w| f64::from(w[t]));
        total += weight;
        for (sum, &x) in sums.iter_mut().zip(row) {
            let x = f64::from(x);
            *sum = (sum.0 + weight * x, sum.1 + weight * x * x);
        }
    }
    let total = f64::max(total, f64::MIN_POSITIVE);
    sums.into_iter().map(|(x, xx)| (x / total, xx / total)).collect()
}

/// Square of every column.
fn column_squares(weight: &Matrix) -> Vec<f64> {
    let mut squares = vec![0.0; weight.cols];
    for row in weight.data.chunks_exact(weight.cols.max(1)) {
        squares.iter_mut().zip(row).for_each(|(s, w)| *s += f64::from(*w) * f64::from(*w));
    }
    squares
}

/// Numbers of key channels for the query channels that meet them.
fn to_queries(shape: &AttentionShape, keys: &[f64]) -> Vec<f64> {
    let group = |head: usize| head * shape.kv_heads / shape.heads;
    (0..shape.heads)
        .flat_map(|h| keys[group(h) * shape.head_dim..][..shape.head_dim].iter().copied())
        .collect()
}

/// For key channels the sums of the numbers of the query channels that they meet.
fn to_keys(shape: &AttentionShape, queries: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; shape.kv_heads * shape.head_dim];
    for (head, channels) in queries.chunks_exact(shape.head_dim).enumerate() {
        let group = head * shape.kv_heads / shape.heads;
        let sums = &mut sums[group * shape.head_dim..][..shape.head_dim];
        sums.iter_mut().zip(channels).for_each(|(s, c)| *s += c);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_meet_those_of_their_group() {
        let shape = AttentionShape { kv_heads: 2, ..AttentionShape::plain(4, 2) };
        assert_eq!(to_queries(&shape, &[1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
        let queries = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
        assert_eq!(to_keys(&shape, &queries), [3.0, 30.0, 7.0, 70.0]);
    }

    #[test]
    fn windows_are_spread_over_all() {
        assert_eq!(some_windows(&[500; 10], 1000), [0, 2, 5, 7]);
        assert_eq!(some_windows(&[500; 3], 100), [0]);
        assert_eq!(some_windows(&[500; 3], 10_000), [0, 1, 2]);
    }
}
