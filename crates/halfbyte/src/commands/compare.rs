//! `halfbyte compare`: several models measured in the same way, the first being the reference.

use super::labelled::{self, Labelled};
use super::measure;
use super::report::find_report;
use crate::cli::{CompareArgs, MeasureArgs};
use crate::fail::{Failure, Missed};
use crate::output::{self, Table, bytes};
use crate::progress::Watch;
use crate::system;
use halfbyte_data::Metric;
use halfbyte_evaluate::tasks::{Kind, Task, TaskOutcome, run_tasks};
use halfbyte_evaluate::{
    Cache, Classified, ComparedClassification, ComparedModel, ComparedTask, Comparison, EvaluateError,
    LayerError, divergence, paired,
};
use halfbyte_model::Model;
use halfbyte_quantize::Products;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub(crate) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    system::use_threads(args.machine.threads)?;
    system::stop_on_interrupt()?;
    let wanted: Vec<&str> = args.min_accuracy.iter().filter_map(|m| m.task.as_deref()).collect();
    let Compared { comparison, tasks, kept } = compared(&args.models, &args.measure, args.seed, &wanted)?;
    let missed = missed(args, &comparison);
    let seconds = start.elapsed().as_secs_f64();
    if args.output.json {
        let mut value = json(&comparison, &args.measure, args.seed);
        value["missed"] = json!(missed);
        value["from_cache"] = kept.into();
        value["seconds"] = seconds.into();
        output::print_json(&value)?;
    } else {
        let products = measure::products(&args.measure);
        output::print(&table(&comparison, &tasks, products, &measure::time(seconds, kept))?)?;
    }
    if missed.is_empty() { Ok(()) } else { Err(Missed(missed).into()) }
}

/// What was found, and how.
pub(super) struct Compared {
    pub(super) comparison: Comparison,
    pub(super) tasks: Vec<Task>,
    /// Rows and windows of an earlier run.
    pub(super) kept: usize,
}

