//! A whole run: from a checkpoint to the output folder.

use crate::allocation::allocate;
use crate::choice;
use crate::clock::{Phase, timed};
use crate::inputs::Packs;
use crate::journal::{Journal, RunId};
use crate::methods::attention::QuantizedAttention;
use crate::methods::learned::LearnedBlock;
use crate::output::{Output, clear_working};
use crate::profile::{Profile, weight_histogram};
use crate::recipe::{Calibration, Recipe};
use crate::report::{AttentionReport, LayerReport, Report};
use crate::store::{Place, Store};
use crate::stream::{Advance, QuantizedSite, Surroundings, embed, quantize_block, quantize_head};
use crate::transforms::{Note, Rotation, check_shapes, tensors_of, transform_block};
use crate::{QuantizeError, quantize_embedding, weights_only};
use halfbyte_checkpoint::{AttentionScheme, LayerScheme, StoredLayer, TensorSpec};
use halfbyte_formats::kernel;
use halfbyte_model::{Architecture, Block, BlockSpec, Input, Model, Site, Weight};
use halfbyte_tensor::{mix, sum_of_squares};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What to do.
pub struct Job<'a> {
    /// The full-precision model.
    pub model: &'a Model,
    /// How.
    pub recipe: &'a Recipe,
    /// What to calibrate on: windows of a text, sentences, images; nothing where the recipe needs none.
    pub inputs: &'a [Input],
    /// The output folder; it must not exist, unless this very run made it.
    pub out: &'a Path,
    /// Most bytes of activations to keep in memory; beyond that they go to temporary files.
    pub activation_memory: u64,
    /// Makes the pages that go into the output folder beside the report; `None` for none.
    pub pages: Option<Pages<'a>>,
}

