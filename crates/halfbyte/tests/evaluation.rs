//! `eval` and `compare` from the outside: tasks, divergence, limits, going on after a stop.
#![allow(clippy::unwrap_used)]

mod util;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use util::*;

/// Rows in the form of PIQA that a model of children's stories can answer better than by chance; every eighth is labelled
/// wrongly, so that no model gets all of them.
fn piqa(rows: usize) -> String {
    let good =
        ["the dog ran to the park", "she was very happy", "they played with the ball", "he went to his mom"];
    let bad =
        ["the park ran dog to the", "happy she very was", "ball the with played they", "mom his to went he"];
    let row = |i: usize| {
        let label = usize::from(i.is_multiple_of(3));
        let mut answers = [good[i % 4], bad[i % 4]];
        answers.rotate_right(label);
        let said = if i % 8 == 7 { 1 - label } else { label };
        json!({"goal": format!("Once upon a time, {i}"), "sol1": answers[0], "sol2": answers[1], "label": said})
    };
    (0..rows).map(|i| row(i).to_string() + "\n").collect()
}

/// A folder with some tasks.
fn tasks(scratch: &Scratch) -> std::path::PathBuf {
    let dir = scratch.path("tasks");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("piqa.jsonl"), piqa(40)).unwrap();
    let own = r#"{"context": "Lily had a red", "choices": ["ball", "of of"], "answer": "ball"}
{"question": "Who barks?", "choices": ["the dog", "a a a a", "on it up"], "answer": 0}
"#;
    fs::write(dir.join("mine.jsonl"), own).unwrap();
    dir
}

fn eval(model: &Path, tasks: &Path, names: &str) -> Command {
    let mut command = halfbyte();
    command.arg("eval").arg(model).args(["--tasks", names, "--no-cache", "--json", "--task-dir"]).arg(tasks);
    command
}

#[test]
fn tasks_are_asked_and_every_row_can_be_seen() {
    let scratch = Scratch::new();
    let (dir, scores) = (tasks(&scratch), scratch.path("scores.json"));
    let value = finish(eval(&scratch.model(), &dir, "piqa,mine").arg("--save-scores").arg(&scores)).json();
    let piqa = &value["tasks"]["piqa"];
    assert_eq!((piqa["n"].as_u64(), value["tasks"]["mine"]["n"].as_u64()), (Some(40), Some(2)));
    assert!(piqa["acc"].as_f64().unwrap() > 0.8, "{piqa}");
    for key in ["acc_norm", "stderr", "stderr_norm"] {
        assert!(piqa[key].is_f64(), "{key}: {piqa}");
    }
    assert!(value.get("perplexity").is_none());

    let scores: Value = serde_json::from_slice(&fs::read(scores).unwrap()).unwrap();
    let rows = scores["tasks"]["piqa"]["rows"].as_array().unwrap();
    let right = rows.iter().filter(|r| r["choice"] == r["gold"]).count();
    assert_eq!(right as f64 / 40.0, piqa["acc"].as_f64().unwrap());
    assert_eq!(rows[4]["log_probabilities"].as_array().unwrap().len(), 2);

    // Fewer rows are the first of them, or some of them, with the same scores.
    let some = |options: &[&str]| -> Vec<Value> {
        let file = scratch.path("some.json");
        let mut command = eval(&scratch.model(), &dir, "piqa");
        finish(command.args(options).args(["--threads", "1", "--save-scores"]).arg(&file)).json();
        let scores: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        scores["tasks"]["piqa"]["rows"].as_array().unwrap().clone()
    };
    assert_eq!(some(&["--limit", "7"]), rows[..7]);
    let drawn = some(&["--limit", "7", "--seed", "5"]);
    assert!(drawn.len() == 7 && drawn.iter().all(|r| rows.contains(r)) && drawn != rows[..7]);

    let mut command = halfbyte();
    command
        .arg("eval")
        .arg(scratch.model())
        .args(["--tasks", "piqa,mine", "--no-cache", "--task-dir"])
        .arg(&dir);
    let table = finish(&mut command).text();
    assert!(table.contains("piqa") && table.contains(" ± ") && table.contains("0.4.13"), "{table}");
}

