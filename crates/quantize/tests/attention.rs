//! Attention's own products and the KV cache, quantized: by the definition, in every family, and the same whatever the run.
#![allow(clippy::unwrap_used)]

mod util;

use halfbyte_checkpoint::StoredAttention;
use halfbyte_formats::{Element, InputQuantizer, ProbabilityQuantizer};
use halfbyte_model::{Input, Model, Operands};
use halfbyte_quantize::{Job, ProbabilityScale, QuantizeError, Recipe, quantize};
use halfbyte_tensor::{Layout, Matrix};
use std::path::Path;
use util::{Patience, Silent, contents, families, family, inputs, job, tried};

fn number(i: usize, seed: usize) -> f32 {
    (((i * 7919 + seed * 104_729) % 1000) as f32 - 500.0) / 250.0
}

/// Everything but attention is left alone.
fn attention_alone(name: &str, bits: u32) -> Recipe {
    let base = Recipe::named(name).unwrap();
    Recipe { weight_bits: 16, activation_bits: 16, embedding_bits: 16, attention_bits: bits, ..base }
}

/// The relative squared error of the outputs of unseen inputs.
fn relative_error(model: &Model, recipe: &Recipe) -> f64 {
    let (report, error) = tried(model, recipe);
    assert_eq!(report.attention.len(), model.architecture.blocks.len());
    error
}

#[test]
fn quantized_attention_is_its_definition() {
    // Grouped queries and a causal mask; neither.
    for name in ["llama", "bert"] {
        let model = Model::open(&family(name)).unwrap();
        let block = model.block(0).unwrap();
        let (shape, n) = (&block.spec.attention, 19);
        let (dim, heads, kv_heads) = (shape.head_dim, shape.heads, shape.kv_heads);
        let matrix = |channels: usize, seed| {
            Matrix::new(n, channels, (0..n * channels).map(|i| number(i, seed)).collect())
        };
        let operands = Operands {
            query: matrix(heads * dim, 1),
            key: matrix(kv_heads * dim, 2),
            value: matrix(kv_heads * dim, 3),
        };
        let shifts = |channels: usize| (0..channels).map(|c| (c % 3) as u8).collect();
        for probability in [
            ProbabilityQuantizer::new(
                "ue3m1".parse().unwrap(),
                0.03,
                (0..heads).map(|h| (h % 2) as u8).collect(),
            ),
            ProbabilityQuantizer::dynamic("uint4".parse().unwrap()),
        ] {
            let stored = StoredAttention {
                query: Some(InputQuantizer::new(Element::E2M1, 0.3, shifts(heads * dim))),
                key: Some(InputQuantizer::new(Element::E1M2, 0.5, Vec::new())),
                value: Some(
                    InputQuantizer::dynamic("int4/channel/dynamic".parse().unwrap(), 1.0, dim).unwrap(),
                ),
                probability: Some(probability.clone()),
            };
            let found = block.attend(operands.clone(), &Layout::sequence(n), Some(&stored));

            let seen = |m: &Matrix, q: &Option<InputQuantizer>| {
                let mut m = m.clone();
                (0..n).for_each(|t| q.as_ref().unwrap().apply(m.row_mut(t)));
                m
            };
            let (q, k, v) = (
                seen(&operands.query, &stored.query),
                seen(&operands.key, &stored.key),
                seen(&operands.value, &stored.value),
            );
            // A number at the middle between two codes may go either way, and moves its row by a step.
            let mut wrong = 0;
            for t in 0..n {
                for head in 0..heads {
                    let at = head * kv_heads / heads * dim;
                    let keys = if shape.causal { t + 1 } else { n };
                    let score = |j: usize| -> f64 {
                        let pairs = (0..dim).map(|d| (q.row(t)[head * dim + d], k.row(j)[at + d]));
                        pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>() * f64::from(shape.scale)
                    };
                    let e: Vec<f64> = (0..keys).map(|j| score(j).exp()).collect();
                    let sum: f64 = e.iter().sum();
                    let mut row: Vec<f32> = e.iter().map(|e| (e / sum) as f32).collect();
                    probability.apply(head, &mut row);
                    for d in 0..dim {
                        let terms =
                            row.iter().enumerate().map(|(j, p)| f64::from(*p) * f64::from(v.row(j)[at + d]));
                        let wanted: f64 = terms.sum();
                        let got = f64::from(found.row(t)[head * dim + d]);
                        wrong += usize::from((got - wanted).abs() > 1e-5);
                    }
                }
            }
            assert!(wrong <= 2 * dim, "{name}, {}: {wrong}", probability.scheme());
        }
    }
}

