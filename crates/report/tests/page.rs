//! The page as a reader of XML sees it: whole, self-contained, and with the figures of report.json.
#![allow(clippy::unwrap_used)]

use halfbyte_formats::{Element, Granularity, Scheme};
use halfbyte_quantize::{
    HISTOGRAM_BINS, InputReport, LayerReport, ModelReport, Recipe, Report, WeightReport,
};
use halfbyte_report::{Evaluation, Facts, Run, document, html, markdown, numbers};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::{Value, json};

/// A layer whose channels get smaller by factors of two, with shifts that undo most of it.
fn layer(name: &str, element: Element, error: f64) -> LayerReport {
    let channels = 64;
    let shifts: Vec<u8> = (0..channels).map(|c| (c / 8) as u8).collect();
    let mut histogram = vec![10; HISTOGRAM_BINS];
    histogram[HISTOGRAM_BINS / 2] = 500;
    LayerReport {
        name: name.into(),
        shape: [32, channels],
        bits: 32 * 64 * 4 + 32 * 32 + 32 + 64 * 8,
        weight: Some(WeightReport {
            scheme: Scheme::new(element, Granularity::Channel),
            biases: (0..32).map(|r| 2.0 + r as f32 / 16.0).collect(),
            codes: (0..16).map(|c| 100 + c).collect(),
            histogram,
        }),
        input: Some(InputReport {
            scheme: Scheme { shifts: true, ..Scheme::new(element, Granularity::Tensor) },
            bias: 1.0,
            shifts,
        }),
        channel_max: (0..channels).map(|c| 5.0 * (-(c as f32) / 8.0).exp2()).collect(),
        error,
        signal: 1.0,
        relative_error: error,
        low_rank: None,
    }
}

fn report(blocks: usize) -> Report {
    let mut layers = Vec::new();
    for block in 0..blocks {
        for (i, kind) in ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"].into_iter().enumerate() {
            let element = [Element::E2M1, Element::E1M2, Element::E3M0][(block + i) % 3];
            let mut layer =
                layer(&format!("model.layers.{block}.{kind}"), element, 0.01 * (1 + block + i) as f64);
            // q and k share their input.
            layer.channel_max[0] += (i / 2) as f32;
            layers.push(layer);
        }
    }
    layers.push(layer("lm_head", Element::E2M1, 0.002));
    let mean = layers.iter().map(|l| l.relative_error).sum::<f64>() / layers.len() as f64;
    Report {
        halfbyte: "0.0.0".into(),
        model: Some(ModelReport {
            values_of: None,
            family: "llama".into(),
            blocks,
            hidden: 64,
            vocabulary: 512,
            parameters: 1_234_567,
            bytes: 4_938_268,
        }),
        recipe: Recipe::default(),
        calibration_windows: 3,
        calibration_tokens: 1536,
        output_bytes: 876_543,
        bits_per_weight: 4.567_89,
        mean_relative_error: mean,
        layers,
        attention: Vec::new(),
        transforms: Vec::new(),
        learned: Vec::new(),
    }
}

fn evaluations() -> Vec<Evaluation> {
    let task = |acc: f64| json!({ "acc": acc, "acc_norm": acc + 0.02, "stderr": 0.03, "n": 200 });
    let paired = |acc: f64| {
        let mut task = task(acc);
        task["paired"] = json!({ "difference": -0.05, "interval": [-0.12, 0.02], "p_value": 0.21 });
        task
    };
    let perplexity = |value: f64| json!({ "value": value, "window": 2048, "windows": 16, "tokens": 32752 });
    let kld = json!({ "mean": 0.31, "median": 0.2, "p99": 3.0, "top1_agreement": 0.78 });
    let models = json!({ "models": [
        { "model": "full", "quantized": null, "size_bytes": 4_940_000, "perplexity": perplexity(20.71), "seconds": 12.5,
          "tasks": { "piqa": task(0.7), "boolq": task(0.6) } },
        { "model": "fp4", "quantized": "fpq-w4a4", "perplexity": perplexity(64.08), "kld": kld,
          "tasks": { "piqa": paired(0.6), "boolq": paired(0.55) } },
    ], "protocol": "windows of 2048 tokens" });
    Evaluation::read(&models).unwrap()
}

fn facts(blocks: usize, evaluations: Vec<Evaluation>) -> Facts {
    Facts::new(&report(blocks), None, None, evaluations)
}

/// The page without its document type, which is HTML's and not XML's.
fn body(page: &str) -> &str {
    page.strip_prefix("<!DOCTYPE html>\n").unwrap()
}

#[track_caller]
fn parsed(page: &str) -> Document<'_> {
    Document::parse_with_options(body(page), ParsingOptions::default()).unwrap()
}

fn named<'a>(root: Node<'a, 'a>, name: &'static str) -> impl Iterator<Item = Node<'a, 'a>> {
    root.descendants().filter(move |n| n.tag_name().name() == name)
}

