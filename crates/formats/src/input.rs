//! Quantizers of activations.

use crate::block::{BlockQuantizer, ScaleRule};
use crate::{Element, FormatError, Granularity, ScaleFormat, Scheme, kernel, shifted_scales};

/// A quantizer of a layer's input.
///
/// Static: one scale for the whole tensor and, with a pre-shift, an integer shift for each channel. Channel `j` is
/// quantized with exponent bias `ρ + s_j`, that is with scale `scale · 2^(−s_j)` (LLM-FP4, section 4).
///
/// Dynamic: scales are taken from the values while the network runs, one for each block of NVFP4 (beside a static scale
/// of the tensor) or MXFP4, or an `f32` for each token or each group of a token's channels.
#[derive(Clone, Debug)]
pub struct InputQuantizer {
    scheme: Scheme,
    scale: f32,
    shifts: Vec<u8>,
    /// Scale of every channel and its reciprocal, where the shifts alone do not say them (next to the ends of `f32`'s
    /// range); otherwise empty.
    columns: (Vec<f32>, Vec<f32>),
    /// Values that share an `f32` scale, where scales are dynamic.
    share: usize,
    blocks: Option<Box<BlockQuantizer>>,
}

impl PartialEq for InputQuantizer {
    /// The rest follows from these.
    fn eq(&self, other: &Self) -> bool {
        (self.scheme, self.scale, self.share) == (other.scheme, other.scale, other.share)
            && self.shifts == other.shifts
    }
}

impl InputQuantizer {
    /// A static quantizer with `shifts` for each channel, or none at all for one scale everywhere.
    pub fn new(element: Element, scale: f32, shifts: Vec<u8>) -> Self {
        let columns = match kernel::can_shift(scale, &shifts) {
            true => Default::default(),
            false => shifted_scales(scale, &shifts),
        };
        let scheme = Scheme { shifts: !shifts.is_empty(), ..Scheme::new(element, Granularity::Tensor) };
        Self { scheme, scale, shifts, columns, share: 0, blocks: None }
    }

    /// A dynamic quantizer for tokens of `channels` values: NVFP4's or MXFP4's blocks, or one `f32` scale a token, or a group of
    /// its channels, from the largest magnitude there. `scale` is NVFP4's tensor scale, and 1 for the others.
    ///
    /// Blocks of NVFP4 have the E4M3 scale nearest to `max / 6` over the tensor scale; those of MXFP4 the exponent that
    /// vLLM's kernels choose, [`ScaleRule::RoundUp`].
    ///
    /// # Errors
    /// [`FormatError`] for other schemes, channels that blocks do not divide, and a tensor scale that cannot be used.
    pub fn dynamic(scheme: Scheme, scale: f32, channels: usize) -> Result<Self, FormatError> {
        let unsupported = || FormatError::Unsupported {
            operation: "quantizing inputs",
            scheme: scheme.to_string(),
            hint: "dynamic inputs are e2m1/group16/e4m3, e2m1/group32/e8m0, or have f32 scales and a granularity of channel (a token) or group (of a token's channels)",
        };
        if !scheme.dynamic || scheme.shifts {
            return Err(unsupported());
        }
        let stored = Scheme { dynamic: false, ..scheme };
        let (mut share, mut blocks) = (channels, None);
        match (scheme.granularity, scheme.scale) {
            (Granularity::Channel, ScaleFormat::F32) => {}
            (Granularity::Group(group), ScaleFormat::F32) => {
                stored.check_shape("the input", 1, channels)?;
                share = group;
            }
            (Granularity::Group(_), ScaleFormat::E4M3 | ScaleFormat::E8M0) => {
                let rule =
                    if scheme.scale == ScaleFormat::E4M3 { ScaleRule::Absmax } else { ScaleRule::RoundUp };
                stored.check_shape("the input", 1, channels)?;
                blocks = Some(Box::new(BlockQuantizer::new(stored, scale, rule)?));
            }
            _ => return Err(unsupported()),
        }
        Ok(Self { scheme, scale, shifts: Vec::new(), columns: Default::default(), share, blocks })
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
        self.scheme.element
    }

