//! A whole run: from a checkpoint to one that computes the same and is easier to quantize.

use super::rotate::{Outside, Rotation};
use super::{Note, Transform, check_shapes, transform_block};
use crate::inputs::Packs;
use crate::job::{Progress, check_finite, id_of, not_ours, partial_dir, place};
use crate::journal::{Journal, RunId};
use crate::output::{begin_folder, copy_companions, finish_folder, json, untied_tensors};
use crate::store::{Place, Store, windows_side_by_side};
use crate::stream::{Surroundings, embed};
use crate::{QuantizeError, Recipe};
use half::{bf16, f16};
use halfbyte_checkpoint::{
    CheckpointWriter, Dtype, RawTensor, SHARD_BYTES, SafetensorsFile, TensorSpec, write_atomic,
};
use halfbyte_model::{Block, Input, Model, NormKind, Site};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// What to do.
pub struct TransformJob<'a> {
    /// The full-precision model.
    pub model: &'a Model,
    /// The transforms, and the quantization that they are to ease.
    pub recipe: &'a Recipe,
    /// What to calibrate on.
    pub inputs: &'a [Input],
    /// The output folder; it must not exist, unless this very run made it.
    pub out: &'a Path,
    /// Most bytes of activations to keep in memory; beyond that they go to temporary files.
    pub activation_memory: u64,
    /// The type of the output's tensors.
    pub stored_as: StoredAs,
}

/// The type of the tensors of a transformed checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredAs {
    /// That of the original where powers of two are all that is folded, which rounds nothing, and else f32.
    Auto,
    /// That of the original, tensor by tensor.
    Same,
    /// This type for all floats.
    All(Dtype),
}

/// What was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransformReport {
    /// The transforms as text, first to last.
    pub transforms: Vec<String>,
    /// What was done at every tap, block by block.
    pub notes: Vec<Note>,
    /// Bytes of all tensors.
    pub output_bytes: u64,
    /// Type of the tensors; `None` where they keep the original's.
    pub dtype: Option<String>,
    /// What tells the run from others.
    pub run: RunId,
}

/// The file in the output folder with the report.
const REPORT: &str = "halfbyte_transform.json";

/// Runs a job to its end, going on where an earlier run of the same job was stopped; and whether the output was there
/// already.
///
/// # Errors
/// Whatever is wrong with the model or the disk; values that the chosen type cannot hold.
pub fn transform_checkpoint(
    job: &TransformJob,
    progress: &mut dyn Progress,
) -> Result<(TransformReport, bool), QuantizeError> {
    job.recipe.check()?;
    if let Some(transform) = job.recipe.transforms.iter().find(|t| t.migrate) {
        let why = "an ordinary checkpoint has no place for factors beside layers; leave migrate=true out, or quantize with it";
        return Err(transform.refused(why));
    }
    if job.model.manifest.is_some() || job.model.architecture.has_migrations() {
        return Err(QuantizeError::Output(format!(
            "{} is already quantized; give the full-precision checkpoint",
            job.model.checkpoint.dir().display()
        )));
    }
    if job.model.checkpoint.has_divided_rope() {
        return Err(QuantizeError::Output(format!(
            "{} has its rotary frequencies as a table of divisors (rope_freqs), which an ordinary config.json cannot say; \
             transform the Hugging Face checkpoint",
            job.model.checkpoint.dir().display()
        )));
    }
    let what = serde_json::json!({
        "recipe": job.recipe,
        "stored_as": format!("{:?}", job.stored_as),
    });
    let id = id_of(job.model, what.to_string().as_bytes(), job.inputs)?;
    if job.out.exists() {
        let report = fs::read(job.out.join(REPORT)).ok();
        let report = report.and_then(|b| serde_json::from_slice::<TransformReport>(&b).ok());
        return match report.filter(|r| r.run == id) {
            Some(report) => Ok((report, true)),
            None => Err(not_ours(job.out, job.model)),
        };
    }
    check_shapes(&job.model.architecture, job.recipe)?;
    let packs = Packs::new(&job.model.architecture, job.inputs)?;
    let journal = Journal::open(partial_dir(job.out)?, &id)?;
    let place = place(&job.model.architecture, job.recipe, &packs, job.out, job.activation_memory);
    let rotation = Rotation::of(&job.model.architecture, job.recipe)?;
    let report = Run { job, journal, packs, place, rotation }.run(id, progress)?;
    Ok((report, false))
}

