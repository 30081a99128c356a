//! The class logits of texts and images.
//!
//! Inputs are packed side by side into matrices of a few hundred rows, and a batch of such packs goes through each block
//! while its weights are there. How they are packed and batched never changes a bit of the result.

use crate::likelihood::Sizes;
use crate::progress::Meter;
use crate::{EvaluateError, Progress};
use halfbyte_model::{Input, Model};
use halfbyte_tensor::Matrix;
use std::ops::Range;

/// Logits of the classes for every input, `[inputs, classes]`. Where a model gives one number for a text, as for a
/// similarity, that is its only class.
///
/// # Errors
/// [`EvaluateError::Unfit`] for a model that does not classify; when an input is not what the model takes (its length
/// included), the output is not finite, or `progress` asks to stop.
pub fn class_logits(
    model: &Model,
    inputs: &[Input],
    progress: &mut dyn Progress,
) -> Result<Matrix, EvaluateError> {
    logits(model, inputs, Sizes::of(model), progress)
}

fn logits(
    model: &Model,
    inputs: &[Input],
    sizes: Sizes,
    progress: &mut dyn Progress,
) -> Result<Matrix, EvaluateError> {
    let a = &model.architecture;
    if !a.head.task.is_classification() {
        return Err(EvaluateError::unfit(
            model,
            "classes come from a model for text or image classification",
        ));
    }
    let rows: Vec<usize> = inputs.iter().map(|i| a.rows(i)).collect();
    if let Some((i, rows)) = rows.iter().enumerate().find(|(_, r)| **r == 0 || **r > a.context) {
        let message = format!("input {i} has {rows} rows for the network, which takes 1 to {}", a.context);
        return Err(EvaluateError::Input(message));
    }
    let classes = a.head.output().map_or(0, |s| s.outputs);
    let mut meter = Meter::new(progress, (rows.iter().sum::<usize>() * a.blocks.len()) as u64);
    meter.progress.items("inputs", 0, inputs.len(), None);
    let mut out = Matrix::zeros(inputs.len(), classes);
    for batch in cut(&rows, 0..inputs.len(), sizes.batch()) {
        let packs = cut(&rows, batch.clone(), sizes.pack());
        let stem = model.stem()?;
        let embed = |pack: &Range<usize>| stem.embed(&inputs[pack.clone()]);
        let mut states = packs.iter().map(embed).collect::<Result<Vec<_>, _>>()?;
        drop(stem);
        let rotary = a.rotary(rows[batch.clone()].iter().copied().max().unwrap_or(0));
        for layer in 0..a.blocks.len() {
            let block = model.block(layer)?;
            for (state, layout) in &mut states {
                *state = block.forward(std::mem::take(state), &rotary, layout);
                meter.add(layout.rows() as u64)?;
            }
        }
        let head = model.head()?;
        for (pack, (state, layout)) in packs.iter().zip(&states) {
            let found = head.output(state, layout);
            for (i, row) in pack.clone().zip(found.data.chunks_exact(classes)) {
                if row.iter().any(|v| !v.is_finite()) {
                    return Err(EvaluateError::NonFinite(format!("input {i}")));
                }
                out.row_mut(i).copy_from_slice(row);
            }
        }
        meter.progress.items("inputs", batch.end, inputs.len(), None);
    }
    Ok(out)
}

/// Cuts `range` into pieces of at most `most` rows, or of one input.
fn cut(rows: &[usize], range: Range<usize>, most: usize) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    let mut sum = 0;
    for i in range {
        sum += rows[i];
        match pieces.last_mut() {
            Some(piece) if sum <= most => piece.end = i + 1,
            _ => {
                pieces.push(i..i + 1);
                sum = rows[i];
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn go_on(_: u64, _: u64) -> bool {
        true
    }

    fn golden(name: &str) -> Model {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden").join(name);
        Model::open(&dir).unwrap()
    }

    fn texts() -> Vec<Input> {
        let ids = |i: usize| (0..1 + i * 7 % 38).map(|t| ((t * 13 + i * 29) % 96) as u32).collect();
        (0..40).map(|i| Input::Tokens(ids(i))).collect()
    }

    fn images() -> Vec<Input> {
        let pixel = |i: usize, p: usize| ((p * 31 + i * 17) % 101) as f32 / 25.0 - 2.0;
        let values = |i| (0..3 * 16 * 16).map(|p| pixel(i, p)).collect();
        (0..9).map(|i| Input::Pixels { channels: 3, height: 16, width: 16, values: values(i) }).collect()
    }

    #[test]
    fn packing_never_changes_a_logit() {
        for (name, inputs) in [("bert", texts()), ("roberta", texts()), ("dinov2_registers", images())] {
            let model = golden(name);
            let all = class_logits(&model, &inputs, &mut go_on).unwrap();
            assert_eq!(
                (all.rows, all.cols),
                (inputs.len(), model.architecture.head.output().unwrap().outputs)
            );
            for sizes in [Sizes::new(1, 1, 1), Sizes::new(100, 45, 1)] {
                assert_eq!(logits(&model, &inputs, sizes, &mut go_on).unwrap(), all, "{name}, {sizes:?}");
            }
            let alone = model.trace(&inputs[3..4]).unwrap().2;
            assert_eq!(alone.data, all.row(3), "{name}");
        }
    }

    #[test]
    fn a_model_that_does_not_classify_is_refused() {
        for name in ["llama", "bert_masked_lm", "vit_encoder"] {
            let error = class_logits(&golden(name), &[], &mut go_on).unwrap_err().to_string();
            assert!(error.contains("classification"), "{error}");
        }
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused() {
        let refusal =
            |name, input| class_logits(&golden(name), &[input], &mut go_on).unwrap_err().to_string();
        let long = refusal("bert", Input::Tokens(vec![5; 41]));
        assert!(long.contains("input 0 has 41 rows") && long.contains("1 to 40"), "{long}");
        assert!(refusal("bert", Input::Tokens(vec![])).contains("0 rows"));
        assert!(refusal("bert", Input::Tokens(vec![5, 96])).contains("token 96"));
        let kind = refusal("vit", Input::Tokens(vec![5]));
        assert!(kind.contains("takes images") && kind.contains("given tokens"), "{kind}");
        let size =
            refusal("vit", Input::Pixels { channels: 3, height: 8, width: 16, values: vec![0.0; 384] });
        assert!(size.contains("3 x 8 x 16") && size.contains("3 x 16 x 16"), "{size}");
    }
}
