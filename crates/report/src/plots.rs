//! The drawings of the report. Each says in its description what a reader would see.

use crate::facts::{Facts, Kind, Layer, Size, WeightShape};
use crate::numbers::{bytes, percent, power_of_two, significant};
use crate::ranges::TapRange;
use crate::svg::{Anchor, Axis, Svg, WIDTH, n};
use halfbyte_quantize::{BINS_PER_UNIT, HISTOGRAM_BINS};
use std::fmt::Write;

/// Width of a letter in the widest of the fonts that a page may get.
const WIDE: f64 = 6.5;
/// The same of names, which are bold.
const BOLD: f64 = 7.6;

/// Room for a label in front of a row.
fn label_width<'a>(labels: impl IntoIterator<Item = &'a str>) -> f64 {
    let longest = labels.into_iter().map(|l| l.chars().count()).max().unwrap_or(0);
    (longest as f64 * WIDE + 8.0).clamp(30.0, 150.0)
}

/// The end of a label that fits into `width`: what tells names apart is usually there.
fn fitting(label: &str, width: f64, letter: f64) -> String {
    let room = ((width - 6.0) / letter) as usize;
    match label.chars().count() {
        count if count > room => {
            std::iter::once('…').chain(label.chars().skip(count + 1 - room.max(2))).collect()
        }
        _ => label.to_string(),
    }
}

/// Steps of the colour scale.
const SHADES: usize = 8;

/// The layers within blocks: blocks, and kinds in the order of the network.
struct Grid<'a> {
    blocks: usize,
    kinds: Vec<&'a str>,
    left: f64,
    cell: f64,
}

const ROW: f64 = 17.0;
const TOP: f64 = 6.0;

impl<'a> Grid<'a> {
    fn new(facts: &'a Facts) -> Option<Self> {
        let within = || facts.layers.iter().filter(|l| l.block.is_some());
        let blocks = within().filter_map(|l| l.block).max()? + 1;
        let kinds: Vec<&str> =
            facts.kinds.iter().map(|k| k.kind.as_str()).filter(|k| within().any(|l| l.kind == *k)).collect();
        let left = label_width(kinds.iter().copied());
        Some(Self { blocks, cell: (WIDTH - 4.0 - left) / blocks as f64, kinds, left })
    }

    fn bottom(&self) -> f64 {
        TOP + self.kinds.len() as f64 * ROW
    }

    /// Corner of a layer's cell.
    fn at(&self, layer: &Layer) -> Option<(f64, f64)> {
        let row = self.kinds.iter().position(|k| *k == layer.kind)?;
        Some((self.left + layer.block? as f64 * self.cell, TOP + row as f64 * ROW))
    }

    /// Labels of rows and columns.
    fn frame(&self, svg: &mut Svg) {
        for (row, kind) in self.kinds.iter().enumerate() {
            let y = TOP + row as f64 * ROW + 12.0;
            svg.text(self.left - 5.0, y, Anchor::End, "", &fitting(kind, self.left, WIDE));
        }
        let every = [1, 2, 5, 10, 20, 50, 100].into_iter().find(|e| self.blocks.div_ceil(*e) <= 12);
        for block in (0..self.blocks).step_by(every.unwrap_or(200)) {
            let x = self.left + (block as f64 + 0.5) * self.cell;
            svg.text(x, self.bottom() + 12.0, Anchor::Middle, "small", &block.to_string());
        }
        svg.text(self.left, self.bottom() + 25.0, Anchor::Start, "small", "block");
    }
}

