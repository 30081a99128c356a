//! Every supported family goes through the same driver: at 8 bits the quantized network is close to the original, and
//! what is kept stays as it was.
#![allow(clippy::unwrap_used)]

mod util;

use halfbyte_model::Model;
use halfbyte_quantize::Recipe;
use util::{families, family, tried};

fn relative_error(model: &Model, recipe: &Recipe) -> f64 {
    tried(model, recipe).1
}

#[test]
fn eight_bits_are_close_in_every_family() {
    let families = families();
    assert!(families.len() >= 41);
    for dir in families {
        let model = Model::open(&dir).unwrap();
        for name in ["fpq-w8a8", "minmax-int-w8a8"] {
            let recipe = Recipe { embedding_bits: 8, ..Recipe::named(name).unwrap() };
            let error = relative_error(&model, &recipe);
            assert!(error < 0.03, "{}: {name}: relative squared error {error}", dir.display());
        }
    }
}

#[test]
fn keeping_everything_changes_nothing() {
    for dir in families() {
        let model = Model::open(&dir).unwrap();
        let recipe = Recipe {
            weight_bits: 16,
            activation_bits: 16,
            embedding_bits: 16,
            ..Recipe::named("minmax-fp-w4a4").unwrap()
        };
        assert_eq!(relative_error(&model, &recipe), 0.0, "{}", dir.display());
    }
}

#[test]
fn a_tied_output_layer_may_be_kept_while_the_embedding_is_not() {
    let model = Model::open(&family("llama_tied_bf16")).unwrap();
    for (keep, largest) in
        [(vec!["lm_head"], 0.5), (vec!["embedding"], 0.5), (vec!["lm_head", "embedding"], 0.5)]
    {
        let keep = keep.into_iter().map(String::from).collect();
        let recipe = Recipe { keep, ..Recipe::named("fpq-w6a6").unwrap() };
        let error = relative_error(&model, &recipe);
        assert!(error > 0.0 && error < largest, "{:?}: {error}", recipe.keep);
    }
}
