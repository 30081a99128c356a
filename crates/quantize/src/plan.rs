//! What a run would do, from the headers of a checkpoint alone: layers, sizes, peak memory, time.
//!
//! Sizes are exact, since every format of equal bits is stored alike. Memory is a model of the code's largest buffers, and
//! time a count of its operations at a speed measured on this machine; their constants are in [`cost`].

use crate::QuantizeError;
use crate::allocation;
use crate::choice::{check_bound, stored_bits};
use crate::inputs::PACK;
use crate::job::activation_bytes;
use crate::methods::block_scale::is_block;
use crate::methods::learned::{JUDGED, JUDGED_TOKENS};
use crate::methods::{COMPARED_ROWS, PIECE_BYTES, low_rank};
use crate::output::untied_tensors;
use crate::recipe::{Calibration, First, Method, Recipe, Rounding, Search};
use crate::search::{HISTOGRAM_BYTES, ShiftRule, steps_per_channel};
use crate::transforms::{self, Rotation, SAMPLE};
use halfbyte_checkpoint::{AttentionScheme, CheckpointError, LayerScheme};
use halfbyte_formats::{Element, Scheme, kernel, pack};
use halfbyte_model::{Architecture, BlockSpec, Input, Model, Site, StemSpec, Tap};
use halfbyte_tensor::{Matrix, Rows, product};
use std::time::Instant;

/// Constants of the memory and time models, fitted to measured runs.
mod cost {
    /// Program and threads.
    pub(super) const PROCESS: u64 = 12 << 20;
    /// Of everything else one part in so many is lost between allocations that do not fit into each other's room.
    pub(super) const ALLOCATOR_SHARE: u64 = 8;
    /// Bytes that the tokenizer takes for a byte of tokenizer.json.
    pub(super) const TOKENIZER: u64 = 16;
    /// Temporaries of a search or correction over a piece of a group's rows.
    pub(super) const PIECE_BUFFERS: u64 = 4;
    /// Copies of the sample `[tokens, inputs]` in the search of an input: the sample, its transpose, the error of a
    /// candidate.
    pub(super) const SAMPLE_COPIES: u64 = 3;
    /// And, once there are quantized weights, the linear term and its transpose.
    pub(super) const LINEAR_COPIES: u64 = 2;
    /// Outputs of the sample `[tokens, outputs]` and its inputs `[tokens, inputs]` that are compared.
    pub(super) const COMPARED_OUTPUTS: u64 = 2;
    pub(super) const COMPARED_INPUTS: u64 = 2;
    /// Copies of one window `[tokens, widest]` in a forward pass: input, quantized input, outputs.
    pub(super) const FORWARD_COPIES: u64 = 4;
    /// Copies of the embedding table in f32 while it is quantized: values, decoded codes.
    pub(super) const EMBEDDING_COPIES: u64 = 2;
    /// Copies of a layer in f32 where its scales are no blocks': values and their decoded codes.
    pub(super) const WEIGHT_COPIES: u64 = 2;
    /// Roundings of a weight in a run without calibration: reading, codes tried, encoding.
    pub(super) const CODES_TRIED: f64 = 16.0;
    /// Copies of a tap's weights, and of the sample's inputs and outputs, while a transform tries a change.
    pub(super) const TRIED_WEIGHTS: u64 = 2;
    pub(super) const TRIED_ACTIVATIONS: u64 = 3;
    /// Rounded numbers for each weight in a step of learning, beside those of its passes: the step itself.
    pub(super) const STEP_ROUNDINGS: f64 = 4.0;
    /// Bytes of a weight while its rounding is learned: its position, its gradient; its codes twice are beside them.
    pub(super) const LEARNED_BYTES: u64 = 8;
    /// Windows of activations in memory when they are kept in files.
    pub(super) const SPILL_WINDOWS: u64 = 2;
    /// Share of the measured speed of a large product that the products of a run reach.
    pub(super) const PRODUCT_EFFICIENCY: f64 = 0.7;
}

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
    /// Bytes of all tensors of the output, those left alone included.
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

