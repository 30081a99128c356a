//! `halfbyte recipes`: what is built in, as a list and as TOML to start from.

use crate::cli::RecipesArgs;
use crate::output::{self, Table};
use anyhow::Context;
use halfbyte_quantize::{Recipe, load_recipe};
use serde_json::json;
use std::fmt::Write;

pub(crate) fn run(args: &RecipesArgs) -> anyhow::Result<()> {
    match &args.name {
        Some(name) => one(&load_recipe(name)?, args.output.json),
        None => list(args.output.json),
    }
}

/// What the part of a name before the bits means.
const METHODS: [(&str, &str); 17] = [
    ("minmax-int", "integers scaled by the largest magnitude"),
    ("minmax-fp", "floats with two exponent bits, scaled by the largest magnitude"),
    ("fpq-baseline", "LLM-FP4's search of format and scale, without pre-shifted exponent biases"),
    ("fpq-published", "LLM-FP4 as published: searched formats and scales, pre-shifted exponent biases"),
    ("nvfp4", "blocks of 16 with E4M3 scales, shared tensor scales; lm_head and embedding kept"),
    ("mxfp4", "blocks of 32 with power-of-two scales; lm_head and embedding kept"),
    ("fp8", "float8_e4m3fn, a scale for each output channel and token; lm_head and embedding kept"),
    ("int4-g32", "integers in groups of 32; lm_head and embedding kept"),
    ("int8", "integers, a scale for each output channel and token; lm_head and embedding kept"),
    ("nvfp4-gptq", "as nvfp4, rounded with error feedback (GPTQ)"),
    ("mxfp4-gptq", "as mxfp4, rounded with error feedback (GPTQ)"),
    (
        "nvfp4-pow2-gptq",
        "as nvfp4-gptq, after power-of-two channel scales: the lowest perplexity of the three",
    ),
    (
        "mxfp4-pow2-gptq",
        "as mxfp4-gptq, after power-of-two channel scales: the lowest perplexity of the three",
    ),
    ("int4-g32-gptq", "as int4-g32, rounded with error feedback (GPTQ)"),
    ("smooth-quant", "SmoothQuant, then minmax-int; lm_head and embedding kept"),
    ("os-plus", "Outlier Suppression+, then minmax-int; lm_head and embedding kept"),
    ("fpq", "the default: LLM-FP4 with everything that we found to improve it at the same bits"),
];

fn describe(name: &str, recipe: &Recipe) -> String {
    let method = METHODS.iter().find(|(m, _)| name.rsplit_once('-').is_some_and(|(n, _)| n == *m));
    let inputs = match recipe.activation_bits {
        16 => "inputs left alone".to_string(),
        bits => format!("{bits}-bit inputs"),
    };
    format!("{}-bit weights, {inputs}; {}", recipe.weight_bits, method.map_or("", |m| m.1))
}

fn list(as_json: bool) -> anyhow::Result<()> {
    let mut table = Table::new(["recipe", "what it does"]);
    let mut rows = Vec::new();
    for name in Recipe::names() {
        let about = describe(&name, &Recipe::named(&name)?);
        rows.push(json!({ "recipe": name, "description": about }));
        table.row([name, about]);
    }
    if as_json {
        return output::print_json(&json!({ "recipes": rows }));
    }
    output::print(&format!(
        "{table}\n`halfbyte recipes NAME` prints one in full, to be changed and given as --recipe FILE.toml.\n"
    ))
}

