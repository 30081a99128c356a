#![no_main]
//! A recipe file: one that is taken can be written and taken again.

use halfbyte_fuzz::{bounded, file_of};
use halfbyte_quantize::{load_recipe, recipe_toml};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = file_of(data, ".toml");
    let Some(path) = file.path().to_str() else { return };
    let Ok(recipe) = bounded(data.len(), 512, 512 << 10, || load_recipe(path)) else { return };
    let text = recipe_toml(&recipe).expect("a recipe that was taken can be written");
    let again = file_of(text.as_bytes(), ".toml");
    let Some(path) = again.path().to_str() else { return };
    assert_eq!(load_recipe(path).expect("and taken again"), recipe);
});