/// Memory at the moment when it is largest, as a sum of named parts.
#[derive(Clone, Debug)]
pub struct Memory {
    /// What the run does at that moment.
    pub moment: String,
    /// Name and bytes of every part.
    pub terms: Vec<(&'static str, u64)>,
}

impl Memory {
    /// All parts together.
    pub fn peak_bytes(&self) -> u64 {
        self.terms.iter().map(|t| t.1).sum()
    }
}

/// Operations of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Multiply-adds of matrix products.
    pub multiply_adds: f64,
    /// Numbers rounded to a candidate's grid.
    pub roundings: f64,
}

/// How fast this machine does the operations of [`Work`].
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    multiply_adds: f64,
    roundings: f64,
}

impl Speed {
    /// Measures for some milliseconds, on the threads that a run would use.
    pub fn measure() -> Self {
        let n = 512;
        let a: Vec<f32> = (0..n * n).map(|i| (i % 17) as f32 - 8.0).collect();
        let rows = Rows::new(&a, n);
        let multiply_adds = rate((n * n * n) as f64, || drop::<Matrix>(product(&rows, &rows)));
        let mut error = 0.0;
        let one_thread = rate(a.len() as f64, || error += kernel::squared_error(Element::E2M1, 0.7, &a));
        debug_assert!(error.is_finite());
        Self { multiply_adds, roundings: one_thread * rayon::current_num_threads() as f64 }
    }
}

/// Operations a second of the fastest of a few tries.
fn rate(operations: f64, mut run: impl FnMut()) -> f64 {
    let seconds = (0..4).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    operations / seconds.fold(f64::INFINITY, f64::min).max(1e-9)
}