/// Error of every layer within blocks as shades.
pub(crate) fn error_map(facts: &Facts) -> Option<String> {
    let grid = Grid::new(facts)?;
    let shown: Vec<&Layer> = facts.layers.iter().filter(|l| l.block.is_some()).collect();
    let errors = || shown.iter().map(|l| l.relative_error).filter(|e| *e > 0.0);
    let (low, high) = (errors().fold(f64::INFINITY, f64::min), errors().fold(0.0, f64::max));
    let worst = shown.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error))?;
    let description = format!(
        "Shades for each layer, blocks from left to right, kinds of layers from top to bottom. The largest error is {} in {}.",
        percent(worst.relative_error),
        worst.name
    );
    let bottom = grid.bottom();
    let mut svg = Svg::new("error-map", "Relative output error of every layer", description, bottom + 62.0);
    if low > high {
        return None;
    }
    let shades = Axis::log((low, high), (0.0, SHADES as f64));
    let shade = |error: f64| (shades.to(error) as usize).min(SHADES - 1);
    for layer in &shown {
        if let Some((x, y)) = grid.at(layer) {
            let gap = if grid.cell > 5.0 { 1.0 } else { 0.0 };
            let class = format!("h{}", shade(layer.relative_error));
            svg.rect(x, y + 0.5, grid.cell - gap, ROW - 1.0, &class);
        }
    }
    grid.frame(&mut svg);
    // The scale: every shade with the errors between which it stands.
    let width = 34.0;
    let left = WIDTH - 22.0 - SHADES as f64 * width;
    let y = bottom + 32.0;
    for step in 0..=SHADES {
        let x = left + step as f64 * width;
        if step < SHADES {
            svg.rect(x, y, width - 1.0, 10.0, &format!("h{step}"));
        }
        if step % 2 == 0 {
            let bound = low * (high / low).powf(step as f64 / SHADES as f64);
            svg.text(x, y + 22.0, Anchor::Middle, "small", &format!("{} %", significant(100.0 * bound, 2)));
        }
    }
    Some(svg.finish())
}

/// Errors of all layers by kind: a dot a layer, a bar at the median.
pub(crate) fn error_kinds(facts: &Facts) -> Option<String> {
    let errors = || facts.kinds.iter().flat_map(|k| &k.relative_errors).copied().filter(|e| *e > 0.0);
    let (low, high) = (errors().fold(f64::INFINITY, f64::min), errors().fold(0.0, f64::max));
    if low > high {
        return None;
    }
    let left = label_width(facts.kinds.iter().map(|k| k.kind.as_str()));
    let (right, row) = (WIDTH - 52.0, 20.0);
    let bottom = 18.0 + facts.kinds.len() as f64 * row;
    let description = "A dot for every layer and a bar at the median of its kind, on a logarithmic scale.";
    let mut svg =
        Svg::new("error-kinds", "Relative output error by kind of layer", description, bottom + 32.0);
    let axis = Axis::log((low * 0.9, high * 1.1), (left + 4.0, right));
    for tick in axis.ticks(5) {
        let x = axis.to(tick);
        svg.line((x, 14.0), (x, bottom), "grid");
        svg.text(x, bottom + 13.0, Anchor::Middle, "small", &format!("{} %", short(100.0 * tick)));
    }
    svg.text(WIDTH - 4.0, 10.0, Anchor::End, "small", "median");
    for (i, kind) in facts.kinds.iter().enumerate() {
        let y = 18.0 + (i as f64 + 0.5) * row;
        svg.text(left - 3.0, y + 4.0, Anchor::End, "", &fitting(&kind.kind, left, WIDE));
        svg.dots(kind.relative_errors.iter().filter(|e| **e > 0.0).map(|e| (axis.to(*e), y)), "dots s0");
        let median = median(&kind.relative_errors);
        if median > 0.0 {
            svg.line((axis.to(median), y - 7.0), (axis.to(median), y + 7.0), "bar");
        }
        svg.text(WIDTH - 4.0, y + 4.0, Anchor::End, "", &percent(median));
    }
    svg.text(left + 4.0, bottom + 27.0, Anchor::Start, "small", "error relative to the output, logarithmic");
    Some(svg.finish())
}

