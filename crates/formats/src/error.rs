//! What can go wrong with formats, and what to do about it.

/// An error of this crate. Messages name the tensor where there is one, and end with what to do.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A float element outside what a byte can hold, or without exponent bits.
    #[error(
        "there is no element e{exponent}m{mantissa}: a float needs 1 exponent bit or more and at most 8 bits \
         with its sign; try e2m1, e3m0 or e4m3"
    )]
    Float {
        /// Exponent bits asked for.
        exponent: u8,
        /// Mantissa bits asked for.
        mantissa: u8,
    },

    /// An integer element of a width that is not supported.
    #[error("there is no element int{bits}: integers have 2 to 8 bits; try int4 or int8")]
    Int {
        /// Bits asked for.
        bits: u8,
    },

    /// A text that should have named an element, a granularity, a scale format or a scheme.
    #[error("'{text}' is not {what}; write {expected}")]
    Parse {
        /// What was read, with its article: "an element".
        what: &'static str,
        /// The text that was given.
        text: String,
        /// What would have been right.
        expected: &'static str,
    },

    /// A NaN or an infinity in a tensor to be quantized; no element has a code for it.
    #[error(
        "tensor '{tensor}' has the value {value} at flat index {index}; 4-bit formats have no NaN or infinity, \
         so repair or re-export the checkpoint"
    )]
    NonFinite {
        /// Name of the tensor.
        tensor: String,
        /// Flat, row-major index of the first such value.
        index: usize,
        /// The value.
        value: f32,
    },

    /// A matrix whose rows cannot be divided as the scheme says.
    #[error(
        "tensor '{tensor}' [{rows}, {cols}] cannot be stored in groups of {group}: {cols} columns are not a \
         multiple of {group}; choose a group that divides them or the granularity 'channel', or leave the layer alone"
    )]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Columns in one group.
        group: usize,
    },

    /// A slice that does not have the length its shape asks for.
    #[error(
        "tensor '{tensor}': {what} should have {expected} entries and has {found}; check the shape passed along"
    )]
    Length {
        /// Name of the tensor.
        tensor: String,
        /// Which of its arrays.
        what: &'static str,
        /// Entries needed.
        expected: usize,
        /// Entries found.
        found: usize,
    },

    /// A scale that cannot be used, or that its scale format cannot store.
    #[error(
        "tensor '{tensor}': scale number {index} is {value}, which is not a positive normal number that {format} \
         can store; round scales with ScaleFormat::round first"
    )]
    Scale {
        /// Name of the tensor.
        tensor: String,
        /// Index into the scales.
        index: usize,
        /// The scale.
        value: f32,
        /// The scale format that should hold it.
        format: &'static str,
    },

    /// A scheme that is well formed, and that this operation cannot carry out.
    #[error("{operation} does not support the scheme {scheme}: {hint}")]
    Unsupported {
        /// What was asked for.
        operation: &'static str,
        /// The scheme, as text.
        scheme: String,
        /// What to do instead.
        hint: &'static str,
    },
}