/// Names and contents of files made of the finished report. They must depend on it alone, as equal runs give equal folders.
pub type Pages<'a> = &'a (dyn Fn(&Report) -> Vec<(&'static str, String)> + Sync);

/// Told how the run goes on; may stop it.
pub trait Progress {
    /// Layers in all, and how many of them an earlier run had finished.
    fn begin(&mut self, layers: usize, finished: usize);
    /// So many more layers are finished.
    fn advance(&mut self, layers: usize);
    /// So many of the steps of learned rounding in a block are done.
    fn steps(&mut self, _done: usize, _all: usize) {}
    /// Something as large as the embedding's table or the statistics of a wide layer was freed: an allocator that keeps what is
    /// free would hold on to it where nothing fits into it.
    fn freed(&mut self) {}
    /// Whether the user asked to stop. Asked between layers, and between steps.
    fn stopped(&self) -> bool;
}

/// Input channels from which on second moments, 4 · channels² bytes, are a large part of all memory, and giving pages back is a
/// small part of the work between two taps.
const WIDE: usize = 4096;

/// What came out.
pub struct Outcome {
    /// As written to `report.json`.
    pub report: Report,
    /// Whether the output was there already, from the same run.
    pub was_finished: bool,
}

/// The calibration windows of a recipe: at most `count` windows of `window` tokens from the start of the text, and the
/// recipe's share of windows drawn from the vocabulary. Those take token `t` with a probability of about 1/t (Zipf's law;
/// vocabularies are sorted by frequency), seeded by the recipe.
///
/// # Errors
/// [`QuantizeError::Calibration`] when there is not one whole window.
pub fn calibration_windows(
    recipe: &Recipe,
    tokens: &[u32],
    vocabulary: usize,
    window: usize,
    count: usize,
) -> Result<Vec<Input>, QuantizeError> {
    if tokens.is_empty() {
        return Err(QuantizeError::Calibration("it is empty".into()));
    }
    if tokens.len() < window {
        return Err(QuantizeError::Calibration(format!(
            "its {} tokens are fewer than one window of {window}; give a longer text or a smaller --calibration-window",
            tokens.len()
        )));
    }
    let mut windows: Vec<Vec<u32>> = tokens.chunks_exact(window).take(count).map(<[u32]>::to_vec).collect();
    let drawn = recipe.coverage_windows(windows.len());
    windows.extend((0..drawn).map(|w| {
        let uniform =
            |t: usize| (mix(mix(recipe.seed) ^ (w * window + t) as u64) >> 11) as f64 / (1u64 << 53) as f64;
        (0..window)
            .map(|t| ((vocabulary as f64).powf(uniform(t)) as u32).min(vocabulary as u32 - 1))
            .collect()
    }));
    Ok(windows.into_iter().map(Input::Tokens).collect())
}

/// Runs a job to its end, going on where an earlier run of the same job was stopped.
///
/// # Errors
/// Whatever is wrong with the model, the recipe or the disk. What has been finished stays in the working folder.
pub fn quantize(job: &Job, progress: &mut dyn Progress) -> Result<Outcome, QuantizeError> {
    job.recipe.check()?;
    if job.model.manifest.is_some() {
        return Err(QuantizeError::Output(format!(
            "{} is already quantized; give the full-precision checkpoint",
            job.model.checkpoint.dir().display()
        )));
    }
    let id = run_id(job)?;
    let partial = partial_dir(job.out)?;
    if let Some(report) = finished_output(job, &id)? {
        clear_working(&partial);
        return Ok(Outcome { report, was_finished: true });
    }
    // Before anything is written there; a run that weights alone decide has no journal of its own.
    Journal::exists(&partial, &id)?;
    check_shapes(&job.model.architecture, job.recipe)?;
    let settled = match allocate(job, &id, &partial, progress)? {
        None => choice::settle(job, progress)?,
        allocated => allocated,
    };
    let job = &Job { recipe: settled.as_ref().unwrap_or(job.recipe), ..*job };
    if !job.recipe.needs_calibration() {
        let report = weights_only::run(job, &id, &partial, progress)?;
        return Ok(Outcome { report, was_finished: false });
    }
    let rotation = Rotation::of(&job.model.architecture, job.recipe)?;
    let packs = Packs::new(&job.model.architecture, job.inputs)?;
    let journal = Journal::open(partial, &id)?;
    let place = place(&job.model.architecture, job.recipe, &packs, job.out, job.activation_memory);
    Run { job, journal, place, packs, rotation }.run(&id, progress)
}

/// Checks that neither the output folder nor the working folder beside it is that of another run, as [`quantize`] does before it
/// begins. Nothing is written.
///
/// # Errors
/// [`QuantizeError::Output`], naming the folder.
pub fn check_output(job: &Job) -> Result<(), QuantizeError> {
    let id = run_id(job)?;
    finished_output(job, &id)?;
    Journal::exists(&partial_dir(job.out)?, &id)?;
    Ok(())
}

/// Where the working folder of an output folder is: beside it, so that the last step is a rename.
///
/// # Errors
/// [`QuantizeError::Output`] for a path without a last part, such as `/`.
pub fn partial_dir(out: &Path) -> Result<PathBuf, QuantizeError> {
    let name =
        out.file_name().ok_or_else(|| QuantizeError::Output(format!("{} names no folder", out.display())))?;
    let mut partial = name.to_os_string();
    partial.push(".partial");
    Ok(out.with_file_name(partial))
}

/// The report of an output folder that this very run has finished.
fn finished_output(job: &Job, id: &RunId) -> Result<Option<Report>, QuantizeError> {
    let out = job.out;
    if !out.exists() {
        return Ok(None);
    }
    let same = fs::read(out.join("run.json")).ok().and_then(|b| serde_json::from_slice::<RunId>(&b).ok());
    let report = fs::read(out.join("report.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
    match (same, report) {
        (Some(found), Some(report)) if found == *id => Ok(Some(report)),
        _ => Err(not_ours(out, job.model)),
    }
}

/// What is said of an output folder that something else made.
pub(crate) fn not_ours(out: &Path, model: &Model) -> QuantizeError {
    QuantizeError::Output(match is_model(out, model) {
        true => format!("{} is the model itself; choose another --out", out.display()),
        false => format!(
            "{} exists and is not the output of this run; choose another --out or delete it",
            out.display()
        ),
    })
}

/// Whether an output folder would be that of the model it is made from.
pub fn is_model(out: &Path, model: &Model) -> bool {
    match (out.canonicalize(), model.checkpoint.dir().canonicalize()) {
        (Ok(out), Ok(model)) => out == model,
        _ => false,
    }
}

fn run_id(job: &Job) -> Result<RunId, QuantizeError> {
    let recipe = serde_json::to_vec(job.recipe).map_err(|e| QuantizeError::Output(e.to_string()))?;
    id_of(job.model, &recipe, job.inputs)
}

/// What tells a run from others: the model, what is done as bytes, the calibration inputs.
///
/// # Errors
/// When the model's files cannot be read.
pub(crate) fn id_of(model: &Model, what: &[u8], inputs: &[Input]) -> Result<RunId, QuantizeError> {
    let mut hasher = blake3::Hasher::new();
    inputs.iter().for_each(|input| add(input, &mut hasher));
    Ok(RunId {
        halfbyte: env!("CARGO_PKG_VERSION").into(),
        model: blake3::hash(&model.checkpoint.identity()?).to_hex().to_string(),
        recipe: blake3::hash(what).to_hex().to_string(),
        calibration: hasher.finalize().to_hex().to_string(),
    })
}

/// Adds an input, with its kind and sizes before its numbers, so that no two lists of inputs give the same bytes.
fn add(input: &Input, hasher: &mut blake3::Hasher) {
    let (sizes, numbers): (Vec<usize>, Vec<u32>) = match input {
        Input::Tokens(ids) => (vec![ids.len()], ids.clone()),
        Input::Segments { ids, types } => {
            (vec![usize::MAX, 1, ids.len(), types.len()], [&ids[..], types].concat())
        }
        Input::Pixels { channels, height, width, values } => {
            (vec![usize::MAX, 2, *channels, *height, *width], values.iter().map(|v| v.to_bits()).collect())
        }
    };
    for size in sizes {
        hasher.update(&(size as u64).to_le_bytes());
    }
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
}

/// Bytes of the activations of `tokens` tokens at the widest place; beyond [`Job::activation_memory`] they go to files.
pub fn activation_bytes(architecture: &Architecture, recipe: &Recipe, tokens: usize) -> u64 {
    let taps = architecture.blocks.iter().flat_map(|b| &b.taps).map(|t| t.channels());
    let quantized = |b: &&BlockSpec| recipe.quantizes_attention(b.attention_name());
    let operands = architecture.blocks.iter().filter(quantized).map(BlockSpec::operand_channels);
    let widest = taps.chain(operands).max().unwrap_or(0);
    (tokens * (architecture.hidden + widest) * 4) as u64
}

/// Memory where the activations at the widest place fit, else the working folder.
pub(crate) fn place(
    architecture: &Architecture,
    recipe: &Recipe,
    packs: &Packs,
    out: &Path,
    activation_memory: u64,
) -> Place {
    let bytes = activation_bytes(architecture, recipe, packs.rows().iter().sum());
    match partial_dir(out) {
        Ok(dir) if bytes > activation_memory => Place::Folder(dir),
        _ => Place::Memory,
    }
}

/// What a part of the journal says beside its tensors.
#[derive(Serialize, Deserialize)]
struct PartNote {
    layers: Vec<(LayerReport, LayerScheme)>,
    attention: Option<(AttentionReport, AttentionScheme)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    learned: Option<LearnedBlock>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    transforms: Vec<Note>,
}

/// One part of the journal: the embedding, a block, or what lies behind the last.
#[derive(Default)]
struct Part {
    sites: Vec<QuantizedSite>,
    attention: Option<QuantizedAttention>,
    learned: Option<LearnedBlock>,
    /// Tensors that transforms changed and that are not quantized.
    kept: Vec<(TensorSpec, Vec<u8>)>,
    transforms: Vec<Note>,
}

struct Run<'a> {
    job: &'a Job<'a>,
    journal: Journal,
    place: Place,
    packs: Packs,
    rotation: Option<Rotation>,
}

impl Run<'_> {
    /// Part 0 is the embedding, part 1 + b block b, the last part the output layer.
    fn run(self, id: &RunId, progress: &mut dyn Progress) -> Result<Outcome, QuantizeError> {
        let architecture = &self.job.model.architecture;
        let blocks = architecture.blocks.len();
        let layers_of = |b: usize| architecture.blocks[b].taps.iter().map(|t| t.sites.len()).sum::<usize>();
        let behind = architecture.head.layers.len();
        let finished = self.journal.finished(blocks + 2);
        let finished_layers = (0..finished.saturating_sub(1).min(blocks)).map(layers_of).sum::<usize>();
        progress.begin((0..blocks).map(layers_of).sum::<usize>() + behind, finished_layers);

        if finished < blocks + 2 {
            let mut hidden = match finished {
                0 => self.embed()?,
                _ => {
                    let rows = self.packs.rows();
                    self.journal.read_state(finished, &rows, architecture.hidden, &self.place)?
                }
            };
            progress.freed();
            let rotary = architecture.rotary(self.packs.longest());
            let around = Surroundings { rotary: &rotary, layouts: &self.packs.layouts, place: &self.place };
            for b in finished.saturating_sub(1)..blocks {
                let mut block = timed(Phase::Read, || self.job.model.block(b))?;
                let mut stopped = || if progress.stopped() { Err(QuantizeError::Stopped(b)) } else { Ok(()) };
                let transformed = timed(Phase::Search, || {
                    transform_block(&mut block, &hidden, self.job.recipe, &around, &mut stopped)
                })?;
                let kept = self.kept_tensors(&block, &transformed.changed);
                let wide = block.spec.taps.iter().any(|t| t.channels() >= WIDE);
                let mut on_tap = |advance| {
                    match advance {
                        Advance::Layers(layers) => {
                            progress.advance(layers);
                            if wide {
                                progress.freed();
                            }
                        }
                        Advance::Steps { done, all } => progress.steps(done, all),
                    }
                    if progress.stopped() { Err(QuantizeError::Stopped(b)) } else { Ok(()) }
                };
                let done = quantize_block(block, hidden, self.job.recipe, &around, &mut on_tap)?;
                hidden = done.hidden;
                check_finite(&hidden, b)?;
                timed(Phase::Write, || {
                    let (sites, attention, learned) = (done.sites, done.attention, done.learned);
                    let part = Part { sites, attention, learned, kept, transforms: transformed.notes };
                    self.write(b + 1, part)?;
                    self.journal.write_state(b + 2, &hidden)
                })?;
            }
            if progress.stopped() {
                return Err(QuantizeError::Stopped(blocks));
            }
            let sites = match architecture.head.layers.iter().all(|l| self.job.recipe.keeps(&l.site)) {
                true => Vec::new(),
                false => {
                    let mut head = self.job.model.head()?;
                    self.rotation.iter().for_each(|r| r.fold_head(&mut head));
                    quantize_head(head, hidden, self.job.recipe, &around)?
                }
            };
            let table = architecture.embedding().weight();
            let kept = self.turned(&sites, |tensor| tensor != table)?;
            let transforms = self.rotation.iter().map(|r| r.note_outside(architecture)).collect();
            self.write(blocks + 1, Part { sites, kept, transforms, ..Part::default() })?;
            progress.advance(behind);
        }
        let report = timed(Phase::Write, || self.assemble(id))?;
        Ok(Outcome { report, was_finished: false })
    }

    /// Quantizes the embedding and computes the first block's input.
    fn embed(&self) -> Result<Store, QuantizeError> {
        let (model, recipe) = (self.job.model, self.job.recipe);
        let site = model.architecture.embedding();
        let (name, mut stem) = (&site.name, model.stem()?);
        let mut sites = Vec::new();
        if recipe.embedding_bits < 16 && !recipe.keeps(site) {
            let mut values = stem.weight().to_f32();
            self.rotation.iter().for_each(|r| r.turn_table(&mut values.data));
            let codes = quantize_embedding(name, &values, recipe)?;
            let mut difference = codes.dequantize();
            difference.iter_mut().zip(&values.data).for_each(|(d, v)| *d -= v);
            let count = difference.len().max(1) as f64;
            sites.push(QuantizedSite {
                name: name.clone(),
                error: sum_of_squares(&difference) / count,
                signal: sum_of_squares(&values.data) / count,
                profile: Profile {
                    channel_max: Vec::new(),
                    weight_histogram: weight_histogram(&codes, &values.data),
                },
                stored: StoredLayer { weight: Some(codes.clone()), input: None, low_rank: None },
            });
            if recipe.calibration == Calibration::Sequential {
                stem.replace_weight(Weight::Quantized(codes));
            }
        }
        let mut hidden = embed(&stem, self.job.inputs, &self.packs, model.architecture.hidden, &self.place)?;
        if let (Some(rotation), Weight::Stored(..)) = (&self.rotation, stem.weight()) {
            rotation.turn_states(&mut hidden)?;
        }
        let kept = self.turned(&sites, |tensor| tensor == site.weight())?;
        self.write(0, Part { sites, kept, ..Part::default() })?;
        self.journal.write_state(1, &hidden)?;
        Ok(hidden)
    }

    /// The tensors outside the blocks that a rotation changed, of those that are `wanted`, but for `sites` with codes.
    fn turned(
        &self,
        sites: &[QuantizedSite],
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(TensorSpec, Vec<u8>)>, QuantizeError> {
        let Some(rotation) = &self.rotation else { return Ok(Vec::new()) };
        let coded = sites.iter().filter(|s| s.stored.weight.is_some());
        let coded: BTreeSet<String> = coded.map(|s| format!("{}.weight", s.name)).collect();
        rotation.stored(self.job.model, |tensor| wanted(tensor) && !coded.contains(tensor))
    }

    /// The tensors that transforms changed and that are not quantized.
    fn kept_tensors(&self, block: &Block, changed: &BTreeSet<String>) -> Vec<(TensorSpec, Vec<u8>)> {
        let sites = block.spec.taps.iter().flat_map(|t| &t.sites);
        let coded: BTreeSet<String> = sites.filter(|s| self.job.recipe.codes(s)).map(Site::weight).collect();
        tensors_of(self.job.model, block, &changed.difference(&coded).cloned().collect())
    }

    /// Writes part number `number` of the journal.
    fn write(&self, number: usize, part: Part) -> Result<(), QuantizeError> {
        let mut tensors: Vec<_> = part.sites.iter().flat_map(|s| s.stored.tensors(&s.name)).collect();
        if let Some(a) = &part.attention {
            // Part 0 is the embedding.
            let widths = self.job.model.architecture.blocks[number - 1].attention_widths();
            tensors.extend(a.stored.tensors(&a.name, widths));
        }
        tensors.extend(part.kept);
        let layers = part.sites.iter().map(|s| (LayerReport::new(s, self.shape(&s.name)), s.stored.scheme()));
        let attention = part.attention.as_ref().map(|a| (AttentionReport::new(a), a.stored.scheme()));
        let (learned, transforms) = (part.learned, part.transforms);
        let note = PartNote { layers: layers.collect(), attention, learned, transforms };
        let note = serde_json::to_string(&note).map_err(|e| QuantizeError::Output(e.to_string()))?;
        self.journal.write_block(number, &tensors, note)
    }

    fn shape(&self, name: &str) -> [usize; 2] {
        let a = &self.job.model.architecture;
        let site: &Site = a.sites().find(|s| s.name == name).unwrap_or(a.embedding());
        [site.outputs, site.inputs]
    }

    /// Puts all parts together in a folder of its own and renames that to the output folder.
    fn assemble(&self, id: &RunId) -> Result<Report, QuantizeError> {
        let parts = (0..self.job.model.architecture.blocks.len() + 2)
            .map(|p| self.journal.read_block(p))
            .collect::<Result<Vec<_>, _>>()?;
        let (mut layers, mut schemes, mut transforms) = (Vec::new(), BTreeMap::new(), Vec::new());
        let (mut attention, mut attention_schemes) = (Vec::new(), BTreeMap::new());
        let mut learned = Vec::new();
        for part in &parts {
            let note = part.metadata().get("note").map_or("{}", String::as_str);
            let note: PartNote = serde_json::from_str(note).map_err(|e| {
                QuantizeError::Output(format!("{}: {e}; delete the folder", part.path().display()))
            })?;
            transforms.extend(note.transforms);
            learned.extend(note.learned);
            for (layer, scheme) in note.layers {
                schemes.insert(layer.name.clone(), scheme);
                layers.push(layer);
            }
            if let Some((report, scheme)) = note.attention {
                attention_schemes.insert(report.name.clone(), scheme);
                attention.push(report);
            }
        }

        let tensors = parts.iter().flat_map(|p| p.tensors());
        let specs = tensors.map(|t| TensorSpec::new(t.name.clone(), t.dtype, t.shape.clone())).collect();
        let mut output = Output::begin(self.job, self.journal.dir(), schemes, attention_schemes, specs)?;
        for part in &parts {
            for tensor in part.tensors() {
                output.writer.copy(&tensor.name, part, &tensor.name)?;
            }
        }
        output.copy_rest(|_| Ok(()))?;
        output.finish(id, layers, attention, transforms, learned)
    }
}

/// Hidden states that are no numbers would make every later choice meaningless.
pub(crate) fn check_finite(hidden: &Store, block: usize) -> Result<(), QuantizeError> {
    for i in 0..hidden.windows() {
        if kernel::check_finite(&hidden.get(i)?.data).is_err() {
            return Err(QuantizeError::NonFinite(format!(
                "block {block}: its output is not finite on the calibration inputs of pack {i}; the checkpoint's weights overflow f32"
            )));
        }
    }
    Ok(())
}
