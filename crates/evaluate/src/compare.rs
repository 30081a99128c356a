//! What a comparison of models found, in the form in which reports read it.

use crate::tasks::TaskResult;
use crate::{ClassificationResult, Difference, Divergence, Paired, Perplexity};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Several models measured in the same way. The first is the reference of all others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The models as they were given.
    pub models: Vec<ComparedModel>,
}

/// One of the models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparedModel {
    /// Its folder.
    pub model: String,
    /// The recipe that it was quantized with; `None` for an original checkpoint.
    pub quantized: Option<String>,
    /// Bytes of its safetensors files.
    pub size_bytes: u64,
    /// Stored bits per weight, scales included: over the quantized tensors for a quantized folder, over all tensors for an
    /// original. `None` where a quantized folder has lost its report.
    pub bits_per_weight: Option<f64>,
    /// Perplexity, where a text was given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub perplexity: Option<Perplexity>,
    /// Divergence from the reference over the same windows; `None` for the reference itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub divergence: Option<Divergence>,
    /// The tasks by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub tasks: BTreeMap<String, ComparedTask>,
    /// The labelled texts or images, where some were given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub classification: Option<ComparedClassification>,
    /// The output error that quantizing measured for every layer; empty for an original.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub layers: Vec<LayerError>,
}

/// A task's result, beside that of the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparedTask {
    /// The model's own result.
    #[serde(flatten)]
    pub result: TaskResult,
    /// `acc` beside the reference's; `None` for the reference itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub paired: Option<Paired>,
    /// The same for `acc_norm`, where the task has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub paired_norm: Option<Paired>,
}

/// The figures of labelled texts or images, beside those of the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComparedClassification {
    /// The model's own figures.
    #[serde(flatten)]
    pub result: ClassificationResult,
    /// Its right answers beside the reference's; `None` for the reference itself and where answers are numbers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub paired: Option<Paired>,
    /// Every figure less the reference's, by its name; none for the reference itself.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub differences: BTreeMap<String, Difference>,
}

/// What quantizing a layer cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerError {
    /// The layer's name.
    pub name: String,
    /// Last part of the name: `q_proj`, `down_proj`, `lm_head`.
    pub kind: String,
    /// Mean squared output error relative to the mean square of the output.
    pub relative_error: f64,
}

impl ComparedModel {
    /// Mean accuracy over the tasks, or that of the classified set; `None` without any.
    pub fn mean_accuracy(&self) -> Option<f64> {
        let n = self.tasks.len();
        let tasks = (n > 0).then(|| self.tasks.values().map(|t| t.result.acc).sum::<f64>() / n as f64);
        tasks.or_else(|| self.classification.as_ref()?.result.acc)
    }

    /// Mean relative error of the layers of each kind, in the order in which they first come.
    pub fn error_by_kind(&self) -> Vec<(String, f64)> {
        let mut kinds: Vec<(String, f64, usize)> = Vec::new();
        for layer in &self.layers {
            match kinds.iter_mut().find(|k| k.0 == layer.kind) {
                Some(kind) => (kind.1, kind.2) = (kind.1 + layer.relative_error, kind.2 + 1),
                None => kinds.push((layer.kind.clone(), layer.relative_error, 1)),
            }
        }
        kinds.into_iter().map(|(kind, sum, n)| (kind, sum / n as f64)).collect()
    }
}
