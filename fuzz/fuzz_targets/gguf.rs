#![no_main]
//! A GGUF file: the header is checked, then every tensor is read.

use halfbyte_checkpoint::gguf::GgufFile;
use libfuzzer_sys::fuzz_target;
use std::io::Write;

fuzz_target!(|data: &[u8]| {
    let Ok(mut file) = tempfile::NamedTempFile::new_in(memory()) else { return };
    if file.write_all(data).is_err() {
        return;
    }
    if let Ok(opened) = GgufFile::open(file.path()) {
        for name in opened.names() {
            if let Ok(bytes) = opened.read(name) {
                assert!(bytes.len() <= data.len());
            }
        }
    }
});

/// A folder in memory where the system has one.
fn memory() -> std::path::PathBuf {
    let shm = std::path::Path::new("/dev/shm");
    if shm.is_dir() { shm.into() } else { std::env::temp_dir() }
}
