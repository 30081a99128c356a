//! What options choose by name. Their comments are what `--help` prints.

use clap::ValueEnum;
use halfbyte_checkpoint::Dtype;
use halfbyte_export::Rest;
use halfbyte_quantize::transforms::StoredAs;
use halfbyte_quantize::{AutoTarget, Calibration, Products, Scales, Search};

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
