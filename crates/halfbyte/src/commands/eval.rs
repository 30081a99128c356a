//! `halfbyte eval`: perplexity, divergence, tasks and classes of a quantized or original model.

use super::{labelled, measure};
use crate::cli::EvalArgs;
use crate::output::{self, Table};
use crate::progress::Watch;
use crate::system;
use anyhow::Context;
use halfbyte_checkpoint::write_atomic;
use halfbyte_evaluate::tasks::{TaskOutcome, run_tasks};
use halfbyte_evaluate::{Classified, Divergence, Perplexity, divergence, perplexity};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::time::Instant;

/// All that was measured.
struct Found {
    perplexity: Option<Perplexity>,
    /// Beside the reference, whose perplexity comes with it.
    divergence: Option<(Divergence, Perplexity)>,
    tasks: Vec<TaskOutcome>,
    classified: Option<Classified>,
    /// Rows and windows of an earlier run.
    kept: usize,
}

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    system::use_threads(args.machine.threads)?;
    system::stop_on_interrupt()?;
    let model = measure::open(&args.dir, &args.measure)?;
    let reference = args.reference.as_deref().map(|r| measure::open(r, &args.measure)).transpose()?;
    // Whatever is wrong with the files is said before anything is computed.
    let tasks = measure::tasks(&args.measure, args.seed)?;
    let labelled = labelled::open(&args.measure, &model, args.seed)?;
    let models: Vec<_> = reference.iter().chain([&model]).collect();
    let text = measure::text(&args.measure, &models)?;
    let cache = measure::cache(&args.measure)?;
    let cache = cache.as_ref();

    let mut watch = Watch::new();
    let mut found =
        Found { perplexity: None, divergence: None, tasks: Vec::new(), classified: None, kept: 0 };
    if let Some((tokens, options)) = text {
        match &reference {
            Some(reference) => {
                let mut all = divergence(reference, &[&model], &tokens, options, cache, &mut watch)?;
                if let Some((own, divergence)) = all.models.pop() {
                    found.perplexity = Some(own);
                    found.divergence = Some((divergence, all.reference));
                }
            }
            None => found.perplexity = Some(perplexity(&model, &tokens, options, cache, &mut watch)?),
        }
    }
    if !tasks.is_empty() {
        found.tasks = run_tasks(&model, &tasks, cache, &mut watch)?;
    }
    if let Some(labelled) = &labelled {
        found.classified = Some(labelled.measure(&model, args.seed.unwrap_or(0), cache, &mut watch)?);
    }
    found.kept = watch.kept();
    drop(watch);

    if let Some(path) = &args.save_scores {
        let scores: Map<String, Value> =
            found.tasks.iter().map(|t| (t.name.clone(), json!({ "rows": t.rows }))).collect();
        let mut value = json!({ "model": args.dir, "tasks": scores });
        if let Some(c) = &found.classified {
            value["classification"] = json!({ "data": c.result.data, "rows": c.rows });
        }
        let bytes = serde_json::to_vec_pretty(&value)?;
        write_atomic(path, &bytes).context("--save-scores")?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let recipe = measure::recipe(&model);
    if args.output.json {
        return output::print_json(&json(args, &found, recipe.as_deref(), seconds));
    }
    output::print(&table(args, &found, recipe.as_deref(), seconds)?)
}

fn json(args: &EvalArgs, found: &Found, recipe: Option<&str>, seconds: f64) -> Value {
    let mut value = json!({ "model": args.dir, "quantized": recipe });
    if let Some(p) = &found.perplexity {
        value["perplexity"] = json!(p);
        value["perplexity"]["protocol"] = p.protocol().into();
        value["skipped_tokens"] = args.measure.skip_tokens.into();
    }
    if let Some((divergence, reference)) = &found.divergence {
        value["reference"] = json!({ "model": args.reference, "perplexity": reference });
        value["divergence"] = json!(divergence);
    }
    if !found.tasks.is_empty() {
        let results = found.tasks.iter().map(|t| (t.name.clone(), json!(t.result)));
        value["tasks"] = results.collect::<Map<_, _>>().into();
    }
    if let Some(c) = &found.classified {
        value["classification"] = json!(c.result);
    }
    if !found.tasks.is_empty() || found.classified.is_some() {
        value["rows"] = json!({ "limit": args.measure.limit, "seed": args.seed });
    }
    value["products"] = json!(measure::products(&args.measure));
    value["from_cache"] = found.kept.into();
    value["seconds"] = seconds.into();
    value
}

fn table(args: &EvalArgs, found: &Found, recipe: Option<&str>, seconds: f64) -> anyhow::Result<String> {
    let mut text = String::new();
    if let Some(p) = &found.perplexity {
        writeln!(text, "perplexity   {:.4}", p.value)?;
    }
    if let Some((d, reference)) = &found.divergence {
        writeln!(text, "reference    {:.4} is the perplexity of the reference", reference.value)?;
        writeln!(
            text,
            "divergence   {} nats, median {:.5}, 99 % below {:.4}, same first choice {:.2} %",
            measure::share(Some(d.mean), d.stderr),
            d.median,
            d.p99,
            100.0 * d.same_top1
        )?;
    }
    if !found.tasks.is_empty() {
        let mut table = Table::new(["task", "acc", "acc_norm", "perplexity", "rows"]);
        for task in &found.tasks {
            table.row([task.name.clone()].into_iter().chain(measure::figures(&task.result)));
        }
        writeln!(text, "{}{table}", if text.is_empty() { "" } else { "\n" })?;
    }
    for (name, figure) in found.classified.iter().flat_map(|c| labelled::lines(&c.result)) {
        writeln!(text, "{name:<12} {figure}")?;
    }
    let form = recipe.map_or("as it is".into(), |r| match r.strip_prefix("GGUF ") {
        Some(types) => format!("GGUF, computed with the values of its {types} blocks"),
        None => format!("quantized with {r}, run from its codes"),
    });
    writeln!(text, "model        {}, {form}", args.dir.display())?;
    if let Some(reference) = &args.reference {
        writeln!(text, "reference    {}", reference.display())?;
    }
    if let (Some(path), Some(p)) = (&args.measure.perplexity, &found.perplexity) {
        writeln!(text, "text         {}", path.display())?;
        if args.measure.skip_tokens > 0 {
            writeln!(text, "skipped      the first {} tokens", args.measure.skip_tokens)?;
        }
        writeln!(text, "protocol     {}", p.protocol())?;
    }
    if !found.tasks.is_empty() {
        let rows = match (args.measure.limit, args.seed) {
            (None, _) => "all rows".into(),
            (Some(limit), None) => format!("the first {limit} rows"),
            (Some(limit), Some(seed)) => format!("{limit} rows drawn with seed {seed}"),
        };
        writeln!(
            text,
            "tasks        zero-shot as in lm-evaluation-harness 0.4.13, {rows}; ± is the standard error"
        )?;
    }
    if let (Some(path), Some(c)) =
        (args.measure.images.as_ref().or(args.measure.classify.as_ref()), &found.classified)
    {
        let rows = labelled::rows(&args.measure, args.seed, c.result.n);
        writeln!(text, "data         {}, {rows}; ± is the standard error", path.display())?;
    }
    writeln!(text, "products     {}", measure::products(&args.measure))?;
    writeln!(text, "time         {}", measure::time(seconds, found.kept))?;
    Ok(text)
}
