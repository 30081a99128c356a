//! Logits against PyPI `transformers`, from files that `tests/python/model_golden.py` wrote.

#![allow(clippy::unwrap_used)]

mod util;

use halfbyte_checkpoint::{RawTensor, SafetensorsFile};
use halfbyte_model::{Input, Model, Task};
use halfbyte_tensor::log_sum_exp;
use std::path::{Path, PathBuf};
use util::asset;

/// Largest difference relative to the largest expected value that counts as agreement.
const TOLERANCE: f32 = 1e-4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn floats(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    let shape = file.find(name).unwrap().shape.clone();
    file.read_f32(name, &shape).unwrap()
}

fn ids(file: &SafetensorsFile, name: &str) -> Vec<u32> {
    let bytes = file.read_bytes(name).unwrap();
    bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}

fn worst(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale
}

fn families() -> impl Iterator<Item = (String, PathBuf)> {
    let entries = std::fs::read_dir(golden("")).unwrap().map(|e| e.unwrap().path());
    entries.filter(|d| d.is_dir()).map(|d| (d.file_name().unwrap().to_string_lossy().into_owned(), d))
}

#[test]
fn every_decoder_agrees_with_transformers() {
    let mut cases = 0;
    for (name, dir) in families() {
        let model = Model::open(&dir).unwrap();
        if model.architecture.head.task != Task::LanguageModel {
            continue;
        }
        cases += 1;
        let expected = SafetensorsFile::open(&dir.join("golden.safetensors")).unwrap();
        let tokens = ids(&expected, "input_ids");
        let shape = expected.find("input_ids").unwrap().shape.clone();
        let mut logits = Vec::new();
        for (i, sequence) in tokens.chunks(shape[1]).enumerate() {
            let (mut states, layout, out) = model.trace(&[Input::Tokens(sequence.to_vec())]).unwrap();
            logits.extend(out.data);
            if i == 0 {
                // The last one is taken after the norm.
                let last = states.pop().unwrap();
                states.push(model.head().unwrap().enter(&last, &layout));
                for (layer, state) in states.iter().enumerate() {
                    let error = worst(&state.data, &floats(&expected, &format!("hidden_{layer}")));
                    assert!(error < TOLERANCE, "{name}: hidden state {layer} is off by {error:e}");
                }
            }
        }
        let error = worst(&logits, &floats(&expected, "logits"));
        assert!(error < TOLERANCE, "{name}: logits are off by {error:e}");
    }
    assert!(cases >= 26, "{cases} golden cases");
}

/// The inputs of a golden file of an encoder.
fn inputs(file: &SafetensorsFile) -> Vec<Input> {
    if let Ok(info) = file.find("pixel_values") {
        let [_, channels, height, width] = info.shape[..] else { panic!("{:?}", info.shape) };
        let values = floats(file, "pixel_values");
        let image = |values: &[f32]| Input::Pixels { channels, height, width, values: values.to_vec() };
        return values.chunks(channels * height * width).map(image).collect();
    }
    let (mut tokens, mut segments) = (ids(file, "input_ids"), ids(file, "token_type_ids"));
    let take = |n: u32| Input::Segments {
        ids: tokens.drain(..n as usize).collect(),
        types: segments.drain(..n as usize).collect(),
    };
    ids(file, "lengths").into_iter().map(take).collect()
}

/// Sequences packed side by side agree with a padded batch under an attention mask.
#[test]
fn every_encoder_agrees_with_transformers() {
    let mut cases = 0;
    for (name, dir) in families() {
        let model = Model::open(&dir).unwrap();
        if model.architecture.head.task == Task::LanguageModel {
            continue;
        }
        cases += 1;
        let expected = SafetensorsFile::open(&dir.join("golden.safetensors")).unwrap();
        let inputs = inputs(&expected);
        let (states, _, output) = model.trace(&inputs).unwrap();
        for (layer, state) in states.iter().enumerate() {
            let error = worst(&state.data, &floats(&expected, &format!("hidden_{layer}")));
            assert!(error < TOLERANCE, "{name}: hidden state {layer} is off by {error:e}");
        }
        let error = worst(&output.data, &floats(&expected, "logits"));
        assert!(error < TOLERANCE, "{name}: logits are off by {error:e}");
        // Each alone has the same bits as all together.
        let alone = inputs.iter().flat_map(|i| model.trace(std::slice::from_ref(i)).unwrap().2.data);
        assert_eq!(alone.collect::<Vec<_>>(), output.data, "{name}");
    }
    assert!(cases >= 13, "{cases} golden cases");
}