#[test]
fn eight_bits_are_close_in_every_family() {
    for dir in families() {
        let model = Model::open(&dir).unwrap();
        for name in ["fpq-w8a8", "minmax-int-w8a8"] {
            let error = relative_error(&model, &attention_alone(name, 8));
            assert!(error > 0.0 && error < 0.01, "{}: {name}: relative squared error {error}", dir.display());
        }
    }
}

#[test]
fn a_searched_format_is_better_than_the_largest_magnitude() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../halfbyte/assets");
    let model = Model::open(&assets.join("stories260K")).unwrap();
    let text = std::fs::read_to_string(assets.join("tinystories.txt")).unwrap();
    let tokens = model.tokenizer().unwrap().encode(&text).unwrap();
    let calibration: Vec<Input> =
        tokens.chunks_exact(128).take(8).map(|window| Input::Tokens(window.to_vec())).collect();
    let error = |recipe: Recipe| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let job = job(&model, &recipe, &calibration, &out);
        let layers = quantize(&job, &mut Silent).unwrap().report.attention;
        layers.iter().map(|a| a.relative_error.unwrap()).sum::<f64>() / layers.len() as f64
    };
    let of = |name: &str| error(attention_alone(name, 4));
    let (fpq, baseline, int) = (of("fpq-w4a4"), of("fpq-baseline-w4a4"), of("minmax-int-w4a4"));
    let head = error(Recipe { probability_scale: ProbabilityScale::Head, ..attention_alone("fpq-w4a4", 4) });
    println!("FPQ {fpq:.5}, with scales of heads {head:.5}, baseline {baseline:.5}, MinMax INT {int:.5}");
    assert!(fpq < baseline && head < baseline && baseline < int);
}

#[test]
fn a_cache_of_fp8_costs_little_and_needs_no_calibration() {
    let model = Model::open(&family("llama")).unwrap();
    let of = |scheme: &str| Recipe {
        attention_bits: 16,
        kv_scheme: Some(scheme.parse().unwrap()),
        ..attention_alone("fpq-w4a4", 16)
    };
    let (fp8, fp4) = (of("e4m3fn/channel/dynamic"), of("e2m1/channel/dynamic"));
    let (eight, four) = (relative_error(&model, &fp8), relative_error(&model, &fp4));
    assert!(eight < 0.01 && four > eight && four < 0.2, "{eight} {four}");

    // The same without calibration, beside weights that need none either.
    let recipe = Recipe { kv_scheme: fp8.kv_scheme, ..Recipe::named("int8-w8a16").unwrap() };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    quantize(&job(&model, &recipe, &[], &out), &mut Silent).unwrap();
    let back = Model::open(&out).unwrap();
    let stored = back.block(0).unwrap().products.unwrap();
    assert_eq!((stored.key.is_some(), stored.value.is_some()), (true, true));
    assert_eq!((stored.query, stored.probability), (None, None));
}

#[test]
fn blocks_of_a_cache_must_divide_the_heads() {
    let model = Model::open(&family("llama")).unwrap();
    let dim = model.architecture.blocks[0].attention.head_dim;
    assert!(!dim.is_multiple_of(32), "the message below is for heads that blocks do not divide");
    let recipe = Recipe {
        kv_scheme: Some("e2m1/group32/e8m0/dynamic".parse().unwrap()),
        ..attention_alone("fpq-w4a4", 16)
    };
    let options = halfbyte_quantize::PlanOptions::inputs(4, 32, 1 << 30);
    let error = halfbyte_quantize::plan(&model, &recipe, options).unwrap_err().to_string();
    assert!(error.contains("kv_scheme") && error.contains("self_attn"), "{error}");
}

