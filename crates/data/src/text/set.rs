//! The rows of a file as examples.

use super::columns::{self, Answers};
use super::{Encoder, Metric, TextOptions};
use crate::labels::Labels;
use crate::{DataError, Examples, Gold, Selection};
use halfbyte_model::Input;
use std::path::{Path, PathBuf};

/// Texts or pairs of texts.
pub struct TextSet {
    path: PathBuf,
    unit: &'static str,
    encoder: Encoder,
    metrics: Vec<Metric>,
    rows: Vec<TextRow>,
}

struct TextRow {
    /// In the file, from 1.
    number: usize,
    first: String,
    second: Option<String>,
    gold: Option<Gold>,
}

impl TextSet {
    /// Reads a tsv, jsonl or parquet file. With `labels`, those of the model, every row must have an answer.
    ///
    /// # Errors
    /// [`DataError`] when columns or labels are not found, or any row is wrong, whether it is selected or not.
    pub fn open(
        path: &Path,
        options: &TextOptions,
        labels: Option<&Labels>,
        encoder: Encoder,
        selection: Selection,
    ) -> Result<Self, DataError> {
        let (rows, columns) = columns::read(path, options, labels.is_some())?;
        let answers = labels.map(|labels| Answers::new(labels, options)).transpose();
        let answers = answers.map_err(|message| DataError::file(path, message))?;
        let text = |(number, row): (usize, &crate::Row)| {
            let mut texts = columns.texts.iter().map(|c| row.text(c).map(String::from));
            let (first, second) = (texts.next().transpose()?, texts.next().transpose()?);
            let gold = answers.as_ref().map(|a| a.of(row, &columns.label)).transpose()?;
            Ok(TextRow { number, first: first.unwrap_or_default(), second, gold })
        };
        let read = rows.iter().map(|(n, row)| text((n, row)).map_err(|message| rows.wrong(n, message)));
        let mut all = read.collect::<Result<Vec<_>, _>>()?;
        let chosen = selection.of(all.len());
        let mut i = 0;
        all.retain(|_| {
            i += 1;
            chosen.binary_search(&(i - 1)).is_ok()
        });
        let metrics = match (options.glue, labels.map(Labels::count)) {
            (Some(task), _) => task.metrics.to_vec(),
            (None, Some(1)) => vec![Metric::Pearson, Metric::Spearman],
            (None, _) => vec![Metric::Accuracy],
        };
        Ok(Self { path: path.into(), unit: rows.unit(), encoder, metrics, rows: all })
    }

    /// What to measure: GLUE's choice for its tasks, else accuracy, or correlations where the output is a score.
    pub fn metrics(&self) -> &[Metric] {
        &self.metrics
    }
}

impl Examples for TextSet {
    fn name(&self) -> String {
        self.path.file_stem().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn gold(&self, i: usize) -> Option<Gold> {
        self.rows[i].gold
    }

    fn place(&self, i: usize) -> String {
        format!("{}, {} {}", self.path.display(), self.unit, self.rows[i].number)
    }

    fn load(&self, i: usize) -> Result<Input, DataError> {
        let row = &self.rows[i];
        self.encoder.encode(&row.first, row.second.as_deref()).map_err(|message| DataError::Row {
            path: self.path.display().to_string(),
            row: format!("{} {}", self.unit, row.number),
            message,
        })
    }

    fn key(&self, i: usize) -> Result<String, DataError> {
        let mut hasher = blake3::Hasher::new();
        let mut add = |numbers: &[u32]| {
            hasher.update(&(numbers.len() as u64).to_le_bytes());
            numbers.iter().for_each(|n| {
                hasher.update(&n.to_le_bytes());
            });
        };
        match self.load(i)? {
            Input::Segments { ids, types } => {
                add(&ids);
                add(&types);
            }
            Input::Tokens(ids) => add(&ids),
            Input::Pixels { .. } => {}
        }
        Ok(hasher.finalize().to_hex()[..32].to_string())
    }
}