#[test]
fn stories260k_agrees_with_transformers() {
    let Some(dir) = asset("models/stories260K") else { return };
    let expected = SafetensorsFile::open(&golden("stories260K.safetensors")).unwrap();
    let model = Model::open(&dir).unwrap();
    let (_, _, logits) = model.trace(&[Input::Tokens(ids(&expected, "input_ids"))]).unwrap();
    let error = worst(&logits.data, &floats(&expected, "logits"));
    assert!(error < TOLERANCE, "logits are off by {error:e}");

    let text = std::fs::read_to_string(asset("data/tinystories_valid_subset.txt").unwrap()).unwrap();
    let text: String = text.chars().take(2000).collect();
    assert_eq!(model.tokenizer().unwrap().encode(&text).unwrap(), ids(&expected, "text_ids"));
}

/// The network's output and the last block's output in the first row of every input agree with `golden`.
fn check_classifier(dir: &Path, expected: &SafetensorsFile, inputs: &[Input]) {
    let model = Model::open(dir).unwrap();
    let (states, layout, logits) = model.trace(inputs).unwrap();
    let error = worst(&logits.data, &floats(expected, "logits"));
    assert!(error < TOLERANCE, "logits are off by {error:e}");
    let last = &states[states.len() - 1];
    let first: Vec<f32> = layout.ranges().flat_map(|r| last.row(r.start).to_vec()).collect();
    let error = worst(&first, &floats(expected, "first"));
    assert!(error < TOLERANCE, "hidden states are off by {error:e}");
}

#[test]
fn minilm_agrees_with_transformers() {
    let Some(dir) = asset("models/MiniLM-L6-sst2") else { return };
    let expected = SafetensorsFile::open(&golden("MiniLM-L6-sst2.safetensors")).unwrap();
    check_classifier(&dir, &expected, &inputs(&expected));
}

#[test]
fn vit_agrees_with_transformers() {
    let Some(dir) = asset("models/ViT-S14-cifar10") else { return };
    let expected = SafetensorsFile::open(&golden("ViT-S14-cifar10.safetensors")).unwrap();
    let value = |i: usize, n: usize| ((7919 * i + 104_729 * n) % 1009) as f32 / 252.25 - 2.0;
    let image = |n| Input::Pixels {
        channels: 3,
        height: 112,
        width: 112,
        values: (0..3 * 112 * 112).map(|i| value(i, n)).collect(),
    };
    check_classifier(&dir, &expected, &[image(0), image(1)]);
}

/// Needs SmolLM2 as a Hugging Face folder (`tools/smollm2_to_hf.py` of the assets), named by HALFBYTE_SMOLLM2.
#[test]
fn smollm2_agrees_with_transformers() {
    let Some(dir) = std::env::var_os("HALFBYTE_SMOLLM2") else {
        println!("SKIPPED: HALFBYTE_SMOLLM2 does not name the SmolLM2 folder");
        return;
    };
    let expected = SafetensorsFile::open(&golden("SmolLM2.safetensors")).unwrap();
    let model = Model::open(Path::new(&dir)).unwrap();
    let tokens = ids(&expected, "input_ids");
    let (_, _, logits) = model.trace(&[Input::Tokens(tokens.clone())]).unwrap();
    let (positions, vocabulary) = (ids(&expected, "positions"), ids(&expected, "vocab_ids"));
    let got: Vec<f32> = positions
        .iter()
        .flat_map(|&p| vocabulary.iter().map(move |&v| (p, v)))
        .map(|(p, v)| logits.row(p as usize)[v as usize])
        .collect();
    let error = worst(&got, &floats(&expected, "logits"));
    assert!(error < TOLERANCE, "logits are off by {error:e}");

    let top5 = ids(&expected, "top5_ids");
    for (p, top) in positions.iter().zip(top5.chunks(5)) {
        let row = logits.row(*p as usize);
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        assert_eq!(order[..5], *top, "position {p}");
    }
    let nll: f64 = (0..tokens.len() - 1)
        .map(|t| log_sum_exp(logits.row(t)) - f64::from(logits.row(t)[tokens[t + 1] as usize]))
        .sum::<f64>()
        / (tokens.len() - 1) as f64;
    assert!((nll - f64::from(floats(&expected, "nll")[0])).abs() < 1e-5, "{nll}");
    assert!(matches!(model.checkpoint.read_raw("model.norm.weight", &[576]).unwrap(), RawTensor::BF16(_)));
}