/// A tick's value without trailing zeros.
fn short(value: f64) -> String {
    let text = significant(value, 3);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

/// The middle value, 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// The chosen format of every layer within blocks: a colour, and a height that grows with the exponent's bits.
pub(crate) fn format_map(
    facts: &Facts,
    id: &str,
    title: &str,
    formats: &[String],
    of: impl Fn(&Layer) -> Option<&str>,
) -> Option<String> {
    let grid = Grid::new(facts)?;
    let description = format!(
        "A bar for each layer, blocks from left to right, kinds of layers from top to bottom; formats: {}.",
        formats.join(", ")
    );
    let bottom = grid.bottom();
    let mut svg = Svg::new(id, title, description, bottom + 48.0);
    // Tall enough to be seen even for the first; what tells formats apart is not the colour alone.
    let tall = |i: usize| (ROW - 2.0) * (i + 1) as f64 / formats.len() as f64;
    for layer in &facts.layers {
        let Some((x, y)) = grid.at(layer) else { continue };
        let gap = if grid.cell > 5.0 { 1.0 } else { 0.0 };
        if let Some(i) = of(layer).and_then(|f| formats.iter().position(|k| k == f)) {
            svg.rect(x, y + ROW - 1.0 - tall(i), grid.cell - gap, tall(i), &format!("f s{i}"));
        }
    }
    grid.frame(&mut svg);
    let mut x = grid.left;
    for (i, format) in formats.iter().enumerate() {
        let y = bottom + 44.0;
        svg.rect(x, y - tall(i), 10.0, tall(i), &format!("f s{i}"));
        svg.text(x + 14.0, y - 1.0, Anchor::Start, "", format);
        x += 24.0 + 7.0 * format.len() as f64;
    }
    Some(svg.finish())
}

/// Bounds of a scale in powers of two for magnitudes in units of the largest representable value.
fn octaves<'a>(taps: impl IntoIterator<Item = &'a TapRange>) -> (f64, f64) {
    let (mut low, mut high) = (-4.0f64, 0.0f64);
    for tap in taps {
        for q in [Some(tap.before), tap.after].into_iter().flatten() {
            if q.0[0] > 0.0 {
                low = low.min(q.0[0].log2().floor());
                high = high.max(q.0[6].log2().ceil());
            }
        }
        if let Some(smallest) = tap.smallest {
            low = low.min((smallest / 2.0).log2().floor());
        }
    }
    (low.max(-40.0), high.min(40.0))
}

const PLOT: (f64, f64) = (34.0, WIDTH - 6.0);

/// The scale of powers of two on the left, and the band in which values are represented.
fn octave_axis(svg: &mut Svg, axis: &Axis, bounds: (f64, f64), smallest: Option<f64>) {
    if let Some(smallest) = smallest {
        let (top, bottom) = (axis.to(0.0), axis.to((smallest / 2.0).log2()));
        svg.rect(PLOT.0, top, PLOT.1 - PLOT.0, bottom - top, "band");
    }
    let every = [1, 2, 4, 8].into_iter().find(|e| (bounds.1 - bounds.0) / f64::from(*e) <= 9.0).unwrap_or(16);
    let first = (bounds.0 / f64::from(every)).ceil() as i32;
    let last = (bounds.1 / f64::from(every)).floor() as i32;
    for exponent in (first..=last).map(|i| i * every) {
        let y = axis.to(f64::from(exponent));
        svg.line((PLOT.0, y), (PLOT.1, y), if exponent == 0 { "limit" } else { "grid" });
        svg.text(PLOT.0 - 4.0, y + 3.5, Anchor::End, "small", &power_of_two(exponent));
    }
}

