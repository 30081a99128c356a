//! `halfbyte demo`: every method on a model small enough to live inside the program.

use super::calibration::ACTIVATION_MEMORY;
use crate::cli::DemoArgs;
use crate::fail::{Failure, stopped};
use crate::output::{self, Table};
use crate::progress::Bar;
use crate::system;
use anyhow::Context;
use halfbyte_evaluate::{PerplexityOptions, perplexity, read_text};
use halfbyte_model::Model;
use halfbyte_quantize::{Job, Progress, Recipe, calibration_windows, quantize};
use serde::Serialize;
use serde_json::json;
use std::path::Path;
use std::time::Instant;

/// The embedded model: stories260K, see SOURCE.txt beside it.
const MODEL: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../assets/stories260K/config.json")),
    ("model.safetensors", include_bytes!("../../assets/stories260K/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../assets/stories260K/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../assets/stories260K/tokenizer_config.json")),
];
/// What it reads: a piece of TinyStories, see tinystories.SOURCE.txt beside it.
const TEXT: &[u8] = include_bytes!("../../assets/tinystories.txt");

/// The methods, plainest first.
const RECIPES: [&str; 5] =
    ["minmax-int-w4a4", "minmax-fp-w4a4", "fpq-baseline-w4a4", "fpq-published-w4a4", "fpq-w4a4"];

/// Calibration takes the start of the text, evaluation the second half.
const WINDOW: usize = 128;
const CALIBRATION_WINDOWS: usize = 16;
const EVALUATION: PerplexityOptions =
    PerplexityOptions { window: WINDOW, stride: None, windows: Some(60), skip_tokens: 7768 };

#[derive(Serialize)]
struct Row {
    recipe: String,
    perplexity: f64,
    bits_per_weight: f64,
    mean_relative_error: f64,
    seconds: f64,
}

pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    match shown(args) {
        // Nothing of a demo is kept, so there is nothing to go on from.
        Err(error) if stopped(&error) => Err(Failure::stopped("the demo was stopped").into()),
        other => other,
    }
}

fn shown(args: &DemoArgs) -> anyhow::Result<()> {
    system::use_threads(args.machine.threads)?;
    system::stop_on_interrupt()?;
    let work = tempfile::tempdir().context("cannot make a temporary folder")?;
    let dir = work.path().join("stories260K");
    std::fs::create_dir(&dir)?;
    for (name, contents) in MODEL {
        std::fs::write(dir.join(name), contents)
            .with_context(|| format!("cannot write {}", dir.join(name).display()))?;
    }
    // The text goes through the same door as that of `eval`, which makes line ends equal.
    let text = work.path().join("tinystories.txt");
    std::fs::write(&text, TEXT).with_context(|| format!("cannot write {}", text.display()))?;
    let model = Model::open(&dir)?;
    let tokens = model.tokenizer()?.encode(&read_text(&text)?)?;

    let bar = Bar::new("methods");
    let start = Instant::now();
    let mut rows = vec![Row {
        recipe: "full-precision".into(),
        perplexity: evaluate(&model, &tokens)?,
        bits_per_weight: 32.0,
        mean_relative_error: 0.0,
        seconds: start.elapsed().as_secs_f64(),
    }];
    for (i, name) in RECIPES.iter().enumerate() {
        bar.set(i, RECIPES.len());
        bar.stage(format!("methods, now {name}"));
        rows.push(row(name, &model, &tokens, &work.path().join(name))?);
    }
    drop(bar);
    if args.output.json {
        return output::print_json(&json!({ "model": "stories260K", "text": "TinyStories", "rows": rows }));
    }
    let mut table = Table::new(["recipe", "perplexity", "bits per weight", "output error", "seconds"]);
    for row in &rows {
        table.row([
            row.recipe.clone(),
            format!("{:.3}", row.perplexity),
            format!("{:.2}", row.bits_per_weight),
            format!("{:.2} %", 100.0 * row.mean_relative_error),
            format!("{:.1}", row.seconds),
        ]);
    }
    output::print(&format!(
        "stories260K on TinyStories: linear layers with 4-bit weights and 4-bit inputs, embedding and output layer kept.\n\
         Calibrated on {CALIBRATION_WINDOWS} windows of {WINDOW} tokens of the same text, evaluated on 60 others (--coverage 0).\n\
         Perplexity: lower is better.\n\n{table}\n\
         Bits per weight count scales and shifts; the stories model is so narrow that they weigh more than usual.\n\
         Next: `halfbyte plan MODEL --recipe fpq-w4a4` on a model of yours, and `halfbyte --help`.\n"
    ))
}

fn row(name: &str, model: &Model, tokens: &[u32], out: &Path) -> anyhow::Result<Row> {
    let start = Instant::now();
    let keep = vec!["lm_head".to_string(), "embedding".to_string()];
    // Calibrated on the very text that is evaluated, a little further on: nothing to cover beyond it.
    let recipe = Recipe { keep, coverage: 0.0, ..Recipe::named(name)? };
    let windows =
        calibration_windows(&recipe, tokens, model.architecture.vocabulary(), WINDOW, CALIBRATION_WINDOWS)?;
    let job = Job {
        model,
        recipe: &recipe,
        inputs: &windows,
        out,
        activation_memory: ACTIVATION_MEMORY,
        pages: None,
    };
    let report = quantize(&job, &mut Quiet)?.report;
    let seconds = start.elapsed().as_secs_f64();
    let perplexity = evaluate(&Model::open(out)?, tokens)?;
    Ok(Row {
        recipe: name.into(),
        perplexity,
        bits_per_weight: report.bits_per_weight,
        mean_relative_error: report.mean_relative_error,
        seconds,
    })
}

fn evaluate(model: &Model, tokens: &[u32]) -> anyhow::Result<f64> {
    Ok(perplexity(model, tokens, EVALUATION, None, &mut |_: u64, _: u64| !system::asked_to_stop())?.value)
}

/// The bar counts methods; their layers are no news.
struct Quiet;

impl Progress for Quiet {
    fn begin(&mut self, _: usize, _: usize) {}
    fn advance(&mut self, _: usize) {}
    fn stopped(&self) -> bool {
        system::asked_to_stop()
    }
}
