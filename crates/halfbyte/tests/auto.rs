//! `quantize --recipe auto` from the outside: it tries, chooses what is best on data that it held out, and goes on.
#![allow(clippy::unwrap_used)]

mod util;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use util::*;

fn auto(scratch: &Scratch, out: &Path, options: &[&str]) -> Command {
    let mut command = halfbyte();
    command.arg("quantize").arg(scratch.model()).args(["--recipe", "auto", "--calibration"]).arg(text());
    command.args(["--calibration-window", "64", "--calibration-windows", "8", "--json"]);
    command.args(options).arg("--out").arg(out);
    command
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_best_of_what_was_tried_quantizes_the_model_also_after_a_kill() {
    let scratch = Scratch::new();
    let found = finish(&mut auto(&scratch, &scratch.out(), &["--target", "fpq"])).json();
    let tried = found["auto"]["tried"].as_array().unwrap();
    let error = |t: &Value| t["error"].as_f64().unwrap();
    assert_eq!(tried.len(), 6);
    assert_eq!(found["auto"]["blocks"], json!([0, 2, 4]));
    assert_eq!(found["auto"]["held_out_rows"], 2 * 64);
    let least = tried.iter().map(error).fold(f64::INFINITY, f64::min);
    let chosen = tried.iter().find(|t| t["recipe"] == found["recipe"]).unwrap();
    assert!(error(chosen) <= 1.02 * least, "{found}");
    let published = tried.iter().find(|t| t["recipe"] == "fpq-published-w4a4").unwrap();
    assert!(error(chosen) < error(published), "{found}");
    assert_eq!(read(&scratch.out().join("report.json"))["recipe"]["name"], found["recipe"]);
    // The text's windows, and as many drawn ones as the recipe has by itself, whatever others have.
    assert_eq!(found["calibration_windows"], 8 + 2);

    // Stopped after two trials, another run does not try these again, and ends in the same bytes.
    let partial = scratch.path("again.partial");
    fs::create_dir(&partial).unwrap();
    let mut kept = found["auto"].clone();
    kept["tried"].as_array_mut().unwrap().truncate(2);
    (kept["chosen"], kept["reason"]) = (Value::Null, "".into());
    fs::write(partial.join("auto.json"), kept.to_string()).unwrap();
    let again = finish(&mut auto(&scratch, &scratch.path("again"), &["--target", "fpq"])).json();
    assert_eq!(again["auto"]["tried"][1]["seconds"], tried[1]["seconds"]);
    assert_same(&contents(&scratch.out()), &contents(&scratch.path("again")), "after a kill");

    let same = finish(&mut auto(&scratch, &scratch.out(), &["--target", "fpq"])).json();
    assert_eq!(same["was_finished"], true);
}

#[test]
fn another_output_is_refused_before_anything_is_tried() {
    let scratch = Scratch::new();
    let other = |options: &[&str], needle: &str| {
        finish(&mut auto(&scratch, &scratch.out(), options)).refused(&[needle]);
        assert!(!scratch.path("out.partial/auto.json").exists());
    };
    finish(&mut scratch.quantize("fpq-w4a4", 1)).json();
    let before = contents(&scratch.out());
    other(&["--target", "fpq"], "is not the output of this run");
    assert_same(&before, &contents(&scratch.out()), "left alone");

    fs::remove_dir_all(scratch.out()).unwrap();
    fs::create_dir(scratch.path("out.partial")).unwrap();
    scratch.write("out.partial/journal.json", "{}");
    other(&["--target", "fpq"], "holds an unfinished run");
}

#[test]
fn a_budget_that_is_used_up_leaves_candidates_out() {
    let scratch = Scratch::new();
    let found = finish(&mut auto(&scratch, &scratch.out(), &["--target", "fpq", "--budget", "0s"])).json();
    assert_eq!(found["auto"]["tried"].as_array().unwrap().len(), 1);
    assert_eq!(found["auto"]["left_out"].as_array().unwrap().len(), 5);
    assert_eq!(found["recipe"], "fpq-w4a4");
}

#[test]
fn what_cannot_be_tried_is_refused_before_anything_is_written() {
    let scratch = Scratch::new();
    let refused = |options: &[&str], needles: &[&str]| {
        finish(&mut auto(&scratch, &scratch.out(), options)).refused(needles);
        assert!(!scratch.path("out.partial").exists() && !scratch.out().exists());
    };
    refused(&[], &["--target"]);
    // 172 columns.
    refused(&["--target", "mxfp4"], &["down_proj", "32"]);
    refused(&["--target", "fpq", "--memory-limit", "1MiB"], &["--memory-limit"]);
    let plain = finish(
        halfbyte()
            .arg("quantize")
            .arg(scratch.model())
            .args(["--recipe", "auto", "--target", "fpq", "--out"])
            .arg(scratch.out()),
    );
    plain.refused(&["auto needs data"]);
    let plan = finish(halfbyte().arg("plan").arg(scratch.model()).args(["--recipe", "auto"]));
    plan.refused(&["auto is for `quantize`"]);
}
