//! Post-training quantization: plan, streamed calibration, methods, recipes, journal.

mod allocation;
mod auto;
mod choice;
mod clock;
mod embedding;
mod error;
mod inputs;
mod job;
mod journal;
pub mod methods;
mod output;
mod plan;
mod probe;
mod profile;
mod recipe;
mod report;
mod residual;
pub mod search;
mod store;
mod stream;
mod tap;
pub mod transforms;
mod weights_only;

pub use auto::{AUTO_FILE, AutoChoice, AutoJob, AutoTarget, Tried, choose_recipe, trial_bytes};
pub use clock::{Phase, phase_seconds};
pub use embedding::quantize_embedding;
pub use error::QuantizeError;
pub use job::{
    Job, Outcome, Pages, Progress, activation_bytes, calibration_windows, check_output, is_model,
    partial_dir, quantize,
};
pub use journal::{JOURNAL_FILE, LOCK_FILE, RunId};
pub use methods::attention::QuantizedAttention;
pub use methods::learned::LearnedBlock;
pub use plan::{Memory, Plan, PlanOptions, PlannedSite, Speed, Work, plan};
pub use profile::{BINS_PER_UNIT, HISTOGRAM_BINS, Profile, code_counts, weight_histogram};
pub use recipe::{
    Calibration, First, Method, ProbabilityScale, Products, Recipe, Rounding, Scales, Search, load_recipe,
    recipe_toml,
};
pub use report::{AttentionReport, InputReport, LayerReport, ModelReport, Report, WeightReport};
pub use store::{Place, Store};
pub use stream::{Advance, QuantizedBlock, QuantizedSite, Surroundings, quantize_block};
pub use tap::{Moments, Sample, TapInputs};
pub use transforms::Transform;
