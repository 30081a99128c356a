//! What is made of the last block's output, described.

use super::{Activation, NormSpec, Site};

/// What is made of the last block's output: a norm, a choice of rows, and layers one after the other.
#[derive(Clone, Debug)]
pub struct HeadSpec {
    /// What the network is for.
    pub task: Task,
    /// The norm after the last block.
    pub norm: Option<NormSpec>,
    /// Which rows the layers see.
    pub pool: Pool,
    /// The layers; the last one gives the logits. None in a bare encoder.
    pub layers: Vec<HeadLayer>,
    /// `c` of `c · tanh(logit / c)`.
    pub soft_cap: Option<f32>,
    /// Whether the last layer shares the embedding's tensor.
    pub tied: bool,
}

/// One layer behind the last block: `norm(activation(layer(x)))`.
#[derive(Clone, Debug)]
pub struct HeadLayer {
    /// The linear layer.
    pub site: Site,
    /// Behind it.
    pub activation: Option<Activation>,
    /// Behind that.
    pub norm: Option<NormSpec>,
}

impl From<Site> for HeadLayer {
    fn from(site: Site) -> Self {
        Self { site, activation: None, norm: None }
    }
}

/// What a network is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Logits of the next token, at every token.
    LanguageModel,
    /// Logits of the token itself, at every token.
    MaskedLanguageModel,
    /// Logits of the classes of a text, or one number.
    TextClassification,
    /// Logits of the classes of an image.
    ImageClassification,
    /// The last hidden states.
    Encoder,
}

impl Task {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::LanguageModel => "language model",
            Self::MaskedLanguageModel => "masked language model",
            Self::TextClassification => "text classification",
            Self::ImageClassification => "image classification",
            Self::Encoder => "encoder",
        }
    }

    /// Whether the output is one row of class logits an input.
    pub fn is_classification(self) -> bool {
        matches!(self, Self::TextClassification | Self::ImageClassification)
    }
}

/// Which rows of a sequence the head sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Every row.
    All,
    /// The first row.
    First,
    /// The first row, and beside it the mean of all rows from number `from` on.
    FirstAndMean {
        /// The first row of the mean.
        from: usize,
    },
}

impl HeadSpec {
    /// The head of a language model: one layer, without bias, over every row.
    pub fn language_model(norm: NormSpec, output: Site, tied: bool) -> Self {
        Self {
            task: Task::LanguageModel,
            norm: Some(norm),
            pool: Pool::All,
            layers: vec![output.into()],
            soft_cap: None,
            tied,
        }
    }

    /// The layer that gives the logits.
    pub fn output(&self) -> Option<&Site> {
        self.layers.last().map(|l| &l.site)
    }

    pub(super) fn tensors(&self, hidden: usize) -> Vec<(String, Vec<usize>)> {
        let mut tensors: Vec<_> = self.norm.iter().flat_map(|n| n.tensors(hidden)).collect();
        for (i, layer) in self.layers.iter().enumerate() {
            let tied = self.tied && i + 1 == self.layers.len();
            tensors.extend(layer.site.tensors().skip(usize::from(tied)));
            tensors.extend(layer.norm.iter().flat_map(|n| n.tensors(layer.site.outputs)));
        }
        tensors
    }
}
