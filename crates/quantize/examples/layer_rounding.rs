//! Quantizes one layer from a safetensors file of `x` [tokens, in] and `w` [out, in] to a fixed scheme, and writes the
//! values `q` [out, in], the `scales` of their groups [out, groups] and the inputs `seen` as the layer gets them:
//! `tests/python/gptq_compare.py` holds it against a plain GPTQ.
//!
//! `layer_rounding IN.safetensors OUT.safetensors RECIPE`, the recipe being a name or a TOML file

use halfbyte_checkpoint::{Dtype, SafetensorsFile, SafetensorsWriter, TensorSpec};
use halfbyte_formats::Granularity;
use halfbyte_model::Site;
use halfbyte_quantize::methods::{SiteWeight, quantize_tap};
use halfbyte_quantize::{Place, Store, TapInputs, load_recipe};
use halfbyte_tensor::Matrix;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, recipe] = &args[..] else {
        return Err("usage: layer_rounding IN.safetensors OUT.safetensors RECIPE".into());
    };
    let recipe = load_recipe(recipe)?;
    let file = SafetensorsFile::open(Path::new(from))?;
    let matrix = |name: &str| -> Result<Matrix, Box<dyn Error>> {
        let shape = file.find(name)?.shape.clone();
        Ok(Matrix::new(shape[0], shape[1], file.read_f32(name, &shape)?))
    };
    let (x, weight) = (matrix("x")?, matrix("w")?);
    let (rows, cols, mut seen) = (weight.rows, weight.cols, x.clone());
    let mut store = Store::new(&Place::Memory, cols, &[x.rows])?;
    store.put(0, x)?;
    let inputs = TapInputs { x: store, weights: None };
    let site = Site::new("layer", rows, cols);
    let result = quantize_tap(&inputs, vec![SiteWeight { site, weight }], &recipe)?.remove(0);

    if let Some(input) = &result.input {
        input.apply(&mut seen.data);
    }
    let matrix = result.weight.ok_or("the recipe leaves weights alone")?;
    let scales: Vec<f32> = match matrix.scheme.granularity {
        Granularity::Tensor => vec![matrix.scales[0]; rows],
        _ => matrix.scales.clone(),
    };
    let scales: Vec<f32> = scales.iter().map(|s| s * matrix.tensor_scale).collect();
    let q = matrix.dequantize();
    let tensors = [
        ("q", [rows, cols], &q),
        ("scales", [rows, scales.len() / rows.max(1)], &scales),
        ("seen", [seen.rows, cols], &seen.data),
    ];
    let specs = tensors.map(|(name, shape, _)| TensorSpec::new(name, Dtype::F32, shape));
    let mut writer = SafetensorsWriter::create(Path::new(to), &specs, &Default::default())?;
    for (name, _, data) in tensors {
        writer.write(name, bytemuck::cast_slice(data))?;
    }
    writer.finish()?;
    println!("{}", serde_json::json!({ "error": result.error, "signal": result.signal }));
    Ok(())
}
