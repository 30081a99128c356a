//! Transforms change no network, in any family, and make quantizing it easier.
#![allow(clippy::unwrap_used)]

mod util;

use halfbyte_model::{Input, Model};
use halfbyte_quantize::transforms::{StoredAs, TransformJob, TransformReport, transform_checkpoint};
use halfbyte_quantize::{Job, QuantizeError, Recipe, Transform, quantize};
use std::path::{Path, PathBuf};
use util::{Patience, Silent, asset, contents, families, family, inputs, job, logits, tried};

fn recipe_with(recipe: &str, with: &[&str]) -> Recipe {
    let transforms: Vec<Transform> = with.iter().map(|t| t.parse().unwrap()).collect();
    Recipe { transforms, ..Recipe::named(recipe).unwrap() }
}

fn transform(model: &Model, with: &[&str], recipe: &str, out: &Path) -> TransformReport {
    transform_for(model, &recipe_with(recipe, with), out)
}

fn transform_for(model: &Model, recipe: &Recipe, out: &Path) -> TransformReport {
    let calibration = inputs(&model.architecture, 6, 0);
    let job = TransformJob {
        model,
        recipe,
        inputs: &calibration,
        out,
        activation_memory: 1 << 30,
        stored_as: StoredAs::Auto,
    };
    transform_checkpoint(&job, &mut Silent).unwrap().0
}

