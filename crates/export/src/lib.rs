//! A quantized folder in the files of other engines, each proven by reading it back.
//!
//! [`check`] says from the schemes alone, and [`check_model`] of a folder, what a [`Target`] cannot hold; [`export`] writes,
//! reads every file again and compares all values with those of the source before the output gets its name.

mod error;
mod gguf;
mod safetensors;
mod target;
mod tokenizer;

pub use error::ExportError;
pub use target::{Plan, Rest, Target, check, check_model};

use halfbyte_model::Model;
use std::fs;
use std::path::{Path, PathBuf};

/// Told how the work goes on; may stop it.
pub type OnLayer<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// What was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// For which engine.
    pub target: Target,
    /// The folder.
    pub dir: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Quantized layers, all of them compared.
    pub layers: usize,
}

/// Writes `model`, a halfbyte folder, for `target` into the new folder `dir`, and compares what was written.
///
/// `rest` says how a GGUF file has the matrices that are not quantized; other targets keep them as they are.
///
/// The folder takes shape in `dir` with `.partial` added, as `output`, and is renamed once every value has been found the same;
/// else it is removed.
///
/// # Errors
/// What the target cannot hold, an existing `dir`, what cannot be read or written, or a value that differs.
pub fn export(
    model: &Model,
    target: Target,
    rest: Rest,
    dir: &Path,
    on_layer: OnLayer,
) -> Result<Exported, ExportError> {
    let plan = check_model(model, target)?;
    if dir.exists() {
        return Err(ExportError::Exists(dir.into()));
    }
    let name = dir.file_name().ok_or_else(|| ExportError::NoName(dir.into()))?;
    let mut partial_name = name.to_os_string();
    partial_name.push(".partial");
    let partial = dir.with_file_name(partial_name);
    let io = |action: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |cause| ExportError::Io { action, path, cause }
    };
    // Whatever else is in there is not this export's.
    let output = partial.join("output");
    if output.exists() {
        fs::remove_dir_all(&output).map_err(io("clear", &output))?;
    }
    fs::create_dir_all(&output).map_err(io("make", &output))?;
    let written = match target.is_gguf() {
        true => gguf::write(model, target, &plan, rest, &output, name, on_layer),
        false => safetensors::write(model, target, &plan, &output, on_layer),
    };
    let done = written.and_then(|()| fs::rename(&output, dir).map_err(io("rename", &output)));
    // What is not proven does not stay.
    let _ = fs::remove_dir_all(&output);
    let _ = fs::remove_dir(&partial);
    done?;
    let entries = fs::read_dir(dir).map_err(io("list", dir))?;
    let bytes = entries.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum();
    Ok(Exported { target, dir: dir.into(), bytes, layers: plan.layers.len() })
}
