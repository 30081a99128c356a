//! Errors, formats and weights of the layers.

use super::{name, or_none};
use crate::document::{Block, Figure, Section, Table};
use crate::facts::{Facts, Layer, distinct};
use crate::numbers::{percent, thousands};
use crate::plots::{self, median};
use halfbyte_quantize::InputReport;

pub(super) fn errors(f: &Facts) -> Option<Section> {
    let worst = f.layers.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error))?;
    let text = format!(
        "Mean squared error of each layer's output over a sample of calibration tokens, relative to the output's mean square; \
         for the embedding that of its values. The mean over layers is {}; the largest is {} in `{}`.",
        percent(f.mean_relative_error),
        percent(worst.relative_error),
        name(&worst.name)
    );
    let mut figures = Vec::new();
    if let Some(svg) = plots::error_kinds(f) {
        let mut t =
            Table::new("Relative output error by kind", ["Kind", "Layers", "Smallest", "Median", "Largest"]);
        for kind in &f.kinds {
            let e = &kind.relative_errors;
            let fold = |start, g: fn(f64, f64) -> f64| e.iter().copied().fold(start, g);
            t.row([
                kind.kind.clone(),
                e.len().to_string(),
                percent(fold(f64::INFINITY, f64::min)),
                percent(median(e)),
                percent(fold(0.0, f64::max)),
            ]);
        }
        figures.push(Figure { caption: "Error by kind of layer: a dot is a layer.".into(), svg, table: t });
    }
    if let Some(svg) = plots::error_map(f) {
        let table = by_block(f, "Relative output error by block", |l| percent(l.relative_error));
        let caption =
            "Error by layer: rows are kinds, columns blocks. Shades are steps of equal ratio.".into();
        figures.push(Figure { caption, svg, table });
    }
    let blocks = vec![Block::Text(text), Block::Figures(figures), Block::Folded(all_layers(f))];
    Some(Section { id: "error", title: "Error by layer", blocks })
}

/// A row for each block, a column for each kind within blocks.
fn by_block(f: &Facts, caption: &str, cell: impl Fn(&Layer) -> String) -> Table {
    let within = || f.layers.iter().filter(|l| l.block.is_some());
    let kinds: Vec<&str> =
        f.kinds.iter().map(|k| k.kind.as_str()).filter(|k| within().any(|l| l.kind == *k)).collect();
    let blocks = within().filter_map(|l| l.block).max().map_or(0, |b| b + 1);
    let mut columns = vec!["Block".to_string()];
    columns.extend(kinds.iter().map(|k| k.to_string()));
    let row = |block: usize| {
        let of = |kind: &&str| within().find(|l| l.block == Some(block) && l.kind == **kind);
        std::iter::once(block.to_string()).chain(kinds.iter().map(|k| or_none(of(k).map(&cell)))).collect()
    };
    Table { caption: caption.into(), columns, rows: (0..blocks).map(row).collect() }
}

fn all_layers(f: &Facts) -> Table {
    let mut t = Table::new(
        "All layers",
        [
            "Layer",
            "Shape",
            "Error",
            "Weight",
            "Weight biases",
            "Input",
            "Input bias",
            "Bits",
            "Zeros",
            "Code entropy",
        ],
    );
    for l in &f.layers {
        t.row([
            l.name.clone(),
            format!("{} × {}", l.shape[0], l.shape[1]),
            percent(l.relative_error),
            or_none(l.weight_format.clone()),
            or_none(l.weight_biases.map(|[low, high]| format!("{low:.2} … {high:.2}"))),
            or_none(l.input_format.clone()),
            or_none(l.input_bias.map(|b| format!("{b:.2}"))),
            format!("{:.3}", l.bits_per_weight),
            or_none(l.zeros.map(percent)),
            or_none(l.entropy.map(|e| format!("{e:.2}"))),
        ]);
    }
    t
}

