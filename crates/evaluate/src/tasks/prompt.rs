//! From texts to tokens.

use super::definitions::is_space;
use crate::likelihood::Request;
use halfbyte_model::{ModelError, Tokenizer};

/// The request that scores `continuation` after `context`.
///
/// Trailing blanks of the context move over to the continuation, both are tokenised together, and as many tokens as the
/// context alone has are cut off the front: what is left is scored. A sequence longer than the model's context of
/// `most` tokens (and one more, which is only a target) loses its left end.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
    most: usize,
) -> Result<Result<Request, String>, ModelError> {
    let text = format!("{context}{continuation}");
    let context = tokenizer.encode_prompt(context.trim_end_matches(is_space))?;
    let mut tokens = tokenizer.encode_prompt(&text)?;
    if context.is_empty() {
        return Ok(Err(
            "there is no context, and this tokenizer adds no token to begin a sequence with".into()
        ));
    }
    let scored = tokens.len().saturating_sub(context.len());
    if scored == 0 {
        return Ok(Err(format!("{continuation:?} has no tokens of its own after the context")));
    }
    if scored > most {
        return Ok(Err(format!("{scored} tokens are to be scored, more than the model's context of {most}")));
    }
    tokens.drain(..tokens.len().saturating_sub(most + 1));
    Ok(Ok(Request { tokens, scored }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_model::model;

    #[test]
    fn blanks_belong_to_the_choice_and_long_contexts_lose_their_left_end() {
        let tokenizer = model().tokenizer().unwrap();
        let ids = |text: &str| tokenizer.encode_prompt(text).unwrap();
        let run = |context: &str, choice: &str, most| encode(&tokenizer, context, choice, most).unwrap();

        let plain = run("Once upon a", " time", 512).unwrap();
        assert_eq!(plain.tokens, ids("Once upon a time"));
        assert_eq!(plain.tokens[0], 1, "this tokenizer begins a sequence by itself");
        assert_eq!(plain.scored, ids("Once upon a time").len() - ids("Once upon a").len());
        let blank = run("Once upon a \n", " time", 512).unwrap();
        assert_eq!(blank.tokens, ids("Once upon a \n time"));
        assert_eq!(blank.scored, blank.tokens.len() - ids("Once upon a").len());

        let whole = run("Once upon a time there was a little", " girl", 512).unwrap();
        let cut = run("Once upon a time there was a little", " girl", 5).unwrap();
        assert_eq!(cut.tokens, whole.tokens[whole.tokens.len() - 6..]);
        assert_eq!(cut.scored, whole.scored);

        assert!(run("Once", "", 512).unwrap_err().contains("no tokens"));
        assert!(
            run("Once", " upon a time there was a girl", 3).unwrap_err().contains("more than the model's")
        );
    }
}
