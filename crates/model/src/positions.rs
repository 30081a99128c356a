//! Learned positions of patches, resampled for images of another size than the table was learned at.

use crate::spec::Resampling;

/// A table of positions `[from[0] · from[1], channels]`, rows of patches one after the other, at `to[0] · to[1]` places, by
/// bicubic interpolation as PyTorch's `interpolate` with `align_corners=False` has it.
pub(crate) fn resample(
    table: &[f32],
    from: [usize; 2],
    to: [usize; 2],
    channels: usize,
    how: Resampling,
) -> Vec<f32> {
    if from == to {
        return table.to_vec();
    }
    let (down, across) = (weights(from[0], to[0], how), weights(from[1], to[1], how));
    let line = from[1] * channels;
    let mut out = vec![0.0; to[0] * to[1] * channels];
    let mut mixed = vec![0.0; line];
    for (rows, out) in down.iter().zip(out.chunks_exact_mut(to[1] * channels)) {
        mixed.fill(0.0);
        for &(y, w) in rows {
            add(&mut mixed, &table[y * line..][..line], w);
        }
        for (columns, out) in across.iter().zip(out.chunks_exact_mut(channels)) {
            for &(x, w) in columns {
                add(out, &mixed[x * channels..][..channels], w);
            }
        }
    }
    out
}

fn add(out: &mut [f32], values: &[f32], weight: f32) {
    out.iter_mut().zip(values).for_each(|(o, v)| *o += weight * v);
}

/// For each of `to` places the places among `from` that it is made of, with their weights.
fn weights(from: usize, to: usize, how: Resampling) -> Vec<Vec<(usize, f32)>> {
    let scale = from as f32 / to as f32;
    let place = |i: usize| match how {
        // Four neighbours, those beyond the edge being the edge (Keys' kernel with a = −3/4).
        Resampling::Bicubic => {
            let center = scale * (i as f32 + 0.5) - 0.5;
            let first = center.floor() - 1.0;
            (0..4)
                .map(|k| {
                    let at = first + k as f32;
                    (at.clamp(0.0, (from - 1) as f32) as usize, cubic(center - at, -0.75))
                })
                .collect()
        }
        // As wide as a new place is, cut off at the edge (a = −1/2, as Pillow).
        Resampling::Antialiased => {
            let (center, width) = (scale * (i as f32 + 0.5), scale.max(1.0));
            let low = ((center - 2.0 * width + 0.5).max(0.0)) as usize;
            let high = ((center + 2.0 * width + 0.5) as usize).min(from);
            let weight = |x: usize| cubic((x as f32 - center + 0.5) / width, -0.5);
            let sum: f32 = (low..high).map(weight).sum();
            (low..high).map(|x| (x, weight(x) / sum)).collect::<Vec<_>>()
        }
    };
    (0..to).map(place).collect()
}

/// Keys' cubic convolution kernel (IEEE Trans. ASSP 29, 1981).
fn cubic(x: f32, a: f32) -> f32 {
    let x = x.abs();
    match x {
        x if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        x if x < 2.0 => a * (((x - 5.0) * x + 8.0) * x - 4.0),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: [f32; 6] = [0.080742, 3.385309, 0.353516, 3.183594, 0.626289, 2.98188];
    const ANTIALIASED: [f32; 6] = [0.249282, 3.055525, 0.079454, 2.495185, -0.090374, 1.934844];

    #[test]
    fn values_are_those_of_pytorch() {
        // torch.nn.functional.interpolate(torch.tensor([[[[0., 1, 4], [2, -3, 5]]]]), (3, 2), mode="bicubic"), torch 2.15;
        // the second with antialias=True.
        let table = [0.0, 1.0, 4.0, 2.0, -3.0, 5.0];
        let close = |got: Vec<f32>, expected: &[f32]| {
            assert_eq!(got.len(), expected.len());
            for (g, e) in got.iter().zip(expected) {
                assert!((g - e).abs() < 1e-5, "{got:?}");
            }
        };
        close(resample(&table, [2, 3], [3, 2], 1, Resampling::Bicubic), &PLAIN);
        close(resample(&table, [2, 3], [3, 2], 1, Resampling::Antialiased), &ANTIALIASED);
        assert_eq!(resample(&table, [1, 3], [1, 3], 2, Resampling::Bicubic), table);
    }
}