impl Work {
    /// Seconds at this speed.
    pub fn seconds(&self, speed: Speed) -> f64 {
        self.multiply_adds / (speed.multiply_adds * cost::PRODUCT_EFFICIENCY)
            + self.roundings / speed.roundings
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
                let (weight, input) = match recipe.max_bits {
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
    let mut bits: u64 = all().map(PlannedSite::bits).sum();
    let mut coded_bytes: u64 = all().map(|s| s.bytes).sum();
    let attentions =
        || a.blocks.iter().filter_map(|b| Some((b, recipe.attention_scheme(b.attention_name())?)));
    let operand_bytes = |(block, scheme): (&BlockSpec, AttentionScheme)| {
        let tensors = scheme.tensors(block.attention_name(), block.attention_widths());
        tensors.iter().filter_map(|t| t.dtype.byte_len(&t.shape)).sum::<u64>()
    };
    let operand_bytes: u64 = attentions().map(operand_bytes).sum();
    if let Some(most) = recipe.max_bits {
        let most = (f64::from(most) * elements as f64) as u64;
        (bits, coded_bytes) = (bits.min(most), coded_bytes.min(most.div_ceil(8)));
    }
    coded_bytes += operand_bytes;
    let rotated = Rotation::of(a, recipe)?.is_some();
    let shape = Shape { model, recipe, options, rotated };
    let states = 2 * shape.state_bytes();
    let spilled = if shape.spills() { shape.activation_bytes() } else { 0 };
    Ok(Plan {
        output_bytes: coded_bytes + copied_bytes(model, &sites, embedding.is_some(), rotated)?,
        working_bytes: if recipe.needs_calibration() { coded_bytes + states + spilled } else { 0 },
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
    let coded: std::collections::HashSet<&str> =
        sites.iter().filter(|s| s.coded()).map(|s| s.name.as_str()).collect();
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

    /// The inputs themselves, which stay until the end: ids, or the pixels of which a patch becomes a row.
    fn input_bytes(&self) -> u64 {
        let row = match &self.architecture().stem {
            StemSpec::Text(_) => 1,
            StemSpec::Image(image) => image.channels * image.patch[0] * image.patch[1],
        };
        4 * self.tokens() * row as u64
    }

    /// Hidden states between two blocks.
    fn state_bytes(&self) -> u64 {
        self.tokens() * self.architecture().hidden as u64 * 4
    }

    /// Activations at the widest tap, as the job counts them.
    fn activation_bytes(&self) -> u64 {
        activation_bytes(self.architecture(), self.recipe, self.options.rows)
    }

    /// Memory for `channels` activations of every token.
    fn in_memory(&self, channels: u64) -> u64 {
        let tokens =
            if self.spills() { cost::SPILL_WINDOWS * self.options.pack as u64 } else { self.tokens() };
        4 * tokens * channels
    }

    /// Whether the job keeps activations in files.
    fn spills(&self) -> bool {
        self.activation_bytes() > self.options.activation_memory
    }

    /// Most bits of a code.
    fn weight_bits(&self) -> u32 {
        let own = self.recipe.layer_bits.values().copied().chain([self.recipe.weight_bits]);
        if self.recipe.max_bits.is_some() { 8 } else { own.filter(|&b| b < 16).max().unwrap_or(8) }
    }

    /// What is there beside a run while sensitivities are measured: two more copies of a block, and its codes.
    fn allocation_bytes(&self) -> Result<u64, CheckpointError> {
        let mut most = 0;
        for block in self.architecture().blocks.iter().filter(|_| self.recipe.allocates()) {
            let mut bytes = 0;
            for site in block.taps.iter().flat_map(|t| &t.sites) {
                bytes += 2 * self.stored_weight(site)? + (site.outputs * site.inputs) as u64;
            }
            most = most.max(bytes);
        }
        Ok(most)
    }

    /// Bytes of a layer's weight as stored in the checkpoint.
    fn stored_weight(&self, site: &Site) -> Result<u64, CheckpointError> {
        Ok(self.model.weight_info(site)?.bytes)
    }

    /// The largest of all moments.
    fn memory(&self, embedding: bool) -> Result<Memory, CheckpointError> {
        let a = self.architecture();
        if !self.recipe.needs_calibration() {
            return self.weights_only_memory();
        }
        let mut moments = vec![self.embedding_memory(embedding)?];
        for (b, block) in a.blocks.iter().enumerate() {
            for tap in 0..block.taps.len() {
                moments.push(self.tap_memory(b, block, tap)?);
                if !self.recipe.transforms.is_empty() {
                    moments.push(self.transform_memory(b, block, tap));
                }
            }
            if self.recipe.rounding == Rounding::Learned {
                moments.push(self.learning_memory(b, block)?);
            }
            if self.recipe.quantizes_attention(block.attention_name()) {
                moments.push(self.attention_memory(b, block)?);
            }
        }
        for layer in a.head.layers.iter().filter(|l| !self.recipe.keeps(&l.site)) {
            let site = &layer.site;
            let stored = match self.rotated {
                true => 4 * (site.outputs * site.inputs) as u64,
                false => self.stored_weight(site)?,
            };
            let mut terms = vec![("process", self.process()), ("stored weights", stored)];
            terms.push(("activations", self.in_memory(a.hidden as u64)));
            self.search_terms(std::slice::from_ref(site), &mut terms);
            moments.push(Memory { moment: format!("behind the last block, {}", site.kind()), terms });
        }
        let largest = moments.into_iter().reduce(|a, b| if b.peak_bytes() > a.peak_bytes() { b } else { a });
        let mut largest = largest.unwrap_or(Memory { moment: String::new(), terms: Vec::new() });
        largest.terms.push(("calibration data", self.input_bytes()));
        if self.recipe.allocates() {
            largest.terms.push(("copies of a block", self.allocation_bytes()?));
        }
        largest.terms.push(("allocator", largest.peak_bytes() / cost::ALLOCATOR_SHARE));
        Ok(largest)
    }

    /// Without calibration: the stored weights of two taps, and two layers' codes or one's values.
    fn weights_only_memory(&self) -> Result<Memory, CheckpointError> {
        let a = self.architecture();
        let copies = match self.recipe.weight_scheme {
            Some(scheme) if is_block(scheme) && self.recipe.alternatives.iter().all(|&s| is_block(s)) => 0,
            _ => cost::WEIGHT_COPIES,
        };
        let mut largest = Memory { moment: "the start".into(), terms: vec![("process", cost::PROCESS)] };
        let (mut last_stored, mut last_codes) = (0, 0);
        for sites in a.groups() {
            let (mut stored, mut values) = (0, 0);
            for site in sites.iter().filter(|s| !self.recipe.keeps(s)) {
                stored += self.stored_weight(site)?;
                values = values.max((site.outputs * site.inputs) as u64);
            }
            let codes = values * u64::from(self.recipe.weight_bits) / 8;
            // A tap is read while the one before it is quantized, in whose memory the next but one is read, and the layer
            // before that is written.
            let terms = vec![
                ("process", cost::PROCESS),
                ("stored weights", last_stored + stored),
                ("weights in f32", copies * 4 * values),
                ("codes", last_codes + codes),
            ];
            (last_stored, last_codes) = (stored, codes);
            let memory = Memory { moment: sites[0].name.clone(), terms };
            if memory.peak_bytes() > largest.peak_bytes() {
                largest = memory;
            }
        }
        Ok(largest)
    }

    fn embedding_memory(&self, coded: bool) -> Result<Memory, CheckpointError> {
        let a = self.architecture();
        let table = a.embedding();
        let elements = (table.outputs * table.inputs) as u64;
        let stored = self.stored_weight(table)?;
        let mut terms = vec![("process", self.process()), ("embedding table", stored)];
        if coded {
            terms.push(("embedding copies", cost::EMBEDDING_COPIES * 4 * elements));
            terms.push(("codes", elements * u64::from(self.recipe.embedding_bits) / 8));
        } else {
            terms.push(("activations", if self.spills() { 0 } else { self.state_bytes() }));
            terms.push(("rotated table", if self.rotated { stored } else { 0 }));
        }
        Ok(Memory { moment: "embedding".into(), terms })
    }

    fn tap_memory(&self, index: usize, block: &BlockSpec, tap: usize) -> Result<Memory, CheckpointError> {
        let sites = &block.taps[tap].sites;
        let mut stored = 0;
        // The block's weights go tap by tap.
        for site in block.taps[tap..].iter().flat_map(|t| &t.sites) {
            stored += match self.recipe.transforms.is_empty() {
                true => self.stored_weight(site)?,
                false => 4 * (site.outputs * site.inputs) as u64,
            };
        }
        let done: u64 =
            block.taps[..tap].iter().flat_map(|t| &t.sites).map(|s| (s.outputs * s.inputs) as u64).sum();
        let mut terms = vec![
            ("process", self.process()),
            ("stored weights", stored),
            ("codes", done * u64::from(self.weight_bits()) / 8),
        ];
        let hidden = self.architecture().hidden;
        let channels = block.carried(tap, hidden) as u64 + sites[0].inputs as u64;
        terms.push(("activations", self.in_memory(channels)));
        // Windows of the tap before, freed one by one, leave holes that are too small for wider ones.
        let before = tap.checked_sub(1).map_or(0, |t| block.taps[t].channels());
        if before < sites[0].inputs {
            terms.push(("freed activations", self.in_memory(before as u64)));
        }
        if self.recipe.rounding == Rounding::Learned {
            // All layers once more, the block's input, and its output unless that comes last.
            terms.push(("layers to learn from", self.block_weights(block)?));
            terms.push(("inputs and outputs", self.learned_states()));
        }
        self.search_terms(sites, &mut terms);
        Ok(Memory { moment: format!("block {index}, {}", sites[0].kind()), terms })
    }

    /// The full-precision weights of a block.
    fn block_weights(&self, block: &BlockSpec) -> Result<u64, CheckpointError> {
        let mut bytes = 0;
        for site in block.taps.iter().flat_map(|t| &t.sites) {
            bytes += match self.recipe.transforms.is_empty() {
                true => self.stored_weight(site)?,
                false => 4 * (site.outputs * site.inputs) as u64,
            };
        }
        Ok(bytes)
    }

    /// What learned rounding keeps of a block while it is streamed: its input and, in sequential calibration, its output.
    fn learned_states(&self) -> u64 {
        let stores = if self.recipe.calibration == Calibration::Sequential { 2 } else { 1 };
        self.in_memory(stores * self.architecture().hidden as u64)
    }

    /// While the rounding of a block is learned.
    fn learning_memory(&self, index: usize, block: &BlockSpec) -> Result<Memory, CheckpointError> {
        let sites = || block.taps.iter().flat_map(|t| &t.sites);
        let all: u64 =
            sites().filter(|s| !self.recipe.leaves(s)).map(|s| (s.outputs * s.inputs) as u64).sum();
        let codes = 2 * all * u64::from(self.recipe.weight_bits.min(8)) / 8;
        let hidden = self.architecture().hidden as u64;
        // A trace has what every tap gets, what its layers give, and the residual stream three times; on the way back
        // the widest of them is there a few times more.
        let taps: u64 = block.taps.iter().map(|t| t.channels() as u64).sum();
        let outputs: u64 = sites().map(|s| s.outputs as u64).sum();
        let widest = sites().map(|s| s.outputs.max(s.inputs) as u64).max().unwrap_or(0);
        let traced = taps + outputs + 3 * hidden + cost::FORWARD_COPIES * widest;
        let terms = vec![
            ("process", self.process()),
            ("stored weights", self.block_weights(block)?),
            ("codes", codes),
            ("positions and gradients", cost::LEARNED_BYTES * all),
            ("inputs and outputs", self.in_memory(2 * hidden)),
            ("gradient of a window", 4 * self.options.pack as u64 * traced),
        ];
        Ok(Memory { moment: format!("learning of block {index}"), terms })
    }

    /// While the operands of a block's attention are searched, the first tap being done.
    fn attention_memory(&self, index: usize, block: &BlockSpec) -> Result<Memory, CheckpointError> {
        let mut stored = 0;
        for site in block.taps.iter().flat_map(|t| &t.sites) {
            stored += self.stored_weight(site)?;
        }
        let channels = block.operand_channels() as u64;
        let hidden = self.architecture().hidden;
        let output = block.taps.get(1).map_or(0, |t| t.sites.iter().map(|s| s.outputs * s.inputs).sum());
        let terms = vec![
            ("process", self.process()),
            ("stored weights", stored),
            ("activations", self.in_memory(block.carried(0, hidden) as u64 + channels)),
            ("freed activations", self.in_memory(block.taps[0].channels() as u64)),
            ("output projection", 4 * output as u64),
            ("search of operands", cost::SAMPLE_COPIES * 4 * self.sample() * channels),
            ("probabilities", block.attention.heads as u64 * HISTOGRAM_BYTES),
        ];
        Ok(Memory { moment: format!("block {index}, attention"), terms })
    }

    /// While changes of one tap are tried.
    fn transform_memory(&self, index: usize, block: &BlockSpec, tap: usize) -> Memory {
        let elements = |taps: &[Tap]| -> u64 {
            taps.iter().flat_map(|t| &t.sites).map(|s| (s.outputs * s.inputs) as u64).sum()
        };
        let sites = &block.taps[tap].sites;
        let channels: u64 = block.taps.iter().map(|t| t.channels() as u64).sum();
        let outputs: u64 = sites.iter().map(|s| s.outputs as u64).sum();
        let rows = self.tokens().min(SAMPLE as u64 + self.options.pack as u64);
        let tried = cost::TRIED_WEIGHTS * 4 * elements(&block.taps[tap..=tap])
            + cost::TRIED_ACTIVATIONS * 4 * rows * (outputs + sites[0].inputs as u64);
        let terms = vec![
            ("process", self.process()),
            ("weights in f32", 4 * elements(&block.taps)),
            ("activations", self.in_memory(self.architecture().hidden as u64)),
            ("samples", 4 * rows * channels),
            ("tried changes", tried),
        ];
        Memory { moment: format!("transforms of block {index}, {}", sites[0].kind()), terms }
    }

    /// What the layers of one tap need while they are quantized.
    fn search_terms(&self, sites: &[Site], terms: &mut Vec<(&'static str, u64)>) {
        let channels = sites[0].inputs;
        let k = channels as u64;
        let outputs: u64 = sites.iter().map(|s| s.outputs as u64).sum();
        let widest = outputs.max(k).min(4 * self.architecture().hidden.max(channels) as u64);
        let forward = cost::FORWARD_COPIES * 4 * self.options.pack as u64 * widest;
        let chosen: Vec<u64> =
            sites.iter().filter(|s| !self.recipe.keeps(s)).map(|s| s.outputs as u64).collect();
        if chosen.is_empty() {
            terms.push(("forward pass", forward));
            return;
        }
        let all: u64 = chosen.iter().sum();
        let together = self.recipe.share_input || self.recipe.method == Method::Scheme;
        let group = if together { all } else { chosen.iter().copied().max().unwrap_or(0) };
        let weights = 4 * group * k;
        terms.push(("weights in f32", 4 * all * k));
        // Then one of these, whichever is largest.
        let sample = self.sample();
        let packing = weights
            + cost::COMPARED_INPUTS * 4 * sample * k
            + cost::COMPARED_OUTPUTS * 4 * sample * group.min(COMPARED_ROWS as u64)
            + group * k * u64::from(self.weight_bits()) / 8;
        let mut moments = vec![("forward pass", forward), ("compare and pack", packing)];
        let searched = self.recipe.method == Method::Fpq;
        let rounded = self.recipe.method == Method::Scheme && self.recipe.uses_factor();
        if searched || rounded {
            let recipe = self.recipe;
            if searched && recipe.activation_bits < 16 {
                let again = recipe.first == First::Weight || recipe.rounds > 1;
                let copies = cost::SAMPLE_COPIES + if again { cost::LINEAR_COPIES } else { 0 };
                let balanced = if chosen.len() > 1 && recipe.share_input { weights } else { 0 };
                let exact = recipe.finalists > 1 || recipe.search != Search::Ranked;
                let gram = if exact && group > k { 4 * k * k } else { 0 };
                let values = if again { weights } else { 0 };
                moments.push(("search of the input", copies * 4 * sample * k + balanced + gram + values));
            }
            if recipe.weight_bits < 16 {
                let cross = recipe.activation_bits < 16;
                // Gram matrix (its factor takes its place), and its difference from the cross moments; where that is
                // multiplied by the inverse first, a copy of it in the order of rounding.
                let solved = cross && recipe.correct && group > k;
                let squares = 1 + u64::from(cross) + u64::from(solved);
                let pieces = cost::PIECE_BUFFERS * weights.min(PIECE_BYTES as u64);
                moments.push(("search of the weights", weights + squares * 4 * k * k + pieces));
            }
        }
        if self.recipe.low_rank().is_some() {
            // Gram matrix and cross moments, and for the correction their difference and the factor.
            let squares = if self.recipe.activation_bits < 16 { 4 } else { 1 };
            let largest = chosen.iter().copied().max().unwrap_or(0);
            moments.push(("low-rank parts", 3 * 4 * largest * k + squares * 4 * k * k + packing));
        }
        terms.extend(moments.into_iter().max_by_key(|t| t.1));
    }

    /// What every moment has: the program, and the tokenizer that stays from reading the text.
    fn process(&self) -> u64 {
        let tokenizer = self.model.checkpoint.dir().join("tokenizer.json");
        cost::PROCESS + cost::TOKENIZER * std::fs::metadata(tokenizer).map_or(0, |m| m.len())
    }

    fn work(&self, embedding: bool) -> Work {
        let a = self.architecture();
        let mut work = Work::default();
        if !self.recipe.needs_calibration() {
            let rounded = a.blocks.iter().flat_map(|b| &b.taps).flat_map(|t| &t.sites);
            let values = rounded.map(|s| (s.outputs * s.inputs) as f64).sum::<f64>();
            work.roundings = values * cost::CODES_TRIED;
            return work;
        }
        for tap in a.blocks.iter().flat_map(|b| &b.taps) {
            let forward = tap.sites.iter().map(|s| s.outputs * s.inputs).sum::<usize>() as f64;
            work.multiply_adds += forward * self.tokens() as f64;
            for transform in self.recipe.transforms.iter().filter(|t| t.looks_at_inputs()) {
                let tried = transform.trials() as f64;
                work.multiply_adds += forward * (self.tokens() as f64 + tried * SAMPLE as f64);
                work.roundings += forward * tried;
            }
            self.search_work(&tap.sites, &mut work);
        }
        if self.recipe.allocates() {
            self.allocation_work(&mut work);
        }
        for block in a.blocks.iter().filter(|b| self.recipe.quantizes_attention(b.attention_name())) {
            self.attention_work(block, &mut work);
        }
        if self.recipe.rounding == Rounding::Learned {
            a.blocks.iter().for_each(|block| self.learning_work(block, &mut work));
        }
        for layer in &a.head.layers {
            self.search_work(std::slice::from_ref(&layer.site), &mut work);
        }
        if embedding && self.recipe.method == Method::Fpq {
            let formats = Element::searched(self.recipe.embedding_bits).len() as f64;
            work.roundings += formats
                * self.recipe.weight_grid.steps as f64
                * (a.embedding().outputs * a.embedding().inputs) as f64;
        }
        work
    }

    /// The steps of learned rounding, and the passes around them.
    fn learning_work(&self, block: &BlockSpec, work: &mut Work) {
        let recipe = self.recipe;
        let weights: f64 =
            block.taps.iter().flat_map(|t| &t.sites).map(|s| (s.outputs * s.inputs) as f64).sum();
        let tokens = self.tokens() as f64;
        let steps = recipe.rounding_steps as f64;
        // A step takes whole packs.
        let pack = self.options.pack.max(1) as f64;
        let seen = steps * (tokens.min(recipe.rounding_tokens as f64) / pack).ceil() * pack;
        let judged = tokens.min(JUDGED_TOKENS as f64) * (1.0 + steps.min(JUDGED as f64));
        // The first pass is counted as every block's; another measures in the end, another gives what is wanted.
        let around = if recipe.calibration == Calibration::Sequential { 2.0 } else { 1.0 } * tokens;
        // Two products of attention forwards and five more back, over half of the rows before if it is causal.
        let width = (block.attention.heads * block.attention.head_dim) as f64;
        let row = width * pack * if block.attention.causal { 0.5 } else { 1.0 };
        work.multiply_adds += 3.0 * weights * seen + (judged + around) * weights;
        work.multiply_adds += (7.0 * seen + 2.0 * (judged + around)) * row;
        work.roundings += weights * (cost::STEP_ROUNDINGS * steps + 2.0 * (seen + judged) / pack);
    }

    /// Every layer quantized to every width for a part of the inputs, and as many passes through its block as that has
    /// taps and there are widths.
    fn allocation_work(&self, work: &mut Work) {
        let rows = self.options.rows.min(allocation::ROWS);
        let some = Shape { options: PlanOptions { rows, ..self.options }, ..*self };
        let widths = allocation::widths(self.recipe).len();
        for block in &self.architecture().blocks {
            let layers = block.taps.iter().flat_map(|t| &t.sites).map(|s| s.outputs * s.inputs);
            work.multiply_adds += (layers.sum::<usize>() * rows * (block.taps.len() * widths + 1)) as f64;
            for tap in &block.taps {
                (0..widths).for_each(|_| some.search_work(&tap.sites, work));
            }
        }
    }

    /// The search of the operands; probabilities take far less.
    fn attention_work(&self, block: &BlockSpec, work: &mut Work) {
        let recipe = self.recipe;
        if recipe.method != Method::Fpq || recipe.kv_scheme.is_some() {
            return;
        }
        let formats = Element::searched(recipe.attention_bits).len() as f64;
        let candidates = match recipe.shifts {
            ShiftRule::Error => steps_per_channel(&recipe.activation_grid),
            _ => recipe.activation_grid.steps,
        };
        work.roundings +=
            formats * candidates as f64 * self.sample() as f64 * block.operand_channels() as f64;
    }

    /// Each line is one of the steps of `methods::fpq`, or of `methods::gptq`.
    fn search_work(&self, sites: &[Site], work: &mut Work) {
        let recipe = self.recipe;
        let rows: Vec<f64> = sites.iter().filter(|s| !recipe.keeps(s)).map(|s| s.outputs as f64).collect();
        let k = sites[0].inputs as f64;
        let (tokens, sample) = (self.tokens() as f64, self.sample() as f64);
        let all: f64 = rows.iter().sum();
        if rows.is_empty() {
            return;
        }
        work.multiply_adds += 2.0 * sample * all * k;
        if let Some(rank) = recipe.low_rank() {
            let moments = if recipe.activation_bits < 16 { 1.5 } else { 0.5 };
            let steps = low_rank::STEPS as f64 * rank as f64;
            work.multiply_adds += moments * tokens * k * k + steps * (2.0 * all * k + k * k);
        }
        if recipe.method != Method::Fpq {
            work.roundings += all * k;
            if recipe.method == Method::Scheme && recipe.uses_factor() {
                let quantized = recipe.activation_bits < 16;
                let moments = if quantized { 1.5 } else { 0.5 };
                let corrected = if quantized && recipe.correct { all + all.min(k) } else { 0.0 };
                work.multiply_adds +=
                    moments * tokens * k * k + (k * k * k / 6.0 + (corrected + all / 2.0) * k * k);
                work.roundings += cost::CODES_TRIED * all * k;
            }
            return;
        }
        let (groups, n) =
            if recipe.share_input { (1.0, all) } else { (rows.len() as f64, all / rows.len() as f64) };
        let times = groups * recipe.rounds as f64;
        let scored = |candidates: f64| recipe.exactness().count(candidates as usize) as f64;
        if recipe.activation_bits < 16 {
            let formats = Element::searched(recipe.activation_bits).len() as f64;
            let candidates = match recipe.shifts {
                ShiftRule::Error => steps_per_channel(&recipe.activation_grid) as f64,
                _ => recipe.activation_grid.steps as f64,
            };
            if recipe.share_input && rows.len() > 1 {
                work.multiply_adds += times * sample * n * k;
            }
            if recipe.first == First::Weight || recipe.rounds > 1 {
                work.multiply_adds += times * 3.0 * sample * n * k;
            }
            let exact = scored(formats * recipe.activation_grid.steps as f64);
            if exact > 1.0 {
                let gram = if n > k { n * k * k / 2.0 } else { 0.0 };
                work.multiply_adds += times * (exact * sample * k * n.min(k) + gram);
            }
            work.roundings += times * formats * candidates * sample * k;
        }
        if recipe.weight_bits < 16 {
            let formats = Element::searched(recipe.weight_bits).len() as f64;
            let candidates = recipe.weight_grid.steps as f64;
            let moments = if recipe.activation_bits < 16 { 1.5 } else { 0.5 };
            work.multiply_adds += times * moments * tokens * k * k;
            work.roundings += times * formats * candidates * n * k;
            if recipe.correct || recipe.feedback {
                work.multiply_adds += times * (k * k * k / 6.0 + (n + n.min(k) + n / 2.0) * k * k);
            } else {
                work.multiply_adds += times * (1.0 + formats * scored(candidates)) * n * k * k;
                work.roundings += times * formats * scored(candidates) * n * k;
            }
        }
    }
}
