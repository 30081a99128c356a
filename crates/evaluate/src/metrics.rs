//! How good predictions are: the figures of GLUE, and how sure they are.

use crate::divergence::quantile;
use halfbyte_data::{Metric, Random};
use halfbyte_tensor::mix;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Right answers beside a model's, row by row.
#[derive(Clone, Debug, PartialEq)]
pub enum Answers {
    /// Classes: the right one and the model's.
    Classes {
        /// How many there are.
        count: usize,
        /// Right and said.
        rows: Vec<(usize, usize)>,
    },
    /// Numbers: the right one and the model's.
    Scores(Vec<(f64, f64)>),
}

/// A figure and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The figure; `None` where it is not defined, as a correlation with a constant.
    pub value: Option<f64>,
    /// Its standard error: of an accuracy from the sample standard deviation over the rows, of any other figure the standard
    /// deviation over bootstrap samples of the rows (Efron, 1979).
    pub stderr: Option<f64>,
    /// 95 % interval: 2.5 % and 97.5 % quantiles over bootstrap samples.
    pub interval: Option<[f64; 2]>,
}

/// A model's figure less the reference's, over the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The difference.
    pub value: Option<f64>,
    /// Its 95 % interval: quantiles over bootstrap samples of the rows, the same for both.
    pub interval: Option<[f64; 2]>,
}

/// Bootstrap samples.
pub(crate) const SAMPLES: usize = 10_000;

impl Answers {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes { rows, .. } => rows.len(),
            Self::Scores(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The figure over all rows; `None` where it is not defined.
    pub fn measure(&self, metric: Metric) -> Option<f64> {
        self.over(metric, 0..self.len())
    }

    /// The figure over these rows, which may be named more than once.
    fn over(&self, metric: Metric, chosen: impl Iterator<Item = usize>) -> Option<f64> {
        match self {
            Self::Classes { count, rows } => {
                let mut table = vec![0u64; count * count];
                chosen.for_each(|i| table[rows[i].0 * count + rows[i].1] += 1);
                of_classes(metric, &table, *count)
            }
            Self::Scores(rows) => {
                let (gold, found): (Vec<f64>, Vec<f64>) = chosen.map(|i| rows[i]).unzip();
                match metric {
                    Metric::Pearson => pearson(&gold, &found),
                    Metric::Spearman => pearson(&ranks(&gold), &ranks(&found)),
                    Metric::Accuracy | Metric::F1 | Metric::Matthews => None,
                }
            }
        }
    }

    /// The figure with what is known of its certainty. `seed` draws the bootstrap samples.
    pub fn score(&self, metric: Metric, seed: u64) -> Score {
        let value = self.measure(metric);
        let (n, samples) =
            (self.len(), sorted(self.len(), seed, |rows| self.over(metric, rows.iter().copied())));
        let stderr = match (metric, value) {
            _ if n < 2 => None,
            (Metric::Accuracy, Some(p)) => share_error(p, n),
            _ => deviation(&samples),
        };
        Score { value, stderr, interval: value.and_then(|_| interval(&samples)) }
    }

    /// This model's figure less that of `reference`, which answered the same rows.
    ///
    /// # Panics
    /// If they are of different length.
    pub fn difference(&self, reference: &Self, metric: Metric, seed: u64) -> Difference {
        assert_eq!(self.len(), reference.len(), "answers to the same rows");
        let over = |rows: &[usize]| {
            let (own, other) = (rows.iter().copied(), rows.iter().copied());
            Some(self.over(metric, own)? - reference.over(metric, other)?)
        };
        let all: Vec<usize> = (0..self.len()).collect();
        let value = over(&all);
        Difference { value, interval: value.and_then(|_| interval(&sorted(self.len(), seed, over))) }
    }
}

/// `figure` over every bootstrap sample of `n` rows where it is defined, in rising order.
fn sorted(n: usize, seed: u64, figure: impl Fn(&[usize]) -> Option<f64> + Sync) -> Vec<f64> {
    let sample = |i: usize| {
        // A start of its own for every sample, so that threads do not matter.
        let mut random = Random::new(mix(mix(seed).wrapping_add(i as u64)));
        let rows: Vec<usize> = (0..n).map(|_| random.below(n)).collect();
        figure(&rows)
    };
    let mut samples: Vec<f64> = (0..SAMPLES).into_par_iter().filter_map(sample).collect();
    samples.sort_unstable_by(f64::total_cmp);
    samples
}

/// The standard error of a share `p` of `n` rows: the sample standard deviation of zeros and ones, over √n.
pub(crate) fn share_error(p: f64, n: usize) -> Option<f64> {
    (n > 1).then(|| (p * (1.0 - p) / (n - 1) as f64).sqrt())
}

fn interval(sorted: &[f64]) -> Option<[f64; 2]> {
    (!sorted.is_empty()).then(|| [quantile(sorted, 0.025), quantile(sorted, 0.975)])
}

fn deviation(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())
}

