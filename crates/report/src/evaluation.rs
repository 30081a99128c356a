//! What other commands measured: the `--json` output of `quantize`, `eval`, `compare` and `demo`.
//!
//! Read key by key: what is not known is passed over, what is absent stays absent.

use serde::Serialize;
use serde_json::Value;

/// A JSON file that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// There is nothing measured in it.
    #[error(
        "it holds no perplexity, KL divergence or task; give what `halfbyte eval --json` or `halfbyte compare --json` printed"
    )]
    NothingMeasured,
    /// It is not from `quantize`.
    #[error("it has no \"seconds\" and \"output_bytes\"; give what `halfbyte quantize --json` printed")]
    NotARun,
    /// It is of another folder.
    #[error("it is of another run: its output has {found} bytes, that of the report {wanted}")]
    AnotherRun {
        /// Bytes in the file.
        found: u64,
        /// Bytes in the report.
        wanted: u64,
    },
}

/// Time and memory of the run that made the folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Most memory resident, in bytes; `None` where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    /// What the plan said it would be.
    pub peak_memory_predicted_bytes: Option<u64>,
    /// Whether the time is only that of a part: the run was resumed, or there was nothing left to do.
    pub partial: bool,
}

impl Run {
    /// Reads what `quantize --json` printed for an output of `output_bytes`.
    ///
    /// # Errors
    /// [`EvaluationError::NotARun`] or [`EvaluationError::AnotherRun`].
    pub fn read(value: &Value, output_bytes: u64) -> Result<Self, EvaluationError> {
        let (Some(seconds), Some(found)) = (number(value, "seconds"), whole(value, "output_bytes")) else {
            return Err(EvaluationError::NotARun);
        };
        if found != output_bytes {
            return Err(EvaluationError::AnotherRun { found, wanted: output_bytes });
        }
        let finished = value.get("was_finished").and_then(Value::as_bool) == Some(true);
        Ok(Self {
            seconds,
            peak_rss_bytes: whole(value, "peak_rss_bytes"),
            peak_memory_predicted_bytes: whole(value, "peak_memory_predicted_bytes"),
            partial: finished || whole(value, "resumed_layers").unwrap_or(0) > 0,
        })
    }
}

/// What was measured of one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The model: its folder, as it was given.
    pub model: String,
    /// Whether it is the folder of the report; who reads the file decides.
    pub this_folder: bool,
    /// The recipe it was quantized with; `None` for an original.
    pub recipe: Option<String>,
    /// Bytes of its tensors.
    pub bytes: Option<u64>,
    /// Stored bits per weight.
    pub bits_per_weight: Option<f64>,
    /// Perplexity on a text.
    pub perplexity: Option<Perplexity>,
    /// KL divergence to the reference.
    pub kld: Option<Divergence>,
    /// Tasks by name.
    pub tasks: Vec<(String, Task)>,
    /// Wall-clock seconds.
    pub seconds: Option<f64>,
}

/// A perplexity and how it was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// The perplexity.
    pub value: f64,
    /// Half of its 95 % interval, if known.
    pub margin: Option<f64>,
    /// Tokens of a window.
    pub window: Option<u64>,
    /// Windows scored.
    pub windows: Option<u64>,
    /// Tokens scored.
    pub tokens: Option<u64>,
    /// How it was measured, in words.
    pub protocol: Option<String>,
}

/// KL divergence in nats a token, and how often the likeliest token is the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// Mean.
    pub mean: Option<f64>,
    /// Half of the mean's 95 % interval.
    pub margin: Option<f64>,
    /// Median.
    pub median: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// Share of tokens.
    pub top1_agreement: Option<f64>,
}

/// Accuracy on a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Task {
    /// Share of rows answered rightly.
    pub acc: Option<f64>,
    /// The same with choices compared by their likelihood per byte.
    pub acc_norm: Option<f64>,
    /// Standard error of `acc`.
    pub stderr: Option<f64>,
    /// Rows.
    pub n: Option<u64>,
    /// `acc` beside that of the first model, on the same rows.
    pub paired: Option<Paired>,
    /// Other figures of a labelled set by name: F1, Matthews' correlation (CoLA), Pearson's and Spearman's (STS-B).
    pub scores: Vec<(String, Score)>,
}

/// A figure of a labelled set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The figure.
    pub value: f64,
    /// Its 95 % bootstrap interval.
    pub interval: Option<[f64; 2]>,
    /// The figure less that of the first model, on the same rows, and the ends of the difference's 95 % interval.
    pub difference: Option<[f64; 3]>,
}

/// A model's accuracy less the reference's, question by question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// The difference.
    pub difference: f64,
    /// Its 95 % bootstrap interval.
    pub interval: [f64; 2],
    /// McNemar's exact test.
    pub p_value: Option<f64>,
}

