//! The working folder of a command that makes a folder: `OUT.partial`, beside it, so that the last step is a rename. One process
//! at a time has it, and nothing in it that another command could go on from, or that is a user's, is touched.

use crate::fail::Failure;
use anyhow::Context;
use halfbyte_quantize::{AUTO_FILE, JOURNAL_FILE, LOCK_FILE, partial_dir};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// Holds the working folder. The system lets go of it however the process ends.
pub(crate) struct Working {
    dir: PathBuf,
    _file: File,
}

impl Working {
    /// Takes the working folder of `out`, of which a run that can go on may have left a part.
    ///
    /// # Errors
    /// Another process has it, it is a folder of something else, or it cannot be written.
    pub(crate) fn take(out: &Path) -> anyhow::Result<Self> {
        let dir = partial_dir(out)?;
        let path = dir.join(LOCK_FILE);
        let known = [LOCK_FILE, JOURNAL_FILE, AUTO_FILE];
        if let Some(foreign) = first_entry(&dir).filter(|_| !known.iter().any(|f| dir.join(f).exists())) {
            return Err(Failure::new(format!(
                "{} is where {} would be worked on, and has {foreign}, which halfbyte did not make",
                dir.display(),
                out.display()
            ))
            .hint("choose another --out, or move that folder away")
            .into());
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { dir, _file: file }),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(format!("another halfbyte is working on {} at this moment", out.display()))
                    .hint("wait for it, or choose another --out")
                    .into())
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// The same for a command that begins anew each time: an unfinished run of another one is not its own.
    ///
    /// # Errors
    /// As [`take`](Self::take), and for such a run.
    pub(crate) fn take_anew(out: &Path) -> anyhow::Result<Self> {
        let working = Self::take(out)?;
        if [JOURNAL_FILE, AUTO_FILE].iter().any(|f| working.dir.join(f).exists()) {
            return Err(Failure::new(format!(
                "{} holds an unfinished run of another command",
                working.dir.display()
            ))
            .hint("choose another --out, or delete that folder")
            .into());
        }
        Ok(working)
    }
}

impl Drop for Working {
    /// A run that was refused leaves nothing behind: the folder goes if nothing else is in it.
    fn drop(&mut self) {
        let only_lock = fs::read_dir(&self.dir).is_ok_and(|entries| entries.count() == 1);
        if only_lock && fs::remove_file(self.dir.join(LOCK_FILE)).is_ok() {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// The name of something in a folder, if there is anything.
fn first_entry(dir: &Path) -> Option<String> {
    let mut names: Vec<_> = fs::read_dir(dir).ok()?.flatten().map(|e| e.file_name()).collect();
    names.sort();
    names.first().map(|n| n.to_string_lossy().into_owned())
}
