use halfbyte_data::DataError;
use halfbyte_model::{Model, ModelError, Task};

/// What can go wrong while evaluating.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The model cannot be read or computed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Rows or images cannot be read, or not as the model wants them.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The text is unreadable.
    #[error("{path}: {message}")]
    Text {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The text is shorter than one window.
    #[error(
        "the text has {tokens} tokens after skipping {skipped}, fewer than one window of {window}; give a longer text or a smaller --window"
    )]
    TooShort {
        /// Tokens left.
        tokens: usize,
        /// Tokens skipped at the start.
        skipped: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// The windows are not possible.
    #[error("{0}")]
    Window(String),
    /// The network's output is not finite.
    #[error("{0}: the network's output is not finite; the checkpoint is damaged or overflows f32")]
    NonFinite(String),
    /// A task is unknown, or its file is missing or not in a form that is read.
    #[error("task {name}: {message}")]
    Task {
        /// The task.
        name: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The model is not made for this.
    #[error("{0}")]
    Unfit(String),
    /// An input does not fit the model.
    #[error("{0}")]
    Input(String),
    /// Two models cannot be compared.
    #[error("{0}")]
    Mismatch(String),
    /// Finished rows cannot be kept.
    #[error("cannot keep finished rows: {0}")]
    Cache(String),
    /// The user asked to stop.
    #[error("stopped; before the end")]
    Stopped,
}

impl EvaluateError {
    /// [`EvaluateError::Unfit`] for this model, with what would be needed.
    pub(crate) fn unfit(model: &Model, needed: &str) -> Self {
        let (dir, a) = (model.checkpoint.dir().display(), &model.architecture);
        Self::Unfit(format!("{dir} is a {} model for {}; {needed}", a.family, a.head.task.name()))
    }

    /// Refuses models that do not predict the next token.
    ///
    /// # Errors
    /// [`EvaluateError`], naming the model.
    pub fn require_language_model(model: &Model) -> Result<(), Self> {
        match model.architecture.head.task {
            Task::LanguageModel => Ok(()),
            _ => Err(Self::unfit(
                model,
                "perplexity, divergence and tasks need one that predicts the next token",
            )),
        }
    }
}
