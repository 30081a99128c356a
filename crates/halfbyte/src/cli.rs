//! The options. Their comments are what `--help` prints.

use clap::{Args, Parser, Subcommand, ValueEnum};
use halfbyte_export::Target;
use halfbyte_quantize::{Calibration, Scales, Search};
use std::path::PathBuf;

const OVERVIEW: &str = "\
Examples:
  halfbyte demo
      Quantize a tiny built-in model with every method and compare; takes seconds.
  halfbyte plan models/SmolLM2 --recipe fpq-w4a4
      What a run would do, its memory, size and time, from the headers alone.
  halfbyte quantize models/SmolLM2 --recipe fpq-w4a4 --calibration text.txt --out SmolLM2-fp4
      Quantize. Killed at any moment, the same command goes on where it was.
  halfbyte eval SmolLM2-fp4 --perplexity test.txt
      Measure the result, or the original model.

Every command takes --help and --json.";

/// Transformers in 4-bit floating point: quantize, check, and measure on one ordinary machine.
#[derive(Debug, Parser)]
#[command(name = "halfbyte", version, after_help = OVERVIEW, propagate_version = true)]
pub(crate) struct Cli {
    /// Say more: logs on standard error (RUST_LOG chooses them more finely), and in `plan` every single layer.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(DemoArgs),
    Plan(PlanArgs),
    Quantize(QuantizeArgs),
    Eval(EvalArgs),
    Export(ExportArgs),
    Inspect(InspectArgs),
    Recipes(RecipesArgs),
}

const DEMO: &str = "\
Examples:
  halfbyte demo
  halfbyte demo --json | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"rows\"])'

The model is stories260K (LLaMA, 5 layers, hidden 64), the text 30 KB of TinyStories. Linear layers get \
4-bit weights and 4-bit inputs, the embedding and the output layer are kept. Perplexity: 60 windows of 128 \
tokens that the calibration has not seen; lower is better, and the first row is the unquantized model.";

/// Quantize a tiny built-in model with every method, and print what each costs in accuracy.
#[derive(Debug, Args)]
#[command(after_help = DEMO)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

const PLAN: &str = "\
Examples:
  halfbyte plan models/SmolLM2 --recipe fpq-w4a4
  halfbyte plan models/SmolLM2 --recipe fpq-w4a8 --keep lm_head,embedding
  halfbyte plan models/SmolLM2 --recipe my-recipe.toml --calibration-windows 128 --json";

