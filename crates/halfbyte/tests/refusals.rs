//! Every bad input gives one clear line, exit code 1, and no output folder.
#![allow(clippy::unwrap_used)]

mod util;

use serde_json::{Value, json};
use std::fs;
use util::*;

/// Spoils a copy of the model and checks what `quantize` says to it.
#[track_caller]
fn refuses(spoil: impl FnOnce(&Scratch), needles: &[&str]) {
    let scratch = Scratch::new();
    spoil(&scratch);
    let ran = finish(&mut scratch.quantize("minmax-fp-w4a4", 1));
    assert_eq!(ran.stdout, "");
    ran.refused(needles);
    assert!(!scratch.out().exists());
}

const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// Splits the weights into two shards with an index.
fn shard(scratch: &Scratch) {
    let (header, data) = read_safetensors(&scratch.weights());
    let tensors: Vec<(String, Value)> = header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(n, _)| *n != "__metadata__")
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    let mut map = serde_json::Map::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", i + 1);
        let (mut head, mut bytes) = (serde_json::Map::new(), Vec::new());
        for (tensor, info) in part {
            let (from, to) = offsets(&header, tensor);
            let start = bytes.len();
            bytes.extend(&data[from..to]);
            head.insert(tensor.clone(), json!({ "dtype": info["dtype"], "shape": info["shape"], "data_offsets": [start, bytes.len()] }));
            map.insert(tensor.clone(), name.clone().into());
        }
        fs::write(scratch.model().join(&name), safetensors_bytes(&head.into(), &bytes)).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(scratch.model().join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::remove_file(scratch.weights()).unwrap();
}

#[test]
fn shards_are_read() {
    let scratch = Scratch::new();
    shard(&scratch);
    finish(&mut scratch.quantize("minmax-fp-w4a4", 1)).json();
}

#[test]
fn no_folder() {
    let scratch = Scratch::new();
    fs::remove_dir_all(scratch.model()).unwrap();
    finish(&mut scratch.quantize("minmax-fp-w4a4", 1)).refused(&["model", "not a folder"]);
}

#[test]
fn no_safetensors() {
    refuses(|s| fs::remove_file(s.weights()).unwrap(), &["model", "no weights", "safetensors"]);
}

#[test]
fn truncated() {
    let cut = |s: &Scratch| {
        let bytes = fs::read(s.weights()).unwrap();
        fs::write(s.weights(), &bytes[..bytes.len() / 2]).unwrap();
    };
    refuses(cut, &["model.safetensors"]);
    refuses(|s| fs::write(s.weights(), [1, 2, 3]).unwrap(), &["model.safetensors", "too few"]);
    refuses(|s| fs::write(s.weights(), []).unwrap(), &["model.safetensors"]);
}

#[test]
fn a_header_that_lies_about_offsets() {
    refuses(
        |s| s.edit_weights(|header, _| header[UP]["data_offsets"][1] = json!(1u64 << 40)),
        &["model.safetensors", UP],
    );
    let overlap = |s: &Scratch| {
        s.edit_weights(|header, _| {
            let gate = header["model.layers.1.mlp.gate_proj.weight"]["data_offsets"].clone();
            header[UP]["data_offsets"] = gate;
        });
    };
    refuses(overlap, &["model.safetensors", "up_proj"]);
    refuses(
        |s| s.edit_weights(|header, _| header[UP]["shape"] = json!([3, 64])),
        &["model.safetensors", UP, "damaged"],
    );
}

#[test]
fn a_shard_is_missing() {
    let remove = |s: &Scratch| {
        shard(s);
        fs::remove_file(s.model().join("model-00002-of-00002.safetensors")).unwrap();
    };
    refuses(remove, &["model-00002-of-00002.safetensors", "missing"]);
}

#[test]
fn a_tensor_is_missing_or_of_wrong_shape() {
    let rename = |s: &Scratch| {
        s.edit_weights(|header, _| {
            let object = header.as_object_mut().unwrap();
            let info = object.remove(UP).unwrap();
            object.insert("model.layers.1.mlp.upward.weight".into(), info);
        });
    };
    refuses(rename, &[UP]);
    refuses(|s| s.edit_weights(|header, _| header[UP]["shape"] = json!([64, 172])), &[UP, "172", "64"]);
    let mistyped = |s: &Scratch| s.edit_weights(|header, _| header[UP]["dtype"] = json!("I32"));
    refuses(mistyped, &[UP, "I32"]);
    // The headers say it already.
    let scratch = Scratch::new();
    mistyped(&scratch);
    finish(halfbyte().arg("plan").arg(scratch.model()).args(["--recipe", "fpq-w4a4"])).refused(&[UP, "I32"]);
}

