//! Fixed schemes: NVFP4, MXFP4, FP8, integers in groups. Elements and granularity are given; the scales are chosen, those
//! of blocks by the rules of `halfbyte_formats::block`.
//!
//! The layers of a tap share NVFP4's tensor scales, that of the weights and that of the input: engines fuse q/k/v and
//! gate/up into one product.

use super::{SiteResult, SiteWeight, gptq, measured};
use crate::QuantizeError;
use crate::recipe::{Recipe, Scales};
use crate::search::clipped_scales;
use crate::tap::{Sample, TapInputs};
use halfbyte_checkpoint::{LayerScheme, RawTensor, StoredLayer};
use halfbyte_formats::block::tensor_scale;
use halfbyte_formats::{
    BlockQuantizer, Granularity, InputQuantizer, QuantizedMatrix, ScaleFormat, Scheme, kernel,
};
use rayon::prelude::*;

/// Quantizes the layers of one tap.
pub(super) fn quantize_tap(
    inputs: &TapInputs,
    channel_max: &[f32],
    sample: &Sample,
    sites: Vec<SiteWeight>,
    recipe: &Recipe,
) -> Result<Vec<SiteResult>, QuantizeError> {
    // The layers here take the scheme of least error together, by rounding to nearest.
    let layered = !recipe.alternatives.is_empty();
    // With a factor the weights of the errors are its own, but for the choice of a scheme.
    let weigh = recipe.scales == Scales::Weighted && (layered || !recipe.uses_factor());
    let energy = if weigh { channel_energy(inputs)? } else { Vec::new() };
    let largest = sites.iter().map(|s| kernel::max_abs(&s.weight.data)).fold(0.0f32, f32::max);
    let own = sites.iter().map(|s| recipe.layer_scheme(&s.site.name).unwrap_or(NONE)).collect();
    let choices: Vec<Vec<LayerScheme>> = match layered {
        false => vec![own],
        true => recipe.choices().into_iter().map(|choice| vec![choice; sites.len()]).collect(),
    };
    let mut best: Option<(f64, Vec<LayerScheme>, Vec<Option<QuantizedMatrix>>)> = None;
    for layers in choices {
        let (mut total, mut coded) = (0.0, Vec::with_capacity(sites.len()));
        for (SiteWeight { site, weight }, layer) in sites.iter().zip(&layers) {
            // With a factor codes come later, for the scheme that is chosen.
            let Some(scheme) = layer.weight.filter(|_| !recipe.uses_factor() || layered) else {
                coded.push(None);
                continue;
            };
            let matrix = quantize(&site.name, &weight.data, weight.cols, scheme, largest, recipe, &energy)?;
            if layered {
                total += weighted_error(&matrix, &weight.data, &energy);
            }
            coded.push(Some(matrix));
        }
        if best.as_ref().is_none_or(|b| total < b.0) {
            best = Some((total, layers, coded));
        }
    }
    let Some((_, layers, mut coded)) = best else { return Ok(Vec::new()) };
    if recipe.uses_factor() {
        coded = layers.iter().map(|_| None).collect();
        // Those of one scheme together, wherever they stand.
        for (first, layer) in layers.iter().enumerate() {
            let Some(scheme) = layer.weight.filter(|_| !layers[..first].contains(layer)) else { continue };
            let alike: Vec<usize> = (first..layers.len()).filter(|&i| layers[i] == *layer).collect();
            let members: Vec<&SiteWeight> = alike.iter().map(|&i| &sites[i]).collect();
            let input = input_quantizer(channel_max, layer.input)?;
            let found = gptq::quantize(inputs, input.as_ref(), &members, scheme, recipe)?;
            alike.into_iter().zip(found).for_each(|(i, matrix)| coded[i] = Some(matrix));
        }
    }
    let mut stored = Vec::with_capacity(sites.len());
    for (layer, weight) in layers.iter().zip(coded) {
        let input = input_quantizer(channel_max, layer.input)?;
        stored.push(StoredLayer { weight, input, low_rank: None });
    }
    Ok(measured(sample, channel_max, sites, stored, recipe.products.precision()))
}

/// A layer that is left alone.
const NONE: LayerScheme = LayerScheme { weight: None, input: None, low_rank: None };

