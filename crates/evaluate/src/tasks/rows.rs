//! The rows of a task's file, jsonl or parquet, with what is needed to complain about one.

use crate::EvaluateError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// The rows of a file.
pub(super) struct Rows {
    pub(super) path: PathBuf,
    /// `line` or `row`.
    unit: &'static str,
    /// The number of each row in the file, from 1, and its fields.
    pub(super) rows: Vec<(usize, Row)>,
}

/// The fields of a row.
pub(super) struct Row(pub(super) Map<String, Value>);

impl Rows {
    /// Reads `NAME.jsonl` or `NAME.parquet` of `dir`.
    pub(super) fn open(dir: &Path, name: &str) -> Result<Self, EvaluateError> {
        let fail = |message: String| EvaluateError::Task { name: name.into(), message };
        let [jsonl, parquet] = ["jsonl", "parquet"].map(|kind| dir.join(format!("{name}.{kind}")));
        match (jsonl.is_file(), parquet.is_file()) {
            (true, true) => Err(fail(format!(
                "there are both {} and {}; which is meant? Move one away",
                jsonl.display(),
                parquet.display()
            ))),
            (true, false) => Self::from_jsonl(jsonl),
            (false, true) => Self::from_parquet(parquet),
            (false, false) => Err(fail(format!(
                "neither {} nor {} is there; --task-dir is the folder with the files of the tasks",
                jsonl.display(),
                parquet.display()
            ))),
        }
    }

    fn from_jsonl(path: PathBuf) -> Result<Self, EvaluateError> {
        let mut rows = Self { path, unit: "line", rows: Vec::new() };
        let fail = |message| EvaluateError::Text { path: rows.path.display().to_string(), message };
        let bytes = std::fs::read(&rows.path).map_err(|e| fail(format!("cannot read it: {e}")))?;
        let text = String::from_utf8(bytes).map_err(|e| fail(format!("not UTF-8 text: {e}")))?;
        for (i, line) in text.split('\n').enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(Value::Object(fields)) => rows.rows.push((i + 1, Row(fields))),
                Ok(_) => return Err(rows.wrong(i + 1, "not a JSON object".into())),
                Err(e) => return Err(rows.wrong(i + 1, format!("not JSON: {e}"))),
            }
        }
        Ok(rows)
    }

    fn from_parquet(path: PathBuf) -> Result<Self, EvaluateError> {
        match without_panic(|| records(&path)) {
            Some(Ok(rows)) => Ok(Self { path, unit: "row", rows }),
            Some(Err(message)) => Err(EvaluateError::Text { path: path.display().to_string(), message }),
            None => {
                let message = "a damaged parquet file; get it again".into();
                Err(EvaluateError::Text { path: path.display().to_string(), message })
            }
        }
    }

    /// What a row is called: `line` or `row`.
    pub(super) fn unit(&self) -> &'static str {
        self.unit
    }

    /// The error for row `number`.
    pub(super) fn wrong(&self, number: usize, message: String) -> EvaluateError {
        let row = format!("{} {number}", self.unit);
        EvaluateError::Row { path: self.path.display().to_string(), row, message }
    }
}

