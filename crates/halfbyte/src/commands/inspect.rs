//! `halfbyte inspect`: what a folder holds.

use super::report::read_report;
use crate::cli::InspectArgs;
use crate::output::{self, Table, bytes, thousands};
use anyhow::Context;
use halfbyte_model::{Model, StemSpec};
use halfbyte_quantize::LayerReport;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let model =
        Model::open(&args.dir).with_context(|| format!("cannot use the model {}", args.dir.display()))?;
    match model.manifest {
        Some(_) => quantized(args),
        None => original(args, &model),
    }
}

fn quantized(args: &InspectArgs) -> anyhow::Result<()> {
    let report = read_report(&args.dir)?;
    let layers: Vec<Summary> = report.layers.iter().map(Summary::new).collect();
    if args.output.json {
        return output::print_json(&json!({
            "model": args.dir,
            "quantized": true,
            "recipe": report.recipe.name,
            "calibration_windows": report.calibration_windows,
            "calibration_tokens": report.calibration_tokens,
            "output_bytes": report.output_bytes,
            "bits_per_weight": report.bits_per_weight,
            "mean_relative_error": report.mean_relative_error,
            "layers": layers.iter().map(Summary::json).collect::<Vec<_>>(),
        }));
    }
    let mut table =
        Table::new(["layer", "weight", "bias", "input", "rho", "channels by shift", "error", "bits"]);
    for layer in &layers {
        table.row(layer.cells());
    }
    let mut text = format!("{table}\n");
    writeln!(
        text,
        "recipe         {}, calibrated on {} windows, {} tokens",
        report.recipe.name, report.calibration_windows, report.calibration_tokens
    )?;
    writeln!(
        text,
        "size           {}, {:.3} bits per quantized weight",
        bytes(report.output_bytes),
        report.bits_per_weight
    )?;
    writeln!(
        text,
        "output error   {:.3} % of the signal, mean over layers",
        100.0 * report.mean_relative_error
    )?;
    output::print(&text)
}

/// A layer's report, with its long lists summed up.
struct Summary<'a> {
    layer: &'a LayerReport,
    /// Format of the weight, smallest and largest bias.
    weight: Option<(String, f32, f32)>,
    /// Format of the input, rho, and how many channels have shift 0, 1, 2 …
    input: Option<(String, f32, Vec<usize>)>,
    bits_per_weight: f64,
}

impl<'a> Summary<'a> {
    fn new(layer: &'a LayerReport) -> Self {
        let weight = layer.weight.as_ref().map(|w| {
            let low = w.biases.iter().copied().fold(f32::INFINITY, f32::min);
            let high = w.biases.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            (w.scheme.element.to_string().to_uppercase(), low, high)
        });
        let input = layer.input.as_ref().map(|i| {
            let most = i.shifts.iter().copied().max().map_or(0, |m| usize::from(m) + 1);
            let counts = (0..most).map(|s| i.shifts.iter().filter(|&&v| usize::from(v) == s).count());
            (i.scheme.element.to_string().to_uppercase(), i.bias, counts.collect())
        });
        let weights = (layer.shape[0] * layer.shape[1]).max(1);
        Self { layer, weight, input, bits_per_weight: layer.bits as f64 / weights as f64 }
    }

    fn cells(&self) -> [String; 8] {
        let none = || "-".to_string();
        let (format, bias) = match &self.weight {
            Some((format, low, high)) => (format.clone(), format!("{low:.2} .. {high:.2}")),
            None => (none(), none()),
        };
        let (input, rho, shifts) = match &self.input {
            Some((format, rho, shifts)) => {
                let counts = shifts.iter().map(usize::to_string).collect::<Vec<_>>().join("/");
                (format.clone(), format!("{rho:.2}"), if shifts.is_empty() { none() } else { counts })
            }
            None => (none(), none(), none()),
        };
        let error = format!("{:.3} %", 100.0 * self.layer.relative_error);
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
            "weight": self.weight.as_ref().map(|(format, low, high)| json!({ "format": format, "bias_min": low, "bias_max": high })),
            "input": self.input.as_ref().map(|(format, rho, shifts)| json!({ "format": format, "rho": rho, "shifts": shifts })),
            "relative_error": self.layer.relative_error,
            "bits_per_weight": self.bits_per_weight,
        })
    }
}

fn original(args: &InspectArgs, model: &Model) -> anyhow::Result<()> {
    let a = &model.architecture;
    // Tensors, numbers and bytes by type.
    let mut dtypes: BTreeMap<String, (usize, u64, u64)> = BTreeMap::new();
    for tensor in model.checkpoint.files().iter().flat_map(|f| f.tensors()) {
        let entry = dtypes.entry(tensor.dtype.to_string()).or_default();
        entry.0 += 1;
        entry.1 += tensor.shape.iter().product::<usize>() as u64;
        entry.2 += tensor.bytes;
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
            "quantized": false,
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
    writeln!(text, "{} is an original checkpoint, not quantized\n", args.dir.display())?;
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
    writeln!(text, "\nNext: halfbyte plan {} --recipe fpq-w4a4", args.dir.display())?;
    output::print(&text)
}