#[test]
fn threads_files_and_interruptions_change_no_byte() {
    let model = Model::open(&family("llama")).unwrap();
    let recipe = Recipe { attention_bits: 4, ..Recipe::named("fpq-w4a4").unwrap() };
    let (dir, calibration) = (tempfile::tempdir().unwrap(), inputs(&model.architecture, 8, 0));
    let run = |name: &str, threads: usize, activation_memory: u64, mut patience: usize| {
        let out = dir.path().join(name);
        let job = Job { activation_memory, ..job(&model, &recipe, &calibration, &out) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // An impatient user gives a little more time with every try.
        pool.install(|| {
            while let Err(error) = quantize(&job, &mut Patience(patience)) {
                assert!(matches!(error, QuantizeError::Stopped(_)), "{error}");
                patience += 1;
            }
        });
        contents(&out)
    };
    let wanted = run("one", 1, 1 << 30, usize::MAX);
    assert_eq!(run("two", 2, 1 << 30, usize::MAX), wanted);
    assert_eq!(run("files", 2, 0, usize::MAX), wanted);
    assert_eq!(run("stops", 2, 1 << 30, 1), wanted);
}

#[test]
fn a_folder_computes_alike_alone_and_in_packs_and_forgets_attention_when_requantized() {
    for name in ["llama", "bert", "vit"] {
        let model = Model::open(&family(name)).unwrap();
        let recipe = Recipe { attention_bits: 4, ..Recipe::named("fpq-w4a4").unwrap() };
        let (dir, calibration, test) = (
            tempfile::tempdir().unwrap(),
            inputs(&model.architecture, 8, 0),
            inputs(&model.architecture, 5, 50),
        );
        let out = dir.path().join("out");
        quantize(&job(&model, &recipe, &calibration, &out), &mut Silent).unwrap();
        let back = Model::open(&out).unwrap();
        let (states, layout, _) = back.trace(&test).unwrap();
        let last = &states[states.len() - 1];
        for (input, rows) in test.iter().zip(layout.ranges()) {
            let alone = back.trace(std::slice::from_ref(input)).unwrap().0.pop().unwrap();
            assert_eq!(alone.data, last.data[rows.start * last.cols..rows.end * last.cols], "{name}");
        }

        if name == "vit" {
            continue; // The values of its patches' codes are no checkpoint.
        }
        let fresh = back.dequantized().unwrap();
        assert!(fresh.block(0).unwrap().products.is_none());
        assert!(!fresh.checkpoint.names().any(|n| n.ends_with("query_shift")));
    }
}

#[test]
fn a_damaged_folder_is_refused_by_name() {
    let model = Model::open(&family("llama")).unwrap();
    let recipe = attention_alone("minmax-int-w4a4", 4);
    let (dir, calibration) = (tempfile::tempdir().unwrap(), inputs(&model.architecture, 4, 0));
    let out = dir.path().join("out");
    quantize(&job(&model, &recipe, &calibration, &out), &mut Silent).unwrap();
    let path = out.join("config.json");
    let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(whole["quantization_config"]["version"], 2);
    let refused = |edit: &dyn Fn(&mut serde_json::Value), needles: &[&str]| {
        let mut config = whole.clone();
        edit(&mut config["quantization_config"]["attention"]);
        std::fs::write(&path, config.to_string()).unwrap();
        let error = Model::open(&out).err().unwrap().to_string();
        assert!(needles.iter().all(|n| error.contains(n)), "{error}");
    };
    let name = "model.layers.0.self_attn";
    refused(&|a| a[name]["query"] = "e2m1/tensor/shifts".into(), &["query_shift"]);
    refused(&|a| a[name]["key"] = "e2m1/group4".into(), &[name, "key"]);
    refused(&|a| a[name]["probability"] = "ue2m2/channel".into(), &[name, "probabilities"]);
    refused(&|a| a["model.layers.7.attn"] = a[name].clone(), &["model.layers.7.attn"]);
}