#[test]
fn blocks_that_the_configuration_does_not_count() {
    let scratch = Scratch::new();
    let plan = || finish(halfbyte().arg("plan").arg(scratch.model()).args(["--recipe", "fpq-w4a4"])).text();
    assert!(!plan().contains("counts"));
    scratch.edit_config(|config| config["num_hidden_layers"] = json!(4));
    let said = plan();
    assert!(said.contains("counts 4 blocks") && said.contains("model.layers.4."), "{said}");
}

#[test]
fn a_weight_is_not_finite() {
    for (value, tensor) in [
        (f32::NAN, UP),
        (f32::INFINITY, UP),
        (f32::NEG_INFINITY, "model.embed_tokens.weight"),
        (f32::NAN, "model.norm.weight"),
    ] {
        let spoil = |s: &Scratch| {
            s.edit_weights(|header, data| {
                let (from, _) = offsets(header, tensor);
                data[from + 40..from + 44].copy_from_slice(&value.to_le_bytes());
            });
        };
        refuses(spoil, &[tensor]);
    }
}

#[test]
fn an_unknown_architecture_or_rope_type() {
    refuses(|s| s.edit_config(|c| c["model_type"] = "mamba".into()), &["model_type", "mamba", "llama"]);
    refuses(
        |s| {
            s.edit_config(|c| {
                c.as_object_mut().unwrap().remove("model_type");
            })
        },
        &["model_type", "missing"],
    );
    let rope = json!({ "rope_type": "longrope", "factor": 2.0 });
    refuses(|s| s.edit_config(|c| c["rope_scaling"] = rope), &["rope_type", "longrope"]);
    refuses(|s| fs::write(s.model().join("config.json"), "{").unwrap(), &["config.json", "JSON"]);
    refuses(|s| fs::remove_file(s.model().join("config.json")).unwrap(), &["config.json", "missing"]);
}

#[test]
fn the_calibration_text() {
    let scratch = Scratch::new();
    let with = |text: &std::path::Path| {
        let mut command = halfbyte();
        command
            .arg("quantize")
            .arg(scratch.model())
            .args(["--recipe", "minmax-fp-w4a4", "--calibration"])
            .arg(text);
        finish(command.arg("--out").arg(scratch.out()).args(["--calibration-window", "32"]))
    };
    with(&scratch.write("empty.txt", "")).refused(&["empty.txt", "empty"]);
    with(&scratch.write("blank.txt", " \n\n")).refused(&["blank.txt", "empty"]);
    with(&scratch.write("short.txt", "Once upon a time."))
        .refused(&["short.txt", "fewer than one window of 32"]);
    with(&scratch.write("latin1.txt", b"caf\xe9 \xff")).refused(&["latin1.txt", "UTF-8"]);
    with(&scratch.path("absent.txt")).refused(&["absent.txt"]);
    assert!(!scratch.out().exists() && !scratch.path("out.partial").exists());

    let hint = finish(scratch.quantize("minmax-fp-w4a4", 1).args(["--calibration-window", "513"]));
    assert_eq!(hint.code, Some(2), "an option may be given once");
    let mut command = halfbyte();
    command.arg("quantize").arg(scratch.model()).args([
        "--recipe",
        "fpq-w4a4",
        "--calibration-window",
        "513",
    ]);
    command.arg("--calibration").arg(text()).arg("--out").arg(scratch.out());
    let said = finish(&mut command).refused(&["--calibration-window 513", "512"]);
    assert!(said.contains("hint: "), "{said}");
}

#[test]
fn no_tokenizer() {
    refuses(|s| fs::remove_file(s.model().join("tokenizer.json")).unwrap(), &["tokenizer.json", "not found"]);
    refuses(
        |s| fs::write(s.model().join("tokenizer.json"), "{}").unwrap(),
        &["tokenizer.json", "not a tokenizer"],
    );
    let scratch = Scratch::new();
    fs::remove_file(scratch.model().join("tokenizer.json")).unwrap();
    finish(halfbyte().arg("eval").arg(scratch.model()).arg("--perplexity").arg(text()))
        .refused(&["tokenizer.json"]);
}

