//! Quantizers of attention's probabilities.

use crate::{Element, FormatError, Granularity, ScaleFormat, Scheme, kernel};

/// A quantizer of what a softmax gives: numbers from 0 to 1, row by row.
///
/// Static: one scale, and with shifts the scale `scale · 2^(−s_h)` for head `h`.
///
/// Dynamic, a scale for each row: the largest number of a row becomes the largest value of the element. What is rounded is
/// then in effect `e^(x_i − max x)`, which the softmax has before it divides by the sum, and the row is divided by the sum
/// of the rounded numbers, so that it still sums to 1. In a kernel both are one factor on the row's output.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbabilityQuantizer {
    scheme: Scheme,
    scale: f32,
    shifts: Vec<u8>,
}

impl ProbabilityQuantizer {
    /// A static quantizer; `shifts` has one entry a head, or none.
    pub fn new(element: Element, scale: f32, shifts: Vec<u8>) -> Self {
        let scheme = Scheme { shifts: !shifts.is_empty(), ..Scheme::new(element, Granularity::Tensor) };
        Self { scheme, scale, shifts }
    }

    /// A quantizer that takes a scale from every row.
    pub fn dynamic(element: Element) -> Self {
        let scheme = Scheme { dynamic: true, ..Scheme::new(element, Granularity::Channel) };
        Self { scheme, scale: 1.0, shifts: Vec::new() }
    }

    /// The quantizer of a scheme, with its scale and shifts if it has any.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] for other schemes than `ELEMENT/tensor`, the same with `shifts`, and
    /// `ELEMENT/channel/dynamic`.
    pub fn of_scheme(scheme: Scheme, scale: f32, shifts: Vec<u8>) -> Result<Self, FormatError> {
        let quantizer = match scheme.dynamic {
            true => Self::dynamic(scheme.element),
            false => Self::new(scheme.element, scale, shifts),
        };
        let like = Scheme { shifts: scheme.shifts, ..quantizer.scheme };
        if like == scheme && !(scheme.dynamic && scheme.shifts) && scheme.scale == ScaleFormat::F32 {
            return Ok(quantizer);
        }
        Err(FormatError::Unsupported {
            operation: "quantizing probabilities",
            scheme: scheme.to_string(),
            hint: "they have schemes such as ue2m2/tensor, ue2m2/tensor/shifts or ue2m2/channel/dynamic",
        })
    }

    /// The scheme that describes it.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The static scale of a head with shift 0; 1 where scales are dynamic.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The shift of each head; empty if there are none.
    pub fn shifts(&self) -> &[u8] {
        &self.shifts
    }

    /// Fake-quantizes a row of head `head` in place.
    pub fn apply(&self, head: usize, row: &mut [f32]) {
        let element = self.scheme.element;
        if !self.scheme.dynamic {
            let shift = self.shifts.get(head).copied().unwrap_or(0);
            let scale = (self.scale * (-f32::from(shift)).exp2()).max(f32::MIN_POSITIVE);
            return kernel::fake_quantize_in_place(element, scale, row);
        }
        kernel::fake_quantize_in_place(element, element.scale_from_max(kernel::max_abs(row)), row);
        // One after the other in f64, so that the sum is the same everywhere.
        let sum: f64 = row.iter().map(|&p| f64::from(p)).sum();
        if sum > 0.0 {
            let inverse = (1.0 / sum) as f32;
            row.iter_mut().for_each(|p| *p *= inverse);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(name: &str) -> Element {
        name.parse().unwrap()
    }

    #[test]
    fn sixteen_codes_lie_between_zero_and_one() {
        let q = ProbabilityQuantizer::new(element("uint4"), 1.0 / 15.0, Vec::new());
        let mut row = [0.0, 0.03, 0.04, 0.52, 1.0];
        q.apply(0, &mut row);
        let codes = row.map(|p| (p * 15.0).round());
        assert_eq!(codes, [0.0, 0.0, 1.0, 8.0, 15.0]);
    }

    #[test]
    fn a_shift_belongs_to_a_head() {
        let q = ProbabilityQuantizer::new(element("uint4"), 0.125, vec![0, 2]);
        let (mut first, mut second) = ([0.3, 0.03], [0.3, 0.03]);
        q.apply(0, &mut first);
        q.apply(1, &mut second);
        assert_eq!((first, second), ([0.25, 0.0], [0.3125, 0.03125]));
    }

    #[test]
    fn a_row_of_its_own_scale_sums_to_one() {
        let q = ProbabilityQuantizer::dynamic(element("ue2m2"));
        // In units of the scale 0.42 / 7: 7, 3.33, 1.67, 1.5, 0.08, 3.08.
        let mut row = [0.42, 0.2, 0.1, 0.09, 0.005, 0.185];
        q.apply(3, &mut row);
        let sum = 7.0 + 3.5 + 1.75 + 1.5 + 3.0;
        let wanted = [7.0, 3.5, 1.75, 1.5, 0.0, 3.0].map(|v: f32| v / sum);
        assert!(row.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{row:?} {wanted:?}");
        let mut even = [0.001f32; 1000];
        q.apply(0, &mut even);
        assert!(even.iter().all(|p| (p - 0.001).abs() < 1e-8));
    }

    #[test]
    fn schemes_tell_the_whole_quantizer() {
        for (text, shifts) in
            [("ue3m1/tensor", vec![]), ("ue3m1/tensor/shifts", vec![1, 0]), ("uint4/channel/dynamic", vec![])]
        {
            let scheme: Scheme = text.parse().unwrap();
            let q = ProbabilityQuantizer::of_scheme(scheme, 1.0, shifts).unwrap();
            assert_eq!(q.scheme().to_string(), text);
        }
        for text in
            ["ue3m1/channel", "ue3m1/group16/dynamic", "e2m1/channel/e8m0/dynamic", "ue3m1/tensor/dynamic"]
        {
            assert!(
                ProbabilityQuantizer::of_scheme(text.parse().unwrap(), 1.0, Vec::new()).is_err(),
                "{text}"
            );
        }
    }
}
