//! Perplexity over non-overlapping windows.

use crate::EvaluateError;
use halfbyte_model::{Head, Model};
use halfbyte_tensor::{Matrix, log_sum_exp};
use serde::{Deserialize, Serialize};

/// The figure and its protocol: the text is tokenised whole without special tokens and cut into non-overlapping windows;
/// each window is scored over all but its first token; the value is exp(total negative log-likelihood / tokens scored).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// The perplexity.
    pub value: f64,
    /// Tokens of a window.
    pub window: usize,
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
    /// Score the first so many windows; all if `None`.
    pub windows: Option<usize>,
    /// Leave out so many tokens at the start of the text.
    pub skip_tokens: usize,
}

/// Bytes of hidden states kept at a time; windows beyond that are another pass through the blocks.
const HIDDEN_BYTES: usize = 256 << 20;
/// Tokens whose logits are computed at a time.
const LOGIT_ROWS: usize = 256;

/// Scores `tokens`. `progress` is called with (steps done, steps in all) and stops the run by returning false.
///
/// Blocks are read one at a time and each runs over all windows, so memory holds one block and the hidden states
/// whatever the model's depth.
///
/// # Errors
/// When the text is too short, or the model cannot be read or computed.
pub fn perplexity(
    model: &Model,
    tokens: &[u32],
    options: PerplexityOptions,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Perplexity, EvaluateError> {
    let PerplexityOptions { window, windows, skip_tokens } = options;
    if window < 2 {
        return Err(EvaluateError::Window(window));
    }
    let text = tokens.get(skip_tokens..).unwrap_or_default();
    let windows: Vec<&[u32]> = text.chunks_exact(window).take(windows.unwrap_or(usize::MAX)).collect();
    if windows.is_empty() {
        return Err(EvaluateError::TooShort { tokens: text.len(), skipped: skip_tokens, window });
    }
    let a = &model.architecture;
    let rotary = a.rope.tables(window);
    let steps = windows.len() * (a.blocks.len() + 1);
    let mut done = 0;
    let mut step = || {
        done += 1;
        if progress(done, steps) { Ok(()) } else { Err(EvaluateError::Stopped) }
    };
    let batch = (HIDDEN_BYTES / (window * a.hidden * 4)).max(1);
    let mut total = 0.0;
    for (b, batch_windows) in windows.chunks(batch).enumerate() {
        let mut hidden = {
            let embedding = model.embedding()?;
            batch_windows.iter().map(|w| embedding.embed(w)).collect::<Result<Vec<_>, _>>()?
        };
        for layer in 0..a.blocks.len() {
            let block = model.block(layer)?;
            for state in &mut hidden {
                *state = block.forward(std::mem::take(state), &rotary);
                step()?;
            }
        }
        let head = model.head()?;
        for (i, (state, window)) in hidden.iter().zip(batch_windows).enumerate() {
            let nll = negative_log_likelihood(&head, state, window);
            if !nll.is_finite() {
                return Err(EvaluateError::NonFinite(b * batch + i));
            }
            total += nll;
            step()?;
        }
    }
    let tokens = windows.len() * (window - 1);
    Ok(Perplexity { value: (total / tokens as f64).exp(), window, windows: windows.len(), tokens })
}

/// Σ −log p(token t + 1) over the window, from the last block's output.
fn negative_log_likelihood(head: &Head, hidden: &Matrix, window: &[u32]) -> f64 {
    let x = head.input(hidden);
    let scored = window.len() - 1;
    let mut total = 0.0;
    for from in (0..scored).step_by(LOGIT_ROWS) {
        let to = (from + LOGIT_ROWS).min(scored);
        let rows = Matrix::new(to - from, x.cols, x.data[from * x.cols..to * x.cols].to_vec());
        let logits = head.linear.forward(&rows);
        for (r, &target) in window[from + 1..=to].iter().enumerate() {
            let row = logits.row(r);
            total += log_sum_exp(row) - f64::from(row[target as usize]);
        }
    }
    total
}