/// What before and after look like.
fn range_legend(svg: &mut Svg, tap: &TapRange) {
    svg.dots([(PLOT.0 + 5.0, 9.0)], "mark s1");
    svg.text(PLOT.0 + 12.0, 13.0, Anchor::Start, "", "as it is");
    if tap.after.is_some() {
        svg.dots([(PLOT.0 + 75.0, 9.0)], "mark s0");
        svg.text(PLOT.0 + 82.0, 13.0, Anchor::Start, "", "times 2^shift");
    }
    if tap.smallest.is_some() {
        svg.rect(PLOT.0 + 182.0, 4.0, 14.0, 10.0, "band");
        svg.text(PLOT.0 + 200.0, 13.0, Anchor::Start, "", "not rounded to 0");
    }
}

/// Largest magnitudes of the channels of one tap, sorted, before and after the shift.
pub(crate) fn channel_ranges(tap: &TapRange, id: &str, title: &str) -> String {
    let height = 216.0;
    let (top, bottom) = (24.0, height - 30.0);
    let bounds = octaves([tap]);
    let axis = Axis::linear(bounds, (bottom, top));
    let mut description =
        format!("{} channels span {:.1} octaves as they are", tap.channels, tap.before.octaves());
    if let Some(after) = tap.after {
        let _ = write!(description, ", {:.1} after the shift", after.octaves());
    }
    if tap.smallest.is_some() {
        let _ = write!(description, "; {} would be rounded to zero throughout without it", tap.lost_before);
    }
    description.push('.');
    let mut svg = Svg::new(id, title, description, height);
    octave_axis(&mut svg, &axis, bounds, tap.smallest);
    range_legend(&mut svg, tap);
    let last = tap.points.len().saturating_sub(1).max(1) as f64;
    let place =
        |i: usize, v: f64| (PLOT.0 + 4.0 + i as f64 / last * (PLOT.1 - PLOT.0 - 8.0), axis.to(v.log2()));
    svg.dots(tap.points.iter().enumerate().map(|(i, p)| place(i, p.0)), "dots s1");
    if tap.after.is_some() {
        svg.dots(tap.points.iter().enumerate().map(|(i, p)| place(i, p.1)), "dots s0");
    }
    svg.text(PLOT.0, height - 16.0, Anchor::Start, "small", "largest channel");
    svg.text(PLOT.1, height - 16.0, Anchor::End, "small", "smallest channel");
    svg.text(PLOT.0, height - 4.0, Anchor::Start, "small", unit_of(tap));
    svg.finish()
}

fn unit_of(tap: &TapRange) -> &'static str {
    match tap.smallest {
        Some(_) => "largest magnitude of a channel; 1 is the largest value represented",
        None => "largest magnitude of a channel; 1 is the largest of the tensor",
    }
}

