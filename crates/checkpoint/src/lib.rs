//! Reading Hugging Face checkpoints and writing files that are either whole or absent.
//!
//! - [`Checkpoint`] opens a model folder; [`SafetensorsFile`] is one file of it. Everything that a header or
//!   an index claims is checked against the real files when they are opened, and nothing is allocated on a
//!   claim alone.
//! - [`SafetensorsWriter`] streams tensors into one file, [`CheckpointWriter`] into a folder of shards with
//!   an index.
//! - [`AtomicFile`], [`write_atomic`] and [`copy_atomic`] write any file under a temporary name and rename
//!   it.
//! - [`available_space`] and [`require_space`] ask for the disk before an hour of work is spent on it.
//!
//! # Why no memory map
//!
//! Tensors are read with positioned reads (`pread`). A mapped file that shrinks, or whose network disk goes
//! away, kills the process with SIGBUS where a read returns an error; mapping needs `unsafe`; and mapped
//! pages count as resident, so that the memory we promise before a run would depend on the mood of the page
//! cache. A positioned read needs no lock and no cursor, so any number of threads can read one
//! [`Checkpoint`].
//!
//! # Example
//!
//! ```no_run
//! # fn main() -> Result<(), halfbyte_checkpoint::CheckpointError> {
//! use halfbyte_checkpoint::Checkpoint;
//!
//! let checkpoint = Checkpoint::open("models/SmolLM2-135M-Instruct".as_ref())?;
//! let norm = checkpoint.read_f32("model.norm.weight", &[576])?;
//! # let _ = norm; Ok(())
//! # }
//! ```

mod atomic;
mod attention;
pub mod compressed_tensors;
mod dtype;
mod error;
mod file;
mod folder;
pub mod gguf;
mod halfbyte;
mod header;
mod layout;
mod low_rank;
mod missing;
pub mod modelopt;
mod shards;
mod source;
mod space;
mod tensor;
mod writer;

/// Files that go with a model, copied where present: tokenizers of every make, templates, processors, and the terms under which
/// it may be passed on.
pub const COMPANIONS: [&str; 21] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
];

pub use atomic::{AtomicFile, copy_atomic, write_atomic};
pub use attention::{AttentionScheme, AttentionWidths, StoredAttention};
pub use dtype::Dtype;
pub use error::{CheckpointError, WriteError};
pub use file::{SafetensorsFile, TensorInfo};
pub use halfbyte::{LayerScheme, Manifest, StoredLayer};
pub use header::TensorSpec;
pub use layout::Layout;
pub use low_rank::LowRank;
pub use shards::{CheckpointWriter, SHARD_BYTES};
pub use source::Checkpoint;
pub use space::{available_space, require_space};
pub use tensor::RawTensor;
pub use writer::SafetensorsWriter;
