//! Every task: its prompt, its choices, its answer, as lm-evaluation-harness 0.4.13 has them.

use halfbyte_data::Row;
use serde_json::Value;

/// A question as text: pairs of a context and what is scored after it, one for each choice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    pub(super) pairs: Vec<(String, String)>,
    /// The right choice.
    pub(super) gold: usize,
    /// Characters of each choice as it stands in the data.
    pub(super) lengths: Vec<usize>,
}

/// How a task's rows become questions.
pub(super) struct Definition {
    pub(super) name: &'static str,
    /// What is asked of the model.
    pub(super) kind: Kind,
    pub(super) read: fn(&Row) -> Result<Question, String>,
}

/// What is asked of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Which of several choices is the most probable.
    Choice {
        /// Whether accuracy by characters, `acc_norm`, has a meaning too.
        norm: bool,
    },
    /// The last word of a text.
    LastWord,
}

const CHOICE: Kind = Kind::Choice { norm: true };
/// For tasks whose choices are what lies before the scored text, or two fixed words.
const PLAIN: Kind = Kind::Choice { norm: false };

pub(super) const DEFINITIONS: [Definition; 10] = [
    Definition { name: "boolq", kind: PLAIN, read: boolq },
    Definition { name: "piqa", kind: CHOICE, read: piqa },
    Definition { name: "hellaswag", kind: CHOICE, read: hellaswag },
    Definition { name: "winogrande", kind: PLAIN, read: winogrande },
    Definition { name: "arc_easy", kind: CHOICE, read: arc },
    Definition { name: "arc_challenge", kind: CHOICE, read: arc },
    Definition { name: "openbookqa", kind: CHOICE, read: openbookqa },
    Definition { name: "lambada", kind: Kind::LastWord, read: lambada },
    Definition { name: "lambada_openai", kind: Kind::LastWord, read: lambada },
    Definition { name: "lambada_standard", kind: Kind::LastWord, read: lambada },
];

/// A task of the user's own, in any file whose name is none of the above.
pub(super) const OWN: Definition = Definition { name: "", kind: CHOICE, read: own };

/// One context and several choices, joined by a space that belongs to the choice.
fn choices(context: String, choices: Vec<String>, gold: usize) -> Question {
    let lengths = choices.iter().map(|c| c.chars().count()).collect();
    let pairs = choices.iter().map(|c| (context.clone(), format!(" {c}"))).collect();
    Question { pairs, gold, lengths }
}

fn boolq(row: &Row) -> Result<Question, String> {
    let context = format!("{}\nQuestion: {}?\nAnswer:", row.text("passage")?, row.text("question")?);
    // The authors' files have a truth value, SuperGLUE's a number.
    let gold = match row.find("answer").and_then(|a| a.as_bool()) {
        Some(answer) => usize::from(answer),
        None if row.find("label").is_some() => row.index("label", 0, 2)?,
        None => return Err("neither field \"answer\" (true or false) nor \"label\" (0 or 1) is there".into()),
    };
    Ok(choices(context, vec!["no".into(), "yes".into()], gold))
}

fn piqa(row: &Row) -> Result<Question, String> {
    let context = format!("Question: {}\nAnswer:", row.text("goal")?);
    let answers = vec![row.text("sol1")?.into(), row.text("sol2")?.into()];
    Ok(choices(context, answers, row.index("label", 0, 2)?))
}

fn hellaswag(row: &Row) -> Result<Question, String> {
    let (label, a, b) = (row.text("activity_label")?, row.text("ctx_a")?, row.text("ctx_b")?);
    let context = cleaned(&format!("{label}: {a} {}", capitalized(b)));
    let endings: Vec<String> = texts(row.get("endings")?, "endings")?.iter().map(|e| cleaned(e)).collect();
    let gold = row.index("label", 0, endings.len())?;
    Ok(choices(context, endings, gold))
}

fn winogrande(row: &Row) -> Result<Question, String> {
    let sentence = row.text("sentence")?;
    let (before, after) = sentence.split_once('_').ok_or("field \"sentence\" has no _ to fill")?;
    let options = [row.text("option1")?, row.text("option2")?];
    let rest = strip(after);
    let pairs = options.map(|o| (format!("{before}{o}"), format!(" {rest}"))).into();
    // The scored text is the same, and so is its length.
    let lengths = vec![rest.chars().count(); 2];
    Ok(Question { pairs, gold: row.index("answer", 1, 2)?, lengths })
}

fn arc(row: &Row) -> Result<Question, String> {
    let (answers, gold) = labelled_choices(row)?;
    Ok(choices(format!("Question: {}\nAnswer:", row.text("question")?), answers, gold))
}

fn openbookqa(row: &Row) -> Result<Question, String> {
    let (answers, gold) = labelled_choices(row)?;
    let stem = if row.find("question_stem").is_some() { "question_stem" } else { "question" };
    Ok(choices(row.text(stem)?.into(), answers, gold))
}