/// `Σ w (Q(x) − x)² / Σ w x²` with the weights `energy` of the columns; empty for all alike.
fn weighted_error(matrix: &QuantizedMatrix, weight: &[f32], energy: &[f32]) -> f64 {
    let (mut error, mut signal) = (0.0, 0.0);
    let mut row = vec![0.0; matrix.cols];
    for (r, full) in weight.chunks_exact(matrix.cols.max(1)).enumerate() {
        matrix.dequantize_row(r, &mut row);
        for (j, (&q, &x)) in row.iter().zip(full).enumerate() {
            let w = energy.get(j).copied().map_or(1.0, f64::from);
            error += w * f64::from(q - x).powi(2);
            signal += w * f64::from(x).powi(2);
        }
    }
    if signal > 0.0 { error / signal } else { 0.0 }
}

fn input_quantizer(
    channel_max: &[f32],
    scheme: Option<Scheme>,
) -> Result<Option<InputQuantizer>, QuantizeError> {
    let largest = channel_max.iter().copied().fold(0.0f32, f32::max);
    scheme.map(|scheme| fixed_quantizer(scheme, largest, channel_max.len())).transpose()
}

/// A quantizer of this scheme for rows of `channels` values, of which the largest magnitude is `largest`.
pub(super) fn fixed_quantizer(
    scheme: Scheme,
    largest: f32,
    channels: usize,
) -> Result<InputQuantizer, QuantizeError> {
    Ok(match scheme.dynamic {
        false => InputQuantizer::new(scheme.element, scheme.element.scale_from_max(largest), Vec::new()),
        true => {
            let scale = if scheme.scale == ScaleFormat::E4M3 { tensor_scale(largest) } else { 1.0 };
            InputQuantizer::dynamic(scheme, scale, channels)?
        }
    })
}

/// Sum of the weighted squares of every channel: the diagonal of the Gram matrix.
fn channel_energy(inputs: &TapInputs) -> Result<Vec<f32>, QuantizeError> {
    let mut energy = vec![0.0f64; inputs.channels()];
    for i in 0..inputs.x.windows() {
        let window = inputs.x.get(i)?;
        for (r, row) in window.data.chunks_exact(window.cols).enumerate() {
            let weight = inputs.weights.as_ref().map_or(1.0, |w| f64::from(w[i][r]));
            energy.iter_mut().zip(row).for_each(|(e, &x)| *e += weight * f64::from(x) * f64::from(x));
        }
    }
    Ok(of_mean_one(&energy))
}

/// Weights of errors, of which only ratios count; a mean of one keeps them far from the ends of f32.
pub(super) fn of_mean_one(energy: &[f64]) -> Vec<f32> {
    let mean = (energy.iter().sum::<f64>() / energy.len().max(1) as f64).max(f64::MIN_POSITIVE);
    energy.iter().map(|e| (e / mean) as f32).collect()
}

/// Quantizes a weight of `cols` columns by rounding to nearest; `largest` is the largest magnitude of all layers that share
/// the input.
fn quantize(
    name: &str,
    weight: &[f32],
    cols: usize,
    scheme: Scheme,
    largest: f32,
    recipe: &Recipe,
    energy: &[f32],
) -> Result<QuantizedMatrix, QuantizeError> {
    let rows = weight.len() / cols.max(1);
    if scheme.scale == ScaleFormat::F32 {
        let scales = f32_scales(name, weight, cols, scheme, recipe, energy)?;
        return Ok(QuantizedMatrix::quantize_with_scales(name, weight, rows, cols, scheme, scales, 1.0)?);
    }
    scheme.check_shape(name, rows, cols)?;
    let blocks = Blocks::new(scheme, largest, recipe.scales)?;
    let coded = blocks.encode(Values::F32(weight), cols, energy);
    let scales = values_of(scheme, &coded.scales);
    Ok(QuantizedMatrix::from_parts(name, scheme, rows, cols, coded.codes, scales, blocks.tensor_scale)?)
}

/// The scales that the same arguments give a weight that is not rounded to nearest, and the tensor scale.
pub(super) fn scales(
    name: &str,
    weight: &[f32],
    cols: usize,
    scheme: Scheme,
    largest: f32,
    recipe: &Recipe,
    energy: &[f32],
) -> Result<(Vec<f32>, f32), QuantizeError> {
    if scheme.scale == ScaleFormat::F32 {
        return Ok((f32_scales(name, weight, cols, scheme, recipe, energy)?, 1.0));
    }
    let blocks = Blocks::new(scheme, largest, recipe.scales)?;
    let coded = blocks.encode(Values::F32(weight), cols, energy);
    Ok((values_of(scheme, &coded.scales), blocks.tensor_scale))
}

