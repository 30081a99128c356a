//! ViT (arXiv 2010.11929) and DeiT (arXiv 2012.12877), whose distillation token is one more row: pre-norm encoders of image
//! patches.

use crate::config::{Config, invalid, unsupported};
use crate::{
    Activation, Architecture, BlockSpec, Extra, HeadSpec, ImageStem, Mlp, ModelError, NormSpec, Part, Pool,
    Projections, Site, StemSpec, Stored, Sublayer, Task,
};
use halfbyte_tensor::AttentionShape;

/// What tells the families apart.
pub(super) struct Family {
    name: &'static str,
    classes: &'static str,
    /// The rows before the patches.
    extra: &'static [&'static str],
}

pub(super) const VIT: Family = Family { name: "vit", classes: "ViT", extra: &["cls_token"] };
pub(super) const DEIT: Family =
    Family { name: "deit", classes: "DeiT", extra: &["cls_token", "distillation_token"] };

pub(super) fn describe(family: &Family, config: &Config) -> Result<Architecture, ModelError> {
    let hidden = config.size("hidden_size")?;
    let (heads, dim) = config.heads("num_attention_heads", hidden)?;
    let width = config.size("intermediate_size")?;
    let eps = config.number("layer_norm_eps")?.unwrap_or(1e-12) as f32;
    let activation = config.activation("hidden_act", Activation::Gelu)?;
    let qkv_bias = config.flag("qkv_bias", true)?;
    let class = config.class(family.classes, None)?;
    let root = if class == "Model" { String::new() } else { format!("{}.", family.name) };
    let block = |layer: usize| {
        let name = |part: &str| format!("{root}encoder.layer.{layer}.{part}");
        let site = |part: &str, outputs, inputs, bias| Site::new(name(part), outputs, inputs).biased(bias);
        let projection =
            |part: &str| site(&format!("attention.attention.{part}"), heads * dim, hidden, qkv_bias);
        BlockSpec {
            taps: BlockSpec::four_taps(
                ["query", "key", "value"].map(projection).into(),
                site("attention.output.dense", hidden, heads * dim, true),
                vec![site("intermediate.dense", width, hidden, true)],
                site("output.dense", hidden, width, true),
            ),
            around_attention: Sublayer::before(NormSpec::layer(name("layernorm_before"), eps)),
            around_mlp: Sublayer::before(NormSpec::layer(name("layernorm_after"), eps)),
            parallel: false,
            projections: Projections::Separate,
            query_key_norm: None,
            rope: None,
            attention: AttentionShape::plain(heads, dim),
            mlp: Mlp::Plain,
            activation,
        }
    };
    let extra = |name: &&str| Extra { name: format!("{root}embeddings.{name}"), rows: 1, positioned: true };
    let stem = stem(config, &root, hidden, family.extra.iter().map(extra).collect())?;
    let (task, pool, layers) = match class {
        "Model" => (Task::Encoder, Pool::All, Vec::new()),
        "ForImageClassification" => {
            let classifier = Site::new("classifier", config.labels()?, hidden).biased(true).of(Part::Head);
            (Task::ImageClassification, Pool::First, vec![classifier.into()])
        }
        other => return Err(unsupported("architectures", format!("{}{other}", family.classes))),
    };
    let norm = Some(NormSpec::layer(format!("{root}layernorm"), eps));
    Ok(Architecture {
        family: family.name.into(),
        hidden,
        context: stem.rows(),
        stem: StemSpec::Image(stem),
        ropes: Vec::new(),
        blocks: (0..config.layers("num_hidden_layers")?).map(block).collect(),
        head: HeadSpec { task, norm, pool, layers, soft_cap: None, tied: false },
        absent_prefix: String::new(),
    })
}

/// The stem of these families: projected patches, of which the extra rows come first.
pub(super) fn stem(
    config: &Config,
    root: &str,
    hidden: usize,
    extra: Vec<Extra>,
) -> Result<ImageStem, ModelError> {
    let channels = config.size_or("num_channels")?.unwrap_or(3);
    let (size, patch) = (config.pair("image_size")?, config.pair("patch_size")?);
    if size[0] < patch[0] || size[1] < patch[1] {
        return Err(invalid("patch_size", format!("{patch:?} is larger than image_size {size:?}")));
    }
    let mut projection = Site::new(
        format!("{root}embeddings.patch_embeddings.projection"),
        hidden,
        channels * patch[0] * patch[1],
    )
    .biased(true)
    .of(Part::Embedding);
    projection.stored = Stored::Filters { channels, height: patch[0], width: patch[1] };
    let positions = format!("{root}embeddings.position_embeddings");
    Ok(ImageStem { projection, channels, size, patch, extra, positions, resampling: None })
}