fn lambada(row: &Row) -> Result<Question, String> {
    let (before, word) = row
        .text("text")?
        .rsplit_once(' ')
        .ok_or("field \"text\" has no space, so no last word after a context")?;
    Ok(Question {
        pairs: vec![(before.into(), format!(" {word}"))],
        gold: 0,
        lengths: vec![word.chars().count()],
    })
}

fn own(row: &Row) -> Result<Question, String> {
    let context = match (row.find("context"), row.find("question")) {
        (Some(_), Some(_)) => {
            return Err("there are both \"context\" and \"question\"; one of them is the prompt".into());
        }
        (Some(_), None) => row.text("context")?.to_string(),
        (None, _) => format!("Question: {}\nAnswer:", row.text("question")?),
    };
    let answers = texts(row.get("choices")?, "choices")?;
    let answer = row.get("answer")?;
    let gold = match answer.as_str() {
        Some(text) => {
            let mut same = (0..answers.len()).filter(|&i| answers[i] == text);
            match (same.next(), same.next()) {
                (Some(gold), None) => gold,
                (Some(_), Some(_)) => {
                    return Err(format!("answer {text:?} is more than one of the choices; give its number"));
                }
                (None, _) => return Err(format!("answer {text:?} is none of the choices")),
            }
        }
        None => row.index("answer", 0, answers.len())?,
    };
    Ok(choices(context, answers, gold))
}

/// A list of strings, at least two.
fn texts(value: &Value, key: &str) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or_else(|| format!("field {key:?} is not a list"))?;
    let texts: Option<Vec<String>> = list.iter().map(|v| v.as_str().map(String::from)).collect();
    let texts = texts.ok_or_else(|| format!("field {key:?} has something else than strings in it"))?;
    match texts.len() {
        0 | 1 => Err(format!("field {key:?} has {} entries; a choice needs two", texts.len())),
        _ => Ok(texts),
    }
}

/// `choices` with `text` and `label`, and the index of `answerKey` among the labels.
fn labelled_choices(row: &Row) -> Result<(Vec<String>, usize), String> {
    let choices = row.get("choices")?;
    let part = |name: &str| {
        let list = choices.get(name).ok_or_else(|| format!("field \"choices\" has no {name:?}"))?;
        texts(list, &format!("choices.{name}"))
    };
    let (text, labels) = (part("text")?, part("label")?);
    if text.len() != labels.len() {
        return Err(format!("{} choices have {} labels", text.len(), labels.len()));
    }
    let answer = row.text("answerKey")?.trim_start();
    let gold = labels
        .iter()
        .position(|l| l == answer)
        .ok_or_else(|| format!("answerKey {answer:?} is none of the labels {}", labels.join(", ")))?;
    Ok((text, gold))
}

/// What Python's `str.strip` takes for a space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `str.capitalize`: the first letter upper, all others lower.
fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    let Some(first) = rest.next() else { return String::new() };
    // A letter that becomes two, as ß, keeps but the first of them upper.
    let mut upper = first.to_uppercase();
    let mut out: String = upper.next().into_iter().collect();
    out.extend(upper.flat_map(char::to_lowercase));
    out + &rest.as_str().to_lowercase()
}