/// The f32 scales of a weight of `cols` columns, by the recipe's rule.
pub(crate) fn f32_scales(
    name: &str,
    weight: &[f32],
    cols: usize,
    scheme: Scheme,
    recipe: &Recipe,
    energy: &[f32],
) -> Result<Vec<f32>, QuantizeError> {
    let (absmax, _) = scheme.max_scales(name, weight, weight.len() / cols.max(1), cols)?;
    Ok(match recipe.scales {
        Scales::Sweep | Scales::Weighted => clipped_scales(weight, cols, scheme, &recipe.weight_grid, energy),
        Scales::Auto | Scales::Absmax | Scales::RoundUp | Scales::FourOverSix => absmax,
    })
}

/// The numbers that scale bytes stand for.
fn values_of(scheme: Scheme, bytes: &[u8]) -> Vec<f32> {
    bytes.iter().map(|&b| scheme.scale.from_byte(b).unwrap_or(0.0)).collect()
}

/// Numbers as a checkpoint stores them.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [half::f16]),
    BF16(&'a [half::bf16]),
}

impl<'a> From<&'a RawTensor> for Values<'a> {
    fn from(tensor: &'a RawTensor) -> Self {
        match tensor {
            RawTensor::F32(v) => Self::F32(v),
            RawTensor::F16(v) => Self::F16(v),
            RawTensor::BF16(v) => Self::BF16(v),
        }
    }
}

impl Values<'_> {
    fn len(self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
        }
    }

    /// The largest magnitude.
    pub(crate) fn max_abs(self) -> f32 {
        let largest = |start: usize| {
            let mut piece = [0.0; PIECE];
            let n = PIECE.min(self.len() - start);
            self.read(start, &mut piece[..n]);
            kernel::max_abs(&piece[..n])
        };
        (0..self.len().div_ceil(PIECE)).into_par_iter().map(|i| largest(i * PIECE)).reduce(|| 0.0, f32::max)
    }

    /// Writes the values from number `from` on.
    pub(crate) fn read(self, from: usize, out: &mut [f32]) {
        let n = out.len();
        match self {
            Self::F32(v) => out.copy_from_slice(&v[from..from + n]),
            Self::F16(v) => out.iter_mut().zip(&v[from..from + n]).for_each(|(o, v)| *o = v.to_f32()),
            Self::BF16(v) => out
                .iter_mut()
                .zip(&v[from..from + n])
                .for_each(|(o, v)| *o = f32::from_bits(u32::from(v.to_bits()) << 16)),
        }
    }
}

/// Values converted at a time.
const PIECE: usize = 4096;

/// Packed codes and scale bytes of a weight.
pub(crate) struct Coded {
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<u8>,
    /// Sum of the values' squared errors.
    pub(crate) error: f64,
    /// Sum of their squares.
    pub(crate) signal: f64,
}

/// A block format with its tensor scale.
pub(crate) struct Blocks {
    quantizer: BlockQuantizer,
    pub(crate) tensor_scale: f32,
}

impl Blocks {
    pub(crate) fn new(scheme: Scheme, largest: f32, scales: Scales) -> Result<Self, QuantizeError> {
        let tensor_scale = if scheme.scale == ScaleFormat::E4M3 { tensor_scale(largest) } else { 1.0 };
        Ok(Self {
            quantizer: BlockQuantizer::new(scheme, tensor_scale, scales.rule(scheme.scale))?,
            tensor_scale,
        })
    }

    /// Codes of rows of `cols` values, which blocks divide. The same on any number of threads.
    pub(crate) fn encode(&self, values: Values, cols: usize, energy: &[f32]) -> Coded {
        let n = self.quantizer.size();
        let mut codes = vec![0; values.len() / 2];
        let mut scales = vec![0; values.len() / n];
        // Whole rows, enough of them for a task.
        let piece = cols * (8 * PIECE / cols.max(1)).max(1);
        let parts = codes.par_chunks_mut(piece / 2).zip(scales.par_chunks_mut(piece / n)).enumerate();
        let sums: Vec<(f64, f64)> = parts
            .map_init(Vec::new, |x, (i, (codes, scales))| {
                x.resize(2 * codes.len(), 0.0);
                values.read(i * piece, x);
                let error = self.quantizer.quantize(x, cols, energy, codes, scales);
                (error, halfbyte_tensor::sum_of_squares(x))
            })
            .collect();
        let error = sums.iter().map(|s| s.0).sum();
        Coded { codes, scales, error, signal: sums.iter().map(|s| s.1).sum() }
    }
}

/// Whether a scheme's scales are bytes of blocks.
pub(crate) fn is_block(scheme: Scheme) -> bool {
    scheme.scale != ScaleFormat::F32 && matches!(scheme.granularity, Granularity::Group(_))
}
