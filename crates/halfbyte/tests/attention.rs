//! Quantized attention and KV cache from the command line: options, folder, report, refusals.
#![allow(clippy::unwrap_used)]

mod util;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use util::*;

fn inspect(dir: &Path) -> Value {
    finish(halfbyte().arg("inspect").arg(dir).arg("--json")).json()
}

fn perplexity(dir: &Path) -> f64 {
    let mut command = halfbyte();
    command.arg("eval").arg(dir).arg("--perplexity").arg(text());
    let value = finish(command.args(["--window", "64", "--windows", "4", "--no-cache", "--json"])).json();
    value["perplexity"]["value"].as_f64().unwrap()
}

#[test]
fn attention_bits_are_in_folder_report_and_evaluation() {
    let scratch = Scratch::new();
    finish(scratch.quantize("fpq-w8a8", 4).args(["--attention-bits", "4", "--keep", "layers.0."])).json();
    let out = scratch.out();
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    let found = &config["quantization_config"];
    assert_eq!((&found["version"], &found["recipe"]["attention_bits"]), (&json!(2), &json!(4)));
    let attention = found["attention"].as_object().unwrap();
    // Of five blocks the first is kept.
    assert_eq!(attention.len(), 4);
    let scheme = |operand: &str| attention["model.layers.1.self_attn"][operand].clone();
    assert_eq!(scheme("query")["shifts"], json!(true));
    assert!(scheme("probability")["element"].as_str().unwrap().starts_with("ue"));

    let value = inspect(&out);
    let rows = value["attention"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["name"]), (4, &json!("model.layers.1.self_attn")));
    assert!(rows[0]["relative_error"].as_f64().unwrap() > 0.0 && rows[0]["query"]["bias"].is_f64());
    let table = finish(halfbyte().arg("inspect").arg(&out)).text();
    assert!(table.contains("probability") && table.contains("model.layers.4.self_attn "), "{table}");
    let page = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(page.contains("| Attention's own products | 4 bits |"), "{page}");
    // A row of the table for each.
    assert_eq!(page.lines().filter(|l| l.contains("/channel/dynamic")).count(), 4, "{page}");

    // The report is not needed to compute or to tell the formats.
    let with = perplexity(&out);
    fs::remove_file(out.join("report.json")).unwrap();
    let told = inspect(&out)["attention"].clone();
    assert!(told[0].get("relative_error").is_none() && told[0]["query"] == rows[0]["query"]);
    assert_eq!(perplexity(&out), with);

    fs::remove_dir_all(&out).unwrap();
    finish(scratch.quantize("fpq-w8a8", 4).args(["--keep", "layers.0."])).json();
    let without = perplexity(&out);
    assert!(with != without && (with / without).ln().abs() < 0.5, "{with} {without}");
}

#[test]
fn a_cache_is_quantized_by_name_or_scheme() {
    let scratch = Scratch::new();
    let full = perplexity(&scratch.model());
    let int8 = ["--recipe", "int8-w8a16", "--kv-cache"];
    for (cache, scheme) in
        [("fp8", "e4m3fn/channel/dynamic"), ("int8/channel/dynamic", "int8/channel/dynamic")]
    {
        let out = scratch.path(scheme.split('/').next().unwrap());
        let mut command = halfbyte();
        command.arg("quantize").arg(scratch.model()).args(int8).arg(cache).arg("--out").arg(&out);
        finish(&mut command).text();
        let value = inspect(&out);
        let row = &value["attention"][0];
        assert!(row["query"].is_null() && row["key"] == row["value"], "{row}");
        let page = fs::read_to_string(out.join("report.md")).unwrap();
        assert!(page.contains(&format!("| KV cache | {scheme} |")), "{page}");
        assert!((perplexity(&out) / full).ln().abs() < 0.05);
    }
}

#[test]
fn what_cannot_be_is_refused_by_option() {
    let scratch = Scratch::new();
    let refused = |command: &mut std::process::Command, needles: &[&str]| finish(command).refused(needles);
    // Heads of 8 channels.
    refused(scratch.quantize("fpq-w4a4", 1).args(["--kv-cache", "fp4"]), &["kv_scheme", "self_attn", "16"]);
    refused(
        scratch.quantize("nvfp4-w4a16", 1).args(["--attention-bits", "4"]),
        &["attention_bits", "kv_scheme"],
    );
    let both = ["--attention-bits", "8", "--kv-cache", "fp8"];
    refused(scratch.quantize("fpq-w4a4", 1).args(both), &["kv_scheme", "attention_bits"]);
    let wrong = finish(scratch.quantize("fpq-w4a4", 1).args(["--kv-cache", "fp5"]));
    assert!(wrong.code == Some(2) && wrong.stderr.contains("fp8 or fp4"), "{wrong:?}");
    assert!(!scratch.out().exists());

    let cached = ["--recipe", "int8-w8a16", "--kv-cache", "fp8"];
    let plan = || {
        let mut command = halfbyte();
        command.arg("plan").arg(scratch.model()).args(cached);
        command
    };
    assert!(finish(&mut plan()).text().contains("the products of 5 blocks"));
    let needles = ["vllm-int cannot hold", "--kv-cache", "--kv-cache-dtype"];
    refused(plan().args(["--to", "vllm-int"]), &needles);
    let mut command = halfbyte();
    finish(command.arg("quantize").arg(scratch.model()).args(cached).arg("--out").arg(scratch.out())).text();
    let mut command = halfbyte();
    let export = command.arg("export").arg(scratch.out()).arg("--out").arg(scratch.path("exported"));
    refused(export.args(["--to", "vllm-int"]), &needles);
    assert!(!scratch.path("exported").exists());
}
