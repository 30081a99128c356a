//! Labelled texts and images, classified and counted.

use crate::cache::{Book, Cache};
use crate::classes::class_logits;
use crate::metrics::{Answers, Score};
use crate::{EvaluateError, Progress};
use halfbyte_data::{DataError, Examples, Gold, Metric};
use halfbyte_model::{Input, Model};
use halfbyte_tensor::index_of_largest;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rows of the network between two readings of its weights, beyond which no further examples are taken together: enough
/// that reading costs little, few enough that the accuracy so far is said often.
const ROWS: usize = if cfg!(test) { 64 } else { 8192 };
/// Examples that are prepared at a time.
const LOADED: usize = 16;

/// The figures of a labelled set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassificationResult {
    /// The set: its file or folder without the ending.
    pub data: String,
    /// Examples.
    pub n: usize,
    /// Share of right answers; `None` where answers are numbers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub acc: Option<f64>,
    /// Standard error of `acc`, from the sample standard deviation over the examples; `None` for one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stderr: Option<f64>,
    /// Every figure that belongs to the set, by its name ([`Metric::name`]).
    pub metrics: BTreeMap<String, Score>,
}

/// What the model said to one example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifiedRow {
    /// Where it stands: `sst2.jsonl, line 12`, or the path of an image.
    pub place: String,
    /// The right class, or the right number.
    pub gold: f64,
    /// The class of the largest logit, or the number that the model gives.
    pub answer: f64,
    /// What the network gave for every class.
    pub logits: Vec<f32>,
}

/// A finished set.
#[derive(Clone, Debug, PartialEq)]
pub struct Classified {
    /// Its figures.
    pub result: ClassificationResult,
    /// Right and given answers.
    pub answers: Answers,
    /// Its examples.
    pub rows: Vec<ClassifiedRow>,
}

impl Classified {
    /// Which examples were answered rightly; `None` where answers are numbers.
    pub fn correct(&self) -> Option<Vec<bool>> {
        match &self.answers {
            Answers::Classes { rows, .. } => Some(rows.iter().map(|(gold, said)| gold == said).collect()),
            Answers::Scores(_) => None,
        }
    }
}

/// Classifies every example. `metrics` are the figures that are wanted beside accuracy; `seed` draws their bootstrap
/// samples. With a `cache` every finished batch is kept there.
///
/// # Errors
/// When an example cannot be read or is not what the model takes, the model does not classify or cannot be computed, or
/// `progress` asks to stop.
pub fn classify(
    model: &Model,
    examples: &dyn Examples,
    metrics: &[Metric],
    seed: u64,
    cache: Option<&Cache>,
    progress: &mut dyn Progress,
) -> Result<Classified, EvaluateError> {
    // Says it before any example is read.
    class_logits(model, &[], &mut |_, _| true)?;
    let n = examples.len();
    let mut book: Book<Vec<f32>> = Book::of(cache, model, "classes")?;
    let keys = (0..n).into_par_iter().map(|i| examples.key(i)).collect::<Result<Vec<_>, DataError>>()?;
    let pending: Vec<usize> = (0..n).filter(|&i| book.get(&keys[i]).is_none()).collect();
    let name = examples.name();
    let tell = |book: &Book<Vec<f32>>, progress: &mut dyn Progress| {
        let known = keys.iter().enumerate().filter_map(|(i, k)| Some((i, book.get(k)?)));
        let right: Vec<bool> = known.map(|(i, logits)| is_right(examples.gold(i), logits)).collect();
        let scores = matches!(examples.gold(0), Some(Gold::Score(_)));
        let accuracy = (!right.is_empty() && !scores)
            .then(|| right.iter().filter(|r| **r).count() as f64 / right.len() as f64);
        progress.items(&name, right.len(), n, accuracy);
    };
    tell(&book, progress);
    let mut waiting = pending.as_slice();
    while !waiting.is_empty() {
        let (mut inputs, mut rows) = (Vec::new(), 0);
        while rows < ROWS && inputs.len() < waiting.len() {
            let piece = &waiting[inputs.len()..waiting.len().min(inputs.len() + LOADED)];
            let loaded =
                piece.par_iter().map(|&i| load(model, examples, i)).collect::<Result<Vec<_>, _>>()?;
            rows += loaded.iter().map(|i| model.architecture.rows(i)).sum::<usize>();
            inputs.extend(loaded);
        }
        let (now, later) = waiting.split_at(inputs.len());
        let before = (pending.len() - waiting.len()) as u64;
        let mut share = |done: u64, all: u64| {
            let done = before * UNITS + now.len() as u64 * UNITS * done / all.max(1);
            progress.work(done, pending.len() as u64 * UNITS)
        };
        let found = class_logits(model, &inputs, &mut share).map_err(|e| match e {
            EvaluateError::NonFinite(_) => {
                let [first, last] = [0, now.len() - 1].map(|i| examples.place(now[i]));
                EvaluateError::NonFinite(format!("an example from {first} to {last}"))
            }
            other => other,
        })?;
        for (&i, logits) in now.iter().zip(found.data.chunks_exact(found.cols)) {
            book.put(keys[i].clone(), logits.to_vec());
        }
        book.save()?;
        tell(&book, progress);
        waiting = later;
    }
    let logits: Vec<Vec<f32>> = keys.iter().filter_map(|k| book.get(k).cloned()).collect();
    Ok(count(examples, name, metrics, seed, logits))
}

/// Units of progress of an example.
const UNITS: u64 = 1000;