/// The rows of a parquet file.
fn records(path: &Path) -> Result<Vec<(usize, Row)>, String> {
    let file = File::open(path).map_err(|e| format!("cannot read it: {e}"))?;
    let reader = SerializedFileReader::new(file).map_err(|e| format!("not a parquet file: {e}"))?;
    let records = reader.get_row_iter(None).map_err(|e| format!("cannot read its rows: {e}"))?;
    let row = |(i, record): (usize, parquet::errors::Result<Record>)| {
        let record = record.map_err(|e| format!("cannot read row {}: {e}", i + 1))?;
        Ok((i + 1, Row(fields(&record))))
    };
    records.enumerate().map(row).collect()
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; `None` if it panics, of which nothing is printed. The parquet reader asserts things that a damaged file
/// breaks.
fn without_panic<T>(f: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    QUIET.set(false);
    result.ok()
}

fn fields(record: &Record) -> Map<String, Value> {
    record.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// The types that occur in tasks; anything else is as good as missing.
fn value(field: &Field) -> Value {
    match field {
        Field::Bool(v) => (*v).into(),
        Field::Byte(v) => (*v).into(),
        Field::Short(v) => (*v).into(),
        Field::Int(v) => (*v).into(),
        Field::Long(v) => (*v).into(),
        Field::UByte(v) => (*v).into(),
        Field::UShort(v) => (*v).into(),
        Field::UInt(v) => (*v).into(),
        Field::ULong(v) => (*v).into(),
        Field::Str(v) => v.clone().into(),
        Field::Bytes(v) => std::str::from_utf8(v.data()).map_or(Value::Null, Value::from),
        Field::Group(record) => fields(record).into(),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        _ => Value::Null,
    }
}

impl Row {
    /// The field, which must be there.
    pub(super) fn get(&self, key: &str) -> Result<&Value, String> {
        self.0.get(key).filter(|v| !v.is_null()).ok_or_else(|| {
            let known = self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("field {key:?} is missing (there are {known})")
        })
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<&str, String> {
        self.get(key)?.as_str().ok_or_else(|| format!("field {key:?} is not a string"))
    }

    /// A list of strings, at least two and none empty.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, String> {
        texts(self.get(key)?, key)
    }

    /// `choices` with `text` and `label`, and the index of `answerKey` among the labels.
    pub(super) fn labelled_choices(&self) -> Result<(Vec<String>, usize), String> {
        let choices = self.get("choices")?;
        let part = |name: &str| {
            let list = choices.get(name).ok_or_else(|| format!("field \"choices\" has no {name:?}"))?;
            texts(list, &format!("choices.{name}"))
        };
        let (text, labels) = (part("text")?, part("label")?);
        if text.len() != labels.len() {
            return Err(format!("{} choices have {} labels", text.len(), labels.len()));
        }
        let answer = self.text("answerKey")?.trim_start();
        let gold = labels
            .iter()
            .position(|l| l == answer)
            .ok_or_else(|| format!("answerKey {answer:?} is none of the labels {}", labels.join(", ")))?;
        Ok((text, gold))
    }

    /// The index of a choice, a number or a string with a number, from `first` on.
    pub(super) fn index(&self, key: &str, first: i64, choices: usize) -> Result<usize, String> {
        let value = self.get(key)?;
        let number = value.as_i64().or_else(|| value.as_str().and_then(|s| s.trim().parse().ok()));
        let last = first + choices as i64 - 1;
        match number {
            Some(n) if (first..=last).contains(&n) => Ok((n - first) as usize),
            _ => Err(format!(
                "field {key:?} is {value}, not a number from {first} to {last} (a file without answers?)"
            )),
        }
    }
}

fn texts(value: &Value, key: &str) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or_else(|| format!("field {key:?} is not a list"))?;
    let texts: Option<Vec<String>> = list.iter().map(|v| v.as_str().map(String::from)).collect();
    let texts = texts.ok_or_else(|| format!("field {key:?} has something else than strings in it"))?;
    match texts.len() {
        0 | 1 => Err(format!("field {key:?} has {} entries; a choice needs two", texts.len())),
        _ => Ok(texts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_parquet_file_is_an_error_or_read_but_never_a_panic() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/winogrande.parquet");
        let whole = std::fs::read(golden).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("winogrande.parquet");
        for at in (0..whole.len()).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
            std::fs::write(&path, &bytes).unwrap();
            let _ = Rows::open(dir.path(), "winogrande");
        }
        for length in (0..whole.len()).step_by(17) {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Rows::open(dir.path(), "winogrande").is_err(), "cut to {length} bytes");
        }
    }
}
