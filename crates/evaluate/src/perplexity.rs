//! Perplexity over windows of a text.

use crate::cache::{Book, Cache, key};
use crate::likelihood::{Item, Request, Sizes, score, work};
use crate::progress::Meter;
use crate::{EvaluateError, Progress};
use halfbyte_model::Model;
use serde::{Deserialize, Serialize};

/// The figure and its protocol, see [`Perplexity::protocol`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// exp(total negative log-likelihood / tokens scored).
    pub value: f64,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from the start of a window to that of the next.
    pub stride: usize,
    /// Windows scored.
    pub windows: usize,
    /// Tokens scored.
    pub tokens: usize,
}

/// What to score.
#[derive(Clone, Copy, Debug)]
pub struct PerplexityOptions {
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from the start of a window to that of the next; the window's length if `None`, so that none overlap.
    pub stride: Option<usize>,
    /// Score the first so many windows; all if `None`.
    pub windows: Option<usize>,
    /// Leave out so many tokens at the start of the text.
    pub skip_tokens: usize,
}

impl Perplexity {
    pub(crate) fn new(options: &PerplexityOptions, windows: &[Item], nll: f64) -> Self {
        let tokens = windows.iter().flatten().map(|w| w.scored).sum::<usize>();
        let stride = options.stride.unwrap_or(options.window);
        let value = (nll / tokens as f64).exp();
        Self { value, window: options.window, stride, windows: windows.len(), tokens }
    }

    /// How it was measured, in words.
    pub fn protocol(&self) -> String {
        let Self { window, stride, windows, tokens, .. } = self;
        let scored = if stride < window {
            format!(
                "overlapping, {stride} tokens apart; all but the first token of the first scored, of the others the last {stride} alone"
            )
        } else {
            "not overlapping; all but the first token of each scored".into()
        };
        format!(
            "text tokenised whole without special tokens; {windows} windows of {window} tokens, {scored}, {tokens} in all; what is left at the end is left out; exp(total negative log-likelihood / tokens scored)"
        )
    }
}

impl PerplexityOptions {
    /// Checks that a text's `tokens` can be scored.
    ///
    /// # Errors
    /// When the text is too short or the windows are not possible.
    pub fn check(&self, tokens: &[u32]) -> Result<(), EvaluateError> {
        windows(tokens, self).map(|_| ())
    }
}

/// The windows that `options` cuts from a text's `tokens`.
///
/// # Errors
/// When the text is too short or the windows are not possible.
pub(crate) fn windows(tokens: &[u32], options: &PerplexityOptions) -> Result<Vec<Item>, EvaluateError> {
    let PerplexityOptions { window, stride, windows, skip_tokens } = *options;
    if window < 2 {
        return Err(EvaluateError::Window(format!(
            "a window of {window} tokens cannot be scored; it needs at least 2"
        )));
    }
    let stride = stride.unwrap_or(window);
    if stride == 0 || stride > window {
        return Err(EvaluateError::Window(format!(
            "a stride of {stride} tokens leaves out text or stands still; give --stride 1 to {window}, the window"
        )));
    }
    let text = tokens.get(skip_tokens..).unwrap_or_default();
    let count = if text.len() < window { 0 } else { (text.len() - window) / stride + 1 };
    if count == 0 {
        return Err(EvaluateError::TooShort { tokens: text.len(), skipped: skip_tokens, window });
    }
    let item = |i: usize| {
        let scored = if i == 0 { window - 1 } else { stride.min(window - 1) };
        vec![Request { tokens: text[i * stride..i * stride + window].to_vec(), scored }]
    };
    Ok((0..count.min(windows.unwrap_or(usize::MAX))).map(item).collect())
}

