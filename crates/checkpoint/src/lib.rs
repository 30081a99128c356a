//! Reading Hugging Face checkpoints and writing files that are either whole or absent.
