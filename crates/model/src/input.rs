//! What a network is given.

/// One input of a network. Sequences hold no padding: many inputs are computed side by side, each in rows of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Token ids, special tokens included.
    Tokens(Vec<u32>),
    /// Token ids with the segment that each belongs to (`token_type_ids`). A network without segments looks at the ids alone.
    Segments {
        /// The tokens.
        ids: Vec<u32>,
        /// Their segments, as many as there are tokens.
        types: Vec<u32>,
    },
    /// An image as its processor leaves it: resized, cropped and normalised.
    Pixels {
        /// Colours.
        channels: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// `[channels, height, width]`.
        values: Vec<f32>,
    },
}

impl Input {
    /// What it is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tokens(_) | Self::Segments { .. } => "tokens",
            Self::Pixels { .. } => "an image",
        }
    }

    /// Its tokens; none for an image.
    pub fn tokens(&self) -> &[u32] {
        match self {
            Self::Tokens(ids) | Self::Segments { ids, .. } => ids,
            Self::Pixels { .. } => &[],
        }
    }
}
