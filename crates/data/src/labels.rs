//! A model's classes, as its config.json names them.

use crate::DataError;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Names of a model's classes in the order of its outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    path: PathBuf,
    names: Vec<String>,
    /// config.json gives names of its own, not `LABEL_0`, `LABEL_1` …
    named: bool,
}

impl Labels {
    /// Reads `id2label` of config.json, or `label2id`, or `num_labels`, in this order; without any there are two
    /// classes, as `transformers` has it.
    ///
    /// # Errors
    /// [`DataError::File`] when the classes are not numbered 0, 1, …, or `id2label` and `label2id` contradict each other.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join("config.json");
        let config = read_json(&path)?;
        let fail = |message: String| DataError::file(&path, message);
        let object = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(fail(format!("{key} is not an object"))),
        };
        let (by_id, by_label) = (object("id2label")?, object("label2id")?);
        let names = match (by_id, by_label) {
            (Some(map), _) => from_ids(map).map_err(fail)?,
            (None, Some(map)) => from_labels(map).map_err(fail)?,
            (None, None) => {
                let count = config.get("num_labels").map_or(Some(2), Value::as_u64);
                let count = count.filter(|n| (1..=1 << 20).contains(n));
                let count = count.ok_or_else(|| fail("num_labels is not a number of classes".into()))?;
                (0..count).map(generic).collect()
            }
        };
        if let (Some(_), Some(map)) = (by_id, by_label) {
            // Many configs have kept the generic label2id beside names of their own; nothing reads it.
            for (label, id) in map.iter().filter(|(label, _)| !is_generic(label)) {
                let id = id.as_u64().map_or(usize::MAX, |id| id as usize);
                // Of two classes with one name label2id can only have the last.
                if names.get(id) != Some(label) {
                    let message = format!(
                        "label2id says that {label:?} is class {id}, id2label does not; correct one of them"
                    );
                    return Err(fail(message));
                }
            }
        }
        let named = names.iter().enumerate().any(|(i, name)| *name != generic(i as u64));
        Ok(Self { path, names, named })
    }

    /// The names, class by class.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many classes there are; with one the output is a score.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// Whether config.json names the classes, more than `LABEL_0`.
    pub fn named(&self) -> bool {
        self.named
    }

    /// The class with this name, exactly or, if there is none, but for upper and lower case.
    ///
    /// # Errors
    /// When there is none or several.
    pub fn find(&self, name: &str) -> Result<usize, String> {
        let among = |same: &dyn Fn(&str) -> bool| -> Vec<usize> {
            (0..self.count()).filter(|&i| same(&self.names[i])).collect()
        };
        let mut found = among(&|n| n == name);
        if found.is_empty() {
            found = among(&|n| n.to_lowercase() == name.to_lowercase());
        }
        match found[..] {
            [one] => Ok(one),
            [] => Err(format!("{name:?} is none of the model's classes ({})", self.list())),
            _ => {
                let numbers: Vec<String> = found.iter().map(usize::to_string).collect();
                Err(format!("{name:?} is the name of classes {} of the model", numbers.join(" and ")))
            }
        }
    }

    /// Names for an error message: all, or the first few of many.
    pub(crate) fn list(&self) -> String {
        const MOST: usize = 12;
        let list = self.names.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more =
            if self.count() > MOST { format!(" and {} more", self.count() - MOST) } else { String::new() };
        format!("{list}{more} in {}", self.path.display())
    }
}

pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>, DataError> {
    let bytes = std::fs::read(path).map_err(|e| DataError::file(path, format!("cannot read it: {e}")))?;
    serde_json::from_slice(&bytes).map_err(|e| DataError::file(path, format!("not a JSON object: {e}")))
}

fn generic(i: u64) -> String {
    format!("LABEL_{i}")
}

fn is_generic(name: &str) -> bool {
    name.strip_prefix("LABEL_").is_some_and(|n| n.parse::<u64>().is_ok())
}

fn from_ids(map: &Map<String, Value>) -> Result<Vec<String>, String> {
    let name = |i: usize| {
        let name = map.get(&i.to_string()).ok_or_else(|| {
            format!("id2label has {} classes, but no {i}; they are numbered from 0", map.len())
        })?;
        name.as_str().map(String::from).ok_or_else(|| format!("id2label: {i}: {name} is not a string"))
    };
    if map.is_empty() {
        return Err("id2label has no classes".into());
    }
    (0..map.len()).map(name).collect()
}

fn from_labels(map: &Map<String, Value>) -> Result<Vec<String>, String> {
    let mut names = vec![None; map.len()];
    for (label, id) in map {
        let place = id.as_u64().and_then(|id| names.get_mut(id as usize));
        let place = place.ok_or_else(|| {
            format!("label2id: {label}: {id} is not a number from 0 to {}", map.len().saturating_sub(1))
        })?;
        *place = Some(label.clone());
    }
    let names: Option<Vec<String>> = names.into_iter().collect();
    names.filter(|n| !n.is_empty()).ok_or_else(|| "label2id does not number its classes from 0".into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The labels of a config.json with this text.
    pub(crate) fn labels(config: &str) -> Result<Labels, DataError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        Labels::open(dir.path())
    }

    #[test]
    fn classes_come_from_whatever_config_json_has() {
        for (config, names, named) in [
            (r#"{"id2label": {"1": "b", "0": "a"}, "label2id": {"a": 0, "b": 1}}"#, &["a", "b"][..], true),
            (
                r#"{"id2label": {"0": "a", "1": "b"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}"#,
                &["a", "b"],
                true,
            ),
            (r#"{"label2id": {"b": 1, "a": 0}}"#, &["a", "b"], true),
            (r#"{"id2label": {"0": "LABEL_0"}}"#, &["LABEL_0"], false),
            (r#"{"num_labels": 3}"#, &["LABEL_0", "LABEL_1", "LABEL_2"], false),
            ("{}", &["LABEL_0", "LABEL_1"], false),
        ] {
            let labels = labels(config).unwrap();
            assert_eq!((labels.names(), labels.named()), (&names.map_to_strings()[..], named), "{config}");
        }
    }

    trait Strings {
        fn map_to_strings(&self) -> Vec<String>;
    }

    impl Strings for &[&str] {
        fn map_to_strings(&self) -> Vec<String> {
            self.iter().map(|s| s.to_string()).collect()
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (config, needle) in [
            (r#"{"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}"#, "\"a\" is class 1"),
            (r#"{"id2label": {"0": "a", "2": "b"}}"#, "no 1"),
            (r#"{"id2label": {}}"#, "no classes"),
            (r#"{"label2id": {"a": 0, "b": 2}}"#, "not a number from 0 to 1"),
            (r#"{"label2id": {"a": 0, "b": 0}}"#, "from 0"),
            (r#"{"id2label": 3}"#, "not an object"),
            ("[]", "not a JSON object"),
        ] {
            let error = labels(config).unwrap_err().to_string();
            assert!(error.contains(needle) && error.contains("config.json"), "{config}: {error}");
        }
    }

    #[test]
    fn a_name_is_found_whatever_its_case() {
        let labels =
            labels(r#"{"id2label": {"0": "NEGATIVE", "1": "POSITIVE", "2": "crane", "3": "crane"}}"#)
                .unwrap();
        assert_eq!(labels.find("positive"), Ok(1));
        assert!(labels.find("neutral").unwrap_err().contains("NEGATIVE, POSITIVE"));
        assert!(labels.find("crane").unwrap_err().contains("classes 2 and 3"));
    }
}
