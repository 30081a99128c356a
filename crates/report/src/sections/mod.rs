//! The facts told as a document.

mod accuracy;
mod layers;
mod ranges;

use crate::document::{Block, Document, Figure, NONE, Section, Table, Tile};
use crate::evaluation::Evaluation;
use crate::facts::Facts;
use crate::numbers::{bytes, duration, percent, significant, thousands};
use crate::plots;
use accuracy::{accuracy, mean_accuracy};
use halfbyte_quantize::recipe_toml;
use layers::{errors, formats, weights};
use ranges::ranges;

/// The report of `facts`.
pub fn document(facts: &Facts) -> Document {
    let sections = [
        summary(facts),
        accuracy(facts),
        errors(facts),
        formats(facts),
        ranges(facts),
        weights(facts),
        size_and_speed(facts),
        recipe(facts),
    ];
    Document {
        title: format!("{}, quantized with {}", facts.title, facts.recipe.name),
        lead: "What quantization chose for every layer, and what it cost. Every figure has its data as a table below it.".into(),
        headline: headline(facts),
        sections: sections.into_iter().flatten().collect(),
        footer: format!(
            "Written by halfbyte {}. The method is LLM-FP4 (Liu et al., EMNLP 2023, arXiv 2310.16836) unless the recipe says otherwise.",
            facts.halfbyte
        ),
    }
}

fn or_none(text: Option<String>) -> String {
    text.unwrap_or_else(|| NONE.into())
}

fn headline(f: &Facts) -> Vec<Tile> {
    let tile = |label, value: String| Tile { label, value, remark: String::new() };
    let mut tiles = vec![
        tile("Size", bytes(f.output_bytes)),
        tile("Bits per weight", format!("{:.3}", f.bits_per_weight)),
        tile("Mean output error", percent(f.mean_relative_error)),
    ];
    if let Some(model) = &f.model {
        tiles[0].remark = format!("was {}", bytes(model.bytes));
    }
    if let Some(own) = f.evaluations.iter().find(|e| e.this_folder) {
        // The model before, if it was measured the same way.
        let full = |e: &&Evaluation| e.recipe.is_none() && !e.this_folder;
        let original = f.evaluations.iter().find(full);
        let was = |value: Option<String>| value.map_or(String::new(), |v| format!("was {v}"));
        if let Some(p) = &own.perplexity {
            let before = original.and_then(|e| e.perplexity.as_ref()).filter(|o| o.tokens == p.tokens);
            tiles.push(Tile {
                remark: was(before.map(|o| significant(o.value, 4))),
                ..tile("Perplexity", significant(p.value, 4))
            });
        }
        if let Some(mean) = own.kld.as_ref().and_then(|k| k.mean) {
            tiles.push(tile("KL divergence", significant(mean, 3)));
        }
        if let Some(mean) = mean_accuracy(own) {
            let names = |e: &Evaluation| e.tasks.iter().map(|t| t.0.clone()).collect::<Vec<_>>();
            let before = original.filter(|o| names(o) == names(own)).and_then(mean_accuracy);
            tiles.push(Tile { remark: was(before.map(percent)), ..tile("Mean accuracy", percent(mean)) });
        }
    }
    if let Some(run) = f.run.as_ref().filter(|r| !r.partial) {
        tiles.push(tile("Time", duration(run.seconds)));
        if let Some(peak) = run.peak_rss_bytes {
            tiles.push(tile("Peak memory", bytes(peak)));
        }
    }
    tiles
}

/// A name within a sentence, where backticks would begin code.
fn name(text: &str) -> String {
    text.replace('`', "'")
}

fn summary(f: &Facts) -> Option<Section> {
    let r = &f.recipe;
    let mut t = Table::new("The quantized model", ["What", "Value"]);
    let mut row = |what: &str, value: String| t.row([what.into(), value]);
    if let Some(m) = &f.model {
        row(
            "Model",
            format!(
                "{}, {} blocks, hidden size {}, vocabulary {}",
                m.family,
                m.blocks,
                m.hidden,
                thousands(m.vocabulary as u64)
            ),
        );
        row("Parameters", thousands(m.parameters));
    }
    let width = |bits: u32| if bits == 16 { "unquantized".to_string() } else { format!("{bits} bits") };
    row("Recipe", r.name.clone());
    row(
        "Widths",
        format!(
            "weights {}, inputs {}, embedding {}",
            width(r.weight_bits),
            width(r.activation_bits),
            width(r.embedding_bits)
        ),
    );
    match &r.kv_scheme {
        Some(scheme) => row("KV cache", scheme.to_string()),
        None if r.attention_bits < 16 => row("Attention's own products", width(r.attention_bits)),
        None => {}
    }
    row("Left in full precision", if r.keep.is_empty() { "nothing".into() } else { r.keep.join(", ") });
    row(
        "Calibration",
        format!(
            "{} windows, {} tokens",
            thousands(f.calibration_windows as u64),
            thousands(f.calibration_tokens as u64)
        ),
    );
    row("Quantized layers", f.layers.len().to_string());
    row("Size", format!("{} bytes ({})", thousands(f.output_bytes), bytes(f.output_bytes)));
    if let Some(m) = &f.model {
        let share = f.output_bytes as f64 / m.bytes.max(1) as f64;
        row(
            "Size before",
            format!("{} bytes ({}); now {}", thousands(m.bytes), bytes(m.bytes), percent(share)),
        );
    }
    row("Stored bits per quantized weight", format!("{:.3}", f.bits_per_weight));
    row("Mean relative output error", percent(f.mean_relative_error));
    let mut blocks = vec![Block::Table(t)];
    if !f.evaluations.is_empty() {
        blocks.push(Block::Table(evaluated(f)));
    }
    Some(Section { id: "summary", title: "Summary", blocks })
}

