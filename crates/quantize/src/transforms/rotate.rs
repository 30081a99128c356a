//! Rotation of the residual stream (QuaRot, arXiv 2404.00456; R1 of SpinQuant, arXiv 2405.16406). RMSNorm without its gains
//! commutes with an orthogonal matrix Q: with every state `h` turned to `h Q`, the layers that read a norm become
//! `W ← W diag(gains) Q`, those that write to the stream `W ← Qᵀ W`, `b ← b Q`, the table of tokens `E ← E Q`, and gains are 1.
//!
//! It begins before the first block and ends behind the last one, so that it comes before all other transforms: runs turn
//! their states with it when they begin.

use super::orthogonal::Orthogonal;
use super::{Note, Transform, TransformKind};
use crate::probe::copy;
use crate::store::{Place, Store};
use crate::{QuantizeError, Recipe};
use half::{bf16, f16};
use halfbyte_checkpoint::{Dtype, RawTensor, TensorSpec};
use halfbyte_model::{Architecture, Block, Head, Model, NormKind, NormSpec, Pool, StemSpec, TapKind};
use std::collections::BTreeSet;

/// Rows of a table that are turned at a time.
const ROWS: usize = 1024;
/// What takes it, for notes.
const STREAM: &str = "residual stream";

/// The rotation of a recipe.
pub(crate) struct Rotation {
    matrix: Orthogonal,
    transform: Transform,
}

/// A tensor outside the blocks that is new.
pub(crate) struct Outside {
    /// Its name in the output.
    pub(crate) tensor: String,
    pub(crate) shape: Vec<usize>,
    content: Content,
}

enum Content {
    /// Rows of this tensor of the checkpoint, times gains, turned.
    Turned(String, Vec<f32>),
    /// One value everywhere.
    Constant(f32),
}

impl Rotation {
    /// The rotation that a recipe asks for, if it does.
    ///
    /// # Errors
    /// [`QuantizeError::Recipe`] where it is not the first transform or the network cannot be rotated.
    pub(crate) fn of(architecture: &Architecture, recipe: &Recipe) -> Result<Option<Self>, QuantizeError> {
        let rotates = |t: &&Transform| matches!(t.kind, TransformKind::Rotate { .. });
        let Some(&transform) = recipe.transforms.iter().find(rotates) else { return Ok(None) };
        if recipe.transforms.iter().skip(1).any(|t| rotates(&t)) {
            let message = "it comes once and before all others, since it takes the gains out of all norms";
            return Err(transform.refused(message));
        }
        if let Some(obstacle) = obstacle(architecture) {
            return Err(transform.refused(&format!(
                "the {} model has {obstacle}; only RMSNorm before attention, MLP and output lets a rotation pass",
                architecture.family
            )));
        }
        Ok(Some(Self::new(transform, architecture.hidden, recipe.seed)?))
    }

    /// That of a stream of so many channels.
    ///
    /// # Errors
    /// [`QuantizeError::Recipe`] where there is no such matrix.
    pub(crate) fn new(transform: Transform, hidden: usize, seed: u64) -> Result<Self, QuantizeError> {
        let block = match transform.kind {
            TransformKind::Rotate { block } => block,
            _ => None,
        };
        let matrix = Orthogonal::new(hidden, block, seed).map_err(|why| transform.refused(&why))?;
        Ok(Self { matrix, transform })
    }

