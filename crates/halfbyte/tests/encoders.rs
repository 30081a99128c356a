//! Models that classify texts and images, from the outside: calibration, quantizing, accuracy, refusals.
#![allow(clippy::unwrap_used)]

mod util;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use util::*;

/// A file or folder of the assets; `None`, and a word about it, where they are not at hand.
fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("HALFBYTE_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    println!("SKIPPED: {path} is not under HALFBYTE_ASSETS ({})", root.display());
    None
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden").join(name)
}

fn eval(model: &Path, option: &str, data: &Path) -> Command {
    let mut command = halfbyte();
    command.arg("eval").arg(model).arg(option).arg(data).args(["--no-cache", "--json"]);
    command
}

fn quantize(model: &Path, recipe: &str, data: &Path, out: &Path) -> Command {
    let mut command = halfbyte();
    command.arg("quantize").arg(model).args(["--recipe", recipe, "--json", "--calibration"]).arg(data);
    command.arg("--out").arg(out);
    command
}

/// Quantizes, measures and compares `model` on the first rows of `data`; gives accuracies of the original and the copy.
fn whole_way(model: &Path, calibration: &Path, option: &str, data: &Path, companions: &[&str]) -> [f64; 2] {
    let scratch = tempfile::tempdir().unwrap();
    let (out, scores) = (scratch.path().join("out"), scratch.path().join("scores.json"));
    let made = finish(quantize(model, "fpq-w8a8", calibration, &out).args(["--calibration-samples", "16"]));
    assert_eq!(made.json()["calibration_windows"], 16);
    for name in companions {
        assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(model.join(name)).unwrap(), "{name}");
    }

    let limited = |command: &mut Command| finish(command.args(["--limit", "40"])).json();
    let value = limited(eval(&out, option, data).arg("--save-scores").arg(&scores));
    let own = &value["classification"];
    assert_eq!((&own["n"], &value["quantized"]), (&json!(40), &json!("fpq-w8a8")));
    let scores: Value = serde_json::from_slice(&fs::read(scores).unwrap()).unwrap();
    let rows = scores["classification"]["rows"].as_array().unwrap();
    let right = rows.iter().filter(|r| r["gold"] == r["answer"]).count();
    assert_eq!((rows.len(), own["acc"].as_f64()), (40, Some(right as f64 / 40.0)));

    let mut command = halfbyte();
    command.arg("compare").arg(model).arg(&out).arg(option).arg(data).args(["--no-cache", "--json"]);
    let compared = limited(&mut command);
    let models = compared["models"].as_array().unwrap();
    let paired = &models[1]["classification"]["paired"];
    let acc = [0, 1].map(|i: usize| models[i]["classification"]["acc"].as_f64().unwrap());
    assert_eq!(acc[1], own["acc"].as_f64().unwrap());
    assert!((paired["difference"].as_f64().unwrap() - (acc[1] - acc[0])).abs() < 1e-12, "{paired}");
    assert!(paired["p_value"].is_f64() && models[0]["classification"].get("paired").is_none());
    let text =
        finish(halfbyte().arg("eval").arg(model).arg(option).arg(data).args(["--no-cache", "--limit", "3"]));
    let text = text.text();
    assert!(text.contains("accuracy") && text.contains("the first 3"), "{text}");
    acc
}

#[test]
fn a_bert_keeps_its_accuracy_at_eight_bits() {
    let (Some(model), Some(data)) = (shared("models/MiniLM-L6-sst2"), shared("data/tasks/sst2.jsonl")) else {
        return;
    };
    let Some(calibration) = shared("data/calibration/sst2_train_512.tsv") else { return };
    let companions = ["tokenizer.json", "tokenizer_config.json"];
    let [full, quantized] = whole_way(&model, &calibration, "--classify", &data, &companions);
    // 83.8 % on all rows, says the model's source.
    assert!((0.75..=0.95).contains(&full) && (full - quantized).abs() <= 0.05, "{full} {quantized}");
}