/// Comments for the fields of a recipe file.
const FIELDS: &[(&str, &str)] = &[
    ("name", "for reports"),
    ("method", "minmax-int, minmax-fp, fpq or scheme"),
    (
        "weight_scheme",
        "for method = \"scheme\": element/granularity/scale format, as e2m1/group16/e4m3 (NVFP4)",
    ),
    ("input_scheme", "the same for inputs, as e2m1/group16/e4m3/dynamic; leave out for 16 bits"),
    (
        "alternatives",
        "schemes that weights may have instead: the layers that share an input take the one of least error",
    ),
    (
        "max_bits",
        "most stored bits of a weight on average, scales included: among alternatives, or 4, 6 and 8 bits for searched formats",
    ),
    (
        "layer_bits",
        "bits by parts of layer names, such as { down_proj = 6 }, instead of weight_bits and activation_bits",
    ),
    ("[schemes]", "schemes of weights by parts of layer names, as down_proj = \"e4m3fn/channel\""),
    (
        "scales",
        "of weights, for method = \"scheme\": absmax, round-up, four-over-six, sweep or weighted (clip search for f32 scales), or auto: for blocks weighted with --calibration",
    ),
    ("weight_bits", "of linear layers: 4, 6, 8, or 16 to leave them alone"),
    ("activation_bits", "of the inputs of linear layers: 4, 6, 8, or 16"),
    ("embedding_bits", "of the embedding table: 4, 6, 8, or 16"),
    (
        "keep",
        "layers left in full precision: \"lm_head\", \"embedding\", or parts of names such as \"down_proj\", \"layers.0.\"",
    ),
    (
        "calibration",
        "inputs to calibrate on: full-precision (published), or sequential (what the quantized layers before give)",
    ),
    ("coverage", "windows of tokens drawn from the vocabulary, as a share of those of the text"),
    (
        "token_weights",
        "whether a token's error counts less the larger the residual stream is that it is added to",
    ),
    ("shifts", "pre-shifted exponent biases: none, maximum (published) or error"),
    ("max_shift", "largest shift that shifts = \"error\" may choose; maximum always stops at 2^E - 1"),
    (
        "headroom",
        "with shifts = \"error\": times a channel's largest magnitude, a value that its scale is to have room for; 0 for none",
    ),
    ("share_input", "one input quantizer for the layers that share an input (q/k/v, gate/up)"),
    ("correct", "first correct the weights for the error of their quantized inputs"),
    (
        "feedback",
        "feed each column's rounding error back into those after it (GPTQ); with method = \"scheme\" off if left out, as correct",
    ),
    (
        "act_order",
        "whether feedback begins with the columns of the largest second moments; scales stay with them",
    ),
    ("low_rank", "rank of a part in bf16 that is added to every quantized weight; 0 for none"),
    ("damping", "of correction and feedback, relative to each channel's second moment"),
    (
        "rounding",
        "given, or learned: the codes of a block improved by the gradient of its output's error (AutoRound; docs/method.md)",
    ),
    ("rounding_steps", "of learning for each block"),
    ("rounding_tokens", "calibration tokens that a step of learning looks at, in whole windows"),
    ("rounds", "of the search, 1 to 100"),
    ("first", "what a round begins with: weight (published) or input"),
    (
        "search",
        "how candidates are scored: direct (slow), gram (the same scores), ranked (the best few by gram)",
    ),
    ("finalists", "candidates scored fully when ranked; with 1 the ranking decides"),
    (
        "products",
        "over the calibration tokens: f32, or bf16 (factors rounded to bfloat16; faster with AVX512-BF16, equal results without)",
    ),
    (
        "attention_bits",
        "of attention's own products (queries, keys, values, probabilities): 4, 6, 8, or 16 to leave them alone",
    ),
    (
        "probability_scale",
        "what shares a scale among the probabilities, with attention_bits: tensor, head or row",
    ),
    ("kv_scheme", "of keys and values alone, that is the KV cache, as e4m3fn/channel/dynamic"),
    (
        "transforms",
        "done to the full-precision network first, as [\"os-plus\", \"pow2\"]: smooth-quant, os-plus, awq, pow2, rotate, hadamard-heads (docs/transforms.md)",
    ),
    ("sample_tokens", "tokens that the search for an input's quantizer looks at"),
    ("seed", "of that sample and of the coverage windows"),
    ("[weight_grid]", "candidates for the scale of a weight row; kind: bias (published) or maxval"),
    ("[activation_grid]", "candidates for the scale of an input"),
];

fn one(recipe: &Recipe, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return output::print_json(&serde_json::to_value(recipe)?);
    }
    output::print(&commented(recipe)?)
}

/// The recipe as TOML, a comment before every field.
fn commented(recipe: &Recipe) -> anyhow::Result<String> {
    let plain = halfbyte_quantize::recipe_toml(recipe).context("cannot write the recipe as TOML")?;
    let mut text = String::new();
    let mut top = true;
    for line in plain.lines() {
        let key = line.split(" =").next().unwrap_or_default();
        top = top && !line.starts_with('[');
        if let Some((_, comment)) = FIELDS.iter().find(|(f, _)| *f == key && (top || line.starts_with('['))) {
            writeln!(text, "# {comment}")?;
        }
        writeln!(text, "{line}")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_recipe_has_a_description() {
        for name in Recipe::names() {
            assert!(!describe(&name, &Recipe::named(&name).unwrap()).ends_with("; "), "{name}");
        }
    }

    #[test]
    fn every_field_of_a_recipe_file_has_a_comment() {
        let transforms = vec!["os-plus".parse().unwrap()];
        let kv_scheme = Some("e4m3fn/channel/dynamic".parse().unwrap());
        let text = commented(&Recipe { transforms, kv_scheme, ..Recipe::default() }).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let mut top = true;
        for (i, line) in lines.iter().enumerate().filter(|(_, l)| !l.starts_with('#') && !l.is_empty()) {
            if top || line.starts_with('[') {
                assert!(i > 0 && lines[i - 1].starts_with("# "), "no comment before {line}");
            }
            top = top && !line.starts_with('[');
        }
    }
}
