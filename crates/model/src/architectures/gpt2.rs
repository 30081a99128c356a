//! GPT-2: a pre-norm decoder with learned positions.
//!
//! Its layers are what transformers calls Conv1D: the checkpoint stores `[inputs, outputs]`. They are read turned round, so
//! that a channel of a quantized weight is an output as everywhere; a quantized folder has its codes as rows of inputs, and
//! what is not quantized as the checkpoint stores it.

use crate::config::Config;
use crate::{
    Activation, Architecture, BlockSpec, HeadSpec, Mlp, ModelError, NormSpec, Part, Projections, Site,
    StemSpec, Stored, Sublayer, TextStem,
};
use halfbyte_tensor::AttentionShape;

pub(super) fn describe(config: &Config) -> Result<Architecture, ModelError> {
    config.only_class("GPT2", "LMHeadModel")?;
    config.only("add_cross_attention", false)?;
    let hidden = config.size("n_embd")?;
    let (heads, dim) = config.heads("n_head", hidden)?;
    let width = config.size_or("n_inner")?.unwrap_or(4 * hidden);
    let vocabulary = config.size("vocab_size")?;
    let context = config.size("n_positions")?;
    let eps = config.number("layer_norm_epsilon")?.unwrap_or(1e-5) as f32;
    let activation = config.activation("activation_function", Activation::GeluTanh)?;
    let scaled = config.flag("scale_attn_weights", true)?;
    let by_layer = config.flag("scale_attn_by_inverse_layer_idx", false)?;
    let tied = config.flag("tie_word_embeddings", true)?;
    let norm = |name: String| NormSpec::layer(name, eps);
    let block = |layer: usize| {
        let name = |part: &str| format!("transformer.h.{layer}.{part}");
        let site = |part: &str, outputs, inputs| Site {
            stored: Stored::Columns,
            ..Site::new(name(part), outputs, inputs).biased(true)
        };
        let mut attention = AttentionShape { causal: true, ..AttentionShape::plain(heads, dim) };
        if !scaled {
            attention.scale = 1.0;
        }
        if by_layer {
            attention.scale /= (layer + 1) as f32;
        }
        BlockSpec {
            taps: BlockSpec::four_taps(
                vec![site("attn.c_attn", 3 * heads * dim, hidden)],
                site("attn.c_proj", hidden, heads * dim),
                vec![site("mlp.c_fc", width, hidden)],
                site("mlp.c_proj", hidden, width),
            ),
            around_attention: Sublayer::before(norm(name("ln_1"))),
            around_mlp: Sublayer::before(norm(name("ln_2"))),
            parallel: false,
            projections: Projections::Stacked,
            query_key_norm: None,
            rope: None,
            attention,
            mlp: Mlp::Plain,
            activation,
        }
    };
    Ok(Architecture {
        family: "gpt2".into(),
        hidden,
        context,
        stem: StemSpec::Text(TextStem {
            positions: Some(("transformer.wpe".into(), context, 0)),
            ..TextStem::plain("transformer.wte", vocabulary, hidden)
        }),
        ropes: Vec::new(),
        blocks: (0..config.layers("n_layer")?).map(block).collect(),
        head: HeadSpec::language_model(
            norm("transformer.ln_f".into()),
            Site::new("lm_head", vocabulary, hidden).of(Part::Head),
            tied,
        ),
        absent_prefix: String::new(),
    })
}
