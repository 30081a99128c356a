//! DINOv2 (arXiv 2304.07193), with and without registers (arXiv 2309.16588): ViT with a factor on each channel of what
//! attention and MLP give, and in the largest models a gated MLP.

use super::vit;
use crate::config::{Config, unsupported};
use crate::{
    Activation, Architecture, BlockSpec, Extra, HeadSpec, ImageStem, Mlp, ModelError, NormSpec, Part, Pool,
    Projections, Resampling, Site, StemSpec, Sublayer, Task,
};
use halfbyte_tensor::AttentionShape;

pub(super) fn describe(classes: &str, config: &Config) -> Result<Architecture, ModelError> {
    let registers = match classes {
        "Dinov2" => 0,
        _ => config.size_or("num_register_tokens")?.unwrap_or(4),
    };
    let family = if registers == 0 { "dinov2" } else { "dinov2_with_registers" };
    let hidden = config.size("hidden_size")?;
    let (heads, dim) = config.heads("num_attention_heads", hidden)?;
    let eps = config.number("layer_norm_eps")?.unwrap_or(1e-6) as f32;
    let qkv_bias = config.flag("qkv_bias", true)?;
    let width = hidden * config.size_or("mlp_ratio")?.unwrap_or(4);
    let gated = config.flag("use_swiglu_ffn", false)?;
    // Two thirds of the plain width, rounded up to a multiple of 8, and gates beside them.
    let gated_width = (width * 2 / 3).div_ceil(8) * 8;
    let activation =
        if gated { Activation::Silu } else { config.activation("hidden_act", Activation::Gelu)? };
    let class = config.class(classes, None)?;
    let root = if class == "Model" { String::new() } else { format!("{family}.") };
    let block = |layer: usize| {
        let name = |part: &str| format!("{root}encoder.layer.{layer}.{part}");
        let site = |part: &str, outputs, inputs, bias| Site::new(name(part), outputs, inputs).biased(bias);
        let projection =
            |part: &str| site(&format!("attention.attention.{part}"), heads * dim, hidden, qkv_bias);
        let (first, last) = match gated {
            true => (
                site("mlp.weights_in", 2 * gated_width, hidden, true),
                site("mlp.weights_out", hidden, gated_width, true),
            ),
            false => (site("mlp.fc1", width, hidden, true), site("mlp.fc2", hidden, width, true)),
        };
        let around = |i: usize| Sublayer {
            scale: Some(name(&format!("layer_scale{i}.lambda1"))),
            ..Sublayer::before(NormSpec::layer(name(&format!("norm{i}")), eps))
        };
        BlockSpec {
            taps: BlockSpec::four_taps(
                ["query", "key", "value"].map(projection).into(),
                site("attention.output.dense", hidden, heads * dim, true),
                vec![first],
                last,
            ),
            around_attention: around(1),
            around_mlp: around(2),
            parallel: false,
            projections: Projections::Separate,
            query_key_norm: None,
            rope: None,
            attention: AttentionShape::plain(heads, dim),
            mlp: if gated { Mlp::GatedStacked } else { Mlp::Plain },
            activation,
        }
    };
    let mut extra = vec![Extra { name: format!("{root}embeddings.cls_token"), rows: 1, positioned: true }];
    if registers > 0 {
        let name = format!("{root}embeddings.register_tokens");
        extra.push(Extra { name, rows: registers, positioned: false });
    }
    // Published models have positions for 518 pixels and processors that give 224.
    let resampling = if registers == 0 { Resampling::Bicubic } else { Resampling::Antialiased };
    let stem = ImageStem { resampling: Some(resampling), ..vit::stem(config, &root, hidden, extra)? };
    let (task, pool, layers) = match class {
        "Model" => (Task::Encoder, Pool::All, Vec::new()),
        "ForImageClassification" => {
            let classifier =
                Site::new("classifier", config.labels()?, 2 * hidden).biased(true).of(Part::Head);
            let pool = Pool::FirstAndMean { from: 1 + registers };
            (Task::ImageClassification, pool, vec![classifier.into()])
        }
        other => return Err(unsupported("architectures", format!("{classes}{other}"))),
    };
    let norm = Some(NormSpec::layer(format!("{root}layernorm"), eps));
    Ok(Architecture {
        family: family.into(),
        hidden,
        context: stem.rows(),
        stem: StemSpec::Image(stem),
        ropes: Vec::new(),
        blocks: (0..config.layers("num_hidden_layers")?).map(block).collect(),
        head: HeadSpec { task, norm, pool, layers, soft_cap: None, tied: false },
        absent_prefix: String::new(),
    })
}