#[test]
fn wrong_tasks_are_refused_by_file_and_line() {
    let scratch = Scratch::new();
    let dir = tasks(&scratch);
    let with = |text: &str| {
        fs::write(dir.join("piqa.jsonl"), text).unwrap();
        finish(&mut eval(&scratch.model(), &dir, "piqa"))
    };
    let good = piqa(2);
    with(&format!("{good}{{\"goal\": \"a\", \"sol1\": \"b\", \"label\": 0}}"))
        .refused(&["piqa.jsonl, line 3", "sol2"]);
    with(&good.replace("\"label\":1", "\"label\":2")).refused(&["piqa.jsonl, line 1", "label"]);
    with(&format!("{good}nonsense")).refused(&["piqa.jsonl, line 3", "JSON"]);
    with("").refused(&["piqa", "no rows"]);
    finish(&mut eval(&scratch.model(), &dir, "hellaswag")).refused(&["hellaswag", "--task-dir"]);
    finish(&mut eval(&scratch.model(), &dir, "mine,mine")).refused(&["mine", "twice"]);
    let long = json!({"context": "a", "choices": ["b", "once ".repeat(600)], "answer": 0});
    fs::write(dir.join("mine.jsonl"), long.to_string()).unwrap();
    finish(&mut eval(&scratch.model(), &dir, "mine")).refused(&["mine.jsonl, line 1", "context of 512"]);
    for args in [&["--tasks", "piqa"][..], &[], &["--perplexity", "x", "--limit", "3"], &["--reference", "m"]]
    {
        assert_eq!(finish(halfbyte().arg("eval").arg(scratch.model()).args(args)).code, Some(2), "{args:?}");
    }
}

/// `compare` of the model and a quantization of it.
fn compare(scratch: &Scratch, quantized: &Path) -> Command {
    let mut command = halfbyte();
    command.arg("compare").arg(scratch.model()).arg(quantized).arg(quantized);
    command.arg("--perplexity").arg(text()).args(["--window", "128", "--windows", "6", "--stride", "64"]);
    command.args(["--tasks", "piqa,mine", "--no-cache", "--task-dir"]).arg(tasks(scratch));
    command
}

#[test]
fn a_comparison_has_everything_beside_the_reference() {
    let scratch = Scratch::new();
    let quantized = scratch.quantized();
    let value = finish(compare(&scratch, &quantized).arg("--json")).json();
    let models = value["models"].as_array().unwrap();
    assert_eq!(models.len(), 3);
    let (full, q) = (&models[0], &models[1]);
    assert_eq!(models[1], models[2]);
    assert_eq!((&full["quantized"], &q["quantized"]), (&Value::Null, &"fpq-w4a4".into()));
    assert!(full["size_bytes"].as_u64() > q["size_bytes"].as_u64());
    assert_eq!(full["bits_per_weight"], 32.0);
    assert!((4.0..6.0).contains(&q["bits_per_weight"].as_f64().unwrap()));
    assert!(full.get("divergence").is_none() && full["tasks"]["piqa"].get("paired").is_none());
    let d = &q["divergence"];
    assert_eq!((&d["tokens"], &full["perplexity"]["tokens"]), (&json!(127 + 5 * 64), &json!(127 + 5 * 64)));
    let at = |key: &str| d[key].as_f64().unwrap();
    assert!(
        0.0 < at("median") && at("median") < at("mean") && at("mean") < at("p99") && at("p99") < at("max")
    );
    assert!((0.3..1.0).contains(&at("same_top1")));
    let task = &q["tasks"]["piqa"];
    let difference = task["acc"].as_f64().unwrap() - full["tasks"]["piqa"]["acc"].as_f64().unwrap();
    let paired = &task["paired"];
    assert!((paired["difference"].as_f64().unwrap() - difference).abs() < 1e-12);
    assert!(paired["interval"][0].as_f64() <= paired["difference"].as_f64());
    assert!((0.0..=1.0).contains(&paired["p_value"].as_f64().unwrap()));
    assert_eq!(q["layers"].as_array().unwrap().len(), 37);
    assert!(q["layers"][0]["relative_error"].is_f64());
    assert_eq!(value["missed"], json!([]));

    // The same as `eval` says alone.
    let mut command = halfbyte();
    command
        .arg("eval")
        .arg(&quantized)
        .arg("--reference")
        .arg(scratch.model())
        .arg("--perplexity")
        .arg(text());
    command.args(["--window", "128", "--windows", "6", "--stride", "64", "--no-cache", "--json"]);
    let alone = finish(&mut command).json();
    assert_eq!(&alone["divergence"], d);
    assert_eq!(alone["perplexity"]["value"], q["perplexity"]["value"]);
    assert_eq!(alone["reference"]["perplexity"], full["perplexity"]);

    let table = finish(&mut compare(&scratch, &quantized)).text();
    for needle in ["fpq-w4a4", "KLD", "McNemar", "down_proj", "64 tokens apart"] {
        assert!(table.contains(needle), "no {needle} in {table}");
    }
}