/// HellaSwag's texts without the marks of WikiHow: strip; ` [title]` becomes `. `; what is in square brackets on one line
/// goes; double spaces become single, once.
fn cleaned(text: &str) -> String {
    let text = strip(text).replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let (before, from) = rest.split_at(open);
        out += before;
        rest = match from.find([']', '\n']) {
            Some(end) if from[end..].starts_with(']') => &from[end + 1..],
            _ => {
                out.push('[');
                &from[1..]
            }
        };
    }
    (out + rest).replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(name: &str, row: Value) -> Result<Question, String> {
        let definition = DEFINITIONS.iter().find(|d| d.name == name).unwrap_or(&OWN);
        (definition.read)(&Row::from(row.as_object().unwrap().clone()))
    }

    /// The context and the choices, for tasks with one context.
    #[track_caller]
    fn asked(name: &str, row: Value) -> (String, Vec<String>, usize) {
        let question = read(name, row).unwrap();
        let context = question.pairs[0].0.clone();
        assert!(question.pairs.iter().all(|p| p.0 == context));
        (context, question.pairs.into_iter().map(|p| p.1).collect(), question.gold)
    }

    #[test]
    fn prompts_are_those_of_the_harness() {
        let row = json!({"passage": "A – b.", "question": "is it", "answer": true});
        let yes_no = vec![" no".to_string(), " yes".to_string()];
        assert_eq!(asked("boolq", row), ("A – b.\nQuestion: is it?\nAnswer:".into(), yes_no.clone(), 1));
        let row = json!({"passage": "A", "question": "is it", "label": 0, "idx": 3});
        assert_eq!(asked("boolq", row), ("A\nQuestion: is it?\nAnswer:".into(), yes_no, 0));

        let row = json!({"goal": "open a tin", "sol1": "pull", "sol2": "wait", "label": 1});
        let expected = ("Question: open a tin\nAnswer:".into(), vec![" pull".into(), " wait".into()], 1);
        assert_eq!(asked("piqa", row), expected);

        for (name, key) in [
            ("arc_easy", "question"),
            ("arc_challenge", "question"),
            ("openbookqa", "question_stem"),
            ("openbookqa", "question"),
        ] {
            let row = json!({key: "Why?", "choices": {"text": ["a", "b b"], "label": ["1", "2"]}, "answerKey": " 2"});
            let context = if name == "openbookqa" { "Why?" } else { "Question: Why?\nAnswer:" };
            assert_eq!(asked(name, row), (context.into(), vec![" a".into(), " b b".into()], 1));
        }

        let row = json!({"sentence": "Ann met Eve because _ was  late. ", "option1": "Ann", "option2": "Eve", "answer": "2"});
        let question = read("winogrande", row).unwrap();
        assert_eq!(question.pairs[0], ("Ann met Eve because Ann".into(), " was  late.".into()));
        assert_eq!(question.pairs[1], ("Ann met Eve because Eve".into(), " was  late.".into()));
        assert_eq!(question.gold, 1);

        let row = json!({"text": "He said \"go\" and they went"});
        assert_eq!(asked("lambada", row), ("He said \"go\" and they".into(), vec![" went".into()], 0));
    }

    #[test]
    fn hellaswag_is_cleaned() {
        let row = json!({
            "activity_label": "Health", "ctx_a": "[header] How to rest [title] Lie down. [step] Do it.", "ctx_b": "the Man",
            "endings": [" and [substeps] sleeps.", "runs", "[no end", "a   b"], "label": "0"
        });
        let question = read("hellaswag", row).unwrap();
        assert_eq!(question.pairs[0].0, "Health: How to rest. Lie down. Do it. The man");
        let endings: Vec<&str> = question.pairs.iter().map(|p| p.1.as_str()).collect();
        assert_eq!(endings, [" and sleeps.", " runs", " [no end", " a  b"]);
        assert_eq!(question.lengths, [11, 4, 7, 4]);
    }

    #[test]
    fn strings_behave_as_in_python() {
        assert_eq!(
            (capitalized("hELLO ÉTÉ"), capitalized("éa"), capitalized("ßX"), capitalized("")),
            ("Hello été".into(), "Éa".into(), "Ssx".into(), String::new())
        );
        assert_eq!(cleaned("\u{a0}\x1f a [b\nc] d [e] f\u{3000}"), "a [b\nc] d f");
    }

    #[test]
    fn a_wrong_row_says_what_is_wrong() {
        for (name, row, needle) in [
            ("piqa", json!({"goal": "a", "sol1": "b", "label": 0}), "\"sol2\" is missing"),
            ("piqa", json!({"goal": "a", "sol1": "b", "sol2": "c", "label": 2}), "not a number from 0 to 1"),
            ("piqa", json!({"goal": "a", "sol1": "b", "sol2": "c", "label": -1}), "without answers"),
            ("piqa", json!({"goal": 5, "sol1": "b", "sol2": "c", "label": 1}), "not a string"),
            ("boolq", json!({"passage": "a", "question": "b"}), "neither"),
            ("winogrande", json!({"sentence": "a b", "option1": "a", "option2": "b", "answer": "1"}), "no _"),
            (
                "winogrande",
                json!({"sentence": "a _", "option1": "a", "option2": "b", "answer": ""}),
                "from 1 to 2",
            ),
            (
                "arc_easy",
                json!({"question": "a", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}),
                "none of the labels A, B",
            ),
            (
                "arc_easy",
                json!({"question": "a", "choices": {"text": ["a", "b"]}, "answerKey": "C"}),
                "no \"label\"",
            ),
            (
                "arc_easy",
                json!({"question": "a", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}),
                "1 entries",
            ),
            ("lambada", json!({"text": "word"}), "no space"),
            ("mine", json!({"question": "a", "choices": ["b"], "answer": 0}), "1 entries"),
            ("mine", json!({"question": "a", "context": "b", "choices": ["b", "c"], "answer": 0}), "both"),
            ("mine", json!({"context": "a", "choices": ["b", "c"], "answer": "d"}), "none of the choices"),
            ("mine", json!({"context": "a", "choices": ["b", "b"], "answer": "b"}), "more than one"),
            ("mine", json!({"context": "a", "choices": ["b", 1], "answer": 0}), "else than strings"),
        ] {
            let message = read(name, row.clone()).unwrap_err();
            assert!(message.contains(needle), "{row}: {message}");
        }
    }

    #[test]
    fn tasks_of_the_users_own_have_a_prompt_or_a_question() {
        let row = json!({"context": "2 + 2 =", "choices": ["4", "5"], "answer": "4"});
        assert_eq!(asked("sums", row), ("2 + 2 =".into(), vec![" 4".into(), " 5".into()], 0));
        let row = json!({"question": "Who?", "choices": ["me", "you"], "answer": 1});
        assert_eq!(
            asked("sums", row),
            ("Question: Who?\nAnswer:".into(), vec![" me".into(), " you".into()], 1)
        );
    }
}
