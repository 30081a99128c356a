//! A model folder, full precision or quantized, opened for computing block by block.

use crate::architectures::describe;
use crate::block::{Around, Block};
use crate::head::Head;
use crate::linear::{Linear, Weight};
use crate::norm::Norm;
use crate::spec::{Architecture, BlockSpec, NormSpec, Site, StemSpec, Stored, Sublayer, Task};
use crate::stem::{Image, Kind, Stem, Text};
use crate::{Input, ModelError, Tokenizer};
use half::{bf16, f16};
use halfbyte_checkpoint::{
    Checkpoint, CheckpointError, Manifest, RawTensor, StoredAttention, StoredLayer, TensorInfo,
};
use halfbyte_tensor::{Layout, Matrix, Precision};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// A model folder. Nothing but headers is read until a part is asked for, so that memory holds one block at a time.
pub struct Model {
    /// What the config describes.
    pub architecture: Architecture,
    /// The folder's tensors.
    pub checkpoint: Checkpoint,
    /// What is quantized and how; `None` for an ordinary checkpoint.
    pub manifest: Option<Manifest>,
    /// In what form the weights are stored, where they are the values of a quantized model and are computed with as such.
    pub values_of: Option<String>,
    /// A tokenizer.json from elsewhere.
    pub tokenizer_file: Option<PathBuf>,
    /// How exactly the products of its linear layers are computed.
    pub precision: Precision,
}