/// Standard errors to either side of a 95 % interval.
pub(crate) const NORMAL_95: f64 = 1.96;

impl Evaluation {
    /// Reads one file: a single model, or several under `models`, `rows` or `results`.
    ///
    /// # Errors
    /// [`EvaluationError::NothingMeasured`].
    pub fn read(value: &Value) -> Result<Vec<Self>, EvaluationError> {
        let several = ["models", "rows", "results"].iter().find_map(|k| value.get(k)?.as_array());
        let found: Vec<Self> = match several {
            Some(rows) => {
                let protocol = value.get("protocol").and_then(Value::as_str);
                let mut models: Vec<Self> = rows.iter().filter_map(Self::one).collect();
                for perplexity in models.iter_mut().filter_map(|m| m.perplexity.as_mut()) {
                    perplexity.protocol = perplexity.protocol.take().or(protocol.map(String::from));
                }
                models
            }
            None => Self::one(value).into_iter().collect(),
        };
        if found.is_empty() { Err(EvaluationError::NothingMeasured) } else { Ok(found) }
    }

    fn one(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(String::from);
        let recipe = text("quantized").or_else(|| text("recipe"));
        let model = ["model", "name", "dir", "recipe"].iter().find_map(|k| text(k));
        let tasks = value.get("tasks").and_then(Value::as_object);
        // Images or texts that were classified are one more task.
        let classification = value.get("classification").and_then(|c| {
            let data = c.get("data").and_then(Value::as_str).unwrap_or("classes");
            Some((data.to_string(), Task::read(c)?))
        });
        let evaluation = Self {
            model: model.unwrap_or_else(|| "unnamed".into()),
            this_folder: false,
            recipe,
            bytes: ["size_bytes", "bytes", "output_bytes"].iter().find_map(|k| whole(value, k)),
            bits_per_weight: number(value, "bits_per_weight"),
            perplexity: value.get("perplexity").and_then(Perplexity::read),
            kld: ["divergence", "kld"].iter().find_map(|k| Divergence::read(value.get(k)?)),
            tasks: tasks
                .into_iter()
                .flatten()
                .filter_map(|(name, v)| Some((name.clone(), Task::read(v)?)))
                .chain(classification)
                .collect(),
            seconds: number(value, "seconds"),
        };
        let measured =
            evaluation.perplexity.is_some() || evaluation.kld.is_some() || !evaluation.tasks.is_empty();
        measured.then_some(evaluation)
    }

    /// What is measured in several files of one model is one row: takes over what `self` lacks.
    pub(crate) fn complete(&mut self, other: Self) {
        self.recipe = self.recipe.take().or(other.recipe);
        self.bytes = self.bytes.or(other.bytes);
        self.bits_per_weight = self.bits_per_weight.or(other.bits_per_weight);
        self.perplexity = self.perplexity.take().or(other.perplexity);
        self.kld = self.kld.take().or(other.kld);
        self.tasks.extend(other.tasks);
        // Of several runs none is the time of the whole.
        self.seconds = None;
    }

    /// Whether `other` measured another thing of the same model.
    pub(crate) fn goes_with(&self, other: &Self) -> bool {
        let twice = (self.perplexity.is_some() && other.perplexity.is_some())
            || (self.kld.is_some() && other.kld.is_some())
            || self.tasks.iter().any(|(name, _)| other.tasks.iter().any(|(o, _)| o == name));
        self.model == other.model && !twice
    }
}

impl Perplexity {
    fn read(value: &Value) -> Option<Self> {
        let margin = number(value, "stderr").map(|s| NORMAL_95 * s);
        Some(Self {
            value: value.as_f64().or_else(|| number(value, "value"))?,
            margin,
            window: whole(value, "window"),
            windows: whole(value, "windows"),
            tokens: whole(value, "tokens"),
            protocol: value.get("protocol").and_then(Value::as_str).map(String::from),
        })
    }
}

impl Divergence {
    fn read(value: &Value) -> Option<Self> {
        let key = |key| number(value, key);
        let found = Self {
            mean: value.as_f64().or_else(|| key("mean")),
            margin: key("stderr").map(|s| NORMAL_95 * s),
            median: key("median"),
            p99: key("p99"),
            top1_agreement: key("same_top1").or_else(|| key("top1_agreement")),
        };
        (found.mean.is_some() || found.median.is_some()).then_some(found)
    }
}

impl Task {
    fn read(value: &Value) -> Option<Self> {
        let found = Self {
            acc: number(value, "acc"),
            acc_norm: number(value, "acc_norm"),
            stderr: number(value, "stderr"),
            n: whole(value, "n"),
            paired: value.get("paired").and_then(Paired::read),
            scores: scores(value),
        };
        let measured = found.acc.is_some() || found.acc_norm.is_some() || !found.scores.is_empty();
        measured.then_some(found)
    }
}

