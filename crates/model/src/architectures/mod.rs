//! The architectures that halfbyte knows, one short file a family. `docs/architectures.md` says how to add one.

mod bert;
mod dinov2;
mod distilbert;
mod llama;
mod vit;

use crate::config::{Config, invalid};
use crate::{Architecture, ModelError};
use serde_json::Value;

/// Reads a config.json.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], and for a known one whatever its config lacks or asks beyond what is
/// implemented, by key.
pub fn describe(config: &Value) -> Result<Architecture, ModelError> {
    let config = Config(config);
    let family = config.text("model_type")?.ok_or_else(|| invalid("model_type", "missing".into()))?;
    match family {
        "llama" | "mistral" | "qwen2" | "qwen3" => llama::describe(family, &config),
        "bert" => bert::describe(&bert::BERT, &config),
        "roberta" => bert::describe(&bert::ROBERTA, &config),
        "distilbert" => distilbert::describe(&config),
        "vit" => vit::describe(&vit::VIT, &config),
        "deit" => vit::describe(&vit::DEIT, &config),
        "dinov2" => dinov2::describe("Dinov2", &config),
        "dinov2_with_registers" => dinov2::describe("Dinov2WithRegisters", &config),
        _ => Err(ModelError::UnknownArchitecture {
            found: family.into(),
            supported: "llama (LLaMA 1-3, TinyLlama, SmolLM2), mistral, qwen2, qwen3, bert, roberta, distilbert, vit, deit, dinov2, dinov2_with_registers".into(),
        }),
    }
}
