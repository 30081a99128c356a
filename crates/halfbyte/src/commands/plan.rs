//! `halfbyte plan`: what a run would do, from headers alone.

use super::calibration;
use crate::cli::{CalibrationArgs, PlanArgs};
use crate::fail::Failure;
use crate::output::{self, Table, bytes, thousands};
use crate::{recipes, system};
use anyhow::Context;
use halfbyte_checkpoint::LayerScheme;
use halfbyte_export::Target;
use halfbyte_formats::{Element, Granularity, Scheme};
use halfbyte_model::Model;
use halfbyte_quantize::{Plan, PlanOptions, PlannedSite, Recipe, Speed};
use serde_json::{Map, Value, json};
use std::fmt::Write;

pub(crate) fn run(args: &PlanArgs, every_layer: bool) -> anyhow::Result<()> {
    system::use_threads(args.machine.threads)?;
    let model = open_original(&args.model, Some(args.requantize))?;
    let recipe = recipes::chosen(&args.recipe, &model.architecture, args.calibration.data.is_some())?;
    let (amount, words) = calibration::amount(&model, &recipe, &args.calibration)?;
    let (plan, _) = planned(&model, &recipe, &args.calibration, amount)?;
    for target in &args.to {
        if !recipe.alternatives.is_empty() && !target.is_mixed() {
            return Err(Failure::new(format!(
                "{target} holds one scheme, and the recipe's alternatives let every layer choose"
            ))
            .hint("vllm-mixed and gguf-mixed hold several; or leave out alternatives")
            .into());
        }
        for choice in recipe.choices() {
            check(&model, &recipe, &plan, choice, *target)?;
        }
    }
    let seconds = plan.work.seconds(Speed::measure());
    if args.output.json {
        return output::print_json(&json(&plan, &recipe.name, seconds, every_layer));
    }
    let mut text = format!("{} with recipe {}\n\n", args.model.display(), recipe.name);
    text += &if every_layer { layers(&plan) } else { kinds(&plan) };
    writeln!(text)?;
    text += &headline(&plan)?;
    text += &source_lines(&model);
    writeln!(
        text,
        "time           about {} here, with {} threads",
        output::duration(seconds),
        rayon::current_num_threads()
    )?;
    writeln!(text, "calibration    {words}")?;
    writeln!(text, "\nMemory when it is largest, at {}:", plan.memory.moment)?;
    for (name, size) in &plan.memory.terms {
        writeln!(text, "  {name:<18} {:>10}", bytes(*size))?;
    }
    output::print(&text)
}

/// What a target cannot hold, if layers that choose get `choice`, is refused.
fn check(
    model: &Model,
    recipe: &Recipe,
    plan: &Plan,
    choice: LayerScheme,
    target: Target,
) -> anyhow::Result<()> {
    if let Some(transform) = recipe.migrates(&model.architecture) {
        let message = format!("{target} has no place for what {transform} keeps beside layers");
        return Err(Failure::new(message).hint("leave migrate=true out of the recipe's transforms").into());
    }
    // Searched formats and widths are no target's; any scheme that none has stands for them.
    let searched = LayerScheme {
        weight: Some(Scheme::new(Element::E2M1, Granularity::Channel)),
        input: None,
        low_rank: None,
    };
    let scheme = |site: &PlannedSite| match recipe.layer_scheme(&site.name) {
        Some(_) if !recipe.alternatives.is_empty() => choice,
        Some(own) => own,
        None => recipe.minmax_scheme(site.weight_bits, site.activation_bits).unwrap_or(searched),
    };
    let scheme = |name: &str| plan.embedding.iter().chain(&plan.sites).find(|s| s.name == name).map(scheme);
    halfbyte_export::check(model, &scheme, plan.attentions > 0, target)?;
    Ok(())
}

/// Opens a model that is to be quantized. One that is quantized already is taken only where the user asks for it, with a
/// command that has the option.
pub(crate) fn open_original(dir: &std::path::Path, requantize: Option<bool>) -> anyhow::Result<Model> {
    let model = Model::open(dir).with_context(|| format!("cannot use the model {}", dir.display()))?;
    match (&model.manifest, &model.values_of) {
        (None, None) => Ok(model),
        _ if requantize == Some(true) => Ok(model.dequantized()?),
        _ => Err(Failure::new(format!("{} is already quantized", dir.display()))
            .hint(match requantize {
                None => "give the full-precision checkpoint it was made from",
                _ => "give the full-precision checkpoint it was made from; or --requantize, which starts from its rounded weights",
            })
            .into()),
    }
}

/// Lines that say so if the model is itself a quantized one, or its files have more than the network.
pub(crate) fn source_lines(model: &Model) -> String {
    let mut lines = String::new();
    if let Some(form) = &model.values_of {
        lines += &format!("source         the rounded weights of {form}; errors are measured against them\n");
    }
    if let Some(tensor) = model.checkpoint.names().find(|name| model.architecture.is_beyond(name)) {
        let blocks = model.architecture.blocks.len();
        lines += &format!(
            "note           config.json counts {blocks} blocks; {tensor} and others like it are no part of the network and stay as they are\n"
        );
    }
    lines
}