/// Largest difference of the outputs before and after, relative to the largest output.
fn difference(a: &Model, b: &Model) -> f32 {
    let test = inputs(&a.architecture, 5, 77);
    let (before, after) = (logits(a, &test), logits(b, &test));
    let largest = before.data.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    before.data.iter().zip(&after.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// The model quantized by a recipe with transforms, and its squared error relative to the outputs.
fn quantized_error(model: &Model, recipe: &str, with: &[&str]) -> f64 {
    let keep = vec!["lm_head".into(), "embedding".into()];
    let recipe = Recipe { keep, embedding_bits: 16, ..recipe_with(recipe, with) };
    let (report, error) = tried(model, &recipe);
    assert_eq!(report.transforms.is_empty(), with.is_empty());
    error
}

/// Transforms, opens what was written, and gives the difference and the report.
fn transformed(dir: &Path, with: &[&str], recipe: &str) -> (f32, TransformReport) {
    let scratch = tempfile::tempdir().unwrap();
    let model = Model::open(dir).unwrap();
    let out = scratch.path().join("out");
    let report = transform(&model, with, recipe, &out);
    (difference(&model, &Model::open(&out).unwrap()), report)
}

/// The random checkpoints, and the real ones where they are.
fn models() -> Vec<PathBuf> {
    let real = ["models/stories260K", "models/MiniLM-L6-sst2"];
    families().into_iter().chain(real.into_iter().filter_map(asset)).collect()
}

/// Every one alone and all together, on every model; what a search folds lowers the error that it looks at.
#[test]
fn no_transform_changes_a_network() {
    let lists = [
        (vec!["smooth-quant:taps=all"], "int8-w8a8"),
        (vec!["smooth-quant:alpha=search"], "minmax-int-w8a8"),
        (vec!["os-plus:steps=6:taps=all"], "minmax-int-w4a4"),
        (vec!["os-plus:steps=6"], "int8-w8a8"),
        (vec!["awq"], "minmax-int-w4a16"),
        (vec!["pow2"], "minmax-fp-w4a4"),
        (
            vec!["os-plus:steps=3:taps=all", "smooth-quant:alpha=0.9:taps=all", "awq", "pow2"],
            "minmax-int-w4a4",
        ),
    ];
    let (mut worst, mut folded) = (0.0f32, vec![0; lists.len()]);
    for dir in models() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        for ((with, recipe), folded) in lists.iter().zip(&mut folded) {
            let (difference, report) = transformed(&dir, with, recipe);
            assert!(difference < 1e-4, "{name}: {with:?}: {difference:e}");
            worst = worst.max(difference);
            for note in &report.notes {
                assert!(note.into.is_some() || note.skipped.is_some());
                let given = note.transform.contains("smooth-quant") && !note.transform.contains("search");
                if let (Some(_), Some([before, after]), false) = (&note.into, note.error, given) {
                    assert!(after < before, "{name}: {note:?}");
                    *folded += 1;
                }
            }
            // Something was folded wherever there is a norm or a value projection to fold into.
            let any = report.notes.iter().any(|n| n.into.is_some());
            assert!(any || with.len() == 1, "{name}: {with:?} did nothing");
        }
    }
    println!("largest relative difference of outputs: {worst:e}; folded by searches: {folded:?}");
    // The first has nothing to search; the others find something on most models.
    assert!(folded[0] == 0 && folded[1..].iter().all(|&n| n > 20), "{folded:?}");
}

/// Outlier Suppression+ centres channels where producer and readers have biases, for every kind of input scale: one for all,
/// one for each token, one for each group of a token's channels.
#[test]
fn channels_are_shifted_for_inputs_of_every_granularity() {
    for name in ["opt", "bloom", "gpt2"] {
        for (bits, weight, input) in [
            (6, "int6/channel", "int6/tensor"),
            (6, "int6/channel", "int6/channel/dynamic"),
            (4, "int4/group8", "int4/group8/dynamic"),
        ] {
            let recipe = Recipe {
                weight_bits: bits,
                activation_bits: bits,
                weight_scheme: Some(weight.parse().unwrap()),
                input_scheme: Some(input.parse().unwrap()),
                ..recipe_with("int8-w8a8", &["os-plus:steps=8"])
            };
            let scratch = tempfile::tempdir().unwrap();
            let (model, out) = (Model::open(&family(name)).unwrap(), scratch.path().join("out"));
            let report = transform_for(&model, &recipe, &out);
            assert!(difference(&model, &Model::open(&out).unwrap()) < 1e-4, "{name}: {input}");
            let shifted: Vec<_> = report.notes.iter().filter(|n| n.shifted).collect();
            assert!(!shifted.is_empty(), "{name}: {input}: {:?}", report.notes);
            assert!(shifted.iter().all(|n| n.error.unwrap()[1] < n.error.unwrap()[0]), "{name}: {input}");
        }
    }
    // An RMSNorm has no bias that could take a shift.
    let (_, report) = transformed(&family("llama_tied_bf16"), &["os-plus:steps=8"], "minmax-int-w4a4");
    assert!(report.notes.iter().all(|n| !n.shifted) && report.notes.iter().any(|n| n.into.is_some()));
}

/// What a layer that reads an input gets is assumed layer by layer: one that is kept says nothing of the factors, and one of more
/// bits has less error.
#[test]
fn layers_that_share_an_input_are_assumed_each_in_its_own_way() {
    let model = Model::open(&family("llama_tied_bf16")).unwrap();
    let error = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = recipe_with("minmax-int-w4a16", &["awq:taps=norms"]);
        change(&mut recipe);
        let scratch = tempfile::tempdir().unwrap();
        let notes = transform_for(&model, &recipe, &scratch.path().join("out")).notes;
        notes.iter().find(|n| n.layers[0].ends_with("q_proj")).and_then(|n| n.error).unwrap()[0]
    };
    let all = error(&|_| {});
    let wide_first = error(&|r| r.layer_bits.extend([("q_proj".into(), 8)]));
    let wide_last = error(&|r| r.layer_bits.extend([("v_proj".into(), 8)]));
    let wide = error(&|r| r.layer_bits.extend(["q_proj", "k_proj", "v_proj"].map(|l| (l.into(), 8))));
    assert!(100.0 * wide < wide_first && 100.0 * wide < wide_last, "{wide} {wide_first} {wide_last}");
    assert!(wide_first < all && wide_last < all, "{wide_first} {wide_last} {all}");
    let kept = error(&|r| r.keep.extend(["k_proj".into(), "v_proj".into()]));
    assert!(kept > 0.1 * all && kept != all, "{kept} {all}");
}

