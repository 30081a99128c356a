//! Which of several schemes each layer gets: the choice among formats that FPQ makes for each layer, among the fixed
//! formats that a target holds side by side.
//!
//! Layers that share an input choose together, since engines fuse them. What counts is the squared error of a layer's
//! weights over their square, summed over all layers: the mean that the report prints. Without a bound every set takes the
//! scheme of least error. With `max_bits` all begin with their smallest scheme, and the step to a larger one that lowers
//! the sum most for each bit it costs comes first, as long as it fits: the usual greedy answer to a knapsack, at most one
//! step worse than the best.

use crate::QuantizeError;
use crate::job::{Job, Progress};
use crate::methods::block_scale::{Blocks, Values, f32_scales, is_block};
use crate::recipe::Recipe;
use halfbyte_checkpoint::{LayerScheme, RawTensor};
use halfbyte_formats::{QuantizedMatrix, Scheme};
use halfbyte_model::{Architecture, Model, Site};
use halfbyte_tensor::sum_of_squares;

/// The same recipe with a scheme for every layer by its name, where weights alone or a bound on all of them decide; `None`
/// where there is nothing to choose, or each set chooses when its turn comes.
///
/// # Errors
/// A weight cannot be read, no choice keeps the bound, or the user asks to stop.
pub(crate) fn settle(job: &Job, progress: &dyn Progress) -> Result<Option<Recipe>, QuantizeError> {
    let recipe = job.recipe;
    if recipe.alternatives.is_empty() || (recipe.max_bits.is_none() && recipe.needs_calibration()) {
        return Ok(None);
    }
    let schemes = recipe.choices();
    let sets = sets(&job.model.architecture, recipe);
    check_bound(&job.model.architecture, recipe)?;
    let mut options = Vec::with_capacity(sets.len());
    for sites in &sets {
        if progress.stopped() {
            return Err(QuantizeError::StoppedAnew);
        }
        options.push(errors(job.model, recipe, sites, &schemes)?);
    }
    let weights: u64 = sets.iter().flatten().map(|s| (s.outputs * s.inputs) as u64).sum();
    let budget = recipe.max_bits.map(|bits| (f64::from(bits) * weights as f64) as u64);
    let chosen = choose(&options, budget);
    let mut settled = Recipe { alternatives: Vec::new(), max_bits: None, ..recipe.clone() };
    for (sites, choice) in sets.iter().zip(chosen) {
        if let Some(weight) = schemes[choice].weight {
            settled.schemes.extend(sites.iter().map(|s| (s.name.clone(), weight)));
        }
    }
    Ok(Some(settled))
}

/// The layers to be quantized that choose together.
fn sets<'a>(a: &'a Architecture, recipe: &Recipe) -> Vec<Vec<&'a Site>> {
    a.groups()
        .map(|sites| sites.iter().filter(|s| !recipe.keeps(s)).collect::<Vec<_>>())
        .filter(|sites| !sites.is_empty())
        .collect()
}

/// Checks from shapes alone that `max_bits` can be kept.
///
/// # Errors
/// [`QuantizeError::Recipe`], saying how many bits it takes at least.
pub(crate) fn check_bound(a: &Architecture, recipe: &Recipe) -> Result<(), QuantizeError> {
    let (Some(most), false) = (recipe.max_bits, recipe.alternatives.is_empty()) else { return Ok(()) };
    let schemes = recipe.choices();
    let (mut bits, mut weights) = (0, 0);
    for sites in sets(a, recipe) {
        bits += schemes.iter().map(|s| stored_bits(&sites, s)).min().unwrap_or(0);
        weights += sites.iter().map(|s| (s.outputs * s.inputs) as u64).sum::<u64>();
    }
    let least = bits as f64 / weights.max(1) as f64;
    if f64::from(most) >= least {
        return Ok(());
    }
    let message =
        format!("= {most} cannot be kept: the smallest of the schemes take {least:.4} bits a weight");
    Err(QuantizeError::Recipe { field: "max_bits".into(), message })
}

/// Bits of these layers, scales included.
pub(crate) fn stored_bits(sites: &[&Site], scheme: &LayerScheme) -> u64 {
    let tensors = sites.iter().flat_map(|s| scheme.tensors(&s.name, s.outputs, s.inputs));
    8 * tensors.filter_map(|t| t.dtype.byte_len(&t.shape)).sum::<u64>()
}

/// Error and bits of one set in one scheme.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) error: f64,
    pub(crate) bits: u64,
}

