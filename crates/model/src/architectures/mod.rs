//! What an architecture is, and the list of those that halfbyte knows.

mod llama;

use crate::config::{Config, invalid};
use crate::{ModelError, Rope};
use halfbyte_tensor::AttentionShape;
use serde_json::Value;

/// A network as data: everything that [`crate::Block`] needs in order to compute it.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// `model_type` of the config.
    pub family: String,
    /// Channels of the residual stream.
    pub hidden: usize,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Longest sequence the config allows.
    pub context: usize,
    /// Rotary embedding.
    pub rope: Rope,
    /// Name of the embedding table's tensor, `[vocabulary, hidden]`.
    pub embedding: String,
    /// The norm after the last block.
    pub final_norm: NormSpec,
    /// The output layer. Where it is tied its weight is the embedding's.
    pub head: Site,
    /// Whether the output layer shares the embedding's tensor.
    pub tied: bool,
    /// The blocks, first to last.
    pub blocks: Vec<BlockSpec>,
}

impl Architecture {
    /// Names and shapes of all tensors of an unquantized checkpoint, in the order of the computation.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![(self.embedding.clone(), vec![self.vocabulary, self.hidden])];
        for block in &self.blocks {
            tensors.push((block.attention_norm.name.clone(), vec![self.hidden]));
            tensors.push((block.mlp_norm.name.clone(), vec![self.hidden]));
            for norm in block.query_key_norm.iter().flat_map(|(q, k)| [q, k]) {
                tensors.push((norm.name.clone(), vec![block.attention.head_dim]));
            }
            block.taps.iter().flat_map(|t| &t.sites).for_each(|site| tensors.extend(site.tensors()));
        }
        tensors.push((self.final_norm.name.clone(), vec![self.hidden]));
        if !self.tied {
            tensors.extend(self.head.tensors());
        }
        tensors
    }
}

/// One transformer block.
#[derive(Clone, Debug)]
pub struct BlockSpec {
    /// The places whose activations feed linear layers, in the order of the computation.
    pub taps: Vec<Tap>,
    /// Norm before attention.
    pub attention_norm: NormSpec,
    /// Norm before the MLP.
    pub mlp_norm: NormSpec,
    /// Norm on every query head, and its twin on keys.
    pub query_key_norm: Option<(NormSpec, NormSpec)>,
    /// Shape and mask of the attention.
    pub attention: AttentionShape,
}

/// An RMSNorm's tensor.
#[derive(Clone, Debug)]
pub struct NormSpec {
    /// Name of the weight.
    pub name: String,
    /// Added to the mean square.
    pub eps: f32,
}

/// The place of a tap in its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TapKind {
    /// The normed input of the query, key and value projections.
    AttentionInput,
    /// The mixed values, input of the output projection.
    AttentionOutput,
    /// The normed input of the gate and up projections.
    MlpInput,
    /// The gated product, input of the down projection.
    MlpInner,
    /// The last norm's output, input of the language model head.
    Head,
}

impl TapKind {
    /// Whether the outputs of the layers here are added to the residual stream.
    pub fn writes_residual(self) -> bool {
        matches!(self, Self::AttentionOutput | Self::MlpInner)
    }
}

/// A place whose activations feed one or more linear layers.
#[derive(Clone, Debug)]
pub struct Tap {
    /// Where it is.
    pub kind: TapKind,
    /// The linear layers that share this input.
    pub sites: Vec<Site>,
}

impl Tap {
    /// Channels of the activations here.
    pub fn channels(&self) -> usize {
        self.sites[0].inputs
    }
}

/// One linear layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its tensors are `name.weight` `[outputs, inputs]` and, with `bias`, `name.bias` `[outputs]`.
    pub name: String,
    /// Output channels.
    pub outputs: usize,
    /// Input channels.
    pub inputs: usize,
    /// Whether it adds a bias.
    pub bias: bool,
}

impl Site {
    /// Names and shapes of its tensors.
    fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let bias = self.bias.then(|| (format!("{}.bias", self.name), vec![self.outputs]));
        [(format!("{}.weight", self.name), vec![self.outputs, self.inputs])].into_iter().chain(bias)
    }

    /// Last part of the name, which says the kind of layer: `q_proj`, `down_proj`, `lm_head`.
    pub fn kind(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// Reads a config.json.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], and for a known one whatever its config lacks or asks beyond what is
/// implemented, by key.
pub fn describe(config: &Value) -> Result<Architecture, ModelError> {
    let family = Config(config).text("model_type")?.ok_or_else(|| invalid("model_type", "missing".into()))?;
    match family {
        "llama" | "mistral" | "qwen2" | "qwen3" => llama::describe(family, &Config(config)),
        _ => Err(ModelError::UnknownArchitecture {
            found: family.into(),
            supported: "llama (LLaMA 1-3, TinyLlama, SmolLM2), mistral, qwen2, qwen3".into(),
        }),
    }
}
