use crate::ModelError;
use std::path::Path;

/// A model folder's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of `dir`.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the file is absent or not understood.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Self::from_file(&dir.join("tokenizer.json"))
    }

    /// Reads a `tokenizer.json` of whatever name.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let fail = |message: String| ModelError::Tokenizer { path: path.display().to_string(), message };
        if !path.is_file() {
            return Err(fail(
                "not found; halfbyte reads the Hugging Face tokenizer.json, copy it into the model folder"
                    .into(),
            ));
        }
        let inner =
            tokenizers::Tokenizer::from_file(path).map_err(|e| fail(format!("not a tokenizer: {e}")))?;
        Ok(Self { inner })
    }

    /// The token ids of `text`, whole, without special tokens.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.ids(text, false)
    }

    /// The token ids of `prompt` with the special tokens that the tokenizer adds by itself: for many models one at the
    /// beginning of the sequence.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the tokenizer cannot encode the text.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, ModelError> {
        self.ids(prompt, true)
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| ModelError::Tokenizer {
            path: "tokenizer.json".into(),
            message: format!("cannot encode the text: {e}"),
        })?;
        Ok(encoding.get_ids().to_vec())
    }
}
