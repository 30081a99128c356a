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
use halfbyte_quantize::{Job, Outcome, Plan, PlanOptions, Recipe, partial_dir, phase_seconds};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tracing::debug;

pub(crate) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    system::use_threads(args.machine.threads)?;
    system::stop_on_interrupt()?;
    let finished = quantized(args, !args.output.json)?;
    if args.output.json {
        output::print_json(&finished.json(args))
    } else {
        output::print(&finished.text(args)?)
    }
}

/// A run that came to its end.
pub(super) struct Finished {
    recipe: Recipe,
    source: Option<String>,
    task: Task,
    outcome: Outcome,
    phases: Map<String, Value>,
    resumed: usize,
    seconds: f64,
    predicted_peak: u64,
}

/// Does what the options say; with `announce` the plan is printed before it begins.
pub(super) fn quantized(args: &QuantizeArgs, announce: bool) -> anyhow::Result<Finished> {
    let (start, before) = (Instant::now(), phase_seconds());
    let model = open_original(&args.model, args.requantize)?;
    let recipe = recipes::chosen(&args.recipe, &model.architecture, args.calibration.data.is_some())?;
    let samples = calibration::read(&model, &recipe, &args.calibration)?;
    let amount = PlanOptions::of(&model.architecture, &samples.inputs, 0);
    let (plan, options) = planned(&model, &recipe, &args.calibration, amount)?;
    let activation_memory = options.activation_memory;
    if announce {
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
    let phases = phase_seconds().into_iter().zip(before);
    let phases = phases.map(|((phase, s), (_, before))| (phase.name().into(), (s - before).into())).collect();
    let resumed = bar.resumed();
    drop(bar);
    drop(lock);
    Ok(Finished {
        source: model.values_of.clone(),
        task: model.architecture.head.task,
        outcome,
        phases,
        resumed,
        seconds: start.elapsed().as_secs_f64(),
        predicted_peak: plan.memory.peak_bytes(),
        recipe,
    })
}

impl Finished {
    /// What `--json` prints.
    pub(super) fn json(&self, args: &QuantizeArgs) -> Value {
        let report = &self.outcome.report;
        json!({
            "out": args.out,
            "recipe": self.recipe.name,
            "requantized": self.source,
            "seconds": self.seconds,
            "phases": self.phases,
            "peak_rss_bytes": system::peak_rss_bytes(),
            "peak_memory_predicted_bytes": self.predicted_peak,
            "bits_per_weight": report.bits_per_weight,
            "mean_relative_error": report.mean_relative_error,
            "output_bytes": report.output_bytes,
            "calibration_windows": report.calibration_windows,
            "report": args.out.join("report.html"),
            "resumed_layers": self.resumed,
            "was_finished": self.outcome.was_finished,
        })
    }

    fn text(&self, args: &QuantizeArgs) -> anyhow::Result<String> {
        let report = &self.outcome.report;
        let mut text = String::new();
        let done =
            if self.outcome.was_finished { "was finished already by the same run" } else { "is complete" };
        writeln!(text, "\n{} {done}", args.out.display())?;
        if self.resumed > 0 {
            writeln!(text, "resumed        after {} layers of an earlier run", self.resumed)?;
        }
        writeln!(text, "time           {}", duration(self.seconds))?;
        if let Some(peak) = system::peak_rss_bytes() {
            writeln!(text, "peak memory    {}", bytes(peak))?;
        }
        writeln!(
            text,
            "size           {}, {:.3} bits per quantized weight",
            bytes(report.output_bytes),
            report.bits_per_weight
        )?;
        let what = if self.recipe.needs_calibration() { "output error" } else { "weight error" };
        writeln!(
            text,
            "{what}   {:.3} % of the signal, mean over layers",
            100.0 * report.mean_relative_error
        )?;
        writeln!(text, "report         {}", args.out.join("report.html").display())?;
        let next = match self.task {
            Task::LanguageModel => Some("--perplexity TEXT"),
            Task::TextClassification => Some("--classify FILE"),
            Task::ImageClassification => Some("--images DIR"),
            Task::MaskedLanguageModel | Task::Encoder => None,
        };
        if let Some(next) = next {
            writeln!(text, "\nNext: halfbyte eval {} {next}", args.out.display())?;
        }
        Ok(text)
    }
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
