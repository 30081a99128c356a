//! Time: a count of operations, at a speed measured on this machine.

use super::{PlanOptions, Shape};
use crate::allocation;
use crate::methods::learned::{JUDGED, JUDGED_TOKENS};
use crate::methods::low_rank;
use crate::recipe::{Calibration, First, Method, Rounding};
use crate::search::{ShiftRule, steps_per_channel};
use crate::transforms::SAMPLE;
use halfbyte_formats::{Element, kernel};
use halfbyte_model::{BlockSpec, Site};
use halfbyte_tensor::{Matrix, Rows, product};
use std::time::Instant;

/// Roundings of a weight in a run without calibration: reading, codes tried, encoding.
const CODES_TRIED: f64 = 16.0;
/// Rounded numbers for each weight in a step of learning, beside those of its passes: the step itself.
const STEP_ROUNDINGS: f64 = 4.0;
/// Share of the measured speed of a large product that the products of a run reach.
const PRODUCT_EFFICIENCY: f64 = 0.7;

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
        self.multiply_adds / (speed.multiply_adds * PRODUCT_EFFICIENCY) + self.roundings / speed.roundings
    }
}

impl Shape<'_> {
    pub(super) fn work(&self, embedding: bool) -> Work {
        let a = self.architecture();
        let mut work = Work::default();
        if !self.recipe.needs_calibration() {
            let rounded = a.blocks.iter().flat_map(|b| &b.taps).flat_map(|t| &t.sites);
            let values = rounded.map(|s| (s.outputs * s.inputs) as f64).sum::<f64>();
            work.roundings = values * CODES_TRIED;
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
        work.roundings += weights * (STEP_ROUNDINGS * steps + 2.0 * (seen + judged) / pack);
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
            let moments = if recipe.activation_bits < 16 && recipe.correct { 1.5 } else { 0.5 };
            let steps = low_rank::STEPS as f64 * rank as f64;
            work.multiply_adds += moments * tokens * k * k + steps * (2.0 * all * k + k * k);
        }
        if recipe.method != Method::Fpq {
            work.roundings += all * k;
            if recipe.method == Method::Scheme && recipe.uses_factor() {
                let cross = recipe.uses_cross_moments();
                let moments = if cross { 1.5 } else { 0.5 };
                let corrected = if cross { all + all.min(k) } else { 0.0 };
                work.multiply_adds +=
                    moments * tokens * k * k + (k * k * k / 6.0 + (corrected + all / 2.0) * k * k);
                work.roundings += CODES_TRIED * all * k;
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
            let moments = if recipe.uses_cross_moments() { 1.5 } else { 0.5 };
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