    /// Turns the states before the first block.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub(crate) fn turn_states(&self, hidden: &mut Store) -> Result<(), QuantizeError> {
        for i in 0..hidden.windows() {
            let mut window = hidden.take(i)?;
            self.matrix.rows(&mut window.data, None);
            hidden.put(i, window)?;
        }
        Ok(())
    }

    /// The same states turned, in another store.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub(crate) fn turned(&self, hidden: &Store, place: &Place) -> Result<Store, QuantizeError> {
        let mut out = copy(hidden, place)?;
        self.turn_states(&mut out)?;
        Ok(out)
    }

    /// Turns rows of the table of tokens.
    pub(crate) fn turn_table(&self, values: &mut [f32]) {
        self.matrix.rows(values, None);
    }

    /// Turns what a block reads and writes, and gives the names of the tensors that are new.
    pub(crate) fn fold(&self, block: &mut Block) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        let gains = block.norms_before_mut().map(|norm| {
            let norm = norm?;
            changed.insert(format!("{}.weight", norm.spec().name));
            Some(norm.weight.iter_mut().map(|w| std::mem::replace(w, 1.0)).collect::<Vec<f32>>())
        });
        for (tap, linears) in block.spec.taps.iter().zip(&mut block.linears) {
            for linear in linears {
                let inputs = linear.site.inputs;
                match tap.kind {
                    TapKind::AttentionInput => self.matrix.rows(linear.weight_mut(), gains[0].as_deref()),
                    TapKind::MlpInput => self.matrix.rows(linear.weight_mut(), gains[1].as_deref()),
                    TapKind::AttentionOutput | TapKind::MlpInner => {
                        self.matrix.columns(linear.weight_mut(), inputs);
                        if let Some(bias) = &mut linear.bias {
                            self.matrix.rows(bias, None);
                            changed.extend(linear.site.bias.clone());
                        }
                    }
                    TapKind::Head => continue,
                }
                changed.insert(linear.site.weight());
            }
        }
        changed
    }

    /// Turns the output layer, and takes the gains out of the norm before it.
    pub(crate) fn fold_head(&self, head: &mut Head) {
        let gains = head
            .norm_mut()
            .map(|norm| norm.weight.iter_mut().map(|w| std::mem::replace(w, 1.0)).collect::<Vec<f32>>());
        if let Some(linear) = head.linears.first_mut() {
            self.matrix.rows(linear.weight_mut(), gains.as_deref());
        }
    }

    /// What is said of a block.
    pub(crate) fn note(&self, block: &Block) -> Note {
        let layers = block.spec.taps.iter().flat_map(|t| &t.sites).map(|s| s.name.clone()).collect();
        Note::turned(&self.transform, layers, STREAM.into())
    }

    /// What is said of table and output layer.
    pub(crate) fn note_outside(&self, architecture: &Architecture) -> Note {
        let output = architecture.head.output().map(|s| s.name.clone());
        let layers = std::iter::once(architecture.embedding().name.clone()).chain(output).collect();
        Note::turned(&self.transform, layers, STREAM.into())
    }

    /// The tensors outside the blocks that are new: the table, the last norm's weight, and the output layer's, which is no
    /// longer the table's once it has that norm's gains.
    ///
    /// # Errors
    /// When the gains cannot be read.
    pub(crate) fn outside(&self, model: &Model) -> Result<Vec<Outside>, QuantizeError> {
        let a = &model.architecture;
        let (table, output) = (a.embedding(), a.head.output());
        let mut new = vec![Outside {
            tensor: table.weight(),
            shape: vec![table.outputs, table.inputs],
            content: Content::Turned(table.weight(), Vec::new()),
        }];
        if let (Some(norm), Some(output)) = (&a.head.norm, output) {
            let name = format!("{}.weight", norm.name);
            let mut gains = model.checkpoint.read_f32(&name, &[a.hidden])?;
            gains.iter_mut().for_each(|g| *g += offset(norm));
            let constant = Content::Constant(1.0 - offset(norm));
            new.push(Outside { tensor: name, shape: vec![a.hidden], content: constant });
            let from = if a.is_tied(output) { table } else { output };
            new.push(Outside {
                tensor: output.weight(),
                shape: vec![output.outputs, output.inputs],
                content: Content::Turned(from.weight(), gains),
            });
        }
        Ok(new)
    }

    /// Calls `sink` with the values of such a tensor, some rows at a time.
    ///
    /// # Errors
    /// When it cannot be read, or `sink` fails.
    pub(crate) fn values(
        &self,
        outside: &Outside,
        model: &Model,
        mut sink: impl FnMut(Vec<f32>) -> Result<(), QuantizeError>,
    ) -> Result<(), QuantizeError> {
        let (from, gains) = match &outside.content {
            Content::Constant(value) => return sink(vec![*value; outside.shape.iter().product()]),
            Content::Turned(from, gains) => (from, (!gains.is_empty()).then_some(gains.as_slice())),
        };
        for start in (0..outside.shape[0]).step_by(ROWS) {
            let rows = start..(start + ROWS).min(outside.shape[0]);
            let mut values = model.checkpoint.read_rows(from, &outside.shape, rows)?.into_f32();
            self.matrix.rows(&mut values, gains);
            sink(values)?;
        }
        Ok(())
    }

    /// The new tensors outside the blocks that are `wanted`, rounded to the type of the checkpoint's: tables are large, and
    /// what a run leaves alone stays as large as it was.
    ///
    /// # Errors
    /// As [`outside`](Self::outside).
    pub(crate) fn stored(
        &self,
        model: &Model,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(TensorSpec, Vec<u8>)>, QuantizeError> {
        let mut stored = Vec::new();
        for outside in self.outside(model)?.iter().filter(|o| wanted(&o.tensor)) {
            let from = match &outside.content {
                Content::Turned(from, _) => from,
                Content::Constant(_) => &outside.tensor,
            };
            let dtype = match model.checkpoint.find(from)?.dtype {
                dtype @ (Dtype::F16 | Dtype::BF16) => dtype,
                _ => Dtype::F32,
            };
            let mut bytes = Vec::new();
            self.values(outside, model, |values| {
                let raw = match dtype {
                    Dtype::F16 => RawTensor::F16(values.into_iter().map(f16::from_f32).collect()),
                    Dtype::BF16 => RawTensor::BF16(values.into_iter().map(bf16::from_f32).collect()),
                    _ => RawTensor::F32(values),
                };
                bytes.extend(raw.into_bytes());
                Ok(())
            })?;
            stored.push((TensorSpec::new(outside.tensor.clone(), dtype, outside.shape.clone()), bytes));
        }
        Ok(stored)
    }
}

