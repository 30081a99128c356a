//! BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692): encoders that norm the sum of each residual step. They differ in
//! where positions begin and in the layers of the head.

use crate::config::{Config, unsupported};
use crate::{
    Activation, Architecture, BlockSpec, HeadLayer, HeadSpec, Mlp, ModelError, NormSpec, Part, Pool,
    Projections, Site, StemSpec, Sublayer, Task, TextStem,
};
use halfbyte_tensor::AttentionShape;

/// What tells the families apart.
pub(super) struct Family {
    name: &'static str,
    classes: &'static str,
    /// Whether rows 0 to `pad_token_id` of the positions are not for tokens.
    padded_positions: bool,
    /// The layers before and at the output of a classifier; the first is the pooler's in BERT, under the encoder's prefix.
    classifier: [&'static str; 2],
    /// Dense layer, norm, output layer and its bias while tied, of a masked language model.
    language_model: [&'static str; 4],
}

pub(super) const BERT: Family = Family {
    name: "bert",
    classes: "Bert",
    padded_positions: false,
    classifier: ["bert.pooler.dense", "classifier"],
    language_model: [
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
    ],
};

pub(super) const ROBERTA: Family = Family {
    name: "roberta",
    classes: "Roberta",
    padded_positions: true,
    classifier: ["classifier.dense", "classifier.out_proj"],
    language_model: ["lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias"],
};

pub(super) fn describe(family: &Family, config: &Config) -> Result<Architecture, ModelError> {
    config.only("is_decoder", false)?;
    config.only("add_cross_attention", false)?;
    config.only("position_embedding_type", "absolute")?;
    let hidden = config.size("hidden_size")?;
    let (heads, dim) = config.heads("num_attention_heads", hidden)?;
    let width = config.size("intermediate_size")?;
    let vocabulary = config.size("vocab_size")?;
    let positions = config.size_or("max_position_embeddings")?.unwrap_or(512);
    let types = config.size_or("type_vocab_size")?.unwrap_or(2);
    let eps = config.number("layer_norm_eps")?.unwrap_or(1e-12) as f32;
    let activation = config.activation("hidden_act", Activation::Gelu)?;
    let first = match family.padded_positions {
        true => config.count("pad_token_id", 1)? + 1,
        false => 0,
    };
    let class = config.class(family.classes, None)?;
    let root = if class == "Model" { String::new() } else { format!("{}.", family.name) };
    let linear = |name: &str, outputs, inputs| Site::new(name, outputs, inputs).biased(true);
    let block = |layer: usize| {
        let name = |part: &str| format!("{root}encoder.layer.{layer}.{part}");
        let site = |part: &str, outputs, inputs| linear(&name(part), outputs, inputs);
        let projection = |part: &str| site(&format!("attention.self.{part}"), heads * dim, hidden);
        BlockSpec {
            taps: BlockSpec::four_taps(
                ["query", "key", "value"].map(projection).into(),
                site("attention.output.dense", hidden, heads * dim),
                vec![site("intermediate.dense", width, hidden)],
                site("output.dense", hidden, width),
            ),
            around_attention: Sublayer::post(NormSpec::layer(name("attention.output.LayerNorm"), eps)),
            around_mlp: Sublayer::post(NormSpec::layer(name("output.LayerNorm"), eps)),
            parallel: false,
            projections: Projections::Separate,
            query_key_norm: None,
            rope: None,
            attention: AttentionShape::plain(heads, dim),
            mlp: Mlp::Plain,
            activation,
        }
    };
    Ok(Architecture {
        family: family.name.into(),
        hidden,
        context: positions.saturating_sub(first),
        stem: StemSpec::Text(TextStem {
            types: Some((format!("{root}embeddings.token_type_embeddings"), types)),
            positions: Some((format!("{root}embeddings.position_embeddings"), positions, first)),
            norm: Some(NormSpec::layer(format!("{root}embeddings.LayerNorm"), eps)),
            ..TextStem::plain(&format!("{root}embeddings.word_embeddings"), vocabulary, hidden)
        }),
        ropes: Vec::new(),
        blocks: (0..config.layers("num_hidden_layers")?).map(block).collect(),
        head: head(family, config, class, [hidden, vocabulary], eps, activation)?,
        absent_prefix: String::new(),
    })
}

fn head(
    family: &Family,
    config: &Config,
    class: &str,
    [hidden, vocabulary]: [usize; 2],
    eps: f32,
    activation: Activation,
) -> Result<HeadSpec, ModelError> {
    let site = |name: &str, outputs| Site::new(name, outputs, hidden).biased(true).of(Part::Head);
    let dense =
        |name, activation, norm| HeadLayer { site: site(name, hidden), activation: Some(activation), norm };
    let (task, pool, layers, tied) = match class {
        "Model" => (Task::Encoder, Pool::All, Vec::new(), false),
        "ForSequenceClassification" => {
            let [first, output] = family.classifier;
            let layers = vec![dense(first, Activation::Tanh, None), site(output, config.labels()?).into()];
            (Task::TextClassification, Pool::First, layers, false)
        }
        "ForMaskedLM" => {
            let [first, norm, output, bias] = family.language_model;
            let tied = config.flag("tie_word_embeddings", true)?;
            // RoBERTa's head has GELU whatever its blocks have.
            let activation = if family.padded_positions { Activation::Gelu } else { activation };
            let mut output = site(output, vocabulary);
            if tied {
                output.bias = Some(bias.into());
            }
            let layers = vec![dense(first, activation, Some(NormSpec::layer(norm, eps))), output.into()];
            (Task::MaskedLanguageModel, Pool::All, layers, tied)
        }
        other => return Err(unsupported("architectures", format!("{}{other}", family.classes))),
    };
    Ok(HeadSpec { task, norm: None, pool, layers, soft_cap: None, tied })
}
