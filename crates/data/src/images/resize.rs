//! Resizing to the very pixels that Pillow gives, because `transformers` resizes with it.
//!
//! Pillow computes one axis after the other, the horizontal first, and rounds to eight bits after each. Weights are rounded
//! to 22 fractional bits, so sums are exact and no order of additions matters. A filter is stretched by the factor of
//! reduction, so that every pixel of the source counts ("antialiasing").

use super::Rgb;

/// How pixels are weighted, by the number that preprocessor_config.json has for it (`PIL.Image.Resampling`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    pub(super) fn of(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Nearest,
            1 => Self::Lanczos,
            2 => Self::Bilinear,
            3 => Self::Bicubic,
            4 => Self::Box,
            5 => Self::Hamming,
            _ => return None,
        })
    }

    /// How far from the centre weights reach, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight at distance `x`.
    fn weight(self, x: f64) -> f64 {
        let a = x.abs();
        let sinc = |x: f64| {
            if x == 0.0 { 1.0 } else { (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x) }
        };
        match self {
            // Half open, so that a pixel on the edge counts once.
            Self::Nearest | Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - a).max(0.0),
            Self::Hamming if a >= 1.0 => 0.0,
            // Pillow has these two constants in single precision.
            Self::Hamming => {
                sinc(x) * (f64::from(0.54f32) + f64::from(0.46f32) * (std::f64::consts::PI * x).cos())
            }
            // Keys' cubic with a = -1/2 (Keys, "Cubic convolution interpolation", 1981).
            Self::Bicubic if a < 1.0 => (1.5 * a - 2.5) * a * a + 1.0,
            Self::Bicubic if a < 2.0 => (((a - 5.0) * a + 8.0) * a - 4.0) * -0.5,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

/// Fractional bits of a weight: 32 less eight for the pixel and two for the lobes of filters.
const BITS: u32 = 22;

/// What one output pixel takes from the input: weights of consecutive pixels from the first on.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(filter: Filter, from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let one = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weights = (first..end).map(|x| filter.weight((x as f64 - center + 0.5) * (1.0 / stretch)));
        let weights: Vec<f64> = weights.collect();
        let total: f64 = weights.iter().sum();
        let fixed = |w: &f64| {
            let w = if total == 0.0 { *w } else { w / total } * f64::from(1u32 << BITS);
            (w + if w < 0.0 { -0.5 } else { 0.5 }) as i32
        };
        Taps { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(one).collect()
}

fn to_u8(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The image in a new size.
pub(super) fn resize(image: &Rgb, width: usize, height: usize, filter: Filter) -> Rgb {
    if filter == Filter::Nearest {
        return nearest(image, width, height);
    }
    let mut now = image.clone();
    if width != now.width {
        now = rows(&now, &taps(filter, now.width, width));
    }
    if height != now.height {
        now = columns(&now, &taps(filter, now.height, height));
    }
    now
}

fn rows(image: &Rgb, taps: &[Taps]) -> Rgb {
    let mut data = Vec::with_capacity(3 * taps.len() * image.height);
    for row in image.data.chunks_exact(3 * image.width) {
        for t in taps {
            let mut sums = [1 << (BITS - 1); 3];
            for (pixel, w) in row[3 * t.first..].chunks_exact(3).zip(&t.weights) {
                sums.iter_mut().zip(pixel).for_each(|(s, &p)| *s += i32::from(p) * w);
            }
            data.extend(sums.map(to_u8));
        }
    }
    Rgb { width: taps.len(), height: image.height, data }
}

fn columns(image: &Rgb, taps: &[Taps]) -> Rgb {
    let stride = 3 * image.width;
    let mut data = Vec::with_capacity(stride * taps.len());
    let mut sums = vec![0i32; stride];
    for t in taps {
        sums.fill(1 << (BITS - 1));
        for (row, w) in image.data[stride * t.first..].chunks_exact(stride).zip(&t.weights) {
            sums.iter_mut().zip(row).for_each(|(s, &p)| *s += i32::from(p) * w);
        }
        data.extend(sums.iter().map(|&s| to_u8(s)));
    }
    Rgb { width: image.width, height: taps.len(), data }
}

/// The pixel under the centre of each new one. Centres are summed up step by step as Pillow does it: where one falls
/// on an edge, rounding decides.
fn nearest(image: &Rgb, width: usize, height: usize) -> Rgb {
    let places = |from: usize, to: usize| -> Vec<usize> {
        let step = from as f64 / to as f64;
        let centers = std::iter::successors(Some(step * 0.5), |c| Some(c + step));
        centers.take(to).map(|c| (c as usize).min(from - 1)).collect()
    };
    let columns = places(image.width, width);
    let mut data = Vec::with_capacity(3 * width * height);
    for y in places(image.height, height) {
        columns.iter().for_each(|&x| data.extend_from_slice(image.pixel(x, y)));
    }
    Rgb { width, height, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights of the output's first pixels over the input's, as fractions.
    fn weights(filter: Filter, from: usize, to: usize) -> Vec<(usize, Vec<f64>)> {
        let taps = taps(filter, from, to);
        let fraction = |t: &Taps| t.weights.iter().map(|&w| f64::from(w) / f64::from(1 << BITS)).collect();
        taps.iter().map(|t| (t.first, fraction(t))).collect()
    }

    #[test]
    fn reducing_counts_every_pixel_and_enlarging_interpolates() {
        assert_eq!(weights(Filter::Box, 4, 2), [(0, vec![0.5, 0.5]), (2, vec![0.5, 0.5])]);
        // By hand: the triangle over four pixels, whose outermost have weight 1/8, cut at the edge.
        let close =
            |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        let found = weights(Filter::Bilinear, 8, 4);
        assert!(found[1].0 == 1 && close(&found[1].1, &[0.125, 0.375, 0.375, 0.125]), "{found:?}");
        assert!(found[0].0 == 0 && close(&found[0].1, &[3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0]), "{found:?}");
        let found = weights(Filter::Bilinear, 2, 4);
        assert!(close(&found[1].1, &[0.75, 0.25]), "{found:?}");
    }

    #[test]
    fn nothing_changes_in_a_flat_image_or_without_a_change_of_size() {
        let flat = Rgb { width: 7, height: 5, data: [250, 3, 77].repeat(35) };
        for number in 0..6 {
            let filter = Filter::of(number).unwrap();
            let resized = resize(&flat, 11, 3, filter);
            assert_eq!(resized, Rgb { width: 11, height: 3, data: [250, 3, 77].repeat(33) }, "{filter:?}");
            assert_eq!(resize(&flat, 7, 5, filter), flat);
        }
        assert_eq!(Filter::of(6), None);
    }
}
