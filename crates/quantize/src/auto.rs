//! `--recipe auto`: which of several recipes suits a model, found by trying them on a few blocks.
//!
//! One full-precision pass over the calibration inputs gives the inputs of a few blocks, evenly spaced. Every candidate
//! quantizes these blocks for three quarters of the inputs, and what counts is the error of the blocks' outputs on the
//! rest, which no candidate has seen (see [`output_error`]). What has been tried is kept in `OUT.partial/auto.json`, so that a run that is killed does not try it again.

use crate::QuantizeError;
use crate::inputs::Packs;
use crate::job::{Progress, activation_bytes, id_of, not_ours, partial_dir};
use crate::journal::{JOURNAL_FILE, RunId, make_dir};
use crate::probe::{copy, forward, output_error, replace};
use crate::recipe::Recipe;
use crate::store::{Place, Store};
use crate::stream::{Surroundings, embed, quantize_block};
use crate::transforms::{Rotation, check_shapes, transform_block};
use halfbyte_checkpoint::write_atomic;
use halfbyte_model::{Architecture, Input, Model, RotaryTables};
use halfbyte_tensor::Precision;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Blocks that candidates are tried on.
const BLOCKS: usize = 3;
/// One of so many inputs is held out.
const HELD_OUT: usize = 4;
/// A later candidate is taken only if its error is smaller by this share: less is within what other inputs would change.
const MARGIN: f64 = 0.01;

/// What `auto` aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AutoTarget {
    /// NVFP4 weights and inputs.
    Nvfp4,
    /// NVFP4 weights.
    Nvfp4W4a16,
    /// MXFP4 weights and inputs.
    Mxfp4,
    /// MXFP4 weights.
    Mxfp4W4a16,
    /// Searched 4-bit formats of weights and inputs.
    Fpq,
}

impl AutoTarget {
    /// The candidates, the simplest first: names of built-in recipes and the transforms before them.
    pub fn candidates(self) -> Vec<(&'static str, &'static [&'static str])> {
        match self {
            Self::Nvfp4 => vec![
                ("nvfp4-w4a4", &[]),
                ("nvfp4-w4a4", &["pow2"]),
                ("nvfp4-gptq-w4a4", &[]),
                ("nvfp4-gptq-w4a4", &["pow2"]),
                ("nvfp4-gptq-w4a4", &["smooth-quant:alpha=search:taps=all"]),
                ("nvfp4-gptq-w4a4", &["os-plus:steps=20:taps=all"]),
                ("nvfp4-gptq-w4a4", &["smooth-quant:alpha=search:taps=all", "pow2"]),
            ],
            Self::Mxfp4 => vec![
                ("mxfp4-w4a4", &[]),
                ("mxfp4-w4a4", &["pow2"]),
                ("mxfp4-gptq-w4a4", &[]),
                ("mxfp4-gptq-w4a4", &["pow2"]),
                ("mxfp4-gptq-w4a4", &["smooth-quant:alpha=search:taps=all"]),
                ("mxfp4-gptq-w4a4", &["os-plus:steps=20:taps=all"]),
                ("mxfp4-gptq-w4a4", &["smooth-quant:alpha=search:taps=all", "pow2"]),
                ("mxfp4-gptq-w4a4", &["rotate", "hadamard-heads"]),
            ],
            Self::Nvfp4W4a16 => vec![
                ("nvfp4-w4a16", &[]),
                ("nvfp4-gptq-w4a16", &[]),
                ("nvfp4-gptq-w4a16", &["awq"]),
                ("nvfp4-gptq-w4a16", &["pow2"]),
            ],
            Self::Mxfp4W4a16 => vec![
                ("mxfp4-w4a16", &[]),
                ("mxfp4-gptq-w4a16", &[]),
                ("mxfp4-gptq-w4a16", &["awq"]),
                ("mxfp4-gptq-w4a16", &["pow2"]),
            ],
            Self::Fpq => vec![
                ("fpq-w4a4", &[]),
                ("fpq-w4a4", &["smooth-quant:alpha=search"]),
                ("fpq-w4a4", &["os-plus:steps=20"]),
                ("fpq-w4a4", &["awq"]),
                ("fpq-w4a4", &["rotate", "hadamard-heads"]),
                // The slowest, there for comparison.
                ("fpq-published-w4a4", &[]),
            ],
        }
    }

    /// The candidates as recipes, without those whose transforms this network has no place for; `base` makes the recipe of a
    /// built-in name.
    ///
    /// # Errors
    /// What `base` says; a transform that does nothing for a recipe.
    pub fn recipes<E: From<QuantizeError>>(
        self,
        architecture: &Architecture,
        mut base: impl FnMut(&str) -> Result<Recipe, E>,
    ) -> Result<Vec<Recipe>, E> {
        let wrong = |message| QuantizeError::Recipe { field: "transforms".into(), message };
        let mut recipes = Vec::new();
        for (name, transforms) in self.candidates() {
            let mut recipe = base(name)?;
            for text in transforms {
                recipe.transforms.push(text.parse().map_err(wrong)?);
                recipe.name += &format!("+{}", text.split(':').next().unwrap_or(text));
            }
            recipe.check()?;
            // What is wrong with the format itself is for the first candidate to say.
            if recipe.transforms.is_empty() || check_shapes(architecture, &recipe).is_ok() {
                recipes.push(recipe);
            }
        }
        Ok(recipes)
    }
}

/// What is to be tried.
pub struct AutoJob<'a> {
    /// The full-precision model.
    pub model: &'a Model,
    /// The candidates, the simplest first.
    pub candidates: &'a [Recipe],
    /// The calibration inputs: those of the candidate that has most. All are tried on all of them.
    pub inputs: &'a [Input],
    /// How many of them, the first ones, are real and not drawn from the vocabulary: one in four of these is held out.
    pub real: usize,
    /// The output folder of the run that follows.
    pub out: &'a Path,
    /// As in [`crate::Job`].
    pub activation_memory: u64,
    /// No candidate is begun that would be expected to end later than this.
    pub budget: Duration,
}

