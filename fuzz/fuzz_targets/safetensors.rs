#![no_main]
//! A safetensors file: the header is checked, then every tensor is read.

use halfbyte_checkpoint::SafetensorsFile;
use halfbyte_fuzz::{bounded, file_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = file_of(data, ".safetensors");
    bounded(data.len(), 64, 64 << 10, || {
        let Ok(opened) = SafetensorsFile::open(file.path()) else { return };
        for tensor in opened.tensors() {
            // What the header promises must be there.
            assert!(tensor.bytes <= data.len() as u64);
            let _ = opened.read_bytes(&tensor.name);
            let _ = opened.read_f32(&tensor.name, &tensor.shape);
        }
    });
});
