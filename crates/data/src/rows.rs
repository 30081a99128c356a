//! The rows of a file, jsonl, parquet or tsv, with what is needed to complain about one.

use crate::DataError;
use crate::panics::without_panic;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use serde_json::{Map, Value};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The rows of a file.
#[derive(Clone, Debug)]
pub struct Rows {
    path: PathBuf,
    /// `line` or `row`.
    unit: &'static str,
    /// The number of each row in the file, from 1, and its fields.
    rows: Vec<(usize, Row)>,
}

/// The fields of a row by their names.
#[derive(Clone, Debug, PartialEq)]
pub struct Row(Map<String, Value>);

impl Rows {
    /// Reads a file in the form that the end of its name says.
    ///
    /// A tsv file has fields between tabs and nothing that quotes them. Its first line has the names of the columns if
    /// one of `names` is among them; if none is, the columns are called 1, 2, and so on.
    ///
    /// # Errors
    /// [`DataError::File`] for another form or a damaged file, [`DataError::Row`] for a wrong line.
    pub fn read(path: &Path, names: &[&str]) -> Result<Self, DataError> {
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("jsonl") => Self::from_jsonl(path.into()),
            Some("parquet") => Self::from_parquet(path.into()),
            Some("tsv") => Self::from_tsv(path.into(), names),
            _ => Err(DataError::file(path, "not a name that ends in .jsonl, .parquet or .tsv")),
        }
    }

    fn from_jsonl(path: PathBuf) -> Result<Self, DataError> {
        let text = read_utf8(&path)?;
        let mut rows = Self { path, unit: "line", rows: Vec::new() };
        for (i, line) in text.split('\n').enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(Value::Object(fields)) => rows.rows.push((i + 1, Row(fields))),
                Ok(_) => return Err(rows.wrong(i + 1, "not a JSON object".into())),
                Err(e) => return Err(rows.wrong(i + 1, format!("not JSON: {e}"))),
            }
        }
        Ok(rows)
    }

    fn from_parquet(path: PathBuf) -> Result<Self, DataError> {
        match without_panic(|| records(&path)) {
            Some(Ok(rows)) => Ok(Self { path, unit: "row", rows }),
            Some(Err(message)) => Err(DataError::file(&path, message)),
            None => Err(DataError::file(&path, "a damaged parquet file; get it again")),
        }
    }

    fn from_tsv(path: PathBuf, names: &[&str]) -> Result<Self, DataError> {
        let text = read_utf8(&path)?;
        let mut rows = Self { path, unit: "line", rows: Vec::new() };
        let lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).enumerate();
        let mut lines = lines.filter(|(_, line)| !line.is_empty()).peekable();
        let Some((_, first)) = lines.peek() else { return Ok(rows) };
        let mut columns: Vec<String> = first.split('\t').map(String::from).collect();
        if columns.iter().any(|c| names.contains(&c.as_str())) {
            lines.next();
            for (i, column) in columns.iter().enumerate() {
                if columns[..i].contains(column) {
                    return Err(rows.wrong(1, format!("two columns have the name {column:?}")));
                }
            }
        } else {
            columns = (1..=columns.len()).map(|n| n.to_string()).collect();
        }
        for (i, line) in lines {
            let fields: Vec<&str> = line.split('\t').collect();
            if fields.len() != columns.len() {
                let message = format!(
                    "{} fields where the first line has {}; there is a tab too many or too few",
                    fields.len(),
                    columns.len()
                );
                return Err(rows.wrong(i + 1, message));
            }
            let fields = columns.iter().cloned().zip(fields.into_iter().map(Value::from));
            rows.rows.push((i + 1, Row(fields.collect())));
        }
        Ok(rows)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Each row with its number in the file, from 1.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Row)> {
        self.rows.iter().map(|(number, row)| (*number, row))
    }

    /// The first row, if there is one.
    pub fn first(&self) -> Option<&Row> {
        self.rows.first().map(|r| &r.1)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What a row is called: `line` or `row`.
    pub fn unit(&self) -> &'static str {
        self.unit
    }

    /// The error for row `number`.
    pub fn wrong(&self, number: usize, message: String) -> DataError {
        let row = format!("{} {number}", self.unit);
        DataError::Row { path: self.path.display().to_string(), row, message }
    }
}

fn read_utf8(path: &Path) -> Result<String, DataError> {
    let bytes = std::fs::read(path).map_err(|e| DataError::file(path, format!("cannot read it: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| DataError::file(path, format!("not UTF-8 text: {e}")))?;
    // The mark that some editors put before everything.
    Ok(text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text))
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
        Field::Float(v) => (*v).into(),
        Field::Double(v) => (*v).into(),
        Field::Str(v) => v.clone().into(),
        Field::Bytes(v) => std::str::from_utf8(v.data()).map_or(Value::Null, Value::from),
        Field::Group(record) => fields(record).into(),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        _ => Value::Null,
    }
}

impl From<Map<String, Value>> for Row {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields)
    }
}

impl Row {
    /// The field, if it is there, null or not.
    pub fn find(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Names of the fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The field, which must be there.
    ///
    /// # Errors
    /// With the names of those that are.
    pub fn get(&self, key: &str) -> Result<&Value, String> {
        self.find(key).filter(|v| !v.is_null()).ok_or_else(|| {
            let known = self.names().collect::<Vec<_>>().join(", ");
            format!("field {key:?} is missing (there are {known})")
        })
    }

    /// A string.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn text(&self, key: &str) -> Result<&str, String> {
        self.get(key)?.as_str().ok_or_else(|| format!("field {key:?} is not a string"))
    }

    /// The index of a choice, a number or a string with a number, from `first` on.
    ///
    /// # Errors
    /// When it is missing or none of the choices.
    pub fn index(&self, key: &str, first: i64, choices: usize) -> Result<usize, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn write(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn a_tsv_file_has_the_names_that_are_looked_for_or_numbers() {
        let (_dir, path) = write("a.tsv", "\u{feff}sentence\tlabel\r\n\"a\" \t1\r\n\r\nb\t0\n");
        let rows = Rows::read(&path, &["sentence"]).unwrap();
        let found: Vec<_> = rows.iter().map(|(n, r)| (n, r.text("sentence").unwrap())).collect();
        assert_eq!(found, [(2, "\"a\" "), (4, "b")], "lines, and quotes as they stand");
        let rows = Rows::read(&path, &["text"]).unwrap();
        assert_eq!(rows.first().unwrap().names().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(rows.len(), 3);
        assert_eq!(rows.iter().last().unwrap().1.index("2", 0, 2), Ok(0));
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, needle) in [
            ("sentence\tlabel\na\t1\nb\t1\t2\n", "a.tsv, line 3: 3 fields where the first line has 2"),
            ("sentence\tsentence\n", "two columns have the name \"sentence\""),
        ] {
            let (_dir, path) = write("a.tsv", text);
            let error = Rows::read(&path, &["sentence"]).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
        let (_dir, path) = write("a.csv", "a,b");
        assert!(Rows::read(&path, &[]).unwrap_err().to_string().contains(".jsonl, .parquet or .tsv"));
    }

    #[test]
    fn a_damaged_parquet_file_is_an_error_or_read_but_never_a_panic() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/glue.parquet");
        let whole = std::fs::read(golden).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        for at in (0..whole.len()).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
            std::fs::write(&path, &bytes).unwrap();
            let _ = Rows::read(&path, &[]);
        }
        for length in (0..whole.len()).step_by(17) {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Rows::read(&path, &[]).is_err(), "cut to {length} bytes");
        }
    }
}
