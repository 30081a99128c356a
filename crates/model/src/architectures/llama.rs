//! LLaMA 1–3, TinyLlama, SmolLM2, Mistral, Qwen2 and Qwen3: pre-norm decoders with rotary embedding and a gated SiLU
//! MLP. They differ in biases, query/key norms and sliding windows.

use super::{Architecture, BlockSpec, NormSpec, Site, Tap, TapKind};
use crate::config::{Config, invalid, unsupported};
use crate::{ModelError, Rope};
use halfbyte_tensor::AttentionShape;

pub(super) fn describe(family: &str, config: &Config) -> Result<Architecture, ModelError> {
    let hidden = config.size("hidden_size")?;
    let layers = config.size("num_hidden_layers")?;
    let heads = config.size("num_attention_heads")?;
    let kv_heads = config.size_or("num_key_value_heads")?.unwrap_or(heads);
    let vocabulary = config.size("vocab_size")?;
    let width = config.size("intermediate_size")?;
    let context = config.size_or("max_position_embeddings")?.unwrap_or(2048);
    let eps = config.number("rms_norm_eps")?.unwrap_or(1e-6) as f32;
    if layers > 4096 {
        return Err(invalid("num_hidden_layers", format!("{layers} is more than 4096")));
    }
    if heads % kv_heads != 0 {
        return Err(invalid(
            "num_key_value_heads",
            format!("{kv_heads} does not divide the {heads} attention heads"),
        ));
    }
    let head_dim = match config.size_or("head_dim")? {
        Some(dim) => dim,
        None if hidden % heads == 0 => hidden / heads,
        None => {
            return Err(invalid(
                "num_attention_heads",
                format!("{heads} does not divide hidden_size {hidden}"),
            ));
        }
    };
    if head_dim % 2 != 0 {
        return Err(invalid("head_dim", format!("{head_dim} is odd, rotary embedding needs pairs")));
    }
    if let Some(act) = config.text("hidden_act")?.filter(|a| !matches!(*a, "silu" | "swish")) {
        return Err(unsupported("hidden_act", act));
    }
    // What the family adds by convention, unless the config says otherwise.
    let attention_bias = config.flag("attention_bias", false)?;
    let qkv_bias = attention_bias || family == "qwen2";
    let mlp_bias = config.flag("mlp_bias", false)?;
    let tied = config.flag("tie_word_embeddings", false)?;
    let windows = windows(family, config, layers)?;

    let norm = |name: String| NormSpec { name: format!("{name}.weight"), eps };
    let blocks = (0..layers)
        .map(|layer| {
            let prefix = format!("model.layers.{layer}");
            let site = |name: &str, outputs, inputs, bias| Site {
                name: format!("{prefix}.{name}"),
                outputs,
                inputs,
                bias,
            };
            let (q, kv) = (heads * head_dim, kv_heads * head_dim);
            let taps = vec![
                Tap {
                    kind: TapKind::AttentionInput,
                    sites: vec![
                        site("self_attn.q_proj", q, hidden, qkv_bias),
                        site("self_attn.k_proj", kv, hidden, qkv_bias),
                        site("self_attn.v_proj", kv, hidden, qkv_bias),
                    ],
                },
                Tap {
                    kind: TapKind::AttentionOutput,
                    sites: vec![site("self_attn.o_proj", hidden, q, attention_bias)],
                },
                Tap {
                    kind: TapKind::MlpInput,
                    sites: vec![
                        site("mlp.gate_proj", width, hidden, mlp_bias),
                        site("mlp.up_proj", width, hidden, mlp_bias),
                    ],
                },
                Tap { kind: TapKind::MlpInner, sites: vec![site("mlp.down_proj", hidden, width, mlp_bias)] },
            ];
            BlockSpec {
                taps,
                attention_norm: norm(format!("{prefix}.input_layernorm")),
                mlp_norm: norm(format!("{prefix}.post_attention_layernorm")),
                query_key_norm: (family == "qwen3").then(|| {
                    (norm(format!("{prefix}.self_attn.q_norm")), norm(format!("{prefix}.self_attn.k_norm")))
                }),
                attention: AttentionShape {
                    heads,
                    kv_heads,
                    head_dim,
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    causal: true,
                    window: windows[layer],
                },
            }
        })
        .collect();
    Ok(Architecture {
        family: family.into(),
        hidden,
        vocabulary,
        context,
        rope: Rope::from_config(config, head_dim, context)?,
        embedding: "model.embed_tokens.weight".into(),
        final_norm: norm("model.norm".into()),
        head: Site { name: "lm_head".into(), outputs: vocabulary, inputs: hidden, bias: false },
        tied,
        blocks,
    })
}

/// The sliding window of every layer. Mistral slides in all layers; Qwen only where `layer_types`, or
/// `max_window_layers` in older configs, says so, and only with `use_sliding_window`.
fn windows(family: &str, config: &Config, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let window = config.size_or("sliding_window")?;
    let enabled = match family {
        "mistral" => true,
        "qwen2" | "qwen3" => config.flag("use_sliding_window", false)?,
        _ => false,
    };
    let Some(window) = window.filter(|_| enabled) else { return Ok(vec![None; layers]) };
    if let Some(types) = config.get("layer_types") {
        let types = types.as_array().filter(|t| t.len() == layers);
        let types =
            types.ok_or_else(|| invalid("layer_types", format!("not a list of {layers} layer types")))?;
        return types
            .iter()
            .map(|t| match t.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(window)),
                _ => Err(unsupported("layer_types", t)),
            })
            .collect();
    }
    let full = match family {
        "mistral" => 0,
        _ => config.size_or("max_window_layers")?.unwrap_or(28),
    };
    Ok((0..layers).map(|layer| (layer >= full).then_some(window)).collect())
}
