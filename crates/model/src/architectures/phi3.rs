//! Phi-3 (arXiv 2404.14219): a decoder like LLaMA's whose projections are fused: queries, keys and values in one layer, gate
//! and up in another. LongRoPE, whose frequencies depend on the length of the sequence, is not implemented.

use crate::config::{Config, unsupported};
use crate::{
    Activation, Architecture, BlockSpec, HeadSpec, Mlp, ModelError, NormSpec, Part, Projections, Rope, Site,
    StemSpec, Sublayer, TextStem,
};
use halfbyte_tensor::AttentionShape;

pub(super) fn describe(config: &Config) -> Result<Architecture, ModelError> {
    config.only_class("Phi3", "ForCausalLM")?;
    refuse_scaling(config)?;
    let hidden = config.size("hidden_size")?;
    let (heads, dim) = config.heads("num_attention_heads", hidden)?;
    let kv_heads = config.kv_heads(heads, heads)?;
    let width = config.size("intermediate_size")?;
    let vocabulary = config.size("vocab_size")?;
    let context = config.size_or("max_position_embeddings")?.unwrap_or(4096);
    let eps = config.number("rms_norm_eps")?.unwrap_or(1e-5) as f32;
    let activation = config.activation("hidden_act", Activation::Silu)?;
    let window = config.size_or("sliding_window")?;
    let tied = config.flag("tie_word_embeddings", false)?;
    let norm = |name: String| NormSpec::rms(name, eps);
    let block = |layer: usize| {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let site = |part: &str, outputs, inputs| Site::new(name(part), outputs, inputs);
        BlockSpec {
            taps: BlockSpec::four_taps(
                vec![site("self_attn.qkv_proj", (heads + 2 * kv_heads) * dim, hidden)],
                site("self_attn.o_proj", hidden, heads * dim),
                vec![site("mlp.gate_up_proj", 2 * width, hidden)],
                site("mlp.down_proj", hidden, width),
            ),
            around_attention: Sublayer::before(norm(name("input_layernorm"))),
            around_mlp: Sublayer::before(norm(name("post_attention_layernorm"))),
            parallel: false,
            projections: Projections::Stacked,
            query_key_norm: None,
            rope: Some(0),
            attention: AttentionShape { kv_heads, causal: true, window, ..AttentionShape::plain(heads, dim) },
            mlp: Mlp::GatedStacked,
            activation,
        }
    };
    Ok(Architecture {
        family: "phi3".into(),
        hidden,
        context,
        stem: StemSpec::Text(TextStem::plain("model.embed_tokens", vocabulary, hidden)),
        ropes: vec![Rope::partial(config, "rope_theta", ("partial_rotary_factor", 1.0), dim, context)?],
        blocks: (0..config.layers("num_hidden_layers")?).map(block).collect(),
        head: HeadSpec::language_model(
            norm("model.norm".into()),
            Site::new("lm_head", vocabulary, hidden).of(Part::Head),
            tied,
        ),
        absent_prefix: String::new(),
    })
}

/// Older configs say `su` and `yarn` where they mean LongRoPE, so that no scaling has its usual meaning here.
fn refuse_scaling(config: &Config) -> Result<(), ModelError> {
    let Some(value) = config.get("rope_parameters").or_else(|| config.get("rope_scaling")) else {
        return Ok(());
    };
    let scaling = Config(value);
    match scaling.text("rope_type")?.or(scaling.text("type")?) {
        None | Some("default") => Ok(()),
        Some(other) => Err(unsupported("rope_type", other)),
    }
}
