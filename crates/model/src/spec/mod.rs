//! A network as data: everything that this crate needs in order to compute it.

mod block;
mod head;
mod site;
mod stem;

pub use block::{BlockSpec, MIGRATION, Mlp, Producer, Projections, Sublayer, Tap, TapKind};
pub use head::{HeadLayer, HeadSpec, Pool, Task};
pub use site::{Part, Site, Stored};
pub use stem::{Extra, ImageStem, Resampling, StemSpec, TextStem};

use crate::{Input, Rope};
use halfbyte_tensor::{
    Matrix, Rotary, gelu, gelu_slope, gelu_tanh, gelu_tanh_slope, relu, relu_slope, silu, silu_slope, tanh,
    tanh_slope,
};

/// A network as data.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// `model_type` of the config.
    pub family: String,
    /// Channels of the residual stream.
    pub hidden: usize,
    /// Longest sequence the config allows; for images the rows of one.
    pub context: usize,
    /// How an input becomes the first block's input.
    pub stem: StemSpec,
    /// Rotary embeddings; blocks name theirs by number.
    pub ropes: Vec<Rope>,
    /// The blocks, first to last.
    pub blocks: Vec<BlockSpec>,
    /// What is made of the last block's output.
    pub head: HeadSpec,
    /// What a checkpoint leaves out at the front of the names of all but the head ("transformer." in published BLOOMs); the
    /// names here are then without it too.
    pub absent_prefix: String,
}

impl Architecture {
    /// The embedding table `[vocabulary, hidden]`, or the projection of patches `[hidden, channels · height · width]`.
    pub fn embedding(&self) -> &Site {
        match &self.stem {
            StemSpec::Text(text) => &text.table,
            StemSpec::Image(image) => &image.projection,
        }
    }

    /// Size of the vocabulary; 0 for a model of images.
    pub fn vocabulary(&self) -> usize {
        match &self.stem {
            StemSpec::Text(text) => text.table.outputs,
            StemSpec::Image(_) => 0,
        }
    }

    /// Rows of the residual stream that an input becomes.
    pub fn rows(&self, input: &Input) -> usize {
        match (&self.stem, input) {
            (StemSpec::Text(_), Input::Tokens(ids) | Input::Segments { ids, .. }) => ids.len(),
            (StemSpec::Image(image), Input::Pixels { height, width, .. }) => image.rows_of([*height, *width]),
            (StemSpec::Image(image), _) => image.rows(),
            (StemSpec::Text(_), Input::Pixels { .. }) => 0,
        }
    }

    /// The linear layers but the embedding in the order of the computation, those with the same input together: the taps
    /// of every block, then the layers of the head one by one.
    pub fn groups(&self) -> impl Iterator<Item = &[Site]> {
        let taps = self.blocks.iter().flat_map(|b| &b.taps).map(|t| t.sites.as_slice());
        taps.chain(self.head.layers.iter().map(|l| std::slice::from_ref(&l.site)))
    }

