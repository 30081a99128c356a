//! One transformer block, described.

use super::{Activation, NormKind, NormSpec, Site};
use halfbyte_checkpoint::AttentionWidths;
use halfbyte_tensor::AttentionShape;

/// What the names of migrations end in ([`BlockSpec::migration`]).
pub const MIGRATION: &str = ".migration";

/// One transformer block.
#[derive(Clone, Debug)]
pub struct BlockSpec {
    /// The places whose activations feed linear layers, in the order of the computation: attention input and output, MLP
    /// input and inner activations.
    pub taps: Vec<Tap>,
    /// Norms and scale around attention.
    pub around_attention: Sublayer,
    /// Norms and scale around the MLP.
    pub around_mlp: Sublayer,
    /// Whether attention and MLP both read the block's input, as in GPT-NeoX, rather than one after the other.
    pub parallel: bool,
    /// How the layers at the attention input give queries, keys and values.
    pub projections: Projections,
    /// Norm on every query head, and its twin on keys.
    pub query_key_norm: Option<(NormSpec, NormSpec)>,
    /// Which of [`Architecture::ropes`](super::Architecture) turns queries and keys.
    pub rope: Option<usize>,
    /// Shape and mask of the attention.
    pub attention: AttentionShape,
    /// How the layers at the MLP input give the inner activations.
    pub mlp: Mlp,
    /// Their activation function.
    pub activation: Activation,
}

/// What surrounds attention or the MLP: `y = after(layers(before(x))) · scale`, then `x ← post(x + y)`. Whatever is absent
/// is the identity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sublayer {
    /// Norm of what it reads.
    pub before: Option<NormSpec>,
    /// Norm of what it gives (Gemma 2).
    pub after: Option<NormSpec>,
    /// Name of a factor on each channel of what it gives, `[hidden]` (LayerScale, arXiv 2103.17239).
    pub scale: Option<String>,
    /// Norm of the residual stream after what it gives has been added (BERT).
    pub post: Option<NormSpec>,
    /// Factors of channels before the MLP's last layer, see [`BlockSpec::migration`].
    pub inside: Option<NormSpec>,
}

impl Sublayer {
    /// A norm before, as most networks have it.
    pub fn before(norm: NormSpec) -> Self {
        Self { before: Some(norm), ..Self::default() }
    }

    /// A norm of the sum, as BERT has it.
    pub fn post(norm: NormSpec) -> Self {
        Self { post: Some(norm), ..Self::default() }
    }

    /// Tensors but those of [`inside`](Self::inside).
    fn tensors(&self, hidden: usize) -> Vec<(String, Vec<usize>)> {
        let norms = [&self.before, &self.after, &self.post].into_iter().flatten();
        let scale = self.scale.iter().map(|s| (s.clone(), vec![hidden]));
        norms.flat_map(|n| n.tensors(hidden)).chain(scale).collect()
    }
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// Three layers.
    Separate,
    /// One layer: all queries, then all keys, then all values (GPT-2, Phi-3).
    Stacked,
    /// One layer: query, key and value of the first head, then of the second (BLOOM, GPT-NeoX).
    PerHead,
}

/// What an MLP does with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// One layer, then the activation.
    Plain,
    /// `activation(gate) · up`, two layers.
    Gated,
    /// The same from one layer: all gates, then all the others (Phi-3).
    GatedStacked,
}

/// The place of a tap in its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TapKind {
    /// Input of the query, key and value projections.
    AttentionInput,
    /// The mixed values, input of the output projection.
    AttentionOutput,
    /// Input of the MLP's first layers.
    MlpInput,
    /// What the activation function gave, input of the MLP's last layer.
    MlpInner,
    /// Input of a layer behind the last block.
    Head,
}

impl TapKind {
    /// Whether the outputs of the layers here are added to the residual stream.
    pub fn writes_residual(self) -> bool {
        matches!(self, Self::AttentionOutput | Self::MlpInner)
    }
}

/// What makes the activations at a tap, as far as a factor on a channel could be moved into it.
#[derive(Clone, Debug, PartialEq)]
pub enum Producer {
    /// A norm that feeds this tap alone: a factor can go into its weight (and bias).
    Norm(String),
    /// A norm whose output is the residual stream as well: a factor in it must be undone there. `None`: the last norm of
    /// the block before, or of the stem.
    Residual(Option<String>),
    /// The value projection, through attention: channel `c` of head `h` comes from row `c` of the value head that serves
    /// `h`, for all heads that share it.
    Values,
    /// A linear layer (its name) whose output reaches the tap through nothing but factors: the `up` of a gated MLP; in
    /// stacked layers its last rows.
    Linear(String),
    /// A linear layer (its name) and a ReLU, which lets positive factors pass.
    Relu(String),
    /// A function that lets no factor pass, before the MLP's last layer.
    Function,
    /// Nothing that is known here.
    None,
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

impl BlockSpec {
    /// The four taps of a block: the layers that read its norms, and the two that write to the residual stream.
    pub fn four_taps(qkv: Vec<Site>, output: Site, mlp: Vec<Site>, down: Site) -> Vec<Tap> {
        vec![
            Tap { kind: TapKind::AttentionInput, sites: qkv },
            Tap { kind: TapKind::AttentionOutput, sites: vec![output] },
            Tap { kind: TapKind::MlpInput, sites: mlp },
            Tap { kind: TapKind::MlpInner, sites: vec![down] },
        ]
    }

