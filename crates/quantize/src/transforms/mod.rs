//! Transforms: exact rewrites of the full-precision network that make it easier to quantize. Most move factors of channels
//! from the inputs of linear layers into what makes them, where that is possible; rotations mix channels.
//!
//! A run goes block by block: the taps of a block are surveyed on the calibration inputs, each transform chooses its factors
//! tap by tap, and they are folded into the block's weights. What comes after (the next transform, the next block, a method)
//! sees only the new weights.

mod assumed;
mod awq;
mod fold;
mod heads;
mod orthogonal;
mod os_plus;
mod pow2;
mod reach;
mod rewrite;
mod rotate;
mod smooth_quant;
mod survey;
mod text;
mod trial;

pub use assumed::Assumed;
pub(crate) use reach::rewritten;
pub(crate) use rewrite::tensors_of;
pub use rewrite::{StoredAs, TransformJob, TransformReport, transform_checkpoint};
pub use text::TRANSFORMS;

use crate::QuantizeError;
use crate::recipe::Recipe;
use crate::store::Store;
use crate::stream::Surroundings;
use fold::{Change, Joint};
use halfbyte_model::{Architecture, Block, BlockSpec, Producer, Tap, TapKind};
pub(crate) use rotate::Rotation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
pub(crate) use survey::SAMPLE;
use survey::survey;
use trial::{Measured, Trial};

/// One transform with its settings. As text `os-plus:steps=100:taps=all`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transform {
    /// Which one it is.
    pub kind: TransformKind,
    /// Where it is done.
    pub taps: Taps,
    /// Whether factors that no producer at these taps can take are kept beside the layers ([`BlockSpec::migration`]), which is
    /// halfbyte's own and goes into no other engine's files.
    pub migrate: bool,
}

/// The transforms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TransformKind {
    /// SmoothQuant.
    SmoothQuant {
        /// The exponent α; `None` to search it.
        alpha: Option<f32>,
    },
    /// Outlier Suppression+.
    OsPlus {
        /// Thresholds of the grid; the search tries those near the best of a coarser one.
        steps: usize,
        /// Whether channels are centred where the network has the biases for it.
        shift: bool,
    },
    /// AWQ's scaling.
    Awq,
    /// Power-of-two scales.
    Pow2,
    /// A rotation of the residual stream.
    Rotate {
        /// Channels that are mixed with each other; `None` for all.
        block: Option<usize>,
    },
    /// A rotation of the values in every head.
    HadamardHeads {
        /// Channels that are mixed with each other; `None` for a whole head.
        block: Option<usize>,
    },
}

/// Where factors are folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taps {
    /// At the inputs of attention and MLP, which norms make.
    Norms,
    /// Wherever it is possible: also into values and the layer before a gate or a ReLU.
    All,
}

/// What was done at one tap, or why nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// The transform, as text.
    pub transform: String,
    /// The layers that read the activations.
    pub layers: Vec<String>,
    /// What took the factors; absent where nothing was folded.
    pub into: Option<String>,
    /// Smallest and largest factor.
    pub factors: Option<[f32; 2]>,
    /// Whether channels were shifted too.
    pub shifted: bool,
    /// Squared error of the assumed quantization on a sample, relative to the signal: before and after.
    pub error: Option<[f64; 2]>,
    /// Why something was not done.
    pub skipped: Option<String>,
}

/// A block after its transforms.
pub(crate) struct Transformed {
    /// What was done.
    pub(crate) notes: Vec<Note>,
    /// Names of the tensors that are new.
    pub(crate) changed: BTreeSet<String>,
}

