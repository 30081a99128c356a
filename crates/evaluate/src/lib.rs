//! Honest evaluation of full-precision and quantized models: perplexity, divergence from a reference, tasks, and whether
//! the differences mean anything.

mod cache;
mod classes;
mod compare;
mod divergence;
mod error;
mod likelihood;
mod metrics;
mod paired;
mod perplexity;
mod progress;
pub mod tasks;
#[cfg(test)]
mod test_model;
mod text;

pub use cache::{Cache, Fingerprint};
pub use classes::class_logits;
pub use compare::{ComparedModel, ComparedTask, Comparison, LayerError};
pub use divergence::{Divergence, Divergences, divergence};
pub use error::EvaluateError;
pub use likelihood::{Item, Likelihood, Request};
pub use metrics::{Answers, Difference, Score};
pub use paired::{Paired, paired};
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
pub use progress::Progress;
pub use text::read_text;
