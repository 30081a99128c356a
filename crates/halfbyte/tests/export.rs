//! Fixed schemes from the checkpoint to other engines' files and back.
#![allow(clippy::unwrap_used)]

mod util;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use util::*;

/// The embedded model with an MLP of 128 channels, so that blocks divide all of its layers: rows and columns of the MLP
/// are dropped. It still is a network, if a worse one.
fn narrowed() -> Scratch {
    let scratch = Scratch::new();
    let (header, data) = read_safetensors(&scratch.weights());
    let mut tensors = serde_json::Map::new();
    let mut bytes = Vec::new();
    for (name, info) in header.as_object().unwrap() {
        if name == "__metadata__" {
            continue;
        }
        let (from, to) = offsets(&header, name);
        let mut kept = data[from..to].to_vec();
        let mut shape = info["shape"].clone();
        let row = 4 * 172;
        if name.contains("gate_proj") || name.contains("up_proj") {
            kept.truncate(128 * 64 * 4);
            shape = json!([128, 64]);
        } else if name.contains("down_proj") {
            kept = kept.chunks(row).flat_map(|r| r[..4 * 128].to_vec()).collect();
            shape = json!([64, 128]);
        }
        let start = bytes.len();
        bytes.extend(kept);
        let place = json!([start, bytes.len()]);
        tensors
            .insert(name.clone(), json!({ "dtype": info["dtype"], "shape": shape, "data_offsets": place }));
    }
    fs::write(scratch.weights(), safetensors_bytes(&tensors.into(), &bytes)).unwrap();
    scratch.edit_config(|config| config["intermediate_size"] = json!(128));
    scratch
}

fn perplexity(dir: &Path) -> f64 {
    let mut command = halfbyte();
    command.arg("eval").arg(dir).arg("--perplexity").arg(text()).args([
        "--window",
        "64",
        "--windows",
        "2",
        "--json",
    ]);
    finish(&mut command).json()["perplexity"]["value"].as_f64().unwrap()
}

