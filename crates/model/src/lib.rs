//! Transformer architectures as data, and the one generic block that computes them.
//!
//! An architecture file in [`architectures`] turns a Hugging Face config into an [`Architecture`]: how an input becomes
//! rows (the stem), the blocks, and what is made of the last rows (the head). It lists the names of tensors, and for each
//! block its [`Tap`]s, the places whose activations feed the linear layers that can be quantized. [`Stem`], [`Block`] and
//! [`Head`] compute any such description, from full-precision weights or from 4-bit codes.

pub mod architectures;
mod backward;
mod block;
mod config;
mod edit;
mod error;
mod head;
mod input;
mod linear;
mod model;
mod norm;
mod positions;
mod rope;
mod spec;
mod stem;
mod synth;
mod tokenizer;

pub use backward::{Gradients, Trace};
pub use block::{Block, Carry, Operands, Step};
pub use error::ModelError;
pub use head::Head;
pub use input::Input;
pub use linear::{Linear, Weight};
pub use model::Model;
pub use norm::Norm;
pub use rope::Rope;
pub use spec::{
    Activation, Architecture, BlockSpec, Extra, HeadLayer, HeadSpec, ImageStem, MIGRATION, Mlp, NormKind,
    NormSpec, Part, Pool, Producer, Projections, Resampling, RotaryTables, Site, StemSpec, Stored, Sublayer,
    Tap, TapKind, Task, TextStem,
};
pub use stem::Stem;
pub use synth::{SHAPES, Shape, synthesize};
pub use tokenizer::Tokenizer;