/// Ranges of the channels at the same place in all blocks.
pub(crate) fn block_ranges(taps: &[&TapRange], id: &str, title: &str) -> Option<String> {
    let first = taps.first()?;
    let height = 190.0;
    let (top, bottom) = (24.0, height - 32.0);
    let bounds = octaves(taps.iter().copied());
    let axis = Axis::linear(bounds, (bottom, top));
    let blocks = taps.iter().filter_map(|t| t.block).max()? + 1;
    let widest = |f: fn(&TapRange) -> Option<f64>| taps.iter().filter_map(|t| f(t)).fold(0.0, f64::max);
    let mut description = format!(
        "In all blocks the channels span at most {:.1} octaves as they are",
        widest(|t| Some(t.before.octaves()))
    );
    if first.after.is_some() {
        let _ = write!(description, " and {:.1} after the shift", widest(|t| t.after.map(|q| q.octaves())));
    }
    description.push('.');
    let mut svg = Svg::new(id, title, description, height);
    // Formats may differ between blocks: the band is that of the first.
    octave_axis(&mut svg, &axis, bounds, first.smallest);
    range_legend(&mut svg, first);
    let step = (PLOT.1 - PLOT.0) / blocks as f64;
    let (mut thin, mut thick) = ([String::new(), String::new()], [String::new(), String::new()]);
    for tap in taps {
        let Some(block) = tap.block else { continue };
        for (series, q) in [(0, Some(tap.before)), (1, tap.after)] {
            let Some(q) = q.filter(|q| q.0[0] > 0.0) else { continue };
            let x = PLOT.0 + (block as f64 + 0.33 + 0.34 * series as f64) * step;
            let span = |low: f64, high: f64| {
                format!("M{} {}V{}", n(x), n(axis.to(low.log2())), n(axis.to(high.log2())))
            };
            thin[series].push_str(&span(q.0[0], q.0[6]));
            thick[series].push_str(&span(q.0[1], q.0[5]));
        }
    }
    let wide = if step > 9.0 { "thick" } else { "middling" };
    for (series, class) in [(0, "s1"), (1, "s0")] {
        if !thin[series].is_empty() {
            svg.path(&thin[series], &format!("thin {class}"));
            svg.path(&thick[series], &format!("{wide} {class}"));
        }
    }
    let every = [1, 2, 5, 10, 20, 50].into_iter().find(|e| blocks.div_ceil(*e) <= 12).unwrap_or(100);
    for block in (0..blocks).step_by(every) {
        let x = PLOT.0 + (block as f64 + 0.5) * step;
        svg.text(x, bottom + 12.0, Anchor::Middle, "small", &block.to_string());
    }
    svg.text(
        PLOT.0,
        height - 6.0,
        Anchor::Start,
        "small",
        "block; lines: all channels, bars: 5 % to 95 % of them",
    );
    Some(svg.finish())
}

/// How many channels have which shift, by tap, in all blocks together.
pub(crate) fn shift_map(rows: &[(String, Vec<f64>)]) -> String {
    let most = rows.iter().map(|r| r.1.len()).max().unwrap_or(1).max(4);
    let left = label_width(rows.iter().map(|r| r.0.as_str()));
    let cell = ((WIDTH - 4.0 - left) / most as f64).min(40.0);
    let row = 22.0;
    let bottom = 4.0 + rows.len() as f64 * row;
    let description = "Share of the channels with each shift, as shades and in percent.";
    let mut svg = Svg::new("shifts", "Shifts by place", description, bottom + 30.0);
    for (i, (label, shares)) in rows.iter().enumerate() {
        let y = 4.0 + i as f64 * row;
        svg.text(left - 4.0, y + 14.0, Anchor::End, "", &fitting(label, left, WIDE));
        for (shift, &share) in shares.iter().enumerate() {
            if share == 0.0 {
                continue;
            }
            let x = left + shift as f64 * cell;
            let step = ((share.sqrt() * SHADES as f64) as usize).min(SHADES - 1);
            svg.rect(x, y, cell - 1.0, row - 1.0, &format!("h{step}"));
            let class = if step < 5 { "small on-low" } else { "small on-high" };
            let figure = if share < 0.005 { "·".into() } else { format!("{:.0}", 100.0 * share) };
            svg.text(x + cell / 2.0 - 0.5, y + 14.0, Anchor::Middle, class, &figure);
        }
    }
    for shift in 0..most {
        let x = left + (shift as f64 + 0.5) * cell;
        svg.text(x, bottom + 11.0, Anchor::Middle, "small", &shift.to_string());
    }
    svg.text(left, bottom + 24.0, Anchor::Start, "small", "shift s; cells: % of the channels, · below 0.5");
    svg.finish()
}