/// Does a recipe's transforms to a block in memory, by its inputs `hidden`; `between` taps it may be stopped.
///
/// # Errors
/// When a layer has no shape for the assumed quantization, the inputs cannot be read, or `between` asks to stop.
pub(crate) fn transform_block(
    block: &mut Block,
    hidden: &Store,
    recipe: &Recipe,
    around: &Surroundings,
    between: &mut dyn FnMut() -> Result<(), QuantizeError>,
) -> Result<Transformed, QuantizeError> {
    let mut done = Transformed { notes: Vec::new(), changed: BTreeSet::new() };
    for transform in &recipe.transforms {
        if let Some((note, changed)) = transform.rotate(block, recipe)? {
            done.notes.push(note);
            done.changed.extend(changed);
            between()?;
            continue;
        }
        let surveys = survey(block, hidden, around)?;
        for (tap, survey) in surveys.iter().enumerate() {
            if !transform.wants(&block.spec, tap, recipe) {
                continue;
            }
            let sites = &block.spec.taps[tap].sites;
            let assumed: Vec<Assumed> =
                sites.iter().map(|site| transform.assumed(&Assumed::at(recipe, site))).collect();
            let layers = sites.iter().map(|s| s.name.clone()).collect();
            let mut note = Note {
                transform: transform.to_string(),
                layers,
                into: None,
                factors: None,
                shifted: false,
                error: None,
                skipped: None,
            };
            match Joint::of(&block.spec, tap, transform.migrate) {
                Err(reason) => note.skipped = Some(reason),
                Ok(joint) => {
                    let measured = transform.measured();
                    let trial = Trial::new(block, tap, survey, &joint, &assumed, around.rotary, measured);
                    let change = transform.choose(&trial)?;
                    let signal = trial.signal().max(f64::MIN_POSITIVE);
                    let none = Change::none(joint.channels);
                    note.error = Some([trial.error(&none)? / signal, trial.error(&change)? / signal]);
                    note.describe(transform, &joint, &change);
                    done.changed.extend(joint.fold(block, tap, &change));
                }
            }
            done.notes.push(note);
            between()?;
        }
    }
    Ok(done)
}

/// Checks from shapes alone that the layers fit the quantization that a recipe's transforms assume, and that what they rotate
/// can be rotated.
///
/// # Errors
/// [`QuantizeError::Format`], naming the layer; [`QuantizeError::Recipe`], naming the rotation.
pub(crate) fn check_shapes(architecture: &Architecture, recipe: &Recipe) -> Result<(), QuantizeError> {
    Rotation::of(architecture, recipe)?;
    for transform in &recipe.transforms {
        if let (TransformKind::HadamardHeads { .. }, Some(spec)) =
            (transform.kind, architecture.blocks.first())
        {
            heads::matrix(transform, spec, recipe)?;
        }
    }
    for (transform, spec) in
        recipe.transforms.iter().flat_map(|t| architecture.blocks.iter().map(move |b| (t, b)))
    {
        for tap in (0..spec.taps.len()).filter(|&tap| transform.wants(spec, tap, recipe)) {
            for site in &spec.taps[tap].sites {
                transform.assumed(&Assumed::at(recipe, site)).check(site)?;
            }
        }
    }
    Ok(())
}

impl Recipe {
    /// The first of its transforms that may keep factors beside layers of this network, where no other engine's files have a place
    /// for them.
    pub fn migrates(&self, architecture: &Architecture) -> Option<&Transform> {
        let somewhere = |t: &&Transform, b: &BlockSpec| (0..b.taps.len()).any(|tap| t.migrates(b, tap, self));
        self.transforms.iter().find(|t| architecture.blocks.iter().any(|b| somewhere(t, b)))
    }
}

impl Note {
    /// What is said of layers that a rotation changed.
    fn turned(transform: &Transform, layers: Vec<String>, into: String) -> Self {
        Self {
            transform: transform.to_string(),
            layers,
            into: Some(into),
            factors: None,
            shifted: false,
            error: None,
            skipped: None,
        }
    }

    fn describe(&mut self, transform: &Transform, joint: &Joint, change: &Change) {
        let low = change.factors.iter().copied().fold(f32::INFINITY, f32::min);
        let high = change.factors.iter().copied().fold(0.0f32, f32::max);
        if change.is_none() {
            self.skipped = Some("no factors lower the error".into());
            return;
        }
        self.into = Some(joint.into.clone());
        self.factors = Some([low, high]);
        self.shifted = !change.shifts.is_empty();
        if let (TransformKind::OsPlus { shift: true, .. }, Some(reason)) = (transform.kind, &joint.no_shift) {
            self.skipped = Some(format!("no shift: {reason}"));
        }
    }
}