/// A figure of a table with a row for every right class and a column for every one said.
fn of_classes(metric: Metric, table: &[u64], count: usize) -> Option<f64> {
    let sum = |cells: &mut dyn Iterator<Item = usize>| cells.map(|i| table[i]).sum::<u64>() as f64;
    let right = |k: usize| table[k * count + k] as f64;
    let gold: Vec<f64> = (0..count).map(|k| sum(&mut (k * count..(k + 1) * count))).collect();
    let found: Vec<f64> = (0..count).map(|k| sum(&mut (0..count).map(|g| g * count + k))).collect();
    let (all, hits) = (gold.iter().sum::<f64>(), (0..count).map(right).sum::<f64>());
    if all == 0.0 {
        return None;
    }
    match metric {
        Metric::Accuracy => Some(hits / all),
        Metric::F1 => {
            // 2 TP / (2 TP + FP + FN), and 0 for a class that neither occurs nor is said, as scikit-learn has it.
            let f1 = |k: usize| {
                let both = gold[k] + found[k];
                if both == 0.0 { 0.0 } else { 2.0 * right(k) / both }
            };
            Some(if count == 2 { f1(1) } else { (0..count).map(f1).sum::<f64>() / count as f64 })
        }
        Metric::Matthews => {
            // R_K (Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004); for
            // two classes Matthews' own. 0 where it is not defined, as scikit-learn has it.
            let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let spread = |a: &[f64]| all * all - product(a, a);
            let below = (spread(&gold) * spread(&found)).sqrt();
            Some(if below == 0.0 { 0.0 } else { (hits * all - product(&gold, &found)) / below })
        }
        Metric::Pearson | Metric::Spearman => None,
    }
}

/// Pearson's correlation coefficient; `None` for fewer than two rows or where one side does not vary.
fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    let centred = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / n;
        x.iter().map(|v| v - mean).collect::<Vec<f64>>()
    };
    let constant = |x: &[f64]| x.iter().all(|v| *v == x[0]);
    if a.len() < 2 || constant(a) || constant(b) {
        return None;
    }
    let (a, b) = (centred(a), centred(b));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    Some((product(&a, &b) / (product(&a, &a).sqrt() * product(&b, &b).sqrt())).clamp(-1.0, 1.0))
}

/// Each value's place in the order of all; equal ones share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = before as f64 + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|&i| ranks[i] = mean);
        before += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn golden() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/metrics.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn numbers(case: &Value, key: &str) -> Vec<f64> {
        case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    /// Right and said classes.
    fn classes(count: usize, gold: &[usize], found: &[usize]) -> Answers {
        Answers::Classes { count, rows: gold.iter().copied().zip(found.iter().copied()).collect() }
    }

    #[test]
    fn figures_are_those_of_scikit_learn_and_scipy() {
        let golden = golden();
        let check = |answers: &Answers, metric: Metric, case: &Value| {
            let (got, expected) = (answers.measure(metric).unwrap(), case[metric.name()].as_f64().unwrap());
            assert!((got - expected).abs() < 1e-12, "{metric:?}: {got}, {expected}, {case}");
        };
        for case in golden["classes"].as_array().unwrap() {
            let whole = |key| numbers(case, key).into_iter().map(|v| v as usize).collect::<Vec<_>>();
            let answers =
                classes(case["classes"].as_u64().unwrap() as usize, &whole("gold"), &whole("found"));
            for metric in [Metric::Accuracy, Metric::F1, Metric::Matthews] {
                check(&answers, metric, case);
            }
            assert_eq!(answers.measure(Metric::Pearson), None);
        }
        for case in golden["scores"].as_array().unwrap() {
            let rows = numbers(case, "gold").into_iter().zip(numbers(case, "found")).collect();
            let answers = Answers::Scores(rows);
            for metric in [Metric::Pearson, Metric::Spearman] {
                check(&answers, metric, case);
            }
            assert_eq!(answers.measure(Metric::Accuracy), None);
        }
    }

    #[test]
    fn what_is_not_defined_is_none_and_a_single_row_has_no_error() {
        let flat = Answers::Scores(vec![(1.0, 2.0), (1.0, 3.0)]).score(Metric::Pearson, 0);
        assert_eq!(flat, Score { value: None, stderr: None, interval: None });
        let one = classes(2, &[1], &[1]).score(Metric::Accuracy, 0);
        assert_eq!((one.value, one.stderr), (Some(1.0), None));
        assert_eq!(classes(2, &[], &[]).score(Metric::F1, 0).value, None);
    }

    /// 1,000 rows of two classes, right in 800.
    fn mostly_right(shift: usize) -> Answers {
        let gold: Vec<usize> = (0..1000).map(|i| i % 2).collect();
        let found: Vec<usize> =
            (0..1000).map(|i| if (i + shift).is_multiple_of(5) { 1 - i % 2 } else { i % 2 }).collect();
        classes(2, &gold, &found)
    }

    #[test]
    fn bootstrap_and_formula_say_the_same_of_an_accuracy() {
        let score = mostly_right(0).score(Metric::Accuracy, 3);
        let error = (0.8f64 * 0.2 / 999.0).sqrt();
        assert!((score.stderr.unwrap() - error).abs() < 1e-12);
        let [low, high] = score.interval.unwrap();
        assert!((low - (0.8 - 1.96 * error)).abs() < 0.002 && (high - (0.8 + 1.96 * error)).abs() < 0.002);
        // Matthews' coefficient of a balanced table is 2 acc - 1, so its error is twice as large.
        let matthews = mostly_right(0).score(Metric::Matthews, 3);
        assert!((matthews.stderr.unwrap() / error - 2.0).abs() < 0.05, "{matthews:?}");
        assert_eq!(score, mostly_right(0).score(Metric::Accuracy, 3));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| mostly_right(0).score(Metric::Matthews, 3)), matthews);
    }

    #[test]
    fn differences_are_over_the_same_rows() {
        let (a, b) = (mostly_right(0), mostly_right(1));
        let none = a.difference(&a, Metric::F1, 0);
        assert_eq!((none.value, none.interval), (Some(0.0), Some([0.0, 0.0])));
        // 200 rows that one has right and 200 the other: the difference is 0 ± 1.96 √(0.4 / 1000).
        let apart = b.difference(&a, Metric::Accuracy, 0);
        let half = 1.96 * 0.0004f64.sqrt();
        assert!(apart.value.unwrap().abs() < 1e-12);
        assert!((apart.interval.unwrap()[1] - half).abs() < 0.003, "{apart:?}, {half}");
    }
}