/// What a candidate came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// Name of the recipe.
    pub recipe: String,
    /// Mean over held-out tokens of the squared error over the squared output, block by block.
    pub blocks: Vec<f64>,
    /// Their mean.
    pub error: f64,
    /// How long it took; not in the output, as equal runs give equal folders.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seconds: Option<f64>,
}

/// What was tried, and what is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutoChoice {
    /// Identifies model, candidates and inputs.
    run: RunId,
    /// The blocks that candidates were tried on.
    pub blocks: Vec<usize>,
    /// Rows of the held-out inputs.
    pub held_out_rows: usize,
    /// All that were tried.
    pub tried: Vec<Tried>,
    /// Names of those for which the budget did not suffice.
    pub left_out: Vec<String>,
    /// The one that is chosen; `None` while some are still to be tried.
    pub chosen: Option<String>,
    /// Why, in a sentence.
    pub reason: String,
}

/// The file of what was tried, in the working folder and in the output.
pub const AUTO_FILE: &str = "auto.json";

/// Tries the candidates as far as the budget reaches and chooses one. `progress` counts blocks.
///
/// # Errors
/// Whatever [`crate::quantize`] says of a block; [`QuantizeError::Calibration`] for fewer inputs than can be parted.
pub fn choose_recipe(job: &AutoJob, progress: &mut dyn Progress) -> Result<AutoChoice, QuantizeError> {
    let a = &job.model.architecture;
    let what = serde_json::to_vec(job.candidates).map_err(|e| QuantizeError::Output(e.to_string()))?;
    let run = id_of(job.model, &what, job.inputs)?;
    let partial = partial_dir(job.out)?;
    let done = read(&job.out.join(AUTO_FILE), &run);
    if done.is_none() && job.out.exists() {
        return Err(not_ours(job.out, job.model));
    }
    let kept = done.or_else(|| read(&partial.join(AUTO_FILE), &run));
    // The run itself begins when its recipe is chosen.
    if kept.as_ref().is_none_or(|c| c.chosen.is_none()) && partial.join(JOURNAL_FILE).exists() {
        return Err(QuantizeError::Output(format!(
            "{} holds an unfinished run with another recipe, model or calibration; choose another --out, or delete that folder to start over",
            partial.display()
        )));
    }
    let mut choice = kept.unwrap_or(AutoChoice {
        run,
        blocks: spaced(a.blocks.len()),
        held_out_rows: 0,
        tried: Vec::new(),
        left_out: Vec::new(),
        chosen: None,
        reason: String::new(),
    });
    if choice.chosen.is_some() {
        return Ok(choice);
    }
    make_dir(&partial)?;
    let (seen, held_out) = part(job)?;
    choice.held_out_rows = held_out.iter().map(|i| a.rows(i)).sum();
    let last = choice.blocks.last().copied().unwrap_or(0);
    let pass = choice.blocks.len() * job.candidates.len() + last + 1;
    progress.begin(pass, choice.blocks.len() * choice.tried.len());

    let start = Instant::now();
    let before: f64 = choice.tried.iter().filter_map(|t| t.seconds).sum();
    let trials = Trials::new(job, &seen, &held_out, &choice.blocks, partial.clone(), progress)?;
    for recipe in &job.candidates[choice.tried.len()..] {
        let spent = before + start.elapsed().as_secs_f64();
        let longest = choice.tried.iter().filter_map(|t| t.seconds).fold(0.0, f64::max);
        if !choice.tried.is_empty() && spent + longest > job.budget.as_secs_f64() {
            break;
        }
        let tried = trials.attempt(recipe, progress)?;
        choice.tried.push(tried);
        choice.write(&partial)?;
    }
    choice.settle(job.candidates);
    choice.write(&partial)?;
    Ok(choice)
}

