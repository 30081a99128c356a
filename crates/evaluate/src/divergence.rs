//! How far the next-token distributions of models are from those of a reference, over windows of a text.

use crate::cache::{Book, Cache, Fingerprint, key};
use crate::likelihood::{Item, Sizes, chunks, logits, pack, states, work};
use crate::perplexity::windows;
use crate::progress::Meter;
use crate::{EvaluateError, Perplexity, PerplexityOptions, Progress};
use halfbyte_model::Model;
use halfbyte_tensor::{index_of_largest, kl_divergence, log_sum_exp};
use serde::{Deserialize, Serialize};

/// `Σ p log(p / q)` in nats at every scored token, `p` the reference's distribution and `q` the model's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Mean over the tokens.
    pub mean: f64,
    /// Standard error of the mean, tokens taken as independent; `None` for one token.
    pub stderr: Option<f64>,
    /// Half of the tokens have less.
    pub median: f64,
    /// 99 of 100 tokens have less.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// Share of tokens whose most probable token is the same.
    pub same_top1: f64,
    /// Tokens scored.
    pub tokens: usize,
}

/// What one pass over a text found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergences {
    /// The reference's perplexity over the same windows.
    pub reference: Perplexity,
    /// Of every model its perplexity and its divergence from the reference.
    pub models: Vec<(Perplexity, Divergence)>,
}

/// A window of one model beside the reference.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Window {
    reference_nll: f64,
    nll: f64,
    same_top1: usize,
    divergence: Vec<f64>,
}

/// One scored token.
struct Row {
    reference_nll: f64,
    nll: f64,
    same_top1: bool,
    divergence: f64,
}

/// Compares `models` with `reference` over windows of the text's `tokens`.
///
/// One pass: for a batch of windows the last block's outputs of every model are held (never logits, which are made a few
/// rows at a time, of the reference and one model beside it), so memory does not grow with the vocabulary times the text. With a `cache`
/// every finished batch is kept there.
///
/// # Errors
/// As [`crate::perplexity`], and when vocabularies differ.
pub fn divergence(
    reference: &Model,
    models: &[&Model],
    tokens: &[u32],
    options: PerplexityOptions,
    cache: Option<&Cache>,
    progress: &mut dyn Progress,
) -> Result<Divergences, EvaluateError> {
    let vocabulary = reference.architecture.vocabulary();
    EvaluateError::require_language_model(reference)?;
    for model in models {
        EvaluateError::require_language_model(model)?;
        let other = model.architecture.vocabulary();
        if other != vocabulary {
            return Err(EvaluateError::Mismatch(format!(
                "{} has {other} tokens in its vocabulary and the reference {} has {vocabulary}: their distributions cannot be compared",
                model.checkpoint.dir().display(),
                reference.checkpoint.dir().display()
            )));
        }
    }
    let windows = windows(tokens, &options)?;
    let keys: Vec<String> = windows.iter().map(key).collect();
    let mut books: Vec<Book<Window>> = match cache {
        Some(cache) => {
            let print = Fingerprint::of(reference)?;
            let book = |m: &&Model| Ok(cache.book(&[&print, &Fingerprint::of(m)?], "divergence"));
            models.iter().map(book).collect::<Result<_, EvaluateError>>()?
        }
        None => models.iter().map(|_| Book::none()).collect(),
    };
    // Models of which every window is known are not computed again for the sake of those beside them.
    let missing = |m: &usize| keys.iter().any(|k| books[*m].get(k).is_none());
    let open: Vec<usize> = (0..models.len()).filter(missing).collect();
    let all: Vec<&Model> = [reference].into_iter().chain(open.iter().map(|&m| models[m])).collect();
    let known = |i: &usize| books.iter().all(|b| b.get(&keys[*i]).is_some());
    let pending: Vec<usize> = (0..windows.len()).filter(|i| !known(i)).collect();
    let items: Vec<&Item> = pending.iter().map(|&i| &windows[i]).collect();
    let sizes = Sizes::of(reference).among(all.len());
    let total = items.iter().map(|i| all.iter().map(|m| work(m, i)).sum::<u64>()).sum();
    let mut meter = Meter::new(progress, total);
    meter.progress.items("windows", windows.len() - items.len(), windows.len(), None);
    for batch in sizes.batches(&items) {
        let end = windows.len() - items.len() + batch.end;
        let found = compare_batch(&all, &items[batch.clone()], sizes, &mut meter)?;
        for (&i, found) in pending[batch].iter().zip(found) {
            for (&m, window) in open.iter().zip(found) {
                if !window.nll.is_finite() || !window.reference_nll.is_finite() {
                    return Err(EvaluateError::NonFinite(format!("window {i}")));
                }
                books[m].put(keys[i].clone(), window);
            }
        }
        open.iter().try_for_each(|&m| books[m].save())?;
        meter.progress.items("windows", end, windows.len(), None);
    }
    let mut reference = 0.0;
    let models = books.iter().map(|book| {
        let found: Vec<&Window> = keys.iter().filter_map(|k| book.get(k)).collect();
        reference = found.iter().map(|w| w.reference_nll).sum();
        let nll = found.iter().map(|w| w.nll).sum();
        (Perplexity::new(&options, &windows, nll), summary(&found))
    });
    let models = models.collect();
    Ok(Divergences { reference: Perplexity::new(&options, &windows, reference), models })
}

