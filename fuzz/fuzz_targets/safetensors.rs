#![no_main]
//! A safetensors file: the header is checked, then every tensor is read.

use halfbyte_checkpoint::SafetensorsFile;
use libfuzzer_sys::fuzz_target;
use std::io::Write;

fuzz_target!(|data: &[u8]| {
    let Ok(mut file) = tempfile::NamedTempFile::new_in(memory()) else { return };
    if file.write_all(data).is_err() {
        return;
    }
    if let Ok(opened) = SafetensorsFile::open(file.path()) {
        for tensor in opened.tensors() {
            // What the header promises must be there: nothing larger than the file is allocated.
            assert!(tensor.bytes <= data.len() as u64);
            let _ = opened.read_bytes(&tensor.name);
            let _ = opened.read_f32(&tensor.name, &tensor.shape);
        }
    }
});

/// A folder in memory where the system has one.
fn memory() -> std::path::PathBuf {
    let shm = std::path::Path::new("/dev/shm");
    if shm.is_dir() { shm.into() } else { std::env::temp_dir() }
}
