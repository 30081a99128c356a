//! Which columns of a file hold the texts and the label, and which class of the model a label is.

use super::Glue;
use crate::labels::Labels;
use crate::rows::{Row, Rows};
use crate::{DataError, Gold};
use std::path::Path;

/// What a file with texts is.
#[derive(Clone, Debug, Default)]
pub struct TextOptions {
    /// A task of GLUE: its columns, labels and metrics.
    pub glue: Option<&'static Glue>,
    /// The columns of the one or two texts, where they are not those of the task or of any known one.
    pub text_columns: Vec<String>,
    /// The column of the label; `label` if `None`.
    pub label_column: Option<String>,
    /// Which class of the model, by its name in config.json, each label 0, 1, … of the data is, where the names do not
    /// tell.
    pub label_names: Vec<String>,
}

/// Columns of texts that are known without being named, those that are part of others last.
const KNOWN: [&[&str]; 6] = [
    &["sentence1", "sentence2"],
    &["premise", "hypothesis"],
    &["question1", "question2"],
    &["question", "sentence"],
    &["sentence"],
    &["text"],
];

const LABEL: &str = "label";

/// Where the texts and the label of a row are.
#[derive(Debug, PartialEq)]
pub(super) struct Columns {
    pub(super) texts: Vec<String>,
    pub(super) label: String,
}

/// Reads the rows of a file and finds out where the texts are in them.
pub(super) fn read(path: &Path, options: &TextOptions, labelled: bool) -> Result<(Rows, Columns), DataError> {
    if options.text_columns.len() > 2 {
        return Err(DataError::file(path, "more than two columns of texts; a network reads one text or two"));
    }
    let label = options.label_column.as_deref().unwrap_or(LABEL);
    let mut names: Vec<&str> = options.text_columns.iter().map(String::as_str).chain([label]).collect();
    match options.glue {
        Some(task) => names.extend(task.columns),
        None => names.extend(KNOWN.iter().copied().flatten()),
    }
    let rows = Rows::read(path, &names)?;
    let first = rows.first().ok_or_else(|| DataError::file(path, "it has no rows"))?;
    let columns = find(first, options, labelled).map_err(|message| DataError::file(path, message))?;
    Ok((rows, columns))
}

fn find(first: &Row, options: &TextOptions, labelled: bool) -> Result<Columns, String> {
    let there: Vec<&str> = first.names().collect();
    let list = there.join(", ");
    let columns = |texts: &[&str], label: &str| Columns {
        texts: texts.iter().map(|t| t.to_string()).collect(),
        label: options.label_column.clone().unwrap_or_else(|| label.into()),
    };
    if !options.text_columns.is_empty() {
        let texts: Vec<&str> = options.text_columns.iter().map(String::as_str).collect();
        if let Some(name) = texts.iter().find(|t| !there.contains(t)) {
            return Err(format!("there is no column {name:?} (there are {list})"));
        }
        return Ok(columns(&texts, LABEL));
    }
    let has = |texts: &[&str]| texts.iter().all(|t| there.contains(t));
    // Without names in the file the texts come first and the label after them.
    let numbered = there.iter().enumerate().all(|(i, name)| *name == (i + 1).to_string());
    let in_order = |texts: usize| {
        let fits = there.len() == texts + 1 || (!labelled && there.len() == texts);
        let numbers = || columns(&there[..texts], there.last().copied().unwrap_or(LABEL));
        (numbered && fits).then(numbers)
    };
    let found = match options.glue {
        Some(task) if has(task.columns) => Some(columns(task.columns, LABEL)),
        Some(task) => in_order(task.columns.len()),
        None => KNOWN
            .iter()
            .find(|texts| has(texts))
            .map(|texts| columns(texts, LABEL))
            .or_else(|| (1..=2).rev().find_map(in_order)),
    };
    found.ok_or_else(|| match options.glue {
        Some(task) => {
            let wanted = task.columns.join(", ");
            format!("{} has the columns {wanted} and label, the file has {list}; name its columns", task.name)
        }
        None => format!("none of the columns {list} is known to hold texts; name those that do"),
    })
}