/// The weights of one kind against the grid of their codes, and how often each code is used.
pub(crate) fn weight_shape(kind: &Kind, shape: &WeightShape, id: &str, title: &str) -> String {
    let height = 212.0;
    let (left, right) = (8.0, WIDTH - 8.0);
    let (top, middle) = (16.0, 106.0);
    let total = shape.histogram.iter().sum::<u64>().max(1) as f64;
    let count = shape.codes.iter().map(|c| c.1).sum::<u64>().max(1) as f64;
    let zero = shape.codes.iter().find(|c| c.0 == 0.0).map_or(0.0, |c| c.1 as f64 / count);
    let description = format!(
        "Above, the weights of {} before quantization, divided by the largest value of their scale, with a line at every code; \
         below, the share of weights stored as each code. {} are stored as zero.",
        kind.kind,
        percent(zero)
    );
    let mut svg = Svg::new(id, title, description, height);
    let x = Axis::linear((-1.5, 1.5), (left, right));
    let inner = &shape.histogram[1..HISTOGRAM_BINS - 1];
    let peak = inner.iter().copied().max().unwrap_or(1).max(1) as f64;
    let y = Axis::linear((0.0, peak), (middle, top));
    let mut area = format!("M{} {}", n(left), n(middle));
    for (bin, &n_in) in inner.iter().enumerate() {
        let low = -1.5 + bin as f64 / BINS_PER_UNIT as f64;
        let high = low + 1.0 / BINS_PER_UNIT as f64;
        let _ = write!(area, "V{}H{}", n(y.to(n_in as f64)), n(x.to(high)));
    }
    let _ = write!(area, "V{}Z", n(middle));
    svg.path(&area, "area s0");
    let largest = f64::from(shape.element.max_value());
    let lines: String = shape
        .codes
        .iter()
        .map(|(v, _)| format!("M{} {}V{}", n(x.to(f64::from(*v) / largest)), n(top), n(middle + 4.0)))
        .collect();
    svg.path(&lines, if shape.codes.len() <= 32 { "code" } else { "code faint" });
    svg.line((left, middle), (right, middle), "axis");
    for (value, label) in [(-1.0, "−1"), (0.0, "0"), (1.0, "1")] {
        svg.text(x.to(value), middle + 14.0, Anchor::Middle, "small", label);
    }
    svg.text(
        left,
        10.0,
        Anchor::Start,
        "small",
        &format!("weights; peak: {} in 1/{BINS_PER_UNIT}", percent(peak / total)),
    );
    // The codes, side by side.
    let (high, low) = (138.0, 182.0);
    let most = shape.codes.iter().map(|c| c.1).max().unwrap_or(1).max(1) as f64;
    let width = (right - left) / shape.codes.len() as f64;
    // Labels for as many as there is room for, zero among them, which is in the middle.
    let every = shape.codes.len().div_ceil(17);
    for (i, (value, n_of)) in shape.codes.iter().enumerate() {
        let tall = (low - high) * *n_of as f64 / most;
        let from = left + i as f64 * width;
        let gap = if width > 6.0 { 1.0 } else { 0.0 };
        svg.rect(from, low - tall, width - gap, tall, "f s1");
        if i.abs_diff(shape.codes.len() / 2).is_multiple_of(every) {
            let label = value.to_string().replace('-', "−");
            svg.text(from + width / 2.0, low + 11.0, Anchor::Middle, "tiny", &label);
        }
    }
    svg.line((left, low), (right, low), "axis");
    svg.text(left, high - 3.0, Anchor::Start, "small", &format!("codes; peak: {}", percent(most / count)));
    svg.text(left, height - 4.0, Anchor::Start, "small", "value of the code, before its scale");
    svg.finish()
}

