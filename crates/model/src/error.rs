use halfbyte_checkpoint::{CheckpointError, WriteError};
use halfbyte_formats::FormatError;

/// What can be wrong with a model folder beyond its files.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file or tensor could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A stored tensor does not fit its scheme.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// `model_type` is none of those that halfbyte computes.
    #[error("config.json: model_type {found:?} is not supported; supported are {supported}")]
    UnknownArchitecture {
        /// What the config says.
        found: String,
        /// The supported names, comma-separated.
        supported: String,
    },
    /// A key of config.json is missing or has an impossible value.
    #[error("config.json: {key}: {message}")]
    Config {
        /// The key.
        key: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// config.json asks for something that is not implemented. Computing on without it would be silently wrong.
    #[error("config.json: {key} = {value} is not implemented; refusing rather than computing something else")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// tokenizer.json is missing or unreadable.
    #[error("{path}: {message}")]
    Tokenizer {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// A token id is outside the vocabulary.
    #[error(
        "token {token} is outside the model's vocabulary of {vocabulary}: do tokenizer.json and config.json belong together?"
    )]
    Token {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// Codes are rows of inputs, and this layer's full-precision weight is stored in another order.
    #[error(
        "layer {0} was stored in another order than its codes, so its values are no checkpoint; quantize the original model"
    )]
    Reordered(String),
    /// An input is of another kind or size than the network takes.
    #[error("an input does not fit the model: {0}")]
    Input(String),
}
