//! `halfbyte synth`: a random checkpoint in the shape of a known model.

use super::working::Working;
use crate::cli::SynthArgs;
use crate::fail::Failure;
use crate::output::{self, bytes};
use crate::progress::Bar;
use anyhow::Context;
use halfbyte_model::{SHAPES, synthesize};
use halfbyte_quantize::partial_dir;
use serde_json::json;
use std::fs;

pub(crate) fn run(args: &SynthArgs) -> anyhow::Result<()> {
    let shape = SHAPES.iter().find(|s| s.name == args.like);
    let shape = shape.ok_or_else(|| Failure::new(format!("no shape is called {}", args.like)))?;
    if args.out.exists() {
        return Err(Failure::new(format!("{} exists", args.out.display()))
            .hint("choose another --out or delete it")
            .into());
    }
    // The folder appears whole. What a killed run left is written anew.
    let _working = Working::take_anew(&args.out)?;
    let partial = partial_dir(&args.out)?.join("output");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot clear {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    let bar = Bar::new("MB");
    let megabytes = |n: u64| (n / 1_000_000) as usize;
    let mut progress = |done, all| bar.set(megabytes(done), megabytes(all));
    let written = synthesize(shape, args.layers, args.seed, &partial, &mut progress);
    drop(bar);
    let architecture = match written {
        Ok(architecture) => architecture,
        Err(error) => {
            // Gigabytes of random numbers are of no use to anyone.
            let _ = fs::remove_dir_all(&partial);
            return Err(error.into());
        }
    };
    fs::rename(&partial, &args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let parameters: usize = architecture.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    let blocks = architecture.blocks.len();
    if args.output.json {
        return output::print_json(&json!({
            "out": args.out, "like": shape.name, "layers": blocks, "parameters": parameters,
        }));
    }
    output::print(&format!(
        "{}: {} with {blocks} blocks, {} parameters, {}\n",
        args.out.display(),
        shape.name,
        output::thousands(parameters as u64),
        bytes(2 * parameters as u64),
    ))
}
