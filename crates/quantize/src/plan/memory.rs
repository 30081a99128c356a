//! Peak memory: a model of the largest buffers of every moment.

use super::Shape;
use crate::choice::stored_bits;
use crate::methods::block_scale::is_block;
use crate::methods::{COMPARED_ROWS, PIECE_BYTES};
use crate::recipe::{Calibration, First, Method, Rounding, Search};
use crate::search::HISTOGRAM_BYTES;
use crate::store::AT_ONCE;
use crate::transforms::{SAMPLE, rewritten};
use halfbyte_checkpoint::{CheckpointError, LayerScheme};
use halfbyte_formats::Granularity;
use halfbyte_model::{BlockSpec, Site, StemSpec, Tap};

/// Program and threads.
const PROCESS: u64 = 16 << 20;
/// Of everything else one part in so many is lost between allocations that do not fit into each other's room.
const ALLOCATOR_SHARE: u64 = 8;
/// Bytes that the tokenizer takes for a byte of tokenizer.json.
const TOKENIZER: u64 = 24;
/// Temporaries of a search or correction over a piece of a group's rows.
const PIECE_BUFFERS: u64 = 4;
/// Copies of the sample `[tokens, inputs]` in the search of an input: the sample, its transpose, the error of a
/// candidate.
const SAMPLE_COPIES: u64 = 3;
/// And, once there are quantized weights, the linear term and its transpose.
const LINEAR_COPIES: u64 = 2;
/// Outputs of the sample `[tokens, outputs]` and its inputs `[tokens, inputs]` that are compared.
const COMPARED_OUTPUTS: u64 = 2;
const COMPARED_INPUTS: u64 = 2;
/// Copies of one window `[tokens, widest]` in a forward pass: input, quantized input, outputs.
const FORWARD_COPIES: u64 = 4;
/// Copies of the embedding table in f32 while it is quantized: values, decoded codes.
const EMBEDDING_COPIES: u64 = 2;
/// Copies of a layer in f32 where its scales are no blocks': values and their decoded codes.
const WEIGHT_COPIES: u64 = 2;
/// Copies of a tap's weights, and of the sample's inputs and outputs, while a transform tries a change.
const TRIED_WEIGHTS: u64 = 2;
const TRIED_ACTIVATIONS: u64 = 3;
/// Bytes of a weight while its rounding is learned: its position, its gradient; its codes twice are beside them.
const LEARNED_BYTES: u64 = 8;
/// Of a run without calibration: what is copied goes in pieces, and blocks are made of pieces in f32.
const PIECES: u64 = 3 << 20;
/// Windows of activations in memory when they are kept in files: those that are worked on, and what comes of them.
const SPILL_WINDOWS: u64 = 2 * AT_ONCE;

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

