//! BLOOM (arXiv 2211.05100) and BLOOMZ: a pre-norm decoder that knows positions by ALiBi alone (arXiv 2108.12409), with a
//! norm after the embedding. The fused projection holds query, key and value of one head after the other.

use crate::config::Config;
use crate::{
    Activation, Architecture, BlockSpec, HeadSpec, Mlp, ModelError, NormSpec, Part, Projections, Site,
    StemSpec, Sublayer, TextStem,
};
use halfbyte_tensor::AttentionShape;

pub(super) fn describe(config: &Config) -> Result<Architecture, ModelError> {
    config.only_class("Bloom", "ForCausalLM")?;
    config.only("apply_residual_connection_post_layernorm", false)?;
    // Published configs have either name.
    let either = |a, b| if config.get(a).is_some() { a } else { b };
    let hidden = config.size(either("n_embed", "hidden_size"))?;
    let (heads, dim) = config.heads(either("n_head", "num_attention_heads"), hidden)?;
    let layers = config.layers(either("n_layer", "num_hidden_layers"))?;
    let vocabulary = config.size("vocab_size")?;
    let context = config.size_or("seq_length")?.unwrap_or(2048);
    let eps = config.number("layer_norm_epsilon")?.unwrap_or(1e-5) as f32;
    let tied = config.flag("tie_word_embeddings", true)?;
    let norm = |name: String| NormSpec::layer(name, eps);
    let block = |layer: usize| {
        let name = |part: &str| format!("transformer.h.{layer}.{part}");
        let site = |part: &str, outputs, inputs| Site::new(name(part), outputs, inputs).biased(true);
        BlockSpec {
            taps: BlockSpec::four_taps(
                vec![site("self_attention.query_key_value", 3 * heads * dim, hidden)],
                site("self_attention.dense", hidden, heads * dim),
                vec![site("mlp.dense_h_to_4h", 4 * hidden, hidden)],
                site("mlp.dense_4h_to_h", hidden, 4 * hidden),
            ),
            around_attention: Sublayer::before(norm(name("input_layernorm"))),
            around_mlp: Sublayer::before(norm(name("post_attention_layernorm"))),
            parallel: false,
            projections: Projections::PerHead,
            query_key_norm: None,
            rope: None,
            attention: AttentionShape { causal: true, alibi: true, ..AttentionShape::plain(heads, dim) },
            mlp: Mlp::Plain,
            activation: Activation::GeluTanh,
        }
    };
    Ok(Architecture {
        family: "bloom".into(),
        hidden,
        context,
        stem: StemSpec::Text(TextStem {
            norm: Some(norm("transformer.word_embeddings_layernorm".into())),
            ..TextStem::plain("transformer.word_embeddings", vocabulary, hidden)
        }),
        ropes: Vec::new(),
        blocks: (0..layers).map(block).collect(),
        head: HeadSpec::language_model(
            norm("transformer.ln_f".into()),
            Site::new("lm_head", vocabulary, hidden).of(Part::Head),
            tied,
        ),
        absent_prefix: String::new(),
    })
}
