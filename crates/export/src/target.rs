//! The engines that we write for, and what each can hold.

use crate::ExportError;
use halfbyte_checkpoint::gguf::GgufType;
use halfbyte_checkpoint::{LayerScheme, Layout};
use halfbyte_formats::Scheme;
use halfbyte_model::{Model, Part, Site, Stored};
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

/// A form that another engine loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// compressed-tensors `nvfp4-pack-quantized`.
    VllmNvfp4,
    /// compressed-tensors `mxfp4-pack-quantized`.
    VllmMxfp4,
    /// compressed-tensors `float-quantized`: FP8.
    VllmFp8,
    /// compressed-tensors `pack-quantized` and `int-quantized`.
    VllmInt,
    /// compressed-tensors with several of these forms, a group of layers for each.
    VllmMixed,
    /// NVIDIA ModelOpt's NVFP4.
    ModelOpt,
    /// llama.cpp, linear layers in NVFP4.
    GgufNvfp4,
    /// llama.cpp, linear layers in MXFP4.
    GgufMxfp4,
    /// llama.cpp, linear layers in NVFP4 or MXFP4.
    GgufMixed,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::VllmNvfp4,
        Self::VllmMxfp4,
        Self::VllmFp8,
        Self::VllmInt,
        Self::VllmMixed,
        Self::ModelOpt,
        Self::GgufNvfp4,
        Self::GgufMxfp4,
        Self::GgufMixed,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::VllmNvfp4 => "vllm-nvfp4",
            Self::VllmMxfp4 => "vllm-mxfp4",
            Self::VllmFp8 => "vllm-fp8",
            Self::VllmInt => "vllm-int",
            Self::VllmMixed => "vllm-mixed",
            Self::ModelOpt => "modelopt",
            Self::GgufNvfp4 => "gguf-nvfp4",
            Self::GgufMxfp4 => "gguf-mxfp4",
            Self::GgufMixed => "gguf-mixed",
        }
    }

    /// Whether it is one GGUF file rather than a folder of safetensors.
    pub fn is_gguf(self) -> bool {
        matches!(self, Self::GgufNvfp4 | Self::GgufMxfp4 | Self::GgufMixed)
    }

    /// Whether its layers may have different schemes.
    pub fn is_mixed(self) -> bool {
        matches!(self, Self::VllmMixed | Self::GgufMixed)
    }

    pub(crate) fn layout(self) -> Layout {
        if self == Self::ModelOpt { Layout::ModelOpt } else { Layout::CompressedTensors }
    }

    /// Whether weights of this scheme are what the target is for, and which recipes make them.
    fn takes(self, weight: Scheme) -> (bool, &'static str) {
        let element = weight.element;
        match self {
            Self::VllmNvfp4 | Self::ModelOpt | Self::GgufNvfp4 => {
                (weight == Scheme::NVFP4, "nvfp4-w4a16 or nvfp4-w4a4")
            }
            Self::VllmMxfp4 | Self::GgufMxfp4 => (weight == Scheme::MXFP4, "mxfp4-w4a16 or mxfp4-w4a4"),
            // The layout knows what it holds.
            Self::VllmMixed => (true, ""),
            Self::GgufMixed => (
                weight == Scheme::NVFP4 || weight == Scheme::MXFP4,
                "the schemes of nvfp4-w4a16 and mxfp4-w4a16",
            ),
            Self::VllmFp8 => (element.to_string() == "e4m3fn", "fp8-w8a8 or fp8-w8a16"),
            Self::VllmInt => (
                element.fields().is_none(),
                "int4-g32-w4a16, int8-w8a16, int8-w8a8, smooth-quant-w8a8 or os-plus-w8a8",
            ),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|t| t.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|t| t.name()).collect();
            format!("no target {text:?}; there are {}", names.join(", "))
        })
    }
}

/// How a GGUF file has the matrices that are not quantized: the embedding, the output layer, layers that were kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rest {
    /// As the folder stores them.
    #[default]
    AsStored,
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Brain float.
    Bf16,
    /// Bytes in blocks of 32 with a half-precision scale: 8.5 bits a value.
    Q8_0,
}

impl Rest {
    pub(crate) fn kind(self) -> Option<GgufType> {
        match self {
            Self::AsStored => None,
            Self::F32 => Some(GgufType::F32),
            Self::F16 => Some(GgufType::F16),
            Self::Bf16 => Some(GgufType::BF16),
            Self::Q8_0 => Some(GgufType::Q8_0),
        }
    }
}

/// Which layers are quantized and how, and which stay as they are.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The quantized layers, all in one scheme but for mixed targets.
    pub layers: Vec<(Site, LayerScheme)>,
    /// Names that engines have for the linear layers that stay: the output layer and those that the architecture does not list
    /// (BERT's pooler in a checkpoint without a head) among them.
    pub ignore: Vec<String>,
}