pub(super) fn formats(f: &Facts) -> Option<Section> {
    let mut blocks = vec![Block::Text(
        "E2M1 has two exponent bits and one mantissa bit besides the sign; more exponent bits reach further, more mantissa bits \
         are finer. Of formats of one width, taller bars have fewer mantissa bits."
            .into(),
    )];
    let mut figures = Vec::new();
    for (id, title, of) in [
        (
            "weight-formats",
            "Formats of weights",
            (|l: &Layer| l.weight_format.as_deref()) as fn(&Layer) -> Option<&str>,
        ),
        ("input-formats", "Formats of inputs", |l: &Layer| l.input_format.as_deref()),
    ] {
        let used = formats_of(f, of);
        if used.is_empty() {
            blocks.push(Block::Text(format!("{title}: none, they are left alone.")));
        } else if used.len() == 1 {
            blocks.push(Block::Text(format!("{title}: {} everywhere.", used[0])));
        } else if let Some(svg) = plots::format_map(f, id, title, &used, of) {
            let mut table = Table { caption: format!("{title} by kind"), ..Table::default() };
            table.columns = std::iter::once("Kind".to_string()).chain(used.iter().cloned()).collect();
            for kind in &f.kinds {
                let count = |format: &String| {
                    let same = f.layers.iter().filter(|l| l.kind == kind.kind && of(l) == Some(format));
                    same.count().to_string()
                };
                table.rows.push(std::iter::once(kind.kind.clone()).chain(used.iter().map(count)).collect());
            }
            figures.push(Figure {
                caption: format!("{title} by layer: rows are kinds, columns blocks."),
                svg,
                table,
            });
        }
    }
    if !figures.is_empty() {
        blocks.push(Block::Figures(figures));
    }
    if !f.attention.is_empty() {
        blocks.push(Block::Table(attention_table(f)));
    }
    Some(Section { id: "formats", title: "Chosen formats", blocks })
}

/// The operands of attention's own products, block by block.
fn attention_table(f: &Facts) -> Table {
    let mut t = Table::new(
        "Operands of attention's own products, q·kᵀ and probabilities·v: formats, exponent biases of static ones",
        ["Attention", "Query", "Key", "Value", "Probability", "Error of the mixed values"],
    );
    let operand = |input: &Option<InputReport>| or_none(input.as_ref().map(InputReport::brief));
    for a in &f.attention {
        let [query, key, value, probability] = [&a.query, &a.key, &a.value, &a.probability].map(operand);
        t.row([a.name.clone(), query, key, value, probability, or_none(a.relative_error.map(percent))]);
    }
    t
}

/// The formats in use, those with more mantissa bits first.
fn formats_of(f: &Facts, of: impl Fn(&Layer) -> Option<&str>) -> Vec<String> {
    let mut used = distinct(f.layers.iter().filter_map(of));
    used.sort_unstable();
    used.into_iter().map(String::from).collect()
}

pub(super) fn weights(f: &Facts) -> Option<Section> {
    let mut figures = Vec::new();
    for (i, kind) in f.kinds.iter().enumerate() {
        let Some(shape) = &kind.weights else { continue };
        let of = kind.relative_errors.len();
        let layers = match (shape.layers, of) {
            (1, 1) => "one layer".to_string(),
            (some, all) if some == all => format!("all {all} layers"),
            (some, all) => format!("the {some} of {all} layers that have this format"),
        };
        let total = shape.codes.iter().map(|c| c.1).sum::<u64>().max(1) as f64;
        let mut t =
            Table::new(format!("Codes of {} as {}", kind.kind, shape.format), ["Value", "Weights", "Share"]);
        for (value, n) in &shape.codes {
            t.row([value.to_string(), thousands(*n), percent(*n as f64 / total)]);
        }
        let title = format!("{} as {}", kind.kind, shape.format);
        let svg = plots::weight_shape(kind, shape, &format!("weights-{i}"), &title);
        figures.push(Figure { caption: format!("{}, {layers}.", name(&title)), svg, table: t });
    }
    if figures.is_empty() {
        return None;
    }
    let text = "Above in each figure, the full-precision weights divided by the largest value that their scale represents (1), with a \
                line for every code; weights beyond ±1 are clipped. Below, how often each code was stored. The two differ by more than \
                rounding where the recipe corrects weights for the error of their inputs or feeds rounding errors back.";
    Some(Section {
        id: "weights",
        title: "Weights against their grid",
        blocks: vec![Block::Text(text.into()), Block::Figures(figures)],
    })
}