    /// The name of the attention: that of its query projection without the last part.
    pub fn attention_name(&self) -> &str {
        let first =
            self.taps.iter().find(|t| t.kind == TapKind::AttentionInput).and_then(|t| t.sites.first());
        let name = first.map_or("", |s| s.name.as_str());
        name.rsplit_once('.').map_or(name, |(parent, _)| parent)
    }

    /// Sizes of the attention, as a folder describes it.
    pub fn attention_widths(&self) -> AttentionWidths {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.attention;
        AttentionWidths { heads, kv_heads, head_dim }
    }

    /// Channels of a token's query, key and value together.
    pub fn operand_channels(&self) -> usize {
        (self.attention.heads + 2 * self.attention.kv_heads) * self.attention.head_dim
    }

    /// Channels at the input of the MLP's last layer.
    pub(crate) fn inner_channels(&self) -> usize {
        self.taps.iter().find(|t| t.kind == TapKind::MlpInner).map_or(0, Tap::channels)
    }

    /// What makes the activations at tap `tap`.
    pub fn producer(&self, tap: usize) -> Producer {
        let norm = |around: &Sublayer| around.before.as_ref().map(|n| Producer::Norm(n.name.clone()));
        let first = |kind| self.taps.iter().find(|t| t.kind == kind).and_then(|t| t.sites.last());
        match self.taps[tap].kind {
            TapKind::AttentionInput => norm(&self.around_attention).unwrap_or(Producer::Residual(None)),
            TapKind::AttentionOutput => Producer::Values,
            TapKind::MlpInput => norm(&self.around_mlp).unwrap_or_else(|| {
                Producer::Residual(self.around_attention.post.as_ref().map(|n| n.name.clone()))
            }),
            TapKind::MlpInner => match (self.mlp, self.activation, first(TapKind::MlpInput)) {
                (Mlp::Gated | Mlp::GatedStacked, _, Some(up)) => Producer::Linear(up.name.clone()),
                (Mlp::Plain, Activation::Relu, Some(layer)) => Producer::Relu(layer.name.clone()),
                _ => match &self.around_mlp.inside {
                    Some(migration) => Producer::Norm(migration.name.clone()),
                    None => Producer::Function,
                },
            },
            TapKind::Head => Producer::None,
        }
    }

    /// The factors and shifts of channels that a transform may put before the layers at tap `tap`, where no producer can take
    /// them: where layers read the residual stream as it is (the unified migration pattern of arXiv 2304.09145, section 4.1, for
    /// networks that norm the sum), and behind an activation function. `None` at other taps.
    pub fn migration(&self, tap: usize) -> Option<NormSpec> {
        let site = self.taps[tap].sites.first()?;
        let name = format!("{}{MIGRATION}", site.name);
        let room = matches!(self.producer(tap), Producer::Residual(_) | Producer::Function);
        room.then_some(NormSpec { name, kind: NormKind::Channels, eps: 0.0 })
    }

    /// Where the [`migration`](Self::migration) of tap `tap` is, once it is there.
    pub(crate) fn migration_mut(&mut self, tap: usize) -> &mut Option<NormSpec> {
        match self.taps[tap].kind {
            TapKind::AttentionInput | TapKind::AttentionOutput => &mut self.around_attention.before,
            TapKind::MlpInput => &mut self.around_mlp.before,
            TapKind::MlpInner | TapKind::Head => &mut self.around_mlp.inside,
        }
    }

    /// What surrounds the layers that write to the residual stream at tap `tap`.
    pub fn around(&self, tap: usize) -> &Sublayer {
        match self.taps[tap].kind {
            TapKind::AttentionInput | TapKind::AttentionOutput => &self.around_attention,
            _ => &self.around_mlp,
        }
    }

    /// Channels of what a sequence carries beside tap `tap`: the residual stream and, in a parallel block until it is used,
    /// the MLP's input.
    pub fn carried(&self, tap: usize, hidden: usize) -> usize {
        let waits = |t: &Tap| matches!(t.kind, TapKind::AttentionInput | TapKind::AttentionOutput);
        if self.parallel && self.taps.get(tap).is_some_and(waits) { 2 * hidden } else { hidden }
    }

    /// Names and shapes of its tensors as checkpoints have them, linear layers last; `hidden` channels in the residual stream.
    pub fn tensors(&self, hidden: usize) -> Vec<(String, Vec<usize>)> {
        let mut tensors = self.around_attention.tensors(hidden);
        tensors.extend(self.around_mlp.tensors(hidden));
        tensors.extend(self.around_mlp.inside.iter().flat_map(|m| m.tensors(self.inner_channels())));
        for norm in self.query_key_norm.iter().flat_map(|(q, k)| [q, k]) {
            tensors.extend(norm.tensors(self.attention.head_dim));
        }
        tensors.extend(self.taps.iter().flat_map(|t| &t.sites).flat_map(Site::tensors));
        tensors
    }
}