/// The plan of a run on this amount of inputs and how it keeps its activations: in memory where --memory-limit or the
/// default allows it, else in files.
pub(crate) fn planned(
    model: &Model,
    recipe: &Recipe,
    args: &CalibrationArgs,
    amount: PlanOptions,
) -> anyhow::Result<(Plan, PlanOptions)> {
    let with = |activation_memory| {
        let options = PlanOptions { activation_memory, ..amount };
        Ok::<_, anyhow::Error>((halfbyte_quantize::plan(model, recipe, options)?, options))
    };
    let Some(limit) = args.memory_limit else {
        return with(args.activation_memory.unwrap_or(calibration::ACTIVATION_MEMORY));
    };
    let mut least = u64::MAX;
    let choices = match args.activation_memory {
        Some(chosen) => vec![chosen],
        None => vec![u64::MAX, 0],
    };
    for activation_memory in choices {
        let (plan, options) = with(activation_memory)?;
        least = plan.memory.peak_bytes();
        if least <= limit {
            return Ok((plan, options));
        }
    }
    Err(Failure::new(format!(
        "the run would need about {}, more than --memory-limit {}",
        bytes(least),
        bytes(limit)
    ))
    .hint("allow more, or keep the largest layers with --keep, or take a recipe with fewer sample_tokens")
    .into())
}

/// The lines that matter most; `quantize` prints them too.
pub(crate) fn headline(plan: &Plan) -> anyhow::Result<String> {
    let mut text = String::new();
    let table = if plan.embedding.is_some() { " and the embedding table" } else { "" };
    writeln!(
        text,
        "to quantize    {} linear layers{table}, {:.3} bits per weight",
        plan.sites.len(),
        plan.bits_per_weight
    )?;
    if plan.attentions > 0 {
        writeln!(text, "attention      the products of {} blocks", plan.attentions)?;
    }
    writeln!(
        text,
        "output         {} ({} bytes of tensors)",
        bytes(plan.output_bytes),
        thousands(plan.output_bytes)
    )?;
    writeln!(text, "peak memory    {} (predicted)", bytes(plan.memory.peak_bytes()))?;
    Ok(text)
}

/// One line for layers of equal kind, shape, bits and bytes.
fn kinds(plan: &Plan) -> String {
    let mut groups: Vec<(&PlannedSite, usize, u64)> = Vec::new();
    for site in plan.embedding.iter().chain(&plan.sites) {
        let what = |s: &PlannedSite| (s.shape, s.weight_bits, s.activation_bits, s.bytes);
        let same = |g: &&mut (&PlannedSite, usize, u64)| g.0.kind == site.kind && what(g.0) == what(site);
        match groups.iter_mut().find(same) {
            Some(group) => {
                group.1 += 1;
                group.2 += site.bytes;
            }
            None => groups.push((site, 1, site.bytes)),
        }
    }
    let mut table = Table::new([
        "layer",
        "count",
        "shape",
        "weights",
        "weight bits",
        "input bits",
        "bits per weight",
        "stored",
    ]);
    for (site, count, stored) in groups {
        table.row([
            site.kind.clone(),
            count.to_string(),
            shape(site),
            thousands(site.elements() * count as u64),
            bits(site.weight_bits),
            bits(site.activation_bits),
            per_weight(site),
            bytes(stored),
        ]);
    }
    table.to_string()
}

fn layers(plan: &Plan) -> String {
    let mut table =
        Table::new(["layer", "shape", "weights", "weight bits", "input bits", "bits per weight", "stored"]);
    for site in plan.embedding.iter().chain(&plan.sites) {
        table.row([
            site.name.clone(),
            shape(site),
            thousands(site.elements()),
            bits(site.weight_bits),
            bits(site.activation_bits),
            per_weight(site),
            bytes(site.bytes),
        ]);
    }
    table.to_string()
}

fn shape(site: &PlannedSite) -> String {
    format!("{} x {}", site.shape[0], site.shape[1])
}

/// 16 means that nothing is done.
fn bits(n: u32) -> String {
    if n == 16 { "-".into() } else { n.to_string() }
}

fn per_weight(site: &PlannedSite) -> String {
    format!("{:.3}", site.bits() as f64 / site.elements().max(1) as f64)
}

fn json(plan: &Plan, recipe: &str, seconds: f64, every_layer: bool) -> Value {
    let site = |s: &PlannedSite| {
        json!({
            "name": s.name, "shape": s.shape, "weight_bits": s.weight_bits, "activation_bits": s.activation_bits,
            "bytes": s.bytes,
        })
    };
    let mut memory = Map::new();
    memory.insert("moment".into(), plan.memory.moment.clone().into());
    memory.extend(plan.memory.terms.iter().map(|(name, size)| (name.replace(' ', "_"), (*size).into())));
    let mut value = json!({
        "recipe": recipe,
        "sites": plan.sites.len(),
        "embedding": plan.embedding.as_ref().map(site),
        "attentions": plan.attentions,
        "output_bytes": plan.output_bytes,
        "working_bytes": plan.working_bytes,
        "peak_memory_bytes": plan.memory.peak_bytes(),
        "bits_per_weight": plan.bits_per_weight,
        "seconds_estimate": seconds,
        "memory": memory,
    });
    if every_layer && let Some(object) = value.as_object_mut() {
        object.insert("site_list".into(), plan.sites.iter().map(site).collect());
    }
    value
}