/// A row for every measured model, with the columns that any of them has.
fn evaluated(f: &Facts) -> Table {
    type Column<'a> = (&'static str, Box<dyn Fn(&Evaluation) -> Option<String> + 'a>);
    let columns: Vec<Column> = vec![
        ("Recipe", Box::new(|e| Some(e.recipe.clone().unwrap_or_else(|| "not quantized".into())))),
        ("Size", Box::new(|e| e.bytes.map(bytes))),
        ("Bits per weight", Box::new(|e| e.bits_per_weight.map(|b| format!("{b:.3}")))),
        ("Perplexity", Box::new(|e| e.perplexity.as_ref().map(|p| significant(p.value, 5)))),
        ("KLD, mean", Box::new(|e| e.kld.as_ref()?.mean.map(|v| significant(v, 3)))),
        ("Same top token", Box::new(|e| e.kld.as_ref()?.top1_agreement.map(percent))),
        ("Mean accuracy", Box::new(|e| mean_accuracy(e).map(percent))),
    ];
    let used: Vec<Column> =
        columns.into_iter().filter(|(_, cell)| f.evaluations.iter().any(|e| cell(e).is_some())).collect();
    let mut columns = vec!["Model".to_string()];
    columns.extend(used.iter().map(|(title, _)| title.to_string()));
    let row = |e: &Evaluation| {
        std::iter::once(e.model.clone()).chain(used.iter().map(|(_, cell)| or_none(cell(e)))).collect()
    };
    Table { caption: "Measured models".into(), columns, rows: f.evaluations.iter().map(row).collect() }
}

fn size_and_speed(f: &Facts) -> Option<Section> {
    let before = f.model.as_ref().map(|m| m.bytes);
    let mut t = Table::new("Bytes of all tensors", ["Part", "Bytes", "Share"]);
    let share = |n: u64| percent(n as f64 / f.output_bytes.max(1) as f64);
    let low_rank = (f.size.low_rank > 0).then_some(("parts of low rank", f.size.low_rank));
    let parts = [("codes of weights", f.size.codes), ("scales and shifts", f.size.scales)].into_iter();
    for (part, n) in parts.chain(low_rank).chain([("kept as it was", f.size.kept)]) {
        t.row([part.into(), thousands(n), share(n)]);
    }
    t.row(["all".into(), thousands(f.output_bytes), share(f.output_bytes)]);
    if let Some(before) = before {
        t.row(["before".into(), thousands(before), share(before)]);
    }
    let caption = "Size of the tensors by what they are for.".into();
    let figure = Figure { caption, svg: plots::size(before, f.size, f.output_bytes), table: t };
    let mut blocks = vec![Block::Figures(vec![figure])];
    let timed: Vec<&Evaluation> = f.evaluations.iter().filter(|e| e.seconds.is_some()).collect();
    if f.run.is_some() || !timed.is_empty() {
        let mut t = Table::new("Time and memory", ["What", "Value"]);
        if let Some(run) = &f.run {
            let part = if run.partial { " (of the last part of an interrupted run)" } else { "" };
            t.row(["Quantizing".into(), format!("{}{part}", duration(run.seconds))]);
            if let Some(peak) = run.peak_rss_bytes {
                t.row(["Peak memory of quantizing".into(), bytes(peak)]);
            }
            if let Some(peak) = run.peak_memory_predicted_bytes {
                t.row(["Peak memory as predicted".into(), bytes(peak)]);
            }
        }
        for e in timed {
            let seconds = e.seconds.unwrap_or_default();
            let tokens =
                e.perplexity.as_ref().and_then(|p| p.tokens).filter(|_| e.tasks.is_empty() && seconds > 0.0);
            let speed = tokens.map_or(String::new(), |n| {
                format!(", {} tokens a second", significant(n as f64 / seconds, 3))
            });
            t.row([format!("Measuring {}", e.model), format!("{}{speed}", duration(seconds))]);
        }
        blocks.push(Block::Table(t));
    }
    if f.run.is_none() {
        blocks.push(Block::Text(
            "Time and memory of the run are not kept in the folder, so that equal runs give equal bytes. `halfbyte quantize … --json > \
             run.json` keeps them, and `halfbyte report DIR --run run.json` puts them here."
                .into(),
        ));
    }
    Some(Section { id: "size", title: "Size and speed", blocks })
}

fn recipe(f: &Facts) -> Option<Section> {
    let toml = recipe_toml(&f.recipe).ok()?;
    let text = format!(
        "Calibrated on {} windows, {} tokens in all. Weights, recipe and calibration tokens alone decide the result.",
        f.calibration_windows,
        thousands(f.calibration_tokens as u64)
    );
    Some(Section {
        id: "recipe",
        title: "How it was made",
        blocks: vec![
            Block::Text(text),
            Block::Code("The recipe, to be given to --recipe as a file".into(), toml),
        ],
    })
}
