//! What the fuzz targets share: a file for every input, and a bound on the memory that reading it takes.

use peak_alloc::PeakAlloc;
use std::io::Write;
use tempfile::{Builder, NamedTempFile};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// A file that holds `data`, its name with this ending, in memory where the system has a folder for that.
///
/// # Panics
/// If it cannot be written.
pub fn file_of(data: &[u8], ending: &str) -> NamedTempFile {
    let shm = std::path::Path::new("/dev/shm");
    let dir = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
    let mut file = Builder::new().suffix(ending).tempfile_in(dir).expect("a temporary file");
    file.write_all(data).expect("room for a temporary file");
    file
}

/// Runs `parse`, which must never have more than `factor · input + constant` bytes allocated.
///
/// # Panics
/// If it has.
pub fn bounded<R>(input: usize, factor: usize, constant: usize, parse: impl FnOnce() -> R) -> R {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = parse();
    let peak = MEMORY.peak_usage().saturating_sub(before);
    let most = factor * input + constant;
    assert!(peak <= most, "{peak} bytes allocated for an input of {input}; the bound is {most}");
    result
}
