//! What can go wrong. Each message stands alone: it names the file and the tensor and says what to do. The
//! cause is part of the message rather than an error source, so that printing a chain of errors does not
//! repeat it.

use crate::dtype::Dtype;
use std::{io, path::PathBuf};

/// Why a checkpoint, or one tensor of it, could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused to open or read a file.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        cause: io::Error,
    },
    /// The model folder does not exist or is not a folder.
    #[error("{path} is not a folder: give the folder of a Hugging Face model, with its config.json")]
    NotAFolder {
        /// The path given.
        path: PathBuf,
    },
    /// A folder, pipe or device where a file should be.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A JSON file too large to be what its name says.
    #[error("{path} is larger than {limit} bytes, far more than such a file should be: download it again")]
    JsonTooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read, in bytes.
        limit: u64,
    },

    // The folder.
    /// The folder has no `config.json`.
    #[error("{path} is missing: the architecture is read from it; copy it from the model's page")]
    ConfigMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// What `config.json` says about quantization cannot be used.
    #[error("{}: {message}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The key, what is wrong and what to do.
        message: String,
    },
    /// A tensor of a quantized layer holds values that its scheme cannot have.
    #[error("tensor '{tensor}': {message}: the file is damaged, quantize again")]
    Damaged {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// A GGUF file that cannot be used.
    #[error("{file}: {message}")]
    Gguf {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// More than one GGUF file, and no safetensors.
    #[error("{dir} holds several GGUF files ({found}): give the name of one")]
    SeveralGguf {
        /// The folder.
        dir: PathBuf,
        /// Their names.
        found: String,
    },
    /// `config.json` is not JSON.
    #[error("{path} is not valid JSON ({cause}): download it again")]
    ConfigNotJson {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        cause: serde_json::Error,
    },
    /// `config.json` holds a list, a number or the like.
    #[error("{path} holds {found} where a JSON object is expected: download it again")]
    ConfigNotObject {
        /// The file.
        path: PathBuf,
        /// What it holds instead.
        found: &'static str,
    },
    /// No weights in any format.
    #[error(
        "{dir} has no weights: neither model.safetensors nor model.safetensors.index.json nor any *.safetensors"
    )]
    NoWeights {
        /// The model folder.
        dir: PathBuf,
    },
    /// Weights, but in a format we do not read.
    #[error(
        "{dir} has its weights as {found:?}, and only safetensors is read: load the model with Hugging Face \
         transformers and call save_pretrained(folder, safe_serialization=True), or download a safetensors version"
    )]
    OtherFormat {
        /// The model folder.
        dir: PathBuf,
        /// The file found.
        found: String,
    },
    /// Shards named `…-00001-of-0000N.safetensors` without the index that belongs to them.
    #[error(
        "{dir} has the shard {shard:?} but no model.safetensors.index.json: the download or the writing was \
         interrupted; get the missing files, or write the checkpoint again"
    )]
    IndexMissing {
        /// The model folder.
        dir: PathBuf,
        /// One of the shards.
        shard: String,
    },
    /// The index is not JSON.
    #[error("{index} is not valid JSON ({cause}): download it again")]
    IndexNotJson {
        /// The index.
        index: PathBuf,
        /// Where and why parsing stopped.
        cause: serde_json::Error,
    },
    /// The index is JSON, but not an object with a `weight_map` from tensor names to file names.
    #[error("{index} has no \"weight_map\" from tensor names to file names ({cause}): download it again")]
    IndexMalformed {
        /// The index.
        index: PathBuf,
        /// Which part has the wrong type.
        cause: serde_json::Error,
    },
    /// The index leads out of the model folder.
    #[error(
        "{index} puts tensor {tensor:?} into {shard:?}, which is not a file inside the folder: do not trust it"
    )]
    ShardEscapes {
        /// The index.
        index: PathBuf,
        /// The first tensor there.
        tensor: String,
        /// The path it names.
        shard: String,
    },
    /// The index names a file that is not there.
    #[error("{index} puts tensor {tensor:?} into {path}, which is missing: download this shard")]
    ShardMissing {
        /// The index.
        index: PathBuf,
        /// The first tensor there.
        tensor: String,
        /// Where the shard should be.
        path: PathBuf,
    },
    /// A shard lacks a tensor that the index puts there.
    #[error(
        "{index} puts tensor {tensor:?} into {shard}, which does not hold it: index and shards are of different \
         versions; download them together"
    )]
    ShardLacksTensor {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: PathBuf,
    },
    /// Two files of the folder hold the same tensor.
    #[error(
        "tensor {tensor:?} is both in {first} and in {second}: remove the file that does not belong to the model"
    )]
    TensorInTwoFiles {
        /// The tensor.
        tensor: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },

    // One file.
    /// A text file of Git LFS in place of the weights.
    #[error("{file} is only a Git LFS pointer: run `git lfs pull` in its folder")]
    LfsPointer {
        /// The file.
        file: PathBuf,
    },
    /// Less than the eight bytes of the header's length.
    #[error("{file} has {len} bytes, too few for a safetensors file: download it again")]
    FileTooShort {
        /// The file.
        file: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// The header claims more than the 100 MB that the format allows.
    #[error(
        "{file} claims a header of {header} bytes, above the limit of 100 MB: it is not a safetensors file"
    )]
    HeaderTooLarge {
        /// The file.
        file: PathBuf,
        /// The claimed length in bytes.
        header: u64,
    },
    /// The header would end after the file.
    #[error("{file} claims a header of {header} bytes and has only {len} in all: download it again")]
    HeaderBeyondFile {
        /// The file.
        file: PathBuf,
        /// The claimed length in bytes.
        header: u64,
        /// The file's length in bytes.
        len: u64,
    },
    /// The header is not JSON.
    #[error("the header of {file} is not valid JSON ({cause}): download the file again")]
    HeaderNotJson {
        /// The file.
        file: PathBuf,
        /// Where and why parsing stopped.
        cause: serde_json::Error,
    },
    /// The header is JSON of another shape.
    #[error(
        "the header of {file} is malformed at {entry:?} ({cause}): the file was not written by a safetensors library"
    )]
    HeaderMalformed {
        /// The file.
        file: PathBuf,
        /// The tensor, or `__metadata__`; empty where the header is not an object at all.
        entry: String,
        /// What is wrong.
        cause: serde_json::Error,
    },
    /// The header names one tensor twice.
    #[error("the header of {file} names tensor {tensor:?} twice: the file is damaged")]
    DuplicateTensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// An element type that safetensors did not have when this was written.
    #[error(
        "tensor {tensor:?} in {file} has the unknown type {dtype:?}: halfbyte may be older than the file"
    )]
    UnknownDtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The name of the type.
        dtype: String,
    },
    /// The shape's bytes overflow a 64-bit count, or do not fill whole bytes (4- and 6-bit types).
    #[error(
        "tensor {tensor:?} in {file} has the impossible shape {shape:?} for type {dtype}: the file is damaged"
    )]
    ImpossibleShape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element type.
        dtype: Dtype,
        /// The claimed shape.
        shape: Vec<usize>,
    },
    /// The data ends before it begins.
    #[error(
        "tensor {tensor:?} in {file} begins at byte {start} and ends before it, at {end}: the file is damaged"
    )]
    OffsetsReversed {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its first byte, from the beginning of the data.
        start: u64,
        /// Its claimed end.
        end: u64,
    },
    /// Shape and type do not give the bytes that the offsets give.
    #[error(
        "tensor {tensor:?} in {file} is {dtype} {shape:?}, which is {expected} bytes, but its offsets span {found}: \
         the file is damaged"
    )]
    SizeMismatch {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element type.
        dtype: Dtype,
        /// The shape.
        shape: Box<[usize]>,
        /// Bytes by shape and type.
        expected: u64,
        /// Bytes by the offsets.
        found: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap in {file}: the file is damaged")]
    Overlap {
        /// The file.
        file: PathBuf,
        /// The tensor that begins first.
        first: String,
        /// The one that begins inside it.
        second: String,
    },
    /// Bytes that belong to no tensor, in the middle of the data.
    #[error("{file} has a hole of {bytes} bytes before tensor {tensor:?}: the file is damaged")]
    Hole {
        /// The file.
        file: PathBuf,
        /// The tensor after the hole.
        tensor: String,
        /// Length of the hole.
        bytes: u64,
    },
    /// A tensor placed behind the end of the file, with nothing before it.
    #[error(
        "tensor {tensor:?} is placed at bytes {start}..{end} of the data of {file}, which has {data} bytes: the file \
         is damaged"
    )]
    OffsetsOutOfRange {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its first byte, from the beginning of the data.
        start: u64,
        /// Its end.
        end: u64,
        /// Bytes of data that the file has.
        data: u64,
    },
    /// The tensors need more bytes than the file has.
    #[error(
        "{file} is cut off at {len} bytes of {expected}; the first damaged tensor is {tensor:?}: download it again"
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// The first tensor that is not whole.
        tensor: String,
        /// Bytes the file has.
        len: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// The file goes on after its last tensor.
    #[error("{file} has {extra} bytes after its last tensor: it is damaged; download it again")]
    TrailingBytes {
        /// The file.
        file: PathBuf,
        /// How many.
        extra: u64,
    },

    // One tensor.
    /// No tensor of this name.
    #[error(
        "{place} has no tensor {tensor:?}{}",
        nearest.as_ref().map_or_else(String::new, |name| format!("; the nearest name is {name:?}"))
    )]
    TensorMissing {
        /// The model folder or file.
        place: PathBuf,
        /// The name asked for.
        tensor: String,
        /// An existing name that looks much like it.
        nearest: Option<String>,
    },
    /// The tensor has another shape than the configuration implies.
    #[error(
        "tensor {tensor:?} in {file} has shape {found:?} where {expected:?} is expected: config.json and weights do \
         not belong together"
    )]
    WrongShape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape asked for.
        expected: Box<[usize]>,
        /// The shape in the file.
        found: Box<[usize]>,
    },
    /// Rows asked for that the tensor does not have.
    #[error("rows {start}..{end} of tensor {tensor:?} in {file} do not exist: its shape is {shape:?}")]
    NoSuchRows {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// First row asked for.
        start: usize,
        /// End of the rows asked for.
        end: usize,
        /// The tensor's shape.
        shape: Box<[usize]>,
    },
    /// The tensor is not stored as F32, F16 or BF16.
    #[error(
        "tensor {tensor:?} in {file} is stored as {dtype}, and weights are read from F32, F16 or BF16: give the \
         checkpoint before quantization"
    )]
    NotFloat {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// How it is stored.
        dtype: Dtype,
    },
    /// A weight is NaN or infinite.
    #[error(
        "tensor {tensor:?} in {file} holds {value} at index {index} of shape {shape:?}: the checkpoint is damaged or \
         its training diverged; download it again or use another"
    )]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Box<[usize]>,
        /// Position of the first such value, counted in elements, row after row.
        index: usize,
        /// The value: NaN or an infinity.
        value: f32,
    },
    /// The file lost its end after it was opened.
    #[error(
        "{file} became shorter while tensor {tensor:?} was read: is something still writing it? Wait, then start again"
    )]
    FileShrank {
        /// The file.
        file: PathBuf,
        /// The tensor, or `header`.
        tensor: String,
    },
    /// The memory for the tensor is not there.
    #[error("not enough memory for the {bytes} bytes of tensor {tensor:?} in {file}")]
    OutOfMemory {
        /// The file.
        file: PathBuf,
        /// The tensor, or `header`.
        tensor: String,
        /// Bytes asked for.
        bytes: u64,
    },
}