/// Powers of two round nothing: the same bits come out, and checkpoints keep their type.
#[test]
fn powers_of_two_change_no_bit() {
    for name in ["llama_tied_bf16", "opt", "phi3", "gpt_neox"] {
        let (difference, report) = transformed(&family(name), &["pow2"], "minmax-fp-w4a4");
        assert_eq!((difference, report.dtype), (0.0, None), "{name}");
        let factors: Vec<[f32; 2]> = report.notes.iter().filter_map(|n| n.factors).collect();
        assert!(!factors.is_empty() && factors.iter().flatten().all(|f| f.log2().fract() == 0.0), "{name}");
    }
}

/// Whether the residual stream of a family can be rotated.
fn rotates(name: &str) -> bool {
    ["llama", "mistral", "phi3", "qwen", "stories"].iter().any(|family| name.starts_with(family))
}

#[test]
fn rotations_change_no_network() {
    let mut worst = 0.0f32;
    for dir in models() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let mut lists = vec![vec!["hadamard-heads"]];
        if rotates(&name) {
            lists.push(vec!["rotate"]);
            lists.push(vec!["rotate:block=4", "hadamard-heads:block=4", "smooth-quant:taps=all"]);
        }
        for with in lists {
            let (difference, report) = transformed(&dir, &with, "minmax-int-w8a8");
            assert!(difference > 0.0 && difference < 1e-4, "{name}: {with:?}: {difference:e}");
            worst = worst.max(difference);
            assert_eq!(report.dtype.as_deref(), Some("float32"));
        }
    }
    println!("largest relative difference of outputs: {worst:e}");
}

#[test]
fn where_a_rotation_does_not_pass_is_said() {
    let refused = |name: &str, with: &[&str]| {
        let (model, scratch) = (Model::open(&family(name)).unwrap(), tempfile::tempdir().unwrap());
        let (recipe, calibration) = (recipe_with("minmax-int-w8a8", with), inputs(&model.architecture, 2, 0));
        let out = scratch.path().join("out");
        let job = TransformJob {
            model: &model,
            recipe: &recipe,
            inputs: &calibration,
            out: &out,
            activation_memory: 1 << 30,
            stored_as: StoredAs::Auto,
        };
        let error = transform_checkpoint(&job, &mut Silent).err().unwrap().to_string();
        let options = halfbyte_quantize::PlanOptions::of(&model.architecture, &calibration, 1 << 30);
        assert_eq!(halfbyte_quantize::plan(&model, &recipe, options).err().unwrap().to_string(), error);
        assert!(quantize(&self::job(&model, &recipe, &calibration, &out), &mut Silent).is_err());
        assert!(std::fs::read_dir(scratch.path()).unwrap().next().is_none(), "something was written");
        error
    };
    for dir in families() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        if !rotates(&name) {
            let error = refused(&name, &["rotate"]);
            assert!(error.contains("transforms = rotate: the ") && error.contains(" model has "), "{error}");
        }
    }
    assert!(refused("opt", &["rotate"]).contains("opt model has learned positions"));
    assert!(refused("gpt_neox", &["rotate"]).contains("LayerNorm (gpt_neox.layers.0.input_layernorm)"));
    assert!(refused("gemma2", &["rotate"]).contains("post_attention_layernorm"));
    assert!(refused("llama", &["pow2", "rotate"]).contains("before all others"));
    assert!(refused("llama", &["rotate:block=7"]).contains("blocks of 7 do not divide"));
    assert!(refused("llama", &["hadamard-heads:block=7"]).contains("blocks of 7 do not divide"));
}

