//! Post-training quantization: plan, streamed calibration, methods, recipes, journal.

mod error;
pub mod methods;
mod recipe;
pub mod search;
mod store;
mod tap;

pub use error::QuantizeError;
pub use recipe::{Calibration, First, Method, Recipe, Search};
pub use store::{Place, Store};
pub use tap::{Moments, Sample, TapInputs};
