//! The report, from a model to the page.
#![allow(clippy::unwrap_used)]

mod util;

use roxmltree::Document;
use serde_json::Value;
use std::fs;
use std::path::Path;
use util::*;

fn report(dir: &Path, options: &[&str]) -> Ran {
    finish(halfbyte().arg("report").arg(dir).args(options))
}

/// The page as XML, without HTML's document type.
#[track_caller]
fn parsed(page: &str) -> Document<'_> {
    Document::parse(page.strip_prefix("<!DOCTYPE html>\n").unwrap()).unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn quantize_ends_with_a_page_and_report_makes_it_again() {
    let scratch = Scratch::new();
    let run = finish(&mut scratch.quantize("fpq-w4a4", 4)).json();
    let page = fs::read_to_string(scratch.path("out/report.html")).unwrap();
    let text = fs::read_to_string(scratch.path("out/report.md")).unwrap();
    assert_eq!(run["report"], scratch.path("out/report.html").to_str().unwrap());

    // Every drawing is there, with the figures of report.json.
    let tree = parsed(&page);
    let titles: Vec<&str> = tree
        .descendants()
        .filter(|n| n.has_tag_name("title") && n.parent().is_some_and(|p| p.tag_name().name() == "svg"))
        .filter_map(|n| n.text())
        .collect();
    for wanted in
        ["Relative output error of every layer", "Input of down_proj in all blocks", "Shifts by place"]
    {
        assert!(titles.contains(&wanted), "{wanted}: {titles:?}");
    }
    assert!(titles.iter().any(|t| t.starts_with("up_proj as E")), "{titles:?}");
    let found = json_of(&scratch.path("out/report.json"));
    let bits = format!("<dd>{:.3}</dd>", found["bits_per_weight"].as_f64().unwrap());
    assert!(page.contains(&bits), "{bits}");
    for layer in found["layers"].as_array().unwrap() {
        let cell = format!("<th scope=\"row\">{}</th>", layer["name"].as_str().unwrap());
        assert!(page.contains(&cell), "{cell}");
    }

    // Made again it is the same; elsewhere, in another form, with another title it is not.
    fs::remove_file(scratch.path("out/report.html")).unwrap();
    let said = report(&scratch.out(), &["--json"]).json();
    assert_eq!((&said["format"], &said["bytes"]), (&"html".into(), &page.len().into()));
    assert_eq!(fs::read_to_string(scratch.path("out/report.html")).unwrap(), page);
    assert_eq!(report(&scratch.out(), &["--format", "md", "--out", "-"]).text(), text);
    let titled = report(&scratch.out(), &["--out", "-", "--title", "Stories <260K>"]).text();
    assert!(titled.contains("<h1>Stories &lt;260K&gt;, quantized with fpq-w4a4</h1>"));
}

#[test]
fn what_was_measured_comes_into_the_report() {
    let scratch = Scratch::new();
    let run = finish(&mut scratch.quantize("fpq-w4a4", 2)).json();
    let run = scratch.write("run.json", run.to_string());
    let eval = |dir: &Path, name: &str| {
        let mut command = halfbyte();
        command.arg("eval").arg(dir).arg("--perplexity").arg(text());
        command.args(["--window", "64", "--windows", "2", "--json"]);
        let value = finish(&mut command).json();
        (value["perplexity"]["value"].as_f64().unwrap(), scratch.write(name, value.to_string()))
    };
    let (full, first) = eval(&scratch.model(), "full.json");
    let (quantized, second) = eval(&scratch.out(), "fp4.json");
    let kld = "{ \"models\": [{ \"model\": \"other\", \"kld\": { \"mean\": 0.25 }, \"unknown\": [] }] }";
    let third = scratch.write("compare.json", kld);
    let mut options = vec!["--run", run.to_str().unwrap()];
    for file in [&first, &second, &third] {
        options.extend(["--evaluation", file.to_str().unwrap()]);
    }
    let facts = scratch.path("facts.json");
    options.extend(["--out", facts.to_str().unwrap()]);
    report(&scratch.out(), &options).text();
    let facts = json_of(&facts);
    let models = facts["evaluations"].as_array().unwrap();
    assert_eq!(models.len(), 3);
    assert_eq!(models[0]["perplexity"]["value"].as_f64(), Some(full));
    assert_eq!(models[1]["perplexity"]["value"].as_f64(), Some(quantized));
    assert_eq!((&models[0]["this_folder"], &models[1]["this_folder"]), (&false.into(), &true.into()));
    assert_eq!(models[1]["bytes"], facts["output_bytes"]);
    assert!(facts["run"]["seconds"].as_f64().unwrap() > 0.0);

    let last = options.len() - 2;
    let page = report(&scratch.out(), &[&options[..last], &["--out", "-"]].concat()).text();
    let tree = parsed(&page);
    let plots = ["Perplexity", "Mean KL divergence"];
    for plot in plots {
        assert!(tree.descendants().any(|n| n.has_tag_name("title") && n.text() == Some(plot)), "{plot}");
    }
    assert!(page.contains(&format!("{quantized:.2}")) || page.contains(&format!("{quantized:.3}")));
    assert!(page.contains("Peak memory of quantizing") || !cfg!(target_os = "linux"));
}

#[test]
fn what_cannot_be_reported_is_refused() {
    let scratch = Scratch::new();
    report(&scratch.model(), &[]).refused(&["report.json"]);
    let out = scratch.quantized();
    let before = contents(&out);
    let path = |name: &str| scratch.path(name).to_str().unwrap().to_string();
    let own = path("out/report.json");
    report(&out, &["--out", &own]).refused(&["report.json", "made of"]);
    report(&out, &["--format", "json"]).refused(&["--out"]);
    report(&out, &["--out", "-", "--json"]).refused(&["--out -", "--json"]);
    scratch.write("text.json", "perplexity 8.2");
    report(&out, &["--evaluation", &path("text.json")]).refused(&["text.json", "not JSON"]);
    report(&out, &["--evaluation", &path("absent.json")]).refused(&["absent.json"]);
    report(&out, &["--evaluation", &own]).refused(&["report.json", "holds no perplexity"]);
    scratch.write("eval.json", "{ \"model\": \"m\", \"perplexity\": 8.0 }");
    report(&out, &["--run", &path("eval.json")]).refused(&["eval.json", "quantize --json"]);
    scratch.write("run.json", "{ \"seconds\": 1, \"output_bytes\": 5 }");
    report(&out, &["--run", &path("run.json")]).refused(&["run.json", "another run"]);
    report(&out, &["--out", &path("absent/page.html")]).refused(&["absent"]);
    assert_same(&before, &contents(&out), "a refusal changes nothing");
}
