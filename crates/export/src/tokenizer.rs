//! A Hugging Face tokenizer as GGUF metadata: byte-level BPE ("gpt2") with a pre-tokenizer that llama.cpp knows by name,
//! or BPE with byte fallback, as SentencePiece makes it ("llama").

use halfbyte_checkpoint::gguf::GgufValue::{self, Bool, F32s, I32s, Text, Texts, U32};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Token types of llama.cpp.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The keys `tokenizer.*` for the model folder `dir`.
pub(crate) fn values(
    dir: &Path,
    config: &Value,
    vocabulary: usize,
) -> Result<Vec<(String, GgufValue)>, String> {
    let tokenizer = read(&dir.join("tokenizer.json"))?.ok_or("the folder has no tokenizer.json")?;
    let settings = read(&dir.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
    let generation = read(&dir.join("generation_config.json"))?.unwrap_or(Value::Null);
    let model = &tokenizer["model"];
    let is_bpe = model["type"].as_str().is_none_or(|t| t == "BPE");
    let vocab = model["vocab"].as_object().filter(|_| is_bpe).ok_or("its tokenizer is not BPE")?;

    let byte_fallback = model["byte_fallback"] == true;
    let (tokens, types) = tokens(&tokenizer, vocab, vocabulary)?;
    let ids: HashMap<&str, u32> = tokens.iter().enumerate().map(|(i, t)| (t.as_str(), i as u32)).collect();
    let merges: Vec<String> = model["merges"].as_array().into_iter().flatten().filter_map(merge).collect();

    let mut out = Vec::new();
    let mut add = |key: &str, value| out.push((format!("tokenizer.{key}"), value));
    if byte_fallback {
        // SentencePiece merges the pair whose piece has the highest score: the earlier its first merge, the higher.
        let mut scores = vec![0.0; vocabulary];
        for (rank, merge) in merges.iter().enumerate().rev() {
            if let Some(&id) = ids.get(merge.replacen(' ', "", 1).as_str()) {
                scores[id as usize] = -(rank as f32) - 1.0;
            }
        }
        add("ggml.model", Text("llama".into()));
        add("ggml.pre", Text("default".into()));
        add("ggml.scores", F32s(scores));
        add("ggml.add_space_prefix", Bool(adds_space(&tokenizer)));
    } else {
        let pre = pre_tokenizer(&tokenizer)?;
        add("ggml.model", Text("gpt2".into()));
        add("ggml.pre", Text(pre.into()));
        add("ggml.merges", Texts(merges));
        add("ggml.add_space_prefix", Bool(false));
    }
    let special = |role: &str| {
        let configured =
            [&generation, config].into_iter().find_map(|c| match &c[format!("{role}_token_id")] {
                Value::Array(list) => list.first().and_then(Value::as_u64),
                id => id.as_u64(),
            });
        let by_text = || {
            let token = &settings[format!("{role}_token")];
            token.as_str().or(token["content"].as_str()).and_then(|t| ids.get(t).map(|&id| u64::from(id)))
        };
        configured.or_else(by_text).filter(|&id| id < vocabulary as u64).map(|id| id as u32)
    };
    for (role, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        if let Some(id) = special(role) {
            add(&format!("ggml.{key}_token_id"), U32(id));
        }
    }
    for role in ["bos", "eos"] {
        let text = special(role).map(|id| tokens[id as usize].as_str());
        add(&format!("ggml.add_{role}_token"), Bool(adds(&tokenizer, &settings, role, text)));
    }
    let file = fs::read_to_string(dir.join("chat_template.jinja")).ok().map(Value::String);
    let older = read(&dir.join("chat_template.json"))?.map(|v| v["chat_template"].clone());
    for (name, template) in chat_templates(&file.or(older).unwrap_or(settings["chat_template"].clone())) {
        let key = if name == "default" { "chat_template".into() } else { format!("chat_template.{name}") };
        add(&key, Text(template.into()));
    }
    add("ggml.tokens", Texts(tokens));
    add("ggml.token_type", I32s(types));
    Ok(out)
}

/// The text and the type of every token by its number.
fn tokens(
    tokenizer: &Value,
    vocab: &Map<String, Value>,
    vocabulary: usize,
) -> Result<(Vec<String>, Vec<i32>), String> {
    let mut tokens = vec![String::new(); vocabulary];
    let mut types = vec![UNUSED; vocabulary];
    let byte_fallback = tokenizer["model"]["byte_fallback"] == true;
    let unknown = tokenizer["model"]["unk_token"].as_str();
    let mut put = |id: Option<u64>, text: &str, kind: i32| {
        let id = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < vocabulary);
        let id =
            id.ok_or_else(|| format!("token {text:?} has no id below the vocabulary's size {vocabulary}"))?;
        tokens[id] = text.to_owned();
        types[id] = kind;
        Ok::<(), String>(())
    };
    for (text, id) in vocab {
        let byte = byte_fallback && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = match byte {
            true => BYTE,
            false if byte_fallback && Some(text.as_str()) == unknown => UNKNOWN,
            false => NORMAL,
        };
        put(id.as_u64(), text, kind)?;
    }
    for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let text = added["content"].as_str().unwrap_or_default();
        let kind = match added["special"] == true {
            true if byte_fallback && Some(text) == unknown => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
        put(added["id"].as_u64(), text, kind)?;
    }
    for (id, token) in tokens.iter_mut().enumerate().filter(|(id, _)| types[*id] == UNUSED) {
        *token = format!("[PAD{id}]");
    }
    Ok((tokens, types))
}