    /// The scheme that describes it.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The scale of a channel with shift 0, or NVFP4's tensor scale; 1 where all scales are dynamic.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Whether [`scale`](Self::scale) is a part of the quantizer: not where the scheme says all.
    pub fn has_scale(scheme: Scheme) -> bool {
        !scheme.dynamic || scheme.scale == ScaleFormat::E4M3
    }

    /// The shift of each channel; empty if there are none.
    pub fn shifts(&self) -> &[u8] {
        &self.shifts
    }

    /// Fake-quantizes `x`, rows of `channels` values each, in place.
    pub fn apply(&self, x: &mut [f32]) {
        let element = self.scheme.element;
        if let Some(blocks) = &self.blocks {
            return blocks.apply(x);
        }
        if self.scheme.dynamic {
            for values in x.chunks_exact_mut(self.share.max(1)) {
                kernel::fake_quantize_in_place(
                    element,
                    element.scale_from_max(kernel::max_abs(values)),
                    values,
                );
            }
            return;
        }
        if self.shifts.is_empty() {
            kernel::fake_quantize_in_place(element, self.scale, x);
            return;
        }
        for row in x.chunks_exact_mut(self.shifts.len()) {
            match self.columns.0.is_empty() {
                true => kernel::fake_quantize_shifted_in_place(element, self.scale, &self.shifts, row),
                false => {
                    kernel::fake_quantize_columns_in_place(element, &self.columns.0, &self.columns.1, row);
                }
            }
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
    fn scales_next_to_the_end_of_the_range_stay_normal() {
        let tiny = 4.0 * f32::MIN_POSITIVE;
        let q = InputQuantizer::new(Element::E2M1, tiny, vec![0, 1, 31]);
        let mut x = [6.0 * tiny, 3.0 * tiny, 6.0 * f32::MIN_POSITIVE];
        let wanted = x;
        q.apply(&mut x);
        assert_eq!(x, wanted);
    }

    #[test]
    fn no_shifts_is_shift_zero() {
        let (mut a, mut b) = ([0.7, -2.2, 9.0], [0.7, -2.2, 9.0]);
        InputQuantizer::new(Element::E2M1, 0.37, vec![]).apply(&mut a);
        InputQuantizer::new(Element::E2M1, 0.37, vec![0; 3]).apply(&mut b);
        assert_eq!(a, b);
    }

    #[test]
    fn dynamic_scales_follow_the_values() {
        let per_token = Scheme { dynamic: true, ..Scheme::new(Element::INT8, Granularity::Channel) };
        let q = InputQuantizer::dynamic(per_token, 1.0, 2).unwrap();
        let mut x = [127.0, 0.6, 1.27, 0.006];
        q.apply(&mut x);
        assert_eq!(x[..2], [127.0, 1.0]);
        assert!((x[2] - 1.27).abs() < 1e-6 && (x[3] - 0.01).abs() < 1e-6, "{x:?}");

        let per_group = Scheme { dynamic: true, ..Scheme::new(Element::INT8, Granularity::Group(2)) };
        let q = InputQuantizer::dynamic(per_group, 1.0, 4).unwrap();
        let mut groups = [127.0, 0.6, 1.27, 0.006];
        q.apply(&mut groups);
        assert_eq!(groups, x);

        let mxfp4 = Scheme { dynamic: true, ..Scheme::MXFP4 };
        let q = InputQuantizer::dynamic(mxfp4, 1.0, 64).unwrap();
        let mut x = [[0.6f32; 32], [60.0; 32]].concat();
        q.apply(&mut x);
        // 0.6 is 4.8 steps of 1/8, 60 a maximum of mantissa 1.875: 3.75 steps of 16.
        assert_eq!((x[0], x[32]), (0.5, 64.0));
    }

    #[test]
    fn what_cannot_be_computed_is_refused() {
        let dynamic = |scheme| Scheme { dynamic: true, ..scheme };
        for (scheme, channels) in [
            (Scheme::NVFP4, 32),
            (dynamic(Scheme::NVFP4), 24),
            (dynamic(Scheme::new(Element::INT8, Granularity::Tensor)), 32),
            (dynamic(Scheme::new(Element::INT8, Granularity::Group(8))), 36),
        ] {
            assert!(InputQuantizer::dynamic(scheme, 1.0, channels).is_err(), "{scheme}");
        }
    }
}
