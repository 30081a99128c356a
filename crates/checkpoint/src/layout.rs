//! Whose tensors a quantized folder holds: ours, or those of a tool whose files we read and write.

use crate::file::TensorInfo;
use crate::{Checkpoint, CheckpointError, Dtype, LayerScheme, Manifest, StoredLayer, TensorSpec};
use crate::{compressed_tensors, modelopt};
use halfbyte_formats::{Granularity, Scheme};
use serde_json::Value;

/// How the quantized layers of a folder are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Layout {
    /// Our own.
    #[default]
    Halfbyte,
    /// compressed-tensors, which llm-compressor writes and vLLM serves: `nvfp4-pack-quantized`, `mxfp4-pack-quantized`,
    /// `float-quantized`, `pack-quantized`, `int-quantized`.
    CompressedTensors,
    /// NVIDIA's ModelOpt: NVFP4.
    ModelOpt,
}

impl Layout {
    /// All but our own.
    pub(crate) const FOREIGN: [Self; 2] = [Self::CompressedTensors, Self::ModelOpt];

    /// What `quantization_config.quant_method` says; `None` for our own, which its manifest writes.
    pub fn quant_method(self) -> Option<&'static str> {
        match self {
            Self::Halfbyte => None,
            Self::CompressedTensors => Some("compressed-tensors"),
            Self::ModelOpt => Some("modelopt"),
        }
    }

    /// The manifest that a foreign `quantization_config` amounts to.
    pub(crate) fn manifest(
        self,
        checkpoint: &Checkpoint,
        found: &Value,
    ) -> Result<Manifest, CheckpointError> {
        let layers = match self {
            Self::Halfbyte => Ok(Default::default()),
            Self::CompressedTensors => compressed_tensors::layers(checkpoint, found),
            Self::ModelOpt => modelopt::layers(checkpoint, found),
        };
        let layers = layers.map_err(|message| CheckpointError::Config {
            file: checkpoint.dir().join("config.json"),
            message: format!("quantization_config: {message}"),
        })?;
        let format = found.get("format").or(found.get("quant_algo")).and_then(Value::as_str).unwrap_or("");
        let name = format!("{} {format}", self.quant_method().unwrap_or_default());
        let recipe = serde_json::json!({ "name": name.trim_end() });
        let mut manifest = Manifest::new(recipe, layers);
        manifest.layout = self;
        Ok(manifest)
    }

    /// The tensors of layer `name`, a `[rows, cols]` weight of this scheme.
    ///
    /// # Errors
    /// A message that says what this layout cannot hold.
    pub fn tensors(
        self,
        scheme: &LayerScheme,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<TensorSpec>, String> {
        match self {
            Self::Halfbyte => Ok(scheme.tensors(name, rows, cols)),
            Self::CompressedTensors => compressed_tensors::tensors(scheme, name, rows, cols),
            Self::ModelOpt => modelopt::tensors(scheme, name, rows, cols),
        }
    }

    /// The bytes of those tensors, in the same order.
    ///
    /// # Errors
    /// As [`tensors`](Self::tensors).
    pub fn store(self, stored: &StoredLayer, name: &str) -> Result<Vec<(TensorSpec, Vec<u8>)>, String> {
        match self {
            Self::Halfbyte => Ok(stored.tensors(name)),
            Self::CompressedTensors => compressed_tensors::store(stored, name),
            Self::ModelOpt => modelopt::store(stored, name),
        }
    }

    pub(crate) fn check(
        self,
        layer: &LayerScheme,
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<(), CheckpointError> {
        layer.check_schemes(name, rows, cols).map_err(|message| CheckpointError::Config {
            file: checkpoint.dir().join("config.json"),
            message: format!("quantization_config, layer {name}: {message}"),
        })?;
        match self {
            Self::Halfbyte => layer.check(checkpoint, name, rows, cols),
            Self::CompressedTensors => compressed_tensors::check(layer, checkpoint, name, rows, cols),
            Self::ModelOpt => modelopt::check(layer, checkpoint, name, rows, cols),
        }
    }

    pub(crate) fn read(
        self,
        layer: &LayerScheme,
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<StoredLayer, CheckpointError> {
        match self {
            Self::Halfbyte => layer.read(checkpoint, name, rows, cols),
            Self::CompressedTensors => compressed_tensors::read(layer, checkpoint, name, rows, cols),
            Self::ModelOpt => modelopt::read(layer, checkpoint, name, rows, cols),
        }
    }
}

/// Shape of a weight's scales.
pub(crate) fn scale_shape(scheme: &Scheme, rows: usize, cols: usize) -> Vec<usize> {
    match scheme.granularity {
        Granularity::Group(n) => vec![rows, cols / n.max(1)],
        _ => vec![scheme.scale_count(rows, cols)],
    }
}

/// Checks a tensor's type.
pub(crate) fn with_dtype<'a>(
    info: &'a TensorInfo,
    allowed: &[Dtype],
) -> Result<&'a TensorInfo, CheckpointError> {
    if allowed.contains(&info.dtype) {
        return Ok(info);
    }
    let names: Vec<&str> = allowed.iter().map(|d| d.name()).collect();
    let message = format!("is stored as {}, not as {}", info.dtype, names.join(" or "));
    Err(CheckpointError::Damaged { tensor: info.name.clone(), message })
}

/// Block scales from their bytes. A scale of zero, which other tools write for blocks of zeros, becomes one that we can
/// hold, and the block's codes zero.
pub(crate) fn block_scales(
    scheme: Scheme,
    bytes: &[u8],
    codes: &mut [u8],
    tensor: &str,
) -> Result<Vec<f32>, CheckpointError> {
    let Granularity::Group(size) = scheme.granularity else { return Ok(Vec::new()) };
    let block = size * scheme.element.bits() as usize / 8;
    let mut scales = Vec::with_capacity(bytes.len());
    for (i, &byte) in bytes.iter().enumerate() {
        scales.push(match scheme.scale.from_byte(byte) {
            Some(scale) => scale,
            // The sign bit of E4M3 is clear in it as well.
            None if byte == 0 => {
                codes[i * block..][..block].fill(0);
                1.0
            }
            None => {
                let message = format!("the byte {byte:#04x} of block {i} is no scale");
                return Err(CheckpointError::Damaged { tensor: tensor.into(), message });
            }
        });
    }
    Ok(scales)
}