/// For every window what each model but the first is beside the first.
fn compare_batch(
    models: &[&Model],
    items: &[&Item],
    sizes: Sizes,
    meter: &mut Meter,
) -> Result<Vec<Vec<Window>>, EvaluateError> {
    let packs = pack(items, sizes);
    let states = models.iter().map(|m| states(m, &packs, meter)).collect::<Result<Vec<_>, _>>()?;
    let heads = models.iter().map(|m| m.head()).collect::<Result<Vec<_>, _>>()?;
    let mut out = Vec::with_capacity(items.len());
    for (p, pack) in packs.iter().enumerate() {
        let states: Vec<_> = states.iter().map(|s| &s[p]).collect();
        let mut token = vec![0; pack.scored_rows()];
        pack.targets().flatten().flatten().for_each(|&(row, t)| token[row] = t as usize);
        let target = |row: usize, x: &[f32]| f64::from(x[token[row]]);
        let mut found: Vec<Vec<Row>> = models[1..].iter().map(|_| Vec::with_capacity(token.len())).collect();
        // Logits of the reference and of one model at a time: however many models there are, the output layer's weights
        // are read for as many rows.
        for rows in chunks(&heads[0], token.len(), sizes) {
            let (reference, first) =
                logits(&heads[0], states[0], rows.clone(), |_, x| (log_sum_exp(x), index_of_largest(x)));
            for ((head, states), found) in heads[1..].iter().zip(&states[1..]).zip(&mut found) {
                let beside = |row: usize, x: &[f32]| {
                    let (p, (total, top)) = (reference.row(row - rows.start), first[row - rows.start]);
                    let own = log_sum_exp(x);
                    Row {
                        reference_nll: total - target(row, p),
                        nll: own - target(row, x),
                        same_top1: index_of_largest(x) == top,
                        divergence: kl_divergence((p, total), (x, own)),
                    }
                };
                found.extend(logits(head, states, rows.clone(), beside).1);
            }
        }
        for item in pack.targets() {
            let window = |found: &Vec<Row>| {
                let rows: Vec<&Row> = item.iter().flatten().map(|&(row, _)| &found[row]).collect();
                Window {
                    reference_nll: rows.iter().map(|r| r.reference_nll).sum(),
                    nll: rows.iter().map(|r| r.nll).sum(),
                    same_top1: rows.iter().filter(|r| r.same_top1).count(),
                    divergence: rows.iter().map(|r| r.divergence).collect(),
                }
            };
            out.push(found.iter().map(window).collect());
        }
        meter.add((models.len() * pack.rows()) as u64)?;
    }
    Ok(out)
}

fn summary(windows: &[&Window]) -> Divergence {
    let mut all: Vec<f64> = windows.iter().flat_map(|w| &w.divergence).copied().collect();
    all.sort_unstable_by(f64::total_cmp);
    let n = all.len();
    let mean = all.iter().sum::<f64>() / n as f64;
    let squares: f64 = all.iter().map(|v| (v - mean).powi(2)).sum();
    Divergence {
        mean,
        stderr: (n > 1).then(|| (squares / (n - 1) as f64 / n as f64).sqrt()),
        median: quantile(&all, 0.5),
        p99: quantile(&all, 0.99),
        max: quantile(&all, 1.0),
        same_top1: windows.iter().map(|w| w.same_top1).sum::<usize>() as f64 / n as f64,
        tokens: n,
    }
}