/// Bytes before and after, by what they are for.
pub(crate) fn size(before: Option<u64>, size: Size, after: u64) -> String {
    let most = before.unwrap_or(after).max(after).max(1) as f64;
    let axis = Axis::linear((0.0, most), (4.0, WIDTH - 4.0));
    let description = match before {
        Some(before) => format!("{} before, {} after.", bytes(before), bytes(after)),
        None => format!("{} after.", bytes(after)),
    };
    let mut svg = Svg::new("size-plot", "Bytes of all tensors", description, 104.0);
    if let Some(before) = before {
        svg.text(4.0, 12.0, Anchor::Start, "", &format!("before: {}", bytes(before)));
        svg.rect(4.0, 17.0, axis.to(before as f64) - 4.0, 16.0, "f muted");
    }
    svg.text(4.0, 50.0, Anchor::Start, "", &format!("after: {}", bytes(after)));
    let mut from = 0;
    let all =
        [("codes", size.codes), ("scales", size.scales), ("kept", size.kept), ("low rank", size.low_rank)];
    let parts = || all.into_iter().enumerate().filter(|(i, (_, part))| *i < 3 || *part > 0);
    for (i, (_, part)) in parts() {
        let (a, b) = (axis.to(from as f64), axis.to((from + part) as f64));
        svg.rect(a, 55.0, b - a, 16.0, &format!("f s{i}"));
        from += part;
    }
    let mut x = 4.0;
    for (i, (label, part)) in parts() {
        svg.rect(x, 84.0, 10.0, 10.0, &format!("f s{i}"));
        let text = format!("{label} {}", bytes(part));
        svg.text(x + 14.0, 93.0, Anchor::Start, "", &text);
        x += 24.0 + 6.3 * text.chars().count() as f64;
    }
    svg.finish()
}

/// Shapes that tell models apart without colour, six of them, then from the start again.
fn mark(svg: &mut Svg, i: usize, x: f64, y: f64) {
    let class = format!("shape s{}", i % 6);
    let d = match i % 6 {
        0 => format!("M{} {}a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0Z", n(x - 3.6), n(y)),
        1 => format!("M{} {}h6.4v6.4h-6.4Z", n(x - 3.2), n(y - 3.2)),
        2 => format!("M{} {}l4 7.2h-8Z", n(x), n(y - 4.2)),
        3 => format!("M{} {}l4.2 4.2l-4.2 4.2l-4.2 -4.2Z", n(x), n(y - 4.2)),
        4 => format!("M{} {}l4 -7.2h-8Z", n(x), n(y + 4.2)),
        _ => format!("M{} {}h7.6v3h-7.6Z", n(x - 3.8), n(y - 1.5)),
    };
    svg.path(&d, &class);
}

/// One measure of several models: a mark and its figure each.
pub(crate) struct Measure<'a> {
    pub(crate) id: &'a str,
    pub(crate) title: &'a str,
    /// Name, value, half of the 95 % interval.
    pub(crate) rows: Vec<(String, f64, Option<f64>)>,
    /// What is on the axis.
    pub(crate) unit: &'a str,
}

pub(crate) fn measure(m: &Measure) -> Option<String> {
    let values = || m.rows.iter().map(|r| r.1).filter(|v| v.is_finite());
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    if low > high {
        return None;
    }
    let margin = m.rows.iter().filter_map(|r| r.2).fold(0.0, f64::max);
    let best = m.rows.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let description =
        format!("{} models; the lowest, {}, is that of {}.", m.rows.len(), significant(low, 4), best.0);
    let row = 34.0;
    let bottom = 4.0 + m.rows.len() as f64 * row;
    let mut svg = Svg::new(m.id, m.title, description, bottom + 32.0);
    let at = (10.0, WIDTH - 70.0);
    let log = low > 0.0 && high / low > 4.0;
    let axis = match log {
        true => Axis::log((low * 0.9, high * 1.1), at),
        false => {
            let room = ((high - low) * 0.08).max(margin).max(high.abs() * 0.01);
            Axis::linear(((low - room).max(0.0), high + room), at)
        }
    };
    for tick in axis.ticks(5) {
        svg.line((axis.to(tick), 2.0), (axis.to(tick), bottom), "grid");
        svg.text(axis.to(tick), bottom + 13.0, Anchor::Middle, "small", &short(tick));
    }
    for (i, (name, value, margin)) in m.rows.iter().enumerate() {
        let y = 4.0 + i as f64 * row;
        svg.text(10.0, y + 11.0, Anchor::Start, "name", &fitting(name, WIDTH - 14.0, BOLD));
        let y = y + 22.0;
        if let Some(margin) = margin {
            svg.line(
                (axis.to(value - margin), y),
                (axis.to(value + margin), y),
                &format!("interval s{}", i % 6),
            );
        }
        mark(&mut svg, i, axis.to(*value), y);
        svg.text(WIDTH - 4.0, y + 4.0, Anchor::End, "", &significant(*value, 4));
    }
    let unit = if log { format!("{}, logarithmic", m.unit) } else { m.unit.to_string() };
    svg.text(10.0, bottom + 27.0, Anchor::Start, "small", &unit);
    Some(svg.finish())
}