impl Model {
    /// Opens a folder and checks that every tensor the architecture needs is there with the right shape.
    ///
    /// # Errors
    /// Whatever is wrong with the files or the config, by file, key or tensor.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(dir)?;
        let manifest = Manifest::of(&checkpoint)?;
        let mut architecture = describe(checkpoint.config())?;
        if let Some(prefix) = absent_prefix(&architecture, &checkpoint) {
            architecture.strip(&prefix);
        }
        let migrations = manifest.as_ref().map_or(&[][..], |m| &m.migrations);
        if let [name, ..] = architecture.adopt_migrations(migrations)[..] {
            return Err(ModelError::Config {
                key: "quantization_config.migrations".into(),
                message: format!("names {name}, which this model has no place for"),
            });
        }
        let values_of = checkpoint.block_types().map(|types| format!("GGUF {types}"));
        let model = Self {
            architecture,
            checkpoint,
            manifest,
            values_of,
            tokenizer_file: None,
            precision: Precision::F32,
        };
        model.check()?;
        Ok(model)
    }

    /// The same model with its quantized weights as values in f32, as if it were an ordinary checkpoint, so that it can be
    /// quantized anew. What it does to inputs is forgotten.
    ///
    /// # Errors
    /// A weight is too large for this machine.
    pub fn dequantized(self) -> Result<Self, ModelError> {
        let Some(manifest) = self.manifest else { return Ok(self) };
        let values_of = Some(manifest.recipe_name().to_owned());
        let a = &self.architecture;
        let mut shapes: HashMap<&str, [usize; 2]> = HashMap::new();
        for site in [a.embedding()].into_iter().chain(a.sites()) {
            let coded = manifest.layers.get(&site.name).is_some_and(|layer| layer.weight.is_some());
            if coded && site.stored != Stored::Rows {
                return Err(ModelError::Reordered(site.name.clone()));
            }
            shapes.insert(&site.name, [site.outputs, site.inputs]);
        }
        let checkpoint = self.checkpoint.dequantized(manifest, |name| shapes.get(name).copied())?;
        let model = Self { checkpoint, manifest: None, values_of, ..self };
        model.check()?;
        Ok(model)
    }

    /// The folder's tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        match &self.tokenizer_file {
            Some(path) => Tokenizer::from_file(path),
            None => Tokenizer::open(self.checkpoint.dir()),
        }
    }

    fn check(&self) -> Result<(), ModelError> {
        let a = &self.architecture;
        let mut coded = HashSet::new();
        for site in [a.embedding()].into_iter().chain(a.sites()) {
            if let Some(manifest) = &self.manifest
                && manifest.check(&self.checkpoint, &site.name, site.outputs, site.inputs)?
            {
                coded.insert(site.weight());
            }
        }
        if let Some(manifest) = &self.manifest {
            for block in &a.blocks {
                let (name, widths) = (block.attention_name(), block.attention_widths());
                manifest.check_attention(&self.checkpoint, name, widths)?;
            }
            let known = |name: &&String| a.blocks.iter().any(|b| b.attention_name() == name.as_str());
            if let Some(name) = manifest.attention.keys().find(|name| !known(name)) {
                return Err(ModelError::Config {
                    key: "quantization_config.attention".into(),
                    message: format!("names {name}, which is no attention of this model"),
                });
            }
        }
        for (tensor, shape) in a.tensors() {
            if !coded.contains(&tensor) {
                self.checkpoint.require_floats(&self.stored_name(&tensor), &shape)?;
            }
        }
        Ok(())
    }

    /// The name under which the checkpoint has a tensor of the architecture: older BERT checkpoints call a norm's weight and
    /// bias gamma and beta.
    pub fn stored_name<'a>(&self, tensor: &'a str) -> std::borrow::Cow<'a, str> {
        if !self.checkpoint.contains(tensor) {
            for (new, old) in [("weight", "gamma"), ("bias", "beta")] {
                let old = tensor.strip_suffix(new).map(|base| format!("{base}{old}"));
                if let Some(old) = old.filter(|o| self.checkpoint.contains(o)) {
                    return old.into();
                }
            }
        }
        tensor.into()
    }

    /// Whether this layer's weight is stored as the embedding's: it is tied, and was not quantized apart from it.
    fn shares_embedding(&self, site: &Site) -> bool {
        self.architecture.is_tied(site)
            && !self.manifest.as_ref().is_some_and(|m| m.layers.contains_key(&site.name))
    }

    fn linear(&self, site: &Site) -> Result<Linear, ModelError> {
        let read = |name: &String| self.checkpoint.read_f32(name, &[site.outputs]);
        let bias = site.bias.as_ref().map(read).transpose()?;
        let stored = match self.shares_embedding(site) {
            true => {
                let table = self.architecture.embedding();
                self.stored_layer(table)?.map(|layer| StoredLayer { input: None, ..layer })
            }
            false => self.stored_layer(site)?,
        };
        let (codes, input, low_rank) = stored.map_or((None, None, None), |s| (s.weight, s.input, s.low_rank));
        let weight = match codes {
            Some(codes) => Weight::Quantized(codes),
            None => Weight::Stored(self.full_weight(site)?, site.inputs),
        };
        Ok(Linear { site: site.clone(), weight, bias, input, low_rank, precision: self.precision })
    }

    /// Codes and quantizer of a layer; `None` if it is not quantized.
    ///
    /// # Errors
    /// When its tensors cannot be read or hold what their scheme cannot have.
    pub fn stored_layer(&self, site: &Site) -> Result<Option<StoredLayer>, ModelError> {
        match &self.manifest {
            Some(manifest) => Ok(manifest.read(&self.checkpoint, &site.name, site.outputs, site.inputs)?),
            None => Ok(None),
        }
    }

    /// The tensor that holds a layer's full-precision weight: its own, or the embedding's where the two are tied.
    ///
    /// # Errors
    /// When there is none.
    pub fn weight_info(&self, site: &Site) -> Result<&TensorInfo, CheckpointError> {
        let site = if self.shares_embedding(site) { self.architecture.embedding() } else { site };
        self.checkpoint.find(&site.weight())
    }

    /// A layer's full-precision weight, `[outputs, inputs]` whatever the order in which it is stored.
    ///
    /// # Errors
    /// When the tensor cannot be read or holds NaN or infinity.
    pub fn full_weight(&self, site: &Site) -> Result<RawTensor, ModelError> {
        self.full_weight_into(site, None)
    }

    /// [`full_weight`](Self::full_weight) in the memory of a tensor that is no longer needed, where that is large enough.
    ///
    /// # Errors
    /// The same.
    pub fn full_weight_into(&self, site: &Site, spare: Option<RawTensor>) -> Result<RawTensor, ModelError> {
        let site = if self.shares_embedding(site) { self.architecture.embedding() } else { site };
        let raw = self.checkpoint.read_raw_into(&site.weight(), &site.shape(), spare)?;
        Ok(match (site.stored, raw) {
            (Stored::Columns, RawTensor::F32(v)) => RawTensor::F32(transposed::<f32>(&v, site.outputs)),
            (Stored::Columns, RawTensor::F16(v)) => RawTensor::F16(transposed::<f16>(&v, site.outputs)),
            (Stored::Columns, RawTensor::BF16(v)) => RawTensor::BF16(transposed::<bf16>(&v, site.outputs)),
            (Stored::Rows | Stored::Filters { .. }, raw) => raw,
        })
    }

    fn norm(&self, spec: &NormSpec, channels: usize) -> Result<Norm, ModelError> {
        let read = |part: &str| {
            let tensor = format!("{}.{part}", spec.name);
            self.checkpoint.read_f32(&self.stored_name(&tensor), &[channels])
        };
        let bias = if spec.has_bias() { read("bias")? } else { Vec::new() };
        Ok(Norm::new(spec, read("weight")?, bias))
    }

    fn optional_norm(&self, spec: &Option<NormSpec>, channels: usize) -> Result<Option<Norm>, ModelError> {
        spec.as_ref().map(|spec| self.norm(spec, channels)).transpose()
    }

    /// The stem.
    ///
    /// # Errors
    /// When a tensor cannot be read or holds NaN or infinity.
    pub fn stem(&self) -> Result<Stem, ModelError> {
        let hidden = self.architecture.hidden;
        let read = |name: &str, shape: &[usize]| self.checkpoint.read_f32(name, shape);
        let kind = match &self.architecture.stem {
            StemSpec::Text(spec) => {
                let table = |name: &str, rows: usize| read(&format!("{name}.weight"), &[rows, hidden]);
                let types = spec.types.as_ref().map(|(name, rows)| table(name, *rows));
                let positions = spec.positions.as_ref().map(|(name, rows, _)| table(name, *rows));
                Kind::Text(Text {
                    table: self.linear(&spec.table)?.weight,
                    types: types.transpose()?.unwrap_or_default(),
                    positions: positions.transpose()?.unwrap_or_default(),
                    norm: self.optional_norm(&spec.norm, hidden)?,
                    spec: spec.clone(),
                })
            }
            StemSpec::Image(spec) => {
                let mut extra = Vec::new();
                for rows in &spec.extra {
                    extra.extend(read(&rows.name, &[1, rows.rows, hidden])?);
                }
                Kind::Image(Image {
                    projection: self.linear(&spec.projection)?,
                    extra,
                    positions: read(&spec.positions, &[1, spec.positioned(), hidden])?,
                    spec: spec.clone(),
                })
            }
        };
        Ok(Stem { kind, hidden })
    }

    /// Block `layer` with its weights.
    ///
    /// # Errors
    /// When a tensor cannot be read or holds NaN or infinity.
    pub fn block(&self, layer: usize) -> Result<Block, ModelError> {
        let spec = &self.architecture.blocks[layer];
        let dim = spec.attention.head_dim;
        let query_key = match &spec.query_key_norm {
            Some((q, k)) => Some((self.norm(q, dim)?, self.norm(k, dim)?)),
            None => None,
        };
        let tap_linears =
            |tap: &crate::Tap| tap.sites.iter().map(|s| self.linear(s)).collect::<Result<Vec<_>, _>>();
        let linears = spec.taps.iter().map(tap_linears).collect::<Result<_, _>>()?;
        let (attention, mut mlp) = (self.around(&spec.around_attention)?, self.around(&spec.around_mlp)?);
        mlp.inside = self.optional_norm(&spec.around_mlp.inside, spec.inner_channels())?;
        let products = self.stored_attention(spec)?;
        Ok(Block { spec: spec.clone(), linears, attention, mlp, query_key, products })
    }

    /// The quantizers of a block's attention; `None` if its products are left alone.
    ///
    /// # Errors
    /// When its tensors cannot be read or hold what their scheme cannot have.
    pub fn stored_attention(&self, block: &BlockSpec) -> Result<Option<StoredAttention>, ModelError> {
        let Some(manifest) = &self.manifest else { return Ok(None) };
        let (name, widths) = (block.attention_name(), block.attention_widths());
        Ok(manifest.read_attention(&self.checkpoint, name, widths)?)
    }

    fn around(&self, spec: &Sublayer) -> Result<Around, ModelError> {
        let hidden = self.architecture.hidden;
        let scale = spec.scale.as_ref().map(|name| self.checkpoint.read_f32(name, &[hidden]));
        Ok(Around {
            before: self.optional_norm(&spec.before, hidden)?,
            after: self.optional_norm(&spec.after, hidden)?,
            scale: scale.transpose()?,
            post: self.optional_norm(&spec.post, hidden)?,
            inside: None,
        })
    }

    /// The norm after the last block and the layers behind it.
    ///
    /// # Errors
    /// When a tensor cannot be read or holds NaN or infinity.
    pub fn head(&self) -> Result<Head, ModelError> {
        let spec = self.architecture.head.clone();
        let layers = spec.layers.iter();
        Ok(Head {
            linears: layers.clone().map(|l| self.linear(&l.site)).collect::<Result<_, _>>()?,
            norm: self.optional_norm(&spec.norm, self.architecture.hidden)?,
            norms: layers.map(|l| self.optional_norm(&l.norm, l.site.outputs)).collect::<Result<_, _>>()?,
            spec,
        })
    }

    /// The whole network on some inputs: the first block's input, the output of every block, and the network's (see
    /// [`Head::output`]), with the layout of the first two. Reads all weights and keeps all states: for small models and
    /// for looking inside.
    ///
    /// # Errors
    /// When the inputs are not what the network takes or a tensor cannot be read.
    pub fn trace(&self, inputs: &[Input]) -> Result<(Vec<Matrix>, Layout, Matrix), ModelError> {
        let (first, layout) = self.stem()?.embed(inputs)?;
        let rotary = self.architecture.rotary(layout.positions().max().map_or(0, |p| p + 1));
        let mut states = vec![first];
        for layer in 0..self.architecture.blocks.len() {
            let next = self.block(layer)?.forward(states[layer].clone(), &rotary, &layout);
            states.push(next);
        }
        let output = self.head()?.output(&states[states.len() - 1], &layout);
        Ok((states, layout, output))
    }
}

