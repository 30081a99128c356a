//! Ranges of activations before and after the pre-shift.

use super::{name, or_none};
use crate::document::{Block, Figure, Section, Table};
use crate::facts::{Facts, distinct};
use crate::numbers::{percent, power_of_two, significant};
use crate::plots;
use crate::ranges::TapRange;

pub(super) fn ranges(f: &Facts) -> Option<Section> {
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