/// Tied or not, in codes or kept: what is stored is the rotated network.
#[test]
fn a_rotated_network_is_quantized_as_well() {
    let rotating = families().into_iter().chain(asset("models/stories260K"));
    for dir in rotating.filter(|d| rotates(&d.file_name().unwrap().to_string_lossy())) {
        let model = Model::open(&dir).unwrap();
        let recipe = Recipe { embedding_bits: 8, ..recipe_with("fpq-w8a8", &["rotate", "hadamard-heads"]) };
        let keep = |layers: &[&str]| layers.iter().map(|l| l.to_string()).collect::<Vec<_>>();
        for keep in [keep(&[]), keep(&["lm_head"]), keep(&["embedding"]), keep(&["lm_head", "embedding"])] {
            let recipe = Recipe { keep: keep.clone(), ..recipe.clone() };
            let (report, error) = tried(&model, &recipe);
            let options = halfbyte_quantize::PlanOptions::inputs(12, 64, 1 << 30);
            let planned = halfbyte_quantize::plan(&model, &recipe, options).unwrap().output_bytes;
            // What a plan counts and transforms need not write in f32: norms of heads and biases.
            let (name, spare) = (dir.file_name().unwrap().to_string_lossy(), planned - report.output_bytes);
            let (biased, heads) = (name.contains("bias") || name.contains("qwen2"), name.contains("qwen3"));
            assert!(spare == 0 || ((biased || heads) && spare < 8192), "{name}: {spare}");
            assert!(error > 0.0 && error < 0.01, "{}: {keep:?}: {error}", dir.display());
        }
    }
}

/// A layer that is kept and takes factors is written in f32, which the plan has to know.
#[test]
fn what_transforms_write_in_f32_is_planned() {
    let model = Model::open(&family("llama_tied_bf16")).unwrap();
    let planned = |with: &[&str], keep: &[&str]| {
        let keep = keep.iter().chain(&["lm_head", "embedding"]).map(|l| l.to_string()).collect();
        let recipe = Recipe { embedding_bits: 16, keep, ..recipe_with("minmax-int-w8a8", with) };
        let options = halfbyte_quantize::PlanOptions::inputs(12, 64, 1 << 30);
        let plan = halfbyte_quantize::plan(&model, &recipe, options).unwrap();
        (plan.output_bytes, plan.working_bytes, tried(&model, &recipe).0.output_bytes)
    };
    let (plain, working, wrote) = planned(&[], &["up_proj"]);
    assert_eq!(plain, wrote);
    let (more, folded_working, wrote) = planned(&["smooth-quant:taps=all"], &["up_proj"]);
    let a = &model.architecture;
    let up: usize = a.sites().filter(|s| s.kind() == "up_proj").map(|s| s.outputs * s.inputs).sum();
    let norms = 2 * a.blocks.len() * a.hidden;
    // Two bytes more for every value in the output, and four for the journal.
    assert_eq!((more, wrote), (plain + 2 * (up + norms) as u64, more));
    assert_eq!(folded_working, working + 4 * (up + norms) as u64);
}