/// Measures the models in the same way, the first being the reference. The `required` tasks must be among what is measured.
pub(super) fn compared(
    dirs: &[PathBuf],
    args: &MeasureArgs,
    seed: Option<u64>,
    required: &[&str],
) -> anyhow::Result<Compared> {
    let models = dirs.iter().map(|dir| measure::open(dir, args)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut compared =
        dirs.iter().zip(&models).map(|(d, m)| describe(d, m)).collect::<anyhow::Result<Vec<_>>>()?;
    let rows = seed.filter(|_| args.limit.is_some());
    let tasks = measure::tasks(args, rows)?;
    let labelled = models.iter().map(|m| labelled::open(args, m, rows));
    let labelled: Vec<Labelled> = labelled.filter_map(Result::transpose).collect::<anyhow::Result<_>>()?;
    for wanted in required {
        let classified = labelled.iter().any(|l| l.examples.name() == *wanted);
        if !classified && !tasks.iter().any(|t| t.name == *wanted) {
            let message = format!("--min-accuracy {wanted}=...: {wanted} is none of what is measured");
            return Err(Failure::new(message).into());
        }
    }
    let all: Vec<&Model> = models.iter().collect();
    let text = measure::text(args, &all)?;
    let cache = measure::cache(args)?;

    let mut watch = Watch::new();
    if let Some((tokens, options)) = text {
        let found = divergence(all[0], &all[1..], &tokens, options, cache.as_ref(), &mut watch)?;
        compared[0].perplexity = Some(found.reference);
        for (model, (perplexity, divergence)) in compared[1..].iter_mut().zip(found.models) {
            (model.perplexity, model.divergence) = (Some(perplexity), Some(divergence));
        }
    }
    if !tasks.is_empty() {
        ask(&all, &tasks, &mut compared, seed.unwrap_or(0), cache.as_ref(), &mut watch)?;
    }
    classes(&all, &labelled, &mut compared, seed.unwrap_or(0), cache.as_ref(), &mut watch)?;
    Ok(Compared { comparison: Comparison { models: compared }, tasks, kept: watch.kept() })
}

/// Finds out whether the model, and with it quantizations of it, can be measured so; nothing is measured.
pub(super) fn check(dir: &Path, args: &MeasureArgs) -> anyhow::Result<()> {
    let model = measure::open(dir, args)?;
    let (text, tasks) = (measure::text(args, &[&model])?, measure::tasks(args, None)?);
    if text.is_some() || !tasks.is_empty() {
        EvaluateError::require_language_model(&model)?;
    }
    if let Some((tokens, options)) = text {
        options.check(&tokens)?;
    }
    labelled::open(args, &model, None)?;
    Ok(())
}

/// What was found, with all that it depends on.
fn json(comparison: &Comparison, args: &MeasureArgs, seed: Option<u64>) -> Value {
    let mut value = json!(comparison);
    if let Some(p) = &comparison.models[0].perplexity {
        value["protocol"] = p.protocol().into();
    }
    value["products"] = json!(measure::products(args));
    value["skipped_tokens"] = args.skip_tokens.into();
    value["rows"] = json!({ "limit": args.limit, "seed": seed });
    value
}

/// What a folder is, before anything is measured.
fn describe(dir: &Path, model: &Model) -> anyhow::Result<ComparedModel> {
    let mut described = ComparedModel {
        model: dir.display().to_string(),
        quantized: measure::recipe(model),
        size_bytes: model.checkpoint.files().iter().map(|f| f.1).sum(),
        bits_per_weight: None,
        perplexity: None,
        divergence: None,
        tasks: Default::default(),
        classification: None,
        layers: Vec::new(),
    };
    if described.quantized.is_none() {
        let tensors = || model.checkpoint.infos();
        let weights: u64 = tensors().map(|t| t.shape.iter().product::<usize>() as u64).sum();
        let stored: u64 = tensors().map(|t| t.bytes).sum();
        described.bits_per_weight = Some(8.0 * stored as f64 / weights.max(1) as f64);
        return Ok(described);
    }
    // A model without its report can be measured all the same.
    let Some(report) = find_report(dir)? else { return Ok(described) };
    described.bits_per_weight = Some(report.bits_per_weight);
    described.layers = report
        .layers
        .iter()
        .map(|l| LayerError {
            name: l.name.clone(),
            kind: l.name.rsplit('.').next().unwrap_or(&l.name).into(),
            relative_error: l.relative_error,
        })
        .collect();
    Ok(described)
}

/// Asks every model all tasks, and compares the answers with those of the first.
fn ask(
    models: &[&Model],
    tasks: &[Task],
    compared: &mut [ComparedModel],
    seed: u64,
    cache: Option<&Cache>,
    watch: &mut Watch,
) -> anyhow::Result<()> {
    let mut reference: Vec<TaskOutcome> = Vec::new();
    for (i, (model, out)) in models.iter().zip(compared).enumerate() {
        watch.about(format!("model {} of {}: ", i + 1, models.len()));
        let outcomes = run_tasks(model, tasks, cache, watch)?;
        for (t, outcome) in outcomes.iter().enumerate() {
            let beside = |right: fn(&halfbyte_evaluate::tasks::RowResult) -> bool| {
                let answers = |o: &TaskOutcome| o.rows.iter().map(right).collect::<Vec<_>>();
                reference.get(t).map(|r| paired(&answers(r), &answers(outcome), seed))
            };
            let has_norm = tasks[t].kind() == Kind::Choice { norm: true };
            let task = ComparedTask {
                result: outcome.result.clone(),
                paired: beside(|r| r.correct),
                paired_norm: if has_norm { beside(|r| r.choice_norm == r.gold) } else { None },
            };
            out.tasks.insert(outcome.name.clone(), task);
        }
        if i == 0 {
            reference = outcomes;
        }
    }
    Ok(())
}

/// Lets every model classify the same examples, and compares the answers with those of the first.
fn classes(
    models: &[&Model],
    labelled: &[Labelled],
    compared: &mut [ComparedModel],
    seed: u64,
    cache: Option<&Cache>,
    watch: &mut Watch,
) -> anyhow::Result<()> {
    let mut reference: Option<Classified> = None;
    for (i, ((model, labelled), out)) in models.iter().zip(labelled).zip(compared).enumerate() {
        watch.about(format!("model {} of {}: ", i + 1, models.len()));
        let found = labelled.measure(model, seed, cache, watch)?;
        let right = |c: &Classified| c.correct();
        let beside = reference.as_ref().and_then(|r| Some((right(r)?, right(&found)?)));
        let differences = reference.iter().flat_map(|reference| {
            let metrics = Metric::ALL.into_iter().filter(|m| found.result.metrics.contains_key(m.name()));
            metrics.map(|m| (m.name().into(), found.answers.difference(&reference.answers, m, seed)))
        });
        out.classification = Some(ComparedClassification {
            result: found.result.clone(),
            paired: beside.map(|(reference, own)| paired(&reference, &own, seed)),
            differences: differences.collect(),
        });
        reference.get_or_insert(found);
    }
    Ok(())
}

/// What is worse than the user allows.
fn missed(args: &CompareArgs, comparison: &Comparison) -> Vec<String> {
    let mut missed = Vec::new();
    for model in &comparison.models[1..] {
        let name = &model.model;
        if let (Some(most), Some(d)) = (args.max_kld, &model.divergence)
            && d.mean > most
        {
            missed.push(format!("{name} has a divergence of {:.5} nats, above --max-kld {most}", d.mean));
        }
        for wanted in &args.min_accuracy {
            let (accuracy, what) = match &wanted.task {
                Some(task) => {
                    let classified = model.classification.as_ref().and_then(|c| c.result.acc);
                    (model.tasks.get(task).map(|t| t.result.acc).or(classified), task.as_str())
                }
                None => (model.mean_accuracy(), "all that is measured"),
            };
            if let Some(accuracy) = accuracy.filter(|&a| a < wanted.least) {
                missed.push(format!(
                    "{name} has an accuracy of {accuracy:.4} in {what}, below --min-accuracy {}",
                    wanted.least
                ));
            }
        }
    }
    missed
}

fn table(comparison: &Comparison, tasks: &[Task], products: Products, time: &str) -> anyhow::Result<String> {
    let models = &comparison.models;
    let number = |v: Option<f64>, digits: usize| v.map_or("-".into(), |v| format!("{v:.digits$}"));
    let mut table = Table::new([
        "",
        "model",
        "recipe",
        "size",
        "bits",
        "perplexity",
        "KLD",
        "median",
        "99 %",
        "same top",
        "mean acc",
    ]);
    for (i, m) in models.iter().enumerate() {
        let d = m.divergence.as_ref();
        table.row([
            (i + 1).to_string(),
            m.model.clone(),
            m.quantized.clone().unwrap_or("original".into()),
            bytes(m.size_bytes),
            number(m.bits_per_weight, 3),
            number(m.perplexity.as_ref().map(|p| p.value), 4),
            measure::share(d.map(|d| d.mean), d.and_then(|d| d.stderr)),
            number(d.map(|d| d.median), 5),
            number(d.map(|d| d.p99), 4),
            d.map_or("-".into(), |d| format!("{:.2} %", 100.0 * d.same_top1)),
            number(m.mean_accuracy(), 4),
        ]);
    }
    let mut text = format!("{table}\n");
    if !tasks.is_empty() {
        writeln!(text, "{}", task_table(models, tasks))?;
    }
    let classified = models.iter().filter_map(|m| m.classification.as_ref());
    if classified.clone().next().is_some() {
        writeln!(text, "{}", classification_table(classified))?;
    }
    if let Some(errors) = error_table(models) {
        writeln!(text, "{errors}")?;
    }
    if let Some(p) = &models[0].perplexity {
        writeln!(text, "protocol     {}; divergence from model 1 in nats", p.protocol())?;
    }
    if let Some(c) = &models[0].classification {
        writeln!(
            text,
            "data         {}, {} rows; differences to model 1 with their 95 % bootstrap intervals, p of McNemar's exact test",
            c.result.data, c.result.n
        )?;
    }
    if !tasks.is_empty() {
        writeln!(
            text,
            "tasks        zero-shot as in lm-evaluation-harness 0.4.13; difference in acc to model 1 with its 95 % bootstrap interval, p of McNemar's exact test"
        )?;
    }
    writeln!(text, "products     {products}")?;
    writeln!(text, "time         {time}")?;
    Ok(text)
}

/// A line for every model in every task.
fn task_table(models: &[ComparedModel], tasks: &[Task]) -> Table {
    let mut table =
        Table::new(["task", "", "acc", "acc_norm", "perplexity", "rows", "difference", "95 %", "p"]);
    for task in tasks {
        for (i, m) in models.iter().enumerate() {
            let Some(found) = m.tasks.get(&task.name) else { continue };
            let p = found.paired.as_ref();
            let cells = [
                p.map_or("-".into(), |p| format!("{:+.4}", p.difference)),
                p.map_or("-".into(), |p| format!("{:+.4} .. {:+.4}", p.interval[0], p.interval[1])),
                p.map_or("-".into(), |p| format!("{:.4}", p.p_value)),
            ];
            let name = if i == 0 { task.name.clone() } else { String::new() };
            let start = [name, (i + 1).to_string()].into_iter();
            table.row(start.chain(measure::figures(&found.result)).chain(cells));
        }
    }
    table
}

/// The output error of every kind of layer, a column for each model that has a report; `None` where none has.
fn error_table(models: &[ComparedModel]) -> Option<Table> {
    let longest = models.iter().map(ComparedModel::error_by_kind).max_by_key(Vec::len)?;
    if longest.is_empty() {
        return None;
    }
    let with_report: Vec<usize> = (0..models.len()).filter(|&i| !models[i].layers.is_empty()).collect();
    let header = ["output error by kind of layer".to_string()];
    let mut table = Table::new(header.into_iter().chain(with_report.iter().map(|i| (i + 1).to_string())));
    for (kind, _) in &longest {
        let error = |&i: &usize| {
            let found = models[i].error_by_kind().into_iter().find(|k| k.0 == *kind);
            found.map_or("-".into(), |k| format!("{:.3} %", 100.0 * k.1))
        };
        table.row([kind.clone()].into_iter().chain(with_report.iter().map(error)));
    }
    Some(table)
}

/// A line for every figure of every model.
fn classification_table<'a>(models: impl Iterator<Item = &'a ComparedClassification>) -> Table {
    let mut table = Table::new([
        "figure",
        "",
        "value",
        "rows",
        "only 1 right",
        "only it right",
        "difference",
        "95 %",
        "p",
    ]);
    let models: Vec<_> = models.collect();
    let names: Vec<&String> = models.first().into_iter().flat_map(|m| m.result.metrics.keys()).collect();
    for name in names {
        for (i, m) in models.iter().enumerate() {
            let score = m.result.metrics.get(name);
            let difference = m.differences.get(name);
            let interval = difference.and_then(|d| d.interval);
            let test = m.paired.as_ref().filter(|_| name == Metric::Accuracy.name());
            table.row([
                if i == 0 { name.clone() } else { String::new() },
                (i + 1).to_string(),
                measure::share(score.and_then(|s| s.value), score.and_then(|s| s.stderr)),
                m.result.n.to_string(),
                test.map_or("-".into(), |p| p.only_reference.to_string()),
                test.map_or("-".into(), |p| p.only_model.to_string()),
                difference.and_then(|d| d.value).map_or("-".into(), |v| format!("{v:+.4}")),
                interval.map_or("-".into(), |[a, b]| format!("{a:+.4} .. {b:+.4}")),
                test.map_or("-".into(), |p| format!("{:.4}", p.p_value)),
            ]);
        }
    }
    table
}
