//! Transformer architectures as data, and the one generic block that computes them.
//!
//! An architecture file in [`architectures`] turns a Hugging Face config into an [`Architecture`]: shapes, the names of
//! tensors, and for each block its [`Tap`]s, the places whose activations feed the linear layers that can be quantized.
//! [`Block`] computes any such description, from full-precision weights or from 4-bit codes.

pub mod architectures;
mod block;
mod config;
mod error;
mod input;
mod linear;
mod model;
mod rope;
mod synth;
mod tokenizer;

pub use architectures::{Architecture, BlockSpec, NormSpec, Site, Tap, TapKind};
pub use block::{Block, Carry, Step};
pub use error::ModelError;
pub use input::Input;
pub use linear::{Linear, Weight};
pub use model::{Embedding, Head, Model};
pub use rope::Rope;
pub use synth::{SHAPES, Shape, synthesize};
pub use tokenizer::Tokenizer;