/// From labels of the data to answers.
#[derive(Debug)]
pub(super) struct Answers<'a> {
    model: &'a Labels,
    glue: Option<&'static Glue>,
    /// The model's class of each label of the data.
    classes: Vec<usize>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(model: &'a Labels, options: &TextOptions) -> Result<Self, String> {
        let (glue, count) = (options.glue, model.count());
        if let Some(task) = glue {
            let wanted = task.labels.len().max(1);
            if wanted != count {
                let kind = if task.labels.is_empty() {
                    "is a score".into()
                } else {
                    format!("has {wanted} classes")
                };
                return Err(format!(
                    "{} {kind}, the model has {count} output{}: {}",
                    task.name,
                    if count == 1 { "" } else { "s" },
                    model.list()
                ));
            }
        }
        let classes = if !options.label_names.is_empty() {
            let found: Result<Vec<usize>, String> =
                options.label_names.iter().map(|n| model.find(n)).collect();
            found?
        } else {
            match glue {
                Some(task) if model.named() && count > 1 => by_name(task, model)?,
                _ => (0..count).collect(),
            }
        };
        let mut sorted = classes.clone();
        sorted.sort_unstable();
        if sorted.iter().copied().ne(0..count) {
            return Err(format!(
                "{} names of labels are given, and not one for each of the model's {count} classes ({})",
                classes.len(),
                model.list()
            ));
        }
        Ok(Self { model, glue, classes })
    }

    /// The answer in column `label` of `row`.
    pub(super) fn of(&self, row: &Row, label: &str) -> Result<Gold, String> {
        let value = row.get(label)?;
        if self.model.count() == 1 {
            let number = value.as_f64().or_else(|| value.as_str().and_then(|s| s.trim().parse().ok()));
            let number = number.filter(|n| n.is_finite() && *n >= 0.0);
            return number.map(Gold::Score).ok_or_else(|| {
                format!("field {label:?} is {value}, not a score of at least 0 (a file without answers?)")
            });
        }
        let class = match value.as_str().map(str::trim).filter(|s| s.parse::<f64>().is_err()) {
            Some(name) => self.named(name)?,
            None => self.classes[row.index(label, 0, self.classes.len())?],
        };
        Ok(Gold::Class(class))
    }

    fn named(&self, name: &str) -> Result<usize, String> {
        let label = self.glue.and_then(|task| task.labels.iter().position(|l| plain(l) == plain(name)));
        match label {
            Some(label) => Ok(self.classes[label]),
            None => self.model.find(name),
        }
    }
}

/// The model's classes in the order of the task's labels, which have the same names.
fn by_name(task: &Glue, model: &Labels) -> Result<Vec<usize>, String> {
    let class = |label: &&str| model.names().iter().position(|n| plain(n) == plain(label));
    let classes: Option<Vec<usize>> = task.labels.iter().map(class).collect();
    classes.ok_or_else(|| {
        format!(
            "the labels of {} are {}, the model's classes {}; say by --label-names which class each label is, in the order \
             of the labels",
            task.name,
            task.labels.join(", "),
            model.list()
        )
    })
}