/// Most bytes that trying takes beside a run of the candidate: a second copy of the largest block, in f32.
pub fn trial_bytes(architecture: &Architecture) -> u64 {
    let elements = |b: &halfbyte_model::BlockSpec| {
        b.taps.iter().flat_map(|t| &t.sites).map(|s| (s.outputs * s.inputs) as u64).sum::<u64>()
    };
    4 * architecture.blocks.iter().map(elements).max().unwrap_or(0)
}

fn read(path: &Path, run: &RunId) -> Option<AutoChoice> {
    let found: AutoChoice = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (found.run == *run).then_some(found)
}

/// The middles of equal parts of the network.
fn spaced(blocks: usize) -> Vec<usize> {
    let count = BLOCKS.min(blocks);
    (0..count).map(|i| (2 * i + 1) * blocks / (2 * count)).collect()
}

/// The inputs to calibrate on, and those held out.
fn part(job: &AutoJob) -> Result<(Vec<Input>, Vec<Input>), QuantizeError> {
    if job.real < 2 {
        return Err(QuantizeError::Calibration(
            "auto holds some of the inputs out, and there is only one; give a longer text or smaller windows"
                .into(),
        ));
    }
    let step = HELD_OUT.min(job.real);
    let held = |i: usize| i < job.real && i % step == step - 1;
    let pick = |wanted: bool| {
        job.inputs.iter().enumerate().filter(|(i, _)| held(*i) == wanted).map(|(_, x)| x.clone()).collect()
    };
    Ok((pick(false), pick(true)))
}

impl AutoChoice {
    fn write(&self, dir: &Path) -> Result<(), QuantizeError> {
        Ok(write_atomic(&dir.join(AUTO_FILE), self.to_json()?.as_bytes())?)
    }

    /// Without times, for the output.
    #[must_use]
    pub fn without_times(&self) -> Self {
        let mut choice = self.clone();
        choice.tried.iter_mut().for_each(|t| t.seconds = None);
        choice
    }