/// Factors that are folded into no tensor of the original are of no other engine's files.
#[test]
fn what_a_transform_adds_to_a_bert_is_exported_nowhere() {
    let Some(model) = shared("models/MiniLM-L6-sst2") else { return };
    let Some(calibration) = shared("data/calibration/sst2_train_512.tsv") else { return };
    let scratch = Scratch::new();
    let recipe = finish(halfbyte().args(["recipes", "int8-w8a8"])).text();
    let recipe = format!("transforms = [\"smooth-quant:migrate=true\"]\n{recipe}");
    let recipe = recipe.replacen("keep = [\"lm_head\"]", "keep = [\"lm_head\", \"embedding\"]", 1);
    let recipe = scratch.write("smooth.toml", recipe);
    let mut command = quantize(&model, recipe.to_str().unwrap(), &calibration, &scratch.out());
    finish(command.args(["--calibration-samples", "8"])).json();
    let mut export = halfbyte();
    export
        .arg("export")
        .arg(scratch.out())
        .args(["--to", "vllm-int"])
        .arg("--out")
        .arg(scratch.path("exported"));
    finish(&mut export).refused(&["vllm-int", "query.migration", "without migrate=true"]);
    assert!(!scratch.path("exported").exists());
}

#[test]
fn a_vit_keeps_its_accuracy_at_eight_bits() {
    let (Some(model), Some(data)) = (shared("models/ViT-S14-cifar10"), shared("data/cifar10/test")) else {
        return;
    };
    let Some(calibration) = shared("data/cifar10/calibration") else { return };
    let companions = ["preprocessor_config.json"];
    let [full, quantized] = whole_way(&model, &calibration, "--images", &data, &companions);
    // 64.8 % on all 500 images, says the model's source; classes are in order, so the first 40 are airplanes.
    assert!((0.5..=0.8).contains(&full) && (full - quantized).abs() <= 0.05, "{full} {quantized}");
}

#[test]
fn data_of_the_wrong_kind_is_refused_by_model_and_option() {
    let scratch = Scratch::new();
    let texts = scratch.write("texts.tsv", "sentence\tlabel\na\t1\n");
    let images = scratch.path("images");
    fs::create_dir(&images).unwrap();
    let (bert, vit, story) = (golden("bert"), golden("vit"), scratch.model());

    let refused = |model: &Path, option: &str, data: &Path, needles: &[&str]| {
        finish(&mut eval(model, option, data)).refused(needles)
    };
    refused(&bert, "--images", &images, &["--images", "image classification", "golden/bert is a bert model"]);
    refused(&vit, "--classify", &texts, &["--classify", "text classification", "golden/vit is a vit model"]);
    let hint = refused(&story, "--classify", &texts, &["text classification", "is a llama model"]);
    assert!(hint.contains("--tasks"), "{hint}");

    let refused = |model: &Path, data: &Path, needles: &[&str]| {
        finish(&mut quantize(model, "fpq-w4a4", data, &scratch.out())).refused(needles)
    };
    refused(&bert, &images, &["--calibration", "is a folder", "bert model", "calibrated on texts"]);
    refused(&vit, &texts, &["--calibration", "is a file", "vit model", "calibrated on images"]);
    refused(&story, &images, &["is a folder", "llama model", "calibrated on a text"]);
    let mut windows = quantize(&vit, "fpq-w4a4", &images, &scratch.out());
    finish(windows.args(["--calibration-window", "8"])).refused(&["--calibration-window 8", "golden/vit"]);
    assert!(!scratch.out().exists());

    let wrong = |args: &[&str]| {
        let ran = finish(halfbyte().arg("eval").arg(&bert).args(args));
        assert_eq!(ran.code, Some(2), "{ran:?}");
    };
    wrong(&["--limit", "3"]);
    wrong(&["--glue", "mrpc"]);
    wrong(&["--classify", "x", "--glue", "nothing"]);
    wrong(&["--classify", "x", "--images", "y"]);
}

#[test]
fn plans_say_what_calibration_takes() {
    let plan = |model: &Path| {
        let mut command = halfbyte();
        command.arg("plan").arg(model).args(["--recipe", "fpq-w4a4", "--calibration-samples", "10"]);
        command
    };
    let text = finish(&mut plan(&golden("vit"))).text();
    assert!(text.contains("10 images of 17 rows each"), "{text}");
    let text = finish(&mut plan(&golden("bert"))).text();
    assert!(text.contains("10 texts, if all have the most of 40 tokens"), "{text}");
}
