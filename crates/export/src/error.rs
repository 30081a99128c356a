use crate::Target;
use halfbyte_checkpoint::{CheckpointError, WriteError};
use halfbyte_model::ModelError;
use std::path::PathBuf;

/// What can go wrong with an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The target has no room for this model or these schemes.
    #[error("{target} cannot hold this model: {message}")]
    Cannot {
        /// The target.
        target: Target,
        /// What it cannot hold, and what would do.
        message: String,
    },
    /// What was read back is not what was written.
    #[error(
        "{path}: {what} read back differs from the source; the output was removed. This is a bug of halfbyte's"
    )]
    Differs {
        /// The file or folder.
        path: PathBuf,
        /// Which of its values.
        what: String,
    },
    /// The output folder exists.
    #[error("{0} exists; choose another --out or delete it")]
    Exists(PathBuf),
    /// The output path has no last part.
    #[error("{0} names no folder")]
    NoName(PathBuf),
    /// The source is no halfbyte folder.
    #[error(
        "{0} is not quantized by halfbyte; `halfbyte quantize` it first, for example with --recipe nvfp4-w4a16"
    )]
    NotQuantized(PathBuf),
    /// A folder could not be made, renamed or listed.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// The user asked to stop.
    #[error("the export was stopped; nothing was left behind")]
    Stopped,
}

impl ExportError {
    /// Attention's own products are quantized, which no file of another engine says.
    pub(crate) fn attention(target: Target) -> Self {
        let engine = if target.is_gguf() { "llama.cpp" } else { "vLLM" };
        let options = if target.is_gguf() { "-ctk and -ctv" } else { "--kv-cache-dtype" };
        let message = format!(
            "attention's operands are quantized (attention_bits or kv_scheme of the recipe, --attention-bits or --kv-cache), \
             which its files do not say; quantize without, and choose the type of {engine}'s KV cache when it is started \
             ({options})"
        );
        Self::Cannot { target, message }
    }
}
