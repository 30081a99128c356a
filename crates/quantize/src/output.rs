//! The output folder, put together beside its final name and renamed.

use crate::QuantizeError;
use crate::job::Job;
use crate::journal::{LOCK_FILE, RunId, make_dir};
use crate::methods::learned::LearnedBlock;
use crate::report::{AttentionReport, LayerReport, ModelReport, Report};
use crate::transforms::Note;
use halfbyte_checkpoint::{
    AttentionScheme, COMPANIONS, Checkpoint, CheckpointWriter, LayerScheme, Manifest, SHARD_BYTES,
    TensorSpec, copy_atomic, write_atomic,
};
use halfbyte_model::architectures::describe;
use halfbyte_model::{MIGRATION, Model, Site};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// An output folder that is being written.
pub(crate) struct Output<'a> {
    job: &'a Job<'a>,
    /// The working folder; the output takes shape in its subfolder `output`.
    working: PathBuf,
    /// Takes the tensors of the quantized layers.
    pub(crate) writer: CheckpointWriter,
    /// Tensors that are copied, each with the name of its source.
    copies: Vec<(String, String)>,
    untied: bool,
    manifest: Manifest,
    bytes: u64,
}

impl<'a> Output<'a> {
    /// Begins an output whose quantized layers and attentions have these schemes; `specs` are their tensors and all others
    /// that are new.
    ///
    /// # Errors
    /// When a tensor of the source is missing or the folder cannot be written.
    pub(crate) fn begin(
        job: &'a Job<'a>,
        working: &Path,
        schemes: BTreeMap<String, LayerScheme>,
        attention: BTreeMap<String, AttentionScheme>,
        mut specs: Vec<TensorSpec>,
    ) -> Result<Self, QuantizeError> {
        // Everything that is not replaced by codes is copied as it is. A tied output layer that no longer shares the
        // embedding's storage gets a tensor of its own.
        let (a, source) = (&job.model.architecture, &job.model.checkpoint);
        let new: BTreeSet<String> = specs.iter().map(|s| s.name.clone()).collect();
        let coded = |tensor: &str| {
            tensor.strip_suffix(".weight").and_then(|n| schemes.get(n)).is_some_and(|s| s.weight.is_some())
        };
        let embedding = a.embedding().weight();
        let tied = a.head.output().filter(|_| a.head.tied);
        let mut copies: Vec<(String, String)> = source
            .names()
            .filter(|n| !coded(n) && !new.contains(*n) && tied.is_none_or(|head| *n != head.weight()))
            .map(|n| (n.to_string(), n.to_string()))
            .collect();
        let untied = tied.filter(|head| {
            coded(&embedding) || schemes.contains_key(&head.name) || new.contains(&head.weight())
        });
        if let Some(head) = untied {
            let copied = |name: &str| !coded(name) && !new.contains(name);
            copies.extend(untied_tensors(job.model, head)?.into_iter().filter(|(name, _)| copied(name)));
        }
        let untied = untied.is_some();
        for (name, from) in &copies {
            let info = source.find(from)?;
            specs.push(TensorSpec::new(name.clone(), info.dtype, info.shape.clone()));
        }
        let bytes = specs.iter().filter_map(|s| s.dtype.byte_len(&s.shape)).sum();
        let recipe = serde_json::to_value(job.recipe).map_err(|e| QuantizeError::Output(e.to_string()))?;
        // New ones, and those of a model that is quantized anew.
        let migrations = specs.iter().filter_map(|s| s.name.strip_suffix(".weight"));
        let migrations = migrations.filter(|n| n.ends_with(MIGRATION)).map(String::from).collect();
        let manifest = Manifest::new(recipe, schemes).with_attention(attention).with_migrations(migrations);

        let output = begin_folder(working)?;
        let mut metadata = BTreeMap::from([
            ("format".to_string(), "halfbyte".to_string()),
            ("halfbyte.layers".to_string(), json(&manifest.layers)?),
        ]);
        if !manifest.attention.is_empty() {
            metadata.insert("halfbyte.attention".to_string(), json(&manifest.attention)?);
        }
        if !manifest.migrations.is_empty() {
            metadata.insert("halfbyte.migrations".to_string(), json(&manifest.migrations)?);
        }
        let writer = CheckpointWriter::create(&output, &specs, &metadata, SHARD_BYTES)?;
        Ok(Self { job, working: working.into(), writer, copies, untied, manifest, bytes })
    }

    /// Copies the tensors that are not quantized, calling `between` after every MiB.
    ///
    /// # Errors
    /// When one cannot be read or written, or `between` fails.
    pub(crate) fn copy_rest(
        &mut self,
        mut between: impl FnMut(&mut CheckpointWriter) -> Result<(), QuantizeError>,
    ) -> Result<(), QuantizeError> {
        let (source, writer) = (&self.job.model.checkpoint, &mut self.writer);
        for (name, from) in &self.copies {
            source.read_pieces(from, |piece| {
                writer.write(name, piece)?;
                between(writer)
            })?;
        }
        Ok(())
    }

