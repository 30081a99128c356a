use halfbyte_model::ModelError;
use std::path::Path;

/// What can be wrong with data, or with what a model folder says of the data that it wants.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The model folder.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file or folder cannot be read, is not in a form that is read, or asks for something that is not done.
    #[error("{path}: {message}")]
    File {
        /// The file or folder.
        path: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// A row of a file is wrong.
    #[error("{path}, {row}: {message}")]
    Row {
        /// The file.
        path: String,
        /// `line 12` or, where there are no lines, `row 12`.
        row: String,
        /// What is wrong.
        message: String,
    },
}

impl DataError {
    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Self {
        Self::File { path: path.display().to_string(), message: message.into() }
    }
}
