//! `halfbyte eval`: perplexity of a quantized or original model.

use crate::cli::EvalArgs;
use crate::fail::Failure;
use crate::output;
use crate::progress::Bar;
use crate::system;
use anyhow::Context;
use halfbyte_evaluate::{PerplexityOptions, perplexity, read_text};
use halfbyte_model::Model;
use serde_json::json;
use std::fmt::Write;
use std::time::Instant;
use tracing::info;

/// Tokens of a window where neither the user nor the model's context says otherwise.
const WINDOW: usize = 2048;

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    system::use_threads(args.machine.threads)?;
    system::stop_on_interrupt()?;
    let model =
        Model::open(&args.dir).with_context(|| format!("cannot use the model {}", args.dir.display()))?;
    let window = window(args.window, model.architecture.context)?;
    let text = read_text(&args.perplexity).context("--perplexity")?;
    let tokens = model.tokenizer()?.encode(&text)?;
    drop(text);
    info!(tokens = tokens.len(), window, "text tokenised");
    let options = PerplexityOptions { window, windows: args.windows, skip_tokens: args.skip_tokens };
    let bar = Bar::new("steps");
    let scored = perplexity(&model, &tokens, options, &mut |done, all| {
        bar.set(done, all);
        !system::asked_to_stop()
    })?;
    drop(bar);

    let seconds = start.elapsed().as_secs_f64();
    let recipe =
        model.manifest.as_ref().map(|m| m.recipe.get("name").and_then(|n| n.as_str()).unwrap_or("unnamed"));
    if args.output.json {
        return output::print_json(&json!({
            "model": args.dir,
            "quantized": recipe,
            "perplexity": scored,
            "skipped_tokens": args.skip_tokens,
            "seconds": seconds,
        }));
    }
    let mut text = String::new();
    writeln!(text, "perplexity   {:.4}", scored.value)?;
    let form = recipe.map_or("as it is".into(), |r| format!("quantized with {r}, run from its codes"));
    writeln!(text, "model        {}, {form}", args.dir.display())?;
    writeln!(text, "text         {}, tokenised whole without special tokens", args.perplexity.display())?;
    if args.skip_tokens > 0 {
        writeln!(text, "skipped      the first {} tokens", args.skip_tokens)?;
    }
    writeln!(
        text,
        "windows      {} of {} tokens, not overlapping; all but the first token of each scored, {} in all",
        scored.windows, scored.window, scored.tokens
    )?;
    writeln!(text, "time         {}", output::duration(seconds))?;
    output::print(&text)
}

fn window(wanted: Option<usize>, context: usize) -> anyhow::Result<usize> {
    match wanted {
        Some(window) if window > context => Err(Failure::new(format!(
            "--window {window} is longer than the model's context of {context} tokens"
        ))
        .hint(format!("give --window {context} or less"))
        .into()),
        Some(window) => Ok(window),
        None => Ok(WINDOW.min(context)),
    }
}
