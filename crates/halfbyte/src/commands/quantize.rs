//! `halfbyte quantize`: the whole run, from a checkpoint to the output folder.

use super::plan::{headline, open_original, planned, source_lines};
use super::working::Working;
use super::{calibration, report};
use crate::cli::QuantizeArgs;
use crate::fail::Failure;
use crate::output::{self, Table, bytes, duration, thousands};
use crate::progress::Bar;
use crate::{recipes, system};
use anyhow::Context;
use halfbyte_checkpoint::require_space;
use halfbyte_model::{Model, Task};
use halfbyte_quantize::{
    AUTO_FILE, AutoChoice, AutoJob, Job, Outcome, Plan, PlanOptions, Recipe, Report, choose_recipe,
    partial_dir, phase_seconds, trial_bytes,
};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
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
    auto: Option<AutoChoice>,
}

/// The recipe of the options, or with `auto` all that are tried.
fn candidates(args: &QuantizeArgs, model: &Model) -> anyhow::Result<Vec<Recipe>> {
    let (a, calibrated) = (&model.architecture, args.calibration.data.is_some());
    match (args.recipe.recipe == recipes::AUTO, args.auto.target) {
        (true, Some(_)) if !calibrated => Err(Failure::new("--recipe auto needs data to try recipes on")
            .hint("give --calibration DATA")
            .into()),
        (true, Some(target)) => recipes::candidates(target.into(), &args.recipe, a),
        (true, None) => Err(Failure::new("--recipe auto needs a --target")
            .hint("such as --target nvfp4: the format that is wanted")
            .into()),
        (false, Some(_)) => Err(Failure::new("--target goes with --recipe auto").into()),
        (false, None) => Ok(vec![recipes::chosen(&args.recipe, a, calibrated)?]),
    }
}

/// What `auto` chose.
struct Auto {
    recipe: Recipe,
    choice: AutoChoice,
    /// The choice as it is written to the output.
    file: String,
    predicted_peak: u64,
}

impl Auto {
    fn choose(
        args: &QuantizeArgs,
        model: &Model,
        candidates: &[Recipe],
        announce: bool,
    ) -> anyhow::Result<Self> {
        let most = candidates.iter().max_by(|a, b| a.coverage.total_cmp(&b.coverage));
        let most = most.context("no recipe fits this model")?;
        let samples = calibration::read(model, most, &args.calibration)?;
        let amount = PlanOptions::of(&model.architecture, &samples.inputs, 0);
        let (mut predicted_peak, mut activation_memory) = (0, u64::MAX);
        for recipe in candidates {
            let (plan, options) = planned(model, recipe, &args.calibration, amount)?;
            predicted_peak = predicted_peak.max(plan.memory.peak_bytes() + trial_bytes(&model.architecture));
            activation_memory = activation_memory.min(options.activation_memory);
        }
        // What one candidate gives back does not fit the next one's tensors everywhere.
        predicted_peak += predicted_peak / CANDIDATES_SHARE;
        if let Some(limit) = args.calibration.memory_limit.filter(|limit| predicted_peak > *limit) {
            return Err(Failure::new(format!(
                "trying recipes would need about {}, more than --memory-limit {}",
                bytes(predicted_peak),
                bytes(limit)
            ))
            .hint("allow more, or name a recipe")
            .into());
        }
        let _working = Working::take(&args.out)?;
        let mut bar = Bar::new("blocks tried");
        let job = AutoJob {
            model,
            candidates,
            inputs: &samples.inputs,
            real: samples.real,
            out: &args.out,
            activation_memory,
            budget: args.auto.budget.unwrap_or(BUDGET),
        };
        let choice = choose_recipe(&job, &mut bar)?;
        drop(bar);
        let chosen = candidates.iter().find(|r| Some(&r.name) == choice.chosen.as_ref());
        let recipe = chosen.context("no recipe was tried")?.clone();
        if announce {
            output::print(&auto_text(&choice, predicted_peak)?)?;
        }
        Ok(Self { recipe, file: choice.without_times().to_json()?, choice, predicted_peak })
    }
}