    /// Writes the other files, renames the folder and removes the working folder.
    ///
    /// # Errors
    /// When a tensor has not been written whole, or a file cannot be.
    pub(crate) fn finish(
        self,
        id: &RunId,
        layers: Vec<LayerReport>,
        attention: Vec<AttentionReport>,
        transforms: Vec<Note>,
        learned: Vec<LearnedBlock>,
    ) -> Result<Report, QuantizeError> {
        let source = &self.job.model.checkpoint;
        self.writer.finish()?;
        let model = ModelReport::new(self.job.model);
        let rows = |input| self.job.model.architecture.rows(input);
        let calibration = (self.job.inputs.len(), self.job.inputs.iter().map(rows).sum());
        let report = Report::new(model, self.job.recipe, calibration, self.bytes, layers, attention);
        let report = Report { transforms, learned, ..report };
        let output = self.working.join("output");
        let mut config = source.config().clone();
        if let Some(config) = config.as_object_mut() {
            let manifest = serde_json::to_value(&self.manifest).unwrap_or_default();
            config.insert("quantization_config".into(), manifest);
            if self.untied {
                config.insert("tie_word_embeddings".into(), false.into());
            }
        }
        write_atomic(&output.join("config.json"), json(&config)?.as_bytes())?;
        copy_companions(source, &output)?;
        let written = report.to_json().map_err(|e| QuantizeError::Output(e.to_string()))?;
        write_atomic(&output.join("report.json"), written.as_bytes())?;
        for (name, contents) in self.job.pages.map(|pages| pages(&report)).unwrap_or_default() {
            write_atomic(&output.join(name), contents.as_bytes())?;
        }
        write_atomic(&output.join("run.json"), json(id)?.as_bytes())?;
        finish_folder(&self.working, self.job.out)?;
        Ok(report)
    }
}

/// The tensors that a tied output layer gets of its own once it no longer shares the embedding's, and whence: its weight,
/// and its bias where transformers looks for that under another name then.
///
/// # Errors
/// As [`describe`].
pub(crate) fn untied_tensors(model: &Model, head: &Site) -> Result<Vec<(String, String)>, QuantizeError> {
    let mut config = model.checkpoint.config().clone();
    config["tie_word_embeddings"] = false.into();
    let mut copies = vec![(head.weight(), model.architecture.embedding().weight())];
    let bias = describe(&config)?.head.output().and_then(|s| s.bias.clone());
    let bias = bias.filter(|name| !model.checkpoint.contains(name));
    copies.extend(bias.zip(head.bias.clone()));
    Ok(copies)
}

/// The folder inside the working folder in which an output takes shape, empty.
///
/// # Errors
/// When one that is there cannot be cleared, or a new one not be made.
pub(crate) fn begin_folder(working: &Path) -> Result<PathBuf, QuantizeError> {
    let output = working.join("output");
    if output.exists() {
        fs::remove_dir_all(&output)
            .map_err(|e| QuantizeError::Output(format!("cannot clear {}: {e}", output.display())))?;
    }
    make_dir(&output)?;
    Ok(output)
}

/// Copies the files beside a model's weights, the tokenizer's and the like.
///
/// # Errors
/// When one cannot be copied.
pub(crate) fn copy_companions(source: &Checkpoint, output: &Path) -> Result<(), QuantizeError> {
    for name in COMPANIONS {
        let from = source.dir().join(name);
        if from.is_file() {
            copy_atomic(&from, &output.join(name))?;
        }
    }
    Ok(())
}

/// Gives the folder of [`begin_folder`] its final name, and removes the working folder.
///
/// # Errors
/// When it cannot be renamed.
pub(crate) fn finish_folder(working: &Path, out: &Path) -> Result<(), QuantizeError> {
    let output = working.join("output");
    fs::rename(&output, out).map_err(|e| {
        QuantizeError::Output(format!("cannot rename {} to {}: {e}", output.display(), out.display()))
    })?;
    clear_working(working);
    Ok(())
}

/// Removes a working folder. A run that is killed meanwhile leaves one that is known by its lock file.
pub(crate) fn clear_working(working: &Path) {
    for entry in fs::read_dir(working).into_iter().flatten().flatten() {
        if entry.file_name() != LOCK_FILE {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
    let _ = fs::remove_dir_all(working);
}

/// A value as indented JSON.
///
/// # Errors
/// When it has no such form.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<String, QuantizeError> {
    serde_json::to_string_pretty(value).map_err(|e| QuantizeError::Output(e.to_string()))
}
