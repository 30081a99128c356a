//! Files that are whole or absent, whenever the process or the machine stops.
//!
//! Bytes go to a hidden sibling `.NAME.….partial`, which becomes the file by `fsync` and `rename`. A process
//! that is killed leaves its sibling behind; the next writer of the same file removes it. To know the dead
//! from the living, every writer holds a lock on its sibling, which the system drops with the process.

use crate::{
    error::{CheckpointError, WriteError},
    space::{available_space, or_here},
};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, TryLockError},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// A file being written under a temporary name. [`commit`](Self::commit) gives it its name; dropped before
/// that, it is removed, and what stood under the name before still stands there.
///
/// [`Write`] has the plain errors of the system; wrap it in a [`BufWriter`](io::BufWriter) for small pieces.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    /// `None` once committed or given up.
    file: Option<File>,
    needed: u64,
}

impl AtomicFile {
    /// Begins a file. Its folder must exist. `needed` is its expected length in bytes for messages about a
    /// full disk, 0 if unknown.
    ///
    /// # Errors
    /// The path names no file, or the temporary file cannot be created beside it.
    pub fn create(path: &Path, needed: u64) -> Result<Self, WriteError> {
        let name = match (path.file_name(), path.is_dir()) {
            (Some(name), false) => name,
            _ => return Err(WriteError::NoFileName { path: path.into() }),
        };
        let dir = or_here(path.parent().unwrap_or(Path::new("")));
        remove_abandoned(dir, name);
        loop {
            let temporary = dir.join(temporary_name(name));
            let mut options = File::options();
            match options.read(true).write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    // Another writer may take it for abandoned in the moment before it is locked.
                    let ours = !matches!(file.try_lock(), Err(TryLockError::WouldBlock));
                    if ours && temporary.exists() {
                        return Ok(Self { target: path.into(), temporary, file: Some(file), needed });
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(failed("create", path, needed, cause)),
            }
        }
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Writes all of `bytes` at byte `offset` and leaves the cursor after them.
    ///
    /// # Errors
    /// [`WriteError::DiskFull`] or [`WriteError::Io`], naming the final path.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let written = self.open_file().and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(bytes)
        });
        written.map_err(|cause| self.failed("write", cause))
    }

    /// Flushes the file to the disk and gives it its name, replacing what was there.
    ///
    /// # Errors
    /// [`WriteError::DiskFull`] or [`WriteError::Io`]; the temporary file is then removed.
    pub fn commit(mut self) -> Result<(), WriteError> {
        self.open_file().and_then(|file| file.sync_all()).map_err(|cause| self.failed("write", cause))?;
        // Renamed while still open and locked, so that nobody takes it for abandoned.
        fs::rename(&self.temporary, &self.target).map_err(|cause| self.failed("rename", cause))?;
        self.file = None;
        sync_folder(&self.target);
        Ok(())
    }

    /// The error for `cause`, naming the final path.
    pub(crate) fn failed(&self, action: &'static str, cause: io::Error) -> WriteError {
        failed(action, &self.target, self.needed, cause)
    }

    fn open_file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open_file()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open_file()?.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // Nothing better can be done with an error here; the next writer tries again.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes `contents` to `path`, which afterwards holds either all of them or what it held before.
///
/// # Errors
/// The folder does not exist or cannot be written, the disk is full, or the path names no file.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<(), WriteError> {
    let mut file = AtomicFile::create(path, contents.len() as u64)?;
    file.write_at(0, contents)?;
    file.commit()
}

/// Copies the contents of `from` to `to` as [`write_atomic`] writes; returns their length in bytes. Links are
/// followed and permissions are not copied: a folder of the Hugging Face cache is links to read-only files.
///
/// # Errors
/// `from` cannot be read or is no regular file, or as [`write_atomic`].
pub fn copy_atomic(from: &Path, to: &Path) -> Result<u64, WriteError> {
    let unreadable = |cause| CheckpointError::Read { path: from.into(), cause };
    if !fs::metadata(from).map_err(unreadable)?.is_file() {
        return Err(CheckpointError::NotAFile { path: from.into() }.into());
    }
    let mut source = File::open(from).map_err(unreadable)?;
    let len = source.metadata().map_err(unreadable)?.len();
    let file = AtomicFile::create(to, len)?;
    let copied = file.open_file().and_then(|mut target| io::copy(&mut source, &mut target));
    let copied = copied.map_err(|cause| file.failed("copy into", cause))?;
    file.commit()?;
    Ok(copied)
}

fn failed(action: &'static str, path: &Path, needed: u64, cause: io::Error) -> WriteError {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    match cause.kind() {
        StorageFull | QuotaExceeded => {
            WriteError::DiskFull { path: path.into(), needed, available: available_space(path) }
        }
        _ => WriteError::Io { action, path: path.into(), cause },
    }
}

