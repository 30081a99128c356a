//! What a run would do, from the headers of a checkpoint alone: layers, sizes, peak memory, time.
//!
//! Sizes are exact, since every format of equal bits is stored alike, but for what transforms may write in f32 or leave as it
//! is, which is counted. Memory is a model of the code's largest buffers, and time a count of its operations at a speed measured
//! on this machine; their constants are in the two files.

mod memory;
mod work;

pub use memory::Memory;
pub use work::{Speed, Work};

use crate::QuantizeError;
use crate::allocation;
use crate::choice::{check_bound, stored_bits};
use crate::inputs::PACK;
use crate::job::activation_bytes;
use crate::methods::low_rank;
use crate::output::untied_tensors;
use crate::recipe::{Method, Recipe};
use crate::search::ShiftRule;
use crate::transforms::{self, Rotation, rewritten};
use halfbyte_checkpoint::{AttentionScheme, CheckpointError, LayerScheme};
use halfbyte_formats::{Scheme, pack};
use halfbyte_model::{Architecture, BlockSpec, Input, Model, Site};
use std::collections::HashSet;

/// What a plan depends on besides model and recipe.
#[derive(Clone, Copy, Debug)]
pub struct PlanOptions {
    /// Rows of all calibration inputs: tokens, or what images become.
    pub rows: usize,
    /// Rows of the inputs that are computed together.
    pub pack: usize,
    /// As in [`crate::Job`].
    pub activation_memory: u64,
}

impl PlanOptions {
    /// For so many inputs of so many rows each.
    pub fn inputs(count: usize, rows: usize, activation_memory: u64) -> Self {
        let together = (PACK / rows.max(1)).clamp(1, count.max(1));
        Self { rows: count * rows, pack: together * rows, activation_memory }
    }

    /// For these inputs.
    pub fn of(architecture: &Architecture, inputs: &[Input], activation_memory: u64) -> Self {
        let rows = inputs.iter().map(|i| architecture.rows(i));
        let (all, longest) = rows.fold((0, 0), |(all, most), rows| (all + rows, rows.max(most)));
        Self { rows: all, pack: all.min(PACK.max(longest)), activation_memory }
    }
}

/// What a run would do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The linear layers to be quantized, in the order of the network.
    pub sites: Vec<PlannedSite>,
    /// The embedding table, if it is to be quantized.
    pub embedding: Option<PlannedSite>,
    /// Blocks whose attention's own products are to be quantized.
    pub attentions: usize,
    /// Bytes of all tensors of the output, those left alone included; at most, where transforms may change some of these.
    pub output_bytes: u64,
    /// Bytes that the working folder needs beside the output.
    pub working_bytes: u64,
    /// Stored bits per weight over the quantized tensors, scales and shifts included.
    pub bits_per_weight: f64,
    /// The most memory at any time.
    pub memory: Memory,
    /// What there is to compute.
    pub work: Work,
}

/// A tensor to be quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSite {
    /// Name of the layer.
    pub name: String,
    /// Last part of the name.
    pub kind: String,
    /// Output and input channels.
    pub shape: [usize; 2],
    /// Bits of a weight; 16 if it is left alone.
    pub weight_bits: u32,
    /// Bits of an input; 16 if it is left alone.
    pub activation_bits: u32,
    /// Bytes of codes, scales and shifts.
    pub bytes: u64,
}

impl PlannedSite {
    pub(crate) fn new(site: &Site, weight_bits: u32, activation_bits: u32, shifts: bool) -> Self {
        let (name, kind, rows, cols) = (&site.name, site.kind(), site.outputs, site.inputs);
        let mut bytes = 0;
        if weight_bits < 16 {
            bytes += rows * pack::packed_len(weight_bits, cols) + 4 * rows;
        }
        if activation_bits < 16 {
            bytes += 4 + if shifts { cols } else { 0 };
        }
        Self {
            name: name.clone(),
            kind: kind.into(),
            shape: [rows, cols],
            weight_bits,
            activation_bits,
            bytes: bytes as u64,
        }
    }

    /// A layer whose scheme is known before the run.
    fn of_scheme(site: &Site, scheme: LayerScheme) -> Self {
        let bits = |s: Option<Scheme>| s.map_or(16, |s| s.element.bits());
        let tensors = scheme.tensors(&site.name, site.outputs, site.inputs);
        let bytes = tensors.iter().filter_map(|t| t.dtype.byte_len(&t.shape)).sum();
        Self { bytes, ..Self::new(site, bits(scheme.weight), bits(scheme.input), false) }
    }

