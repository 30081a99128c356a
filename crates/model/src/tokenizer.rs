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

    /// The first `wanted` token ids of `text`, or all if it has fewer, as [`encode`](Self::encode) gives them, from no more of
    /// the text than that takes: an encoding is fifty times the size of its text.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_first(&self, text: &str, wanted: usize) -> Result<Vec<u32>, ModelError> {
        // What is just before the cut may depend on what follows.
        const UNSURE: usize = 64;
        // More than most tokens have.
        const BYTES_OF_A_TOKEN: usize = 8;
        let enough = wanted.saturating_add(UNSURE);
        let mut bytes = enough.saturating_mul(BYTES_OF_A_TOKEN);
        while let Some(end) = cut(text, bytes) {
            let mut tokens = self.encode(&text[..end])?;
            if tokens.len() >= enough {
                tokens.truncate(wanted);
                return Ok(tokens);
            }
            bytes = 2 * end;
        }
        let mut tokens = self.encode(text)?;
        tokens.truncate(wanted);
        Ok(tokens)
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

/// Where a text that is longer than `from` bytes is best cut behind these: after a line, before a space, or at least between two
/// characters.
fn cut(text: &str, from: usize) -> Option<usize> {
    let rest = text.as_bytes().get(from..).filter(|rest| !rest.is_empty())?;
    let near = &rest[..rest.len().min(from)];
    let line = near.iter().position(|&b| b == b'\n').map(|at| at + 1);
    let word = || near.iter().position(u8::is_ascii_whitespace);
    let character = || (0..rest.len()).find(|&at| text.is_char_boundary(from + at));
    Some(from + line.or_else(word).or_else(character)?)
}
