use halfbyte_model::ModelError;

/// What can go wrong while evaluating.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The model cannot be read or computed.
    #[error(transparent)]
    Model(#[from] ModelError),
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
    /// The window is not possible.
    #[error("a window of {0} tokens cannot be scored; it needs at least 2")]
    Window(usize),
    /// The network's output is not finite.
    #[error("window {0}: the network's output is not finite; the checkpoint is damaged or overflows f32")]
    NonFinite(usize),
    /// The user asked to stop.
    #[error("stopped")]
    Stopped,
}