    /// As text for a file.
    ///
    /// # Errors
    /// When a number cannot be written.
    pub fn to_json(&self) -> Result<String, QuantizeError> {
        serde_json::to_string_pretty(self).map_err(|e| QuantizeError::Output(e.to_string()))
    }

    /// Chooses: the first, unless a later one is better by more than the margin.
    fn settle(&mut self, candidates: &[Recipe]) {
        self.left_out = candidates[self.tried.len()..].iter().map(|r| r.name.clone()).collect();
        let better = |a: &Tried, b: &Tried| b.error < (1.0 - MARGIN) * a.error;
        let best = self.tried.iter().reduce(|a, b| if better(a, b) { b } else { a });
        let Some(best) = best.cloned() else { return };
        let others = self.tried.iter().filter(|t| t.recipe != best.recipe);
        let next = others.min_by(|a, b| a.error.total_cmp(&b.error));
        self.reason = match next {
            None => "the only one that the budget sufficed for".into(),
            Some(next) if next.error < best.error => format!(
                "{} has {:.1} % less error, which is within the noise, and takes more",
                next.recipe,
                100.0 * (1.0 - next.error / best.error)
            ),
            Some(next) => {
                let less = 100.0 * (1.0 - best.error / next.error.max(f64::MIN_POSITIVE));
                format!("{less:.1} % less error than the next best, {}", next.recipe)
            }
        };
        self.chosen = Some(best.recipe);
    }
}

/// Inputs and full-precision outputs of the blocks, in files of the working folder.
struct Trials<'a> {
    job: &'a AutoJob<'a>,
    blocks: &'a [usize],
    seen: Part,
    held_out: Part,
    rotary: RotaryTables,
    files: Place,
}

/// Some inputs on their way through the network.
struct Part {
    packs: Packs,
    /// What enters each of the blocks, and what leaves it.
    entering: Vec<Store>,
    leaving: Vec<Store>,
}

impl<'a> Trials<'a> {
    /// Computes the full-precision network as far as the last block that is tried.
    fn new(
        job: &'a AutoJob<'a>,
        seen: &[Input],
        held_out: &[Input],
        blocks: &'a [usize],
        partial: PathBuf,
        progress: &mut dyn Progress,
    ) -> Result<Self, QuantizeError> {
        let a = &job.model.architecture;
        let files = Place::Folder(partial);
        let packed = |inputs| {
            Ok::<_, QuantizeError>(Part {
                packs: Packs::new(a, inputs)?,
                entering: Vec::new(),
                leaving: Vec::new(),
            })
        };
        let mut parts = [packed(seen)?, packed(held_out)?];
        let rotary = a.rotary(parts.iter().map(|p| p.packs.longest()).max().unwrap_or(0));
        let stem = job.model.stem()?;
        let mut hidden = Vec::new();
        for (part, inputs) in parts.iter().zip([seen, held_out]) {
            hidden.push(embed(&stem, inputs, &part.packs, a.hidden, &files)?);
        }
        drop(stem);
        progress.freed();
        let precision = job.candidates.first().map_or(Precision::F32, |r| r.products.precision());
        for b in 0..=blocks.last().copied().unwrap_or(0) {
            if progress.stopped() {
                return Err(QuantizeError::Stopped(b));
            }
            let mut block = job.model.block(b)?;
            block.linears.iter_mut().flatten().for_each(|l| l.precision = precision);
            for (i, part) in parts.iter_mut().enumerate() {
                let entering = std::mem::replace(&mut hidden[i], Store::empty());
                hidden[i] = forward(&block, &entering, &rotary, &part.packs.layouts, &files)?;
                if blocks.contains(&b) {
                    part.leaving.push(copy(&hidden[i], &files)?);
                    part.entering.push(entering);
                }
            }
            progress.advance(1);
        }
        let [seen, held_out] = parts;
        Ok(Self { job, blocks, seen, held_out, rotary, files })
    }

