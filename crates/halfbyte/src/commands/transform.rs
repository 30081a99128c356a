//! `halfbyte transform`: an equal full-precision checkpoint that is easier to quantize.

use super::calibration::{self, Samples};
use super::plan::{open_original, source_lines};
use super::working::Working;
use crate::cli::TransformArgs;
use crate::fail::Failure;
use crate::output::{self, Table, bytes, duration};
use crate::progress::Bar;
use crate::{recipes, system};
use halfbyte_quantize::transforms::{Note, StoredAs, TransformJob, TransformReport, transform_checkpoint};
use halfbyte_quantize::{Recipe, Transform, load_recipe};
use serde_json::json;
use std::fmt::Write;
use std::time::Instant;

pub(crate) fn run(args: &TransformArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    system::use_threads(args.machine.threads)?;
    system::stop_on_interrupt()?;
    if args.calibration.memory_limit.is_some() {
        return Err(Failure::new(
            "--memory-limit is for quantize and plan; a transform takes memory for one block",
        )
        .hint("--activation-memory says when activations go to files")
        .into());
    }
    let model = open_original(&args.model, None)?;
    let mut recipe = Recipe { transforms: args.with.clone(), ..load_recipe(&args.recipe)? };
    recipes::check_parts(&recipe, &model.architecture)?;
    recipes::check_coverage(args.coverage, &model.architecture)?;
    recipe.coverage = args.coverage;
    recipe.check()?;
    let samples = match recipe.transforms.iter().any(Transform::looks_at_inputs) {
        true => calibration::read(&model, &recipe, &args.calibration)?,
        false => Samples { words: "none, rotations look at no inputs".into(), ..Samples::default() },
    };
    if !args.output.json {
        let mut text = source_lines(&model);
        writeln!(text, "to ease        {}", recipe.name)?;
        writeln!(text, "calibration    {}", samples.words)?;
        if let Some(note) = &samples.note {
            writeln!(text, "               ({note})")?;
        }
        output::print(&text)?;
    }
    let working = Working::take(&args.out)?;
    let mut bar = Bar::new("layers");
    let job = TransformJob {
        model: &model,
        recipe: &recipe,
        inputs: &samples.inputs,
        out: &args.out,
        activation_memory: args.calibration.activation_memory.unwrap_or(calibration::ACTIVATION_MEMORY),
        stored_as: args.dtype.map_or(StoredAs::Auto, StoredAs::from),
    };
    let (report, was_finished) = transform_checkpoint(&job, &mut bar)?;
    let resumed = bar.resumed();
    drop((bar, working));
    let seconds = start.elapsed().as_secs_f64();
    let peak = system::peak_rss_bytes();
    if args.output.json {
        return output::print_json(&json!({
            "out": args.out,
            "for": recipe.name,
            "seconds": seconds,
            "peak_rss_bytes": peak,
            "resumed_layers": resumed,
            "was_finished": was_finished,
            "transforms": report.transforms,
            "dtype": report.dtype,
            "output_bytes": report.output_bytes,
            "taps": report.notes,
        }));
    }
    let done = if was_finished { "was finished already by the same run" } else { "is complete" };
    let mut text = format!("\n{}\n{} {done}\n", summary(&report), args.out.display());
    if resumed > 0 {
        writeln!(text, "resumed        after {resumed} layers of an earlier run")?;
    }
    writeln!(text, "time           {}", duration(seconds))?;
    if let Some(peak) = peak {
        writeln!(text, "peak memory    {}", bytes(peak))?;
    }
    let dtype = report.dtype.as_deref().unwrap_or("types as before");
    writeln!(text, "size           {}, {dtype}", bytes(report.output_bytes))?;
    writeln!(text, "\nNext: halfbyte quantize {} --recipe {} ...", args.out.display(), args.recipe)?;
    output::print(&text)
}

/// What was done, the same taps of all blocks together.
fn summary(report: &TransformReport) -> String {
    let mut groups: Vec<(String, Vec<&Note>)> = Vec::new();
    for note in &report.notes {
        let kinds: Vec<String> = note.layers.iter().map(|l| without_numbers(l)).collect();
        let skipped = note.skipped.as_deref().map(without_numbers).unwrap_or_default();
        let key = format!("{}\n{}\n{:?}\n{skipped}", note.transform, kinds.join(", "), note.into.is_some());
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, notes)) => notes.push(note),
            None => groups.push((key, vec![note])),
        }
    }
    let mut table =
        Table::new(["transform", "input of", "blocks", "folded into", "factors", "error", "note"]);
    for (_, notes) in &groups {
        let first = notes[0];
        let short = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        let layers: Vec<String> = first.layers.iter().map(|l| short(l)).collect();
        let factors = notes.iter().filter_map(|n| n.factors).reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])]);
        let errors: Vec<[f64; 2]> = notes.iter().filter_map(|n| n.error).collect();
        let mean = |i: usize| 100.0 * errors.iter().map(|e| e[i]).sum::<f64>() / errors.len().max(1) as f64;
        table.row([
            first.transform.clone(),
            layers.join(", "),
            notes.len().to_string(),
            first.into.as_deref().map_or("-".into(), short),
            factors.map_or("-".into(), |[low, high]| format!("{low:.3}..{high:.3}")),
            if errors.is_empty() { "-".into() } else { format!("{:.4} -> {:.4} %", mean(0), mean(1)) },
            match (&first.skipped, first.shifted) {
                (Some(why), _) => why.clone(),
                (None, true) => "shifted".into(),
                (None, false) => String::new(),
            },
        ]);
    }
    table.to_string()
}

/// Without the numbers of blocks, by which alone the same layers differ.
fn without_numbers(name: &str) -> String {
    name.chars().filter(|c| !c.is_ascii_digit()).collect()
}