/// A measure of several models on several tasks, with intervals.
pub(crate) struct ByTask<'a> {
    pub(crate) id: &'a str,
    pub(crate) title: &'a str,
    /// Names of the models, and which mark each has.
    pub(crate) models: Vec<(&'a str, usize)>,
    /// Every task with the share, low and high end of its interval for every model that has it.
    pub(crate) tasks: Vec<(&'a str, Vec<Option<[f64; 3]>>)>,
    /// What is on the axis.
    pub(crate) unit: &'a str,
}

pub(crate) fn by_task(b: &ByTask) -> Option<String> {
    let ends = || b.tasks.iter().flat_map(|t| &t.1).flatten().flatten().copied();
    let low = (ends().fold(f64::INFINITY, f64::min) * 20.0).floor() / 20.0;
    let high = (ends().fold(f64::NEG_INFINITY, f64::max) * 20.0).ceil() / 20.0;
    if low > high {
        return None;
    }
    let left = label_width(b.tasks.iter().map(|t| t.0));
    let legend = 16.0 * b.models.len() as f64;
    let row = 10.0 * b.models.len() as f64 + 10.0;
    let bottom = legend + 8.0 + b.tasks.len() as f64 * row;
    let description = format!(
        "{} of {} models on {} tasks, with 95 % intervals as lines.",
        b.title,
        b.models.len(),
        b.tasks.len()
    );
    let mut svg = Svg::new(b.id, b.title, description, bottom + 32.0);
    for (i, (model, shape)) in b.models.iter().enumerate() {
        let y = 8.0 + 16.0 * i as f64;
        mark(&mut svg, *shape, 10.0, y);
        svg.text(20.0, y + 4.0, Anchor::Start, "name", &fitting(model, WIDTH - 20.0, BOLD));
    }
    let axis = Axis::linear((low, high), (left + 6.0, WIDTH - 14.0));
    for tick in axis.ticks(5) {
        let x = axis.to(tick);
        // Rounding leaves no zero of its own to a sum of steps.
        let zero = tick.abs() < 1e-9;
        svg.line((x, legend + 6.0), (x, bottom), if zero { "limit" } else { "grid" });
        let figure = if zero { "0".into() } else { short(100.0 * tick).replace('-', "−") };
        svg.text(x, bottom + 13.0, Anchor::Middle, "small", &format!("{figure} %"));
    }
    for (t, (name, models)) in b.tasks.iter().enumerate() {
        let top = legend + 8.0 + t as f64 * row;
        svg.line((4.0, top), (WIDTH - 4.0, top), "grid");
        svg.text(left - 2.0, top + row / 2.0 + 4.0, Anchor::End, "", &fitting(name, left, WIDE));
        for (i, (found, (_, shape))) in models.iter().zip(&b.models).enumerate() {
            let Some([value, from, to]) = *found else { continue };
            let y = top + 10.0 + 10.0 * i as f64;
            svg.line((axis.to(from), y), (axis.to(to), y), &format!("interval s{}", shape % 6));
            mark(&mut svg, *shape, axis.to(value), y);
        }
    }
    svg.text(left + 6.0, bottom + 27.0, Anchor::Start, "small", b.unit);
    Some(svg.finish())
}
