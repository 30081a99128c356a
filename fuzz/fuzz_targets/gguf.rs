#![no_main]
//! A GGUF file: the header is checked and every tensor read, as bytes; then the same as a checkpoint, as values.

use halfbyte_checkpoint::Checkpoint;
use halfbyte_checkpoint::gguf::GgufFile;
use halfbyte_fuzz::{bounded, file_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = file_of(data, ".gguf");
    bounded(data.len(), 32, 64 << 10, || {
        let Ok(opened) = GgufFile::open(file.path()) else { return };
        for name in opened.names() {
            if let Ok(bytes) = opened.read(name) {
                assert!(bytes.len() <= data.len());
            }
        }
    });
    // Four bits become 32.
    bounded(data.len(), 64, 64 << 10, || {
        let Ok(checkpoint) = Checkpoint::open(file.path()) else { return };
        for info in checkpoint.infos() {
            let _ = checkpoint.read_raw(&info.name, &info.shape);
        }
    });
});
