//! The options. Their comments are what `--help` prints.

use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use halfbyte_checkpoint::Dtype;
use halfbyte_data::Glue;
use halfbyte_export::{Rest, Target};
use halfbyte_formats::{FormatError, Scheme};
use halfbyte_model::SHAPES;
use halfbyte_quantize::transforms::StoredAs;
use halfbyte_quantize::{AutoTarget, Calibration, Products, Scales, Search, Transform};
use std::path::PathBuf;
use std::time::Duration;

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

/// Say what `quantize` with the same options would do, from the model's headers (and calibration data, where it is given): layers, sizes, peak memory, time.
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
    /// Quantize a model that is quantized already, by any tool whose form is read: its weights are taken as they are rounded,
    /// and what it does to inputs is forgotten. Give the original wherever there is one.
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

/// Quantize a model: calibrate on texts or images, choose formats and scales for every layer, and write a folder that `eval` runs.
#[derive(Debug, Args)]
#[command(after_help = QUANTIZE)]
pub(crate) struct QuantizeArgs {
    /// Folder of a Hugging Face model: config.json, safetensors (one file or shards), tokenizer.json or, for images,
    /// preprocessor_config.json.
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Quantize a model that is quantized already, by any tool whose form is read: its weights are taken as they are rounded,
    /// and what it does to inputs is forgotten. Give the original wherever there is one.
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

/// The least accuracy that is good enough.
#[derive(Clone, Debug)]
pub(crate) struct MinAccuracy {
    /// The mean over all tasks if `None`.
    pub(crate) task: Option<String>,
    pub(crate) least: f64,
}

/// What is measured, and where finished parts are kept.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("rows").args(["tasks", "images", "classify"]).multiple(true))]
pub(crate) struct MeasureArgs {
    /// UTF-8 text to score.
    #[arg(long, value_name = "TEXT", required_unless_present = "rows")]
    pub(crate) perplexity: Option<PathBuf>,
    /// Tokens of a window [default: 2048, or the model's context if that is shorter].
    #[arg(long, value_parser = at_least(2), requires = "perplexity")]
    pub(crate) window: Option<usize>,
    /// Tokens from the start of a window to that of the next [default: the window's length, so that none overlap].
    #[arg(long, value_parser = at_least(1), requires = "perplexity")]
    pub(crate) stride: Option<usize>,
    /// Score only the first so many windows [default: all].
    #[arg(long, value_parser = at_least(1), requires = "perplexity")]
    pub(crate) windows: Option<usize>,
    /// Leave out so many tokens at the start, for instance those calibrated on.
    #[arg(long, default_value_t = 0)]
    pub(crate) skip_tokens: usize,
    /// Tasks, separated by commas: the names of their files without the ending.
    #[arg(long, value_delimiter = ',', value_name = "NAMES", requires = "task_dir")]
    pub(crate) tasks: Vec<String>,
    /// Folder with NAME.jsonl or NAME.parquet for every task.
    #[arg(long, value_name = "DIR", requires = "tasks")]
    pub(crate) task_dir: Option<PathBuf>,
    /// Folder with a folder of JPEG and PNG images for each class, to classify with a model of images. Folders have the
    /// names of classes in config.json, or all have their numbers.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["classify", "tasks", "perplexity", "tokenizer"])]
    pub(crate) images: Option<PathBuf>,
    /// Labelled texts to classify: tsv, jsonl or parquet.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tasks", "perplexity", "tokenizer"])]
    pub(crate) classify: Option<PathBuf>,
    /// The task of GLUE that the texts are: says their columns, what their labels mean, and what is measured.
    #[arg(long, value_name = "NAME", value_parser = glue, requires = "classify")]
    pub(crate) glue: Option<&'static Glue>,
    /// Column of the texts, or two columns of a pair separated by a comma [default: those of the task, or well-known ones].
    #[arg(long, value_name = "A[,B]", value_delimiter = ',', requires = "classify")]
    pub(crate) text_column: Vec<String>,
    /// Column of the labels [default: label].
    #[arg(long, value_name = "L", requires = "classify")]
    pub(crate) label_column: Option<String>,
    /// The model's class for each label 0, 1, ... of the file, by its name in config.json, where names do not tell.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "classify")]
    pub(crate) label_names: Vec<String>,
    /// Take only the first so many rows of each task or file, or so many images of all classes in turn [default: all].
    #[arg(long, value_name = "N", value_parser = at_least(1), requires = "rows")]
    pub(crate) limit: Option<usize>,
    /// How exactly the products of linear layers are computed. bf16 rounds their factors and sums in f32, as GPUs do: up to
    /// twice as fast on processors with AVX512-BF16, for differences far below those of 4 bits.
    #[arg(long, value_enum, default_value_t = ProductsChoice::F32)]
    pub(crate) products: ProductsChoice,
    /// tokenizer.json to use instead of the one beside a model.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Folder for finished rows and windows, so that a stopped run goes on [default: halfbyte in the user's cache folder].
    /// It can be deleted at any time.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Keep no finished rows, and use none of an earlier run.
    #[arg(long, conflicts_with = "cache")]
    pub(crate) no_cache: bool,
}

const EXPORT: &str = "\
Examples:
  halfbyte quantize models/SmolLM2 --recipe nvfp4-w4a16 --out SmolLM2-nvfp4
  halfbyte export SmolLM2-nvfp4 --out SmolLM2-vllm --to vllm-nvfp4
  halfbyte export SmolLM2-nvfp4 --out SmolLM2-gguf --to gguf-nvfp4 --rest q8_0
  halfbyte export SmolLM2-nvfp4 --out exports --to vllm-nvfp4,modelopt,gguf-nvfp4     # a subfolder each

Targets: vllm-nvfp4, vllm-mxfp4, vllm-fp8, vllm-int, vllm-mixed (compressed-tensors), modelopt, gguf-nvfp4, gguf-mxfp4, \
gguf-mixed. Every file is \
read again before the command returns, and every value compared with the source; an output that differs is removed. \
`eval` runs all of them too, GGUF with the values of its blocks.";

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
Each takes taps=norms (what norms feed; default of the first two) or taps=all (also values and the layers before gates and \
ReLUs). docs/transforms.md says where each family of models has room for them.

Killed at any moment, the same command goes on where it was.";

/// Write an equal full-precision checkpoint that is easier to quantize: channel scales and shifts folded into norms and layers.
#[derive(Debug, Args)]
#[command(after_help = TRANSFORM)]
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
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
}

