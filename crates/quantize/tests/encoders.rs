//! Real encoders through the driver, calibrated on a list of inputs.
#![allow(clippy::unwrap_used)]

mod util;

use halfbyte_model::{Input, Model};
use halfbyte_quantize::Recipe;
use halfbyte_tensor::Matrix;
use util::{asset, logits, quantized, relative_error};

/// The logits of `test` after a quantization on `calibration` of every layer.
fn after(model: &Model, recipe: &Recipe, calibration: &[Input], test: &[Input]) -> Matrix {
    let (report, found) = quantized(model, recipe, calibration, test);
    assert_eq!(report.layers.len(), model.architecture.sites().count() + 1);
    found
}

fn first_choices(logits: &Matrix) -> Vec<usize> {
    let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    logits.data.chunks_exact(logits.cols).map(best).collect()
}

fn share(a: &[usize], b: &[usize]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
}

#[test]
fn minilm_keeps_its_opinions() {
    let (Some(dir), Some(train), Some(rows)) = (
        asset("models/MiniLM-L6-sst2"),
        asset("data/calibration/sst2_train_512.tsv"),
        asset("data/tasks/sst2.jsonl"),
    ) else {
        return;
    };
    let model = Model::open(&dir).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let input = |text: &str| Input::Tokens(tokenizer.encode_prompt(text).unwrap());
    let train = std::fs::read_to_string(train).unwrap();
    let sentence = |line: &'_ str| line.split('\t').next().unwrap_or("").to_owned();
    let calibration: Vec<Input> = train.lines().take(48).map(|l| input(&sentence(l))).collect();
    let rows = std::fs::read_to_string(rows).unwrap();
    let rows = rows.lines().take(100).map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let (test, labels): (Vec<Input>, Vec<usize>) =
        rows.map(|r| (input(r["sentence"].as_str().unwrap()), r["label"].as_u64().unwrap() as usize)).unzip();

    let full = logits(&model, &test);
    let accuracy = |logits: &Matrix| share(&first_choices(logits), &labels);
    let eight = after(&model, &Recipe::named("fpq-w8a8").unwrap(), &calibration, &test);
    let products = Recipe { attention_bits: 8, ..Recipe::named("fpq-w8a8").unwrap() };
    let products = after(&model, &products, &calibration, &test);
    let four = after(&model, &Recipe::named("fpq-w4a4").unwrap(), &calibration, &test);
    let plain = after(&model, &Recipe::named("minmax-int-w4a4").unwrap(), &calibration, &test);
    println!(
        "accuracy {:.2}, 8 bits {:.2}, 4 bits {:.2}, MinMax INT {:.2}; relative errors {:.4} {:.4} {:.4}",
        accuracy(&full),
        accuracy(&eight),
        accuracy(&four),
        accuracy(&plain),
        relative_error(&eight, &full),
        relative_error(&four, &full),
        relative_error(&plain, &full)
    );
    assert!(accuracy(&full) > 0.75);
    assert!(share(&first_choices(&eight), &first_choices(&full)) >= 0.95);
    // Attention's own products too.
    assert!(share(&first_choices(&products), &first_choices(&full)) >= 0.95);
    assert!(accuracy(&four) >= accuracy(&full) - 0.1 && accuracy(&four) > accuracy(&plain));
}

#[test]
fn vit_computes_from_its_codes() {
    let Some(dir) = asset("models/ViT-S14-cifar10") else { return };
    let model = Model::open(&dir).unwrap();
    // Smooth patterns of colour.
    let value = |n: usize, c: usize, y: usize, x: usize| {
        let phase = |a: usize, b: usize| (a * (n % 5 + 1) + b * (n / 5 + 1) + 37 * c * n) as f32 / 60.0;
        1.5 * (phase(y, x).sin() + phase(x, 112 - y).cos()) / 2.0
    };
    let image = |n: usize| {
        let place = |i: usize| value(n, i / (112 * 112), i / 112 % 112, i % 112);
        let values = (0..3 * 112 * 112).map(place).collect();
        Input::Pixels { channels: 3, height: 112, width: 112, values }
    };
    let calibration: Vec<Input> = (0..10).map(image).collect();
    let test: Vec<Input> = (20..26).map(image).collect();
    let full = logits(&model, &test);
    let found = after(&model, &Recipe::named("fpq-w8a8").unwrap(), &calibration, &test);
    let error = relative_error(&found, &full);
    println!("relative error {error:.5}");
    assert!(error < 0.02, "{error}");
}
