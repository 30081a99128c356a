//! Quantizers of activations.

use crate::{Element, Granularity, Scheme, kernel, shifted_scales};

/// A static quantizer of a layer's input: one scale for the whole tensor and, with a pre-shift, an integer shift for
/// each channel. Channel `j` is quantized with exponent bias `ρ + s_j`, that is with scale `scale · 2^(−s_j)`
/// (LLM-FP4, section 4).
#[derive(Clone, Debug, PartialEq)]
pub struct InputQuantizer {
    element: Element,
    scale: f32,
    shifts: Vec<u8>,
    /// Scale of every channel and its reciprocal, both exact multiples of the tensor's by a power of two; empty
    /// without shifts.
    columns: (Vec<f32>, Vec<f32>),
}

impl InputQuantizer {
    /// A quantizer with `shifts` for each channel, or none at all for one scale everywhere.
    pub fn new(element: Element, scale: f32, shifts: Vec<u8>) -> Self {
        let columns = shifted_scales(scale, &shifts);
        Self { element, scale, shifts, columns }
    }

    /// A quantizer whose shifts follow the published rule for channels with largest magnitudes `channel_max`:
    /// `s_j = clamp(round(b̃_j), round(ρ), round(ρ) + 2^E − 1) − round(ρ)`, with `b̃_j` the exponent bias at which the
    /// element's largest value is the channel's, and ρ that of `scale`.
    pub fn with_published_shifts(element: Element, scale: f32, channel_max: &[f32]) -> Self {
        let base = element.bias_of_scale(scale).round_ties_even();
        let top = base + element.max_shift() as f32;
        let bias = |max: f32| element.bias_of_scale(element.scale_from_max(max.max(f32::MIN_POSITIVE)));
        let shifts = channel_max.iter().map(|&m| (bias(m).round_ties_even().clamp(base, top) - base) as u8);
        Self::new(element, scale, shifts.collect())
    }

    /// The element of every code.
    pub fn element(&self) -> Element {
        self.element
    }

    /// The scheme that describes it: static, one `f32` scale, shifts or none.
    pub fn scheme(&self) -> Scheme {
        Scheme { shifts: !self.shifts.is_empty(), ..Scheme::new(self.element, Granularity::Tensor) }
    }

    /// The scale of a channel with shift 0.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The shift of each channel; empty if there are none.
    pub fn shifts(&self) -> &[u8] {
        &self.shifts
    }

    /// Fake-quantizes `x`, rows of `channels` values each, in place.
    pub fn apply(&self, x: &mut [f32]) {
        if self.shifts.is_empty() {
            kernel::fake_quantize_in_place(self.element, self.scale, x);
            return;
        }
        for row in x.chunks_exact_mut(self.shifts.len()) {
            kernel::fake_quantize_columns_in_place(self.element, &self.columns.0, &self.columns.1, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_halves_the_scale_of_its_channel() {
        let q = InputQuantizer::new(Element::E2M1, 1.0, vec![0, 1, 3]);
        let mut x = [5.1, 5.1, 5.1, 0.3, 0.3, 0.3];
        q.apply(&mut x);
        assert_eq!(x, [6.0, 3.0, 0.75, 0.5, 0.25, 0.25]);
    }

    #[test]
    fn no_shifts_is_shift_zero() {
        let (mut a, mut b) = ([0.7, -2.2, 9.0], [0.7, -2.2, 9.0]);
        InputQuantizer::new(Element::E2M1, 0.37, vec![]).apply(&mut a);
        InputQuantizer::new(Element::E2M1, 0.37, vec![0; 3]).apply(&mut b);
        assert_eq!(a, b);
    }
}