    fn attempt(&self, recipe: &Recipe, progress: &mut dyn Progress) -> Result<Tried, QuantizeError> {
        let start = Instant::now();
        let rows: usize = self.seen.packs.rows().iter().sum();
        let fits = activation_bytes(&self.job.model.architecture, recipe, rows) <= self.job.activation_memory;
        let place = if fits { Place::Memory } else { self.files.clone() };
        let around = Surroundings { rotary: &self.rotary, layouts: &self.seen.packs.layouts, place: &place };
        let rotation = Rotation::of(&self.job.model.architecture, recipe)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (i, &b) in self.blocks.iter().enumerate() {
            let mut block = self.job.model.block(b)?;
            let mut hidden = copy(&self.seen.entering[i], &place)?;
            rotation.iter().try_for_each(|r| r.turn_states(&mut hidden))?;
            let mut stopped = || if progress.stopped() { Err(QuantizeError::Stopped(b)) } else { Ok(()) };
            transform_block(&mut block, &hidden, recipe, &around, &mut stopped)?;
            let mut through = block.clone();
            let done = quantize_block(block, hidden, recipe, &around, &mut |_| stopped())?;
            replace(&mut through, done);
            let Part { packs, entering, leaving } = &self.held_out;
            let (entering, leaving) = (&entering[i], &leaving[i]);
            let turned = |r: &Rotation| {
                Ok::<_, QuantizeError>((r.turned(entering, &self.files)?, r.turned(leaving, &self.files)?))
            };
            let turned: Option<(Store, Store)> = rotation.as_ref().map(turned).transpose()?;
            let (entering, leaving) = turned.as_ref().map_or((entering, leaving), |(e, l)| (e, l));
            blocks.push(output_error(&through, entering, leaving, &self.rotary, &packs.layouts)?);
            progress.advance(1);
        }
        let error = blocks.iter().sum::<f64>() / blocks.len().max(1) as f64;
        Ok(Tried { recipe: recipe.name.clone(), blocks, error, seconds: Some(start.elapsed().as_secs_f64()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(errors: &[f64]) -> (AutoChoice, Vec<Recipe>) {
        let names = ["plain", "feedback", "smooth", "last"];
        let candidates = names.iter().map(|n| Recipe { name: (*n).into(), ..Recipe::default() }).collect();
        let tried = names.iter().zip(errors).map(|(n, &error)| Tried {
            recipe: (*n).into(),
            blocks: vec![error],
            error,
            seconds: Some(1.0),
        });
        let run = RunId { halfbyte: "".into(), model: "".into(), recipe: "".into(), calibration: "".into() };
        let choice = AutoChoice {
            run,
            blocks: vec![0],
            held_out_rows: 1,
            tried: tried.collect(),
            left_out: Vec::new(),
            chosen: None,
            reason: String::new(),
        };
        (choice, candidates)
    }

    fn settled(errors: &[f64]) -> AutoChoice {
        let (mut choice, candidates) = choice(errors);
        choice.settle(&candidates);
        choice
    }

    #[test]
    fn the_least_error_wins_and_the_reason_says_by_how_much() {
        let found = settled(&[0.4, 0.2, 0.1, 0.3]);
        assert_eq!(found.chosen.as_deref(), Some("smooth"));
        assert_eq!(found.reason, "50.0 % less error than the next best, feedback");
        assert!(found.left_out.is_empty());
    }

    #[test]
    fn what_is_hardly_better_does_not_replace_what_is_simpler() {
        let found = settled(&[0.4, 0.2, 0.1995]);
        assert_eq!(found.chosen.as_deref(), Some("feedback"));
        assert!(found.reason.contains("smooth has 0.2 % less"), "{}", found.reason);
        assert_eq!(found.left_out, ["last"]);
    }

    #[test]
    fn blocks_are_the_middles_of_equal_parts() {
        assert_eq!(spaced(30), [5, 15, 25]);
        assert_eq!(spaced(5), [0, 2, 4]);
        assert_eq!(spaced(2), [0, 1]);
        assert_eq!(spaced(1), [0]);
    }
}
