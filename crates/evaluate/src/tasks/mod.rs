//! Zero-shot tasks, prompted and scored as lm-evaluation-harness 0.4.13 does it.

mod definitions;
mod prompt;

pub use definitions::Kind;

use crate::cache::{Book, Cache, key};
use crate::likelihood::{Item, Likelihood, Sizes, score, work};
use crate::metrics::share_error;
use crate::progress::Meter;
use crate::{EvaluateError, Progress};
use definitions::{DEFINITIONS, OWN, Question};
use halfbyte_data::{DataError, Row, Rows, Selection};
use halfbyte_model::{Model, Tokenizer};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A task, read from its file.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name, that of the file without the ending.
    pub name: String,
    kind: Kind,
    path: String,
    /// The number of each in the file, from 1.
    questions: Vec<(usize, Question)>,
    /// What such a number counts: `line` or `row`.
    unit: &'static str,
}

/// A task's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Share of rows whose best choice by summed log-probability is right; for LAMBADA of those whose last word is the
    /// most probable one, token by token.
    pub acc: f64,
    /// Standard error of `acc`, from the sample standard deviation over the rows; `None` for one row.
    pub stderr: Option<f64>,
    /// Share of rows whose best choice by log-probability per character is right, where the task defines it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub acc_norm: Option<f64>,
    /// Standard error of `acc_norm`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stderr_norm: Option<f64>,
    /// exp(−mean log-probability of the last word), for LAMBADA.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub perplexity: Option<f64>,
    /// Rows.
    pub n: usize,
}

/// What the model said to one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowResult {
    /// Number of the row in its file, from 1.
    pub row: usize,
    /// The right choice.
    pub gold: usize,
    /// The best choice by summed log-probability.
    pub choice: usize,
    /// The best choice by log-probability per character.
    pub choice_norm: usize,
    /// Whether `choice` is right; for LAMBADA whether the last word is the most probable one.
    pub correct: bool,
    /// Summed log-probability of every choice.
    pub log_probabilities: Vec<f64>,
}

/// A finished task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskOutcome {
    /// Its name.
    pub name: String,
    /// Its figures.
    pub result: TaskResult,
    /// Its rows.
    pub rows: Vec<RowResult>,
}

impl Task {
    /// Reads `NAME.jsonl` or `NAME.parquet` of `dir`. A name that is no known task is one of the user's own.
    ///
    /// # Errors
    /// When there is no such file, or a row of it is wrong (by file and line), whether it is selected or not.
    pub fn open(dir: &Path, name: &str, selection: Selection) -> Result<Self, EvaluateError> {
        if name.is_empty() || name.contains(['/', '\\']) {
            let message = "not the name of a task; write for example --tasks piqa,arc_easy".into();
            return Err(EvaluateError::Task { name: name.into(), message });
        }
        let definition = DEFINITIONS.iter().find(|d| d.name == name).unwrap_or(&OWN);
        let rows = Rows::read(&file(dir, name)?, &[])?;
        let read = |(number, row): (usize, &Row)| match (definition.read)(row) {
            Ok(question) => Ok((number, question)),
            Err(message) => Err(rows.wrong(number, message)),
        };
        let questions = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if questions.is_empty() {
            let message = format!("{} has no rows", rows.path().display());
            return Err(EvaluateError::Task { name: name.into(), message });
        }
        let questions = selection.of(questions.len()).into_iter().map(|i| questions[i].clone()).collect();
        let path = rows.path().display().to_string();
        Ok(Self { name: name.into(), kind: definition.kind, path, questions, unit: rows.unit() })
    }

    /// What is asked of the model.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Rows that are asked.
    pub fn rows(&self) -> usize {
        self.questions.len()
    }

    /// The tokens of every question.
    fn items(&self, tokenizer: &Tokenizer, most: usize) -> Result<Vec<Item>, EvaluateError> {
        let item = |(number, question): &(usize, Question)| {
            let request = |(context, continuation): &(String, String)| {
                prompt::encode(tokenizer, context, continuation, most)?
                    .map_err(|message| self.wrong(*number, message))
            };
            question.pairs.iter().map(request).collect::<Result<Item, EvaluateError>>()
        };
        self.questions.par_iter().map(item).collect()
    }

    fn wrong(&self, number: usize, message: String) -> EvaluateError {
        let row = format!("{} {number}", self.unit);
        DataError::Row { path: self.path.clone(), row, message }.into()
    }

