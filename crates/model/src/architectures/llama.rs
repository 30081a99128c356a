//! LLaMA 1–3, TinyLlama, SmolLM2, Mistral, Qwen2 and Qwen3: pre-norm decoders with rotary embedding and a gated SiLU
//! MLP. They differ in biases, query/key norms and sliding windows.

use crate::config::Config;
use crate::{
    Activation, Architecture, BlockSpec, HeadSpec, Mlp, ModelError, NormSpec, Part, Projections, Rope, Site,
    StemSpec, Sublayer, TextStem,
};
use halfbyte_tensor::AttentionShape;

pub(super) fn describe(family: &str, config: &Config) -> Result<Architecture, ModelError> {
    let hidden = config.size("hidden_size")?;
    let layers = config.layers("num_hidden_layers")?;
    let (heads, head_dim) = config.heads("num_attention_heads", hidden)?;
    let kv_heads = config.kv_heads(heads, heads)?;
    let vocabulary = config.size("vocab_size")?;
    let width = config.size("intermediate_size")?;
    let context = config.size_or("max_position_embeddings")?.unwrap_or(2048);
    let eps = config.number("rms_norm_eps")?.unwrap_or(1e-6) as f32;
    let activation = config.activation("hidden_act", Activation::Silu)?;
    config.only_class(classes(family), "ForCausalLM")?;
    // What the family adds by convention, unless the config says otherwise.
    let attention_bias = config.flag("attention_bias", false)?;
    let qkv_bias = attention_bias || family == "qwen2";
    let mlp_bias = config.flag("mlp_bias", false)?;
    let tied = config.flag("tie_word_embeddings", false)?;
    let windows = windows(family, config, layers)?;

    let norm = |name: String| NormSpec::rms(name, eps);
    let block = |layer: usize| {
        let prefix = format!("model.layers.{layer}");
        let site = |name: &str, outputs, inputs, bias| {
            Site::new(format!("{prefix}.{name}"), outputs, inputs).biased(bias)
        };
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        BlockSpec {
            taps: BlockSpec::four_taps(
                vec![
                    site("self_attn.q_proj", q, hidden, qkv_bias),
                    site("self_attn.k_proj", kv, hidden, qkv_bias),
                    site("self_attn.v_proj", kv, hidden, qkv_bias),
                ],
                site("self_attn.o_proj", hidden, q, attention_bias),
                vec![
                    site("mlp.gate_proj", width, hidden, mlp_bias),
                    site("mlp.up_proj", width, hidden, mlp_bias),
                ],
                site("mlp.down_proj", hidden, width, mlp_bias),
            ),
            around_attention: Sublayer::before(norm(format!("{prefix}.input_layernorm"))),
            around_mlp: Sublayer::before(norm(format!("{prefix}.post_attention_layernorm"))),
            parallel: false,
            projections: Projections::Separate,
            query_key_norm: (family == "qwen3").then(|| {
                (norm(format!("{prefix}.self_attn.q_norm")), norm(format!("{prefix}.self_attn.k_norm")))
            }),
            rope: Some(0),
            attention: AttentionShape {
                kv_heads,
                causal: true,
                window: windows[layer],
                ..AttentionShape::plain(heads, head_dim)
            },
            mlp: Mlp::Gated,
            activation,
        }
    };
    Ok(Architecture {
        family: family.into(),
        hidden,
        context,
        stem: StemSpec::Text(TextStem::plain("model.embed_tokens", vocabulary, hidden)),
        ropes: vec![Rope::from_config(config, head_dim, context)?],
        blocks: (0..layers).map(block).collect(),
        head: HeadSpec::language_model(
            norm("model.norm".into()),
            Site::new("lm_head", vocabulary, hidden).of(Part::Head),
            tied,
        ),
        absent_prefix: String::new(),
    })
}

/// What the family's classes in transformers begin with.
fn classes(family: &str) -> &'static str {
    match family {
        "mistral" => "Mistral",
        "qwen2" => "Qwen2",
        "qwen3" => "Qwen3",
        _ => "Llama",
    }
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
    if let Some(sliding) = config.sliding(layers)? {
        return Ok(sliding.into_iter().map(|slides| slides.then_some(window)).collect());
    }
    let full = match family {
        "mistral" => 0,
        _ => config.size_or("max_window_layers")?.unwrap_or(28),
    };
    Ok((0..layers).map(|layer| (layer >= full).then_some(window)).collect())
}