/// Makes a rename in the folder of `path` survive a power cut.
pub(crate) fn sync_folder(path: &Path) {
    #[cfg(unix)]
    if let Ok(dir) = File::open(or_here(path.parent().unwrap_or(Path::new("")))) {
        // Not all file systems can, and the file is whole or absent without it too.
        let _ = dir.sync_all();
    }
    #[cfg(not(unix))]
    let _ = path;
}

const SUFFIX: &str = ".partial";

/// What the temporary names for `name` begin with.
fn temporary_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    prefix
}

/// A name that no other writer of any process uses: names are never used again, so that removing an abandoned
/// one cannot hit a living one.
fn temporary_name(name: &OsStr) -> OsString {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    let mut temporary = temporary_prefix(name);
    temporary.push(format!("{}-{count}-{time:x}{SUFFIX}", process::id()));
    temporary
}

/// Removes the temporary files that killed processes left of `name`. Does what it can: it only saves space.
fn remove_abandoned(dir: &Path, name: &OsStr) {
    let prefix = temporary_prefix(name);
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let found = entry.file_name();
        let bytes = found.as_encoded_bytes();
        let middle = bytes
            .strip_prefix(prefix.as_encoded_bytes())
            .and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
        let ours = middle.is_some_and(|m| m.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-'));
        if !ours || !entry.file_type().is_ok_and(|t| t.is_file()) {
            continue;
        }
        // Opened to write, as some network file systems lock only then.
        if let Ok(file) = File::options().write(true).open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        write_atomic(&path, b"first, and longer").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(dir.path()), ["notes.txt"]);
    }

    #[test]
    fn dropped_before_commit_it_was_never_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        write_atomic(&path, b"before").unwrap();
        let mut file = AtomicFile::create(&path, 5).unwrap();
        file.write_all(b"after").unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        drop(file);
        assert_eq!(names(dir.path()), ["notes.txt"]);
        assert_eq!(fs::read(&path).unwrap(), b"before");
    }

    #[test]
    fn leavings_of_a_killed_process_are_removed_and_those_of_living_ones_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let dead = dir.path().join(temporary_name("w.safetensors".as_ref()));
        fs::write(&dead, b"half of it").unwrap();
        fs::write(dir.path().join(".w.safetensors.mine.partial"), b"named by someone else").unwrap();
        fs::write(dir.path().join(temporary_name("other".as_ref())), b"of another file").unwrap();

        let mut living = AtomicFile::create(&path, 0).unwrap();
        assert!(!dead.exists());
        living.write_all(b"living").unwrap();
        write_atomic(&path, b"quicker").unwrap();
        living.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"living");
        assert_eq!(names(dir.path()).len(), 3);
    }

    #[test]
    fn many_writers_of_one_file_leave_one_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let path = &path;
                scope.spawn(move || (0..20).for_each(|_| write_atomic(path, &[thread; 5000]).unwrap()));
            }
        });
        let contents = fs::read(&path).unwrap();
        assert!(contents.len() == 5000 && contents.iter().all(|b| *b == contents[0]));
        assert_eq!(names(dir.path()), ["w"]);
    }

    #[test]
    fn copies_follow_links_and_drop_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&from, vec![7; 3_000_000]).unwrap();
        let mut readonly = fs::metadata(&from).unwrap().permissions();
        readonly.set_readonly(true);
        fs::set_permissions(&from, readonly).unwrap();
        assert_eq!(copy_atomic(&from, &to).unwrap(), 3_000_000);
        assert_eq!(copy_atomic(&from, &to).unwrap(), 3_000_000, "again, over itself");
        assert_eq!(fs::read(&to).unwrap(), vec![7; 3_000_000]);
    }

    #[test]
    fn errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent/w");
        let message = write_atomic(&absent, b"").unwrap_err().to_string();
        assert!(message.starts_with("cannot create") && message.contains("absent"), "{message}");
        let message = copy_atomic(&absent, &dir.path().join("w")).unwrap_err().to_string();
        assert!(message.starts_with("cannot read") && message.contains("absent"), "{message}");
        for path in [dir.path(), Path::new("/"), Path::new("..")] {
            assert!(matches!(write_atomic(path, b""), Err(WriteError::NoFileName { .. })), "{path:?}");
        }
        assert_eq!(names(dir.path()), [""; 0]);
    }

    /// The device that is always full.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_apart() {
        let cause = File::options().write(true).open("/dev/full").unwrap().write_all(b"x").unwrap_err();
        let error = failed("write", Path::new("w.safetensors"), 5_000, cause);
        assert!(matches!(error, WriteError::DiskFull { needed: 5_000, available: Some(_), .. }), "{error}");
    }
}