struct Run<'a> {
    job: &'a TransformJob<'a>,
    journal: Journal,
    packs: Packs,
    place: Place,
    rotation: Option<Rotation>,
}

impl Run<'_> {
    /// Part b of the journal is block b.
    fn run(&self, id: RunId, progress: &mut dyn Progress) -> Result<TransformReport, QuantizeError> {
        let (model, a) = (self.job.model, &self.job.model.architecture);
        let blocks = a.blocks.len();
        let layers_of = |b: usize| a.blocks[b].taps.iter().map(|t| t.sites.len()).sum::<usize>();
        let finished = self.journal.finished(blocks);
        progress.begin((0..blocks).map(layers_of).sum(), (0..finished).map(layers_of).sum());
        if finished < blocks {
            let mut hidden = match finished {
                0 => self.embed()?,
                _ => self.journal.read_state(finished, &self.packs.rows(), a.hidden, &self.place)?,
            };
            progress.freed();
            let rotary = a.rotary(self.packs.longest());
            let around = Surroundings { rotary: &rotary, layouts: &self.packs.layouts, place: &self.place };
            for b in finished..blocks {
                let mut block = model.block(b)?;
                let recipe = self.job.recipe;
                let mut stop = || match progress.stopped() {
                    true => Err(QuantizeError::Stopped(b)),
                    false => Ok(()),
                };
                let done = transform_block(&mut block, &hidden, recipe, &around, &mut stop)?;
                self.journal.write_block(b, &tensors_of(model, &block, &done.changed), json(&done.notes)?)?;
                hidden = forward(&block, hidden, &around)?;
                check_finite(&hidden, b)?;
                self.journal.write_state(b + 1, &hidden)?;
                progress.advance(layers_of(b));
            }
        }
        self.assemble(id)
    }

    /// The first block's input.
    fn embed(&self) -> Result<Store, QuantizeError> {
        let model = self.job.model;
        let stem = model.stem()?;
        let mut hidden = embed(&stem, self.job.inputs, &self.packs, model.architecture.hidden, &self.place)?;
        if let Some(rotation) = &self.rotation {
            rotation.turn_states(&mut hidden)?;
        }
        Ok(hidden)
    }

    /// Puts all parts together in a folder of its own and renames that to the output folder.
    fn assemble(&self, id: RunId) -> Result<TransformReport, QuantizeError> {
        let (model, blocks) = (self.job.model, self.job.model.architecture.blocks.len());
        let parts = (0..blocks).map(|b| self.journal.read_block(b)).collect::<Result<Vec<_>, _>>()?;
        let mut notes: Vec<Note> = Vec::new();
        for part in &parts {
            let note = part.metadata().get("note").map_or("[]", String::as_str);
            notes.extend(serde_json::from_str::<Vec<Note>>(note).map_err(|e| {
                QuantizeError::Output(format!("{}: {e}; delete the folder", part.path().display()))
            })?);
        }
        let tensors =
            parts.iter().flat_map(|part| part.tensors().iter().map(move |t| (t.name.as_str(), part)));
        let changed: BTreeMap<&str, &SafetensorsFile> = tensors.collect();
        let dtype = self.dtype();
        let exact = self.exact();
        let type_of = |own: Dtype| dtype.filter(|_| is_float(own)).unwrap_or(own);
        let mut sources: Vec<(String, String)> =
            model.checkpoint.names().map(|name| (name.into(), name.into())).collect();
        let mut outside: Vec<Outside> = Vec::new();
        if let Some(rotation) = &self.rotation {
            outside = rotation.outside(model)?;
            let untied = self.untied().map(|head| untied_tensors(model, head)).transpose()?;
            let missing = |(name, _): &(String, String)| !model.checkpoint.contains(name);
            sources.extend(untied.unwrap_or_default().into_iter().filter(missing));
            notes.push(rotation.note_outside(&model.architecture));
        }
        let mut specs = Vec::with_capacity(sources.len());
        for (name, from) in &sources {
            let info = model.checkpoint.find(from)?;
            specs.push(TensorSpec::new(name.clone(), type_of(info.dtype), info.shape.clone()));
        }
        let output = begin_folder(self.journal.dir())?;
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let mut writer = CheckpointWriter::create(&output, &specs, &metadata, SHARD_BYTES)?;
        for (spec, (_, from)) in specs.iter().zip(&sources) {
            let mut write = |from: Dtype, bytes: &[u8]| -> Result<(), QuantizeError> {
                let converted = converted(&spec.name, bytes, from, spec.dtype, exact)?;
                Ok(writer.write(&spec.name, &converted)?)
            };
            let turned = outside.iter().find(|o| o.tensor == spec.name);
            match (changed.get(spec.name.as_str()), turned.zip(self.rotation.as_ref())) {
                (Some(part), _) => part.read_pieces(&spec.name, |piece| write(Dtype::F32, piece))?,
                (None, Some((turned, rotation))) => {
                    rotation.values(turned, model, |v| write(Dtype::F32, &RawTensor::F32(v).into_bytes()))?
                }
                (None, None) => {
                    let dtype = model.checkpoint.find(from)?.dtype;
                    model.checkpoint.read_pieces(from, |piece| write(dtype, piece))?;
                }
            }
        }
        writer.finish()?;
        let report = TransformReport {
            transforms: self.job.recipe.transforms.iter().map(Transform::to_string).collect(),
            notes,
            output_bytes: specs.iter().filter_map(|s| s.dtype.byte_len(&s.shape)).sum(),
            dtype: dtype.map(|d| torch_name(d).into()),
            run: id,
        };
        self.write_rest(&output, dtype, &report)?;
        finish_folder(self.journal.dir(), self.job.out)?;
        Ok(report)
    }

    /// The files beside the weights.
    fn write_rest(
        &self,
        output: &Path,
        dtype: Option<Dtype>,
        report: &TransformReport,
    ) -> Result<(), QuantizeError> {
        let source = &self.job.model.checkpoint;
        let mut config = source.config().clone();
        if let (Some(config), Some(dtype)) = (config.as_object_mut(), dtype) {
            // transformers 5 calls it dtype, those before torch_dtype.
            let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
            config.insert(key.into(), torch_name(dtype).into());
        }
        if let (Some(config), Some(_)) = (config.as_object_mut(), self.untied()) {
            config.insert("tie_word_embeddings".into(), false.into());
        }
        write_atomic(&output.join("config.json"), json(&config)?.as_bytes())?;
        copy_companions(source, output)?;
        write_atomic(&output.join(REPORT), json(report)?.as_bytes())?;
        Ok(())
    }

    /// The output layer, if it shares the embedding's weight and a rotation has given it the last norm's gains.
    fn untied(&self) -> Option<&Site> {
        let head = &self.job.model.architecture.head;
        head.output().filter(|_| head.tied && self.rotation.is_some())
    }

    /// Whether no value may be rounded: where the transforms round nothing, and neither the user chose a type.
    fn exact(&self) -> bool {
        self.job.stored_as == StoredAs::Auto && self.dtype().is_none()
    }

    /// The type of all floats of the output; `None` for their own.
    fn dtype(&self) -> Option<Dtype> {
        let a = &self.job.model.architecture;
        // A weight that is stored less 1 is no power of two times what it was.
        let plain =
            a.blocks.iter().flat_map(|b| [&b.around_attention.before, &b.around_mlp.before]).flatten();
        let plain = plain.into_iter().all(|n| !matches!(n.kind, NormKind::Rms { offset } if offset != 0.0));
        // Half precision has few exponents to spare.
        let wide = self.job.model.checkpoint.infos().all(|info| info.dtype != Dtype::F16);
        match self.job.stored_as {
            StoredAs::Auto if plain && wide && self.job.recipe.transforms.iter().all(Transform::is_exact) => {
                None
            }
            StoredAs::Auto => Some(Dtype::F32),
            StoredAs::Same => None,
            StoredAs::All(dtype) => Some(dtype),
        }
    }
}

