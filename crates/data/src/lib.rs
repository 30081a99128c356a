//! Labelled texts and images, read from the files in which they are kept and prepared as `transformers` does it.
//!
//! [`TextSet`] and [`ImageFolder`] are [`Examples`]: right answers and, one at a time, what a network reads. [`Rows`] is
//! the reader of jsonl, parquet and tsv that evaluation tasks use too.

mod error;
mod examples;
mod images;
mod labels;
mod panics;
mod random;
mod rows;
mod text;

pub use error::DataError;
pub use examples::{Examples, Gold};
pub use images::{ImageFolder, Processor, Rgb, decode};
pub use labels::Labels;
pub use random::{Random, Selection};
pub use rows::{Row, Rows};
pub use text::{Encoder, Glue, Metric, TextOptions, TextSet};