#[test]
fn an_exported_folder_evaluates_to_the_same_perplexity() {
    let scratch = narrowed();
    let full = perplexity(&scratch.model());
    for (recipe, targets) in [
        ("nvfp4-w4a16", "vllm-nvfp4,modelopt,gguf-nvfp4"),
        ("nvfp4-w4a4", "vllm-nvfp4,modelopt,gguf-nvfp4"),
        ("mxfp4-w4a4", "vllm-mxfp4,gguf-mxfp4"),
        ("fp8-w8a8", "vllm-fp8"),
        ("int4-g32-w4a16", "vllm-int"),
        ("int8-w8a8", "vllm-int"),
        ("nvfp4-gptq-w4a16", "vllm-nvfp4,modelopt,gguf-nvfp4"),
        ("mxfp4-gptq-w4a4", "vllm-mxfp4,gguf-mxfp4"),
        ("nvfp4-pow2-gptq-w4a4", "vllm-nvfp4,modelopt,gguf-nvfp4"),
        ("int4-g32-gptq-w4a16", "vllm-int"),
    ] {
        let (folder, exports) = (scratch.path(recipe), scratch.path(&format!("{recipe}-exports")));
        let mut command = halfbyte();
        command
            .arg("quantize")
            .arg(scratch.model())
            .args(["--recipe", recipe, "--json"])
            .arg("--out")
            .arg(&folder);
        if recipe == "nvfp4-w4a4" || recipe.contains("gptq") {
            // The inputs have a static tensor scale, or their second moments count.
            finish(&mut command).refused(&[recipe, "text to calibrate on"]);
            command.arg("--calibration").arg(text()).args(["--calibration-windows", "2"]);
        }
        finish(&mut command).json();
        let ours = perplexity(&folder);
        assert!(ours != full && ours < 10.0 * full, "{recipe}: {ours} and {full}");

        let mut command = halfbyte();
        command.arg("export").arg(&folder).args(["--to", targets, "--json"]).arg("--out").arg(&exports);
        let value = finish(&mut command).json();
        for (target, export) in targets.split(',').zip(value["exports"].as_array().unwrap()) {
            assert_eq!((&export["target"], &export["proven"]), (&target.into(), &true.into()));
            let dir = Path::new(export["dir"].as_str().unwrap());
            if target.starts_with("gguf") {
                assert_eq!(contents(dir).len(), 1);
                fs::copy(scratch.model().join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
                // GGUF says nothing of inputs: only with 16 bits they are the same.
                let theirs = perplexity(dir);
                assert!(
                    theirs == ours || recipe.ends_with("w4a4"),
                    "{recipe} as {target}: {theirs} and {ours}"
                );
            } else {
                assert_eq!(perplexity(dir), ours, "{recipe} as {target}");
            }
        }
    }
}

fn quantize(model: &Path, recipe: &str, out: &Path) -> std::process::Command {
    let mut command = halfbyte();
    command.arg("quantize").arg(model).args(["--recipe", recipe, "--json"]).arg("--out").arg(out);
    command
}

fn inspect(path: &Path) -> Value {
    finish(halfbyte().arg("inspect").arg(path).arg("--json")).json()
}

#[test]
fn the_rest_of_a_gguf_file_may_be_rounded() {
    let scratch = narrowed();
    let folder = scratch.path("q");
    finish(&mut quantize(&scratch.model(), "mxfp4-w4a16", &folder)).json();
    let ours = perplexity(&folder);
    let export = |target: &str, rest: &str| {
        let mut command = halfbyte();
        let out = scratch.path(&format!("{target}-{rest}"));
        command.arg("export").arg(&folder).args(["--to", target, "--rest", rest]).arg("--out").arg(&out);
        (finish(&mut command), out)
    };
    let mut sizes = Vec::new();
    for rest in ["f32", "bf16", "f16", "q8_0"] {
        let (done, out) = export("gguf-mxfp4", rest);
        done.text();
        fs::copy(scratch.model().join("tokenizer.json"), out.join("tokenizer.json")).unwrap();
        let theirs = perplexity(&out);
        assert!((theirs / ours - 1.0).abs() < 0.01, "{rest}: {theirs} and {ours}");
        assert_eq!(theirs == ours, rest == "f32");
        let name =
            fs::read_dir(&out).unwrap().flatten().find(|e| e.path().extension().unwrap() == "gguf").unwrap();
        sizes.push(name.metadata().unwrap().len());
        let dtypes = &inspect(&name.path())["dtypes"];
        assert_eq!(dtypes[rest.to_uppercase()]["tensors"], if rest == "f32" { 12 } else { 1 }, "{dtypes}");
    }
    assert!(sizes[0] > sizes[1] && sizes[1] == sizes[2] && sizes[2] > sizes[3], "{sizes:?}");
    export("vllm-mxfp4", "f16").0.refused(&["--rest", "GGUF", "vllm-mxfp4"]);
}

#[test]
fn quantized_models_of_other_tools_are_quantized_anew_on_request_alone() {
    let scratch = narrowed();
    let folder = scratch.path("q");
    finish(&mut quantize(&scratch.model(), "nvfp4-w4a16", &folder)).json();
    let targets = "vllm-nvfp4,modelopt,gguf-nvfp4";
    let exports = scratch.path("exports");
    let mut command = halfbyte();
    finish(command.arg("export").arg(&folder).args(["--to", targets]).arg("--out").arg(&exports)).text();
    let mut weights: Option<Vec<u8>> = None;
    for target in targets.split(',') {
        let dir = exports.join(target);
        if target.starts_with("gguf") {
            fs::copy(scratch.model().join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
        }
        let out = scratch.path(&format!("{target}-again"));
        let refused = finish(&mut quantize(&dir, "int4-g32-w4a16", &out)).refused(&["already quantized"]);
        assert!(refused.contains("--requantize"), "{refused}");
        let value = finish(quantize(&dir, "int4-g32-w4a16", &out).arg("--requantize")).json();
        assert!(value["requantized"].as_str().unwrap().to_lowercase().contains("nvfp4"), "{value}");
        // All three hold the same values.
        let (header, data) = read_safetensors(&out.join("model.safetensors"));
        let (from, to) = offsets(&header, "model.layers.2.self_attn.k_proj.weight_codes");
        assert_eq!(*weights.get_or_insert(data[from..to].to_vec()), data[from..to]);
        assert!(perplexity(&out).is_finite());
    }
    // Values that are on one NVFP4 grid are nearly on the next one.
    let again = scratch.path("same");
    let value = finish(quantize(&folder, "nvfp4-w4a16", &again).arg("--requantize")).json();
    assert!(value["mean_relative_error"].as_f64().unwrap() < 1e-3, "{value}");
}

#[test]
fn layers_choose_among_schemes_within_a_bound() {
    let scratch = narrowed();
    let recipe = |name: &str, text: &str| {
        let path = scratch.path(&format!("{name}.toml"));
        let head = "method = \"scheme\"\nweight_bits = 4\nactivation_bits = 16\nembedding_bits = 16\nkeep = [\"lm_head\"]\n";
        fs::write(&path, format!("{head}scales = \"sweep\"\n{text}")).unwrap();
        path.display().to_string()
    };
    let pair = "weight_scheme = \"e2m1/group32/e8m0\"\nalternatives = [\"e2m1/group16/e4m3\"]\n";
    let bounded = recipe("bounded", &format!("{pair}max_bits = 4.35\n"));
    let plan = |recipe: &str, to: &str| {
        let mut command = halfbyte();
        finish(command.arg("plan").arg(scratch.model()).args(["--recipe", recipe, "--to", to]))
    };
    plan(&bounded, "vllm-mixed,gguf-mixed").text();
    plan(&bounded, "vllm-nvfp4").refused(&["vllm-nvfp4", "alternatives"]);
    plan(&recipe("int", &format!("{pair}\n").replace("e2m1/group16/e4m3", "int4/group32")), "gguf-mixed")
        .refused(&["gguf-mixed", "int4/group32"]);
    plan(&recipe("tight", &format!("{pair}max_bits = 4.2\n")), "vllm-mixed").refused(&["max_bits", "4.25"]);

    let error = |value: &Value| value["mean_relative_error"].as_f64().unwrap();
    let out = scratch.path("bounded");
    let value = finish(&mut quantize(&scratch.model(), &bounded, &out)).json();
    let bits = value["bits_per_weight"].as_f64().unwrap();
    assert!(bits > 4.3 && bits <= 4.35, "{bits}");
    let [small, large] = ["mxfp4-w4a16", "nvfp4-w4a16"]
        .map(|r| quantize(&scratch.model(), r, &scratch.path(r)))
        .map(|mut command| error(&finish(command.args(["--scales", "sweep"])).json()));
    assert!(error(&value) < small && error(&value) > large, "{value} {small} {large}");
    // Without a bound every layer takes the better one; the same by weighted errors, where it is chosen layer by layer.
    let free = finish(&mut quantize(&scratch.model(), &recipe("free", pair), &scratch.path("free"))).json();
    assert!((error(&free) - large).abs() < 1e-9, "{free} {large}");
    let mut weighted = quantize(&scratch.model(), &recipe("free", pair), &scratch.path("weighted"));
    weighted.args(["--scales", "weighted", "--calibration-windows", "2", "--calibration"]).arg(text());
    let weighted = finish(&mut weighted).json();
    assert!(weighted["bits_per_weight"].as_f64().unwrap() > 4.3, "{weighted}");

    let exports = scratch.path("exports");
    let mut command = halfbyte();
    command.arg("export").arg(&out).args(["--to", "vllm-mixed,gguf-mixed"]).arg("--out").arg(&exports);
    finish(&mut command).text();
    let ours = perplexity(&out);
    assert_eq!(perplexity(&exports.join("vllm-mixed")), ours);
    fs::copy(scratch.model().join("tokenizer.json"), exports.join("gguf-mixed/tokenizer.json")).unwrap();
    assert_eq!(perplexity(&exports.join("gguf-mixed")), ours);
    let mut command = halfbyte();
    command.arg("export").arg(&out).args(["--to", "vllm-nvfp4"]).arg("--out").arg(scratch.path("no"));
    finish(&mut command).refused(&["vllm-nvfp4"]);
}

#[test]
fn folders_without_a_report_can_be_inspected() {
    let scratch = narrowed();
    let folder = scratch.path("q");
    finish(&mut quantize(&scratch.model(), "nvfp4-w4a16", &folder)).json();
    let mut command = halfbyte();
    let exported = scratch.path("vllm");
    finish(command.arg("export").arg(&folder).args(["--to", "vllm-nvfp4"]).arg("--out").arg(&exported))
        .text();
    let with = inspect(&folder);
    fs::remove_file(folder.join("report.json")).unwrap();
    for (dir, name) in [(&folder, "nvfp4-w4a16"), (&exported, "compressed-tensors nvfp4-pack-quantized")] {
        let value = inspect(dir);
        assert_eq!((&value["report"], &value["recipe"]), (&false.into(), &name.into()));
        assert_eq!(value["bits_per_weight"], with["bits_per_weight"]);
        assert_eq!(value["layers"].as_array().unwrap().len(), with["layers"].as_array().unwrap().len());
        assert_eq!(value["layers"][3]["weight"], with["layers"][3]["weight"]);
        assert!(value["layers"][0]["relative_error"].is_null());
        let text = finish(halfbyte().arg("inspect").arg(dir)).text();
        assert!(text.contains("no report.json"), "{text}");
    }
}

#[test]
fn a_damaged_export_is_refused_when_read() {
    let scratch = narrowed();
    let (folder, out) = (scratch.path("q"), scratch.path("vllm"));
    let mut command = halfbyte();
    command.arg("quantize").arg(scratch.model()).args(["--recipe", "nvfp4-w4a16"]).arg("--out").arg(&folder);
    finish(&mut command).text();
    finish(halfbyte().arg("export").arg(&folder).args(["--to", "vllm-nvfp4"]).arg("--out").arg(&out)).text();
    let weights = out.join("model.safetensors");
    let name = "model.layers.1.mlp.up_proj.weight_scale";
    let (header, mut data) = read_safetensors(&weights);
    // 0x7F is E4M3's NaN.
    data[offsets(&header, name).0] = 0x7f;
    fs::write(&weights, safetensors_bytes(&header, &data)).unwrap();
    let mut command = halfbyte();
    command.arg("eval").arg(&out).arg("--perplexity").arg(text()).args(["--window", "64", "--windows", "1"]);
    finish(&mut command).refused(&[name, "0x7f"]);
}

#[test]
fn what_a_target_cannot_hold_is_refused_before_any_work() {
    let scratch = Scratch::new();
    // 172 columns are no whole blocks, already for the recipe.
    let plan = |recipe: &str, to: &str| {
        let mut command = halfbyte();
        command.arg("plan").arg(scratch.model()).args(["--recipe", recipe, "--to", to]);
        finish(&mut command)
    };
    plan("nvfp4-w4a16", "vllm-nvfp4").refused(&["down_proj", "172", "16"]);
    let narrow = narrowed();
    let plan = |recipe: &str, to: &str, keep: &str| {
        let mut command = halfbyte();
        command.arg("plan").arg(narrow.model()).args(["--recipe", recipe, "--to", to, "--keep", keep]);
        finish(&mut command)
    };
    plan("nvfp4-w4a16", "vllm-nvfp4,modelopt,gguf-nvfp4", "lm_head").text();
    plan("nvfp4-w4a16", "gguf-mxfp4", "lm_head").refused(&["gguf-mxfp4", "e2m1/group16/e4m3", "mxfp4-w4a16"]);
    plan("nvfp4-w4a16", "vllm-nvfp4", "lm_head,k_proj").refused(&["in part", "q_proj/k_proj/v_proj"]);
    plan("fpq-w4a4", "vllm-nvfp4", "lm_head,embedding").refused(&["vllm-nvfp4", "nvfp4-w4a16"]);
    plan("mxfp4-w4a16", "vllm-mxfp4", "embedding").refused(&["lm_head", "--keep"]);

    let export = |dir: &Path, to: &str| {
        let mut command = halfbyte();
        command.arg("export").arg(dir).args(["--to", to]).arg("--out").arg(scratch.path("exported"));
        finish(&mut command)
    };
    export(&scratch.model(), "vllm-nvfp4").refused(&["not quantized by halfbyte", "nvfp4-w4a16"]);
    let fpq = scratch.quantized();
    export(&fpq, "modelopt").refused(&["modelopt"]);
    assert_eq!(export(&fpq, "tensorrt").code, Some(2));
    assert!(!scratch.path("exported").exists());
    fs::create_dir(scratch.path("exported")).unwrap();
    export(&fpq, "vllm-nvfp4").refused(&["vllm-nvfp4"]);
}

fn plan(model: &Path, recipe: &str, to: &str) -> Ran {
    let keep = ["--keep", "lm_head,embedding"];
    finish(halfbyte().arg("plan").arg(model).args(["--recipe", recipe, "--to", to]).args(keep))
}

fn export(dir: &Path, to: &str, out: &Path) -> Ran {
    finish(halfbyte().arg("export").arg(dir).args(["--to", to, "--json"]).arg("--out").arg(out))
}

/// What stands beside the weights in the folder of an export.
fn quantization_config(exports: &Path) -> Value {
    let config: Value = serde_json::from_slice(&fs::read(exports.join("config.json")).unwrap()).unwrap();
    config["quantization_config"].clone()
}

#[test]
fn what_gguf_has_no_key_for_is_refused_by_plan_and_by_export() {
    let refused = |edit: &dyn Fn(&Scratch), needles: &[&str]| {
        let scratch = narrowed();
        edit(&scratch);
        plan(&scratch.model(), "nvfp4-w4a16", "vllm-nvfp4").text();
        plan(&scratch.model(), "nvfp4-w4a16", "gguf-nvfp4").refused(needles);
        let folder = scratch.path("q");
        finish(&mut quantize(&scratch.model(), "nvfp4-w4a16", &folder)).json();
        export(&folder, "gguf-nvfp4", &scratch.path("gguf")).refused(needles);
    };
    // llama.cpp would compute SiLU.
    refused(
        &|s| s.edit_config(|config| config["hidden_act"] = json!("gelu")),
        &["gguf-nvfp4", "SiLU", "Gelu"],
    );
    refused(&|s| fs::remove_file(s.model().join("tokenizer.json")).unwrap(), &["tokenizer.json"]);
    let extra = |s: &Scratch| {
        s.edit_weights(|header, data| {
            let place = json!([data.len(), data.len() + 64]);
            data.extend([0; 64]);
            header["adapter.dense.weight"] =
                json!({ "dtype": "F32", "shape": [4, 4], "data_offsets": place });
        });
    };
    refused(&extra, &["no place", "adapter.dense.weight"]);
    // vLLM must not look for the codes of what we do not know.
    let scratch = narrowed();
    extra(&scratch);
    let (folder, vllm) = (scratch.path("q"), scratch.path("vllm"));
    finish(&mut quantize(&scratch.model(), "nvfp4-w4a16", &folder)).json();
    export(&folder, "vllm-nvfp4", &vllm).json();
    assert_eq!(quantization_config(&vllm)["ignore"], json!(["lm_head", "adapter.dense"]));
}

#[test]
fn blocks_that_the_config_does_not_count_are_not_in_a_gguf_file() {
    let scratch = narrowed();
    scratch.edit_config(|config| config["num_hidden_layers"] = json!(4));
    let (folder, gguf) = (scratch.path("q"), scratch.path("gguf"));
    finish(&mut quantize(&scratch.model(), "nvfp4-w4a16", &folder)).json();
    export(&folder, "gguf-nvfp4", &gguf).json();
    let name = contents(&gguf).into_keys().next().unwrap();
    // 4 blocks of 2 norms and 7 layers, each of which has its scale besides; embedding and norm.
    let tensors: u64 = inspect(&gguf.join(name))["dtypes"]
        .as_object()
        .unwrap()
        .values()
        .map(|d| d["tensors"].as_u64().unwrap())
        .sum();
    assert_eq!(tensors, 4 * 9 + 2);
}

#[test]
fn names_in_a_config_are_those_of_the_engine_where_a_checkpoint_shortens_them() {
    let scratch = narrowed();
    // As published BLOOMs leave out "transformer.".
    scratch.edit_weights(|header, _| {
        let tensors = std::mem::take(header.as_object_mut().unwrap());
        let short = |name: String| name.strip_prefix("model.").map(String::from).unwrap_or(name);
        *header = tensors.into_iter().map(|(name, info)| (short(name), info)).collect();
    });
    let recipe = scratch.write("mixed.toml", {
        let text = run(["recipes", "mxfp4-w4a16"]).text();
        format!("keep = [\"lm_head\", \"embedding\", \"layers.0.\"]\n{}\n[schemes]\n\"layers.1.\" = \"e2m1/group16/e4m3\"\n", {
            let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("keep =")).collect();
            lines.join("\n")
        })
    });
    let (folder, vllm) = (scratch.path("q"), scratch.path("vllm"));
    finish(&mut quantize(&scratch.model(), recipe.to_str().unwrap(), &folder)).json();
    export(&folder, "vllm-mixed", &vllm).json();
    let config = quantization_config(&vllm);
    assert_eq!(config["ignore"][1], "model.layers.0.self_attn.q_proj");
    let targets = |group: &str| config["config_groups"][group]["targets"].clone();
    assert_eq!(targets("group_0")[0], "model.layers.1.self_attn.q_proj");
    assert_eq!(targets("group_1")[0], "model.layers.2.self_attn.q_proj");
    assert_eq!(perplexity(&vllm), perplexity(&folder));
}

#[test]
fn plan_and_export_agree_on_static_integers() {
    let scratch = narrowed();
    for recipe in ["minmax-int-w8a8", "smooth-quant-w8a8", "os-plus-w8a8"] {
        plan(&scratch.model(), recipe, "vllm-int").text();
        let (folder, vllm) = (scratch.path(recipe), scratch.path(&format!("{recipe}-vllm")));
        let mut command = quantize(&scratch.model(), recipe, &folder);
        command
            .args(["--keep", "lm_head,embedding", "--calibration-windows", "2", "--calibration"])
            .arg(text());
        finish(&mut command).json();
        export(&folder, "vllm-int", &vllm).json();
        assert_eq!(perplexity(&vllm), perplexity(&folder), "{recipe}");
    }
    plan(&scratch.model(), "minmax-int-w6a6", "vllm-int").refused(&["vllm-int", "int6/channel"]);
}

#[test]
fn rotary_frequencies_of_a_gguf_file_go_into_no_other_engines_folder() {
    let scratch = narrowed();
    scratch.edit_config(|config| config["rope_scaling"] = json!({ "rope_type": "linear", "factor": 2.0 }));
    let (folder, gguf) = (scratch.path("q"), scratch.path("gguf"));
    finish(&mut quantize(&scratch.model(), "nvfp4-w4a16", &folder)).json();
    export(&folder, "gguf-nvfp4", &gguf).json();
    fs::copy(scratch.model().join("tokenizer.json"), gguf.join("tokenizer.json")).unwrap();
    let again = |to: &str| {
        finish(halfbyte().arg("plan").arg(&gguf).args([
            "--requantize",
            "--recipe",
            "nvfp4-w4a16",
            "--to",
            to,
        ]))
    };
    again("gguf-nvfp4").text();
    again("vllm-nvfp4").refused(&["vllm-nvfp4", "rope_freqs", "Hugging Face checkpoint"]);
}

#[test]
fn runs_without_text_give_the_same_bytes_with_any_threads() {
    let scratch = narrowed();
    let quantize = |out: &str, threads: &str| {
        let mut command = halfbyte();
        command.arg("quantize").arg(scratch.model()).args([
            "--recipe",
            "mxfp4-w4a16",
            "--threads",
            threads,
            "--json",
        ]);
        let value: Value = finish(command.arg("--out").arg(scratch.path(out))).json();
        assert_eq!(value["calibration_windows"], 0);
        contents(&scratch.path(out))
    };
    // What an interrupted run left is not in the way.
    fs::create_dir_all(scratch.path("b.partial/output")).unwrap();
    fs::write(scratch.path("b.partial/output/model.safetensors"), "half").unwrap();
    scratch.write("b.partial/lock", "");
    assert_same(&quantize("a", "1"), &quantize("b", "3"), "threads");
    assert!(!scratch.path("b.partial").exists());
    let mut again = halfbyte();
    again.arg("quantize").arg(scratch.model()).args(["--recipe", "mxfp4-w4a16", "--json"]);
    let value = finish(again.arg("--out").arg(scratch.path("a"))).json();
    assert_eq!(value["was_finished"], true);
}

#[test]
fn the_sweep_is_closer_than_absmax() {
    let scratch = narrowed();
    let error = |recipe: &str, scales: &str| {
        let out = scratch.path(&format!("{recipe}-{scales}"));
        let mut command = halfbyte();
        command.arg("quantize").arg(scratch.model()).args(["--recipe", recipe, "--scales", scales, "--json"]);
        command.arg("--calibration").arg(text()).args(["--calibration-windows", "2"]);
        finish(command.arg("--out").arg(&out)).json()["mean_relative_error"].as_f64().unwrap()
    };
    let nvfp4 = ["absmax", "four-over-six", "sweep"].map(|s| error("nvfp4-w4a16", s));
    assert!(nvfp4[2] < nvfp4[1] && nvfp4[1] < nvfp4[0], "{nvfp4:?}");
    let mxfp4 = ["absmax", "sweep"].map(|s| error("mxfp4-w4a16", s));
    assert!(mxfp4[1] < mxfp4[0], "{mxfp4:?}");
    assert!(error("nvfp4-w4a16", "weighted") > 0.0);
}

#[test]
fn a_text_makes_built_in_recipes_weigh_errors_by_the_inputs() {
    let scratch = narrowed();
    let scales = |name: &str, options: &[&str]| {
        let mut command = halfbyte();
        command
            .arg("quantize")
            .arg(scratch.model())
            .args(["--recipe", "nvfp4-w4a16", "--json"])
            .args(options);
        if name != "alone" {
            command.arg("--calibration").arg(text()).args(["--calibration-windows", "2"]);
        }
        let out = scratch.path(name);
        finish(command.arg("--out").arg(&out)).json();
        let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        config["quantization_config"]["recipe"]["scales"].as_str().unwrap().to_owned()
    };
    assert_eq!(scales("alone", &[]), "four-over-six");
    assert_eq!(scales("text", &[]), "weighted");
    assert_eq!(scales("asked", &["--scales", "four-over-six"]), "four-over-six");
}
