//! The facts told as a document.

use crate::document::{Block, Document, Figure, NONE, Section, Table, Tile};
use crate::evaluation::{Evaluation, NORMAL_95, Task};
use crate::facts::{Facts, Layer, distinct};
use crate::numbers::{bytes, duration, percent, power_of_two, significant, thousands};
use crate::plots::{self, ByTask, Measure, median};
use crate::ranges::TapRange;
use halfbyte_quantize::{InputReport, recipe_toml};

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

/// Over the tasks, each counting the same.
fn mean_accuracy(e: &Evaluation) -> Option<f64> {
    let values: Vec<f64> = e.tasks.iter().filter_map(|t| t.1.acc).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn accuracy(f: &Facts) -> Option<Section> {
    let mut blocks = Vec::new();
    if f.evaluations.is_empty() {
        blocks.push(Block::Text(
            "Not measured yet. `halfbyte eval DIR --perplexity TEXT --json > eval.json` measures a model, and \
             `halfbyte report DIR --evaluation eval.json` puts the result here, beside those of any other models."
                .into(),
        ));
        return Some(Section { id: "accuracy", title: "Accuracy", blocks });
    }
    let mut figures = Vec::new();
    figures.extend(perplexities(f));
    figures.extend(divergences(f));
    figures.extend(task_figure(f));
    figures.extend(paired_figure(f));
    blocks.push(Block::Figures(figures));
    let protocols = distinct(f.evaluations.iter().filter_map(|e| e.perplexity.as_ref()?.protocol.as_deref()));
    blocks.extend(protocols.iter().map(|p| Block::Text(format!("Perplexity: {}", name(p)))));
    Some(Section { id: "accuracy", title: "Accuracy", blocks })
}

fn perplexities(f: &Facts) -> Option<Figure> {
    let measured = || f.evaluations.iter().filter_map(|e| Some((e, e.perplexity.as_ref()?)));
    let mut t =
        Table::new("Perplexity", ["Model", "Perplexity", "95 % interval", "Window", "Windows", "Tokens"]);
    for (e, p) in measured() {
        let whole = |n: Option<u64>| or_none(n.map(thousands));
        let margin = or_none(p.margin.map(|m| format!("± {}", significant(m, 3))));
        t.row([
            e.model.clone(),
            significant(p.value, 6),
            margin,
            whole(p.window),
            whole(p.windows),
            whole(p.tokens),
        ]);
    }
    let rows = measured().map(|(e, p)| (e.model.clone(), p.value, p.margin)).collect();
    let svg =
        plots::measure(&Measure { id: "perplexity-plot", title: "Perplexity", rows, unit: "perplexity" })?;
    let comparable = measured().map(|(_, p)| (p.window, p.windows, p.tokens)).collect::<Vec<_>>();
    let warning = match comparable.windows(2).all(|w| w[0] == w[1]) {
        true => "",
        false => " Windows differ between these models: the figures cannot be compared.",
    };
    Some(Figure { caption: format!("Perplexity, lower is better.{warning}"), svg, table: t })
}

fn divergences(f: &Facts) -> Option<Figure> {
    let measured = || f.evaluations.iter().filter_map(|e| Some((e, e.kld.as_ref()?)));
    let mut t = Table::new(
        "KL divergence to the reference, in nats a token",
        ["Model", "Mean", "95 % interval", "Median", "99th percentile", "Same top token"],
    );
    for (e, k) in measured() {
        let nats = |v: Option<f64>| or_none(v.map(|v| significant(v, 4)));
        t.row([
            e.model.clone(),
            nats(k.mean),
            or_none(k.margin.map(|m| format!("± {}", significant(m, 3)))),
            nats(k.median),
            nats(k.p99),
            or_none(k.top1_agreement.map(percent)),
        ]);
    }
    let rows = measured().filter_map(|(e, k)| Some((e.model.clone(), k.mean?, k.margin))).collect();
    let unit = "nats a token";
    let svg = plots::measure(&Measure { id: "kld-plot", title: "Mean KL divergence", rows, unit })?;
    let caption = "Mean KL divergence to the reference model, lower is better.".into();
    Some(Figure { caption, svg, table: t })
}

/// Names of all tasks, in the order in which they first come.
fn task_names(f: &Facts) -> Vec<&str> {
    distinct(f.evaluations.iter().flat_map(|e| &e.tasks).map(|(name, _)| name.as_str()))
}

/// A figure with a mark for every model and task for which `value` has a share and the ends of its interval.
fn by_task(
    f: &Facts,
    id: &str,
    title: &str,
    unit: &str,
    value: impl Fn(&Task) -> Option<[f64; 3]>,
) -> Option<String> {
    let of = |e: &Evaluation, name: &str| e.tasks.iter().find(|t| t.0 == name).and_then(|t| value(&t.1));
    let names = task_names(f);
    let shown: Vec<(usize, &Evaluation)> =
        f.evaluations.iter().enumerate().filter(|(_, e)| names.iter().any(|n| of(e, n).is_some())).collect();
    let tasks = names.iter().map(|n| (*n, shown.iter().map(|(_, e)| of(e, n)).collect())).collect();
    let models = shown.iter().map(|(i, e)| (e.model.as_str(), *i)).collect();
    plots::by_task(&ByTask { id, title, models, tasks, unit })
}

fn task_figure(f: &Facts) -> Option<Figure> {
    let mut t = Table::new(
        "Accuracy by task",
        ["Task", "Model", "Accuracy", "95 % interval", "Normalised accuracy", "Rows"],
    );
    for name in task_names(f) {
        for e in &f.evaluations {
            let Some((_, task)) = e.tasks.iter().find(|x| x.0 == name) else { continue };
            t.row([
                name.into(),
                e.model.clone(),
                or_none(task.acc.map(percent)),
                or_none(task.stderr.map(|s| format!("± {}", percent(NORMAL_95 * s)))),
                or_none(task.acc_norm.map(percent)),
                or_none(task.n.map(thousands)),
            ]);
        }
    }
    let svg = by_task(f, "tasks-plot", "Accuracy by task", "accuracy with 95 % interval", |task| {
        let (acc, margin) = (task.acc?, NORMAL_95 * task.stderr.unwrap_or(0.0));
        Some([acc, acc - margin, acc + margin])
    })?;
    let caption = "Accuracy by task with 95 % intervals (1.96 standard errors), higher is better. Intervals are those of \
                   each model alone: models answer the same rows, so that smaller differences can be real."
        .into();
    Some(Figure { caption, svg, table: t })
}

/// Differences from the reference on the same rows, which tell more than two intervals do.
fn paired_figure(f: &Facts) -> Option<Figure> {
    let mut t = Table::new(
        "Accuracy less that of the reference, on the same rows",
        ["Task", "Model", "Difference", "95 % interval", "McNemar p"],
    );
    let signed = |v: f64| format!("{}{}", if v < 0.0 { "-" } else { "" }, percent(v.abs()));
    for name in task_names(f) {
        for e in &f.evaluations {
            let paired = e.tasks.iter().find(|x| x.0 == name).and_then(|x| x.1.paired.as_ref());
            let Some(p) = paired else { continue };
            t.row([
                name.into(),
                e.model.clone(),
                signed(p.difference),
                format!("{} … {}", signed(p.interval[0]), signed(p.interval[1])),
                or_none(p.p_value.map(|p| significant(p, 3))),
            ]);
        }
    }
    let unit = "accuracy less the reference's, 95 % bootstrap interval";
    let svg = by_task(f, "paired-plot", "Difference in accuracy by task", unit, |task| {
        let p = task.paired.as_ref()?;
        Some([p.difference, p.interval[0], p.interval[1]])
    })?;
    let caption =
        "Accuracy less that of the reference on the same rows: an interval beyond 0 is a real difference."
            .into();
    Some(Figure { caption, svg, table: t })
}

fn errors(f: &Facts) -> Option<Section> {
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

fn formats(f: &Facts) -> Option<Section> {
    let mut blocks = vec![Block::Text(
        "E2M1 has two exponent bits and one mantissa bit besides the sign; more exponent bits reach further, more mantissa bits \
         are finer. Taller bars are formats with fewer mantissa bits."
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

fn ranges(f: &Facts) -> Option<Section> {
    if f.inputs.is_empty() {
        return None;
    }
    let shifted = f.inputs.iter().any(|t| t.after.is_some());
    let quantized = f.inputs.iter().any(|t| t.smallest.is_some());
    let mut text = "The input channels of a layer differ in size, much between channels and little within one, and share one scale. ".to_string();
    text += match (shifted, quantized) {
        (true, _) => {
            "The pre-shifted exponent bias multiplies every channel by `2^s` with an integer shift `s` of its own before \
             quantization, and its weights by `2^−s`, both without rounding. Small channels move up into the band in which values \
             are not rounded to zero."
        }
        (false, true) => {
            "This recipe has no pre-shift: channels below the band are rounded to zero throughout."
        }
        (false, false) => {
            "This recipe leaves inputs alone; the ranges show what quantizing them would have to deal with."
        }
    };
    let places = distinct(f.inputs.iter().map(|t| t.layers.as_str()));
    let (mut featured, mut by_block, mut shifts) = (Vec::new(), Vec::new(), Vec::new());
    for (i, place) in places.iter().enumerate() {
        let taps: Vec<&TapRange> = f.inputs.iter().filter(|t| t.layers == *place).collect();
        let place = name(place);
        let widest = taps
            .iter()
            .copied()
            .reduce(|a, b| if b.before.octaves() > a.before.octaves() { b } else { a })?;
        let at = widest.block.map_or(String::new(), |b| format!(" of block {b}"));
        let caption = match taps.len() {
            1 => format!("Channels of the input of {place}{at}."),
            _ => format!("Channels of the input of {place}{at}, where they differ most."),
        };
        let svg = plots::channel_ranges(widest, &format!("range-{i}"), &format!("Input of {place}{at}"));
        featured.push(Figure { caption, svg, table: quantile_table(widest) });
        if taps.len() > 1
            && let Some(svg) =
                plots::block_ranges(&taps, &format!("blocks-{i}"), &format!("Input of {place} in all blocks"))
        {
            let caption = format!("The input of {place} in all blocks.");
            by_block.push(Figure { caption, svg, table: block_table(&taps) });
        }
        let counted = taps.iter().map(|t| t.shifts.len()).max().unwrap_or(0);
        let total = taps.iter().flat_map(|t| &t.shifts).sum::<usize>().max(1) as f64;
        let share = |s: usize| taps.iter().filter_map(|t| t.shifts.get(s)).sum::<usize>() as f64 / total;
        shifts.push((place, (0..counted).map(share).collect::<Vec<f64>>()));
    }
    let mut blocks = vec![Block::Text(text), Block::Figures(featured)];
    if shifted {
        let most = shifts.iter().map(|s| s.1.len()).max().unwrap_or(0);
        let mut table = Table { caption: "Share of channels by shift".into(), ..Table::default() };
        table.columns =
            std::iter::once("Input of".to_string()).chain((0..most).map(|s| s.to_string())).collect();
        for (place, shares) in &shifts {
            let cell = |s: usize| shares.get(s).map_or("0".into(), |v| percent(*v));
            table.rows.push(std::iter::once(place.clone()).chain((0..most).map(cell)).collect());
        }
        let caption = "The shifts that were chosen, over all blocks.".into();
        by_block.push(Figure { caption, svg: plots::shift_map(&shifts), table });
    }
    if !by_block.is_empty() {
        blocks.push(Block::Figures(by_block));
    }
    Some(Section { id: "ranges", title: "Input channels before and after the shift", blocks })
}

fn relative(v: f64) -> String {
    significant(v, 3)
}

fn quantile_table(tap: &TapRange) -> Table {
    let unit = match tap.smallest {
        Some(_) => "in units of the largest value represented",
        None => "in units of the largest channel",
    };
    let mut t = Table::new(
        format!("{} channels, largest magnitudes {unit}", tap.channels),
        ["Channels", "As they are", "Times 2^shift"],
    );
    let names = [
        "smallest",
        "5th percentile",
        "25th percentile",
        "median",
        "75th percentile",
        "95th percentile",
        "largest",
    ];
    for (i, name) in names.into_iter().enumerate() {
        t.row([name.into(), relative(tap.before.0[i]), or_none(tap.after.map(|q| relative(q.0[i])))]);
    }
    let after = |n: usize| or_none(tap.after.map(|_| n.to_string()));
    if tap.smallest.is_some() {
        t.row(["rounded to zero throughout".into(), tap.lost_before.to_string(), after(tap.lost_after)]);
    }
    t.row(["zero on all calibration tokens".into(), tap.dead.to_string(), after(tap.dead)]);
    for (shift, n) in tap.shifts.iter().enumerate() {
        t.row([
            format!("with shift {shift} (times {})", power_of_two(shift as i32)),
            n.to_string(),
            n.to_string(),
        ]);
    }
    t
}

fn block_table(taps: &[&TapRange]) -> Table {
    let mut t = Table::new(
        "Largest magnitudes of the channels, in units of the largest value represented",
        [
            "Block",
            "Format",
            "Smallest",
            "Median",
            "Largest",
            "Smallest, shifted",
            "Median, shifted",
            "Largest, shifted",
            "Octaves",
            "Octaves, shifted",
        ],
    );
    for tap in taps {
        let (q, after) = (&tap.before, |i: usize| or_none(tap.after.map(|a| relative(a.0[i]))));
        t.row([
            or_none(tap.block.map(|b| b.to_string())),
            or_none(tap.format.clone()),
            relative(q.0[0]),
            relative(q.0[3]),
            relative(q.0[6]),
            after(0),
            after(3),
            after(6),
            format!("{:.1}", q.octaves()),
            or_none(tap.after.map(|a| format!("{:.1}", a.octaves()))),
        ]);
    }
    t
}

fn weights(f: &Facts) -> Option<Section> {
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

fn size_and_speed(f: &Facts) -> Option<Section> {
    let before = f.model.as_ref().map(|m| m.bytes);
    let mut t = Table::new("Bytes of all tensors", ["Part", "Bytes", "Share"]);
    let share = |n: u64| percent(n as f64 / f.output_bytes.max(1) as f64);
    for (part, n) in [
        ("codes of weights", f.size.codes),
        ("scales and shifts", f.size.scales),
        ("kept as it was", f.size.kept),
    ] {
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