/// Types of a checkpoint's tensors.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DtypeChoice {
    /// That of the original, tensor by tensor.
    Same,
    /// Single precision.
    F32,
    /// Brain float.
    Bf16,
    /// Half precision.
    F16,
}

impl From<DtypeChoice> for StoredAs {
    fn from(choice: DtypeChoice) -> Self {
        match choice {
            DtypeChoice::Same => Self::Same,
            DtypeChoice::F32 => Self::All(Dtype::F32),
            DtypeChoice::Bf16 => Self::All(Dtype::BF16),
            DtypeChoice::F16 => Self::All(Dtype::F16),
        }
    }
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

/// Forms of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// One self-contained page.
    Html,
    /// Markdown: tables in place of the figures.
    Md,
    /// The facts as JSON.
    Json,
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

Weights are random bf16 numbers, the tokenizer is one of single bytes (for a model of images: a plain processor): such a model says nothing of accuracy. Time and \
memory of every block are those of the real one, so two blocks tell what a whole model would take.";

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

/// The recipe, and options that override its fields.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct RecipeArgs {
    /// Built-in recipe (`halfbyte recipes` lists them), a TOML file, or for `quantize` auto: the best of several for --target.
    #[arg(long, value_name = "NAME|FILE|auto")]
    pub(crate) recipe: String,
    /// Layers to leave in full precision, separated by commas: lm_head, embedding, or parts of layer names such as
    /// down_proj or layers.0.
    #[arg(long, value_delimiter = ',', value_name = "LAYERS", help_heading = RECIPE)]
    pub(crate) keep: Option<Vec<String>>,
    /// Bits of the embedding table: 4, 6, 8, or 16 to leave it alone.
    #[arg(long, value_parser = bits, value_name = "4|6|8|16", help_heading = RECIPE)]
    pub(crate) embedding_bits: Option<u32>,
    /// Bits of the operands of attention's own products, q·kᵀ and probabilities·v, quantized by the recipe's method: 4, 6, 8, or
    /// 16 to leave them alone.
    #[arg(long, value_parser = bits, value_name = "4|6|8|16", help_heading = RECIPE)]
    pub(crate) attention_bits: Option<u32>,
    /// Quantize keys and values, that is the KV cache, and nothing else of attention: fp8 (E4M3, a scale for each head of each
    /// token), fp4 (NVFP4: E2M1 in groups of 16), or a scheme such as int8/channel/dynamic.
    #[arg(long, value_parser = kv_cache, value_name = "fp8|fp4|SCHEME", help_heading = RECIPE)]
    pub(crate) kv_cache: Option<Scheme>,
    /// Most stored bits of a weight on average, such as 4.5: layers get 4, 6 or 8 bits each (their inputs as many, unless the recipe
    /// leaves inputs alone) by the error that they are measured to cause. For recipes with alternatives: among those.
    #[arg(long, value_name = "BITS", help_heading = RECIPE)]
    pub(crate) max_bits: Option<f32>,
    /// Which inputs layers are calibrated on.
    #[arg(long, help_heading = RECIPE)]
    pub(crate) calibrate: Option<Calibrate>,
    /// Windows of tokens drawn from the vocabulary to calibrate on besides the text, as a share of its windows; 0 where the
    /// text is just what the model will read.
    #[arg(long, value_name = "SHARE", help_heading = RECIPE)]
    pub(crate) coverage: Option<f32>,
    /// How fixed schemes (nvfp4, mxfp4) choose the scales of weights [default for built-in recipes: weighted with --calibration,
    /// else four-over-six for NVFP4 and sweep for MXFP4].
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

/// What `--recipe auto` aims at.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct AutoArgs {
    /// With --recipe auto: the format. Several recipes and transforms for it are tried on three blocks, and the one that makes the
    /// least error on a quarter of the calibration data, which is held out, quantizes the model. What was tried is
    /// in OUT/auto.json.
    #[arg(long, value_enum)]
    pub(crate) target: Option<AutoChoice>,
    /// With --recipe auto: how long to try, such as 90s, 10m or 1h; the run itself comes after [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = time, requires = "target")]
    pub(crate) budget: Option<Duration>,
}

