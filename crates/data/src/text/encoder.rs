//! Texts and pairs of texts as a model reads them.

use crate::DataError;
use crate::labels::read_json;
use halfbyte_model::Input;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

/// A folder's tokenizer, set up as `transformers` calls it with `truncation=True`.
pub struct Encoder {
    path: PathBuf,
    tokenizer: Tokenizer,
    /// Whether the model is told which of two texts a token belongs to.
    segments: bool,
}

impl Encoder {
    /// Reads tokenizer.json of `dir`, and of tokenizer_config.json, if there is one, how long sequences may be and from
    /// which end longer ones are cut. `context` is the most that the model takes. Of a pair that is too long the longer
    /// text loses a token until it is not (`longest_first`).
    ///
    /// # Errors
    /// [`DataError::File`] when the tokenizer cannot be read, or tokenizer_config.json contradicts it.
    pub fn open(dir: &Path, context: usize) -> Result<Self, DataError> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            let message =
                "not found; halfbyte reads the Hugging Face tokenizer.json, copy it into the model folder";
            return Err(DataError::file(&path, message));
        }
        let fail = |message: String| DataError::file(&path, message);
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|e| fail(format!("not a tokenizer: {e}")))?;
        let settings_path = dir.join("tokenizer_config.json");
        let settings = if settings_path.is_file() { read_json(&settings_path)? } else { Map::new() };
        same_case(&settings, &read_json(&path)?)
            .map_err(|message| DataError::file(&settings_path, message))?;
        // Where there is no limit transformers writes 10^30.
        let most = settings
            .get("model_max_length")
            .and_then(Value::as_u64)
            .map_or(context, |n| context.min(n as usize));
        let direction = match settings.get("truncation_side").and_then(Value::as_str) {
            Some("left") => TruncationDirection::Left,
            _ => TruncationDirection::Right,
        };
        let strategy = TruncationStrategy::LongestFirst;
        let truncation = TruncationParams { max_length: most, strategy, stride: 0, direction };
        // What tokenizer.json itself says of truncation and padding is of its training; transformers overrides it too.
        tokenizer
            .with_truncation(Some(truncation))
            .map_err(|e| fail(format!("sequences of {most} tokens are not possible with it: {e}")))?;
        tokenizer.with_padding(None);
        let config = read_json(&dir.join("config.json"))?;
        let segments = config.get("type_vocab_size").and_then(Value::as_u64).is_some_and(|n| n > 1);
        Ok(Self { path, tokenizer, segments })
    }

    /// One text, or two that belong together, with the special tokens of the model.
    ///
    /// # Errors
    /// When the tokenizer cannot encode it, or nothing comes out.
    pub fn encode(&self, first: &str, second: Option<&str>) -> Result<Input, String> {
        let encoding = match second {
            Some(second) => self.tokenizer.encode((first, second), true),
            None => self.tokenizer.encode(first, true),
        };
        let encoding = encoding.map_err(|e| format!("{} cannot encode it: {e}", self.path.display()))?;
        let (ids, types) = (encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec());
        match (ids.is_empty(), self.segments) {
            (true, _) => Err("no tokens come out of it".into()),
            (false, true) => Ok(Input::Segments { ids, types }),
            (false, false) => Ok(Input::Tokens(ids)),
        }
    }
}

/// transformers lets `do_lower_case` and `strip_accents` of tokenizer_config.json overrule a BERT normalizer's.
fn same_case(settings: &Map<String, Value>, tokenizer: &Map<String, Value>) -> Result<(), String> {
    let Some(normalizer) = tokenizer.get("normalizer").filter(|n| n["type"] == "BertNormalizer") else {
        return Ok(());
    };
    for (ours, theirs) in [("do_lower_case", "lowercase"), ("strip_accents", "strip_accents")] {
        match settings.get(ours) {
            Some(value) if *value != normalizer[theirs] => {
                return Err(format!(
                    "{ours} is {value}, but the normalizer of tokenizer.json has {theirs} = {}; make them agree",
                    normalizer[theirs]
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    /// A word-level tokenizer in the form of BERT's, with a truncation and padding of its own.
    fn folder(settings: Value, types: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d", "e"];
        let vocab: Map<String, Value> =
            words.iter().enumerate().map(|(i, w)| (w.to_string(), i.into())).collect();
        let piece = |id: &str, t: u32| json!({"SpecialToken": {"id": id, "type_id": t}});
        let text = |id: &str, t: u32| json!({"Sequence": {"id": id, "type_id": t}});
        let special = |id: &str, n: u32| json!({"id": id, "ids": [n], "tokens": [id]});
        let tokenizer = json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "OnlyFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [],
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                           "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [piece("[CLS]", 0), text("A", 0), piece("[SEP]", 0)],
                "pair": [piece("[CLS]", 0), text("A", 0), piece("[SEP]", 0), text("B", 1), piece("[SEP]", 1)],
                "special_tokens": {"[CLS]": special("[CLS]", 1), "[SEP]": special("[SEP]", 2)}
            },
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
        });
        let write = |name: &str, value: &Value| fs::write(dir.path().join(name), value.to_string()).unwrap();
        write("tokenizer.json", &tokenizer);
        write("tokenizer_config.json", &settings);
        write("config.json", &json!({"type_vocab_size": types}));
        dir
    }

    fn segments(ids: &[u32], types: &[u32]) -> Input {
        Input::Segments { ids: ids.into(), types: types.into() }
    }

    #[test]
    fn pairs_are_told_apart_and_cut_at_the_longer_text() {
        let dir = folder(json!({"model_max_length": 7}), 2);
        let encoder = Encoder::open(dir.path(), 512).unwrap();
        assert_eq!(encoder.encode("A b zz", None).unwrap(), segments(&[1, 4, 5, 3, 2], &[0; 5]));
        assert_eq!(encoder.encode("a", Some("b")).unwrap(), segments(&[1, 4, 2, 5, 2], &[0, 0, 0, 1, 1]));
        let long = encoder.encode("a b c d e a b", Some("c")).unwrap();
        assert_eq!(long, segments(&[1, 4, 5, 6, 2, 6, 2], &[0, 0, 0, 0, 0, 1, 1]));
        // The model's own context is shorter.
        let encoder = Encoder::open(dir.path(), 4).unwrap();
        assert_eq!(encoder.encode("a b c d", None).unwrap(), segments(&[1, 4, 5, 2], &[0; 4]));
    }

    #[test]
    fn the_folder_says_from_which_end_and_whether_segments_are_told() {
        let dir = folder(json!({"truncation_side": "left", "model_max_length": 1e30}), 1);
        let encoder = Encoder::open(dir.path(), 4).unwrap();
        assert_eq!(encoder.encode("a b c d", None).unwrap(), Input::Tokens(vec![1, 6, 7, 2]));
    }

    #[test]
    fn contradictions_are_refused() {
        let dir = folder(json!({"do_lower_case": false}), 2);
        let error = Encoder::open(dir.path(), 8).err().unwrap().to_string();
        assert!(error.contains("tokenizer_config.json: do_lower_case is false"), "{error}");
        let dir = folder(json!({"do_lower_case": true}), 2);
        fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        assert!(Encoder::open(dir.path(), 8).err().unwrap().to_string().contains("not found"));
    }
}
