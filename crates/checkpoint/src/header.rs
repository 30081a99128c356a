//! The JSON header of a safetensors file: what it says, and whether it can be true.
//!
//! The official crate checks the same things, but from a whole file in memory and without naming the tensor;
//! it serves the tests as the second opinion.

use crate::{
    dtype::Dtype,
    error::{CheckpointError, WriteError},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::error::Category;
use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::Path,
};

/// Longest header that the format allows, in bytes.
pub(crate) const HEADER_LIMIT: u64 = 100_000_000;

/// Bytes before the header: its length, little-endian.
pub(crate) const PREFIX: u64 = 8;

const METADATA: &str = "__metadata__";

/// One tensor as announced in a header: name, type, shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, unique in the file.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Announces a tensor.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// Its bytes, or an error that names it.
    pub(crate) fn byte_len(&self, path: &Path) -> Result<u64, WriteError> {
        self.dtype.byte_len(&self.shape).ok_or_else(|| WriteError::ImpossibleShape {
            path: path.into(),
            tensor: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
        })
    }
}

/// A tensor and its place, counted in bytes from the beginning of the data.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) spec: TensorSpec,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// A header, checked: the tensors, in the order of their data, cover it without hole or overlap.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) tensors: Vec<Placed>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Header {
    /// Parses the header's JSON and checks it against the `data` bytes that follow it in `file`.
    pub(crate) fn parse(file: &Path, json: &[u8], data: u64) -> Result<Self, CheckpointError> {
        let raw = RawHeader::parse(file, json)?;
        let mut names = HashSet::with_capacity(raw.entries.len());
        if let Some((name, _)) = raw.entries.iter().find(|(name, _)| !names.insert(name)) {
            return Err(CheckpointError::DuplicateTensor { file: file.into(), tensor: name.clone() });
        }
        let mut tensors = Vec::with_capacity(raw.entries.len());
        for (name, entry) in raw.entries {
            tensors.push(entry.check(file, name)?);
        }
        tensors.sort_by(|a, b| (a.start, a.end, &a.spec.name).cmp(&(b.start, b.end, &b.spec.name)));
        check_layout(file, &tensors, PREFIX + json.len() as u64, data)?;
        Ok(Self { tensors, metadata: raw.metadata })
    }
}

/// The tensors must follow each other without hole or overlap, from the first byte of the data to the last.
fn check_layout(file: &Path, tensors: &[Placed], before: u64, data: u64) -> Result<(), CheckpointError> {
    let mut end = 0;
    let mut previous: Option<&Placed> = None;
    for tensor in tensors {
        let name = || tensor.spec.name.clone();
        if tensor.start < end {
            let first = previous.map(|p| p.spec.name.clone()).unwrap_or_default();
            return Err(CheckpointError::Overlap { file: file.into(), first, second: name() });
        }
        if tensor.start > end {
            let (file, tensor_name) = (file.into(), name());
            return Err(if tensor.start > data {
                let (start, end) = (tensor.start, tensor.end);
                CheckpointError::OffsetsOutOfRange { file, tensor: tensor_name, start, end, data }
            } else {
                CheckpointError::Hole { file, tensor: tensor_name, bytes: tensor.start - end }
            });
        }
        end = tensor.end;
        previous = Some(tensor);
    }
    if end < data {
        return Err(CheckpointError::TrailingBytes { file: file.into(), extra: data - end });
    }
    if let Some(cut) = tensors.iter().find(|t| t.end > data) {
        let (len, expected) = (before + data, before.saturating_add(end));
        return Err(CheckpointError::Truncated {
            file: file.into(),
            tensor: cut.spec.name.clone(),
            len,
            expected,
        });
    }
    Ok(())
}

/// One entry as it stands in the JSON, nothing checked yet.
#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl RawEntry {
    fn check(self, file: &Path, tensor: String) -> Result<Placed, CheckpointError> {
        let file = || file.to_path_buf();
        let Self { dtype, shape, data_offsets: (start, end) } = self;
        let Some(dtype) = Dtype::from_name(&dtype) else {
            return Err(CheckpointError::UnknownDtype { file: file(), tensor, dtype });
        };
        let Some(expected) = dtype.byte_len(&shape) else {
            return Err(CheckpointError::ImpossibleShape { file: file(), tensor, dtype, shape });
        };
        let Some(found) = end.checked_sub(start) else {
            return Err(CheckpointError::OffsetsReversed { file: file(), tensor, start, end });
        };
        if found != expected {
            let shape = shape.into();
            return Err(CheckpointError::SizeMismatch {
                file: file(),
                tensor,
                dtype,
                shape,
                expected,
                found,
            });
        }
        Ok(Placed { spec: TensorSpec { name: tensor, dtype, shape }, start, end })
    }
}