/// The cost of every scheme for one set.
fn errors(
    model: &Model,
    recipe: &Recipe,
    sites: &[&Site],
    schemes: &[LayerScheme],
) -> Result<Vec<Cost>, QuantizeError> {
    let mut weights = Vec::with_capacity(sites.len());
    for site in sites {
        weights.push(model.full_weight(site)?);
    }
    let largest = weights.iter().map(|w| Values::from(w).max_abs()).fold(0.0f32, f32::max);
    let mut costs = Vec::with_capacity(schemes.len());
    for layer in schemes {
        let mut error = 0.0;
        for (site, weight) in sites.iter().zip(&weights) {
            let Some(scheme) = layer.weight else { continue };
            error += relative_error(site, weight, scheme, largest, recipe)?;
        }
        costs.push(Cost { error, bits: stored_bits(sites, layer) });
    }
    Ok(costs)
}

/// Squared error of a weight over its square.
fn relative_error(
    site: &Site,
    weight: &RawTensor,
    scheme: Scheme,
    largest: f32,
    recipe: &Recipe,
) -> Result<f64, QuantizeError> {
    let (error, signal);
    if is_block(scheme) {
        let coded =
            Blocks::new(scheme, largest, recipe.scales)?.encode(Values::from(weight), site.inputs, &[]);
        (error, signal) = (coded.error, coded.signal);
    } else {
        let mut values = vec![0.0; weight.len()];
        Values::from(weight).read(0, &mut values);
        let (name, rows, cols) = (&site.name, site.outputs, site.inputs);
        let scales = f32_scales(name, &values, cols, scheme, recipe, &[])?;
        let matrix = QuantizedMatrix::quantize_with_scales(name, &values, rows, cols, scheme, scales, 1.0)?;
        let mut difference = matrix.dequantize();
        difference.iter_mut().zip(&values).for_each(|(d, v)| *d -= v);
        (error, signal) = (sum_of_squares(&difference), sum_of_squares(&values));
    }
    Ok(if signal > 0.0 { error / signal } else { 0.0 })
}

/// For every set the position of the scheme that it gets.
pub(crate) fn choose(options: &[Vec<Cost>], budget: Option<u64>) -> Vec<usize> {
    let best = |costs: &Vec<Cost>, key: fn(&Cost) -> (f64, f64)| {
        let order = |&a: &usize, &b: &usize| {
            let (a, b) = (key(&costs[a]), key(&costs[b]));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        };
        (0..costs.len()).min_by(order).unwrap_or(0)
    };
    let Some(budget) = budget else {
        return options.iter().map(|costs| best(costs, |c| (c.error, c.bits as f64))).collect();
    };
    let mut chosen: Vec<usize> =
        options.iter().map(|costs| best(costs, |c| (c.bits as f64, c.error))).collect();
    let mut bits: u64 = options.iter().zip(&chosen).map(|(costs, &c)| costs[c].bits).sum();
    loop {
        let mut step: Option<(f64, usize, usize)> = None;
        for (set, costs) in options.iter().enumerate() {
            let now = costs[chosen[set]];
            for (i, cost) in costs.iter().enumerate() {
                let more = cost.bits.saturating_sub(now.bits);
                if cost.error >= now.error || bits + more > budget {
                    continue;
                }
                let gain = (now.error - cost.error) / more.max(1) as f64;
                if step.is_none_or(|s| gain > s.0) {
                    step = Some((gain, set, i));
                }
            }
        }
        let Some((_, set, i)) = step else { return chosen };
        bits = bits - options[set][chosen[set]].bits + options[set][i].bits;
        chosen[set] = i;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(costs: &[&[(f64, u64)]]) -> Vec<Vec<Cost>> {
        costs.iter().map(|set| set.iter().map(|&(error, bits)| Cost { error, bits }).collect()).collect()
    }

    #[test]
    fn without_a_bound_the_least_error_wins() {
        let sets = options(&[&[(0.5, 4), (0.2, 8)], &[(0.1, 4), (0.1, 3)], &[(0.1, 4), (0.3, 2)]]);
        assert_eq!(choose(&sets, None), [1, 1, 0]);
    }

    #[test]
    fn bits_go_where_they_lower_the_error_most() {
        let sets = options(&[&[(0.5, 4), (0.2, 8)], &[(0.9, 4), (0.1, 8)], &[(0.2, 40), (0.1, 80)]]);
        assert_eq!(choose(&sets, Some(48)), [0, 0, 0]);
        assert_eq!(choose(&sets, Some(52)), [0, 1, 0]);
        assert_eq!(choose(&sets, Some(95)), [1, 1, 0]);
        assert_eq!(choose(&sets, Some(96)), [1, 1, 1]);
        // The step that does not fit does not keep others from being taken.
        assert_eq!(choose(&options(&[&[(0.9, 4), (0.1, 90)], &[(0.9, 4), (0.8, 9)]]), Some(20)), [0, 1]);
    }
}
