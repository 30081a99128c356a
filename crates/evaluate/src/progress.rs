//! How an evaluation tells how far it is.

use crate::EvaluateError;

/// Watches an evaluation. A closure of (work done, work in all) that says whether to go on is one.
pub trait Progress {
    /// `done` of `all` units of work are done; the unit is a token through a block. False asks to stop.
    fn work(&mut self, done: u64, all: u64) -> bool;

    /// `done` of `all` items (rows, windows) of `what` are finished, with this accuracy so far.
    fn items(&mut self, what: &str, done: usize, all: usize, accuracy: Option<f64>) {
        let _ = (what, done, all, accuracy);
    }
}

impl<F: FnMut(u64, u64) -> bool> Progress for F {
    fn work(&mut self, done: u64, all: u64) -> bool {
        self(done, all)
    }
}

/// Counts work.
pub(crate) struct Meter<'a> {
    pub(crate) progress: &'a mut dyn Progress,
    done: u64,
    all: u64,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(progress: &'a mut dyn Progress, all: u64) -> Self {
        Self { progress, done: 0, all }
    }

    /// `n` more units are done.
    pub(crate) fn add(&mut self, n: u64) -> Result<(), EvaluateError> {
        self.done += n;
        if self.progress.work(self.done, self.all) { Ok(()) } else { Err(EvaluateError::Stopped) }
    }
}
