//! Labelled images and texts that `eval` and `compare` classify.

use super::measure;
use crate::cli::MeasureArgs;
use crate::fail::Failure;
use crate::progress::Watch;
use halfbyte_data::{
    Encoder, Examples, ImageFolder, Labels, Metric, Processor, Selection, TextOptions, TextSet,
};
use halfbyte_evaluate::{Cache, ClassificationResult, Classified, Score, classify};
use halfbyte_model::{Model, Task};
use std::path::Path;

/// Examples as one model reads them.
pub(super) struct Labelled {
    pub(super) examples: Box<dyn Examples>,
    /// What is measured, besides accuracy.
    metrics: Vec<Metric>,
}

/// Opens what --images or --classify names for this model; `None` where neither is given.
pub(super) fn open(args: &MeasureArgs, model: &Model, seed: Option<u64>) -> anyhow::Result<Option<Labelled>> {
    let (dir, selection) = (model.checkpoint.dir(), Selection { limit: args.limit, seed });
    let labels = || Labels::open(dir);
    if let Some(images) = &args.images {
        require(model, Task::ImageClassification, "--images", images)?;
        let folder = ImageFolder::open(images, &labels()?, Processor::open(dir)?, selection)?;
        return Ok(Some(Labelled { examples: Box::new(folder), metrics: vec![Metric::Accuracy] }));
    }
    let Some(texts) = &args.classify else { return Ok(None) };
    require(model, Task::TextClassification, "--classify", texts)?;
    let options = TextOptions {
        glue: args.glue,
        text_columns: args.text_column.clone(),
        label_column: args.label_column.clone(),
        label_names: args.label_names.clone(),
    };
    let encoder = Encoder::open(dir, model.architecture.context)?;
    let set = TextSet::open(texts, &options, Some(&labels()?), encoder, selection)?;
    let metrics = set.metrics().to_vec();
    Ok(Some(Labelled { examples: Box::new(set), metrics }))
}

/// Refuses a model that is made for something else, naming it and the option.
fn require(model: &Model, task: Task, option: &str, data: &Path) -> anyhow::Result<()> {
    let a = &model.architecture;
    if a.head.task == task {
        return Ok(());
    }
    let hint = match a.head.task {
        Task::LanguageModel => "--perplexity and --tasks measure it",
        Task::TextClassification => "--classify FILE measures it, on labelled texts",
        Task::ImageClassification => "--images DIR measures it, on images in a folder for each class",
        Task::MaskedLanguageModel | Task::Encoder => "it has no measure of its own; give one that classifies",
    };
    Err(Failure::new(format!(
        "{option} {} needs a model for {}, and {} is a {} model for {}",
        data.display(),
        task.name(),
        model.checkpoint.dir().display(),
        a.family,
        a.head.task.name()
    ))
    .hint(hint)
    .into())
}

impl Labelled {
    /// Classifies them.
    pub(super) fn measure(
        &self,
        model: &Model,
        seed: u64,
        cache: Option<&Cache>,
        watch: &mut Watch,
    ) -> anyhow::Result<Classified> {
        Ok(classify(model, self.examples.as_ref(), &self.metrics, seed, cache, watch)?)
    }
}

/// Names and figures for people, such as `accuracy` and `0.9220 ± 0.0128, 95 % 0.8968 .. 0.9450`.
pub(super) fn lines(result: &ClassificationResult) -> Vec<(String, String)> {
    let line = |(name, score): (&String, &Score)| {
        let interval = score.interval.map_or(String::new(), |[a, b]| format!(", 95 % {a:.4} .. {b:.4}"));
        (name.clone(), measure::share(score.value, score.stderr) + &interval)
    };
    result.metrics.iter().map(line).collect()
}

/// Which rows were taken, in words.
pub(super) fn rows(args: &MeasureArgs, seed: Option<u64>, n: usize) -> String {
    let what = if args.images.is_some() { "images" } else { "rows" };
    match (args.limit, seed) {
        (Some(_), Some(seed)) => format!("{n} {what} drawn with seed {seed}"),
        (Some(_), None) if args.images.is_some() => format!("the first {n} images, of all classes in turn"),
        (Some(_), None) => format!("the first {n} rows"),
        (None, _) => format!("all {n} {what}"),
    }
}
