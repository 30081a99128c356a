//! `halfbyte inspect`: what a folder holds.

use super::measure;
use super::report::find_report;
use crate::cli::InspectArgs;
use crate::output::{self, Table, bytes, thousands};
use anyhow::Context;
use halfbyte_checkpoint::Manifest;
use halfbyte_formats::Element;
use halfbyte_model::{Model, StemSpec};
use halfbyte_quantize::{AttentionReport, InputReport, LayerReport, WeightReport};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let model =
        Model::open(&args.dir).with_context(|| format!("cannot use the model {}", args.dir.display()))?;
    match &model.manifest {
        Some(manifest) => quantized(args, &model, manifest),
        None => original(args, &model),
    }
}

fn quantized(args: &InspectArgs, model: &Model, manifest: &Manifest) -> anyhow::Result<()> {
    // Without a report the layers themselves tell all but their errors.
    let report = find_report(&args.dir)?;
    let layers = match &report {
        Some(report) => report.layers.clone(),
        None => stored_layers(model, manifest)?,
    };
    let name = match &report {
        Some(report) => report.recipe.name.clone(),
        None => measure::recipe(model).unwrap_or_default(),
    };
    let size = match &report {
        Some(report) => report.output_bytes,
        None => model.checkpoint.infos().map(|t| t.bytes).sum(),
    };
    let attention = match &report {
        Some(report) => report.attention.clone(),
        None => stored_attention(model)?,
    };
    let weights: usize = layers.iter().map(|l| l.shape[0] * l.shape[1]).sum();
    let bits = layers.iter().map(|l| l.bits).sum::<u64>() as f64 / weights.max(1) as f64;
    let layers: Vec<Summary> = layers.iter().map(Summary::new).collect();
    if args.output.json {
        return output::print_json(&json!({
            "model": args.dir,
            "quantized": true,
            "recipe": name,
            "report": report.is_some(),
            "calibration_windows": report.as_ref().map(|r| r.calibration_windows),
            "calibration_tokens": report.as_ref().map(|r| r.calibration_tokens),
            "output_bytes": size,
            "bits_per_weight": bits,
            "mean_relative_error": report.as_ref().map(|r| r.mean_relative_error),
            "layers": layers.iter().map(Summary::json).collect::<Vec<_>>(),
            "attention": attention,
        }));
    }
    let mut table =
        Table::new(["layer", "weight", "bias", "input", "rho", "channels by shift", "error", "bits"]);
    for layer in &layers {
        table.row(layer.cells());
    }
    let mut text = format!("{table}\n");
    if !attention.is_empty() {
        text += &format!("{}\n", attention_table(&attention));
    }
    match &report {
        Some(r) => writeln!(
            text,
            "recipe         {name}, calibrated on {} windows, {} tokens",
            r.calibration_windows, r.calibration_tokens
        )?,
        None => writeln!(text, "stored as      {name}; there is no report.json, so errors are not known")?,
    }
    writeln!(text, "size           {}, {bits:.3} bits per quantized weight", bytes(size))?;
    if let Some(r) = &report {
        writeln!(
            text,
            "output error   {:.3} % of the signal, mean over layers",
            100.0 * r.mean_relative_error
        )?;
    }
    output::print(&text)
}

/// What the quantized layers themselves tell, in the order of the network.
fn stored_layers(model: &Model, manifest: &Manifest) -> anyhow::Result<Vec<LayerReport>> {
    let a = &model.architecture;
    let mut layers = Vec::new();
    for site in [a.embedding()].into_iter().chain(a.sites()) {
        let (name, rows, cols) = (&site.name, site.outputs, site.inputs);
        let (Some(scheme), Some(stored)) = (manifest.layers.get(name), model.stored_layer(site)?) else {
            continue;
        };
        let tensors = manifest.layout.tensors(scheme, name, rows, cols).unwrap_or_default();
        let stored_bytes = tensors.iter().filter_map(|t| model.checkpoint.info(&t.name)).map(|t| t.bytes);
        let mut bits = 8 * stored_bytes.sum::<u64>();
        if scheme.weight.is_none() {
            bits += 16 * (rows * cols) as u64;
        }
        layers.push(LayerReport::of_stored(name, [rows, cols], bits, &stored));
    }
    Ok(layers)
}

/// What the quantized attentions themselves tell.
fn stored_attention(model: &Model) -> anyhow::Result<Vec<AttentionReport>> {
    let mut found = Vec::new();
    for block in &model.architecture.blocks {
        if let Some(stored) = model.stored_attention(block)? {
            found.push(AttentionReport::of_stored(block.attention_name(), &stored));
        }
    }
    Ok(found)
}

/// A line for every attention whose products are quantized: formats, and exponent biases of static ones.
fn attention_table(attention: &[AttentionReport]) -> Table {
    let mut table = Table::new(["attention", "query", "key", "value", "probability", "error"]);
    let operand = |input: &Option<InputReport>| input.as_ref().map_or("-".into(), InputReport::brief);
    for a in attention {
        let error = a.relative_error.map_or("-".to_string(), |e| format!("{:.3} %", 100.0 * e));
        let [query, key, value, probability] = [&a.query, &a.key, &a.value, &a.probability].map(operand);
        table.row([a.name.clone(), query, key, value, probability, error]);
    }
    table
}

