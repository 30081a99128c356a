//! The report of a quantized model: what was chosen for every layer, what it cost, and what was measured.
//!
//! Data flow one way: [`Facts`] are taken from `report.json`, the JSON of the run and of evaluations; [`document()`] tells them
//! as sections of text, tables and figures; [`html()`] and [`markdown()`] write those down. The JSON form is the facts
//! themselves. Everything depends on its inputs alone, so that equal runs give equal pages.

mod ablation;
mod document;
mod evaluation;
mod facts;
mod html;
mod markdown;
pub mod numbers;
mod plots;
mod ranges;
mod sections;
mod svg;

pub use ablation::{Ablated, AblatedRun, Ablation, Measured};
pub use document::{Block, Document, Figure, Section, Table, Tile};
pub use evaluation::{Divergence, Evaluation, EvaluationError, Paired, Perplexity, Run, Score, Task};
pub use facts::{Facts, Kind, Layer, Size};
pub use html::html;
pub use markdown::markdown;
pub use ranges::{Quantiles, TapRange};
pub use sections::document;
