//! DistilBERT (arXiv 1910.01108): BERT without segments and pooler, and with names of its own.

use crate::config::{Config, unsupported};
use crate::{
    Activation, Architecture, BlockSpec, HeadLayer, HeadSpec, Mlp, ModelError, NormSpec, Part, Pool,
    Projections, Site, StemSpec, Sublayer, Task, TextStem,
};
use halfbyte_tensor::AttentionShape;

/// It has no key in the config.
const EPS: f32 = 1e-12;

pub(super) fn describe(config: &Config) -> Result<Architecture, ModelError> {
    let hidden = config.size("dim")?;
    let (heads, dim) = config.heads("n_heads", hidden)?;
    let width = config.size("hidden_dim")?;
    let vocabulary = config.size("vocab_size")?;
    let positions = config.size_or("max_position_embeddings")?.unwrap_or(512);
    let activation = config.activation("activation", Activation::Gelu)?;
    let class = config.class("DistilBert", None)?;
    let root = if class == "Model" { "" } else { "distilbert." };
    let block = |layer: usize| {
        let name = |part: &str| format!("{root}transformer.layer.{layer}.{part}");
        let site = |part: &str, outputs, inputs| Site::new(name(part), outputs, inputs).biased(true);
        BlockSpec {
            taps: BlockSpec::four_taps(
                ["q", "k", "v"].map(|p| site(&format!("attention.{p}_lin"), heads * dim, hidden)).into(),
                site("attention.out_lin", hidden, heads * dim),
                vec![site("ffn.lin1", width, hidden)],
                site("ffn.lin2", hidden, width),
            ),
            around_attention: Sublayer::post(NormSpec::layer(name("sa_layer_norm"), EPS)),
            around_mlp: Sublayer::post(NormSpec::layer(name("output_layer_norm"), EPS)),
            parallel: false,
            projections: Projections::Separate,
            query_key_norm: None,
            rope: None,
            attention: AttentionShape::plain(heads, dim),
            mlp: Mlp::Plain,
            activation,
        }
    };
    let site = |name: &str, outputs| Site::new(name, outputs, hidden).biased(true).of(Part::Head);
    let dense =
        |name, activation, norm| HeadLayer { site: site(name, hidden), activation: Some(activation), norm };
    let (task, pool, layers) = match class {
        "Model" => (Task::Encoder, Pool::All, Vec::new()),
        "ForSequenceClassification" => {
            let output = site("classifier", config.labels()?);
            (
                Task::TextClassification,
                Pool::First,
                vec![dense("pre_classifier", Activation::Relu, None), output.into()],
            )
        }
        "ForMaskedLM" => {
            let norm = NormSpec::layer("vocab_layer_norm", EPS);
            let layers = vec![
                dense("vocab_transform", activation, Some(norm)),
                site("vocab_projector", vocabulary).into(),
            ];
            (Task::MaskedLanguageModel, Pool::All, layers)
        }
        other => return Err(unsupported("architectures", format!("DistilBert{other}"))),
    };
    let tied = task == Task::MaskedLanguageModel && config.flag("tie_word_embeddings", true)?;
    Ok(Architecture {
        family: "distilbert".into(),
        hidden,
        context: positions,
        stem: StemSpec::Text(TextStem {
            positions: Some((format!("{root}embeddings.position_embeddings"), positions, 0)),
            norm: Some(NormSpec::layer(format!("{root}embeddings.LayerNorm"), EPS)),
            ..TextStem::plain(&format!("{root}embeddings.word_embeddings"), vocabulary, hidden)
        }),
        ropes: Vec::new(),
        blocks: (0..config.layers("n_layers")?).map(block).collect(),
        head: HeadSpec { task, norm: None, pool, layers, soft_cap: None, tied },
        absent_prefix: String::new(),
    })
}
