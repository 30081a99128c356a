//! The machine: threads, memory, Ctrl-C, logs.

use anyhow::Context;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing_subscriber::EnvFilter;

/// Lets the allocator keep what is freed for what comes next. By default glibc gives every large matrix back to the system, and
/// each then costs its pages anew and interrupts the other threads: as much time as the products of an evaluation. Other
/// allocators are left alone. Peak memory grew by a hundredth. All threads share one arena: what one of them allocates another
/// frees, and with an arena for each that took a third more.
pub(crate) fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let set = |setting, value| {
            #[allow(unsafe_code)]
            // SAFETY: sets a number of the allocator, before there are other threads.
            unsafe {
                libc::mallopt(setting, value) != 0
            }
        };
        // Older versions refuse more than half the size of a heap.
        let _ = set(libc::M_MMAP_THRESHOLD, 1 << 30) || set(libc::M_MMAP_THRESHOLD, 32 << 20);
        set(libc::M_TRIM_THRESHOLD, 1 << 30);
        set(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what is free, also where it lies between what is not: for between two stages of a run, the first of which may
/// have left its free memory in pieces that are too small for what the next one reads first.
pub(crate) fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: tells the allocator to return pages that nothing uses.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Starts the threads that everything computes on.
pub(crate) fn use_threads(threads: Option<usize>) -> anyhow::Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .build_global()
        .context("cannot start the threads; try fewer with --threads")
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Lets Ctrl-C (and a polite `kill`) ask for a stop at the next good place; a second one stops at once.
pub(crate) fn stop_on_interrupt() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("cannot listen to Ctrl-C")
}

/// Whether the user asked to stop.
pub(crate) fn asked_to_stop() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// The most memory that this process has had resident so far; `None` where the system does not tell.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Logs to standard error, and only if asked for: by `-v`, or by `RUST_LOG`.
pub(crate) fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "off",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