fn read(path: &Path) -> Result<Option<Value>, String> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| format!("{}: {e}", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

/// A merge as `left right`; it is a text in older files and a pair in newer.
fn merge(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    }
}

/// Whether the token `text` is put at the beginning (bos) or end (eos) of a text: the settings say so, or the template of the
/// post-processor, which may be one of several steps (LLaMA 3).
fn adds(tokenizer: &Value, settings: &Value, role: &str, text: Option<&str>) -> bool {
    if let Some(said) = settings[format!("add_{role}_token")].as_bool() {
        return said;
    }
    let post = &tokenizer["post_processor"];
    let steps = post["processors"].as_array().map_or(std::slice::from_ref(post), Vec::as_slice);
    let single = steps.iter().find_map(|step| step["single"].as_array());
    let end = single.and_then(|s| if role == "bos" { s.first() } else { s.last() });
    end.and_then(|e| e["SpecialToken"]["id"].as_str()).is_some_and(|id| Some(id) == text)
}

/// Names and texts of chat templates: of one text, "default"; of a list, those that it gives.
fn chat_templates(value: &Value) -> Vec<(&str, &str)> {
    match value {
        Value::String(text) => vec![("default", text)],
        Value::Array(list) => {
            list.iter().filter_map(|t| Some((t["name"].as_str()?, t["template"].as_str()?))).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a space is put before a text.
fn adds_space(tokenizer: &Value) -> bool {
    let prepends = |n: &Value| n["type"] == "Prepend";
    let normalizer = &tokenizer["normalizer"];
    let metaspace = &tokenizer["pre_tokenizer"];
    prepends(normalizer)
        || normalizer["normalizers"].as_array().is_some_and(|list| list.iter().any(prepends))
        || (metaspace["type"] == "Metaspace"
            && metaspace["prepend_scheme"] != "never"
            && metaspace["add_prefix_space"] != false)
}

/// The name by which llama.cpp knows how the text is split before byte-level BPE.
fn pre_tokenizer(tokenizer: &Value) -> Result<&'static str, String> {
    let pre = &tokenizer["pre_tokenizer"];
    let steps: Vec<&Value> = match pre["pretokenizers"].as_array() {
        Some(list) => list.iter().collect(),
        None => vec![pre],
    };
    let kinds: Vec<&str> = steps.iter().map(|s| s["type"].as_str().unwrap_or_default()).collect();
    let pattern = steps.iter().find_map(|s| s["pattern"]["Regex"].as_str());
    match (kinds.as_slice(), pattern) {
        (["ByteLevel"], None) => Ok("gpt-2"),
        (["Digits", "ByteLevel"], None) if steps[0]["individual_digits"] == true => Ok("smollm"),
        (["Split", "ByteLevel"], Some(LLAMA3)) => Ok("llama-bpe"),
        (["Split", "ByteLevel"], Some(QWEN2)) => Ok("qwen2"),
        _ => Err(format!("its pre-tokenizer ({}) is none that llama.cpp is known to have", kinds.join(", "))),
    }
}

/// The patterns of LLaMA 3 and of Qwen 2 and 3, which differ in how many digits go together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn known_pre_tokenizers_have_names() {
        let of = |pre: Value| pre_tokenizer(&json!({ "pre_tokenizer": pre }));
        assert_eq!(of(json!({ "type": "ByteLevel" })), Ok("gpt-2"));
        let digits = json!({ "type": "Digits", "individual_digits": true });
        let smollm = json!({ "type": "Sequence", "pretokenizers": [digits, { "type": "ByteLevel" }] });
        assert_eq!(of(smollm), Ok("smollm"));
        let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex } });
        let qwen = json!({ "type": "Sequence", "pretokenizers": [split(QWEN2), { "type": "ByteLevel" }] });
        assert_eq!(of(qwen), Ok("qwen2"));
        let other = json!({ "type": "Sequence", "pretokenizers": [split("x"), { "type": "ByteLevel" }] });
        assert!(of(other).unwrap_err().contains("Split"));
    }

    #[test]
    fn the_beginning_of_a_text_is_found_in_the_post_processor() {
        let template = json!({ "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }] });
        // As in LLaMA 3.
        let steps = json!({ "type": "Sequence", "processors": [{ "type": "ByteLevel" }, template] });
        let of = |post: &Value, role: &str, text| {
            adds(&json!({ "post_processor": post }), &Value::Null, role, text)
        };
        for post in [&template, &steps] {
            assert!(of(post, "bos", Some("<s>")) && !of(post, "eos", Some("</s>")));
            // The first token is another than the one that the engine would add.
            assert!(!of(post, "bos", Some("[CLS]")));
        }
        assert!(!of(&json!({ "type": "ByteLevel" }), "bos", Some("<s>")));
        let settings = json!({ "add_bos_token": false });
        assert!(!adds(&json!({ "post_processor": template }), &settings, "bos", Some("<s>")));
    }

    #[test]
    fn chat_templates_have_two_spellings() {
        assert_eq!(chat_templates(&json!("{{x}}")), [("default", "{{x}}")]);
        let list = json!([{ "name": "default", "template": "a" }, { "name": "tool_use", "template": "b" }, { "name": "c" }]);
        assert_eq!(chat_templates(&list), [("default", "a"), ("tool_use", "b")]);
        assert_eq!(chat_templates(&Value::Null), []);
    }

    #[test]
    fn merges_have_two_spellings() {
        assert_eq!(merge(&json!("a b")), Some("a b".into()));
        assert_eq!(merge(&json!(["a", "b"])), Some("a b".into()));
        assert_eq!(merge(&json!(3)), None);
    }
}
