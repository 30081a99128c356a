//! Where the time of a run goes.
//!
//! Times are kept by the thread that drives the run, so that no signature carries them through the whole crate; nothing
//! computed depends on them.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// What a run spends its time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading the checkpoint.
    Read,
    /// Computing the network on the calibration tokens.
    Forward,
    /// Second moments of the inputs, and the sample of tokens.
    Statistics,
    /// Choosing formats, scales and shifts.
    Search,
    /// Correcting and rounding the weights.
    Round,
    /// Gradients of learned rounding.
    Learn,
    /// Measuring the error of what was chosen.
    Measure,
    /// Writing the journal and the output.
    Write,
}

impl Phase {
    /// All of them, in the order of their names in reports.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Forward,
        Self::Statistics,
        Self::Search,
        Self::Round,
        Self::Learn,
        Self::Measure,
        Self::Write,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Forward => "forward",
            Self::Statistics => "statistics",
            Self::Search => "search",
            Self::Round => "round",
            Self::Learn => "learn",
            Self::Measure => "measure",
            Self::Write => "write",
        }
    }
}

thread_local! {
    static SPENT: Cell<[Duration; 8]> = const { Cell::new([Duration::ZERO; 8]) };
}

/// Runs `work` and counts its time as `phase`. Not to be nested.
pub(crate) fn timed<T>(phase: Phase, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    SPENT.with(|spent| {
        let mut all = spent.get();
        all[phase as usize] += start.elapsed();
        spent.set(all);
    });
    result
}

/// Seconds that this thread has spent in each phase since the last call.
pub fn phase_seconds() -> Vec<(Phase, f64)> {
    let spent = SPENT.take();
    Phase::ALL.into_iter().map(|p| (p, spent[p as usize].as_secs_f64())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_add_up_until_they_are_taken() {
        phase_seconds();
        let pause = || std::thread::sleep(Duration::from_millis(2));
        timed(Phase::Search, pause);
        timed(Phase::Search, pause);
        let spent = phase_seconds();
        assert!(spent.iter().all(|(p, s)| if *p == Phase::Search { *s >= 0.004 } else { *s == 0.0 }));
        assert!(phase_seconds().iter().all(|(_, s)| *s == 0.0));
    }
}
