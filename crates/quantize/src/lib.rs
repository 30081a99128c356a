//! Post-training quantization: plan, streamed calibration, methods, recipes, journal.

mod embedding;
mod error;
mod job;
mod journal;
pub mod methods;
mod recipe;
pub mod search;
mod report;
mod store;
mod stream;
mod tap;

pub use embedding::quantize_embedding;
pub use error::QuantizeError;
pub use job::{Job, Outcome, Progress, calibration_windows, quantize};
pub use report::{LayerReport, Report};
pub use recipe::{Calibration, First, Method, Recipe, Search};
pub use store::{Place, Store};
pub use stream::{QuantizedSite, Streams, quantize_block};
pub use tap::{Moments, Sample, TapInputs};