/// Say what `quantize` with the same options would do, from the model's headers alone: layers, sizes, peak memory, time.
#[derive(Debug, Args)]
#[command(after_help = PLAN)]
pub(crate) struct PlanArgs {
    /// Folder of a Hugging Face model: config.json and safetensors.
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Targets of `halfbyte export` that the result is meant for, separated by commas: what they cannot hold is refused.
    #[arg(long, value_delimiter = ',', value_name = "TARGETS")]
    pub(crate) to: Vec<Target>,
    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

const QUANTIZE: &str = "\
Examples:
  halfbyte quantize models/SmolLM2 --recipe fpq-w4a4 --calibration text.txt --out SmolLM2-fp4
  halfbyte quantize models/SmolLM2 --recipe fpq-w4a4 --calibration text.txt --out SmolLM2-fp4 --keep lm_head
  halfbyte quantize models/SmolLM2 --recipe nvfp4-w4a16 --out SmolLM2-nvfp4     # weights alone: no text
  halfbyte recipes fpq-w4a4 > mine.toml     # change it, and then
  halfbyte quantize models/SmolLM2 --recipe mine.toml --calibration text.txt --out SmolLM2-mine

While it works, everything finished is in OUT.partial; OUT appears complete. After Ctrl-C, a crash or a power \
cut the same command goes on where it was and ends in the same bytes. The result depends on weights, recipe and \
calibration tokens, not on threads or on being interrupted.";

/// Quantize a model: calibrate on a text, choose formats and scales for every layer, and write a folder that `eval` runs.
#[derive(Debug, Args)]
#[command(after_help = QUANTIZE)]
pub(crate) struct QuantizeArgs {
    /// Folder of a Hugging Face model: config.json, safetensors (one file or shards), tokenizer.json.
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// UTF-8 text to calibrate on: a few pages of what the model will read. Only its first windows are used. Recipes whose
    /// weights alone decide, such as nvfp4-w4a16, need none.
    #[arg(long = "calibration", value_name = "TEXT")]
    pub(crate) text: Option<PathBuf>,
    /// Folder to write; it must not exist yet, unless this very run made it.
    #[arg(long)]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

const EVAL: &str = "\
Examples:
  halfbyte eval SmolLM2-fp4 --perplexity wikitext2-test.txt
  halfbyte eval models/SmolLM2 --perplexity wikitext2-test.txt --window 2048 --windows 16

The text is tokenised whole, without special tokens, and cut into non-overlapping windows; in each, every token \
but the first is scored. Perplexity is exp(total negative log-likelihood / tokens scored). Compare only figures \
with the same text, window and number of windows.";

/// Measure a model's perplexity on a text: a folder that `quantize` wrote, run from its codes, or an original checkpoint.
#[derive(Debug, Args)]
#[command(after_help = EVAL)]
pub(crate) struct EvalArgs {
    /// Folder of the model, quantized or original.
    pub(crate) dir: PathBuf,
    /// UTF-8 text to score.
    #[arg(long, value_name = "TEXT")]
    pub(crate) perplexity: PathBuf,
    /// Tokens of a window [default: 2048, or the model's context if that is shorter].
    #[arg(long, value_parser = at_least(2))]
    pub(crate) window: Option<usize>,
    /// Score only the first so many windows [default: all].
    #[arg(long, value_parser = at_least(1))]
    pub(crate) windows: Option<usize>,
    /// Leave out so many tokens at the start, for instance those calibrated on.
    #[arg(long, default_value_t = 0)]
    pub(crate) skip_tokens: usize,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

const EXPORT: &str = "\
Examples:
  halfbyte quantize models/SmolLM2 --recipe nvfp4-w4a16 --out SmolLM2-nvfp4
  halfbyte export SmolLM2-nvfp4 --out SmolLM2-vllm --to vllm-nvfp4
  halfbyte export SmolLM2-nvfp4 --out exports --to vllm-nvfp4,modelopt,gguf-nvfp4     # a subfolder each

Targets: vllm-nvfp4, vllm-mxfp4, vllm-fp8, vllm-int (compressed-tensors), modelopt, gguf-nvfp4, gguf-mxfp4. Every file is \
read again before the command returns, and every value compared with the source; an output that differs is removed. \
`eval` runs the vllm and modelopt folders too.";

/// Write a quantized folder in the form that another engine loads, and prove it by reading it back.
#[derive(Debug, Args)]
#[command(after_help = EXPORT)]
pub(crate) struct ExportArgs {
    /// Folder that `halfbyte quantize` wrote.
    pub(crate) dir: PathBuf,
    /// Folder to write; it must not exist yet. With several targets each gets a subfolder of its name.
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Engines to write for, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "TARGETS", required = true)]
    pub(crate) to: Vec<Target>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const INSPECT: &str = "\
Examples:
  halfbyte inspect SmolLM2-fp4
  halfbyte inspect SmolLM2-fp4 --json
  halfbyte inspect models/SmolLM2

Columns: format of weight and input (E2M1: two exponent bits, one mantissa bit), the exponent biases of the \
weight's rows, the input's tensor-wise bias rho, how many channels have shift 0, 1, 2 ..., the layer's output \
error relative to its output, and stored bits per weight, scales and shifts included.";

/// Show what a folder holds: for a quantized one what was chosen for every layer, for an original one what it is.
#[derive(Debug, Args)]
#[command(after_help = INSPECT)]
pub(crate) struct InspectArgs {
    /// Folder of the model, quantized or original.
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const RECIPES: &str = "\
Examples:
  halfbyte recipes
  halfbyte recipes fpq-w4a4 > mine.toml
  halfbyte quantize models/SmolLM2 --recipe mine.toml --calibration text.txt --out SmolLM2-mine";

/// List the built-in recipes, or print one as TOML: the start of a recipe of your own.
#[derive(Debug, Args)]
#[command(after_help = RECIPES)]
pub(crate) struct RecipesArgs {
    /// A built-in recipe, or a TOML file to check and complete.
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// The recipe, and options that override its fields.
#[derive(Debug, Args)]
pub(crate) struct RecipeArgs {
    /// Built-in recipe (`halfbyte recipes` lists them) or a TOML file.
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) recipe: String,
    /// Layers to leave in full precision, separated by commas: lm_head, embedding, or parts of layer names such as
    /// down_proj or layers.0.
    #[arg(long, value_delimiter = ',', value_name = "LAYERS", help_heading = RECIPE)]
    pub(crate) keep: Option<Vec<String>>,
    /// Bits of the embedding table: 4, 6, 8, or 16 to leave it alone.
    #[arg(long, value_parser = bits, value_name = "4|6|8|16", help_heading = RECIPE)]
    pub(crate) embedding_bits: Option<u32>,
    /// Which inputs layers are calibrated on.
    #[arg(long, help_heading = RECIPE)]
    pub(crate) calibrate: Option<Calibrate>,
    /// Windows of tokens drawn from the vocabulary to calibrate on besides the text, as a share of its windows; 0 where the
    /// text is just what the model will read.
    #[arg(long, value_name = "SHARE", help_heading = RECIPE)]
    pub(crate) coverage: Option<f32>,
    /// How fixed schemes (nvfp4, mxfp4) choose the scales of weights.
    #[arg(long, help_heading = RECIPE)]
    pub(crate) scales: Option<ScalesChoice>,
    /// Rounds of the search, 1 to 100.
    #[arg(long, value_name = "N", help_heading = RECIPE)]
    pub(crate) rounds: Option<usize>,
    /// Candidates for scales.
    #[arg(long, help_heading = RECIPE)]
    pub(crate) grid: Option<GridChoice>,
    /// How candidates are scored.
    #[arg(long, help_heading = RECIPE)]
    pub(crate) search: Option<SearchChoice>,
    /// Seed of all that is drawn at random: the sample of tokens that the search looks at, the coverage windows.
    #[arg(long, value_name = "N", help_heading = RECIPE)]
    pub(crate) seed: Option<u64>,
}

const RECIPE: &str = "Options that override the recipe";

/// How much to calibrate on.
#[derive(Debug, Args)]
pub(crate) struct CalibrationArgs {
    /// Most calibration windows to use.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least(1))]
    pub(crate) calibration_windows: usize,
    /// Tokens of a calibration window [default: 512, or the model's context if that is shorter].
    #[arg(long, value_name = "TOKENS", value_parser = at_least(1))]
    pub(crate) calibration_window: Option<usize>,
    /// Most memory for activations of the calibration text; beyond it they go to temporary files in OUT.partial.
    #[arg(long, default_value = "1GiB", value_name = "SIZE", value_parser = size)]
    pub(crate) activation_memory: u64,
}

/// How results are printed.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Print one JSON object on standard output and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to use of the machine.
#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    /// Threads to compute with [default: one for each core]. The result is the same with any number.
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub(crate) threads: Option<usize>,
}

/// As `Calibration`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Calibrate {
    /// Those of the unquantized model, as published.
    FullPrecision,
    /// Those that the already quantized layers before really give.
    Sequential,
}

impl From<Calibrate> for Calibration {
    fn from(choice: Calibrate) -> Self {
        match choice {
            Calibrate::FullPrecision => Self::FullPrecision,
            Calibrate::Sequential => Self::Sequential,
        }
    }
}

/// Grids by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum GridChoice {
    /// Multiples of the initial exponent bias, 0.01 to 1.2 in 100 steps.
    Published,
    /// Multiples of the largest magnitude, those of the default recipe.
    Maxval,
}

