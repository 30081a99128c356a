//! The first tokens of a text, without encoding all of it.

#![allow(clippy::unwrap_used)]

mod util;

use halfbyte_model::Tokenizer;
use std::path::Path;
use util::asset;

/// The first tokens are those of the whole text, cut into lines, into words, or not at all.
fn check(tokenizer: &Path, text: &str) {
    let tokenizer = Tokenizer::from_file(tokenizer).unwrap();
    for text in [text, &text.replace('\n', " "), &text.replace(['\n', ' '], "é")] {
        let all = tokenizer.encode(text).unwrap();
        for wanted in [0, 1, 100, 5000, all.len() - 1, all.len(), usize::MAX] {
            let found = tokenizer.encode_first(text, wanted).unwrap();
            assert_eq!(found, all[..wanted.min(all.len())], "{wanted} of {}", all.len());
        }
    }
}

#[test]
fn of_the_embedded_model() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../halfbyte/assets");
    let text = std::fs::read_to_string(assets.join("tinystories.txt")).unwrap();
    check(&assets.join("stories260K/tokenizer.json"), &text);
}

#[test]
fn of_smollm2() {
    let (Some(tokenizer), Some(text)) =
        (asset("models/SmolLM2-135M-Instruct/tokenizer.json"), asset("data/calibration/coqa_stories.txt"))
    else {
        return;
    };
    check(&tokenizer, &std::fs::read_to_string(text).unwrap());
}