    fn row(&self, i: usize, found: &[Likelihood]) -> RowResult {
        let (number, question) = &self.questions[i];
        let log_probabilities: Vec<f64> = found.iter().map(|l| l.log_probability).collect();
        let per_character = log_probabilities.iter().zip(&question.lengths).map(|(l, &n)| l / n as f64);
        let choice = best(log_probabilities.iter().copied());
        let correct = match self.kind {
            Kind::Choice { .. } => choice == question.gold,
            Kind::LastWord => found[0].greedy,
        };
        let choice_norm = best(per_character);
        RowResult { row: *number, gold: question.gold, choice, choice_norm, correct, log_probabilities }
    }

    fn outcome(&self, rows: Vec<RowResult>) -> TaskOutcome {
        let n = rows.len();
        let share = |right: &dyn Fn(&RowResult) -> bool| {
            let p = rows.iter().filter(|r| right(r)).count() as f64 / n as f64;
            (p, share_error(p, n))
        };
        let (acc, stderr) = share(&|r| r.correct);
        let mut result = TaskResult { acc, stderr, acc_norm: None, stderr_norm: None, perplexity: None, n };
        match self.kind {
            Kind::Choice { norm: true } => {
                let (acc, stderr) = share(&|r| r.choice_norm == r.gold);
                (result.acc_norm, result.stderr_norm) = (Some(acc), stderr);
            }
            Kind::Choice { norm: false } => {}
            Kind::LastWord => {
                let total: f64 = rows.iter().map(|r| r.log_probabilities[0]).sum();
                result.perplexity = Some((-total / n as f64).exp());
            }
        }
        TaskOutcome { name: self.name.clone(), result, rows }
    }
}

/// `NAME.jsonl` or `NAME.parquet` of `dir`.
fn file(dir: &Path, name: &str) -> Result<PathBuf, EvaluateError> {
    let fail = |message: String| EvaluateError::Task { name: name.into(), message };
    let [jsonl, parquet] = ["jsonl", "parquet"].map(|kind| dir.join(format!("{name}.{kind}")));
    match (jsonl.is_file(), parquet.is_file()) {
        (true, true) => Err(fail(format!(
            "there are both {} and {}; which is meant? Move one away",
            jsonl.display(),
            parquet.display()
        ))),
        (true, false) => Ok(jsonl),
        (false, true) => Ok(parquet),
        (false, false) => Err(fail(format!(
            "neither {} nor {} is there; --task-dir is the folder with the files of the tasks",
            jsonl.display(),
            parquet.display()
        ))),
    }
}

/// The first of the largest, as numpy's argmax.
fn best(values: impl Iterator<Item = f64>) -> usize {
    values.enumerate().fold((0, f64::NEG_INFINITY), |best, (i, v)| if v > best.1 { (i, v) } else { best }).0
}

