//! `halfbyte export`: a quantized folder in the files of other engines.

use super::working::Working;
use crate::cli::ExportArgs;
use crate::fail::Failure;
use crate::output::{self, bytes, duration};
use crate::progress::Bar;
use crate::system;
use anyhow::Context;
use halfbyte_export::{Exported, Rest};
use halfbyte_model::Model;
use serde_json::json;
use std::fmt::Write;
use std::time::Instant;

pub(crate) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    system::stop_on_interrupt()?;
    let model =
        Model::open(&args.dir).with_context(|| format!("cannot use the model {}", args.dir.display()))?;
    for (i, target) in args.to.iter().enumerate() {
        if args.to[..i].contains(target) {
            return Err(Failure::new(format!("--to names {target} twice")).into());
        }
        // What a target cannot hold is refused before anything is written.
        halfbyte_export::check_model(&model, *target)?;
    }
    if args.out.exists() {
        return Err(halfbyte_export::ExportError::Exists(args.out.clone()).into());
    }
    let rest = args.rest.map_or(Rest::AsStored, Rest::from);
    if let (Some(target), true) = (args.to.iter().find(|t| !t.is_gguf()), args.rest.is_some()) {
        return Err(Failure::new(format!("--rest is for GGUF; {target} keeps the rest as it is")).into());
    }
    let _working = Working::take_anew(&args.out)?;
    let single = args.to.len() == 1;
    let bar = Bar::new("tensors");
    let mut done: Vec<Exported> = Vec::new();
    for target in &args.to {
        let dir = if single { args.out.clone() } else { args.out.join(target.name()) };
        bar.stage(format!("tensors of {target}"));
        let exported = halfbyte_export::export(&model, *target, rest, &dir, &mut |n, all| {
            bar.set(n, all);
            !system::asked_to_stop()
        });
        match exported {
            Ok(exported) => done.push(exported),
            Err(error) => {
                if !single {
                    // One command, one output: all targets or none.
                    let _ = std::fs::remove_dir_all(&args.out);
                }
                return Err(error.into());
            }
        }
    }
    drop(bar);
    let seconds = start.elapsed().as_secs_f64();
    if args.output.json {
        let list = done.iter().map(|e| {
            json!({ "target": e.target.name(), "dir": e.dir, "bytes": e.bytes, "layers": e.layers, "proven": true })
        });
        return output::print_json(
            &json!({ "model": args.dir, "exports": list.collect::<Vec<_>>(), "seconds": seconds }),
        );
    }
    let mut text = String::new();
    for e in &done {
        writeln!(
            text,
            "{}: {}, {} quantized layers, read back and found the same",
            e.dir.display(),
            bytes(e.bytes),
            e.layers
        )?;
    }
    writeln!(text, "time: {}", duration(seconds))?;
    output::print(&text)
}
