//! What `quantize` and `plan` calibrate on: windows of a text, single texts, images.

use crate::cli::CalibrationArgs;
use crate::fail::Failure;
use anyhow::Context;
use halfbyte_data::{DataError, Encoder, Examples, ImageFolder, Processor, Selection, TextOptions, TextSet};
use halfbyte_evaluate::read_text;
use halfbyte_model::{Input, Model, StemSpec, Task};
use halfbyte_quantize::{PlanOptions, Recipe, calibration_windows};
use rayon::prelude::*;
use std::path::Path;
use tracing::info;

/// Tokens of a calibration window where neither the user nor the model's context says otherwise.
const WINDOW: usize = 512;

/// Most memory for activations where no option says otherwise.
pub(super) const ACTIVATION_MEMORY: u64 = 1 << 30;

/// What a run calibrates on.
#[derive(Default)]
pub(super) struct Samples {
    pub(super) inputs: Vec<Input>,
    /// How many of them, the first ones, are not drawn from the vocabulary.
    pub(super) real: usize,
    /// In words, such as `32 windows of 512 tokens`.
    pub(super) words: String,
    /// Said where there is less than was asked for.
    pub(super) note: Option<String>,
}

/// What a model is calibrated on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Windows of tokens, of a language model.
    Windows,
    /// Whole texts with their special tokens.
    Texts,
    Images,
}

impl Kind {
    fn of(model: &Model) -> Self {
        match (&model.architecture.stem, model.architecture.head.task) {
            (StemSpec::Image(_), _) => Self::Images,
            (StemSpec::Text(_), Task::LanguageModel) => Self::Windows,
            (StemSpec::Text(_), _) => Self::Texts,
        }
    }

    /// What is wanted, and how it is given.
    fn wanted(self) -> [&'static str; 2] {
        match self {
            Self::Windows => {
                ["a text", "a few pages of ordinary UTF-8 text, such as the model will read, in one file"]
            }
            Self::Texts => [
                "texts",
                "a tsv, jsonl or parquet file with such texts as the model will read, or a txt file with one a line",
            ],
            Self::Images => ["images", "a folder of JPEG and PNG files, in it or in its folders"],
        }
    }
}

/// Reads what to calibrate on; nothing where the recipe needs nothing.
pub(super) fn read(model: &Model, recipe: &Recipe, args: &CalibrationArgs) -> anyhow::Result<Samples> {
    let kind = Kind::of(model);
    let window = window(args, model)?;
    if let Some(path) = args.data.as_ref().filter(|p| !p.exists()) {
        return Err(Failure::new(format!("--calibration {} does not exist", path.display())).into());
    }
    if !recipe.needs_calibration() {
        return Ok(Samples { words: "none, weights alone decide".into(), ..Samples::default() });
    }
    let [what, how] = kind.wanted();
    let path = args.data.as_ref().ok_or_else(|| {
        let with = if recipe.transforms.is_empty() { "" } else { " with its transforms" };
        Failure::new(format!("the recipe {}{with} needs {what} to calibrate on", recipe.name))
            .hint(format!("give --calibration DATA: {how}"))
    })?;
    if path.is_dir() != (kind == Kind::Images) {
        let form = if path.is_dir() { "a folder" } else { "a file" };
        return Err(Failure::new(format!(
            "--calibration {} is {form}, and {} is a {} model, which is calibrated on {what}",
            path.display(),
            model.checkpoint.dir().display(),
            model.architecture.family
        ))
        .hint(format!("give --calibration {how}"))
        .into());
    }
    if kind != Kind::Windows && args.calibration_skip > 0 {
        return Err(Failure::new("--calibration-skip is for texts that are cut into windows")
            .hint("texts and images are drawn with the recipe's seed")
            .into());
    }
    if kind != Kind::Texts && !args.calibration_column.is_empty() {
        return Err(Failure::new(format!(
            "--calibration-column is for files with columns of texts, and {} is calibrated on {what}",
            model.checkpoint.dir().display()
        ))
        .into());
    }
    match kind {
        Kind::Windows => windows(model, recipe, args, path, window),
        Kind::Texts | Kind::Images => drawn(model, recipe, args, path, kind),
    }
}

