#![no_main]
//! A recipe file: one that is taken can be written and taken again.

use halfbyte_quantize::{load_recipe, recipe_toml};
use libfuzzer_sys::fuzz_target;
use std::io::Write;

fuzz_target!(|data: &[u8]| {
    let shm = std::path::Path::new("/dev/shm");
    let dir = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
    let Ok(mut file) = tempfile::NamedTempFile::new_in(dir) else { return };
    if file.write_all(data).is_err() {
        return;
    }
    if let Some(path) = file.path().to_str()
        && let Ok(recipe) = load_recipe(path)
    {
        assert!(recipe.check().is_ok() && recipe_toml(&recipe).is_ok());
    }
});