/// Scores the `tokens` of a text.
///
/// Blocks are read one at a time and each runs over a batch of windows, so memory holds one block and the hidden states
/// of a batch whatever the model's depth. With a `cache` every finished batch is kept there.
///
/// # Errors
/// When the text is too short, the model cannot be read or computed, or `progress` asks to stop.
pub fn perplexity(
    model: &Model,
    tokens: &[u32],
    options: PerplexityOptions,
    cache: Option<&Cache>,
    progress: &mut dyn Progress,
) -> Result<Perplexity, EvaluateError> {
    EvaluateError::require_language_model(model)?;
    let windows = windows(tokens, &options)?;
    let mut book: Book<f64> = Book::of(cache, model, "perplexity")?;
    let keys: Vec<String> = windows.iter().map(key).collect();
    let pending: Vec<usize> = (0..windows.len()).filter(|&i| book.get(&keys[i]).is_none()).collect();
    let items: Vec<&Item> = pending.iter().map(|&i| &windows[i]).collect();
    let sizes = Sizes::of(model);
    let mut meter = Meter::new(progress, items.iter().map(|i| work(model, i)).sum());
    meter.progress.items("windows", windows.len() - items.len(), windows.len(), None);
    for batch in sizes.batches(&items) {
        let end = windows.len() - items.len() + batch.end;
        let scored = score(model, &items[batch.clone()], sizes, &mut meter)?;
        for (&i, likelihood) in pending[batch].iter().zip(scored) {
            let nll = -likelihood[0].log_probability;
            if !nll.is_finite() {
                return Err(EvaluateError::NonFinite(format!("window {i}")));
            }
            book.put(keys[i].clone(), nll);
        }
        book.save()?;
        meter.progress.items("windows", end, windows.len(), None);
    }
    let nll = keys.iter().filter_map(|k| book.get(k)).sum();
    Ok(Perplexity::new(&options, &windows, nll))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_model::{model, tokens};
    use halfbyte_model::Input;
    use halfbyte_tensor::log_sum_exp;

    fn plain(model: &Model, window: &[u32], scored: usize) -> f64 {
        let logits = model.trace(&[Input::Tokens(window.to_vec())]).unwrap().2;
        let nll =
            |t: usize| log_sum_exp(logits.row(t - 1)) - f64::from(logits.row(t - 1)[window[t] as usize]);
        (window.len() - scored..window.len()).map(nll).sum()
    }

    #[test]
    fn a_stride_scores_every_token_once_with_more_context() {
        let model = model();
        let tokens = tokens(&model);
        let options = |stride| PerplexityOptions { window: 64, stride, windows: Some(7), skip_tokens: 100 };
        let run =
            |stride| perplexity(&model, &tokens, options(stride), None, &mut |_: u64, _: u64| true).unwrap();
        let text = &tokens[100..];

        let apart = run(None);
        let nll: f64 = (0..7).map(|i| plain(&model, &text[64 * i..64 * (i + 1)], 63)).sum();
        assert_eq!((apart.tokens, apart.stride, apart.windows), (7 * 63, 64, 7));
        assert!((apart.value - (nll / 441.0).exp()).abs() < 1e-9);
        assert_eq!(run(Some(64)), apart);

        let close = run(Some(20));
        let nll: f64 = plain(&model, &text[..64], 63)
            + (1..7).map(|i| plain(&model, &text[20 * i..20 * i + 64], 20)).sum::<f64>();
        assert_eq!((close.tokens, close.windows), (63 + 6 * 20, 7));
        assert!((close.value - (nll / 183.0).exp()).abs() < 1e-9);
        assert!(close.protocol().contains("20 tokens apart"));
    }

    #[test]
    fn all_whole_windows_are_scored() {
        let count = |n: usize, stride| {
            let options = PerplexityOptions { window: 10, stride, windows: None, skip_tokens: 2 };
            windows(&vec![3; n], &options).map(|w| w.len())
        };
        assert_eq!((count(12, None).unwrap(), count(31, None).unwrap(), count(32, None).unwrap()), (1, 2, 3));
        assert_eq!((count(15, Some(3)).unwrap(), count(14, Some(3)).unwrap()), (2, 1));
        assert!(matches!(count(11, None), Err(EvaluateError::TooShort { tokens: 9, .. })));
        assert!(count(50, Some(0)).is_err() && count(50, Some(11)).is_err());
    }
}
