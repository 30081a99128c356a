//! The options. Their comments are what `--help` prints.

mod choices;
mod groups;
mod values;

pub(crate) use choices::{GridChoice, ReportFormat};
pub(crate) use groups::{AutoArgs, CalibrationArgs, MachineArgs, MeasureArgs, OutputArgs, RecipeArgs};

use choices::{DtypeChoice, RestChoice};
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use halfbyte_export::Target;
use halfbyte_model::SHAPES;
use halfbyte_quantize::Transform;
use std::path::PathBuf;
use values::{MinAccuracy, at_least, at_least_zero, min_accuracy};

const OVERVIEW: &str = "\
Examples:
  halfbyte demo
      Quantize a tiny built-in model with every method and compare; takes seconds.
  halfbyte plan models/SmolLM2 --recipe fpq-w4a4
      What a run would do, its memory, size and time, from the headers alone.
  halfbyte quantize models/SmolLM2 --recipe fpq-w4a4 --calibration text.txt --out SmolLM2-fp4
      Quantize. Killed at any moment, the same command goes on where it was.
  halfbyte eval SmolLM2-fp4 --perplexity test.txt --tasks piqa,arc_easy --task-dir tasks
      Measure the result, or the original model.
  halfbyte compare models/SmolLM2 SmolLM2-fp4 --perplexity test.txt --max-kld 0.1
      The original beside quantized folders; the exit code says whether a limit was kept.
  halfbyte transform models/SmolLM2 --with smooth-quant --calibration text.txt --out SmolLM2-smooth
      The same network, in full precision, made easier to quantize by this or any other tool.
  halfbyte report SmolLM2-fp4 --evaluation eval.json
      A page of what was chosen, what it cost and what was measured.

Every command takes --help and --json.

Exit codes: 0 done; 1 an error, in one line on standard error; 2 a wrong command line; 3 a limit that `compare` was given \
is missed; 130 stopped by Ctrl-C.";

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
    Compare(CompareArgs),
    Ablate(AblateArgs),
    Export(ExportArgs),
    Transform(TransformArgs),
    Inspect(InspectArgs),
    Report(ReportArgs),
    Recipes(RecipesArgs),
    Synth(SynthArgs),
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

/// Say what `quantize` with the same options would do, from the model's headers (and calibration data, where it is given):
/// layers, sizes, peak memory, time.
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
    /// Quantize a model that is quantized already, by any tool whose form is read: its weights are taken as they are
    /// rounded, and what it does to inputs is forgotten. Give the original wherever there is one.
    #[arg(long)]
    pub(crate) requantize: bool,
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
  halfbyte quantize models/SmolLM2 --recipe fpq-w4a4 --kv-cache fp8 --calibration text.txt --out SmolLM2-fp4
  halfbyte quantize models/bert-sst2 --recipe fpq-w4a4 --calibration sst2-train.tsv --out bert-fp4
  halfbyte quantize models/bert-sst2 --recipe fpq-w4a4 --attention-bits 4 --calibration sst2-train.tsv --out bert-fp4
  halfbyte quantize models/vit-cifar10 --recipe fpq-w4a4 --calibration cifar10/train --out vit-fp4
  halfbyte quantize models/SmolLM2 --recipe auto --target nvfp4 --budget 10m --calibration text.txt --out SmolLM2-nvfp4
  halfbyte recipes fpq-w4a4 > mine.toml     # change it, and then
  halfbyte quantize models/SmolLM2 --recipe mine.toml --calibration text.txt --out SmolLM2-mine

While it works, everything finished is in OUT.partial; OUT appears complete. After Ctrl-C, a crash or a power \
cut the same command goes on where it was and ends in the same bytes. The result depends on weights, recipe and \
calibration data, not on threads or on being interrupted.";