#[test]
fn out_is_the_model() {
    let scratch = Scratch::new();
    let before = contents(&scratch.model());
    let said = |command: &str, options: &[&str]| {
        let mut run = halfbyte();
        run.arg(command).arg(scratch.model()).args(options).arg("--calibration").arg(text());
        finish(run.arg("--out").arg(scratch.model())).refused(&["is the model itself"])
    };
    for said in [
        said("quantize", &["--recipe", "minmax-fp-w4a4"]),
        said("transform", &["--with", "rotate"]),
        said("ablate", &["--recipes", "minmax-fp-w4a4", "--tasks", "x", "--task-dir", "."]),
    ] {
        assert!(!said.contains("delete"), "{said}");
    }
    assert_same(&before, &contents(&scratch.model()), "the model");
}

#[test]
fn what_others_left_beside_out_is_left_alone() {
    let scratch = Scratch::new();
    let folder = scratch.path("nv");
    let quantized = |out: &std::path::Path| {
        let mut command = halfbyte();
        command.arg("quantize").arg(scratch.model()).args(["--recipe", "nvfp4-w4a16"]);
        command.args(["--keep", "lm_head,embedding,down_proj", "--json", "--out"]).arg(out);
        command
    };
    finish(&mut quantized(&folder)).json();
    let mut others = [quantized(&scratch.out()), halfbyte(), halfbyte()];
    others[1].arg("export").arg(&folder).args(["--to", "vllm-nvfp4", "--out"]).arg(scratch.out());
    others[2].args(["synth", "--like", "gpt2", "--layers", "1", "--out"]).arg(scratch.out());

    // An unfinished run of hours, and a folder of the user's.
    fs::create_dir(scratch.path("out.partial")).unwrap();
    for (file, needle) in
        [("journal.json", "unfinished run"), ("mine.txt", "mine.txt, which halfbyte did not make")]
    {
        let path = scratch.write(&format!("out.partial/{file}"), "{}");
        for command in &mut others {
            finish(command).refused(&[needle]);
            assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
            assert!(!scratch.out().exists());
            let _ = fs::remove_file(scratch.path("out.partial/lock"));
        }
        fs::remove_file(path).unwrap();
    }
    // An empty one is nobody's.
    finish(&mut others[1]).text();
}

#[test]
fn names_of_a_recipe() {
    let scratch = Scratch::new();
    let plan = |text: &str| {
        let recipe = scratch.write("mine.toml", text);
        finish(halfbyte().arg("plan").arg(scratch.model()).arg("--recipe").arg(recipe))
    };
    plan("name = \"../elsewhere\"\n").refused(&["name", "../elsewhere"]);
    plan("keep = [\"up_porj\"]\n").refused(&["keep", "up_porj", "no layer"]);
    plan("[layer_bits]\nup_porj = 8\n").refused(&["layer_bits", "up_porj", "no layer"]);
    let scheme = "method = \"scheme\"\nweight_bits = 4\nactivation_bits = 16\nembedding_bits = 16\nweight_scheme = \"int4/channel\"\n";
    plan(&format!("{scheme}[schemes]\nup_porj = \"int8/channel\"\n"))
        .refused(&["schemes", "up_porj", "no layer"]);
    // What every model may have is no mistake.
    plan("keep = [\"lm_head\", \"embedding\"]\n").text();
}

#[test]
fn second_moments_that_no_matrix_can_be_made_of() {
    // 1e38 is finite, its square is not.
    let scratch = Scratch::new();
    scratch.edit_weights(|header, data| {
        let (from, _) = offsets(header, "model.layers.1.mlp.up_proj.weight");
        data[from..from + 4].copy_from_slice(&1e38f32.to_le_bytes());
    });
    let mut command = scratch.quantize("fpq-w4a4", 1);
    finish(&mut command).refused(&["layers.1.mlp.down_proj", "not finite", "weights before it"]);
    // A handful of tokens, and nothing that makes up for what they do not tell.
    let scratch = Scratch::new();
    let text = run(["recipes", "fpq-w4a4"]).text();
    let line = text.lines().find(|l| l.starts_with("damping =")).unwrap();
    let recipe = scratch.write("thin.toml", text.replace(line, "damping = 1e-9"));
    let mut command = scratch.quantize(recipe.to_str().unwrap(), 1);
    finish(command.args(["--coverage", "0"])).refused(&["layers.0.", "_proj", "raise `damping`"]);
}