fn text(node: Node) -> String {
    node.descendants().filter_map(|n| if n.is_text() { n.text() } else { None }).collect()
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    for page in [html(&document(&facts(4, Vec::new()))), html(&document(&facts(30, evaluations())))] {
        let tree = parsed(&page);
        let root = tree.root();
        for node in root.descendants().filter(Node::is_element) {
            for attribute in node.attributes() {
                let value = attribute.value();
                assert!(!value.contains("://"), "{}: {value}", attribute.name());
                assert!(!attribute.name().starts_with("on"), "no scripts: {}", attribute.name());
                if ["href", "src"].contains(&attribute.name()) {
                    let target = value.strip_prefix('#').expect("links stay on the page");
                    assert!(root.descendants().any(|n| n.attribute("id") == Some(target)), "{value}");
                }
            }
        }
        for name in ["script", "link", "img", "iframe", "object"] {
            assert_eq!(named(root, name).count(), 0, "{name}");
        }
        let style = text(named(root, "style").next().unwrap());
        assert!(!style.contains("url(") && !style.contains("@import"));
        for needed in ["prefers-color-scheme: dark", "@media print", "max-width"] {
            assert!(style.contains(needed), "{needed}");
        }
    }
}

#[test]
fn a_screen_reader_finds_its_way() {
    let page = html(&document(&facts(30, evaluations())));
    let tree = parsed(&page);
    let root = tree.root();
    assert_eq!(named(root, "h1").count(), 1);
    assert_eq!(named(root, "main").count(), 1);
    assert_eq!(named(root, "html").next().unwrap().attribute("lang"), Some("en"));
    let mut ids: Vec<&str> = root.descendants().filter_map(|n| n.attribute("id")).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "every id is unique");
    assert!(named(root, "svg").count() >= 12);
    for svg in named(root, "svg") {
        assert_eq!(svg.attribute("role"), Some("img"));
        let labels: Vec<&str> = svg.attribute("aria-labelledby").unwrap().split(' ').collect();
        let (title, desc) = (named(svg, "title").next().unwrap(), named(svg, "desc").next().unwrap());
        assert_eq!(labels, [title.attribute("id").unwrap(), desc.attribute("id").unwrap()]);
        assert!(!text(title).is_empty() && !text(desc).is_empty());
        let figure = svg.parent().unwrap();
        assert_eq!(figure.tag_name().name(), "figure");
        assert!(!text(named(figure, "figcaption").next().unwrap()).is_empty());
        assert_eq!(named(figure, "table").count(), 1, "the data of {}", text(title));
        // Nothing is drawn at a place that is no number.
        for attribute in svg.descendants().flat_map(|n| n.attributes()) {
            assert!(
                !attribute.value().contains("NaN") && !attribute.value().contains("inf"),
                "{}",
                text(title)
            );
        }
    }
    for table in named(root, "table") {
        assert_eq!(named(table, "caption").count(), 1);
        assert!(named(table, "th").all(|th| ["col", "row"].contains(&th.attribute("scope").unwrap())));
        let columns = named(named(table, "thead").next().unwrap(), "th").count();
        for row in named(named(table, "tbody").next().unwrap(), "tr") {
            assert_eq!(row.children().filter(Node::is_element).count(), columns);
        }
    }
}

#[test]
fn the_summary_has_the_figures_of_the_report() {
    let report = report(4);
    let page = html(&document(&facts(4, evaluations())));
    let tree = parsed(&page);
    let summary = tree.root().descendants().find(|n| n.attribute("id") == Some("summary")).unwrap();
    let value = |what: &str| -> String {
        let row = named(summary, "tr").find(|r| text(r.first_element_child().unwrap()) == what).unwrap();
        text(row.last_element_child().unwrap())
    };
    assert_eq!(value("Size"), "876,543 bytes (876.5 kB)");
    assert_eq!(value("Parameters"), "1,234,567");
    assert_eq!(value("Stored bits per quantized weight"), format!("{:.3}", report.bits_per_weight));
    assert_eq!(value("Mean relative output error"), numbers::percent(report.mean_relative_error));
    assert_eq!(value("Calibration"), "3 windows, 1,536 tokens");
    assert_eq!(value("Quantized layers"), "13");
    let measured = text(named(summary, "table").nth(1).unwrap());
    for figure in ["20.710", "64.080", "0.310", "78.0 %", "65.0 %"] {
        assert!(measured.contains(figure), "{figure} in {measured}");
    }
    assert!(measured.contains("4.9 MB"));
    let accuracy = tree.root().descendants().find(|n| n.attribute("id") == Some("accuracy")).unwrap();
    let plots: Vec<String> =
        named(accuracy, "figure").map(|f| text(named(f, "title").next().unwrap())).collect();
    let wanted = ["Perplexity", "Mean KL divergence", "Accuracy by task", "Difference in accuracy by task"];
    assert_eq!(plots, wanted);
    let told = text(accuracy);
    for figure in ["-5.00 %", "-12.0 % … 2.00 %", "0.210", "± 5.88 %", "windows of 2048 tokens"] {
        assert!(told.contains(figure), "{figure}");
    }
    // Parts of the size are its whole.
    let size = facts(4, Vec::new()).size;
    assert_eq!(size.codes + size.scales + size.low_rank + size.kept, report.output_bytes);
    assert_eq!(size.codes, 13 * 32 * 32);
}

