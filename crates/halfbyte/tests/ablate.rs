//! `ablate` from the outside: recipes beside each other, seeds, going on.
#![allow(clippy::unwrap_used)]

mod util;

use serde_json::Value;
use std::fs;
use std::process::Command;
use util::*;

fn ablate(scratch: &Scratch, recipes: &str) -> Command {
    let mut command = halfbyte();
    command.arg("ablate").arg(scratch.model()).args(["--recipes", recipes, "--calibration"]).arg(text());
    command.args(["--calibration-windows", "2", "--calibration-window", "64", "--perplexity"]).arg(text());
    command.args([
        "--window",
        "64",
        "--windows",
        "4",
        "--skip-tokens",
        "2000",
        "--keep",
        "lm_head,embedding",
    ]);
    command.arg("--out").arg(scratch.path("ablation"));
    command
}

#[test]
fn recipes_are_laid_beside_each_other_and_a_second_run_does_what_is_new() {
    let scratch = Scratch::new();
    let first = finish(ablate(&scratch, "minmax-int-w4a4").arg("--json")).json();
    let both = finish(ablate(&scratch, "minmax-int-w4a4,fpq-w4a4").arg("--json")).json();
    let run = |value: &Value, i: usize| value["recipes"][i]["runs"][0].clone();
    assert_eq!(run(&both, 0), run(&first, 0), "what was done, time included, is as it was");
    let perplexity = |run: &Value| run["perplexity"].as_f64().unwrap();
    let (plain, better) = (perplexity(&run(&both, 0)), perplexity(&run(&both, 1)));
    let original = perplexity(&both["original"]);
    assert!(original < better && better < plain, "{original} {better} {plain}");

    let out = scratch.path("ablation");
    let json: Value = serde_json::from_slice(&fs::read(out.join("ablation.json")).unwrap()).unwrap();
    assert_eq!(json, both);
    let page = fs::read_to_string(out.join("ablation.md")).unwrap();
    let closed = format!("{:.0} %", 100.0 * (plain - better) / (plain - original));
    assert!(page.contains(&closed) && page.contains("fpq-w4a4"), "no {closed} in {page}");
    assert!(fs::read_to_string(out.join("ablation.html")).unwrap().contains("<svg"));
    // A folder of the ablation is one like any other.
    finish(halfbyte().arg("inspect").arg(out.join("fpq-w4a4"))).text();
}

#[test]
fn seeds_calibrate_on_other_windows() {
    let scratch = Scratch::new();
    let found = finish(ablate(&scratch, "fpq-w4a4").args(["--seeds", "2", "--json"])).json();
    let runs = found["recipes"][0]["runs"].as_array().unwrap();
    assert_eq!((runs.len(), runs[1]["seed"].as_u64()), (2, Some(1)));
    assert_ne!(runs[0]["perplexity"], runs[1]["perplexity"]);
    let page = fs::read_to_string(scratch.path("ablation/ablation.md")).unwrap();
    assert!(page.contains(" ± "), "{page}");
    // Alone, a recipe has its own.
    let recipe = scratch.write("seventh.toml", "seed = 7\n");
    let found = finish(ablate(&scratch, recipe.to_str().unwrap()).arg("--json")).json();
    assert_eq!(found["recipes"][0]["runs"][0]["seed"], 7);
}

#[test]
fn what_cannot_be_compared_is_refused_before_anything_is_done() {
    let scratch = Scratch::new();
    finish(&mut ablate(&scratch, "fpq-w4a4,nonsense")).refused(&["nonsense"]);
    finish(&mut ablate(&scratch, "fpq-w4a4,fpq-w4a4")).refused(&["two recipes are named fpq-w4a4"]);
    let mut nothing = halfbyte();
    nothing.arg("ablate").arg(scratch.model()).args(["--recipes", "fpq-w4a4", "--out"]);
    assert_eq!(finish(nothing.arg(scratch.path("ablation"))).code, Some(2), "nothing to measure");

    // The last recipe or what is measured would fail after the first is done.
    finish(&mut ablate(&scratch, "fpq-w4a4,mxfp4-w4a4")).refused(&["mxfp4-w4a4", "down_proj"]);
    finish(ablate(&scratch, "fpq-w4a4").args(["--memory-limit", "1MiB"])).refused(&["--memory-limit"]);
    let instead = |option: &str, value: &str, needles: &[&str]| {
        let command = ablate(&scratch, "fpq-w4a4");
        let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let at = args.iter().position(|a| a == option).unwrap();
        let mut other = halfbyte();
        other.args(&args[..=at]).arg(value).args(&args[at + 2..]);
        finish(&mut other).refused(needles);
    };
    instead("--perplexity", "missing.txt", &["missing.txt"]);
    instead("--window", "100000", &["--window 100000"]);
    instead("--skip-tokens", "100000000", &["after skipping 100000000"]);
    instead("--calibration", "missing.txt", &["missing.txt"]);
    finish(ablate(&scratch, "fpq-w4a4").args(["--seeds", "1000"])).refused(&["too short for --seeds 1000"]);
    let tasks = ["--tasks", "nonsense", "--task-dir", "."];
    finish(ablate(&scratch, "fpq-w4a4").args(tasks)).refused(&["nonsense"]);
    assert!(!scratch.path("ablation").exists());
    fs::create_dir_all(scratch.path("ablation/minmax-fp-w4a4")).unwrap();
    finish(&mut ablate(&scratch, "fpq-w4a4,minmax-fp-w4a4"))
        .refused(&["recipe minmax-fp-w4a4", "minmax-fp-w4a4 exists and is not the output of this run"]);
    assert!(!scratch.path("ablation/fpq-w4a4").exists());
}