impl Shape<'_> {
    /// The inputs themselves, which stay until the end: ids, or the pixels of which a patch becomes a row.
    fn input_bytes(&self) -> u64 {
        let row = match &self.architecture().stem {
            StemSpec::Text(_) => 1,
            StemSpec::Image(image) => image.channels * image.patch[0] * image.patch[1],
        };
        4 * self.tokens() * row as u64
    }

    /// Memory for `channels` activations of every token.
    fn in_memory(&self, channels: u64) -> u64 {
        let tokens = if self.spills() { SPILL_WINDOWS * self.options.pack as u64 } else { self.tokens() };
        4 * tokens * channels
    }

    /// Most bits of a code.
    fn weight_bits(&self) -> u32 {
        let recipe = self.recipe;
        let named = recipe.layer_bits.values().copied().chain([recipe.weight_bits]).filter(|&b| b < 16);
        let schemes = recipe.weight_schemes().map(|s| s.element.bits());
        if recipe.allocates() { 8 } else { named.chain(schemes).max().unwrap_or(8) }
    }

    /// Codes of so many weights, and the scales of their blocks, which are f32 in memory.
    fn coded(&self, elements: u64) -> u64 {
        let group = self.recipe.weight_schemes().filter_map(|s| match s.granularity {
            Granularity::Group(group) => Some(group as u64),
            _ => None,
        });
        elements * u64::from(self.weight_bits()) / 8 + group.min().map_or(0, |group| 4 * elements / group)
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
    pub(super) fn memory(&self, embedding: bool) -> Result<Memory, CheckpointError> {
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
        largest.terms.push(("allocator", largest.peak_bytes() / ALLOCATOR_SHARE));
        Ok(largest)
    }

    /// Without calibration: the stored weights of two taps, and two layers' codes or one's values.
    fn weights_only_memory(&self) -> Result<Memory, CheckpointError> {
        let a = self.architecture();
        let mut largest = Memory { moment: "the start".into(), terms: vec![("process", PROCESS)] };
        let (mut last_stored, mut last_codes) = (0, 0);
        for sites in a.groups() {
            let (mut stored, mut values, mut codes) = (0, 0, 0);
            for site in sites.iter().filter(|s| !self.recipe.keeps(s)) {
                stored += self.stored_weight(site)?;
                let elements = (site.outputs * site.inputs) as u64;
                for scheme in self.recipe.schemes_of(&site.name) {
                    let layer = LayerScheme { weight: Some(scheme), input: None, low_rank: None };
                    codes = codes.max(stored_bits(&[site], &layer) / 8);
                    values = values.max(if is_block(scheme) { 0 } else { elements });
                }
            }
            // A tap is read while the one before it is quantized, in whose memory the next but one is read, and the layer
            // before that is written, one of the same tap or of the last.
            let written = if sites.len() > 1 { last_codes.max(codes) } else { last_codes };
            let terms = vec![
                ("process", PROCESS),
                ("stored weights", last_stored + stored),
                ("weights in f32", WEIGHT_COPIES * 4 * values),
                ("codes", written + codes),
                ("pieces", PIECES),
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
            terms.push(("embedding copies", EMBEDDING_COPIES * 4 * elements));
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
        let mut terms =
            vec![("process", self.process()), ("stored weights", stored), ("codes", self.coded(done))];
        let hidden = self.architecture().hidden;
        let channels = block.carried(tap, hidden) as u64 + sites[0].inputs as u64;
        terms.push(("activations", self.in_memory(channels)));
        // Windows of the tap before, freed one by one, leave holes that are too small for wider ones.
        let before = tap.checked_sub(1).map_or(0, |t| block.taps[t].channels());
        if before < sites[0].inputs {
            terms.push(("freed activations", self.in_memory(before as u64)));
        }
        terms.push(("transformed and kept", self.rewritten_bytes(block)));
        if self.recipe.rounding == Rounding::Learned {
            // All layers once more, the block's input, and its output unless that comes last.
            terms.push(("layers to learn from", self.block_weights(block)?));
            terms.push(("inputs and outputs", self.learned_states()));
        }
        self.search_terms(sites, &mut terms);
        Ok(Memory { moment: format!("block {index}, {}", sites[0].kind()), terms })
    }

    /// What transforms change in a block and no method quantizes, which waits for the codes to be written with them.
    fn rewritten_bytes(&self, block: &BlockSpec) -> u64 {
        let tensors = rewritten(block, self.architecture().hidden, self.recipe);
        tensors.iter().map(|t| 4 * t.elements).sum()
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
        let codes = 2 * self.coded(all);
        let hidden = self.architecture().hidden as u64;
        // A trace has what every tap gets, what its layers give, and the residual stream three times; on the way back
        // the widest of them is there a few times more.
        let taps: u64 = block.taps.iter().map(|t| t.channels() as u64).sum();
        let outputs: u64 = sites().map(|s| s.outputs as u64).sum();
        let widest = sites().map(|s| s.outputs.max(s.inputs) as u64).max().unwrap_or(0);
        let traced = taps + outputs + 3 * hidden + FORWARD_COPIES * widest;
        let terms = vec![
            ("process", self.process()),
            ("stored weights", self.block_weights(block)?),
            ("codes", codes),
            ("transformed and kept", self.rewritten_bytes(block)),
            ("positions and gradients", LEARNED_BYTES * all),
            ("inputs and outputs", self.in_memory(2 * hidden)),
            ("gradient of a window", 4 * self.options.pack as u64 * traced),
        ];
        Ok(Memory { moment: format!("learning of block {index}"), terms })
    }

    /// While the operands of a block's attention are searched, the first tap being done.
    fn attention_memory(&self, index: usize, block: &BlockSpec) -> Result<Memory, CheckpointError> {
        let channels = block.operand_channels() as u64;
        let hidden = self.architecture().hidden;
        let output = block.taps.get(1).map_or(0, |t| t.sites.iter().map(|s| s.outputs * s.inputs).sum());
        let terms = vec![
            ("process", self.process()),
            ("stored weights", self.block_weights(block)?),
            ("activations", self.in_memory(block.carried(0, hidden) as u64 + channels)),
            ("freed activations", self.in_memory(block.taps[0].channels() as u64)),
            ("output projection", 4 * output as u64),
            ("search of operands", SAMPLE_COPIES * 4 * self.sample() * channels),
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
        // While the taps are surveyed, all activations of the packs that are worked on.
        let surveyed = AT_ONCE * 4 * self.options.pack as u64 * channels;
        let tried = TRIED_WEIGHTS * 4 * elements(&block.taps[tap..=tap])
            + TRIED_ACTIVATIONS * 4 * rows * (outputs + sites[0].inputs as u64);
        let terms = vec![
            ("process", self.process()),
            ("weights in f32", 4 * elements(&block.taps)),
            ("activations", self.in_memory(self.architecture().hidden as u64)),
            ("samples", 4 * rows * channels),
            ("tried changes", tried.max(surveyed)),
        ];
        Memory { moment: format!("transforms of block {index}, {}", sites[0].kind()), terms }
    }

    /// What the layers of one tap need while they are quantized.
    fn search_terms(&self, sites: &[Site], terms: &mut Vec<(&'static str, u64)>) {
        let channels = sites[0].inputs;
        let k = channels as u64;
        let outputs: u64 = sites.iter().map(|s| s.outputs as u64).sum();
        let widest = outputs.max(k).min(4 * self.architecture().hidden.max(channels) as u64);
        let forward = AT_ONCE * FORWARD_COPIES * 4 * self.options.pack as u64 * widest;
        let chosen: Vec<u64> =
            sites.iter().filter(|s| !self.recipe.leaves(s)).map(|s| s.outputs as u64).collect();
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
            + COMPARED_INPUTS * 4 * sample * k
            + COMPARED_OUTPUTS * 4 * sample * group.min(COMPARED_ROWS as u64)
            + self.coded(group * k);
        let mut moments = vec![("forward pass", forward), ("compare and pack", packing)];
        let searched = self.recipe.method == Method::Fpq;
        let rounded = self.recipe.method == Method::Scheme && self.recipe.uses_factor();
        if searched || rounded {
            let recipe = self.recipe;
            if searched && sites.iter().any(|s| recipe.bits_of(&s.name).1 < 16) {
                let again = recipe.first == First::Weight || recipe.rounds > 1;
                let copies = SAMPLE_COPIES + if again { LINEAR_COPIES } else { 0 };
                let balanced = if chosen.len() > 1 && recipe.share_input { weights } else { 0 };
                let exact = recipe.finalists > 1 || recipe.search != Search::Ranked;
                let gram = if exact && group > k { 4 * k * k } else { 0 };
                let values = if again { weights } else { 0 };
                moments.push(("search of the input", copies * 4 * sample * k + balanced + gram + values));
            }
            if sites.iter().any(|s| recipe.codes(s)) {
                let cross = recipe.uses_cross_moments();
                // Gram matrix (its factor takes its place), and its difference from the cross moments; where that is
                // multiplied by the inverse first, a copy of it in the order of rounding.
                let solved = cross && recipe.correct && group > k;
                let squares = 1 + u64::from(cross) + u64::from(solved);
                let pieces = PIECE_BUFFERS * weights.min(PIECE_BYTES as u64);
                // Codes and scales, and what the choice of block scales leaves until it is done.
                let codes = if rounded { 2 * self.coded(group * k) } else { 0 };
                moments.push(("search of the weights", weights + squares * 4 * k * k + pieces + codes));
            }
        }
        if self.recipe.low_rank().is_some() {
            // The Gram matrix, and for the correction the cross moments, the difference and the factor.
            let squares = if self.recipe.activation_bits < 16 && self.recipe.correct { 4 } else { 1 };
            let largest = chosen.iter().copied().max().unwrap_or(0);
            moments.push(("low-rank parts", 3 * 4 * largest * k + squares * 4 * k * k + packing));
        }
        terms.extend(moments.into_iter().max_by_key(|t| t.1));
    }

    /// What every moment has: the program, and the tokenizer that stays from reading the text.
    fn process(&self) -> u64 {
        let tokenizer = self.model.checkpoint.dir().join("tokenizer.json");
        PROCESS + TOKENIZER * std::fs::metadata(tokenizer).map_or(0, |m| m.len())
    }
}