/// As [`AutoTarget`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AutoChoice {
    /// NVFP4 weights and inputs.
    Nvfp4,
    /// NVFP4 weights, inputs left alone.
    #[value(name = "nvfp4-w4a16")]
    Nvfp4W4a16,
    /// MXFP4 weights and inputs.
    Mxfp4,
    /// MXFP4 weights, inputs left alone.
    #[value(name = "mxfp4-w4a16")]
    Mxfp4W4a16,
    /// Searched 4-bit formats of weights and inputs.
    Fpq,
}

impl From<AutoChoice> for AutoTarget {
    fn from(choice: AutoChoice) -> Self {
        match choice {
            AutoChoice::Nvfp4 => Self::Nvfp4,
            AutoChoice::Nvfp4W4a16 => Self::Nvfp4W4a16,
            AutoChoice::Mxfp4 => Self::Mxfp4,
            AutoChoice::Mxfp4W4a16 => Self::Mxfp4W4a16,
            AutoChoice::Fpq => Self::Fpq,
        }
    }
}

/// What to calibrate on, and how much.
#[derive(Clone, Debug, Args)]
pub(crate) struct CalibrationArgs {
    /// What to calibrate on, such as the model will be given: for a language model a UTF-8 text of a few pages, of which the
    /// first windows are used; for another model of texts a tsv, jsonl or parquet file of texts, or a txt file with one a
    /// line; for a model of images a folder of JPEG and PNG files. Labels are not needed. Recipes whose weights alone
    /// decide, such as nvfp4-w4a16, need nothing, and choose better scales with it.
    #[arg(long = "calibration", value_name = "DATA")]
    pub(crate) data: Option<PathBuf>,
    /// Images, or texts of a model that is no language model, to calibrate on: drawn with the recipe's seed.
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = at_least(1))]
    pub(crate) calibration_samples: usize,
    /// Column of the calibration texts, or two columns of pairs separated by a comma [default: well-known ones].
    #[arg(long, value_name = "A[,B]", value_delimiter = ',', requires = "data")]
    pub(crate) calibration_column: Vec<String>,
    /// Most calibration windows to use, for language models.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least(1))]
    pub(crate) calibration_windows: usize,
    /// Leave out so many tokens at the start of the calibration text.
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    pub(crate) calibration_skip: usize,
    /// Tokens of a calibration window [default: 512, or the model's context if that is shorter].
    #[arg(long, value_name = "TOKENS", value_parser = at_least(1))]
    pub(crate) calibration_window: Option<usize>,
    /// Most memory for activations of the calibration data; beyond it they go to temporary files in OUT.partial
    /// [default: 1GiB, or whatever fits the memory limit].
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) activation_memory: Option<u64>,
    /// Most memory for the whole run, such as 2GiB: activations go to files if they must, and a run that would need more
    /// all the same is refused before it starts.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory_limit: Option<u64>,
}