impl Transform {
    /// Does a rotation's part in one block; `None` for other transforms.
    fn rotate(
        &self,
        block: &mut Block,
        recipe: &Recipe,
    ) -> Result<Option<(Note, BTreeSet<String>)>, QuantizeError> {
        Ok(match self.kind {
            TransformKind::Rotate { .. } => {
                let hidden = block.spec.taps.first().map_or(0, Tap::channels);
                let rotation = Rotation::new(*self, hidden, recipe.seed)?;
                let changed = rotation.fold(block);
                Some((rotation.note(block), changed))
            }
            TransformKind::HadamardHeads { .. } => Some(heads::fold(self, block, recipe)?),
            _ => None,
        })
    }

    /// Whether it depends on calibration inputs and on what is quantized, as rotations do not.
    pub fn looks_at_inputs(&self) -> bool {
        !matches!(self.kind, TransformKind::Rotate { .. } | TransformKind::HadamardHeads { .. })
    }

    fn refused(&self, why: &str) -> QuantizeError {
        QuantizeError::Recipe { field: "transforms".into(), message: format!("= {self}: {why}") }
    }

    /// Whether it may keep factors beside the layers at this tap.
    fn migrates(&self, spec: &BlockSpec, tap: usize, recipe: &Recipe) -> bool {
        self.migrate && self.wants(spec, tap, recipe) && spec.migration(tap).is_some()
    }

    /// Whether it looks at the activations at this tap at all: not where nothing reads them that is to be quantized.
    fn wants(&self, spec: &BlockSpec, tap: usize, recipe: &Recipe) -> bool {
        let Tap { kind, sites } = &spec.taps[tap];
        let at_norm = *kind != TapKind::MlpInner
            && matches!(spec.producer(tap), Producer::Norm(_) | Producer::Residual(_));
        let quantized = sites.iter().any(|s| !recipe.leaves(s));
        self.looks_at_inputs() && *kind != TapKind::Head && quantized && (self.taps == Taps::All || at_norm)
    }

    /// What errors are measured for it.
    fn assumed(&self, assumed: &Assumed) -> Assumed {
        match self.kind {
            TransformKind::Awq => Assumed { input: None, ..*assumed },
            _ => *assumed,
        }
    }

    fn measured(&self) -> Measured {
        match self.kind {
            TransformKind::OsPlus { .. } => Measured::Function,
            _ => Measured::Layers,
        }
    }

    fn choose(&self, trial: &Trial) -> Result<Change, QuantizeError> {
        match self.kind {
            TransformKind::SmoothQuant { alpha } => smooth_quant::choose(trial, alpha),
            TransformKind::OsPlus { steps, shift } => os_plus::choose(trial, steps, shift),
            TransformKind::Awq => awq::choose(trial),
            TransformKind::Pow2 => pow2::choose(trial),
            // They have no factors.
            TransformKind::Rotate { .. } | TransformKind::HadamardHeads { .. } => {
                Ok(Change::none(trial.joint.channels))
            }
        }
    }

    /// Changes that it tries at a tap.
    pub(crate) fn trials(&self) -> usize {
        match self.kind {
            TransformKind::SmoothQuant { alpha: Some(_) } => 2,
            TransformKind::SmoothQuant { alpha: None } | TransformKind::Awq => 22,
            TransformKind::OsPlus { steps, .. } => trial::tried(steps) + 3,
            TransformKind::Pow2 => 14,
            TransformKind::Rotate { .. } | TransformKind::HadamardHeads { .. } => 0,
        }
    }

    /// Whether its factors are powers of two alone, which round nothing.
    pub fn is_exact(&self) -> bool {
        self.kind == TransformKind::Pow2
    }

    /// Checks that it can do anything for this quantization.
    ///
    /// # Errors
    /// [`QuantizeError::Recipe`] if not.
    pub fn check(&self, assumed: &Assumed) -> Result<(), QuantizeError> {
        let given = matches!(self.kind, TransformKind::SmoothQuant { alpha: Some(_) });
        let searched = self.looks_at_inputs() && !given;
        let assumed = self.assumed(assumed);
        if searched && assumed.weight.is_none() && assumed.input.is_none() {
            return Err(self.refused("the recipe quantizes nothing that it could ease"));
        }
        Ok(())
    }
}