/// The entries in the order of the JSON. Kept as a list, so that a name given twice is seen.
#[derive(Default)]
struct RawHeader {
    entries: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

impl RawHeader {
    fn parse(file: &Path, json: &[u8]) -> Result<Self, CheckpointError> {
        // The entry being read is kept outside of the visitor, to name it should parsing stop there.
        let mut entry = String::new();
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let parsed = deserializer
            .deserialize_map(HeaderVisitor { entry: &mut entry })
            .and_then(|header| deserializer.end().map(|()| header));
        parsed.map_err(|cause| match cause.classify() {
            Category::Data => CheckpointError::HeaderMalformed { file: file.into(), entry, cause },
            _ => CheckpointError::HeaderNotJson { file: file.into(), cause },
        })
    }
}

struct HeaderVisitor<'a> {
    entry: &'a mut String,
}

impl<'de> Visitor<'de> for HeaderVisitor<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        while let Some(name) = map.next_key::<String>()? {
            self.entry.clone_from(&name);
            if name == METADATA {
                // The official library takes null for no metadata.
                header.metadata.extend(map.next_value::<Option<BTreeMap<_, _>>>()?.unwrap_or_default());
            } else {
                header.entries.push((name, map.next_value()?));
            }
        }
        Ok(header)
    }
}

/// Lays tensors out as the official library does (largest alignment first, then by name, so that every tensor
/// is aligned) and renders prefix and header, padded with spaces to a multiple of eight bytes.
pub(crate) fn lay_out(
    path: &Path,
    specs: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<Placed>), WriteError> {
    let mut sorted: Vec<&TensorSpec> = specs.iter().collect();
    sorted.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));

    let mut names = HashSet::with_capacity(specs.len());
    let mut placed = Vec::with_capacity(specs.len());
    let mut start = 0u64;
    for spec in sorted {
        if spec.name == METADATA {
            return Err(WriteError::ReservedName { path: path.into() });
        }
        if !names.insert(&spec.name) {
            return Err(WriteError::DuplicateTensor { path: path.into(), tensor: spec.name.clone() });
        }
        let end = start.checked_add(spec.byte_len(path)?).ok_or_else(|| WriteError::ImpossibleShape {
            path: path.into(),
            tensor: spec.name.clone(),
            dtype: spec.dtype,
            shape: spec.shape.clone(),
        })?;
        placed.push(Placed { spec: spec.clone(), start, end });
        start = end;
    }

    let mut header = vec![0; PREFIX as usize];
    let rendered = serde_json::to_writer(&mut header, &Rendered { tensors: &placed, metadata });
    rendered.map_err(|cause| WriteError::Io {
        action: "render the header of",
        path: path.into(),
        cause: cause.into(),
    })?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let len = header.len() - PREFIX as usize;
    if len as u64 > HEADER_LIMIT {
        return Err(WriteError::HeaderTooLarge { path: path.into(), header: len });
    }
    header[..PREFIX as usize].copy_from_slice(&(len as u64).to_le_bytes());
    Ok((header, placed))
}

/// The header as JSON.
struct Rendered<'a> {
    tensors: &'a [Placed],
    metadata: &'a BTreeMap<String, String>,
}