/// The first part of the tensors' names, where the checkpoint of a language model was saved without it, as published GPT-2
/// and BLOOM are.
fn absent_prefix(architecture: &Architecture, checkpoint: &Checkpoint) -> Option<String> {
    let around = &architecture.blocks.first()?.around_attention;
    // A norm, because those are never quantized.
    let name = format!("{}.weight", around.before.as_ref().or(around.post.as_ref())?.name);
    let (prefix, rest) = name.split_at(name.find('.')? + 1);
    let absent = architecture.head.task == Task::LanguageModel
        && !checkpoint.contains(&name)
        && checkpoint.contains(rest);
    absent.then(|| prefix.into())
}

/// `[columns, rows]` from `[rows, columns]`, given the number of columns.
pub(crate) fn transposed<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns.max(1);
    // Tiles that stay in the cache.
    const TILE: usize = 32;
    let mut out = values.to_vec();
    for r0 in (0..rows).step_by(TILE) {
        for c0 in (0..columns).step_by(TILE) {
            for r in r0..(r0 + TILE).min(rows) {
                for c in c0..(c0 + TILE).min(columns) {
                    out[c * rows + r] = values[r * columns + c];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_become_rows() {
        let values: Vec<u32> = (0..35 * 70).collect();
        let turned = transposed(&values, 70);
        assert!((0..70).all(|c| (0..35).all(|r| turned[c * 35 + r] == values[r * 70 + c])));
    }
}