/// One part in so many is lost between candidates.
const CANDIDATES_SHARE: u64 = 16;

/// How long `auto` tries where no option says so.
const BUDGET: Duration = Duration::from_secs(600);

/// The table of what was tried.
fn auto_text(choice: &AutoChoice, predicted_peak: u64) -> anyhow::Result<String> {
    let mut table = Table::new(["tried", "output error", "time"]);
    for tried in &choice.tried {
        let error = format!("{:.4} %", 100.0 * tried.error);
        table.row([tried.recipe.clone(), error, tried.seconds.map_or("before".into(), duration)]);
    }
    let mut text = table.to_string();
    let blocks: Vec<String> = choice.blocks.iter().map(usize::to_string).collect();
    writeln!(
        text,
        "\nchosen         {}: {}\n               (squared error of the outputs of blocks {} on {} held-out rows)",
        choice.chosen.as_deref().unwrap_or_default(),
        choice.reason,
        blocks.join(", "),
        thousands(choice.held_out_rows as u64)
    )?;
    if !choice.left_out.is_empty() {
        writeln!(text, "not tried      {}: --budget was used up", choice.left_out.join(", "))?;
    }
    writeln!(text, "peak memory    {} (predicted, while trying)\n", bytes(predicted_peak))?;
    Ok(text)
}

/// Does what the options say; with `announce` the plan is printed before it begins.
pub(super) fn quantized(args: &QuantizeArgs, announce: bool) -> anyhow::Result<Finished> {
    let (start, before) = (Instant::now(), phase_seconds());
    let model = open_original(&args.model, Some(args.requantize))?;
    let candidates = candidates(args, &model)?;
    let auto = match candidates.len() {
        1 => None,
        _ => Some(Auto::choose(args, &model, &candidates, announce)?),
    };
    let recipe = auto.as_ref().map_or(&candidates[0], |a| &a.recipe).clone();
    // Of the chosen recipe: what `auto` tried them on may be more.
    let samples = calibration::read(&model, &recipe, &args.calibration)?;
    let amount = PlanOptions::of(&model.architecture, &samples.inputs, 0);
    let (plan, options) = planned(&model, &recipe, &args.calibration, amount)?;
    let activation_memory = options.activation_memory;
    if announce {
        let mut text = headline(&plan)?;
        text += &source_lines(&model);
        writeln!(text, "calibration    {}", samples.words)?;
        if let Some(note) = &samples.note {
            writeln!(text, "               ({note})")?;
        }
        output::print(&text)?;
    }

    let working = Working::take(&args.out)?;
    require_space_for(&plan, &args.out)?;
    debug!(?recipe, memory = ?plan.memory, "begin");
    let mut bar = Bar::new("layers");
    let job = Job {
        model: &model,
        recipe: &recipe,
        inputs: &samples.inputs,
        out: &args.out,
        activation_memory,
        pages: Some(&|report: &Report| {
            let mut pages = report::pages(report);
            pages.extend(auto.as_ref().map(|auto| (AUTO_FILE, auto.file.clone())));
            pages
        }),
    };
    let outcome = halfbyte_quantize::quantize(&job, &mut bar)?;
    let phases = phase_seconds().into_iter().zip(before);
    let phases = phases.map(|((phase, s), (_, before))| (phase.name().into(), (s - before).into())).collect();
    let resumed = bar.resumed();
    drop(bar);
    drop(working);
    Ok(Finished {
        source: model.values_of.clone(),
        task: model.architecture.head.task,
        outcome,
        phases,
        resumed,
        seconds: start.elapsed().as_secs_f64(),
        predicted_peak: plan.memory.peak_bytes().max(auto.as_ref().map_or(0, |a| a.predicted_peak)),
        auto: auto.map(|a| a.choice),
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
            "auto": self.auto,
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
