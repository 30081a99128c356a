//! Trying recipes on a few blocks, and bits for each layer, of networks that are rotated first.
#![allow(clippy::unwrap_used)]

mod util;

use halfbyte_model::Model;
use halfbyte_model::architectures::describe;
use halfbyte_quantize::{AutoJob, AutoTarget, Recipe, choose_recipe};
use std::collections::BTreeSet;
use std::time::Duration;
use util::*;

fn rotated(recipe: Recipe) -> Recipe {
    let transforms = ["rotate", "hadamard-heads"].map(|t| t.parse().unwrap()).into();
    Recipe { name: format!("{}+rotate", recipe.name), transforms, ..recipe }
}

#[test]
fn a_rotated_candidate_is_compared_in_its_own_basis() {
    let model = Model::open(&family("llama")).unwrap();
    let named = |name| Recipe { coverage: 0.0, ..Recipe::named(name).unwrap() };
    let candidates = [named("fpq-w8a8"), rotated(named("fpq-w8a8")), rotated(named("fpq-w4a4"))];
    let inputs = inputs(&model.architecture, 12, 0);
    let dir = tempfile::tempdir().unwrap();
    let job = AutoJob {
        model: &model,
        candidates: &candidates,
        inputs: &inputs,
        real: inputs.len(),
        out: &dir.path().join("out"),
        activation_memory: 1 << 30,
        budget: Duration::from_secs(600),
    };
    let errors: Vec<f64> = choose_recipe(&job, &mut Silent).unwrap().tried.iter().map(|t| t.error).collect();
    let [plain, turned, four] = errors[..] else { panic!("{errors:?}") };
    // In the wrong basis the error would be that of another vector, about 2.
    assert!(turned < 5.0 * plain && turned < 1e-2, "{errors:?}");
    assert!(four > 10.0 * turned && four < 0.3, "{errors:?}");
}

#[test]
fn bits_are_allocated_in_the_rotated_network() {
    let model = Model::open(&family("llama")).unwrap();
    let recipe = |max_bits| {
        let keep = vec!["lm_head".into(), "embedding".into()];
        rotated(Recipe { max_bits, keep, coverage: 0.0, ..Recipe::default() })
    };
    let least = tried(&model, &recipe(None)).0;
    // A narrow network has many scales for its weights.
    let most = least.bits_per_weight as f32 + 1.0;
    let report = tried(&model, &recipe(Some(most))).0;
    assert!(report.bits_per_weight <= f64::from(most) && report.bits_per_weight > least.bits_per_weight);
    assert!(report.mean_relative_error < least.mean_relative_error);
}

#[test]
fn every_target_has_candidates_that_fit_the_network() {
    use AutoTarget::{Fpq, Mxfp4, Mxfp4W4a16, Nvfp4, Nvfp4W4a16};
    for target in [Nvfp4, Nvfp4W4a16, Mxfp4, Mxfp4W4a16, Fpq] {
        let names = |network: &str| -> BTreeSet<String> {
            // The golden config, wide enough for whole blocks.
            let config = std::fs::read(family(network).join("config.json")).unwrap();
            let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
            (config["hidden_size"], config["intermediate_size"]) = (128.into(), 256.into());
            let architecture = describe(&config).unwrap();
            let recipes = target.recipes(&architecture, Recipe::named).unwrap();
            recipes.into_iter().map(|r| r.name).collect()
        };
        let (llama, bert) = (names("llama"), names("bert"));
        assert!(llama.len() >= 4 && bert.len() >= 2, "{target:?}: {llama:?} {bert:?}");
        // BERT's norms cannot be rotated, and everything else is tried there too.
        let rotated = |names: &BTreeSet<String>| names.iter().any(|n| n.contains("rotate"));
        assert_eq!(rotated(&llama), matches!(target, Mxfp4 | Fpq), "{target:?}");
        assert!(!rotated(&bert) && bert.is_subset(&llama), "{target:?}");
    }
}
