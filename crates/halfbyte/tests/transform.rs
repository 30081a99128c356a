//! `halfbyte transform`, and recipes with transforms.
#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use util::{Scratch, assert_same, contents, finish, halfbyte, run, text};

fn transform(scratch: &Scratch, with: &str) -> std::process::Command {
    let mut command = halfbyte();
    command.arg("transform").arg(scratch.model()).args(["--with", with, "--json"]);
    command.arg("--calibration").arg(text()).arg("--out").arg(scratch.out());
    command.args(["--calibration-windows", "2", "--calibration-window", "32"]);
    command
}

#[test]
fn the_output_is_an_ordinary_model_with_a_report() {
    let scratch = Scratch::new();
    let json = finish(&mut transform(&scratch, "os-plus:steps=10,smooth-quant:taps=all")).json();
    assert_eq!(json["transforms"][0], "os-plus:steps=10");
    assert_eq!(json["dtype"], "float32");
    // 5 blocks: 2 taps after norms, then all 4.
    assert_eq!(json["taps"].as_array().unwrap().len(), 5 * (2 + 4));
    let names: Vec<String> = contents(&scratch.out()).into_keys().collect();
    assert!(
        ["config.json", "halfbyte_transform.json", "model.safetensors", "tokenizer.json"]
            .iter()
            .all(|n| names.contains(&n.to_string())),
        "{names:?}"
    );
    run(["inspect", scratch.out().to_str().unwrap()]).text();
    // The same command finds its own output; another does not touch it.
    assert_eq!(
        finish(&mut transform(&scratch, "os-plus:steps=10,smooth-quant:taps=all")).json()["was_finished"],
        true
    );
    finish(&mut transform(&scratch, "awq")).refused(&["exists and is not the output of this run"]);
}

#[test]
fn rotations_need_no_text() {
    let scratch = Scratch::new();
    let mut command = halfbyte();
    command.arg("transform").arg(scratch.model()).args(["--with", "rotate,hadamard-heads", "--json"]);
    let json = finish(command.arg("--out").arg(scratch.out())).json();
    // 5 blocks, and what is outside of them.
    assert_eq!(json["taps"].as_array().unwrap().len(), 2 * 5 + 1);
    let config = fs::read(scratch.out().join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    run(["inspect", scratch.out().to_str().unwrap()]).text();
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_written() {
    let scratch = Scratch::new();
    let ran = finish(&mut transform(&scratch, "smoothquant"));
    assert!(ran.code == Some(2) && ran.stderr.contains("smooth-quant, os-plus"), "{ran:?}");
    let mut command = transform(&scratch, "pow2");
    finish(command.args(["--for", "nvfp4-w4a4"])).refused(&["down_proj", "172 columns"]);
    finish(transform(&scratch, "awq").args(["--memory-limit", "1GiB"])).refused(&["--memory-limit"]);
    assert!(!scratch.out().exists() && !scratch.path("out.partial").exists());
}

#[test]
fn a_recipe_with_transforms_says_what_they_did() {
    let scratch = Scratch::new();
    let recipe = scratch.write(
        "mine.toml",
        "weight_bits = 8\nactivation_bits = 8\nmethod = \"minmax-int\"\ntransforms = [\"smooth-quant\"]\n",
    );
    finish(&mut scratch.quantize(recipe.to_str().unwrap(), 2)).json();
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(scratch.out().join("report.json")).unwrap()).unwrap();
    assert_eq!(report["transforms"].as_array().unwrap().len(), 5 * 2);
    let first = contents(&scratch.out());
    fs::remove_dir_all(scratch.out()).unwrap();
    finish(scratch.quantize(recipe.to_str().unwrap(), 2).args(["--threads", "1"])).json();
    assert_same(&first, &contents(&scratch.out()), "with one thread");
    let wrong = scratch.write("wrong.toml", "transforms = [\"smooth-quant:beta=1\"]\n");
    finish(&mut scratch.quantize(wrong.to_str().unwrap(), 2))
        .refused(&["wrong.toml", "no setting \"beta=1\""]);
}
