//! The tasks of GLUE (Wang et al., 2019), with the columns and labels that the hub's data set `nyu-mll/glue` has.

/// A figure that says how good predictions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Share of right answers.
    Accuracy,
    /// F1 of class 1 where there are two classes, else the mean of the classes' F1.
    F1,
    /// Matthews' correlation coefficient.
    Matthews,
    /// Pearson's correlation coefficient.
    Pearson,
    /// Spearman's rank correlation coefficient.
    Spearman,
}

impl Metric {
    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::Matthews => "matthews",
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
        }
    }
}

/// A task of GLUE.
#[derive(Debug, PartialEq, Eq)]
pub struct Glue {
    /// Its name on the hub.
    pub name: &'static str,
    /// Columns of the one or two texts.
    pub columns: &'static [&'static str],
    /// Names of the classes by their numbers in the column `label`; none where that holds a score.
    pub labels: &'static [&'static str],
    /// What GLUE measures.
    pub metrics: &'static [Metric],
}

use Metric::{Accuracy, F1, Matthews, Pearson, Spearman};

const SENTENCE: &[&str] = &["sentence"];
const SENTENCES: &[&str] = &["sentence1", "sentence2"];
const ENTAILMENT: &[&str] = &["entailment", "not_entailment"];

static TASKS: [Glue; 9] = [
    Glue { name: "sst2", columns: SENTENCE, labels: &["negative", "positive"], metrics: &[Accuracy] },
    Glue { name: "cola", columns: SENTENCE, labels: &["unacceptable", "acceptable"], metrics: &[Matthews] },
    Glue {
        name: "mrpc",
        columns: SENTENCES,
        labels: &["not_equivalent", "equivalent"],
        metrics: &[Accuracy, F1],
    },
    Glue {
        name: "qqp",
        columns: &["question1", "question2"],
        labels: &["not_duplicate", "duplicate"],
        metrics: &[Accuracy, F1],
    },
    Glue { name: "stsb", columns: SENTENCES, labels: &[], metrics: &[Pearson, Spearman] },
    Glue {
        name: "mnli",
        columns: &["premise", "hypothesis"],
        labels: &["entailment", "neutral", "contradiction"],
        metrics: &[Accuracy],
    },
    Glue { name: "qnli", columns: &["question", "sentence"], labels: ENTAILMENT, metrics: &[Accuracy] },
    Glue { name: "rte", columns: SENTENCES, labels: ENTAILMENT, metrics: &[Accuracy] },
    Glue {
        name: "wnli",
        columns: SENTENCES,
        labels: &["not_entailment", "entailment"],
        metrics: &[Accuracy],
    },
];

impl Glue {
    /// All of them.
    pub fn all() -> &'static [Self] {
        &TASKS
    }

    /// The one with this name; hyphens and upper case do not matter (`STS-B` is `stsb`).
    pub fn find(name: &str) -> Option<&'static Self> {
        let plain = name.to_ascii_lowercase().replace(['-', '_'], "");
        TASKS.iter().find(|t| t.name == plain)
    }
}