impl Serialize for Rendered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            dtype: &'static str,
            shape: &'a [usize],
            data_offsets: (u64, u64),
        }
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        for Placed { spec, start, end } in self.tensors {
            let entry = Entry { dtype: spec.dtype.name(), shape: &spec.shape, data_offsets: (*start, *end) };
            map.serialize_entry(&spec.name, &entry)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, data: u64) -> Result<Header, CheckpointError> {
        Header::parse(Path::new("w.safetensors"), json.as_bytes(), data)
    }

    /// The message for a header that must be refused, with the name of its error variant.
    #[track_caller]
    fn refusal(json: &str, data: u64) -> (String, String) {
        let error = parse(json, data).unwrap_err();
        let variant = format!("{error:?}");
        (variant.split([' ', '{']).next().unwrap().to_owned(), error.to_string())
    }

    /// A header of F32 tensors from `name start end` triples, each with as many elements as its bytes hold.
    fn f32s(tensors: &[(&str, u64, u64)]) -> String {
        let entry = |(name, start, end): &(&str, u64, u64)| {
            let n = (end - start) / 4;
            format!(r#""{name}":{{"dtype":"F32","shape":[{n}],"data_offsets":[{start},{end}]}}"#)
        };
        format!("{{{}}}", tensors.iter().map(entry).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn tensors_come_in_the_order_of_their_data() {
        let header = parse(&f32s(&[("b", 4, 12), ("empty", 4, 4), ("a", 0, 4)]), 12).unwrap();
        let names: Vec<_> = header.tensors.iter().map(|t| t.spec.name.as_str()).collect();
        assert_eq!(names, ["a", "empty", "b"]);
        assert_eq!(header.tensors[2].spec.shape, [2]);
    }

    #[test]
    fn metadata_is_text_or_absent() {
        let header = parse(r#"{"__metadata__":{"format":"pt"}}"#, 0).unwrap();
        assert_eq!(header.metadata["format"], "pt");
        assert!(parse(r#"{"__metadata__":null}"#, 0).unwrap().metadata.is_empty());
        let (variant, message) = refusal(r#"{"__metadata__":{"steps":3}}"#, 0);
        assert_eq!(variant, "HeaderMalformed");
        assert!(message.contains(r#""__metadata__""#), "{message}");
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        let cases = [
            ("not json", 0, "HeaderNotJson", "the header of w.safetensors"),
            ("", 0, "HeaderNotJson", "EOF"),
            ("{} {}", 0, "HeaderNotJson", "trailing characters"),
            ("[1]", 0, "HeaderMalformed", "expected an object of tensors"),
            (r#"{"t":5}"#, 0, "HeaderMalformed", r#"malformed at "t""#),
            (r#"{"t":{"dtype":"F32","shape":[1]}}"#, 0, "HeaderMalformed", "data_offsets"),
            (r#"{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, "HeaderMalformed", r#""t""#),
            (r#"{"t":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4, "HeaderMalformed", r#""t""#),
            (r#"{"t":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, 4, "UnknownDtype", r#""F99""#),
            (r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4, "SizeMismatch", "is 8 bytes"),
            (r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4, "OffsetsReversed", r#""t""#),
            (
                r#"{"t":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4]}}"#,
                4,
                "ImpossibleShape",
                r#""t""#,
            ),
            (r#"{"t":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2, "ImpossibleShape", "F4"),
            (&f32s(&[("a", 0, 4), ("a", 4, 8)]), 8, "DuplicateTensor", r#""a" twice"#),
            (&f32s(&[("a", 0, 8), ("b", 4, 12)]), 12, "Overlap", r#""a" and "b""#),
            (&f32s(&[("a", 0, 8), ("b", 4, 4)]), 8, "Overlap", r#""a" and "b""#),
            (&f32s(&[("a", 0, 4), ("b", 8, 12)]), 12, "Hole", r#"4 bytes before tensor "b""#),
            (&f32s(&[("a", 4, 8)]), 8, "Hole", r#""a""#),
            (&f32s(&[("a", 1 << 60, (1 << 60) + 4)]), 4, "OffsetsOutOfRange", r#""a""#),
            (
                &f32s(&[("a", 0, 4), ("b", 4, 8), ("c", 8, 12)]),
                7,
                "Truncated",
                r#"first damaged tensor is "b""#,
            ),
            (&f32s(&[("a", 0, 1 << 60)]), 4, "Truncated", r#""a""#),
            (&f32s(&[("a", 0, u64::MAX - 3)]), 4, "ImpossibleShape", r#""a""#),
            (&f32s(&[("a", 0, 4)]), 5, "TrailingBytes", "1 bytes after"),
            ("{}", 3, "TrailingBytes", "3 bytes after"),
        ];
        for (json, data, variant, says) in cases {
            let (found, message) = refusal(json, data);
            assert_eq!(found, variant, "{json}: {message}");
            assert!(message.contains(says) && message.contains("w.safetensors"), "{json}: {message}");
        }
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let deep = format!(r#"{{"t":{{"x":{}"#, "[".repeat(1_000_000));
        assert_eq!(refusal(&deep, 0).0, "HeaderNotJson");
    }

    #[test]
    fn names_cannot_play_tricks_on_the_terminal() {
        let (_, message) = refusal(r#"{"\u001b[2Jgone":{"dtype":"F99","shape":[],"data_offsets":[0,4]}}"#, 4);
        assert!(!message.contains('\u{1b}'), "{message}");
    }
}