/// Checks that `target` can hold `model`, quantized or to be, if its linear layers have the schemes that `scheme_of` says
/// by name (`None`: left alone); `attention` says whether operands of attention are quantized.
///
/// # Errors
/// [`ExportError::Cannot`], saying what would do.
pub fn check(
    model: &Model,
    scheme_of: &dyn Fn(&str) -> Option<LayerScheme>,
    attention: bool,
    target: Target,
) -> Result<Plan, ExportError> {
    if attention {
        return Err(ExportError::attention(target));
    }
    let architecture = &model.architecture;
    let cannot = |message: String| Err(ExportError::Cannot { target, message });
    if !target.is_gguf() && model.checkpoint.has_divided_rope() {
        return cannot(
            "its rotary frequencies are a GGUF file's table of divisors (rope_freqs), which no config.json of other engines \
             says; start from the Hugging Face checkpoint"
                .into(),
        );
    }
    if let Some(name) = architecture.migrations().next() {
        return cannot(format!(
            "{name} divides the inputs of a layer by factors, which is halfbyte's own; quantize with transforms without migrate=true"
        ));
    }
    let head = || architecture.head.layers.iter().map(|l| &l.site);
    for site in [architecture.embedding()].into_iter().chain(head()) {
        if scheme_of(&site.name).is_some() {
            let keep = if site.part == Part::Embedding { "embedding" } else { "lm_head" };
            return cannot(format!(
                "{} is quantized, and engines expect it as it was; quantize with {keep} among those of --keep",
                site.name
            ));
        }
    }
    let mut layers: Vec<(Site, LayerScheme)> = Vec::new();
    let mut ignore: Vec<String> = head().map(|s| s.name.clone()).collect();
    for tap in architecture.blocks.iter().flat_map(|b| &b.taps) {
        let quantized = tap.sites.iter().filter(|s| scheme_of(&s.name).is_some()).count();
        if quantized != 0 && quantized != tap.sites.len() {
            let names: Vec<&str> = tap.sites.iter().map(Site::kind).collect();
            return cannot(format!(
                "{} of the block of {} are quantized in part; engines fuse them, so keep all or none",
                names.join("/"),
                tap.sites[0].name
            ));
        }
        for site in &tap.sites {
            let Some(scheme) = scheme_of(&site.name) else {
                ignore.push(architecture.module_name(&site.name));
                continue;
            };
            if let Err(message) = check_layer(target, site, &scheme) {
                return cannot(format!("layer {} [{}, {}]: {message}", site.name, site.outputs, site.inputs));
            }
            // Fused layers must be alike everywhere, all others where the target has one scheme.
            let other = if target.is_mixed() { &tap.sites[0] } else { layers.first().map_or(site, |l| &l.0) };
            if scheme_of(&other.name) != Some(scheme) {
                let also = if target.is_mixed() { "" } else { "; vllm-mixed and gguf-mixed hold several" };
                return cannot(format!("{} and {} have different schemes{also}", site.name, other.name));
            }
            layers.push((site.clone(), scheme));
        }
    }
    ignore.extend(unlisted(model, &layers));
    if target.is_gguf()
        && let Err(message) = crate::gguf::check(model, &layers)
    {
        return cannot(message);
    }
    if layers.is_empty() {
        return cannot("no linear layer is quantized".into());
    }
    Ok(Plan { layers, ignore })
}

/// The tensors that a halfbyte folder has for these layers.
pub(crate) fn coded(layers: &[(Site, LayerScheme)]) -> HashSet<String> {
    let tensors = layers.iter().flat_map(|(s, scheme)| scheme.tensors(&s.name, s.outputs, s.inputs));
    tensors.map(|t| t.name).collect()
}

/// Matrices of the checkpoint that the architecture has no layer or table for: an engine may have, and would look for its codes.
fn unlisted(model: &Model, layers: &[(Site, LayerScheme)]) -> Vec<String> {
    let a = &model.architecture;
    let mut known = coded(layers);
    known.extend(a.tensors().into_iter().map(|(name, _)| model.stored_name(&name).into_owned()));
    let matrix = |name: &&str| model.checkpoint.info(name).is_some_and(|t| t.shape.len() == 2);
    // A tied output layer may be stored all the same.
    known.extend(a.sites().map(Site::weight));
    let unknown = model.checkpoint.names().filter(|name| !known.contains(*name)).filter(matrix);
    unknown.filter_map(|name| Some(a.module_name(name.strip_suffix(".weight")?))).collect()
}

fn check_layer(target: Target, site: &Site, scheme: &LayerScheme) -> Result<(), String> {
    let weight = scheme.weight.ok_or("only its input is quantized")?;
    if let Some(rank) = scheme.low_rank {
        return Err(format!(
            "it has a part of rank {rank} beside its codes, which is halfbyte's own; quantize with low_rank = 0"
        ));
    }
    if site.stored != Stored::Rows {
        return Err("engines expect it stored the other way round, as inputs by outputs".into());
    }
    let (fits, recipes) = target.takes(weight);
    if !fits {
        return Err(format!("its weight is stored as {weight}; quantize with {recipes}"));
    }
    if target.is_gguf() {
        let block = gguf_type(weight).block();
        if !site.inputs.is_multiple_of(block) {
            return Err(format!(
                "its {} inputs are not a multiple of {block}, the values of a block",
                site.inputs
            ));
        }
        let expected = Scheme { dynamic: true, ..weight };
        return match scheme.input {
            Some(input) if input != expected => Err(format!("its inputs are quantized as {input}")),
            _ => Ok(()),
        };
    }
    target.layout().tensors(scheme, &site.name, site.outputs, site.inputs).map(|_| ())
}

/// The blocks of a scheme that a GGUF target takes.
pub(crate) fn gguf_type(weight: Scheme) -> GgufType {
    if weight == Scheme::NVFP4 { GgufType::Nvfp4 } else { GgufType::Mxfp4 }
}

/// Checks that `target` can hold `model`, a halfbyte folder.
///
/// # Errors
/// [`ExportError::NotQuantized`], or as [`check`].
pub fn check_model(model: &Model, target: Target) -> Result<Plan, ExportError> {
    let dir = || model.checkpoint.dir().to_path_buf();
    let manifest = model.manifest.as_ref().filter(|m| m.layout == Layout::Halfbyte);
    let manifest = manifest.ok_or_else(|| ExportError::NotQuantized(dir()))?;
    let scheme_of = |name: &str| manifest.layers.get(name).copied();
    check(model, &scheme_of, !manifest.attention.is_empty(), target)
}