/// The quantile of sorted values, linear between them (Hyndman and Fan, 1996, definition 7).
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * (at - low as f64),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perplexity;
    use crate::test_model::{copy_with_noise, model, tokens};
    use halfbyte_model::Input;
    use halfbyte_tensor::Matrix;

    const OPTIONS: PerplexityOptions =
        PerplexityOptions { window: 50, stride: Some(30), windows: Some(5), skip_tokens: 0 };

    fn all_logits(model: &Model, window: &[u32]) -> Matrix {
        model.trace(&[Input::Tokens(window.to_vec())]).unwrap().2
    }

    #[test]
    fn agrees_with_the_definition() {
        let (reference, (_dir, other)) = (model(), copy_with_noise());
        let tokens = tokens(&reference);
        let found =
            divergence(&reference, &[&other], &tokens, OPTIONS, None, &mut |_: u64, _: u64| true).unwrap();
        let (mut all, mut same) = (Vec::new(), 0);
        for i in 0..5 {
            let window = &tokens[30 * i..30 * i + 50];
            let (p, q) = (all_logits(&reference, window), all_logits(&other, window));
            for row in if i == 0 { 0..49 } else { 19..49 } {
                let log = |x: &[f32]| {
                    let total = x.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
                    x.iter().map(|&v| f64::from(v) - total).collect::<Vec<_>>()
                };
                let (p, q) = (log(p.row(row)), log(q.row(row)));
                let top = |x: &[f64]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b]));
                same += usize::from(top(&p) == top(&q));
                all.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
            }
        }
        let (ppl, d) = &found.models[0];
        assert_eq!((d.tokens, ppl.tokens), (169, 169));
        assert!(same < 169 && (d.same_top1 - same as f64 / 169.0).abs() < 1e-12, "{same} {}", d.same_top1);
        all.sort_by(f64::total_cmp);
        for (got, exact) in [
            (d.mean, all.iter().sum::<f64>() / 169.0),
            (d.median, all[84]),
            (d.p99, all[166] + (all[167] - all[166]) * 0.32),
            (d.max, all[168]),
        ] {
            assert!((got - exact).abs() < 1e-5 * exact.max(0.1), "{got} {exact}");
        }
        // The perplexities are those that each has alone.
        let alone = |m| perplexity(m, &tokens, OPTIONS, None, &mut |_: u64, _: u64| true).unwrap();
        assert_eq!((&found.reference, ppl), (&alone(&reference), &alone(&other)));
    }

    #[test]
    fn a_model_is_no_way_from_itself() {
        let model = model();
        let tokens = tokens(&model);
        let found =
            divergence(&model, &[&model], &tokens, OPTIONS, None, &mut |_: u64, _: u64| true).unwrap();
        let d = &found.models[0].1;
        assert_eq!((d.mean, d.max, d.same_top1), (0.0, 0.0, 1.0));
    }

    #[test]
    fn a_stopped_run_goes_on_to_the_same_result() {
        let (reference, (dir, other)) = (model(), copy_with_noise());
        let tokens = tokens(&reference);
        let options = PerplexityOptions { window: 100, stride: Some(64), windows: Some(60), skip_tokens: 0 };
        let cache = Cache::open(&dir.path().join("cache"), &dir.path().join("config.json")).unwrap();
        let run = |cache, progress: &mut dyn Progress| {
            divergence(&reference, &[&other], &tokens, options, cache, progress)
        };
        let whole = run(None, &mut |_: u64, _: u64| true).unwrap();
        let mut first = 0;
        let stopped = run(Some(&cache), &mut |done: u64, all: u64| {
            first = all;
            done < all / 2
        });
        assert!(matches!(stopped, Err(EvaluateError::Stopped)));
        let mut left = 0;
        let resumed = run(Some(&cache), &mut |_: u64, all: u64| {
            left = all;
            true
        });
        assert_eq!(resumed.unwrap(), whole);
        assert!(left < first, "{left} of {first} units were left");
        assert_eq!(run(Some(&cache), &mut |_: u64, _: u64| panic!("nothing is left to do")).unwrap(), whole);
    }

    #[test]
    fn what_is_known_of_one_model_is_not_computed_again_beside_another() {
        let (reference, (dir, other)) = (model(), copy_with_noise());
        let tokens = tokens(&reference);
        let cache = Cache::open(&dir.path().join("cache"), &dir.path().join("config.json")).unwrap();
        let run = |models: &[&Model], cache| {
            let mut units = 0;
            let mut count = |_: u64, all: u64| {
                units = all;
                true
            };
            (divergence(&reference, models, &tokens, OPTIONS, cache, &mut count).unwrap(), units)
        };
        let (_, one) = run(&[&other], Some(&cache));
        let (found, added) = run(&[&other, &reference], Some(&cache));
        assert_eq!(found, run(&[&other, &reference], None).0);
        assert_eq!(added, one, "the reference and the added model");
    }

    #[test]
    fn quantiles_are_linear_between_values() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!((quantile(&sorted, 0.0), quantile(&sorted, 0.5), quantile(&sorted, 1.0)), (1.0, 3.0, 8.0));
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }
}
