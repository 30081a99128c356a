//! Writes real layers for the oracle: `x` (the inputs of one window of text) and `w` of some linear layers of a model,
//! one safetensors file a layer. `tests/python/oracle_compare.py --layers DIR` reads them.
//!
//! `layer_inputs MODEL TEXT DIR TOKENS NAME...`, NAME such as `model.layers.20.self_attn.o_proj`

use halfbyte_checkpoint::{Dtype, SafetensorsWriter, TensorSpec};
use halfbyte_model::{Input, Model, Step};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, dir, tokens, names @ ..] = &args[..] else {
        return Err("usage: layer_inputs MODEL TEXT DIR TOKENS NAME...".into());
    };
    let model = Model::open(Path::new(model))?;
    let mut ids = model.tokenizer()?.encode(&std::fs::read_to_string(text)?)?;
    ids.truncate(tokens.parse()?);
    std::fs::create_dir_all(dir)?;
    let rotary = model.architecture.rotary(ids.len());
    let (mut hidden, layout) = model.stem()?.embed(&[Input::Tokens(ids)])?;
    for layer in 0..model.architecture.blocks.len() {
        let block = model.block(layer)?;
        let (mut carry, mut x) = block.enter(hidden);
        let mut tap = 0;
        hidden = loop {
            for linear in block.linears[tap].iter().filter(|l| names.contains(&l.site.name)) {
                let w = linear.weight.to_f32();
                let specs = [
                    TensorSpec::new("x", Dtype::F32, [x.rows, x.cols]),
                    TensorSpec::new("w", Dtype::F32, [w.rows, w.cols]),
                ];
                let path = Path::new(dir).join(format!("{}.safetensors", linear.site.name));
                let mut writer = SafetensorsWriter::create(&path, &specs, &Default::default())?;
                writer.write("x", bytemuck::cast_slice(&x.data))?;
                writer.write("w", bytemuck::cast_slice(&w.data))?;
                println!("{}", writer.finish()?.display());
            }
            match block.advance(tap, carry, &x, &block.linears[tap], &rotary, &layout) {
                Step::Tap(c, next) => (carry, x, tap) = (c, next, tap + 1),
                Step::Done(hidden) => break hidden,
            }
        };
    }
    Ok(())
}
