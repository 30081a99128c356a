#![no_main]
//! A GGUF file: the header is checked, then every tensor is read.

use halfbyte_checkpoint::gguf::GgufFile;
use halfbyte_fuzz::{bounded, file_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = file_of(data);
    bounded(data.len(), 32, 64 << 10, || {
        let Ok(opened) = GgufFile::open(file.path()) else { return };
        for name in opened.names() {
            if let Ok(bytes) = opened.read(name) {
                assert!(bytes.len() <= data.len());
            }
        }
    });
});