/// Asks the model all tasks. With a `cache` every finished batch of rows is kept there.
///
/// # Errors
/// When a row has nothing to score (by file and line), the model cannot be computed, or `progress` asks to stop.
pub fn run_tasks(
    model: &Model,
    tasks: &[Task],
    cache: Option<&Cache>,
    progress: &mut dyn Progress,
) -> Result<Vec<TaskOutcome>, EvaluateError> {
    EvaluateError::require_language_model(model)?;
    let (tokenizer, most) = (model.tokenizer()?, model.architecture.context);
    let items = tasks.iter().map(|t| t.items(&tokenizer, most)).collect::<Result<Vec<_>, _>>()?;
    let mut book: Book<Vec<Likelihood>> = Book::of(cache, model, "tasks")?;
    let keys: Vec<Vec<String>> = items.iter().map(|items| items.iter().map(key).collect()).collect();
    let pending = |t: usize, book: &Book<_>| -> Vec<usize> {
        (0..items[t].len()).filter(|&i| book.get(&keys[t][i]).is_none()).collect()
    };
    let todo = (0..tasks.len()).flat_map(|t| pending(t, &book).into_iter().map(move |i| (t, i)));
    let mut meter = Meter::new(progress, todo.map(|(t, i)| work(model, &items[t][i])).sum());
    let sizes = Sizes::of(model);
    let mut outcomes = Vec::with_capacity(tasks.len());
    for (t, task) in tasks.iter().enumerate() {
        let pending = pending(t, &book);
        let asked: Vec<&Item> = pending.iter().map(|&i| &items[t][i]).collect();
        let rows = |book: &Book<Vec<Likelihood>>| -> Vec<RowResult> {
            let found = keys[t].iter().enumerate().filter_map(|(i, k)| Some((i, book.get(k)?)));
            found.map(|(i, found)| task.row(i, found)).collect()
        };
        let tell = |book: &Book<_>, meter: &mut Meter| {
            let rows = rows(book);
            let right = rows.iter().filter(|r| r.correct).count();
            let accuracy = (!rows.is_empty()).then(|| right as f64 / rows.len() as f64);
            meter.progress.items(&task.name, rows.len(), task.rows(), accuracy);
        };
        tell(&book, &mut meter);
        for batch in sizes.batches(&asked) {
            let found = score(model, &asked[batch.clone()], sizes, &mut meter)?;
            for (&i, found) in pending[batch].iter().zip(found) {
                if found.iter().any(|l| !l.log_probability.is_finite()) {
                    let row = task.wrong(task.questions[i].0, String::new());
                    return Err(EvaluateError::NonFinite(
                        row.to_string().trim_end_matches([':', ' ']).into(),
                    ));
                }
                book.put(keys[t][i].clone(), found);
            }
            book.save()?;
            tell(&book, &mut meter);
        }
        outcomes.push(task.outcome(rows(&book)));
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_model::model;
    use std::fs;

    const PIQA: &str = r#"{"goal": "make a wish", "sol1": "Close your eyes and think.", "sol2": "Close the door and eat the", "label": 0}
{"goal": "play", "sol1": "sleep in the park", "sol2": "go to the park with your friends", "label": 1}

{"goal": "be happy", "sol1": "smile", "sol2": "cry", "label": 0}
"#;

    fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    fn go_on() -> impl Progress {
        |_: u64, _: u64| true
    }

    #[test]
    fn figures_follow_from_the_rows() {
        let dir = files(&[("piqa.jsonl", PIQA)]);
        let task = Task::open(dir.path(), "piqa", Selection::default()).unwrap();
        let outcome = run_tasks(&model(), &[task], None, &mut go_on()).unwrap().remove(0);
        assert_eq!(outcome.rows.iter().map(|r| r.row).collect::<Vec<_>>(), [1, 2, 4], "line numbers");
        let right = outcome.rows.iter().filter(|r| r.correct).count() as f64;
        let norm = outcome.rows.iter().filter(|r| r.choice_norm == r.gold).count() as f64;
        let result = &outcome.result;
        assert_eq!((result.acc, result.acc_norm, result.n), (right / 3.0, Some(norm / 3.0), 3));
        assert!((result.stderr.unwrap() - (result.acc * (1.0 - result.acc) / 2.0).sqrt()).abs() < 1e-12);
        for row in &outcome.rows {
            let best = usize::from(row.log_probabilities[1] > row.log_probabilities[0]);
            assert_eq!((row.choice, row.correct), (best, best == row.gold));
        }
    }

    #[test]
    fn lambada_wants_the_most_probable_word() {
        let text = r#"{"text": "Once upon a time, there was a little girl named Lily. She loved to play outside in the park"}
{"text": "Once upon a time, there was a little girl named zebra"}"#;
        let dir = files(&[("lambada.jsonl", text)]);
        let task = Task::open(dir.path(), "lambada", Selection::default()).unwrap();
        let outcome = run_tasks(&model(), &[task], None, &mut go_on()).unwrap().remove(0);
        assert!(!outcome.rows[1].correct && outcome.result.acc_norm.is_none());
        let mean = (outcome.rows[0].log_probabilities[0] + outcome.rows[1].log_probabilities[0]) / 2.0;
        assert!((outcome.result.perplexity.unwrap() - (-mean).exp()).abs() < 1e-9);
    }

    #[test]
    fn a_limit_takes_the_first_rows_and_with_a_seed_random_ones() {
        let lines: String = (0..50)
            .map(|i| format!("{{\"context\": \"{i}\", \"choices\": [\"a\", \"b\"], \"answer\": 0}}\n"))
            .collect();
        let dir = files(&[("mine.jsonl", &lines)]);
        let rows = |limit, seed| -> Vec<usize> {
            let task = Task::open(dir.path(), "mine", Selection { limit, seed }).unwrap();
            task.questions.iter().map(|q| q.0).collect()
        };
        assert_eq!(rows(Some(3), None), [1, 2, 3]);
        assert_eq!(rows(None, None).len(), 50);
        assert_eq!(rows(Some(99), Some(1)).len(), 50);
        assert_eq!(rows(Some(9), Some(1)), rows(Some(9), Some(1)));
        assert_ne!(rows(Some(9), Some(1)), rows(Some(9), Some(2)));
    }

    #[test]
    fn errors_name_file_and_line() {
        let dir = files(&[
            (
                "piqa.jsonl",
                "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\", \"label\": 1}\n\n{\"goal\": \"a\"}",
            ),
            ("arc_easy.jsonl", "{\"question\": "),
            ("boolq.jsonl", "\n"),
            ("openbookqa.jsonl", "{}"),
            ("openbookqa.parquet", "{}"),
            ("winogrande.parquet", "PAR1 it is not"),
            ("mine.jsonl", "{\"context\": \"a\", \"choices\": [\"b\", \"\"], \"answer\": 0}"),
        ]);
        for (name, needles) in [
            ("piqa", &["piqa.jsonl, line 3", "\"sol1\" is missing"][..]),
            ("arc_easy", &["arc_easy.jsonl, line 1", "not JSON"]),
            ("boolq", &["boolq.jsonl has no rows"]),
            ("openbookqa", &["both", "openbookqa.parquet"]),
            ("winogrande", &["winogrande.parquet", "not a parquet file"]),
            ("hellaswag", &["task hellaswag", "hellaswag.jsonl", "--task-dir"]),
            ("../piqa", &["not the name of a task"]),
        ] {
            let error = Task::open(dir.path(), name, Selection::default()).unwrap_err().to_string();
            assert!(needles.iter().all(|n| error.contains(n)), "{name}: {error}");
        }
        // Nothing but its own space is left of an empty choice, which this tokenizer does score.
        let task = Task::open(dir.path(), "mine", Selection::default()).unwrap();
        run_tasks(&model(), &[task], None, &mut go_on()).unwrap();
    }

    #[test]
    fn the_hubs_parquet_says_the_same_as_jsonl() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        for name in ["arc_easy", "winogrande", "hellaswag"] {
            let [jsonl, parquet] = ["jsonl", "parquet"].map(|kind| {
                let dir = tempfile::tempdir().unwrap();
                let file = format!("{name}.{kind}");
                fs::copy(golden.join(&file), dir.path().join(&file)).unwrap();
                Task::open(dir.path(), name, Selection::default()).unwrap()
            });
            assert_eq!(jsonl.questions.len(), 3);
            let texts = |t: &Task| t.questions.iter().map(|q| q.1.clone()).collect::<Vec<_>>();
            assert_eq!(texts(&jsonl), texts(&parquet), "{name}");
        }
    }

    #[test]
    fn a_stopped_run_goes_on_and_more_rows_cost_only_themselves() {
        let lines: String = (0..400)
            .map(|i| {
                format!(
                    "{{\"context\": \"{}\", \"choices\": [\"a dog\", \"the {i}\"], \"answer\": 1}}\n",
                    "once upon a time ".repeat(i % 9 + 1)
                )
            })
            .collect();
        let dir = files(&[("mine.jsonl", &lines), ("program", "x")]);
        let task = |limit| Task::open(dir.path(), "mine", Selection { limit, seed: None }).unwrap();
        let cache = Cache::open(&dir.path().join("cache"), &dir.path().join("program")).unwrap();
        let model = model();
        let whole = run_tasks(&model, &[task(None)], None, &mut go_on()).unwrap();
        let mut first = 0;
        let mut stop = |done: u64, all: u64| {
            first = all;
            done < all / 2
        };
        assert!(matches!(
            run_tasks(&model, &[task(None)], Some(&cache), &mut stop),
            Err(EvaluateError::Stopped)
        ));
        let mut left = 0;
        let mut see = |_: u64, all: u64| {
            left = all;
            true
        };
        assert_eq!(run_tasks(&model, &[task(None)], Some(&cache), &mut see).unwrap(), whole);
        assert!(left < first, "{left} of {first} units were left");
        let mut nothing = |_: u64, _: u64| panic!("nothing is left to do");
        assert_eq!(run_tasks(&model, &[task(None)], Some(&cache), &mut nothing).unwrap(), whole);
        run_tasks(&model, &[task(Some(7))], Some(&cache), &mut |_: u64, _: u64| panic!("nothing is left"))
            .unwrap();
    }
}