/// Whatever the threads, the place of activations and the user's patience.
#[test]
fn interruptions_change_no_byte() {
    let model = Model::open(&family("llama_tied_bf16")).unwrap();
    let calibration = inputs(&model.architecture, 8, 0);
    let lists: [&[&str]; 2] = [&["os-plus:steps=4:taps=all", "pow2"], &["rotate", "hadamard-heads", "awq"]];
    for with in lists {
        let recipe = Recipe { embedding_bits: 16, ..recipe_with("minmax-int-w4a4", with) };
        for transforms_alone in [true, false] {
            let scratch = tempfile::tempdir().unwrap();
            let run = |name: &str, threads: usize, activation_memory: u64, mut patience: usize| {
                let out = scratch.path().join(name);
                let (model, recipe, inputs, out) = (&model, &recipe, &calibration[..], &out);
                let once = |patience: usize| match transforms_alone {
                    true => {
                        let stored_as = StoredAs::Auto;
                        let job = TransformJob { model, recipe, inputs, out, activation_memory, stored_as };
                        transform_checkpoint(&job, &mut Patience(patience)).err()
                    }
                    false => {
                        let job = Job { model, recipe, inputs, out, activation_memory, pages: None };
                        quantize(&job, &mut Patience(patience)).err()
                    }
                };
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut stops = 0;
                // An impatient user gives a little more time with every try.
                pool.install(|| {
                    while let Some(error) = once(patience) {
                        assert!(matches!(error, QuantizeError::Stopped(_)), "{error}");
                        (patience, stops) = (patience + 1, stops + 1);
                    }
                });
                assert_eq!(stops > 0, patience < 1000);
                contents(out)
            };
            let wanted = run("one", 1, 1 << 30, usize::MAX);
            assert!(wanted.contains_key("model.safetensors") && wanted.contains_key("config.json"));
            assert!(run("two", 2, 1 << 30, usize::MAX) == wanted, "{with:?}: two threads");
            assert!(run("files", 2, 0, usize::MAX) == wanted, "{with:?}: activations in files");
            assert!(run("stops", 2, 1 << 30, 1) == wanted, "{with:?}: interruptions");
        }
    }
}

#[test]
fn a_recipe_transforms_on_the_way() {
    for dir in families() {
        let model = Model::open(&dir).unwrap();
        let error = quantized_error(&model, "minmax-int-w8a8", &["os-plus:steps=4:taps=all", "pow2"]);
        assert!(error < 0.01, "{}: {error}", dir.display());
    }
}

/// Where no producer can take factors, a folder of ours has a place for them and an ordinary checkpoint has none.
#[test]
fn factors_without_a_producer_stay_in_our_folders() {
    for (name, taps) in [("bert", 3), ("distilbert", 3), ("opt_post_norm", 2), ("gpt2", 1)] {
        let model = Model::open(&family(name)).unwrap();
        let recipe = Recipe {
            embedding_bits: 16,
            ..recipe_with("minmax-int-w8a8", &["os-plus:steps=8:taps=all:migrate=true"])
        };
        let calibration = inputs(&model.architecture, 8, 0);
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("out");
        let report = quantize(&job(&model, &recipe, &calibration, &out), &mut Silent).unwrap().report;
        let migrated = |n: &&halfbyte_quantize::transforms::Note| {
            n.into.as_ref().is_some_and(|into| into.ends_with(".migration"))
        };
        let notes: Vec<_> = report.transforms.iter().filter(migrated).collect();
        assert_eq!(notes.len(), taps * model.architecture.blocks.len(), "{name}: {:?}", report.transforms);
        // They are read back, from a version of the layout that says so: without them the network would be another one.
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["quantization_config"]["version"], 4);
        let mut wrong = config.clone();
        wrong["quantization_config"]["migrations"][0] = "encoder.migration".into();
        std::fs::write(out.join("config.json"), wrong.to_string()).unwrap();
        let error = Model::open(&out).err().unwrap().to_string();
        assert!(error.contains("names encoder.migration, which this model has no place for"), "{error}");
        std::fs::write(out.join("config.json"), config.to_string()).unwrap();
        let opened = Model::open(&out).unwrap();
        assert!(opened.architecture.has_migrations() && !model.architecture.has_migrations());
        let test = inputs(&model.architecture, 5, 77);
        let error = util::relative_error(&logits(&opened, &test), &logits(&model, &test));
        assert!(error < 0.01, "{name}: {error}");
        let (difference, report) =
            transformed(&family(name), &["os-plus:steps=8:taps=all"], "minmax-int-w8a8");
        assert!(difference < 1e-4 && !report.notes.iter().any(|n| migrated(&n)), "{name}: {difference}");
    }
}

