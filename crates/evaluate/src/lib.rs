//! Honest evaluation of full-precision and quantized models.

mod error;
mod perplexity;
mod text;

pub use error::EvaluateError;
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
pub use text::read_text;