    /// Weights.
    pub fn elements(&self) -> u64 {
        (self.shape[0] * self.shape[1]) as u64
    }

    /// Stored bits, a weight that is left alone counting 16 as in the report.
    pub fn bits(&self) -> u64 {
        8 * self.bytes + if self.weight_bits == 16 { 16 * self.elements() } else { 0 }
    }

    /// Whether the weight becomes codes.
    fn coded(&self) -> bool {
        self.weight_bits < 16
    }
}

/// Works out what [`crate::quantize`] would do.
///
/// # Errors
/// When a tensor that is to be copied cannot be found, or a layer's shape does not fit the recipe's scheme.
pub fn plan(model: &Model, recipe: &Recipe, options: PlanOptions) -> Result<Plan, QuantizeError> {
    let a = &model.architecture;
    check_shapes(model, recipe)?;
    let shifts = recipe.method == Method::Fpq && recipe.shifts != ShiftRule::None;
    let in_blocks: HashSet<&str> =
        a.blocks.iter().flat_map(|b| &b.taps).flat_map(|t| &t.sites).map(|s| s.name.as_str()).collect();
    // Bits are allocated to the blocks' layers; schemes are chosen for all layers.
    let bounded = |name: &str| recipe.max_bits.filter(|_| !recipe.allocates() || in_blocks.contains(name));
    let planned = |site: &Site| {
        (!recipe.leaves(site)).then(|| match recipe.layer_scheme(&site.name) {
            // What will be chosen is not known from the headers: the largest.
            Some(_) if !recipe.alternatives.is_empty() => {
                let choices = recipe.choices();
                let largest = choices.iter().max_by_key(|s| stored_bits(&[site], s));
                PlannedSite::of_scheme(site, *largest.unwrap_or(&choices[0]))
            }
            Some(scheme) => PlannedSite::of_scheme(site, scheme),
            None => {
                // What will be allocated is not known from the headers: the largest.
                let (weight, input) = match bounded(&site.name) {
                    Some(_) => (8, if recipe.activation_bits < 16 { 8 } else { 16 }),
                    None => recipe.bits_of(&site.name),
                };
                let planned = PlannedSite::new(site, weight, input, shifts);
                let thin = recipe.low_rank().filter(|_| weight < 16).unwrap_or(0);
                PlannedSite {
                    bytes: planned.bytes + 2 * (thin * (site.outputs + site.inputs)) as u64,
                    ..planned
                }
            }
        })
    };
    let sites: Vec<PlannedSite> = a.sites().filter_map(planned).collect();
    let embedding = (recipe.embedding_bits < 16 && !recipe.keeps(a.embedding()))
        .then(|| PlannedSite::new(a.embedding(), recipe.embedding_bits, 16, false));

    let all = || embedding.iter().chain(&sites);
    let elements: u64 = all().map(PlannedSite::elements).sum();
    // Of these layers: bits and bytes, under the bound if there is one.
    let stored = |sites: &[&PlannedSite], most: Option<f32>| -> (u64, u64) {
        let bits = sites.iter().map(|s| s.bits()).sum();
        let bytes = sites.iter().map(|s| s.bytes).sum();
        let Some(most) = most else { return (bits, bytes) };
        let most = f64::from(most) * sites.iter().map(|s| s.elements()).sum::<u64>() as f64;
        (bits.min(most as u64), bytes.min((most as u64).div_ceil(8)))
    };
    let (under, free): (Vec<_>, Vec<_>) = all().partition(|s| bounded(&s.name).is_some());
    let ((bounded_bits, bounded_bytes), (free_bits, free_bytes)) =
        (stored(&under, recipe.max_bits), stored(&free, None));
    let bits = bounded_bits + free_bits;
    let attentions =
        || a.blocks.iter().filter_map(|b| Some((b, recipe.attention_scheme(b.attention_name())?)));
    let operand_bytes = |(block, scheme): (&BlockSpec, AttentionScheme)| {
        let tensors = scheme.tensors(block.attention_name(), block.attention_widths());
        tensors.iter().filter_map(|t| t.dtype.byte_len(&t.shape)).sum::<u64>()
    };
    let operand_bytes: u64 = attentions().map(operand_bytes).sum();
    let coded_bytes = bounded_bytes + free_bytes + operand_bytes;
    let rotated = Rotation::of(a, recipe)?.is_some();
    let shape = Shape { model, recipe, options, rotated };
    let (mut rewritten_bytes, mut more_bytes) = (0, 0);
    for block in &a.blocks {
        for tensor in rewritten(block, a.hidden, recipe) {
            let before = match tensor.stored {
                true => model.checkpoint.find(&model.stored_name(&tensor.name))?.bytes,
                false => 0,
            };
            rewritten_bytes += 4 * tensor.elements;
            more_bytes += (4 * tensor.elements).saturating_sub(before);
        }
    }
    let states = 2 * shape.state_bytes();
    let spilled = if shape.spills() { shape.activation_bytes() } else { 0 };
    Ok(Plan {
        output_bytes: coded_bytes + more_bytes + copied_bytes(model, &sites, embedding.is_some(), rotated)?,
        working_bytes: if recipe.needs_calibration() {
            coded_bytes + rewritten_bytes + states + spilled
        } else {
            0
        },
        bits_per_weight: bits as f64 / elements.max(1) as f64,
        memory: shape.memory(embedding.is_some())?,
        work: shape.work(embedding.is_some()),
        attentions: attentions().count(),
        sites,
        embedding,
    })
}