/// What a stored weight of the norm lacks.
fn offset(norm: &NormSpec) -> f32 {
    match norm.kind {
        NormKind::Rms { offset } => offset,
        NormKind::Layer | NormKind::Channels => 0.0,
    }
}

/// Why the residual stream of a network cannot be rotated, if it cannot.
fn obstacle(a: &Architecture) -> Option<String> {
    let StemSpec::Text(stem) = &a.stem else { return Some("patches of images".into()) };
    if stem.positions.is_some() || stem.types.is_some() || stem.norm.is_some() {
        return Some("learned positions, types of segments or a norm beside the table of tokens".into());
    }
    let before = |norm: &Option<NormSpec>| match norm {
        Some(norm) => match norm.kind {
            NormKind::Rms { .. } => None,
            NormKind::Layer => Some(format!("a LayerNorm ({})", norm.name)),
            NormKind::Channels => Some(format!("a migration ({})", norm.name)),
        },
        None => Some("blocks without a norm before".into()),
    };
    let around = a.blocks.iter().flat_map(|b| [&b.around_attention, &b.around_mlp]);
    let of_block = |s: &halfbyte_model::Sublayer| {
        let behind = s.after.as_ref().or(s.post.as_ref()).map(|n| &n.name).or(s.scale.as_ref());
        let behind = behind.map(|name| format!("gains on what is added to the stream ({name})"));
        before(&s.before).or(behind)
    };
    let plain = a.head.pool == Pool::All && a.head.layers.len() == 1;
    let head = || (!plain).then(|| "more behind the last block than an output layer".to_string());
    around.into_iter().find_map(of_block).or_else(|| before(&a.head.norm)).or_else(head)
}
