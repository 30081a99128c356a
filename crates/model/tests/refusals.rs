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
fn the_classes_of_a_config_are_counted() {
    let outputs = |changes| describe(&changed("bert", changes)).unwrap().head.output().unwrap().outputs;
    assert_eq!(outputs(json!({})), 3);
    assert_eq!(outputs(json!({"id2label": null, "num_labels": 7})), 7);
    assert_eq!(outputs(json!({"id2label": null})), 2);
}