/// A name without what differs between writers.
fn plain(name: &str) -> String {
    name.to_lowercase().replace(['_', '-', ' '], "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::tests::labels;
    use serde_json::{Value, json};

    fn row(value: Value) -> Row {
        value.as_object().unwrap().clone().into()
    }

    fn glue(name: &str) -> TextOptions {
        TextOptions { glue: Glue::find(name), ..TextOptions::default() }
    }

    #[test]
    fn columns_are_named_known_or_in_order() {
        let columns = |value: Value, options: &TextOptions, labelled| {
            find(&row(value), options, labelled).map(|c| format!("{} > {}", c.texts.join("+"), c.label))
        };
        let any = TextOptions::default();
        let qnli = json!({"question": "", "sentence": "", "label": 0, "idx": 0});
        assert_eq!(columns(qnli.clone(), &glue("qnli"), true).unwrap(), "question+sentence > label");
        assert_eq!(columns(qnli.clone(), &any, true).unwrap(), "question+sentence > label");
        assert_eq!(columns(json!({"text": "", "label": 0}), &any, true).unwrap(), "text > label");
        assert_eq!(columns(json!({"1": "", "2": ""}), &any, true).unwrap(), "1 > 2");
        assert_eq!(columns(json!({"1": "", "2": "", "3": ""}), &any, true).unwrap(), "1+2 > 3");
        assert_eq!(columns(json!({"1": ""}), &any, false).unwrap(), "1 > 1");
        assert_eq!(columns(json!({"1": "", "2": ""}), &glue("mrpc"), false).unwrap(), "1+2 > 2");
        let own = TextOptions {
            text_columns: vec!["title".into(), "body".into()],
            label_column: Some("topic".into()),
            ..TextOptions::default()
        };
        let news = json!({"title": "", "body": "", "topic": "", "sentence": ""});
        assert_eq!(columns(news.clone(), &own, true).unwrap(), "title+body > topic");

        assert!(
            columns(qnli.clone(), &glue("mrpc"), true)
                .unwrap_err()
                .contains("the file has question, sentence")
        );
        assert!(columns(json!({"1": ""}), &any, true).unwrap_err().contains("none of the columns 1"));
        assert!(columns(qnli, &own, true).unwrap_err().contains("no column \"title\""));
    }

    #[test]
    fn labels_become_the_models_classes() {
        let answer = |config: &str, options: &TextOptions, label: Value| {
            let labels = labels(config).unwrap();
            let answers = Answers::new(&labels, options)?;
            answers.of(&row(json!({"label": label})), "label")
        };
        // The model has them in another order than GLUE.
        let mnli = r#"{"id2label": {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"}}"#;
        assert_eq!(answer(mnli, &glue("mnli"), json!(0)), Ok(Gold::Class(2)));
        assert_eq!(answer(mnli, &glue("mnli"), json!("entailment")), Ok(Gold::Class(2)));
        assert_eq!(answer(mnli, &TextOptions::default(), json!(0)), Ok(Gold::Class(0)));
        assert_eq!(answer(mnli, &TextOptions::default(), json!("neutral")), Ok(Gold::Class(1)));
        assert_eq!(answer("{}", &glue("sst2"), json!("1")), Ok(Gold::Class(1)));
        assert_eq!(answer("{}", &glue("sst2"), json!("positive")), Ok(Gold::Class(1)));
        let named = |names: &[&str]| TextOptions {
            label_names: names.iter().map(|n| n.to_string()).collect(),
            ..glue("sst2")
        };
        let odd = r#"{"id2label": {"0": "good", "1": "bad"}}"#;
        assert_eq!(answer(odd, &named(&["bad", "good"]), json!(0)), Ok(Gold::Class(1)));
        assert_eq!(answer(r#"{"num_labels": 1}"#, &glue("stsb"), json!(3.8)), Ok(Gold::Score(3.8)));

        for (config, options, label, needle) in [
            (odd, glue("sst2"), json!(0), "--label-names"),
            (odd, named(&["good"]), json!(0), "1 names of labels"),
            (odd, named(&["good", "good"]), json!(0), "not one for each"),
            (mnli, glue("sst2"), json!(0), "has 2 classes, the model has 3 outputs"),
            ("{}", glue("stsb"), json!(0), "is a score"),
            ("{}", glue("sst2"), json!(-1), "without answers"),
            ("{}", glue("sst2"), json!(2), "from 0 to 1"),
            ("{}", glue("sst2"), json!("mixed"), "none of the model's classes"),
            (r#"{"num_labels": 1}"#, glue("stsb"), json!(-1), "without answers"),
        ] {
            let error = answer(config, &options, label).unwrap_err();
            assert!(error.contains(needle), "{error}");
        }
    }
}
