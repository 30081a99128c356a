//! GPT-NeoX (arXiv 2204.06745) and Pythia: a decoder whose attention and MLP read the same input, with rotary embedding of
//! some channels of a head. The fused projection holds query, key and value of one head after the other.

use crate::config::Config;
use crate::{
    Activation, Architecture, BlockSpec, HeadSpec, Mlp, ModelError, NormSpec, Part, Projections, Rope, Site,
    StemSpec, Sublayer, TextStem,
};
use halfbyte_tensor::AttentionShape;

pub(super) fn describe(config: &Config) -> Result<Architecture, ModelError> {
    config.only_class("GPTNeoX", "ForCausalLM")?;
    let hidden = config.size("hidden_size")?;
    let (heads, dim) = config.heads("num_attention_heads", hidden)?;
    let width = config.size("intermediate_size")?;
    let vocabulary = config.size("vocab_size")?;
    let context = config.size_or("max_position_embeddings")?.unwrap_or(2048);
    let eps = config.number("layer_norm_eps")?.unwrap_or(1e-5) as f32;
    let activation = config.activation("hidden_act", Activation::Gelu)?;
    let parallel = config.flag("use_parallel_residual", true)?;
    let attention_bias = config.flag("attention_bias", true)?;
    let tied = config.flag("tie_word_embeddings", false)?;
    let norm = |name: String| NormSpec::layer(name, eps);
    let block = |layer: usize| {
        let name = |part: &str| format!("gpt_neox.layers.{layer}.{part}");
        let site = |part: &str, outputs, inputs, bias| Site::new(name(part), outputs, inputs).biased(bias);
        BlockSpec {
            taps: BlockSpec::four_taps(
                vec![site("attention.query_key_value", 3 * heads * dim, hidden, attention_bias)],
                site("attention.dense", hidden, heads * dim, attention_bias),
                vec![site("mlp.dense_h_to_4h", width, hidden, true)],
                site("mlp.dense_4h_to_h", hidden, width, true),
            ),
            around_attention: Sublayer::before(norm(name("input_layernorm"))),
            around_mlp: Sublayer::before(norm(name("post_attention_layernorm"))),
            parallel,
            projections: Projections::PerHead,
            query_key_norm: None,
            rope: Some(0),
            attention: AttentionShape { causal: true, ..AttentionShape::plain(heads, dim) },
            mlp: Mlp::Plain,
            activation,
        }
    };
    Ok(Architecture {
        family: "gpt_neox".into(),
        hidden,
        context,
        stem: StemSpec::Text(TextStem::plain("gpt_neox.embed_in", vocabulary, hidden)),
        ropes: vec![Rope::partial(config, "rotary_emb_base", ("rotary_pct", 0.25), dim, context)?],
        blocks: (0..config.layers("num_hidden_layers")?).map(block).collect(),
        head: HeadSpec::language_model(
            norm("gpt_neox.final_layer_norm".into()),
            Site::new("embed_out", vocabulary, hidden).of(Part::Head),
            tied,
        ),
        absent_prefix: String::new(),
    })
}
