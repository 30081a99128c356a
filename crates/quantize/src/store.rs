//! Activations of the calibration tokens, one matrix a window, in memory or in a file.

use crate::QuantizeError;
use halfbyte_tensor::{Matrix, side_by_side};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Where the windows of a [`Store`] live.
#[derive(Clone, Debug)]
pub enum Place {
    /// In memory.
    Memory,
    /// In temporary files of this folder.
    Folder(PathBuf),
}

/// Windows `[tokens, channels]` of equal width, written once each and read any number of times.
pub struct Store {
    channels: usize,
    rows: Vec<usize>,
    kept: Kept,
}

enum Kept {
    Memory(Vec<Option<Matrix>>),
    /// An unnamed file, and where each window begins in it.
    File(Mutex<File>, Vec<u64>),
}

impl Store {
    /// A store for windows of `rows[i]` tokens each.
    ///
    /// # Errors
    /// When the temporary file cannot be made.
    pub fn new(place: &Place, channels: usize, rows: &[usize]) -> Result<Self, QuantizeError> {
        let kept = match place {
            Place::Memory => Kept::Memory(vec![None; rows.len()]),
            Place::Folder(dir) => {
                let starts = rows.iter().scan(0u64, |at, r| {
                    let here = *at;
                    *at += (r * channels * 4) as u64;
                    Some(here)
                });
                Kept::File(Mutex::new(unnamed_file(dir)?), starts.collect())
            }
        };
        Ok(Self { channels, rows: rows.to_vec(), kept })
    }

    /// A store of no windows.
    pub fn empty() -> Self {
        Self { channels: 0, rows: Vec::new(), kept: Kept::Memory(Vec::new()) }
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.rows.len()
    }

    /// Tokens of every window.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// Channels of a token.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Keeps window `i`.
    ///
    /// # Errors
    /// When the file cannot take it, usually because the disk is full.
    pub fn put(&mut self, i: usize, window: Matrix) -> Result<(), QuantizeError> {
        debug_assert_eq!((window.rows, window.cols), (self.rows[i], self.channels));
        match &mut self.kept {
            Kept::Memory(windows) => windows[i] = Some(window),
            Kept::File(file, starts) => {
                let file = file.get_mut().unwrap_or_else(|e| e.into_inner());
                file.seek(SeekFrom::Start(starts[i]))
                    .and_then(|_| file.write_all(bytemuck::cast_slice(&window.data)))
                    .map_err(|e| spill_error("writing", &e))?;
            }
        }
        Ok(())
    }

    /// Takes window `i` out; it may not be read again.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn take(&mut self, i: usize) -> Result<Matrix, QuantizeError> {
        match &mut self.kept {
            Kept::Memory(windows) => Ok(windows[i].take().unwrap_or_default()),
            Kept::File(..) => self.get(i),
        }
    }

    /// Reads window `i`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get(&self, i: usize) -> Result<Matrix, QuantizeError> {
        match &self.kept {
            Kept::Memory(windows) => Ok(windows[i].clone().unwrap_or_default()),
            Kept::File(file, starts) => {
                use std::io::Read;
                let mut window = Matrix::zeros(self.rows[i], self.channels);
                let mut file = file.lock().unwrap_or_else(|e| e.into_inner());
                file.seek(SeekFrom::Start(starts[i]))
                    .and_then(|_| file.read_exact(bytemuck::cast_slice_mut(&mut window.data)))
                    .map_err(|e| spill_error("reading", &e))?;
                Ok(window)
            }
        }
    }
}

/// Windows that go through layers side by side: as many as cost little memory and keep a machine of two threads busy.
pub(crate) const AT_ONCE: u64 = 2;

/// Takes every window from `stores`, works on [`AT_ONCE`] of them side by side, and puts what comes of them back in order.
///
/// # Errors
/// Those of `take` and `put`.
pub(crate) fn windows_side_by_side<S, I: Send, O: Send>(
    stores: &mut S,
    windows: usize,
    take: impl Fn(&mut S, usize) -> Result<I, QuantizeError>,
    work: impl Fn(usize, I) -> O + Sync,
    put: impl Fn(&mut S, usize, O) -> Result<(), QuantizeError>,
) -> Result<(), QuantizeError> {
    let all: Vec<usize> = (0..windows).collect();
    for some in all.chunks(AT_ONCE as usize) {
        let taken =
            some.iter().map(|&i| Ok((i, take(stores, i)?))).collect::<Result<Vec<_>, QuantizeError>>()?;
        let made = side_by_side(taken, |(i, window)| work(i, window));
        some.iter().zip(made).try_for_each(|(&i, made)| put(stores, i, made))?;
    }
    Ok(())
}

fn spill_error(doing: &str, e: &std::io::Error) -> QuantizeError {
    QuantizeError::Spill(format!(
        "{doing} calibration activations: {e}; is the disk of the output folder full?"
    ))
}

/// A file that nobody else can open and that goes with the process: it is unlinked at once where the system allows.
fn unnamed_file(dir: &Path) -> Result<File, QuantizeError> {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = dir.join(format!("spill-{}-{n}.tmp", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(|e| QuantizeError::Spill(format!("{}: {e}", path.display())))?;
    if cfg!(unix) {
        std::fs::remove_file(&path).map_err(|e| QuantizeError::Spill(format!("{}: {e}", path.display())))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_back_what_memory_does() {
        let dir = tempfile::tempdir().unwrap();
        for place in [Place::Memory, Place::Folder(dir.path().into())] {
            let mut store = Store::new(&place, 3, &[2, 1]).unwrap();
            let (a, b) =
                (Matrix::new(2, 3, vec![1., 2., 3., 4., 5., 6.]), Matrix::new(1, 3, vec![7., 8., 9.]));
            store.put(1, b.clone()).unwrap();
            store.put(0, a.clone()).unwrap();
            assert_eq!((store.get(0).unwrap(), store.get(1).unwrap()), (a, b));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
