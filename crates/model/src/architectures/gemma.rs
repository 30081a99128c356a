//! Gemma 2 (arXiv 2408.00118) and the text part of Gemma 3 (arXiv 2503.19786): norms before and after each step, whose stored
//! weights lack 1, and a sliding window in most layers. Gemma 2 bounds scores and logits; Gemma 3 norms queries and keys and
//! turns them by other frequencies in sliding layers.
//!
//! The embedding is scaled by the root of its channels in f32, as transformers does for a model in f32; for one in bfloat16
//! it rounds the factor to that.

use crate::config::{Config, unsupported};
use crate::{
    Activation, Architecture, BlockSpec, HeadSpec, Mlp, ModelError, NormKind, NormSpec, Part, Projections,
    Rope, Site, StemSpec, Sublayer, TextStem,
};
use halfbyte_tensor::AttentionShape;

pub(super) fn describe(family: &str, config: &Config) -> Result<Architecture, ModelError> {
    let third = family == "gemma3_text";
    config.only_class(if third { "Gemma3" } else { "Gemma2" }, "ForCausalLM")?;
    config.only("use_bidirectional_attention", false)?;
    let hidden = config.size("hidden_size")?;
    let layers = config.layers("num_hidden_layers")?;
    let heads = config.size("num_attention_heads")?;
    let kv_heads = config.kv_heads(heads, 4)?;
    let dim = config.size_or("head_dim")?.unwrap_or(256);
    let width = config.size("intermediate_size")?;
    let vocabulary = config.size("vocab_size")?;
    let context = config.size_or("max_position_embeddings")?.unwrap_or(if third { 131_072 } else { 8192 });
    let eps = config.number("rms_norm_eps")?.unwrap_or(1e-6) as f32;
    let activation = config.activation("hidden_activation", Activation::GeluTanh)?;
    let bias = config.flag("attention_bias", false)?;
    let scale = 1.0 / config.size_or("query_pre_attn_scalar")?.map_or(16.0, |n| (n as f32).sqrt());
    let score_cap = config.bound("attn_logit_softcapping", (!third).then_some(50.0))?;
    let logit_cap = config.bound("final_logit_softcapping", (!third).then_some(30.0))?;
    if let Some(cap) = score_cap.filter(|_| third) {
        return Err(unsupported("attn_logit_softcapping", cap));
    }
    let window = config.size_or("sliding_window")?.unwrap_or(4096);
    let sliding = match config.sliding(layers)? {
        Some(sliding) => sliding,
        None => {
            let pattern = if third { config.size_or("sliding_window_pattern")?.unwrap_or(6) } else { 2 };
            (1..=layers).map(|n| n % pattern != 0).collect()
        }
    };
    let norm = |name: String| NormSpec { name, kind: NormKind::Rms { offset: 1.0 }, eps };
    let block = |layer: usize| {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let site = |part: &str, outputs, inputs| Site::new(name(part), outputs, inputs);
        let projection =
            |of: &str, heads: usize| site(&format!("self_attn.{of}_proj"), heads * dim, hidden).biased(bias);
        let around = |before, after| Sublayer {
            before: Some(norm(name(before))),
            after: Some(norm(name(after))),
            ..Sublayer::default()
        };
        BlockSpec {
            taps: BlockSpec::four_taps(
                vec![projection("q", heads), projection("k", kv_heads), projection("v", kv_heads)],
                site("self_attn.o_proj", hidden, heads * dim).biased(bias),
                vec![site("mlp.gate_proj", width, hidden), site("mlp.up_proj", width, hidden)],
                site("mlp.down_proj", hidden, width),
            ),
            around_attention: around("input_layernorm", "post_attention_layernorm"),
            around_mlp: around("pre_feedforward_layernorm", "post_feedforward_layernorm"),
            parallel: false,
            projections: Projections::Separate,
            query_key_norm: third.then(|| (norm(name("self_attn.q_norm")), norm(name("self_attn.k_norm")))),
            rope: Some(usize::from(third && sliding[layer])),
            attention: AttentionShape {
                kv_heads,
                scale,
                causal: true,
                window: sliding[layer].then_some(window),
                soft_cap: score_cap,
                ..AttentionShape::plain(heads, dim)
            },
            mlp: Mlp::Gated,
            activation,
        }
    };
    let output = Site::new("lm_head", vocabulary, hidden).of(Part::Head);
    let tied = config.flag("tie_word_embeddings", true)?;
    Ok(Architecture {
        family: family.into(),
        hidden,
        context,
        stem: StemSpec::Text(TextStem {
            scale: (hidden as f32).sqrt(),
            ..TextStem::plain("model.embed_tokens", vocabulary, hidden)
        }),
        ropes: match third {
            true => Rope::full_and_sliding(config, dim, context)?,
            false => vec![Rope::from_config(config, dim, context)?],
        },
        blocks: (0..layers).map(block).collect(),
        head: HeadSpec {
            soft_cap: logit_cap,
            ..HeadSpec::language_model(norm("model.norm".into()), output, tied)
        },
        absent_prefix: String::new(),
    })
}