/// The changed tensors of a block under the names of the checkpoint, in f32 and in the order in which it stores them.
pub(crate) fn tensors_of(
    model: &Model,
    block: &Block,
    changed: &BTreeSet<String>,
) -> Vec<(TensorSpec, Vec<u8>)> {
    let stored = |name: &String| {
        let (values, shape) = (block.stored(name)?, block.shape_of(name)?);
        let spec = TensorSpec::new(model.stored_name(name), Dtype::F32, shape);
        Some((spec, RawTensor::F32(values).into_bytes()))
    };
    changed.iter().filter_map(stored).collect()
}

/// The block's output for its input, whose windows make room as they go.
fn forward(block: &Block, hidden: Store, around: &Surroundings) -> Result<Store, QuantizeError> {
    let next = Store::new(around.place, hidden.channels(), hidden.rows())?;
    let (windows, mut stores) = (hidden.windows(), (hidden, next));
    windows_side_by_side(
        &mut stores,
        windows,
        |(hidden, _), i| hidden.take(i),
        |i, window| block.forward(window, around.rotary, &around.layouts[i]),
        |(_, next), i, window| next.put(i, window),
    )?;
    Ok(stores.1)
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The name of a type in config.json.
fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    }
}

/// Values of one type in another.
fn converted<'a>(
    tensor: &str,
    bytes: &'a [u8],
    from: Dtype,
    to: Dtype,
    exact: bool,
) -> Result<std::borrow::Cow<'a, [u8]>, QuantizeError> {
    if from == to || !is_float(from) {
        return Ok(bytes.into());
    }
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let values: Vec<f32> = match from {
        Dtype::F16 => halves().map(|b| f16::from_bits(b).to_f32()).collect(),
        Dtype::BF16 => halves().map(|b| bf16::from_bits(b).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    };
    let (wide, out): (Vec<f32>, Vec<u8>) = match to {
        Dtype::F16 => {
            let narrow: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            (narrow.iter().map(|v| v.to_f32()).collect(), RawTensor::F16(narrow).into_bytes())
        }
        Dtype::BF16 => {
            let narrow: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
            (narrow.iter().map(|v| v.to_f32()).collect(), RawTensor::BF16(narrow).into_bytes())
        }
        _ => return Ok(RawTensor::F32(values).into_bytes().into()),
    };
    let lost = wide.iter().zip(&values).any(|(w, v)| !w.is_finite() || (exact && w != v));
    match lost {
        true => Err(QuantizeError::Output(format!(
            "tensor {tensor}: {} cannot hold its values; give --dtype f32",
            torch_name(to)
        ))),
        false => Ok(out.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_converted_and_losses_refused() {
        let bytes = |values: &[f32]| RawTensor::F32(values.to_vec()).into_bytes();
        let to = |values: &[f32], dtype, exact| {
            converted("w", &bytes(values), Dtype::F32, dtype, exact).map(|b| b.into_owned())
        };
        let narrow = to(&[1.5, -0.25], Dtype::BF16, true).unwrap();
        assert_eq!(converted("w", &narrow, Dtype::BF16, Dtype::F32, true).unwrap(), bytes(&[1.5, -0.25]));
        assert!(to(&[1.0 + 1e-5], Dtype::BF16, false).is_ok());
        assert!(to(&[1.0 + 1e-5], Dtype::BF16, true).is_err());
        assert!(to(&[1e6], Dtype::F16, false).unwrap_err().to_string().contains("tensor w: float16"));
    }
}
