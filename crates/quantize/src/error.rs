use halfbyte_checkpoint::{CheckpointError, WriteError};
use halfbyte_formats::FormatError;
use halfbyte_model::ModelError;

/// What can go wrong while quantizing.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The model cannot be read or computed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file of the model cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A tensor does not fit a scheme.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// No built-in recipe has this name, and no file either.
    #[error("recipe {name:?} is neither a file nor built in; built-in recipes: {known}")]
    UnknownRecipe {
        /// What was asked for.
        name: String,
        /// All built-in names.
        known: String,
    },
    /// A recipe's field has an impossible value.
    #[error("recipe: {field} {message}")]
    Recipe {
        /// The field.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// The calibration text cannot serve.
    #[error("calibration text: {0}")]
    Calibration(String),
    /// Activations could not be kept in a temporary file.
    #[error("{0}")]
    Spill(String),
    /// A Gram matrix could not be factorised.
    #[error(
        "the second moments of the input of {0} cannot be factorised even with 100 times the damping; raise `damping` in the recipe, or set `correct` and `feedback` to false"
    )]
    Singular(String),
    /// Second moments are beyond f32.
    #[error(
        "the second moments of the input of {0} are not finite: activations there are larger than f32 can square; look at the weights before it"
    )]
    Overflow(String),
    /// The output folder cannot be used.
    #[error("{0}")]
    Output(String),
    /// A hidden state is not finite.
    #[error("{0}")]
    NonFinite(String),
    /// The user asked to stop.
    #[error("stopped; run the same command again to go on from block {0}")]
    Stopped(usize),
    /// The user asked to stop a run without calibration, which keeps no journal.
    #[error("stopped; the same command begins anew (a run without calibration takes seconds)")]
    StoppedAnew,
}

impl QuantizeError {
    /// The error of a matrix as that of the inputs of the layer `name`.
    pub(crate) fn of_inputs(self, name: &str) -> Self {
        match self {
            Self::Singular(_) => Self::Singular(name.into()),
            Self::Overflow(_) => Self::Overflow(name.into()),
            other => other,
        }
    }
}
