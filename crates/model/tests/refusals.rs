//! A config that asks for something that is not computed is refused by the key that asks.

#![allow(clippy::unwrap_used)]

use halfbyte_model::architectures::describe;
use serde_json::{Value, json};
use std::path::Path;

/// The config of a golden case with some keys changed.
fn changed(case: &str, changes: Value) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn what_is_not_computed_is_refused_by_its_key() {
    let cases = [
        ("llama", json!({"hidden_act": "quick_gelu"}), "hidden_act = quick_gelu"),
        (
            "llama",
            json!({"architectures": ["LlamaForSequenceClassification"]}),
            "LlamaForSequenceClassification",
        ),
        (
            "llama",
            json!({"architectures": ["LlavaForConditionalGeneration"]}),
            "LlavaForConditionalGeneration",
        ),
        ("gpt2", json!({"architectures": ["GPT2DoubleHeadsModel"]}), "GPT2DoubleHeadsModel"),
        ("gpt2", json!({"add_cross_attention": true}), "add_cross_attention = true"),
        ("gpt2", json!({"activation_function": "tanh"}), "activation_function = tanh"),
        ("opt", json!({"word_embed_proj_dim": 16}), "word_embed_proj_dim = 16"),
        ("opt", json!({"layer_norm_elementwise_affine": false}), "layer_norm_elementwise_affine = false"),
        ("gpt_neox", json!({"rotary_pct": 0.1}), "rotary_pct: 0.1 of 8 channels"),
        ("gpt_neox", json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "rope_type = dynamic"),
        ("phi3", json!({"rope_parameters": {"rope_type": "longrope"}}), "rope_type = longrope"),
        ("phi3", json!({"rope_parameters": null, "rope_scaling": {"type": "su"}}), "rope_type = su"),
        ("phi3", json!({"num_key_value_heads": 3}), "num_key_value_heads: 3 does not divide"),
        (
            "bloom",
            json!({"apply_residual_connection_post_layernorm": true}),
            "apply_residual_connection_post_layernorm = true",
        ),
        ("gemma2", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention = true"),
        ("gemma2", json!({"final_logit_softcapping": -1.0}), "final_logit_softcapping: -1"),
        ("gemma2", json!({"layer_types": ["sliding_attention"]}), "layer_types: not a list of 3"),
        ("gemma3", json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping = 50"),
        (
            "gemma3",
            json!({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}),
            "rope_type = longrope",
        ),
        ("gemma3", json!({"model_type": "gemma3"}), "model_type \"gemma3\" is not supported"),
        ("bert", json!({"is_decoder": true}), "is_decoder = true"),
        ("bert", json!({"add_cross_attention": true}), "add_cross_attention = true"),
        (
            "bert",
            json!({"position_embedding_type": "relative_key"}),
            "position_embedding_type = \"relative_key\"",
        ),
        ("bert", json!({"hidden_act": "mish"}), "hidden_act = mish"),
        ("bert", json!({"architectures": ["BertForQuestionAnswering"]}), "BertForQuestionAnswering"),
        ("bert", json!({"architectures": null}), "architectures: missing"),
        (
            "roberta",
            json!({"architectures": ["RobertaForTokenClassification"]}),
            "RobertaForTokenClassification",
        ),
        ("distilbert", json!({"activation": "mish"}), "activation = mish"),
        ("vit", json!({"architectures": ["ViTForMaskedImageModeling"]}), "ViTForMaskedImageModeling"),
        ("vit", json!({"patch_size": 32}), "patch_size"),
        ("vit", json!({"image_size": [16]}), "image_size"),
        (
            "deit",
            json!({"architectures": ["DeiTForImageClassificationWithTeacher"]}),
            "DeiTForImageClassificationWithTeacher",
        ),
        ("dinov2", json!({"architectures": ["Dinov2Backbone"]}), "Dinov2Backbone"),
        ("dinov2", json!({"mlp_ratio": 2.5}), "mlp_ratio"),
    ];
    for (case, changes, wanted) in cases {
        let error = describe(&changed(case, changes.clone())).unwrap_err().to_string();
        assert!(error.contains(wanted), "{case} {changes}: {error}");
    }
}

#[test]
fn a_bound_that_is_null_is_none_and_one_that_is_absent_the_default() {
    let bounds = |remove: bool| {
        let mut config =
            changed("gemma2", json!({"attn_logit_softcapping": null, "final_logit_softcapping": null}));
        if remove {
            let config = config.as_object_mut().unwrap();
            config.retain(|key, _| !key.ends_with("softcapping"));
        }
        let found = describe(&config).unwrap();
        (found.blocks[0].attention.soft_cap, found.head.soft_cap)
    };
    assert_eq!(bounds(false), (None, None));
    assert_eq!(bounds(true), (Some(50.0), Some(30.0)));
}

#[test]
fn the_classes_of_a_config_are_counted() {
    let outputs = |changes| describe(&changed("bert", changes)).unwrap().head.output().unwrap().outputs;
    assert_eq!(outputs(json!({})), 3);
    assert_eq!(outputs(json!({"id2label": null, "num_labels": 7})), 7);
    assert_eq!(outputs(json!({"id2label": null})), 2);
}
