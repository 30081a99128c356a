//! `halfbyte ablate`: several recipes on one model, quantized, measured in the same way and laid beside each other.

use super::compare::{self, Compared, compared};
use super::quantize::quantized;
use super::{calibration, plan};
use crate::cli::{AblateArgs, AutoArgs, CalibrationArgs, OutputArgs, QuantizeArgs, RecipeArgs};
use crate::fail::Failure;
use crate::output::{self, duration};
use crate::{recipes, system};
use anyhow::Context;
use halfbyte_checkpoint::write_atomic;
use halfbyte_evaluate::ComparedModel;
use halfbyte_model::{Model, Task};
use halfbyte_quantize::{Job, PlanOptions, Recipe, check_output, is_model, partial_dir};
use halfbyte_report::{Ablated, AblatedRun, Ablation, Measured, html, markdown};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

/// One quantization of the ablation.
struct Planned {
    recipe: String,
    seed: u64,
    folder: PathBuf,
    options: QuantizeArgs,
}

pub(crate) fn run(args: &AblateArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    system::use_threads(args.machine.threads)?;
    system::stop_on_interrupt()?;
    // Whatever is wrong with the last of them, or with what is to be measured, is said before the first begins.
    let planned = planned(args)?;
    compare::check(&args.model, &args.measure)?;
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let mut costs = Vec::with_capacity(planned.len());
    for (i, run) in planned.iter().enumerate() {
        let name = run.folder.file_name().unwrap_or_default().to_string_lossy();
        if !args.output.json {
            output::print(&format!("{} of {}: {name}\n", i + 1, planned.len()))?;
        }
        costs.push(cost(run).with_context(|| format!("recipe {}", run.recipe))?);
    }
    let models: Vec<PathBuf> =
        [args.model.clone()].into_iter().chain(planned.iter().map(|r| r.folder.clone())).collect();
    let mut measure = args.measure.clone();
    if measure.cache.is_none() && !measure.no_cache {
        measure.cache = Some(args.out.join("cache"));
    }
    let Compared { comparison, .. } = compared(&models, &measure, None, &[])?;

    let title = args.model.file_name().unwrap_or(args.model.as_os_str()).to_string_lossy().into_owned();
    let mut recipes: Vec<Ablated> = Vec::new();
    for ((run, cost), found) in planned.iter().zip(&costs).zip(&comparison.models[1..]) {
        let number = |key: &str| cost[key].as_f64();
        let ablated = AblatedRun {
            folder: run.folder.display().to_string(),
            seed: run.seed,
            seconds: number("seconds"),
            peak_bytes: cost["peak_memory_predicted_bytes"].as_u64().unwrap_or(0),
            output_bytes: cost["output_bytes"].as_u64().unwrap_or(0),
            bits_per_weight: number("bits_per_weight").unwrap_or(f64::NAN),
            mean_relative_error: number("mean_relative_error").unwrap_or(f64::NAN),
            measured: measured(found),
        };
        match recipes.iter_mut().find(|r| r.recipe == run.recipe) {
            Some(recipe) => recipe.runs.push(ablated),
            None => recipes.push(Ablated { recipe: run.recipe.clone(), runs: vec![ablated] }),
        }
    }
    let ablation = Ablation {
        title,
        protocol: comparison.models[0].perplexity.as_ref().map(|p| p.protocol()),
        notes: notes(args),
        original: measured(&comparison.models[0]),
        recipes,
    };
    let document = ablation.document();
    let text = format!("{:#}\n", serde_json::to_value(&ablation)?);
    write_atomic(&args.out.join("ablation.json"), text.as_bytes())?;
    write_atomic(&args.out.join("ablation.html"), html(&document).as_bytes())?;
    let page = markdown(&document);
    write_atomic(&args.out.join("ablation.md"), page.as_bytes())?;
    if args.output.json {
        return output::print_json(&serde_json::to_value(&ablation)?);
    }
    output::print(&format!(
        "\n{page}\nwritten        {0}/ablation.html, ablation.md, ablation.json\ntime           {1}\n",
        args.out.display(),
        duration(start.elapsed().as_secs_f64())
    ))
}

