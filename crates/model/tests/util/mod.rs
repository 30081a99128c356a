//! Where tests find models and data that are not in the repository.

use std::path::{Path, PathBuf};

/// A file or folder of the assets; `None`, said clearly, if they are not there.
pub(crate) fn asset(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("HALFBYTE_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    println!("SKIPPED: {path} is not under HALFBYTE_ASSETS ({})", root.display());
    None
}
