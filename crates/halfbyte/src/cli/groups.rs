//! Options that several commands share. Their comments are what `--help` prints.

use super::choices::{AutoChoice, Calibrate, GridChoice, ProductsChoice, ScalesChoice, SearchChoice};
use super::values::{at_least, bits, glue, kv_cache, size, threads, time};
use clap::{ArgGroup, Args};
use halfbyte_data::Glue;
use halfbyte_formats::Scheme;
use std::path::PathBuf;
use std::time::Duration;

/// The recipe, and options that override its fields.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct RecipeArgs {
    /// Built-in recipe (`halfbyte recipes` lists them), a TOML file, or for `quantize` auto: the best of several for --target.
    #[arg(long, value_name = "NAME|FILE|auto")]
    pub(crate) recipe: String,
    /// Layers to leave in full precision, separated by commas: lm_head, embedding, or parts of layer names such as
    /// down_proj or layers.0. Instead of those that the recipe keeps (NVFP4 and the other fixed formats: lm_head).
    #[arg(long, value_delimiter = ',', value_name = "LAYERS", help_heading = RECIPE)]
    pub(crate) keep: Option<Vec<String>>,
    /// Bits of the embedding table: 4, 6, 8, or 16 to leave it alone.
    #[arg(long, value_parser = bits, value_name = "4|6|8|16", help_heading = RECIPE)]
    pub(crate) embedding_bits: Option<u32>,
    /// Bits of the operands of attention's own products, q·kᵀ and probabilities·v, quantized by the recipe's method: 4, 6, 8,
    /// or 16 to leave them alone.
    #[arg(long, value_parser = bits, value_name = "4|6|8|16", help_heading = RECIPE)]
    pub(crate) attention_bits: Option<u32>,
    /// Quantize keys and values, that is the KV cache, and nothing else of attention: fp8 (E4M3, a scale for each head of
    /// each token), fp4 (NVFP4: E2M1 in groups of 16), or a scheme such as int8/channel/dynamic.
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
    /// How fixed schemes (nvfp4, mxfp4) choose the scales of weights [default of a recipe with scales = "auto", as the
    /// built-in ones: weighted with --calibration, else four-over-six for NVFP4 and sweep for MXFP4; absmax for FP8 and INT].
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
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,
}

/// What is measured, and where finished parts are kept.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("rows").args(["tasks", "images", "classify"]).multiple(true))]
#[command(group = ArgGroup::new("measured").args(["perplexity", "tasks", "images", "classify"]).multiple(true).required(true))]
pub(crate) struct MeasureArgs {
    /// UTF-8 text to score.
    #[arg(long, value_name = "TEXT")]
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
    /// Folder for finished rows and windows, so that a stopped run goes on [default: halfbyte in the user's cache folder; of
    /// `ablate` cache in its own]. It can be deleted at any time.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Keep no finished rows, and use none of an earlier run.
    #[arg(long, conflicts_with = "cache")]
    pub(crate) no_cache: bool,
}
