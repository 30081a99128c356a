//! Low-rank parts from the outside: a recipe asks for them, folders have them, other engines do not take them.
#![allow(clippy::unwrap_used)]

mod util;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use util::*;

/// Quantizes to 4 bits with a part of this rank.
fn quantized(scratch: &Scratch, rank: usize) -> PathBuf {
    let recipe = finish(halfbyte().args(["recipes", "fpq-w4a16"])).text().replace("low_rank = 0\n", "");
    let recipe = scratch.write("mine.toml", format!("low_rank = {rank}\n{recipe}"));
    let out = scratch.path(&format!("rank{rank}"));
    let mut command = halfbyte();
    command.arg("quantize").arg(scratch.model()).arg("--recipe").arg(recipe).arg("--calibration").arg(text());
    command.args(["--calibration-window", "64", "--calibration-windows", "8", "--keep", "lm_head,embedding"]);
    finish(command.args(["--json", "--out"]).arg(&out)).json();
    out
}

fn perplexity(model: &Path) -> f64 {
    let mut command = halfbyte();
    command.arg("eval").arg(model).arg("--perplexity").arg(text());
    command.args(["--window", "128", "--windows", "20", "--skip-tokens", "2048", "--no-cache", "--json"]);
    finish(&mut command).json()["perplexity"]["value"].as_f64().unwrap()
}

fn report(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap()
}

#[test]
fn a_low_rank_part_makes_up_for_what_codes_lack() {
    let scratch = Scratch::new();
    let (plain, ranked) = (quantized(&scratch, 0), quantized(&scratch, 8));
    let number = |out: &Path, key: &str| report(out)[key].as_f64().unwrap();
    let error = |out: &Path| number(out, "mean_relative_error");
    assert!(error(&ranked) < 0.8 * error(&plain), "{} {}", error(&ranked), error(&plain));
    assert!(number(&ranked, "bits_per_weight") > number(&plain, "bits_per_weight") + 1.0);
    let [full, without, with] = [&scratch.model(), &plain, &ranked].map(|m| perplexity(m));
    assert!(full < with && with < without, "{full} {with} {without}");

    // The folder says that it is of a newer form, and holds what the plan promised.
    let config: Value = serde_json::from_slice(&fs::read(ranked.join("config.json")).unwrap()).unwrap();
    let stored = &config["quantization_config"];
    assert_eq!(stored["version"], 3);
    assert_eq!(stored["layers"]["model.layers.0.mlp.up_proj"]["low_rank"], 8);
    let mut plan = halfbyte();
    plan.arg("plan").arg(scratch.model()).arg("--recipe").arg(scratch.path("mine.toml"));
    let planned = finish(plan.args(["--keep", "lm_head,embedding", "--json"])).json();
    assert_eq!(planned["output_bytes"], report(&ranked)["output_bytes"]);

    // As values it is the same network.
    let again = scratch.path("again");
    let mut command = halfbyte();
    command.arg("quantize").arg(&ranked).args(["--requantize", "--recipe", "int8-w8a16", "--json", "--out"]);
    finish(command.arg(&again)).json();
    assert!((perplexity(&again) / with - 1.0).abs() < 0.01, "{} {with}", perplexity(&again));
}

#[test]
fn what_has_no_place_for_it_is_refused() {
    let scratch = Scratch::new();
    let ranked = quantized(&scratch, 4);
    let mut export = halfbyte();
    export.arg("export").arg(&ranked).args(["--to", "vllm-int", "--out"]).arg(scratch.path("vllm"));
    finish(&mut export).refused(&["rank 4"]);
    let recipe = scratch.write("wide.toml", "low_rank = 64\n");
    let mut plan = halfbyte();
    plan.arg("plan").arg(scratch.model()).arg("--recipe").arg(recipe);
    finish(&mut plan).refused(&["low_rank", "64", "proj"]);
}
