//! Progress on standard error, for work that takes longer than a second and a person who watches.

use crate::system;
use halfbyte_quantize::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// Work shorter than this is not worth a bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// A bar with an estimate of the time left. It appears after a second, and only on a terminal.
pub(crate) struct Bar {
    bar: ProgressBar,
    unit: &'static str,
    finished: usize,
}

impl Bar {
    /// A bar that counts `unit`s; the number of them may come later.
    pub(crate) fn new(unit: &'static str) -> Self {
        Self::with("{elapsed_precise} [{bar:40}] {pos}/{len} {msg}, {eta} left", unit)
    }

    /// A bar for work whose units mean nothing to people.
    pub(crate) fn percent(what: &'static str) -> Self {
        Self::with("{elapsed_precise} [{bar:40}] {percent} % {msg}, {eta} left", what)
    }

    fn with(template: &str, message: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(message);
        if std::io::stderr().is_terminal() {
            let late = bar.clone();
            std::thread::spawn(move || {
                std::thread::sleep(PATIENCE);
                if !late.is_finished() {
                    late.set_draw_target(ProgressDrawTarget::stderr());
                    late.enable_steady_tick(Duration::from_millis(500));
                }
            });
        }
        Self { bar, unit: message, finished: 0 }
    }

    /// `done` of `all` steps are done.
    pub(crate) fn set(&self, done: usize, all: usize) {
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
    }

    /// What is done at the moment, for a bar that goes through several stages.
    pub(crate) fn stage(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Layers that an earlier run had finished.
    pub(crate) fn resumed(&self) -> usize {
        self.finished
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn begin(&mut self, layers: usize, finished: usize) {
        system::give_back_freed_memory();
        self.finished = finished;
        self.set(finished, layers);
        // The earlier run's layers say nothing of this one's speed.
        self.bar.reset_eta();
    }

    fn advance(&mut self, layers: usize) {
        self.bar.inc(layers as u64);
    }

    fn steps(&mut self, done: usize, all: usize) {
        match done == all {
            true => self.stage(self.unit.into()),
            false => self.stage(format!("{} (learning, step {done} of {all})", self.unit)),
        }
    }

    fn freed(&mut self) {
        system::give_back_freed_memory();
    }

    fn stopped(&self) -> bool {
        system::asked_to_stop()
    }
}

/// The bar of an evaluation: work done, items of the task at hand, accuracy so far.
pub(crate) struct Watch {
    bar: Bar,
    /// What is said before the items: which model it is, where there are several.
    about: String,
    /// The task at hand.
    what: String,
    kept: usize,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { bar: Bar::percent("tokenising"), about: String::new(), what: String::new(), kept: 0 }
    }

    /// From here on it is about something else.
    pub(crate) fn about(&mut self, about: String) {
        (self.about, self.what) = (about, String::new());
        self.bar.bar.reset_eta();
    }

    /// Rows and windows that were there from an earlier run.
    pub(crate) fn kept(&self) -> usize {
        self.kept
    }
}

impl halfbyte_evaluate::Progress for Watch {
    fn work(&mut self, done: u64, all: u64) -> bool {
        self.bar.set(done as usize, all as usize);
        !system::asked_to_stop()
    }

    fn items(&mut self, what: &str, done: usize, all: usize, accuracy: Option<f64>) {
        // The first word on a task comes before anything is computed.
        if self.what != what {
            self.what = what.into();
            self.kept += done;
        }
        let accuracy = accuracy.map_or(String::new(), |a| format!(", accuracy {a:.4}"));
        self.bar.stage(format!("{}{what} {done}/{all}{accuracy}", self.about));
    }
}