/// As `Search`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SearchChoice {
    /// By the published products over all tokens: very slow, for comparison.
    Direct,
    /// The same scores for all candidates, from Gram matrices.
    Gram,
    /// Ranked by the Gram matrix's diagonal, the best few fully.
    Ranked,
}

impl From<SearchChoice> for Search {
    fn from(choice: SearchChoice) -> Self {
        match choice {
            SearchChoice::Direct => Self::Direct,
            SearchChoice::Gram => Self::Gram,
            SearchChoice::Ranked => Self::Ranked,
        }
    }
}

/// As `Scales`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ScalesChoice {
    /// From the largest magnitude of a block.
    Absmax,
    /// MXFP4: absmax, but the next power of two for a maximum whose mantissa is 1.75 or more.
    RoundUp,
    /// NVFP4: the better of max / 6 and max / 4.
    FourOverSix,
    /// The code of least squared error.
    Sweep,
    /// The code of least error weighted by the mean squares of the inputs; needs a calibration text.
    Weighted,
}

impl From<ScalesChoice> for Scales {
    fn from(choice: ScalesChoice) -> Self {
        match choice {
            ScalesChoice::Absmax => Self::Absmax,
            ScalesChoice::RoundUp => Self::RoundUp,
            ScalesChoice::FourOverSix => Self::FourOverSix,
            ScalesChoice::Sweep => Self::Sweep,
            ScalesChoice::Weighted => Self::Weighted,
        }
    }
}

fn at_least(least: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(n) if n >= least => Ok(n),
        _ => Err(format!("not a whole number of at least {least}")),
    }
}

fn bits(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|b| [4, 6, 8, 16].contains(b)).ok_or_else(|| "not one of 4, 6, 8 and 16".into())
}

/// `1GiB`, `512MiB`, `2GB`, or bytes.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || "not a size such as 512MiB, 2GB or 1000000".to_string();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Ok((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size("1.5 kb"), Ok(1500));
        assert_eq!(size("77"), Ok(77));
        assert!(size("1 GiBs").is_err() && size("GiB").is_err() && size("").is_err());
    }
}