/// A layer's report, with its long lists summed up.
struct Summary<'a> {
    layer: &'a LayerReport,
    /// Smallest and largest bias of the weight.
    weight: Option<(&'a WeightReport, f32, f32)>,
    /// How many channels of the input have shift 0, 1, 2 …
    input: Option<(&'a InputReport, Vec<usize>)>,
    bits_per_weight: f64,
}

impl<'a> Summary<'a> {
    fn new(layer: &'a LayerReport) -> Self {
        let weight = layer.weight.as_ref().map(|w| {
            let low = w.biases.iter().copied().fold(f32::INFINITY, f32::min);
            let high = w.biases.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            (w, low, high)
        });
        let input = layer.input.as_ref().map(|i| {
            let most = i.shifts.iter().copied().max().map_or(0, |m| usize::from(m) + 1);
            let counts = (0..most).map(|s| i.shifts.iter().filter(|&&v| usize::from(v) == s).count());
            (i, counts.collect())
        });
        let weights = (layer.shape[0] * layer.shape[1]).max(1);
        Self { layer, weight, input, bits_per_weight: layer.bits as f64 / weights as f64 }
    }

    fn cells(&self) -> [String; 8] {
        let none = || "-".to_string();
        let (format, bias) = match &self.weight {
            Some((weight, low, high)) => (weight.format(), format!("{low:.2} .. {high:.2}")),
            None => (none(), none()),
        };
        let (input, rho, shifts) = match &self.input {
            Some((input, shifts)) => {
                let counts = shifts.iter().map(usize::to_string).collect::<Vec<_>>().join("/");
                let rho = input.static_bias().map_or_else(none, |rho| format!("{rho:.2}"));
                (input.format(), rho, if shifts.is_empty() { none() } else { counts })
            }
            None => (none(), none(), none()),
        };
        let error = match self.layer.relative_error {
            unknown if unknown.is_nan() => none(),
            known => format!("{:.3} %", 100.0 * known),
        };
        [
            self.layer.name.clone(),
            format,
            bias,
            input,
            rho,
            shifts,
            error,
            format!("{:.3}", self.bits_per_weight),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "name": self.layer.name,
            "shape": self.layer.shape,
            "weight": self.weight.as_ref().map(|(weight, low, high)| json!({
                "format": upper(weight.scheme.element),
                "scheme": weight.scheme,
                "bias_min": low,
                "bias_max": high,
            })),
            "input": self.input.as_ref().map(|(input, shifts)| json!({
                "format": upper(input.scheme.element),
                "scheme": input.scheme,
                "rho": input.static_bias(),
                "shifts": shifts,
            })),
            "low_rank": self.layer.low_rank,
            "relative_error": self.layer.relative_error,
            "bits_per_weight": self.bits_per_weight,
        })
    }
}

fn upper(element: Element) -> String {
    element.to_string().to_uppercase()
}

fn original(args: &InspectArgs, model: &Model) -> anyhow::Result<()> {
    let a = &model.architecture;
    // Tensors, numbers and bytes by type.
    let mut dtypes: BTreeMap<String, (usize, u64, u64)> = BTreeMap::new();
    for tensor in model.checkpoint.infos() {
        let (kind, size) = model.checkpoint.stored_as(&tensor.name).unwrap_or_default();
        let entry = dtypes.entry(kind).or_default();
        entry.0 += 1;
        entry.1 += tensor.shape.iter().product::<usize>() as u64;
        entry.2 += size;
    }
    let parameters: u64 = dtypes.values().map(|d| d.1).sum();
    let linears = a.sites().count();
    if args.output.json {
        let by_type: serde_json::Map<String, Value> = dtypes
            .iter()
            .map(|(name, d)| (name.clone(), json!({ "tensors": d.0, "parameters": d.1, "bytes": d.2 })))
            .collect();
        return output::print_json(&json!({
            "model": args.dir,
            "quantized": model.values_of.is_some(),
            "stored_as": model.values_of,
            "family": a.family,
            "task": a.head.task.name(),
            "parameters": parameters,
            "layers": a.blocks.len(),
            "linear_layers": linears,
            "hidden": a.hidden,
            "vocabulary": a.vocabulary(),
            "context": a.context,
            "tied_embeddings": a.head.tied,
            "dtypes": by_type,
        }));
    }
    let mut text = String::new();
    match &model.values_of {
        None => writeln!(text, "{} is an original checkpoint, not quantized\n", args.dir.display())?,
        Some(form) => writeln!(text, "{} is a quantized model: {form}\n", args.dir.display())?,
    }
    writeln!(text, "family         {}, {}", a.family, a.head.task.name())?;
    writeln!(text, "parameters     {}", thousands(parameters))?;
    writeln!(text, "layers         {} blocks, {linears} linear layers", a.blocks.len())?;
    writeln!(text, "hidden         {}", a.hidden)?;
    match &a.stem {
        StemSpec::Text(_) => {
            let tied = if a.head.tied { ", tied with the output layer" } else { "" };
            writeln!(text, "vocabulary     {}{tied}", a.vocabulary())?;
            writeln!(text, "context        {} tokens", a.context)?;
        }
        StemSpec::Image(image) => {
            let ([height, width], [down, across]) = (image.size, image.patch);
            writeln!(text, "images         {height} x {width} pixels, patches of {down} x {across}")?;
            writeln!(text, "rows           {} an image", a.context)?;
        }
    }
    if let Some(output) = a.head.output().filter(|_| a.head.task.is_classification()) {
        writeln!(text, "classes        {}", output.outputs)?;
    }
    for (name, (tensors, _, size)) in &dtypes {
        writeln!(text, "stored         {tensors} tensors of {name}, {}", bytes(*size))?;
    }
    if model.values_of.is_none() {
        writeln!(text, "\nNext: halfbyte plan {} --recipe fpq-w4a4", args.dir.display())?;
    }
    output::print(&text)
}
