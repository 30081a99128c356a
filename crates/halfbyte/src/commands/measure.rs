//! What `eval` and `compare` share: texts, tasks, and where finished parts are kept.

use crate::cli::MeasureArgs;
use crate::fail::Failure;
use crate::output;
use anyhow::Context;
use halfbyte_data::Selection;
use halfbyte_evaluate::tasks::{Task, TaskResult};
use halfbyte_evaluate::{Cache, PerplexityOptions, read_text};
use halfbyte_model::Model;
use halfbyte_quantize::Products;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use tracing::{info, warn};

/// Tokens of a window where neither the user nor the model's context says otherwise.
const WINDOW: usize = 2048;

/// Opens a model folder.
pub(super) fn open(dir: &Path, args: &MeasureArgs) -> anyhow::Result<Model> {
    let mut model = Model::open(dir).with_context(|| format!("cannot use the model {}", dir.display()))?;
    model.tokenizer_file.clone_from(&args.tokenizer);
    model.precision = products(args).precision();
    Ok(model)
}

/// How exactly products are computed.
pub(super) fn products(args: &MeasureArgs) -> Products {
    args.products.into()
}

/// The name of the recipe that a model was quantized with, or of the form in which another tool stored it.
pub(super) fn recipe(model: &Model) -> Option<String> {
    let Some(manifest) = model.manifest.as_ref() else { return model.values_of.clone() };
    Some(manifest.recipe_name().into())
}

/// The tokens of the text, if one is given, and the windows of it that are scored. All models must tokenise it alike and
/// have a context that is long enough.
pub(super) fn text(
    args: &MeasureArgs,
    models: &[&Model],
) -> anyhow::Result<Option<(Vec<u32>, PerplexityOptions)>> {
    let (Some(path), Some(first)) = (&args.perplexity, models.first()) else { return Ok(None) };
    let context = models.iter().map(|m| m.architecture.context).min().unwrap_or(0);
    let window = window(args.window, context)?;
    let text = read_text(path).context("--perplexity")?;
    let tokens = first.tokenizer()?.encode(&text)?;
    for other in &models[1..] {
        if other.tokenizer()?.encode(&text)? != tokens {
            return Err(Failure::new(format!(
                "{} and {} cut the text into different tokens, so their distributions cannot be compared",
                first.checkpoint.dir().display(),
                other.checkpoint.dir().display()
            ))
            .hint("compare a model with quantizations of itself")
            .into());
        }
    }
    info!(tokens = tokens.len(), window, "text tokenised");
    let options = PerplexityOptions {
        window,
        stride: args.stride,
        windows: args.windows,
        skip_tokens: args.skip_tokens,
    };
    Ok(Some((tokens, options)))
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

/// Reads the tasks.
pub(super) fn tasks(args: &MeasureArgs, seed: Option<u64>) -> anyhow::Result<Vec<Task>> {
    let Some(dir) = &args.task_dir else { return Ok(Vec::new()) };
    let mut names: Vec<&str> = Vec::new();
    for name in args.tasks.iter().map(|n| n.trim()) {
        if names.contains(&name) {
            return Err(Failure::new(format!("--tasks names {name} twice")).into());
        }
        names.push(name);
    }
    let selection = Selection { limit: args.limit, seed };
    names.into_iter().map(|n| Ok(Task::open(dir, n, selection)?)).collect()
}

/// Where finished rows and windows are kept. A default folder that cannot be written is done without.
pub(super) fn cache(args: &MeasureArgs) -> anyhow::Result<Option<Cache>> {
    if args.no_cache {
        return Ok(None);
    }
    let (dir, chosen) = match (&args.cache, default_cache()) {
        (Some(dir), _) => (dir.clone(), true),
        (None, Some(dir)) => (dir, false),
        (None, None) => return Ok(None),
    };
    let usable = std::fs::create_dir_all(&dir).and_then(|()| tempfile::tempfile_in(&dir));
    match usable {
        Err(e) if chosen => Err(e).with_context(|| format!("--cache: cannot write in {}", dir.display())),
        Err(error) => {
            warn!(%error, dir = %dir.display(), "finished rows are not kept");
            Ok(None)
        }
        Ok(_) => {
            let program =
                std::env::current_exe().context("cannot find this program; --no-cache does without")?;
            Ok(Some(Cache::open(&dir, &program)?))
        }
    }
}

fn default_cache() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|v: &OsString| !v.is_empty()).map(PathBuf::from);
    let base = folder("XDG_CACHE_HOME").or_else(|| {
        if cfg!(windows) { folder("LOCALAPPDATA") } else { Some(folder("HOME")?.join(".cache")) }
    });
    base.filter(|b| b.is_absolute()).map(|b| b.join("halfbyte"))
}

/// `0.4310 ± 0.0157`, or `-`.
pub(super) fn share(value: Option<f64>, error: Option<f64>) -> String {
    match (value, error) {
        (Some(v), Some(e)) => format!("{v:.4} ± {e:.4}"),
        (Some(v), None) => format!("{v:.4}"),
        _ => "-".into(),
    }
}

/// How long it took, and what was not done because an earlier run had done it.
pub(super) fn time(seconds: f64, kept: usize) -> String {
    let kept =
        if kept > 0 { format!(", with {kept} rows and windows of an earlier run") } else { String::new() };
    output::duration(seconds) + &kept
}

/// A task's figures for people: accuracy, accuracy by characters, perplexity of the last word, rows.
pub(super) fn figures(result: &TaskResult) -> [String; 4] {
    [
        share(Some(result.acc), result.stderr),
        share(result.acc_norm, result.stderr_norm),
        result.perplexity.map_or("-".into(), |p| format!("{p:.3}")),
        result.n.to_string(),
    ]
}