/// Quantize a model: calibrate on texts or images, choose formats and scales for every layer, and write a folder that `eval`
/// runs.
#[derive(Debug, Args)]
#[command(after_help = QUANTIZE)]
pub(crate) struct QuantizeArgs {
    /// Folder of a Hugging Face model: config.json, safetensors (one file or shards), tokenizer.json or, for images,
    /// preprocessor_config.json.
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Quantize a model that is quantized already, by any tool whose form is read: its weights are taken as they are
    /// rounded, and what it does to inputs is forgotten. Give the original wherever there is one.
    #[arg(long)]
    pub(crate) requantize: bool,
    #[command(flatten)]
    pub(crate) auto: AutoArgs,
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
  halfbyte eval models/SmolLM2 --perplexity wikitext2-test.txt --window 2048 --windows 16 --stride 512
  halfbyte eval SmolLM2-fp4 --perplexity wikitext2-test.txt --reference models/SmolLM2
  halfbyte eval SmolLM2.gguf --perplexity wikitext2-test.txt --tokenizer models/SmolLM2/tokenizer.json
  halfbyte eval SmolLM2-fp4 --tasks boolq,piqa,hellaswag --task-dir tasks --limit 500
  halfbyte eval bert-mrpc-fp4 --classify mrpc.parquet --glue mrpc
  halfbyte eval vit-cifar10-fp4 --images cifar10/test

Perplexity: the text is tokenised whole, without special tokens, and cut into windows; in each, every token but the \
first is scored, with --stride only those that no window before had. It is exp(total negative log-likelihood / tokens \
scored). Compare only figures with the same text, window, stride and number of windows.

Tasks, zero-shot as in lm-evaluation-harness 0.4.13: boolq, piqa, hellaswag, winogrande, arc_easy, arc_challenge, \
openbookqa, lambada. Any other NAME is a file of your own, a JSON object a line: {\"question\" or \"context\": \"...\", \
\"choices\": [\"...\", \"...\"], \"answer\": number of the choice from 0, or its text}.

Classification, for models that are made for it: accuracy, and for tasks of GLUE the figures that GLUE has. Without --glue a \
file needs one of GLUE's sets of columns or `text`, and `label`; docs/data.md says more.

Stopped at any moment, the same command goes on where it was.";

/// Measure a model, quantized (run from its codes) or original: perplexity of a text, divergence from a reference, tasks,
/// classes of texts and images.
#[derive(Debug, Args)]
#[command(after_help = EVAL)]
pub(crate) struct EvalArgs {
    /// Folder of the model, quantized or original, or a GGUF file with tokenizer.json beside it.
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
    /// Folder of a model to compare next-token distributions with, over the same windows: KL divergence in nats.
    #[arg(long, value_name = "MODEL", requires = "perplexity")]
    pub(crate) reference: Option<PathBuf>,
    /// Draw the rows of --limit at random with this seed, instead of taking the first ones.
    #[arg(long, value_name = "N", requires = "limit")]
    pub(crate) seed: Option<u64>,
    /// Write what the model said to every row or image, with the log-probability of each choice or the logit of each class,
    /// to a JSON file.
    #[arg(long, value_name = "FILE", requires = "rows")]
    pub(crate) save_scores: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

const COMPARE: &str = "\
Examples:
  halfbyte compare models/SmolLM2 SmolLM2-fp4 SmolLM2-int4 --perplexity wikitext2-test.txt --windows 16
  halfbyte compare models/SmolLM2 SmolLM2-fp4 --tasks piqa,arc_easy --task-dir tasks --limit 500
  halfbyte compare models/SmolLM2 SmolLM2-fp4 --perplexity test.txt --max-kld 0.1 || echo not good enough
  halfbyte compare models/vit-cifar10 vit-fp4 vit-int4 --images cifar10/test --min-accuracy 0.9

The first model is the reference. Each other one is compared with it over the same windows (KL divergence in nats) and \
question by question: the difference in accuracy with its 95 % bootstrap interval, and the p-value of McNemar's exact \
test. The error by kind of layer is what quantizing measured. Exit code 3: --max-kld or --min-accuracy is missed.

Stopped at any moment, the same command goes on where it was.";

/// Measure several models in the same way, the first being the reference: size, perplexity, divergence, paired tests.
#[derive(Debug, Args)]
#[command(after_help = COMPARE)]
pub(crate) struct CompareArgs {
    /// Folders of the models (or GGUF files), the reference first.
    #[arg(required = true, num_args = 2.., value_name = "MODEL")]
    pub(crate) models: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
    /// Draw the rows of --limit at random with this seed, instead of taking the first ones; it also draws the bootstrap
    /// samples.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Exit with 3 if the mean KL divergence of any model but the reference is above this.
    #[arg(long, value_name = "NATS", value_parser = at_least_zero, requires = "perplexity")]
    pub(crate) max_kld: Option<f64>,
    /// Exit with 3 if the accuracy (acc) of any model but the reference is below this: in a TASK, or else on average over
    /// the tasks, or of the images or texts that are classified. May be given several times.
    #[arg(long, value_name = "[TASK=]SHARE", value_parser = min_accuracy, requires = "rows")]
    pub(crate) min_accuracy: Vec<MinAccuracy>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

const ABLATE: &str = "\
Examples:
  halfbyte ablate models/SmolLM2 --recipes minmax-fp-w4a4,fpq-w4a4 --calibration text.txt --perplexity test.txt --out ablation
  halfbyte ablate models/SmolLM2 --recipes nvfp4-w4a4,mine.toml --seeds 3 --calibration text.txt --perplexity test.txt \
--windows 16 --tasks piqa,arc_easy --task-dir tasks --limit 500 --out ablation
  halfbyte ablate models/vit-cifar10 --recipes fpq-w4a4,minmax-int-w4a4 --calibration cifar10/train --images cifar10/test \
--out ablation

OUT gets a folder for each recipe (and seed), as `quantize` writes them, and the comparison as ablation.html, ablation.md and \
ablation.json. With --seeds every recipe runs with that many seeds, each on other windows of the calibration text, and \
the tables show mean and standard deviation. `gap closed` is measured against the first recipe.

Stopped at any moment, the same command goes on where it was; with more recipes it does what is new.";

/// Quantize a model with several recipes, measure them in the same way, and write the table and the plots.
#[derive(Debug, Args)]
#[command(after_help = ABLATE)]
pub(crate) struct AblateArgs {
    /// Folder of a Hugging Face model.
    pub(crate) model: PathBuf,
    /// Recipes, built-in or TOML files, separated by commas; the first is what gaps are measured against.
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAMES|FILES")]
    pub(crate) recipes: Vec<String>,
    /// Seeds of every recipe.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least(1))]
    pub(crate) seeds: usize,
    /// Layers to leave in full precision in all recipes, as for `quantize`.
    #[arg(long, value_delimiter = ',', value_name = "LAYERS")]
    pub(crate) keep: Option<Vec<String>>,
    /// Folder to write.
    #[arg(long)]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

const EXPORT: &str = "\
Examples:
  halfbyte quantize models/SmolLM2 --recipe nvfp4-w4a16 --out SmolLM2-nvfp4
  halfbyte export SmolLM2-nvfp4 --out SmolLM2-vllm --to vllm-nvfp4
  halfbyte export SmolLM2-nvfp4 --out SmolLM2-gguf --to gguf-nvfp4 --rest q8_0
  halfbyte export SmolLM2-nvfp4 --out exports --to vllm-nvfp4,modelopt,gguf-nvfp4     # a subfolder each

Targets: vllm-nvfp4, vllm-mxfp4, vllm-fp8, vllm-int, vllm-mixed (compressed-tensors), modelopt, gguf-nvfp4, gguf-mxfp4, \
gguf-mixed. Every file is read again before the command returns, and every value compared with the source; an output that \
differs is removed. `eval` runs all of them too, GGUF with the values of its blocks.";

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
    /// How a GGUF file stores the matrices that are not quantized, above all the embedding [default: as the folder does].
    #[arg(long)]
    pub(crate) rest: Option<RestChoice>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const TRANSFORM: &str = "\
Examples:
  halfbyte transform models/opt-125m --with os-plus --for minmax-int-w6a6 --calibration text.txt --out opt-os
  halfbyte transform models/SmolLM2 --with smooth-quant:alpha=search --calibration text.txt --out SmolLM2-smooth
  halfbyte transform models/SmolLM2 --with pow2 --for mxfp4-w4a4 --calibration text.txt --out SmolLM2-pow2
  halfbyte transform models/SmolLM2 --with os-plus:taps=all,pow2 --for nvfp4-w4a4 --calibration text.txt --out both
  halfbyte transform models/SmolLM2 --with rotate,hadamard-heads --out SmolLM2-rotated

The output is an ordinary Hugging Face folder that computes what MODEL does (to rounding), for any tool that quantizes; it \
holds a report in halfbyte_transform.json. To quantize with halfbyte, `transforms = [\"os-plus\"]` in a recipe does the same \
on the way.

Transforms, done in the order given:
  smooth-quant  max|X|^alpha / max|W|^(1-alpha), arXiv 2211.10438; alpha=0..1 (default 0.5), or alpha=search: by the error of
                the quantized layers' outputs
  os-plus       Outlier Suppression+, arXiv 2304.09145: channels centred where there are biases, one threshold searched by the
                error of attention's output or the gated product; steps=N (default 100), shift=false
  awq           mean|X|^beta, arXiv 2306.00978, beta searched by the error under quantized weights alone
  pow2          powers of two, searched by the error of the blocks of NVFP4 or MXFP4: exact in every type
  rotate        the residual stream times a random Hadamard matrix, arXiv 2404.00456, for models with RMSNorm (LLaMA, Mistral,
                Qwen, Phi-3); first of the list; block=32: only channels of a block with each other
  hadamard-heads  the values of every attention head likewise, in any model; block=16
The scaling ones take taps=norms (what norms feed; default of the first two) or taps=all (also values and the layers before \
gates and ReLUs). Where nothing can take factors (BERT's norms of sums, GELU) layers are left alone; a recipe of `quantize` can keep \
them beside the layer with migrate=true. Rotations need no calibration text, and draw their signs by the recipe's seed. docs/transforms.md says where \
each family of models has room for them.

Killed at any moment, the same command goes on where it was.";

/// Write an equal full-precision checkpoint that is easier to quantize: channel scales and shifts folded into norms and
/// layers.
#[derive(Debug, Args)]
// It takes memory for one block whatever it is told.
#[command(after_help = TRANSFORM, mut_arg("memory_limit", |a| a.hide(true)))]
pub(crate) struct TransformArgs {
    /// Folder of a Hugging Face model in full precision.
    pub(crate) model: PathBuf,
    /// Transforms, separated by commas, each with settings after colons.
    #[arg(long, value_delimiter = ',', value_name = "TRANSFORMS", required = true)]
    pub(crate) with: Vec<Transform>,
    /// The recipe (built-in or a TOML file) whose quantization is to be made easier: searches measure its error.
    #[arg(long = "for", value_name = "NAME|FILE", default_value = "int8-w8a8")]
    pub(crate) recipe: String,
    /// Folder to write; it must not exist yet, unless this very run made it.
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Type of the tensors [default: that of MODEL where powers of two are all that is folded, else f32, since bf16 would round
    /// the new weights].
    #[arg(long)]
    pub(crate) dtype: Option<DtypeChoice>,
    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
    /// Windows of tokens drawn from the vocabulary to calibrate on besides the text, as a share of its windows, whatever the
    /// recipe of --for says: what factors are computed from is the text alone, as published, unless this asks for more.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub(crate) coverage: f32,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
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
    /// Folder of the model, quantized or original, or a GGUF file.
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

const REPORT: &str = "\
Examples:
  halfbyte report SmolLM2-fp4
      The page that `quantize` wrote, again: SmolLM2-fp4/report.html.
  halfbyte eval SmolLM2-fp4 --perplexity test.txt --json > eval.json
  halfbyte report SmolLM2-fp4 --evaluation eval.json --evaluation original.json --title SmolLM2
      The same with what was measured, of this model and of others beside it.
  halfbyte report SmolLM2-fp4 --run run.json --format md --out report.md
      As Markdown, with time and memory of the run from what `quantize --json` printed.

The page is one file without scripts that needs no network. It depends on report.json and the files given alone.";

/// Write the report of a quantized folder as a page, as Markdown or as JSON, with what evaluations measured.
#[derive(Debug, Args)]
#[command(after_help = REPORT)]
pub(crate) struct ReportArgs {
    /// Folder that `quantize` wrote.
    pub(crate) dir: PathBuf,
    /// File to write, - for standard output [default: report.html or report.md in DIR].
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// What to write [default: as the end of --out says, else html].
    #[arg(long)]
    pub(crate) format: Option<ReportFormat>,
    /// JSON that `eval`, `compare` or `demo` printed: what was measured. May be given several times.
    #[arg(long, value_name = "FILE")]
    pub(crate) evaluation: Vec<PathBuf>,
    /// JSON that `quantize` printed when it made the folder: time and memory of the run.
    #[arg(long, value_name = "FILE")]
    pub(crate) run: Option<PathBuf>,
    /// What to call the model [default: its family and size].
    #[arg(long, value_name = "NAME")]
    pub(crate) title: Option<String>,
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

const SYNTH: &str = "\
Examples:
  halfbyte synth --like llama-7b --layers 2 --out random-7b
  halfbyte quantize random-7b --recipe fpq-w4a4 --calibration text.txt --out random-7b-fp4

Weights are random bf16 numbers, the tokenizer is one of single bytes (for a model of images: a plain processor): such a \
model says nothing of accuracy. Time and memory of every block are those of the real one, so two blocks tell what a whole \
model would take.";

/// Write a random checkpoint in the shape of a known model, to try time and memory on this machine.
#[derive(Debug, Args)]
#[command(after_help = SYNTH)]
pub(crate) struct SynthArgs {
    /// The model whose shape to take: channels, heads, vocabulary and, unless --layers says otherwise, blocks.
    #[arg(long, value_name = "SHAPE", value_parser = PossibleValuesParser::new(SHAPES.map(|s| s.name)))]
    pub(crate) like: String,
    /// Blocks to write [default: all that the model has].
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub(crate) layers: Option<usize>,
    /// Folder to write; it must not exist yet.
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }
}