/// An example that surely fits the model.
fn load(model: &Model, examples: &dyn Examples, i: usize) -> Result<Input, EvaluateError> {
    let (input, a) = (examples.load(i)?, &model.architecture);
    match a.rows(&input) {
        rows if rows == 0 || rows > a.context => {
            let place = examples.place(i);
            let message =
                format!("{place}: it has {rows} rows for the network, which takes 1 to {}", a.context);
            Err(EvaluateError::Input(message))
        }
        _ => Ok(input),
    }
}

fn is_right(gold: Option<Gold>, logits: &[f32]) -> bool {
    matches!(gold, Some(Gold::Class(class)) if class == index_of_largest(logits))
}

fn count(
    examples: &dyn Examples,
    data: String,
    metrics: &[Metric],
    seed: u64,
    logits: Vec<Vec<f32>>,
) -> Classified {
    let classes = logits.first().map_or(0, Vec::len);
    let gold = |i: usize| match examples.gold(i) {
        Some(Gold::Class(class)) => class as f64,
        Some(Gold::Score(score)) => score,
        None => f64::NAN,
    };
    let scores = classes == 1;
    let rows: Vec<ClassifiedRow> = logits
        .into_iter()
        .enumerate()
        .map(|(i, logits)| ClassifiedRow {
            place: examples.place(i),
            gold: gold(i),
            answer: if scores { f64::from(logits[0]) } else { index_of_largest(&logits) as f64 },
            logits,
        })
        .collect();
    let answers = match scores {
        true => Answers::Scores(rows.iter().map(|r| (r.gold, r.answer)).collect()),
        false => Answers::Classes {
            count: classes,
            rows: rows.iter().map(|r| (r.gold as usize, r.answer as usize)).collect(),
        },
    };
    let accuracy = (!scores).then(|| answers.score(Metric::Accuracy, seed));
    let others = metrics.iter().filter(|m| **m != Metric::Accuracy);
    let named = others.map(|m| (m.name().to_string(), answers.score(*m, seed)));
    let result = ClassificationResult {
        data,
        n: rows.len(),
        acc: accuracy.and_then(|a| a.value),
        stderr: accuracy.and_then(|a| a.stderr),
        metrics: accuracy.into_iter().map(|a| (Metric::Accuracy.name().into(), a)).chain(named).collect(),
    };
    Classified { result, answers, rows }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Texts of different lengths with two classes.
    struct Texts(usize);

    impl Examples for Texts {
        fn name(&self) -> String {
            "texts".into()
        }

        fn len(&self) -> usize {
            self.0
        }

        fn gold(&self, i: usize) -> Option<Gold> {
            Some(Gold::Class(i % 2))
        }

        fn place(&self, i: usize) -> String {
            format!("text {i}")
        }

        fn load(&self, i: usize) -> Result<Input, DataError> {
            Ok(Input::Tokens((0..1 + i * 7 % 38).map(|t| ((t * 13 + i * 29) % 96) as u32).collect()))
        }

        fn key(&self, i: usize) -> Result<String, DataError> {
            Ok(format!("text {i}"))
        }
    }

    fn bert() -> Model {
        Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/bert")).unwrap()
    }

    #[test]
    fn batches_and_kept_rows_change_nothing() {
        let (model, dir) = (bert(), tempfile::tempdir().unwrap());
        let program = dir.path().join("program");
        std::fs::write(&program, "").unwrap();
        let cache = Cache::open(dir.path(), &program).unwrap();
        let metrics = [Metric::Accuracy, Metric::F1];
        let all = |n, cache| classify(&model, &Texts(n), &metrics, 0, cache, &mut |_, _| true).unwrap();
        let once = all(30, None);
        assert_eq!(all(11, Some(&cache)).rows, once.rows[..11]);
        assert_eq!(all(30, Some(&cache)), once);
        let inputs: Vec<Input> = (0..30).map(|i| Texts(30).load(i).unwrap()).collect();
        let logits = class_logits(&model, &inputs, &mut |_, _| true).unwrap();
        assert_eq!(once.rows.iter().flat_map(|r| r.logits.clone()).collect::<Vec<_>>(), logits.data);
        let right = once.rows.iter().filter(|r| r.gold == r.answer).count();
        assert_eq!((once.result.n, once.result.acc), (30, Some(right as f64 / 30.0)));
        assert!(once.result.metrics.contains_key("f1") && once.result.metrics.contains_key("accuracy"));
        assert_eq!(once.correct().unwrap().iter().filter(|c| **c).count(), right);
    }

    #[test]
    fn progress_rises_and_may_stop() {
        struct Told(Vec<(u64, u64)>, Vec<(usize, usize)>, u64);
        impl Progress for Told {
            fn work(&mut self, done: u64, all: u64) -> bool {
                self.0.push((done, all));
                done < self.2
            }

            fn items(&mut self, _: &str, done: usize, all: usize, accuracy: Option<f64>) {
                assert_eq!(accuracy.is_none(), done == 0);
                self.1.push((done, all));
            }
        }
        let mut told = Told(Vec::new(), Vec::new(), u64::MAX);
        classify(&bert(), &Texts(30), &[], 0, None, &mut told).unwrap();
        assert!(told.0.is_sorted() && told.0.last() == Some(&(30 * UNITS, 30 * UNITS)));
        assert!(told.1.len() > 2 && told.1.last() == Some(&(30, 30)));
        let mut stops = Told(Vec::new(), Vec::new(), 1);
        let stopped = classify(&bert(), &Texts(30), &[], 0, None, &mut stops);
        assert!(matches!(stopped, Err(EvaluateError::Stopped)));
    }
}
