//! `halfbyte quantize`: the whole run, from a checkpoint to the output folder.

use super::plan::{headline, open_original, planned, source_line};
use super::{calibration, report};
use crate::cli::QuantizeArgs;
use crate::fail::Failure;
use crate::output::{self, bytes, duration};
use crate::progress::Bar;
use crate::{recipes, system};
use anyhow::Context;
use halfbyte_checkpoint::require_space;
use halfbyte_model::Task;
use halfbyte_quantize::{Job, Plan, PlanOptions, partial_dir, phase_seconds};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tracing::debug;

pub(crate) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    system::use_threads(args.machine.threads)?;
    system::stop_on_interrupt()?;
    let model = open_original(&args.model, args.requantize)?;
    let recipe = recipes::chosen(&args.recipe, &model.architecture, args.calibration.data.is_some())?;
    let samples = calibration::read(&model, &recipe, &args.calibration)?;
    let amount = PlanOptions::of(&model.architecture, &samples.inputs, 0);
    let (plan, options) = planned(&model, &recipe, &args.calibration, amount)?;
    let activation_memory = options.activation_memory;
    if !args.output.json {
        let mut text = headline(&plan)?;
        text += &source_line(&model);
        writeln!(text, "calibration    {}", samples.words)?;
        if let Some(note) = &samples.note {
            writeln!(text, "               ({note})")?;
        }
        output::print(&text)?;
    }

    let lock = Lock::take(&args.out)?;
    require_space_for(&plan, &args.out)?;
    debug!(?recipe, memory = ?plan.memory, "begin");
    let mut bar = Bar::new("layers");
    let job = Job {
        model: &model,
        recipe: &recipe,
        inputs: &samples.inputs,
        out: &args.out,
        activation_memory,
        pages: Some(&report::pages),
    };
    let outcome = halfbyte_quantize::quantize(&job, &mut bar)?;
    let phases: Map<String, Value> =
        phase_seconds().into_iter().map(|(phase, s)| (phase.name().into(), s.into())).collect();
    let resumed = bar.resumed();
    drop(bar);
    drop(lock);

    let report = &outcome.report;
    let report_page = args.out.join("report.html");
    let seconds = start.elapsed().as_secs_f64();
    let peak = system::peak_rss_bytes();
    if args.output.json {
        return output::print_json(&json!({
            "out": args.out,
            "recipe": recipe.name,
            "requantized": model.values_of,
            "seconds": seconds,
            "phases": phases,
            "peak_rss_bytes": peak,
            "peak_memory_predicted_bytes": plan.memory.peak_bytes(),
            "bits_per_weight": report.bits_per_weight,
            "mean_relative_error": report.mean_relative_error,
            "output_bytes": report.output_bytes,
            "calibration_windows": report.calibration_windows,
            "report": report_page,
            "resumed_layers": resumed,
            "was_finished": outcome.was_finished,
        }));
    }
    let mut text = String::new();
    let done = if outcome.was_finished { "was finished already by the same run" } else { "is complete" };
    writeln!(text, "\n{} {done}", args.out.display())?;
    if resumed > 0 {
        writeln!(text, "resumed        after {resumed} layers of an earlier run")?;
    }
    writeln!(text, "time           {}", duration(seconds))?;
    if let Some(peak) = peak {
        writeln!(text, "peak memory    {}", bytes(peak))?;
    }
    writeln!(
        text,
        "size           {}, {:.3} bits per quantized weight",
        bytes(report.output_bytes),
        report.bits_per_weight
    )?;
    let what = if recipe.needs_calibration() { "output error" } else { "weight error" };
    writeln!(text, "{what}   {:.3} % of the signal, mean over layers", 100.0 * report.mean_relative_error)?;
    writeln!(text, "report         {}", report_page.display())?;
    let next = match model.architecture.head.task {
        Task::LanguageModel => Some("--perplexity TEXT"),
        Task::TextClassification => Some("--classify FILE"),
        Task::ImageClassification => Some("--images DIR"),
        Task::MaskedLanguageModel | Task::Encoder => None,
    };
    if let Some(next) = next {
        writeln!(text, "\nNext: halfbyte eval {} {next}", args.out.display())?;
    }
    output::print(&text)
}

/// Asks for the disk before hours of work are spent on it.
fn require_space_for(plan: &Plan, out: &Path) -> anyhow::Result<()> {
    if out.exists() {
        return Ok(());
    }
    let partial = partial_dir(out)?;
    let there: u64 = match fs::read_dir(&partial) {
        Ok(entries) => {
            entries.flatten().filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
        }
        Err(_) => 0,
    };
    let needed = (plan.output_bytes + plan.working_bytes).saturating_sub(there);
    require_space(&partial, needed).context("the run would not fit on the disk")
}

/// Keeps two processes from the same working folder. The system lets go of it however the process ends.
pub(super) struct Lock {
    dir: PathBuf,
    path: PathBuf,
    _file: File,
}

impl Lock {
    pub(super) fn take(out: &Path) -> anyhow::Result<Self> {
        let dir = partial_dir(out)?;
        let path = dir.join("lock");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { dir, path, _file: file }),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(format!("another halfbyte is working on {} at this moment", out.display()))
                    .hint("wait for it, or choose another --out")
                    .into())
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

impl Drop for Lock {
    /// A run that was refused leaves nothing behind: the folder goes if nothing else is in it.
    fn drop(&mut self) {
        let only_lock = fs::read_dir(&self.dir).is_ok_and(|entries| entries.count() == 1);
        if only_lock && fs::remove_file(&self.path).is_ok() {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}