fn windows(
    model: &Model,
    recipe: &Recipe,
    args: &CalibrationArgs,
    path: &Path,
    window: usize,
) -> anyhow::Result<Samples> {
    let text = read_text(path).context("--calibration")?;
    let wanted = args.calibration_windows;
    let most = wanted.saturating_mul(window).saturating_add(args.calibration_skip);
    let tokens = model.tokenizer()?.encode_first(&text, most)?;
    drop(text);
    if args.calibration_skip >= tokens.len() {
        return Err(Failure::new(format!(
            "--calibration-skip {} leaves nothing of the {} tokens of {}",
            args.calibration_skip,
            tokens.len(),
            path.display()
        ))
        .into());
    }
    let tokens = &tokens[args.calibration_skip..];
    let inputs = calibration_windows(recipe, tokens, model.architecture.vocabulary(), window, wanted)
        .with_context(|| path.display().to_string())?;
    info!(tokens = tokens.len(), windows = inputs.len(), window, "calibration text tokenised");
    let short = inputs.len() < wanted + recipe.coverage_windows(wanted);
    let note = || format!("the text is too short for the {wanted} of --calibration-windows");
    let real = wanted.min(tokens.len() / window);
    let words = in_words(real, inputs.len() - real, window);
    Ok(Samples { inputs, real, words, note: short.then(note) })
}

fn in_words(windows: usize, drawn: usize, window: usize) -> String {
    match drawn {
        0 => format!("{windows} windows of {window} tokens"),
        _ => format!("{windows} windows of {window} tokens, and {drawn} drawn from the vocabulary"),
    }
}

fn drawn(
    model: &Model,
    recipe: &Recipe,
    args: &CalibrationArgs,
    path: &Path,
    kind: Kind,
) -> anyhow::Result<Samples> {
    let (dir, a) = (model.checkpoint.dir(), &model.architecture);
    let wanted = args.calibration_samples;
    let selection = Selection { limit: Some(wanted), seed: Some(recipe.seed) };
    let examples: Box<dyn Examples> = if kind == Kind::Images {
        let folder = ImageFolder::unlabelled(path, Processor::open(dir)?, selection);
        Box::new(folder.context("--calibration")?)
    } else {
        let options = TextOptions { text_columns: args.calibration_column.clone(), ..TextOptions::default() };
        let encoder = Encoder::open(dir, a.context)?;
        Box::new(TextSet::open(path, &options, None, encoder, selection).context("--calibration")?)
    };
    let load = |i: usize| examples.load(i);
    let inputs = (0..examples.len()).into_par_iter().map(load).collect::<Result<Vec<_>, DataError>>()?;
    let rows: usize = inputs.iter().map(|i| a.rows(i)).sum();
    info!(inputs = inputs.len(), rows, "calibration data read");
    let words = match kind {
        Kind::Images => format!("{} images of {} rows each", inputs.len(), a.context),
        _ => format!("{} texts, {rows} tokens", inputs.len()),
    };
    let note = || format!("there are no more for the {wanted} of --calibration-samples");
    let note = (inputs.len() < wanted).then(note);
    Ok(Samples { real: inputs.len(), inputs, words, note })
}

/// How much there is to compute, for a plan: of what was read, or without it the most that it can be, in words too.
pub(super) fn amount(
    model: &Model,
    recipe: &Recipe,
    args: &CalibrationArgs,
) -> anyhow::Result<(PlanOptions, String)> {
    if args.data.is_some() || !recipe.needs_calibration() {
        let samples = read(model, recipe, args)?;
        return Ok((PlanOptions::of(&model.architecture, &samples.inputs, 0), samples.words));
    }
    let (count, rows, words) = match Kind::of(model) {
        Kind::Windows => {
            let windows = args.calibration_windows;
            let (drawn, window) = (recipe.coverage_windows(windows), window(args, model)?);
            (windows + drawn, window, in_words(windows, drawn, window))
        }
        Kind::Texts => {
            let (count, rows) = (args.calibration_samples, model.architecture.context);
            let words = format!(
                "{count} texts, if all have the most of {rows} tokens; --calibration DATA says what they have"
            );
            (count, rows, words)
        }
        Kind::Images => {
            let (count, rows) = (args.calibration_samples, model.architecture.context);
            (count, rows, format!("{count} images of {rows} rows each"))
        }
    };
    Ok((PlanOptions::inputs(count, rows, 0), words))
}

/// The calibration window, checked against the model's context.
pub(super) fn window(args: &CalibrationArgs, model: &Model) -> anyhow::Result<usize> {
    let context = model.architecture.context;
    if let Some(window) = args.calibration_window
        && Kind::of(model) != Kind::Windows
    {
        return Err(Failure::new(format!(
            "--calibration-window {window} cuts texts for language models, and {} is none",
            model.checkpoint.dir().display()
        ))
        .hint("--calibration-samples says how many texts or images are taken, each of them whole")
        .into());
    }
    match args.calibration_window {
        Some(window) if window > context => Err(Failure::new(format!(
            "--calibration-window {window} is longer than the model's context of {context} tokens"
        ))
        .hint(format!("give --calibration-window {context} or less"))
        .into()),
        Some(window) => Ok(window),
        None => Ok(WINDOW.min(context)),
    }
}
