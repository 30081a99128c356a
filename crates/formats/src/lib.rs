//! Number formats of halfbyte: elements, scales, schemes, packing, and the kernels that quantize and dequantize.
//!
//! - [`Element`] is the number type of one code: `ExMy` minifloats without Inf or NaN, symmetric integers, and both
//!   without a sign.
//! - [`Scheme`] adds granularity and scale format; [`QuantizedMatrix`] holds a matrix stored by a scheme.
//! - [`block`](mod@block) chooses the scales of NVFP4 and MXFP4 blocks.
//! - [`kernel`] has the fast loops, [`reference`](mod@reference) their plain `f64` twins, [`pack`](mod@pack)
//!   the bit streams.
//!
//! # What quantizing means here, to the bit
//! With scale `s` and `inverse = 1.0 / s` in `f32`: `u = x * inverse` (one `f32` rounding), `q` = the nearest
//! value of the element's table at scale 1 (saturating; ties to the even multiple of the local step), and
//! `Q(x) = q * s` (one `f32` rounding). Zero is always `+0` with code 0, whatever the sign of `x`.
//! [`kernel::encode`] followed by [`kernel::decode`] therefore gives the bits of [`kernel::fake_quantize`].
//! An exponent bias `b` (LLM-FP4, arXiv 2310.16836) is the scale `2^(b0 − b)`, see [`Element::scale_of_bias`].

pub mod block;
mod element;
mod error;
mod input;
pub mod kernel;
mod matrix;
pub mod pack;
mod probability;
pub mod reference;
mod scheme;

pub use block::{BlockQuantizer, ScaleRule};
pub use element::Element;
pub use error::FormatError;
pub use input::InputQuantizer;
pub use matrix::QuantizedMatrix;
pub use probability::ProbabilityQuantizer;
pub use scheme::{Granularity, ScaleFormat, Scheme, shifted_scales};
