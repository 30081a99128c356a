//! NVIDIA ModelOpt's NVFP4: `weight` U8 `[N, K/2]`, `weight_scale` F8_E4M3 `[N, K/16]`, and the scalars `weight_scale_2`
//! and `input_scale` F32, both multipliers. `quant_algo` is `NVFP4` with quantized inputs, `W4A16_NVFP4` without.

use crate::halfbyte::scale_bytes;
use crate::layout::{block_scales, with_dtype};
use crate::{Checkpoint, CheckpointError, Dtype, LayerScheme, StoredLayer, TensorSpec};
use halfbyte_formats::{InputQuantizer, QuantizedMatrix, Scheme};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const INPUT: Scheme = Scheme { dynamic: true, ..Scheme::NVFP4 };

fn algorithm(scheme: &LayerScheme) -> Result<&'static str, String> {
    match (scheme.weight, scheme.input) {
        (Some(Scheme::NVFP4), Some(INPUT)) => Ok("NVFP4"),
        (Some(Scheme::NVFP4), None) => Ok("W4A16_NVFP4"),
        (weight, input) => {
            let text = |s: Option<Scheme>| s.map_or("16 bits".to_owned(), |s| s.to_string());
            Err(format!(
                "ModelOpt folders hold NVFP4 (e2m1/group16/e4m3) with inputs of 16 bits or NVFP4 as well, not weights stored as {} with inputs of {}",
                text(weight),
                text(input)
            ))
        }
    }
}

/// `quantization_config` of config.json, and the contents of `hf_quant_config.json`.
///
/// # Errors
/// A message that says what ModelOpt cannot hold.
pub fn config(scheme: &LayerScheme, ignore: &[String]) -> Result<(Value, Value), String> {
    let algorithm = algorithm(scheme)?;
    let producer = json!({ "name": "halfbyte", "version": env!("CARGO_PKG_VERSION") });
    let arguments = json!({ "dynamic": false, "num_bits": 4, "type": "float", "group_size": 16 });
    let inline = json!({
        "config_groups": { "group_0": {
            "input_activations": scheme.input.map(|_| arguments.clone()),
            "weights": arguments,
            "targets": ["Linear"],
        } },
        "ignore": ignore,
        "quant_algo": algorithm,
        "group_size": 16,
        "producer": producer,
        "quant_method": "modelopt",
    });
    let file = json!({
        "producer": producer,
        "quantization": {
            "quant_algo": algorithm,
            "kv_cache_quant_algo": null,
            "group_size": 16,
            "exclude_modules": ignore,
        },
    });
    Ok((inline, file))
}

pub(crate) fn tensors(
    scheme: &LayerScheme,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<Vec<TensorSpec>, String> {
    algorithm(scheme)?;
    scheme.check_schemes(name, rows, cols)?;
    let spec =
        |suffix: &str, dtype, shape: &[usize]| TensorSpec::new(format!("{name}.{suffix}"), dtype, shape);
    let mut out = vec![
        spec("weight", Dtype::U8, &[rows, cols / 2]),
        spec("weight_scale", Dtype::F8E4M3, &[rows, cols / 16]),
        spec("weight_scale_2", Dtype::F32, &[]),
    ];
    if scheme.input.is_some() {
        out.push(spec("input_scale", Dtype::F32, &[]));
    }
    Ok(out)
}

pub(crate) fn store(stored: &StoredLayer, name: &str) -> Result<Vec<(TensorSpec, Vec<u8>)>, String> {
    let w = stored.weight.as_ref().ok_or("its weight is not quantized")?;
    let input = stored.input.as_ref().map_or(1.0, InputQuantizer::scale);
    let data = [
        w.codes.clone(),
        scale_bytes(w.scheme.scale, &w.scales),
        w.tensor_scale.to_le_bytes().to_vec(),
        input.to_le_bytes().to_vec(),
    ];
    Ok(tensors(&stored.scheme(), name, w.rows, w.cols)?.into_iter().zip(data).collect())
}

/// The layers of a folder with this `quantization_config`.
pub(crate) fn layers(
    checkpoint: &Checkpoint,
    config: &Value,
) -> Result<BTreeMap<String, LayerScheme>, String> {
    let algorithm = config.get("quant_algo").and_then(Value::as_str).unwrap_or_default();
    let input = match algorithm {
        "NVFP4" => Some(INPUT),
        "W4A16_NVFP4" => None,
        other => return Err(format!("quant_algo {other:?} is not read; NVFP4 and W4A16_NVFP4 are")),
    };
    let scheme = LayerScheme { weight: Some(Scheme::NVFP4), input, low_rank: None };
    let names = checkpoint.names().filter_map(|n| n.strip_suffix(".weight_scale_2"));
    Ok(names.map(|name| (name.to_owned(), scheme)).collect())
}

/// The shape in which a scalar is there: `[]` or `[1]`.
fn scalar(checkpoint: &Checkpoint, tensor: &str) -> Result<Vec<usize>, CheckpointError> {
    let shape = &checkpoint.find(tensor)?.shape;
    Ok(if *shape == [1] { vec![1] } else { vec![] })
}

pub(crate) fn check(
    layer: &LayerScheme,
    checkpoint: &Checkpoint,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<(), CheckpointError> {
    let specs = tensors(layer, name, rows, cols)
        .map_err(|message| CheckpointError::Damaged { tensor: format!("{name}.weight"), message })?;
    for spec in specs {
        let shape = if spec.shape.is_empty() { scalar(checkpoint, &spec.name)? } else { spec.shape };
        with_dtype(checkpoint.require(&spec.name, &shape)?, &[spec.dtype])?;
    }
    Ok(())
}

pub(crate) fn read(
    layer: &LayerScheme,
    checkpoint: &Checkpoint,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<StoredLayer, CheckpointError> {
    let tensor = |suffix: &str| format!("{name}.{suffix}");
    let damaged =
        |suffix: &str, message: String| CheckpointError::Damaged { tensor: tensor(suffix), message };
    let single = |suffix: &str| {
        let name = tensor(suffix);
        Ok::<f32, CheckpointError>(checkpoint.read_f32(&name, &scalar(checkpoint, &name)?)?[0])
    };
    let mut codes = checkpoint.read_bytes(&tensor("weight"))?;
    let bytes = checkpoint.read_bytes(&tensor("weight_scale"))?;
    let scales = block_scales(Scheme::NVFP4, &bytes, &mut codes, &tensor("weight_scale"))?;
    let tensor_scale = single("weight_scale_2")?;
    let weight = QuantizedMatrix::from_parts(name, Scheme::NVFP4, rows, cols, codes, scales, tensor_scale);
    let weight = weight.map_err(|e| damaged("weight_scale_2", e.to_string()))?;
    let scale = if layer.input.is_some() { single("input_scale")? } else { 1.0 };
    let input = layer.input_quantizer(scale, Vec::new(), cols);
    Ok(StoredLayer {
        weight: Some(weight),
        input: input.map_err(|e| damaged("input_scale", e))?,
        low_rank: None,
    })
}