/// Checks that blocks divide every layer that is to be quantized.
fn check_shapes(model: &Model, recipe: &Recipe) -> Result<(), QuantizeError> {
    let a = &model.architecture;
    check_bound(a, recipe)?;
    allocation::check_bound(a, recipe)?;
    for block in &a.blocks {
        if let Some(scheme) = recipe.attention_scheme(block.attention_name()) {
            let checked = scheme.check(block.attention_name(), block.attention_widths());
            checked.map_err(|message| QuantizeError::Recipe { field: "kv_scheme".into(), message })?;
        }
    }
    transforms::check_shapes(a, recipe)?;
    for site in a.sites().filter(|s| !recipe.keeps(s)) {
        recipe.low_rank().map_or(Ok(()), |rank| low_rank::check(site, rank))?;
        let layers = recipe.layer_scheme(&site.name).into_iter();
        let choices = if recipe.alternatives.is_empty() { Vec::new() } else { recipe.choices() };
        for scheme in layers.chain(choices).flat_map(|l| [l.weight, l.input]).flatten() {
            scheme.check_shape(&site.weight(), site.outputs, site.inputs)?;
        }
    }
    Ok(())
}

/// Bytes of the tensors that the output takes over as they are; the choice is that of the job's last step.
fn copied_bytes(
    model: &Model,
    sites: &[PlannedSite],
    embedding_coded: bool,
    rotated: bool,
) -> Result<u64, QuantizeError> {
    let (a, source) = (&model.architecture, &model.checkpoint);
    let bytes = |tensor: &str| Ok::<u64, CheckpointError>(source.find(tensor)?.bytes);
    let coded: HashSet<&str> = sites.iter().filter(|s| s.coded()).map(|s| s.name.as_str()).collect();
    let is_coded = |tensor: &str| {
        tensor.strip_suffix(".weight").is_some_and(|n| coded.contains(n))
            || (embedding_coded && tensor == a.embedding().weight())
    };
    let tied = a.head.output().filter(|_| a.head.tied);
    let mut total = 0;
    for tensor in source.names().filter(|n| !is_coded(n) && tied.is_none_or(|head| *n != head.weight())) {
        total += bytes(tensor)?;
    }
    let apart = |head: &&Site| rotated || embedding_coded || sites.iter().any(|s| s.name == head.name);
    if let Some(head) = tied.filter(apart) {
        for (_, from) in untied_tensors(model, head)?.iter().filter(|(name, _)| !is_coded(name)) {
            total += bytes(from)?;
        }
    }
    Ok(total)
}

/// Sizes from which memory and time follow.
struct Shape<'a> {
    model: &'a Model,
    recipe: &'a Recipe,
    options: PlanOptions,
    /// Whether the residual stream is rotated first.
    rotated: bool,
}

impl Shape<'_> {
    fn architecture(&self) -> &Architecture {
        &self.model.architecture
    }

    fn tokens(&self) -> u64 {
        self.options.rows as u64
    }

    fn sample(&self) -> u64 {
        self.tokens().min(self.recipe.sample_tokens as u64)
    }

    /// Hidden states between two blocks.
    fn state_bytes(&self) -> u64 {
        self.tokens() * self.architecture().hidden as u64 * 4
    }

    /// Activations at the widest tap, as the job counts them.
    fn activation_bytes(&self) -> u64 {
        activation_bytes(self.architecture(), self.recipe, self.options.rows)
    }

    /// Whether the job keeps activations in files.
    fn spills(&self) -> bool {
        self.activation_bytes() > self.options.activation_memory
    }
}