/// Why a file could not be written. The file is then as it was before: absent, or the previous version.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// What was tried: `create`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        cause: io::Error,
    },
    /// The disk, or the user's part of it, filled up while writing.
    #[error(
        "the disk is full: {path} needs {}{}; free some space or choose another folder",
        human(*needed), available.map_or_else(String::new, |n| format!(" and {} are left", human(n)))
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Bytes of the whole file, as far as known.
        needed: u64,
        /// Bytes left, where the system tells.
        available: Option<u64>,
    },
    /// There is less space than will be needed; nothing was written.
    #[error(
        "{path} needs {} and only {} are free there; free some space or choose another folder",
        human(*needed), human(*available)
    )]
    NotEnoughSpace {
        /// The file or folder to be written.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// The path is a folder or ends without a file name (`/`, `..`).
    #[error("{path} is a folder: give the name of a file")]
    NoFileName {
        /// The path.
        path: PathBuf,
    },
    /// Two tensors of one name.
    #[error("tensor {tensor:?} is announced twice for {path}")]
    DuplicateTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor called `__metadata__`.
    #[error("a tensor of {path} is called \"__metadata__\", which the format keeps for itself")]
    ReservedName {
        /// The file.
        path: PathBuf,
    },
    /// The shape's bytes overflow, or do not fill whole bytes.
    #[error(
        "tensor {tensor:?} of {path} cannot be stored: {dtype} {shape:?} is not a whole, countable number of bytes"
    )]
    ImpossibleShape {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element type.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
    },
    /// The header would be larger than readers accept.
    #[error("the header of {path} would have {header} bytes, above the limit of 100 MB: use smaller shards")]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        header: usize,
    },
    /// Bytes for a tensor that was not announced.
    #[error("tensor {tensor:?} was not announced for {path}")]
    UnknownTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// More bytes than the announced type and shape have.
    #[error("tensor {tensor:?} of {path} has {promised} bytes, and {given} were given")]
    TooManyBytes {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes by type and shape.
        promised: u64,
        /// Bytes given so far, with the refused ones.
        given: u64,
    },
    /// A tensor is not complete when the file should be finished.
    #[error("{path} cannot be finished: tensor {tensor:?} has {written} of its {promised} bytes")]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes by type and shape.
        promised: u64,
        /// Bytes given.
        written: u64,
    },
    /// A tensor to be copied has another type or shape than announced.
    #[error("tensor {tensor:?} of {path} is announced as {announced}, but {source_file} holds {found}")]
    SourceDiffers {
        /// The file or folder being written.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Announced type and shape.
        announced: String,
        /// The file copied from.
        source_file: PathBuf,
        /// Type and shape there.
        found: String,
    },
    /// The folder has weights of another checkpoint, which a reader would mix up with ours.
    #[error("{dir} already has {found:?}: remove it or choose another folder")]
    FolderHasWeights {
        /// The folder.
        dir: PathBuf,
        /// The file in the way.
        found: String,
    },
    /// The source of a copy could not be read.
    #[error(transparent)]
    Source(#[from] CheckpointError),
}

/// Bytes for people: `5.2 GB`.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        let texts = [0, 999, 1_000, 999_949, 999_951, 5_200_000_000, u64::MAX].map(human);
        assert_eq!(texts, ["0 bytes", "999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "5.2 GB", "18446.7 PB"]);
    }

    #[test]
    fn a_full_disk_says_how_much_is_needed() {
        let path = PathBuf::from("out/model.safetensors");
        let full = WriteError::DiskFull { path, needed: 5_200_000_000, available: Some(1_000_000) };
        assert_eq!(
            full.to_string(),
            "the disk is full: out/model.safetensors needs 5.2 GB and 1.0 MB are left; free some space or choose \
             another folder"
        );
    }
}