#[test]
fn a_missed_limit_is_exit_code_3() {
    let scratch = Scratch::new();
    let quantized = scratch.quantized();
    let with = |options: &[&str]| finish(compare(&scratch, &quantized).arg("--json").args(options));
    with(&["--max-kld", "50", "--min-accuracy", "0", "--min-accuracy", "piqa=0"]).json();
    for (options, needle) in [
        (&["--max-kld", "0.000001"][..], "--max-kld"),
        (&["--min-accuracy", "1"], "all that is measured"),
        (&["--max-kld", "9", "--min-accuracy", "piqa=1"], "in piqa"),
    ] {
        let ran = with(options);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.stderr.starts_with("missed: ") && ran.stderr.contains(needle), "{ran:?}");
        let value: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(value["missed"].as_array().unwrap().len(), 2, "both are too bad: {value:#}");
    }
    with(&["--min-accuracy", "boolq=0.5"]).refused(&["--min-accuracy boolq", "none of what is measured"]);
    assert_eq!(with(&["--min-accuracy", "piqa=50"]).code, Some(2));
    assert_eq!(with(&["--max-kld", "-1"]).code, Some(2));
}

#[test]
fn models_that_cannot_be_compared_are_refused() {
    let scratch = Scratch::new();
    let other = Scratch::new();
    let path = other.model().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": false});
    fs::write(&path, tokenizer.to_string()).unwrap();
    let mut command = halfbyte();
    command.arg("compare").arg(scratch.model()).arg(other.model()).arg("--perplexity").arg(text());
    assert!(
        finish(command.args(["--window", "64", "--no-cache"]))
            .refused(&["different tokens"])
            .contains("hint: ")
    );
}

#[test]
fn a_stopped_evaluation_goes_on_and_ends_in_the_same_scores() {
    let scratch = Scratch::new();
    let (dir, cache) = (tasks(&scratch), scratch.path("cache"));
    fs::write(dir.join("piqa.jsonl"), piqa(800)).unwrap();
    let command = |scores: &str| {
        let mut command = halfbyte();
        command.arg("eval").arg(scratch.model()).args(["--tasks", "piqa", "--json", "--task-dir"]).arg(&dir);
        command.arg("--cache").arg(&cache).arg("--save-scores").arg(scratch.path(scores));
        command
    };
    // Killed as soon as the first batch is safe.
    let mut child = command("never.json").stdout(std::process::Stdio::null()).spawn().unwrap();
    let kept = || {
        fs::read_dir(&cache)
            .is_ok_and(|d| d.flatten().any(|e| e.path().extension().is_some_and(|x| x == "json")))
    };
    assert!(wait_until(&mut child, kept));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!scratch.path("never.json").exists());
    let resumed = finish(&mut command("resumed.json")).json();
    let mut fresh = eval(&scratch.model(), &dir, "piqa");
    let fresh = finish(fresh.arg("--save-scores").arg(scratch.path("fresh.json"))).json();
    assert_eq!(resumed["tasks"], fresh["tasks"]);
    assert_eq!(fresh["from_cache"], 0);
    assert!((1..800).contains(&resumed["from_cache"].as_u64().unwrap()), "{}", resumed["from_cache"]);
    assert_eq!(
        fs::read(scratch.path("resumed.json")).unwrap(),
        fs::read(scratch.path("fresh.json")).unwrap()
    );

    // A folder that cannot be written is refused before anything is computed.
    let file = scratch.write("file", "");
    let mut command = halfbyte();
    command
        .arg("eval")
        .arg(scratch.model())
        .args(["--tasks", "piqa", "--task-dir"])
        .arg(&dir)
        .arg("--cache")
        .arg(&file);
    finish(&mut command).refused(&["--cache", "file"]);
}
