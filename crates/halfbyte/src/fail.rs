//! Errors as the user sees them: `error: ...` on one line, `hint: ...` where there is something to do, an exit code.

use halfbyte_evaluate::EvaluateError;
use halfbyte_export::ExportError;
use halfbyte_quantize::QuantizeError;
use std::fmt;
use std::process::ExitCode;

/// An error of the command line's own, with what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    stopped: bool,
}

impl Failure {
    /// `message` and no hint.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, stopped: false }
    }

    /// The user asked to stop, and there is nothing to go on from.
    pub(crate) fn stopped(message: impl Into<String>) -> Self {
        Self { stopped: true, ..Self::new(message) }
    }

    /// The same with a hint.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Everything was measured, and a limit that the user gave is missed.
#[derive(Debug)]
pub(crate) struct Missed(pub(crate) Vec<String>);

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Missed {}

/// Exit code for a missed limit.
const MISSED: u8 = 3;
/// Exit code after Ctrl-C, as shells have it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Prints an error and says which exit code it has.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let line = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
    let (label, code) = if stopped(error) {
        ("stopped", INTERRUPTED)
    } else if error.is::<Missed>() {
        ("missed", MISSED)
    } else {
        ("error", 1)
    };
    match line.strip_prefix("stopped; ") {
        Some(rest) if code == INTERRUPTED => eprintln!("{label}: {rest}"),
        _ => eprintln!("{label}: {line}"),
    }
    if let Some(hint) = hint(error) {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}

/// Whether the user asked to stop.
pub(crate) fn stopped(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(QuantizeError::Stopped(_) | QuantizeError::StoppedAnew))
        || matches!(error.downcast_ref(), Some(EvaluateError::Stopped))
        || matches!(error.downcast_ref(), Some(ExportError::Stopped))
        || error.downcast_ref().is_some_and(|f: &Failure| f.stopped)
}

/// What to do, where the error itself does not say so.
fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.hint.clone();
    }
    if let Some(EvaluateError::Stopped) = error.downcast_ref() {
        return Some(
            "finished rows and windows are kept, unless by --no-cache: the same command does the rest".into(),
        );
    }
    match error.downcast_ref::<QuantizeError>()? {
        QuantizeError::UnknownRecipe { .. } => Some(
            "`halfbyte recipes` describes them; `halfbyte recipes NAME > mine.toml` starts one of your own"
                .into(),
        ),
        QuantizeError::Calibration(_) => {
            Some("--calibration wants a few pages of ordinary UTF-8 text, such as the model will read".into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_was_stopped_says_so() {
        let errors: [anyhow::Error; 4] = [
            QuantizeError::Stopped(0).into(),
            EvaluateError::Stopped.into(),
            ExportError::Stopped.into(),
            Failure::stopped("the demo was stopped").into(),
        ];
        assert!(errors.iter().all(stopped));
        assert!(!stopped(&Failure::new("no such file").into()));
        assert!(stopped(&QuantizeError::StoppedAnew.into()));
        assert!(!stopped(&QuantizeError::Singular("a layer".into()).into()));
    }
}
