//! `--max-bits` from the outside: bits go to the layers that need them, within the bound.
#![allow(clippy::unwrap_used)]

mod util;

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use util::*;

fn quantize(scratch: &Scratch, out: &Path, recipe: &str, options: &[&str]) -> Command {
    let mut command = halfbyte();
    command.arg("quantize").arg(scratch.model()).args(["--recipe", recipe, "--calibration"]).arg(text());
    command.args(["--calibration-window", "64", "--calibration-windows", "4", "--json"]);
    command.args(["--keep", "lm_head,embedding"]).args(options).arg("--out").arg(out);
    command
}

/// Mean relative error, stored bits of a weight, and the widths of the weights' formats by layer.
fn measured(out: &Path) -> (f64, f64, Vec<(String, u64)>) {
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let bits = |element: &str| {
        1 + element.bytes().filter(u8::is_ascii_digit).map(|d| u64::from(d - b'0')).sum::<u64>()
    };
    let layers = report["layers"].as_array().unwrap().iter();
    let widths = layers.map(|l| {
        (l["name"].as_str().unwrap().to_string(), bits(l["weight"]["scheme"]["element"].as_str().unwrap()))
    });
    let number = |key: &str| report[key].as_f64().unwrap();
    (number("mean_relative_error"), number("bits_per_weight"), widths.collect())
}

#[test]
fn bits_go_where_they_are_needed_and_the_bound_is_kept() {
    let scratch = Scratch::new();
    let made = |name: &str, recipe: &str, options: &[&str]| {
        let out = scratch.path(name);
        finish(&mut quantize(&scratch, &out, recipe, options)).json();
        measured(&out)
    };
    let (four, ..) = made("four", "fpq-w4a4", &[]);
    let (six, ..) = made("six", "fpq-w6a6", &[]);
    let (error, bits, widths) = made("mixed", "fpq-w4a4", &["--max-bits", "5.8"]);
    assert!(six < error && error < four, "{six} {error} {four}");
    assert!(bits <= 5.8 && bits > 5.3, "{bits}");
    let kinds: BTreeSet<u64> = widths.iter().map(|w| w.1).collect();
    assert!(
        kinds.contains(&4) && kinds.len() > 1 && kinds.is_subset(&BTreeSet::from([4, 6, 8])),
        "{kinds:?}"
    );
    // Layers that share an input have the same width.
    let width = |name: &str| widths.iter().find(|w| w.0.ends_with(name)).unwrap().1;
    for block in 0..5 {
        let of = |kind: &str| width(&format!("layers.{block}.{kind}"));
        assert_eq!(of("self_attn.q_proj"), of("self_attn.v_proj"));
        assert_eq!(of("mlp.gate_proj"), of("mlp.up_proj"));
    }
    // Threads change nothing.
    let again =
        quantize(&scratch, &scratch.path("again"), "fpq-w4a4", &["--max-bits", "5.8", "--threads", "1"])
            .output()
            .unwrap();
    assert_eq!(again.status.code(), Some(0));
    assert_same(&contents(&scratch.path("mixed")), &contents(&scratch.path("again")), "one thread");
}

#[test]
fn the_bound_is_that_of_the_blocks_in_a_plan_too() {
    let scratch = Scratch::new();
    // Embedding and output layer have 4 bits whatever the blocks' layers get.
    let options = ["--recipe", "fpq-w4a4", "--calibration-window", "64", "--calibration-windows", "4"];
    let run = |verb: &str, out: &[&str]| {
        let mut command = halfbyte();
        command.arg(verb).arg(scratch.model()).args(options).arg("--calibration").arg(text());
        finish(command.args(["--max-bits", "5.8", "--json"]).args(out)).json()
    };
    let planned = run("plan", &[])["bits_per_weight"].as_f64().unwrap();
    run("quantize", &["--out", scratch.out().to_str().unwrap()]);
    let (_, bits, _) = measured(&scratch.out());
    assert!(bits <= planned && planned < bits + 0.1 && planned < 5.7, "{bits} {planned}");
}

#[test]
fn a_bound_that_cannot_be_kept_is_refused() {
    let scratch = Scratch::new();
    let refused = |recipe: &str, bits: &str, needle: &str| {
        finish(&mut quantize(&scratch, &scratch.out(), recipe, &["--max-bits", bits])).refused(&[needle]);
        assert!(!scratch.out().exists());
    };
    refused("fpq-w4a4", "4.0", "max_bits");
    refused("fpq-w4a8", "5.0", "as many bits");
    refused("fpq-w4a4", "nan", "max_bits");
    refused("int8-w8a16", "9.0", "nothing to choose from");
    // A part of low rank takes room beside the codes.
    let thin = scratch.write("thin.toml", "low_rank = 8\nactivation_bits = 16\n");
    refused(thin.to_str().unwrap(), "5.8", "low_rank = 8");
}

/// Inputs that stay as they are store nothing, which the bound must not count either.
#[test]
fn a_bound_just_above_the_plan_can_be_kept() {
    let scratch = Scratch::new();
    let mut plan = halfbyte();
    plan.arg("plan").arg(scratch.model()).args([
        "--recipe",
        "fpq-w4a16",
        "--keep",
        "lm_head,embedding",
        "--json",
    ]);
    let least = finish(&mut plan).json()["bits_per_weight"].as_f64().unwrap();
    let bound = least + 0.3;
    let out = scratch.path("out");
    finish(&mut quantize(&scratch, &out, "fpq-w4a16", &["--max-bits", &bound.to_string()])).json();
    let (_, bits, widths) = measured(&out);
    assert!(bits <= bound && bits > bound - 0.1, "{bits} of {bound}");
    assert!(widths.iter().any(|w| w.1 > 4));
    let below = (least - 0.01).to_string();
    finish(&mut quantize(&scratch, &scratch.path("less"), "fpq-w4a16", &["--max-bits", &below]))
        .refused(&["max_bits", "cannot be kept"]);
}
