//! Free space on a disk, asked before it is needed.

use crate::error::WriteError;
use std::path::Path;

/// Bytes that this user can still write on the disk that `path` is, or will be, on. `None` where the system
/// does not tell (any but Unix). `path` and its folder need not exist yet.
pub fn available_space(path: &Path) -> Option<u64> {
    let nearest = path.ancestors().map(or_here).find(|p| p.exists())?;
    free_bytes(nearest)
}

/// Checks that `bytes` more can be written at `path`; content where the system does not tell.
///
/// # Errors
/// [`WriteError::NotEnoughSpace`], with both amounts.
pub fn require_space(path: &Path, bytes: u64) -> Result<(), WriteError> {
    match available_space(path) {
        Some(available) if available < bytes => {
            Err(WriteError::NotEnoughSpace { path: path.into(), needed: bytes, available })
        }
        _ => Ok(()),
    }
}

/// The parent of a bare file name is the empty path, which no system call takes.
pub(crate) fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    // A file system without blocks (some network and virtual ones) does not know.
    if stat.f_blocks == 0 {
        return None;
    }
    stat.f_bavail.checked_mul(if stat.f_frsize == 0 { stat.f_bsize } else { stat.f_frsize })
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn space_is_known_before_the_folder_exists() {
        let dir = tempfile::tempdir().unwrap();
        let future = dir.path().join("not/yet/there/model.safetensors");
        assert!(available_space(&future).unwrap() > 0);
        assert!(available_space(Path::new("here.safetensors")).is_some());

        let error = require_space(&future, u64::MAX).unwrap_err();
        assert!(matches!(error, WriteError::NotEnoughSpace { needed: u64::MAX, .. }));
        assert!(error.to_string().contains("model.safetensors needs 18446.7 PB and only"), "{error}");
        require_space(&future, 1).unwrap();
    }
}
