//! The ranges of input channels before and after the pre-shift: the picture of the method.
//!
//! All are in units of the largest value that the tensor's one scale can represent. A channel with shift s is quantized
//! with that scale times 2^−s, which is the same as multiplying it by 2^s first (LLM-FP4, section 4).

use halfbyte_quantize::{LayerReport, Report};
use serde::Serialize;

/// The channels of one place where linear layers take their input.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TapRange {
    /// Its block; `None` outside of the blocks.
    pub block: Option<usize>,
    /// The layers that take it, by their kinds.
    pub layers: String,
    /// Number of channels.
    pub channels: usize,
    /// Format of the quantized input; `None` if it is left alone, and the unit is then the largest channel.
    pub format: Option<String>,
    /// Smallest value above zero, in units: what is below half of it becomes zero.
    pub smallest: Option<f64>,
    /// Largest magnitudes of the channels.
    pub before: Quantiles,
    /// The same times 2^shift; `None` without shifts.
    pub after: Option<Quantiles>,
    /// How many channels have shift 0, 1, 2 …
    pub shifts: Vec<usize>,
    /// Channels that are zero on all calibration tokens.
    pub dead: usize,
    /// Channels of which every value becomes zero without shifts.
    pub lost_before: usize,
    /// And with them.
    pub lost_after: usize,
    /// The channels by falling magnitude, at most 200 of them, before and after.
    #[serde(skip)]
    pub points: Vec<(f64, f64)>,
}

/// Points drawn of a tap. Of every stretch of channels that is left out the extremes after the shift remain.
pub const POINTS: usize = 200;

/// Smallest, 5th, 25th, 50th, 75th and 95th percentile, and largest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(into = "[f64; 7]")]
pub struct Quantiles(pub [f64; 7]);

impl From<Quantiles> for [f64; 7] {
    fn from(q: Quantiles) -> Self {
        q.0
    }
}

impl Quantiles {
    /// Of values in any order, at least one.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let last = values.len().saturating_sub(1);
        let at = |share: f64| values.get((share * last as f64).round() as usize).copied().unwrap_or(0.0);
        Self([0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0].map(at))
    }

    /// Factors of two between the smallest and the largest.
    pub fn octaves(&self) -> f64 {
        if self.0[0] > 0.0 { (self.0[6] / self.0[0]).log2() } else { 0.0 }
    }
}

/// The taps of a report, in the order of the network. Layers of a block whose inputs are the same are one tap; where
/// they have quantizers of their own each is shown for itself.
pub(crate) fn taps(
    report: &Report,
    place: impl Fn(&LayerReport) -> (Option<usize>, String),
) -> Vec<TapRange> {
    let mut groups: Vec<(Option<usize>, Vec<&LayerReport>)> = Vec::new();
    for layer in report.layers.iter().filter(|l| !l.channel_max.is_empty()) {
        let block = place(layer).0;
        match groups.last_mut() {
            Some((b, group)) if *b == block && group[0].channel_max == layer.channel_max => group.push(layer),
            _ => groups.push((block, vec![layer])),
        }
    }
    let shared = groups.iter().all(|(_, g)| g.iter().all(|l| l.input == g[0].input));
    let mut taps = Vec::new();
    for (block, group) in groups {
        let kinds =
            |layers: &[&LayerReport]| layers.iter().map(|l| place(l).1).collect::<Vec<_>>().join(", ");
        match shared {
            true => taps.push(tap(block, kinds(&group), group[0])),
            false => taps.extend(group.iter().map(|l| tap(block, kinds(&[*l]), l))),
        }
    }
    taps
}

