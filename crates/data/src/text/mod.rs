//! Texts and pairs of texts with their classes, from tsv, jsonl and parquet, as tokens.

mod columns;
mod encoder;
mod glue;
mod set;

pub use columns::TextOptions;
pub use encoder::Encoder;
pub use glue::{Glue, Metric};
pub use set::TextSet;
