#![no_main]
//! config.json: an architecture or an error.

use halfbyte_model::architectures::describe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(config) = serde_json::from_slice(data)
        && let Ok(architecture) = describe(&config)
    {
        assert!(architecture.blocks.len() <= 4096);
    }
});
