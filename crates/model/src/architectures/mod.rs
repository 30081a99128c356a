//! The architectures that halfbyte knows, one short file a family. `docs/architectures.md` says how to add one.

mod bert;
mod bloom;
mod dinov2;
mod distilbert;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod opt;
mod phi3;
mod vit;

use crate::config::{Config, invalid};
use crate::{Architecture, ModelError};
use serde_json::Value;

const SUPPORTED: &str = "llama (LLaMA 1-3, TinyLlama, SmolLM2), mistral, qwen2, qwen3, gemma2, gemma3_text, phi3, gpt2, \
    gpt_neox (Pythia), opt, bloom (BLOOMZ), bert, roberta, distilbert, vit, deit, dinov2, dinov2_with_registers";

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
        "gemma2" | "gemma3_text" => gemma::describe(family, &config),
        "phi3" => phi3::describe(&config),
        "gpt2" => gpt2::describe(&config),
        "gpt_neox" => gpt_neox::describe(&config),
        "opt" => opt::describe(&config),
        "bloom" => bloom::describe(&config),
        "bert" => bert::describe(&bert::BERT, &config),
        "roberta" => bert::describe(&bert::ROBERTA, &config),
        "distilbert" => distilbert::describe(&config),
        "vit" => vit::describe(&vit::VIT, &config),
        "deit" => vit::describe(&vit::DEIT, &config),
        "dinov2" => dinov2::describe("Dinov2", &config),
        "dinov2_with_registers" => dinov2::describe("Dinov2WithRegisters", &config),
        _ => Err(ModelError::UnknownArchitecture { found: family.into(), supported: SUPPORTED.into() }),
    }
}
