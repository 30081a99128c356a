//! OPT (arXiv 2205.01068): a decoder with learned positions and ReLU, that norms before each step or, in one size, after it.

use crate::config::{Config, unsupported};
use crate::{
    Activation, Architecture, BlockSpec, HeadSpec, Mlp, ModelError, NormSpec, Part, Projections, Site,
    StemSpec, Sublayer, TextStem,
};
use halfbyte_tensor::AttentionShape;

/// Rows of the table of positions before the first one's.
const OFFSET: usize = 2;

pub(super) fn describe(config: &Config) -> Result<Architecture, ModelError> {
    config.only_class("OPT", "ForCausalLM")?;
    config.only("layer_norm_elementwise_affine", true)?;
    let hidden = config.size("hidden_size")?;
    // OPT-350m has an embedding of fewer channels and layers around the blocks that widen and narrow it.
    if let Some(narrow) = config.size_or("word_embed_proj_dim")?.filter(|&n| n != hidden) {
        return Err(unsupported("word_embed_proj_dim", narrow));
    }
    let (heads, dim) = config.heads("num_attention_heads", hidden)?;
    let width = config.size("ffn_dim")?;
    let vocabulary = config.size("vocab_size")?;
    let context = config.size("max_position_embeddings")?;
    let activation = config.activation("activation_function", Activation::Relu)?;
    let bias = config.flag("enable_bias", true)?;
    let before = config.flag("do_layer_norm_before", true)?;
    let last_norm = before && !config.flag("_remove_final_layer_norm", false)?;
    let tied = config.flag("tie_word_embeddings", true)?;
    let norm = |name: String| NormSpec::layer(name, 1e-5);
    let around = |name| if before { Sublayer::before(norm(name)) } else { Sublayer::post(norm(name)) };
    let block = |layer: usize| {
        let name = |part: &str| format!("model.decoder.layers.{layer}.{part}");
        let site = |part: &str, outputs, inputs| Site::new(name(part), outputs, inputs).biased(bias);
        let projection = |part: &str| site(&format!("self_attn.{part}"), heads * dim, hidden);
        BlockSpec {
            taps: BlockSpec::four_taps(
                ["q_proj", "k_proj", "v_proj"].map(projection).into(),
                site("self_attn.out_proj", hidden, heads * dim),
                vec![site("fc1", width, hidden)],
                site("fc2", hidden, width),
            ),
            around_attention: around(name("self_attn_layer_norm")),
            around_mlp: around(name("final_layer_norm")),
            parallel: false,
            projections: Projections::Separate,
            query_key_norm: None,
            rope: None,
            attention: AttentionShape { causal: true, ..AttentionShape::plain(heads, dim) },
            mlp: Mlp::Plain,
            activation,
        }
    };
    let final_norm = norm("model.decoder.final_layer_norm".into());
    let output = Site::new("lm_head", vocabulary, hidden).of(Part::Head);
    let head = HeadSpec::language_model(final_norm, output, tied);
    Ok(Architecture {
        family: "opt".into(),
        hidden,
        context,
        stem: StemSpec::Text(TextStem {
            positions: Some(("model.decoder.embed_positions".into(), context + OFFSET, OFFSET)),
            ..TextStem::plain("model.decoder.embed_tokens", vocabulary, hidden)
        }),
        ropes: Vec::new(),
        blocks: (0..config.layers("num_hidden_layers")?).map(block).collect(),
        head: HeadSpec { norm: head.norm.clone().filter(|_| last_norm), ..head },
        absent_prefix: String::new(),
    })
}
