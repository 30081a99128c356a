#![no_main]
//! config.json: an architecture or an error.

use halfbyte_fuzz::bounded;
use halfbyte_model::architectures::describe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The constant is what the description of 4,096 blocks takes, the most that a config may ask for.
    bounded(data.len(), 256, 24 << 20, || {
        if let Ok(config) = serde_json::from_slice(data)
            && let Ok(architecture) = describe(&config)
        {
            assert!(architecture.blocks.len() <= 4096);
        }
    });
});