/// Outliers as large models have them (arXiv 2209.13325, 2304.09145): one channel in eight of every norm is four times the
/// others' and lies far to one side. The layers that read it are smaller in return; what the centres add to their outputs is
/// a constant, which stays.
fn with_outliers(dir: &Path, to: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let path = to.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (head, mut data) = (bytes[..header].to_vec(), bytes[header..].to_vec());
    let json: serde_json::Value = serde_json::from_slice(&head[8..]).unwrap();
    for (name, entry) in json.as_object().unwrap() {
        let norm = name.contains("layers.") && name.contains("layer_norm");
        let reads = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "fc1.weight"];
        let reads = reads.iter().any(|part| name.ends_with(part));
        if !norm && !reads {
            continue;
        }
        assert_eq!(entry["dtype"], "BF16");
        let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
        let columns = entry["shape"].as_array().unwrap().last().unwrap().as_u64().unwrap() as usize;
        for (i, value) in data[at(0)..at(1)].chunks_exact_mut(2).enumerate() {
            let channel = i % columns;
            if channel % 8 != 3 {
                continue;
            }
            let old = half::bf16::from_le_bytes([value[0], value[1]]).to_f32();
            let centre = if channel % 16 == 3 { 60.0 } else { -60.0 };
            let new = match (reads, name.ends_with(".bias")) {
                (true, _) => old / 4.0,
                (_, true) => 4.0 * old + centre,
                _ => 4.0 * old,
            };
            value.copy_from_slice(&half::bf16::from_f32(new).to_le_bytes());
        }
    }
    std::fs::write(path, [head, data].concat()).unwrap();
}

/// The order in which the paper on Outlier Suppression+ has them (arXiv 2304.09145, tables 2 and 3).
#[test]
fn against_outliers_os_plus_is_no_worse_than_smooth_quant() {
    let scratch = tempfile::tempdir().unwrap();
    with_outliers(&family("opt"), scratch.path());
    let model = Model::open(scratch.path()).unwrap();
    for recipe in ["minmax-int-w8a8", "minmax-int-w6a6"] {
        let error = |with: &[&str]| quantized_error(&model, recipe, with);
        let (none, smooth, os_plus) = (error(&[]), error(&["smooth-quant"]), error(&["os-plus"]));
        println!("{recipe}: none {none:.2e}, smooth-quant {smooth:.2e}, os-plus {os_plus:.2e}");
        assert!(os_plus <= smooth && smooth < 0.5 * none, "{recipe}: {none}, {smooth}, {os_plus}");
    }
}

/// The same on a real BERT, whose sums are normed and whose MLPs have GELU, for texts that it was not calibrated on.
#[test]
fn a_bert_keeps_its_answers_at_six_bits_with_os_plus() {
    let (Some(dir), Some(data)) =
        (asset("models/MiniLM-L6-sst2"), asset("data/calibration/sst2_train_512.tsv"))
    else {
        return;
    };
    let model = Model::open(&dir).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let text = std::fs::read_to_string(data).unwrap();
    let rows = text.lines().filter_map(|l| l.split('\t').next());
    let rows: Vec<Input> =
        rows.take(96).map(|r| Input::Tokens(tokenizer.encode_prompt(r).unwrap())).collect();
    let (calibration, test) = rows.split_at(32);
    let full = logits(&model, test);
    let error = |recipe: &str| {
        let (_, found) = util::quantized(&model, &Recipe::named(recipe).unwrap(), calibration, test);
        util::relative_error(&found, &full)
    };
    let [none, smooth, os_plus] = ["minmax-int-w6a6", "smooth-quant-w6a6", "os-plus-w6a6"].map(error);
    println!("none {none:.4}, smooth-quant {smooth:.4}, os-plus {os_plus:.4}");
    assert!(os_plus < 0.5 * smooth && smooth < none, "{none}, {smooth}, {os_plus}");
}