    /// The linear layers of [`groups`](Self::groups) one by one.
    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        self.groups().flatten()
    }

    /// Whether this layer's weight is stored as the embedding's alone.
    pub fn is_tied(&self, site: &Site) -> bool {
        self.head.tied && self.head.output().is_some_and(|o| o.name == site.name)
    }

    /// Rotary tables for that many positions.
    pub fn rotary(&self, positions: usize) -> RotaryTables {
        RotaryTables(self.ropes.iter().map(|r| r.tables(positions)).collect())
    }

    /// The name that engines have for the layer `name` of a block: that of the class, whatever the checkpoint leaves out.
    pub fn module_name(&self, name: &str) -> String {
        format!("{}{name}", self.absent_prefix)
    }

    /// Whether `name` is a tensor of a block after those that the configuration counts, and so no part of the network.
    pub fn is_beyond(&self, name: &str) -> bool {
        let Some((before, _)) = self.blocks.first().and_then(|b| b.attention_name().split_once(".0.")) else {
            return false;
        };
        let number =
            name.strip_prefix(before).and_then(|n| n.strip_prefix('.')?.split('.').next()?.parse().ok());
        number.is_some_and(|n: usize| n >= self.blocks.len())
    }

    /// Takes `prefix` off every name that begins with it.
    pub(crate) fn strip(&mut self, prefix: &str) {
        self.absent_prefix = prefix.into();
        let strip = |name: &mut String| {
            if let Some(rest) = name.strip_prefix(prefix) {
                *name = rest.into();
            }
        };
        if let StemSpec::Text(text) = &mut self.stem {
            strip(&mut text.table.name);
            text.types.iter_mut().for_each(|(name, _)| strip(name));
            text.positions.iter_mut().for_each(|(name, ..)| strip(name));
            text.norm.iter_mut().for_each(|n| strip(&mut n.name));
        }
        let mut sites: Vec<&mut Site> = Vec::new();
        let mut norms: Vec<&mut NormSpec> = self.head.norm.iter_mut().collect();
        for layer in &mut self.head.layers {
            sites.push(&mut layer.site);
            norms.extend(&mut layer.norm);
        }
        for block in &mut self.blocks {
            for around in [&mut block.around_attention, &mut block.around_mlp] {
                let own = [&mut around.before, &mut around.after, &mut around.post, &mut around.inside];
                norms.extend(own.into_iter().flatten());
                around.scale.iter_mut().for_each(strip);
            }
            norms.extend(block.query_key_norm.iter_mut().flat_map(|(q, k)| [q, k]));
            sites.extend(block.taps.iter_mut().flat_map(|t| &mut t.sites));
        }
        norms.into_iter().for_each(|n| strip(&mut n.name));
        for site in sites {
            strip(&mut site.name);
            site.bias.iter_mut().for_each(strip);
        }
    }

    /// Takes over the migrations of these names, and gives those for which there is no place.
    pub(crate) fn adopt_migrations<'a>(&mut self, names: &'a [String]) -> Vec<&'a String> {
        let mut left: Vec<&String> = names.iter().collect();
        for block in &mut self.blocks {
            for tap in 0..block.taps.len() {
                let Some(norm) = block.migration(tap) else { continue };
                let before = left.len();
                left.retain(|name| **name != norm.name);
                if left.len() < before {
                    *block.migration_mut(tap) = Some(norm);
                }
            }
        }
        left
    }

    /// Names of the migrations that are there ([`BlockSpec::migration`]), which no ordinary checkpoint has a place for.
    pub fn migrations(&self) -> impl Iterator<Item = &str> {
        let around = self.blocks.iter().flat_map(|b| [&b.around_attention, &b.around_mlp]);
        let norms = around.flat_map(|a| [&a.before, &a.inside]).flatten();
        norms.filter(|n| n.kind == NormKind::Channels).map(|n| n.name.as_str())
    }

    /// Whether there is one.
    pub fn has_migrations(&self) -> bool {
        self.migrations().next().is_some()
    }

    /// Names and shapes of all tensors of an unquantized checkpoint, in the order of the computation.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = self.stem.tensors(self.hidden);
        self.blocks.iter().for_each(|b| tensors.extend(b.tensors(self.hidden)));
        tensors.extend(self.head.tensors(self.hidden));
        tensors
    }
}

/// The tables of every rotary embedding of a network.
#[derive(Clone, Debug)]
pub struct RotaryTables(pub(crate) Vec<Rotary>);

/// The tensors of a norm, `name.weight` and, where it has one, `name.bias`.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Name of the layer.
    pub name: String,
    /// Which norm it is.
    pub kind: NormKind,
    /// Added to the mean square or variance.
    pub eps: f32,
}

/// Which norm a norm is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// RMSNorm; `offset` is added to the stored weight (1 in Gemma).
    Rms {
        /// The offset.
        offset: f32,
    },
    /// LayerNorm with a bias.
    Layer,
    /// No norm: a factor on each channel and a bias, which a transform has put before layers where no producer could take them
    /// ([`BlockSpec::migration`]).
    Channels,
}

impl NormSpec {
    /// An RMSNorm whose weight is stored as it is used.
    pub fn rms(name: impl Into<String>, eps: f32) -> Self {
        Self { name: name.into(), kind: NormKind::Rms { offset: 0.0 }, eps }
    }

    /// A LayerNorm.
    pub fn layer(name: impl Into<String>, eps: f32) -> Self {
        Self { name: name.into(), kind: NormKind::Layer, eps }
    }

    /// Whether it has a bias.
    pub fn has_bias(&self) -> bool {
        !matches!(self.kind, NormKind::Rms { .. })
    }

    /// Names and shapes of its tensors, for this many channels.
    pub fn tensors(&self, channels: usize) -> impl Iterator<Item = (String, Vec<usize>)> {
        let bias = self.has_bias().then(|| (format!("{}.bias", self.name), vec![channels]));
        [(format!("{}.weight", self.name), vec![channels])].into_iter().chain(bias)
    }
}

/// A function of single values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^−x)`
    Silu,
    /// GELU with the exact normal distribution function.
    Gelu,
    /// GELU by a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Replaces every value by its image.
    pub fn apply(self, x: &mut Matrix) {
        match self {
            Self::Silu => silu(&mut x.data),
            Self::Gelu => gelu(&mut x.data),
            Self::GeluTanh => gelu_tanh(&mut x.data),
            Self::Relu => relu(&mut x.data),
            Self::Tanh => tanh(&mut x.data),
        }
    }

    /// Replaces every value by the derivative there.
    pub fn slope(self, x: &mut Matrix) {
        match self {
            Self::Silu => silu_slope(&mut x.data),
            Self::Gelu => gelu_slope(&mut x.data),
            Self::GeluTanh => gelu_tanh_slope(&mut x.data),
            Self::Relu => relu_slope(&mut x.data),
            Self::Tanh => tanh_slope(&mut x.data),
        }
    }
}
