//! Quantizes one layer from a safetensors file of `x` [tokens, in] and `w` [out, in] and prints what was chosen, in the
//! words of the numpy oracle: `tests/python/oracle_compare.py` runs it.
//!
//! `layer_search --input layer.safetensors --method minmax|fpq_baseline|fpq --bits 4 4 --rounds 3 --search gram`

use halfbyte_checkpoint::SafetensorsFile;
use halfbyte_formats::Element;
use halfbyte_model::Site;
use halfbyte_quantize::methods::{SiteWeight, quantize_tap};
use halfbyte_quantize::{Place, Recipe, Search, Store, TapInputs};
use halfbyte_tensor::Matrix;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let after = |flag: &str| args.iter().position(|a| a == flag).map(|i| &args[i + 1..]).unwrap_or_default();
    let one = |flag: &str, default: &str| after(flag).first().cloned().unwrap_or_else(|| default.into());

    let file = SafetensorsFile::open(Path::new(&one("--input", "layer.safetensors")))?;
    let matrix = |name: &str| -> Result<Matrix, Box<dyn Error>> {
        let shape = file.find(name)?.shape.clone();
        Ok(Matrix::new(shape[0], shape[1], file.read_f32(name, &shape)?))
    };
    let (x, weight) = (matrix("x")?, matrix("w")?);

    let mut recipe = Recipe::named(match one("--method", "fpq").as_str() {
        "minmax" => "minmax-fp-w4a4",
        "fpq_baseline" => "fpq-baseline-w4a4",
        "fpq" => "fpq-published-w4a4",
        other => return Err(format!("unknown method {other}").into()),
    })?;
    let bits: Vec<u32> = after("--bits").iter().take(2).map_while(|b| b.parse().ok()).collect();
    if let [w, a] = bits[..] {
        (recipe.weight_bits, recipe.activation_bits) = (w, a);
    }
    recipe.rounds = one("--rounds", "3").parse()?;
    recipe.sample_tokens = x.rows;
    recipe.search = match one("--search", "gram").as_str() {
        "direct" => Search::Direct,
        "gram" => Search::Gram,
        "ranked" => Search::Ranked,
        other => return Err(format!("unknown search {other}").into()),
    };
    recipe.check()?;

    let mut store = Store::new(&Place::Memory, x.cols, &[x.rows])?;
    let site = Site::new("layer", weight.rows, weight.cols);
    store.put(0, x)?;
    let inputs = TapInputs { x: store, weights: None };
    let start = std::time::Instant::now();
    let result = quantize_tap(&inputs, vec![SiteWeight { site, weight }], &recipe)?.remove(0);
    let seconds = start.elapsed().as_secs_f64();

    let (w, a) = (result.weight.ok_or("no weight")?, result.input.ok_or("no input")?);
    let format =
        |e: Element| e.fields().map_or([0, e.bits() as u8], |(exponent, mantissa)| [exponent, mantissa]);
    let biases: Vec<f32> = w.scales.iter().map(|&s| w.scheme.element.bias_of_scale(s)).collect();
    println!(
        "{}",
        serde_json::json!({
            "w_format": format(w.scheme.element), "a_format": format(a.element()), "w_bias": biases,
            "rho": a.element().bias_of_scale(a.scale()), "shift": a.shifts(), "mse": result.error,
            "signal": result.signal, "seconds": seconds,
        })
    );
    Ok(())
}
