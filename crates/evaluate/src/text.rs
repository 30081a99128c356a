use crate::EvaluateError;
use std::path::Path;

/// Reads a UTF-8 text. Line ends become `\n`, as Python's text mode makes them: figures published for a text mean that.
///
/// # Errors
/// [`EvaluateError::Text`] when the file cannot be read, is not UTF-8 or is empty.
pub fn read_text(path: &Path) -> Result<String, EvaluateError> {
    let fail = |message: String| EvaluateError::Text { path: path.display().to_string(), message };
    let bytes = std::fs::read(path).map_err(|e| fail(format!("cannot read it: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| fail(format!("not UTF-8 text: {e}")))?;
    if text.trim().is_empty() {
        return Err(fail("the text is empty".into()));
    }
    Ok(text.replace("\r\n", "\n").replace('\r', "\n"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn line_ends_become_newlines() {
        let file = std::env::temp_dir().join(format!("halfbyte-text-{}", std::process::id()));
        std::fs::write(&file, "a\r\nb\rc\n").unwrap();
        let text = super::read_text(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(text, "a\nb\nc\n");
    }
}