#[test]
fn the_json_has_what_the_page_tells() {
    let value: Value = serde_json::to_value(facts(4, evaluations())).unwrap();
    assert_eq!(value["output_bytes"], 876_543);
    assert_eq!(value["layers"].as_array().unwrap().len(), 13);
    assert_eq!(value["layers"][1]["kind"], "k_proj");
    // q and k have quantizers of their own here, so that every layer is a place.
    assert_eq!(value["inputs"].as_array().unwrap().len(), 13);
    let input = &value["inputs"][0];
    assert_eq!(input["shifts"], json!([8, 8, 8, 8, 8, 8, 8, 8]));
    let (before, after) = (input["before"].as_array().unwrap(), input["after"].as_array().unwrap());
    let octaves = |q: &[Value]| (q[6].as_f64().unwrap() / q[0].as_f64().unwrap()).log2();
    assert!((octaves(before) - 7.875).abs() < 0.01 && octaves(after) < 1.0, "{input}");
    // The scale of E2M1 at bias 1 is 1: 5 of at most 6.
    assert!((before[6].as_f64().unwrap() - 5.0 / 6.0).abs() < 1e-6);
    assert_eq!(value["evaluations"][1]["kld"]["top1_agreement"], 0.78);
}

#[test]
fn layers_that_share_an_input_are_one_place() {
    let mut report = report(2);
    for layer in &mut report.layers {
        layer.input.as_mut().unwrap().scheme.element = Element::E2M1;
    }
    let facts = Facts::new(&report, None, None, Vec::new());
    let places: Vec<&str> = facts.inputs.iter().map(|t| t.layers.as_str()).collect();
    assert_eq!(places, ["q_proj, k_proj", "down_proj", "q_proj, k_proj", "down_proj", "lm_head"]);
}

#[test]
fn names_from_files_stay_text() {
    let evil = "</title><script>alert('x')</script> `|` \u{0}";
    let mut report = report(2);
    report.layers[0].name = format!("model.layers.0.{evil}");
    report.recipe.name = evil.into();
    let mut evaluations = evaluations();
    evaluations[0].model = evil.into();
    evaluations[0].tasks[0].0 = evil.into();
    let document = document(&Facts::new(&report, Some(evil.into()), None, evaluations));
    let page = html(&document);
    assert_eq!(named(parsed(&page).root(), "script").count(), 0);
    // The recipe stands in a fenced block, where nothing has a meaning.
    let text = markdown(&document);
    let (before, fenced) = text.split_once("```").unwrap();
    assert!(!before.contains("<script>") && fenced.contains("<script>"));
}

#[test]
fn odd_reports_have_a_page_too() {
    // Nothing quantized; inputs left alone; weights left alone; dead channels; a single value; an older report.
    let mut reports = vec![report(1); 5];
    reports[0].layers.clear();
    reports[1].layers.iter_mut().for_each(|l| l.input = None);
    reports[2].layers.iter_mut().for_each(|l| l.weight = None);
    for layer in &mut reports[3].layers {
        layer.channel_max.fill(0.0);
        (layer.error, layer.relative_error) = (0.0, 0.0);
    }
    let mut old = serde_json::to_value(&reports[4]).unwrap();
    old.as_object_mut().unwrap().remove("model");
    for layer in old["layers"].as_array_mut().unwrap() {
        layer.as_object_mut().unwrap().remove("channel_max");
        layer["weight"].as_object_mut().unwrap().retain(|k, _| k != "codes" && k != "histogram");
    }
    reports[4] = serde_json::from_value(old).unwrap();
    for (i, report) in reports.iter().enumerate() {
        let run =
            Run { seconds: 3.0, peak_rss_bytes: None, peak_memory_predicted_bytes: None, partial: i == 0 };
        let document = document(&Facts::new(report, None, Some(run), Vec::new()));
        let page = html(&document);
        parsed(&page);
        assert!(!page.contains("NaN"), "report {i}");
        assert!(markdown(&document).contains("## Summary"));
    }
}

#[test]
fn markdown_has_a_table_for_every_figure() {
    let document = document(&facts(4, evaluations()));
    let text = markdown(&document);
    assert!(text.starts_with("# llama with 1.235 M parameters, quantized with fpq-w4a4\n"));
    assert!(text.contains("| 64.0800 |") && text.contains("| model.layers.3.mlp.down\\_proj |"), "{text}");
    // All rows of a table have as many cells as its header.
    let mut columns = None;
    for line in text.lines() {
        let cells = line.replace("\\|", "").matches('|').count();
        match columns {
            Some(n) if cells > 0 => assert_eq!(cells, n, "{line}"),
            _ => columns = (cells > 0).then_some(cells),
        }
        if line.is_empty() {
            columns = None;
        }
    }
}

#[test]
fn a_page_of_many_layers_is_not_heavy() {
    let page = html(&document(&facts(80, evaluations())));
    assert!(page.len() < 1_500_000, "{} bytes", page.len());
}