/// Every recipe with every seed; the calibration text of a seed begins behind that of the seed before.
fn planned(args: &AblateArgs) -> anyhow::Result<Vec<Planned>> {
    let model = plan::open_original(&args.model, None)?;
    if is_model(&args.out, &model) {
        let message = format!("{} is the model itself; choose another --out", args.out.display());
        return Err(Failure::new(message).into());
    }
    let window = calibration::window(&args.calibration, &model)?;
    let calibrated = args.calibration.data.is_some();
    let mut planned: Vec<Planned> = Vec::new();
    // What a recipe calibrates on follows from these, and is read once for all that have them in common.
    let mut amounts: Vec<((bool, u32, u64), PlanOptions)> = Vec::new();
    for recipe in args.recipes.iter().map(|r| r.trim()) {
        for seed in 0..args.seeds as u64 {
            let options = RecipeArgs {
                recipe: recipe.into(),
                keep: args.keep.clone(),
                seed: (args.seeds > 1).then_some(seed),
                ..RecipeArgs::default()
            };
            let chosen = recipes::chosen(&options, &model.architecture, calibrated)?;
            let (name, seed) = (chosen.name.clone(), chosen.seed);
            let folder = if args.seeds > 1 { format!("{name}.seed{seed}") } else { name.clone() };
            let folder = args.out.join(folder);
            if planned.iter().any(|p| p.folder == folder) {
                return Err(Failure::new(format!("two recipes are named {name}"))
                    .hint("the line `name = ...` of a recipe file names it")
                    .into());
            }
            // Other models are calibrated on what the seed draws.
            let windows = model.architecture.head.task == Task::LanguageModel;
            let skip = usize::from(windows && args.seeds > 1)
                * seed as usize
                * args.calibration.calibration_windows
                * window;
            let options = QuantizeArgs {
                model: args.model.clone(),
                recipe: options,
                requantize: false,
                auto: AutoArgs::default(),
                out: folder.clone(),
                calibration: CalibrationArgs {
                    calibration_skip: args.calibration.calibration_skip + skip,
                    ..args.calibration.clone()
                },
                output: OutputArgs { json: true },
                machine: args.machine.clone(),
            };
            let key = (chosen.needs_calibration(), chosen.coverage.to_bits(), seed);
            let amount = match amounts.iter().find(|(k, _)| *k == key) {
                Some((_, amount)) => *amount,
                None => {
                    let amount = amount(args, &model, &chosen, &options.calibration)
                        .with_context(|| format!("recipe {name}, seed {seed}"))?;
                    amounts.push((key, amount));
                    amount
                }
            };
            plan::planned(&model, &chosen, &options.calibration, amount)
                .with_context(|| format!("recipe {name}"))?;
            check_folder(&model, &chosen, &options).with_context(|| format!("recipe {name}"))?;
            planned.push(Planned { recipe: name.clone(), seed, folder, options });
        }
    }
    Ok(planned)
}

/// What an earlier ablation left where a run is to go must be of the very run.
fn check_folder(model: &Model, recipe: &Recipe, options: &QuantizeArgs) -> anyhow::Result<()> {
    let out = &options.out;
    if !out.exists() && !partial_dir(out)?.exists() {
        return Ok(());
    }
    let samples = calibration::read(model, recipe, &options.calibration)?;
    let job = Job { model, recipe, inputs: &samples.inputs, out, activation_memory: 0, pages: None };
    Ok(check_output(&job)?)
}

/// How much one seed calibrates on. Each has its own part of a text, and one of fewer windows would not be one of the same.
///
/// # Errors
/// The text does not suffice for all seeds, or cannot be read.
fn amount(
    args: &AblateArgs,
    model: &Model,
    recipe: &Recipe,
    calibration: &CalibrationArgs,
) -> anyhow::Result<PlanOptions> {
    let samples = calibration::read(model, recipe, calibration);
    let short = match &samples {
        Ok(samples) => samples.note.is_some(),
        Err(_) => calibration.calibration_skip > args.calibration.calibration_skip,
    };
    if short && args.seeds > 1 && model.architecture.head.task == Task::LanguageModel {
        return Err(Failure::new(format!(
            "the calibration text is too short for --seeds {} of {} windows of {} tokens each",
            args.seeds,
            calibration.calibration_windows,
            calibration::window(calibration, model)?
        ))
        .hint("give a longer text, fewer seeds, or fewer or smaller windows")
        .into());
    }
    Ok(PlanOptions::of(&model.architecture, &samples?.inputs, 0))
}

/// Quantizes, unless it is done; what a run cost stands beside its folder.
fn cost(run: &Planned) -> anyhow::Result<Value> {
    let kept = run
        .folder
        .with_file_name(format!("{}.run.json", run.folder.file_name().unwrap_or_default().to_string_lossy()));
    let finished = quantized(&run.options, false)?;
    let mut value = finished.json(&run.options);
    if value["was_finished"] == true {
        let old = fs::read(&kept).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        value["seconds"] = old.map_or(Value::Null, |old| old["seconds"].clone());
    } else if value["resumed_layers"].as_u64() > Some(0) {
        value["seconds"] = Value::Null;
    }
    write_atomic(&kept, format!("{value:#}\n").as_bytes())?;
    Ok(value)
}

fn measured(model: &ComparedModel) -> Measured {
    let d = model.divergence.as_ref();
    Measured {
        perplexity: model.perplexity.as_ref().map(|p| p.value),
        divergence: d.map(|d| d.mean),
        same_top1: d.map(|d| d.same_top1),
        accuracy: model.mean_accuracy(),
        tasks: model.tasks.iter().map(|(name, t)| (name.clone(), t.result.acc)).collect(),
    }
}

/// How it was done, in sentences.
fn notes(args: &AblateArgs) -> Vec<String> {
    let c = &args.calibration;
    let mut notes = Vec::new();
    if let Some(data) = &c.data {
        let seeds = if args.seeds > 1 { ", other windows for each seed" } else { "" };
        notes.push(format!("Calibrated on `{}`{seeds}.", data.display()));
    }
    notes.push(format!("Measured with {} products.", super::measure::products(&args.measure)));
    notes
}