/// How results are printed.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Print one JSON object on standard output and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to use of the machine.
#[derive(Clone, Debug, Args)]
pub(crate) struct MachineArgs {
    /// Threads to compute with [default: one for each core]. The result is the same with any number.
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub(crate) threads: Option<usize>,
}

/// As `Rest`, without a name for what needs none.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RestChoice {
    /// Blocks of 32 bytes with a half-precision scale, 8.5 bits a value.
    #[value(name = "q8_0")]
    Q8_0,
    /// Half precision.
    F16,
    /// Brain float.
    Bf16,
    /// Single precision.
    F32,
}

impl From<RestChoice> for Rest {
    fn from(choice: RestChoice) -> Self {
        match choice {
            RestChoice::Q8_0 => Self::Q8_0,
            RestChoice::F16 => Self::F16,
            RestChoice::Bf16 => Self::Bf16,
            RestChoice::F32 => Self::F32,
        }
    }
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

/// As `Products`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProductsChoice {
    /// From f32 factors.
    F32,
    /// From factors rounded to bfloat16.
    Bf16,
}

impl From<ProductsChoice> for Products {
    fn from(choice: ProductsChoice) -> Self {
        match choice {
            ProductsChoice::F32 => Self::F32,
            ProductsChoice::Bf16 => Self::Bf16,
        }
    }
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
    /// The code of least squared error; for f32 scales (int4, int8, FP8) clip search.
    Sweep,
    /// The same, weighted by the mean squares of the inputs; needs a calibration text.
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

fn at_least_zero(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|v: &f64| v.is_finite() && *v >= 0.0)
        .ok_or_else(|| "not a number of at least 0".into())
}

fn glue(text: &str) -> Result<&'static Glue, String> {
    Glue::find(text).ok_or_else(|| {
        let known: Vec<&str> = Glue::all().iter().map(|g| g.name).collect();
        format!("none of {}", known.join(", "))
    })
}

/// `0.45`, or `piqa=0.6`.
fn min_accuracy(text: &str) -> Result<MinAccuracy, String> {
    let (task, share) = match text.rsplit_once('=') {
        Some((task, share)) => (Some(task.to_string()), share),
        None => (None, text),
    };
    let least = share.parse().ok().filter(|v| (0.0..=1.0).contains(v));
    least
        .map(|least| MinAccuracy { task, least })
        .ok_or_else(|| "not a share between 0 and 1, such as 0.45 or piqa=0.6".into())
}

fn bits(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|b| [4, 6, 8, 16].contains(b)).ok_or_else(|| "not one of 4, 6, 8 and 16".into())
}

/// A scheme, or a name for one.
fn kv_cache(text: &str) -> Result<Scheme, String> {
    let scheme = match text {
        "fp8" => "e4m3fn/channel/dynamic",
        "fp4" => "e2m1/group16/e4m3/dynamic",
        scheme => scheme,
    };
    scheme.parse().map_err(|e: FormatError| format!("{e}; or fp8 or fp4"))
}

/// `1GiB`, `512MiB`, `2GB`, or bytes.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "not a time such as 90s, 10m or 1.5h".to_string();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())
}

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
