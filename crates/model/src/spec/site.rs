//! One linear layer, described.

/// One linear layer, as the checkpoint stores it: a fused projection (`query_key_value`, `gate_up_proj`) is one layer, so
/// that quantized folders keep the checkpoint's names, and the block splits its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its name; the weight is the tensor `name.weight`.
    pub name: String,
    /// Output channels.
    pub outputs: usize,
    /// Input channels.
    pub inputs: usize,
    /// Name of the bias `[outputs]`, if it adds one.
    pub bias: Option<String>,
    /// How the weight is stored.
    pub stored: Stored,
    /// Where in the network it is.
    pub part: Part,
}

/// How a full-precision weight is stored. Codes are always rows of inputs, one row an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// `[outputs, inputs]`
    Rows,
    /// `[inputs, outputs]`, as GPT-2's.
    Columns,
    /// `[outputs, channels, height, width]`: a convolution whose filters do not overlap.
    Filters {
        /// Channels of the image.
        channels: usize,
        /// Rows of pixels of a patch.
        height: usize,
        /// Columns of pixels of a patch.
        width: usize,
    },
}

/// Where a layer is, which recipes ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Before the first block: the table of tokens or the projection of patches.
    Embedding,
    /// In a block.
    Block,
    /// Behind the last block: the output layer of a language model, or pooler and classifier.
    Head,
}

impl Site {
    /// A layer of a block without bias, stored in rows.
    pub fn new(name: impl Into<String>, outputs: usize, inputs: usize) -> Self {
        let name = name.into();
        Self { name, outputs, inputs, bias: None, stored: Stored::Rows, part: Part::Block }
    }

    /// The same with the bias `name.bias`, if `bias`.
    #[must_use]
    pub fn biased(self, bias: bool) -> Self {
        let bias = bias.then(|| format!("{}.bias", self.name));
        Self { bias, ..self }
    }

    /// The same in another part of the network.
    #[must_use]
    pub fn of(self, part: Part) -> Self {
        Self { part, ..self }
    }

    /// Name of the weight's tensor.
    pub fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Shape of the full-precision weight's tensor.
    pub fn shape(&self) -> Vec<usize> {
        match self.stored {
            Stored::Rows => vec![self.outputs, self.inputs],
            Stored::Columns => vec![self.inputs, self.outputs],
            Stored::Filters { channels, height, width } => vec![self.outputs, channels, height, width],
        }
    }

    /// Names and shapes of its tensors.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let bias = self.bias.iter().map(|b| (b.clone(), vec![self.outputs]));
        [(self.weight(), self.shape())].into_iter().chain(bias)
    }

    /// Last part of the name that says the kind of layer: `q_proj`, `down_proj`, `lm_head`, `query`. A last part that says
    /// nothing takes the one before it along: `output.dense`.
    pub fn kind(&self) -> &str {
        let mut dots = self.name.rmatch_indices('.').map(|(at, _)| at + 1);
        let last = dots.next().unwrap_or(0);
        match &self.name[last..] {
            "dense" => &self.name[dots.next().unwrap_or(0)..],
            kind => kind,
        }
    }
}