/// All `metrics` but the accuracy, which is read as such.
fn scores(value: &Value) -> Vec<(String, Score)> {
    let metrics = value.get("metrics").and_then(Value::as_object).into_iter().flatten();
    let score = |(name, v): (&String, &Value)| {
        let difference = value.get("differences").and_then(|d| d.get(name)).and_then(|d| {
            let [low, high] = interval(d)?;
            Some([number(d, "value")?, low, high])
        });
        let score = Score { value: number(v, "value")?, interval: interval(v), difference };
        (name != "accuracy").then(|| (name.clone(), score))
    };
    metrics.filter_map(score).collect()
}

fn interval(value: &Value) -> Option<[f64; 2]> {
    let end = |i: usize| value.get("interval")?.get(i)?.as_f64();
    Some([end(0)?, end(1)?])
}

impl Paired {
    fn read(value: &Value) -> Option<Self> {
        Some(Self {
            difference: number(value, "difference")?,
            interval: interval(value)?,
            p_value: number(value, "p_value"),
        })
    }
}

fn number(value: &Value, key: &str) -> Option<f64> {
    value.get(key)?.as_f64()
}

fn whole(value: &Value, key: &str) -> Option<u64> {
    value.get(key)?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_model_or_several() {
        let eval = json!({ "model": "out", "quantized": "fpq-w4a4", "new": [1], "seconds": 2.5,
            "perplexity": { "value": 8.25, "window": 128, "windows": 3, "tokens": 381, "also": null } });
        let found = Evaluation::read(&eval).unwrap();
        assert_eq!((found[0].model.as_str(), found[0].recipe.as_deref()), ("out", Some("fpq-w4a4")));
        let perplexity = found[0].perplexity.as_ref().unwrap();
        assert_eq!((perplexity.value, perplexity.tokens), (8.25, Some(381)));

        let compare = json!({ "models": [eval, { "model": "full", "quantized": null, "kld": { "mean": 0.0 },
            "tasks": { "piqa": { "acc": 0.7, "stderr": 0.01, "n": 200,
                "paired": { "difference": -0.1, "interval": [-0.2, 0.0], "p_value": 0.04 } }, "broken": 3 } }] });
        let found = Evaluation::read(&compare).unwrap();
        assert_eq!((found.len(), found[1].tasks.len()), (2, 1));
        let classes = json!({ "model": "vit", "classification": { "data": "test", "acc": 0.9, "n": 500 } });
        let vit = Evaluation::read(&classes).unwrap().remove(0);
        assert_eq!((vit.tasks[0].0.as_str(), vit.tasks[0].1.acc), ("test", Some(0.9)));
        // A regression has no accuracy.
        let stsb = json!({ "model": "bert", "classification": { "data": "stsb", "n": 1500, "metrics": {
            "pearson": { "value": 0.88, "stderr": 0.01, "interval": [0.86, 0.9] },
            "spearman": { "value": null, "stderr": null, "interval": null } },
            "differences": { "pearson": { "value": -0.02, "interval": [-0.03, -0.01] } } } });
        let stsb = Evaluation::read(&stsb).unwrap().remove(0);
        let pearson =
            Score { value: 0.88, interval: Some([0.86, 0.9]), difference: Some([-0.02, -0.03, -0.01]) };
        assert_eq!(stsb.tasks[0].1.scores, [("pearson".to_owned(), pearson)]);
        let task = &found[1].tasks[0].1;
        assert_eq!((task.acc, task.paired.as_ref().unwrap().interval), (Some(0.7), [-0.2, 0.0]));
    }

    #[test]
    fn files_of_one_model_go_together() {
        let read = |v| Evaluation::read(&v).unwrap().remove(0);
        let mut first = read(json!({ "model": "m", "perplexity": 8.0 }));
        let tasks = read(json!({ "model": "m", "tasks": { "piqa": { "acc": 0.7 } } }));
        let again = read(json!({ "model": "m", "perplexity": 9.0 }));
        assert!(first.goes_with(&tasks) && !first.goes_with(&again));
        first.complete(tasks);
        assert_eq!((first.tasks.len(), first.perplexity.unwrap().value), (1, 8.0));
    }

    #[test]
    fn a_file_of_another_kind_is_refused() {
        assert!(Evaluation::read(&json!({ "seconds": 3 })).is_err());
        assert!(Evaluation::read(&json!([1, 2])).is_err());
        assert!(Run::read(&json!({ "model": "m", "perplexity": 8.0 }), 5).is_err());
        let run = json!({ "seconds": 3.5, "output_bytes": 5, "resumed_layers": 0, "peak_rss_bytes": null });
        assert_eq!(Run::read(&run, 5).unwrap().seconds, 3.5);
        assert!(Run::read(&run, 6).unwrap_err().to_string().contains("another run"));
    }
}
