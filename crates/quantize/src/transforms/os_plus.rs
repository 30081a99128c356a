//! Outlier Suppression+ (arXiv 2304.09145). Shift: every channel is centred, `z = (max X + min X) / 2`, where producer and
//! readers have biases. Scale: one threshold t for all channels, above which they are divided,
//! `s = max(1, max(X − z) / t, −min(X − z) / t)`; of a linear grid from the largest magnitude down the one is taken for which
//! what the block makes of the layers' outputs is least in error. Of the grid every seventh threshold of a hundred is tried and then
//! those around the best, 27 in all (docs/transforms.md, "Migrations").

use super::fold::Change;
use super::trial::Trial;
use crate::QuantizeError;

/// Shifts and factors for thresholds `max·(steps − i) / steps`; shifts only if `shift` and the network has the biases.
pub(super) fn choose(trial: &Trial, steps: usize, shift: bool) -> Result<Change, QuantizeError> {
    let joint = trial.joint;
    let max = joint.gather(&trial.survey.max);
    let min = joint.gather_by(&trial.survey.min, f32::min);
    let shifts: Vec<f32> = match shift && joint.no_shift.is_none() {
        true => max.iter().zip(&min).map(|(max, min)| (max + min) / 2.0).collect(),
        false => Vec::new(),
    };
    let reach = reach(&max, &min, &shifts);
    let largest = reach.iter().copied().fold(0.0f32, f32::max);
    let steps = if largest > 0.0 { steps } else { 0 };
    trial.best_of_grid(steps, |i| {
        let threshold = largest * (steps - i) as f32 / steps as f32;
        Change { factors: factors(&reach, threshold), shifts: shifts.clone() }
    })
}

/// Largest magnitude of every channel once it is shifted.
fn reach(max: &[f32], min: &[f32], shifts: &[f32]) -> Vec<f32> {
    let channel = |c: usize| {
        let z = shifts.get(c).copied().unwrap_or(0.0);
        (max[c] - z).max(z - min[c])
    };
    (0..max.len()).map(channel).collect()
}

fn factors(reach: &[f32], threshold: f32) -> Vec<f32> {
    reach.iter().map(|r| (r / threshold).max(1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_beyond_the_threshold_are_brought_to_it() {
        let (max, min) = ([10.0, 1.0, -2.0], [6.0, -1.0, -12.0]);
        let centres = [8.0, 0.0, -7.0];
        assert_eq!(reach(&max, &min, &centres), [2.0, 1.0, 5.0]);
        assert_eq!(reach(&max, &min, &[]), [10.0, 1.0, 12.0]);
        assert_eq!(factors(&[2.0, 1.0, 5.0], 2.0), [1.0, 1.0, 2.5]);
    }
}
