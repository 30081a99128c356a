//! Images and tokens against PyPI `transformers`, from files that `tests/python/data_golden.py` wrote.

#![allow(clippy::unwrap_used)]

use halfbyte_checkpoint::SafetensorsFile;
use halfbyte_data::{
    Encoder, Examples, ImageFolder, Labels, Processor, Selection, TextOptions, TextSet, decode,
};
use halfbyte_model::Input;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json(name: &str) -> Vec<Value> {
    serde_json::from_slice(&fs::read(golden(name)).unwrap()).unwrap()
}

fn asset(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("HALFBYTE_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    println!("SKIPPED: {path} is not under HALFBYTE_ASSETS ({})", root.display());
    None
}

/// Shape and values.
fn pixels(input: Input) -> ([usize; 3], Vec<f32>) {
    match input {
        Input::Pixels { channels, height, width, values } => ([channels, height, width], values),
        other => panic!("{other:?}"),
    }
}

#[test]
fn images_are_prepared_as_transformers_does_it() {
    let file = SafetensorsFile::open(&golden("images/images.safetensors")).unwrap();
    let cases = json("images/cases.json");
    for (i, case) in cases.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("preprocessor_config.json"), case["config"].to_string()).unwrap();
        let image = decode(&golden("images").join(case["image"].as_str().unwrap())).unwrap();
        let (shape, values) = pixels(Processor::open(dir.path()).unwrap().apply(&image).unwrap());
        let entry = file.find(&i.to_string()).unwrap();
        assert_eq!(entry.shape, shape, "{case}");
        let bytes = file.read_bytes(&i.to_string()).unwrap();
        let expected: Vec<f32> = if bytes.len() == values.len() {
            bytes.iter().map(|&b| f32::from(b) / 255.0).collect()
        } else {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let worst = values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-6, "{case}: {worst}");
    }
    assert!(cases.len() > 40);
}

#[test]
fn greys_of_16_bits_and_damaged_images_are_errors() {
    let error = decode(&golden("images/grey_16.png")).unwrap_err().to_string();
    assert!(error.contains("grey_16.png: a grey image of 16 bits"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    for name in ["rgb.png", "palette.png", "420.jpg", "422_progressive.jpg"] {
        let whole = fs::read(golden("images").join(name)).unwrap();
        let path = dir.path().join(name);
        for length in (0..whole.len() - 20).step_by(13) {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(decode(&path).is_err(), "{name} cut to {length} bytes");
        }
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
            fs::write(&path, &bytes).unwrap();
            // Most are errors; whatever is not has pixels.
            if let Ok(image) = decode(&path) {
                assert_eq!(image.data.len(), 3 * image.width * image.height, "{name}, byte {at}");
            }
        }
    }
}

#[test]
fn cifar10_is_prepared_as_transformers_does_it() {
    let (Some(images), Some(model)) = (asset("data/cifar10/test"), asset("models/ViT-S14-cifar10")) else {
        return;
    };
    let processor = Processor::open(&model).unwrap();
    let labels = Labels::open(&model).unwrap();
    let set = ImageFolder::open(&images, &labels, processor, Selection::default()).unwrap();
    assert_eq!((set.len(), set.name()), (500, "test".into()));
    for case in json("cifar10.json") {
        let name = case["image"].as_str().unwrap();
        let i = (0..set.len()).find(|&i| set.place(i).replace('\\', "/").ends_with(name)).unwrap();
        let (shape, values) = pixels(set.load(i).unwrap());
        assert_eq!(shape, [3, 112, 112]);
        let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
        assert!((sum - case["sum"].as_f64().unwrap()).abs() < 1e-3, "{name}: {sum}");
        for (at, value) in case["at"].as_array().unwrap().iter().zip(case["values"].as_array().unwrap()) {
            let got = values[at.as_u64().unwrap() as usize];
            assert!((f64::from(got) - value.as_f64().unwrap()).abs() <= 1e-6, "{name}, {at}: {got}, {value}");
        }
    }
}

#[test]
fn texts_and_pairs_become_the_tokens_of_transformers() {
    let Some(model) = asset("models/MiniLM-L6-sst2") else { return };
    let long: Vec<String> = (0..300).map(|i| format!("word{i} and")).collect();
    let long = long.join(" ");
    for case in json("encodings.json") {
        let encoder = Encoder::open(&model, case["limit"].as_u64().unwrap() as usize).unwrap();
        let text = |key: &str| case[key].as_str().map(|t| if t == "LONG" { &long } else { t });
        let Input::Segments { ids, types } = encoder.encode(text("first").unwrap(), text("second")).unwrap()
        else {
            panic!("this model has segments");
        };
        if case["ids"].is_array() {
            assert_eq!((Value::from(ids), Value::from(types)), (case["ids"].clone(), case["types"].clone()));
        } else {
            let found = (Value::from(ids.len()), Value::from(types.iter().sum::<u32>()));
            assert_eq!(found, (case["ids"].clone(), case["types"].clone()), "{case}");
        }
    }
}

#[test]
fn every_form_of_a_file_says_the_same() {
    let Some(model) = asset("models/MiniLM-L6-sst2") else { return };
    let labels = Labels::open(&model).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<Value> = fs::read_to_string(golden("glue.jsonl"))
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    // A tab within a text has no place in a tsv file.
    let field = |v: &Value| v.as_str().map_or(v.to_string(), |s| s.replace('\t', " "));
    let line = |row: &Value| ["sentence1", "sentence2", "label"].map(|k| field(&row[k])).join("\t") + "\n";
    let body: String = rows.iter().map(line).collect();
    fs::write(dir.path().join("headed.tsv"), format!("sentence1\tsentence2\tlabel\n{body}")).unwrap();
    fs::write(dir.path().join("plain.tsv"), body).unwrap();
    let files = ["headed.tsv", "plain.tsv"].map(|name| dir.path().join(name));
    let mut found = Vec::new();
    for path in [golden("glue.jsonl"), golden("glue.parquet")].iter().chain(&files) {
        let encoder = Encoder::open(&model, 512).unwrap();
        let set = TextSet::open(path, &TextOptions::default(), Some(&labels), encoder, Selection::default())
            .unwrap();
        let all: Vec<_> =
            (0..set.len()).map(|i| (set.load(i).unwrap(), set.gold(i), set.key(i).unwrap())).collect();
        found.push(all);
    }
    assert_eq!(found[0].len(), 3);
    assert!(found.iter().all(|f| *f == found[0]), "{found:?}");
}

#[test]
fn the_sst2_files_at_hand_are_read() {
    let Some(model) = asset("models/MiniLM-L6-sst2") else { return };
    for (path, rows, labelled) in
        [("data/tasks/sst2.jsonl", 436, true), ("data/calibration/sst2_train_512.tsv", 512, false)]
    {
        let Some(path) = asset(path) else { return };
        let labels = Labels::open(&model).unwrap();
        let labels = labelled.then_some(&labels);
        let encoder = Encoder::open(&model, 512).unwrap();
        let set =
            TextSet::open(&path, &TextOptions::default(), labels, encoder, Selection::default()).unwrap();
        assert_eq!((set.len(), set.gold(0).is_some()), (rows, labelled));
        assert!((0..rows).all(|i| matches!(set.load(i), Ok(Input::Segments { .. }))));
    }
}