#[test]
fn what_an_option_or_a_field_would_not_change() {
    let scratch = Scratch::new();
    let with = |recipe: &str, options: &[&str], needles: &[&str]| {
        let mut command = halfbyte();
        finish(command.arg("plan").arg(scratch.model()).args(["--recipe", recipe]).args(options))
            .refused(needles);
    };
    with("nvfp4-w4a4", &["--rounds", "7"], &["--rounds", "nvfp4-w4a4"]);
    with("minmax-int-w4a4", &["--search", "gram"], &["--search", "minmax-int-w4a4"]);
    with("mxfp4-w4a4", &["--grid", "published"], &["--grid", "mxfp4-w4a4"]);
    let mut clip = halfbyte();
    clip.arg("plan").arg(scratch.model()).args(["--recipe", "int8-w8a8", "--grid", "published"]);
    finish(&mut clip).text();
    let grid = scratch
        .write("grid.toml", "[activation_grid]\nkind = \"maxval\"\nlow = 1e-45\nhigh = 1.0\nsteps = 60\n");
    with(grid.to_str().unwrap(), &[], &["activation_grid", "0.000001 <= low"]);
}

#[test]
fn out_is_another_runs() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.out()).unwrap();
    let mine = scratch.out().join("mine.txt");
    fs::write(&mine, "precious").unwrap();
    finish(&mut scratch.quantize("minmax-fp-w4a4", 1)).refused(&["out", "not the output of this run"]);
    assert_eq!(fs::read_to_string(&mine).unwrap(), "precious");
    fs::remove_dir_all(scratch.out()).unwrap();

    finish(&mut scratch.quantize("minmax-fp-w4a4", 1)).json();
    let before = contents(&scratch.out());
    finish(&mut scratch.quantize("minmax-int-w4a4", 1)).refused(&["out", "not the output of this run"]);
    finish(&mut scratch.quantize("minmax-fp-w4a4", 2)).refused(&["out", "not the output of this run"]);
    assert_same(&before, &contents(&scratch.out()), "the other run's output");
    assert!(!scratch.path("out.partial").exists());

    let mut command = halfbyte();
    command.arg("quantize").arg(scratch.model()).args([
        "--recipe",
        "fpq-w4a4",
        "--out",
        "/",
        "--calibration",
    ]);
    finish(command.arg(text())).refused(&["/", "names no folder"]);
}

#[test]
fn a_quantized_model_is_not_quantized_again() {
    let scratch = Scratch::new();
    let out = scratch.quantized();
    for args in [&["plan"][..], &["quantize", "--calibration", "x", "--out", "y"]] {
        let ran = finish(halfbyte().args(args).arg(&out).args(["--recipe", "fpq-w4a4"]));
        assert!(ran.refused(&["out", "already quantized"]).contains("hint: "));
    }
    fs::remove_file(out.join("report.json")).unwrap();
    finish(halfbyte().arg("report").arg(&out)).refused(&["report.json"]);
}

#[test]
fn eval_windows() {
    let eval = |text: &std::path::Path, options: &[&str]| {
        finish(halfbyte().arg("eval").arg(model()).arg("--perplexity").arg(text).args(options))
    };
    let said = eval(&text(), &["--window", "1024"]).refused(&["--window 1024", "context of 512"]);
    assert!(said.contains("hint: give --window 512 or less"), "{said}");
    eval(&text(), &["--window", "64", "--skip-tokens", "1000000"]).refused(&["fewer than one window of 64"]);
    let scratch = Scratch::new();
    eval(&scratch.write("short.txt", "Once."), &[]).refused(&["fewer than one window of 512"]);
    eval(&scratch.path("absent.txt"), &[]).refused(&["absent.txt"]);
}

#[test]
fn damaged_codes() {
    let scratch = Scratch::new();
    let out = scratch.quantized();
    let weights = out.join("model.safetensors");
    let (header, mut data) = read_safetensors(&weights);
    let name = "model.layers.0.mlp.down_proj.weight_scale";
    let (from, _) = offsets(&header, name);
    data[from..from + 4].copy_from_slice(&(-1.0f32).to_le_bytes());
    fs::write(&weights, safetensors_bytes(&header, &data)).unwrap();
    let mut command = halfbyte();
    finish(command.arg("eval").arg(&out).arg("--perplexity").arg(text()).args(["--windows", "1"]))
        .refused(&[name]);
}

#[test]
fn a_misspelt_layer_to_keep() {
    let scratch = Scratch::new();
    let said =
        finish(scratch.quantize("fpq-w4a4", 1).args(["--keep", "lm_haed"])).refused(&["--keep", "lm_haed"]);
    assert!(said.contains("lm_head"), "{said}");
}