fn tap(block: Option<usize>, layers: String, layer: &LayerReport) -> TapRange {
    let input = layer.input.as_ref();
    let largest = layer.channel_max.iter().copied().fold(0.0f32, f32::max);
    let unit = match input {
        Some(i) => {
            let element = i.scheme.element;
            f64::from(element.scale_of_bias(i.bias)) * f64::from(element.max_value())
        }
        None => f64::from(largest),
    };
    let smallest = input.map(|i| f64::from(i.scheme.element.value(1) / i.scheme.element.max_value()));
    let shifts: &[u8] = input.map_or(&[], |i| &i.shifts);
    let shift = |c: usize| shifts.get(c).copied().unwrap_or(0);
    let mut channels: Vec<(f64, f64)> = layer
        .channel_max
        .iter()
        .enumerate()
        .filter(|(_, max)| **max > 0.0)
        .map(|(c, max)| (f64::from(*max) / unit, f64::from(*max) / unit * f64::from(shift(c)).exp2()))
        .collect();
    channels.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let lost = |v: f64| smallest.is_some_and(|s| v <= s / 2.0);
    let mut counts = vec![0; shifts.iter().copied().max().map_or(0, |m| usize::from(m) + 1)];
    shifts.iter().for_each(|&s| counts[usize::from(s)] += 1);
    TapRange {
        block,
        layers,
        channels: layer.channel_max.len(),
        format: input.map(|i| i.scheme.element.to_string().to_uppercase()),
        smallest,
        before: Quantiles::of(channels.iter().map(|c| c.0).collect()),
        after: (!shifts.is_empty()).then(|| Quantiles::of(channels.iter().map(|c| c.1).collect())),
        shifts: counts,
        dead: layer.channel_max.len() - channels.len(),
        lost_before: channels.iter().filter(|c| lost(c.0)).count(),
        lost_after: channels.iter().filter(|c| lost(c.1)).count(),
        points: thinned(&channels),
    }
}

/// At most `POINTS` of `channels`, which are sorted by their first value: of each of as many stretches as there is room
/// for, the one with the smallest and the one with the largest second value.
fn thinned(channels: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if channels.len() <= POINTS {
        return channels.to_vec();
    }
    let stretches = POINTS / 2 - 1;
    let mut kept = vec![channels[0]];
    for s in 0..stretches {
        let (from, to) = (s * channels.len() / stretches, (s + 1) * channels.len() / stretches);
        let stretch = &channels[from..to];
        let position = |better: fn(f64, f64) -> bool| {
            (0..stretch.len()).reduce(|a, b| if better(stretch[b].1, stretch[a].1) { b } else { a })
        };
        let mut ends = [position(|a, b| a < b), position(|a, b| a > b)].map(Option::unwrap_or_default);
        ends.sort_unstable();
        kept.extend(ends.map(|i| stretch[i]));
    }
    kept.push(channels[channels.len() - 1]);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_extremes() {
        let channels: Vec<(f64, f64)> = (0..5000u32)
            .map(|i| (f64::from(5000 - i), f64::from(i.wrapping_mul(2_654_435_761) % 10_007)))
            .collect();
        let kept = thinned(&channels);
        assert_eq!(kept.len(), POINTS);
        let ends = |c: &[(f64, f64)], f: fn(&(f64, f64)) -> f64| {
            let values = || c.iter().map(f);
            (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max))
        };
        assert_eq!(ends(&kept, |c| c.0), ends(&channels, |c| c.0));
        assert_eq!(ends(&kept, |c| c.1), ends(&channels, |c| c.1));
        assert!(kept.windows(2).all(|w| w[0].0 >= w[1].0), "in the same order");
        assert_eq!(thinned(&channels[..150]), &channels[..150]);
    }

    #[test]
    fn quantiles_of_few_and_many() {
        assert_eq!(Quantiles::of(vec![3.0]).0, [3.0; 7]);
        let q = Quantiles::of((0..=100).rev().map(f64::from).collect());
        assert_eq!(q.0, [0.0, 5.0, 25.0, 50.0, 75.0, 95.0, 100.0]);
        assert_eq!(Quantiles::of(vec![1.0, 8.0]).octaves(), 3.0);
    }
}
