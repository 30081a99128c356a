//! How an input becomes the first block's input, described.

use super::{NormSpec, Part, Site};

/// How an input becomes the first block's input.
#[derive(Clone, Debug)]
pub enum StemSpec {
    /// Tokens, looked up.
    Text(TextStem),
    /// Pixels, cut into patches.
    Image(ImageStem),
}

/// `norm(scale · table[token] + types[type] + positions[position + offset])`
#[derive(Clone, Debug)]
pub struct TextStem {
    /// The embedding table `[vocabulary, hidden]`.
    pub table: Site,
    /// Factor on its rows.
    pub scale: f32,
    /// Name and rows of the table of segment types, `name.weight`.
    pub types: Option<(String, usize)>,
    /// Name and rows of the table of positions, `name.weight`, and the row of the first position.
    pub positions: Option<(String, usize, usize)>,
    /// Norm of the sum.
    pub norm: Option<NormSpec>,
}

impl TextStem {
    /// A lookup in the table `name` and nothing else.
    pub fn plain(name: &str, vocabulary: usize, hidden: usize) -> Self {
        let table = Site::new(name, vocabulary, hidden).of(Part::Embedding);
        Self { table, scale: 1.0, types: None, positions: None, norm: None }
    }
}

/// Patches, projected; extra rows before them; positions added.
#[derive(Clone, Debug)]
pub struct ImageStem {
    /// The projection of a patch.
    pub projection: Site,
    /// Channels of an image.
    pub channels: usize,
    /// Rows and columns of pixels of an image.
    pub size: [usize; 2],
    /// Rows and columns of pixels of a patch.
    pub patch: [usize; 2],
    /// Rows before the patches, first to last; those with a position come first.
    pub extra: Vec<Extra>,
    /// Name of the table of positions `[1, extra rows with a position + patches, hidden]`.
    pub positions: String,
    /// How positions are made for images of another size; `None` if there can be none.
    pub resampling: Option<Resampling>,
}

/// How a table of positions is resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// Bicubic, from four neighbours a direction.
    Bicubic,
    /// Bicubic, over as many as a new place covers.
    Antialiased,
}

/// Learned rows before the patches, `[1, rows, hidden]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Name of the tensor.
    pub name: String,
    /// How many rows.
    pub rows: usize,
    /// Whether they have positions.
    pub positioned: bool,
}

impl ImageStem {
    /// Rows and columns of patches of an image of this many rows and columns of pixels.
    pub fn grid(&self, size: [usize; 2]) -> [usize; 2] {
        [size[0] / self.patch[0], size[1] / self.patch[1]]
    }

    /// Patches of an image of the size that positions are for.
    pub fn patches(&self) -> usize {
        self.grid(self.size).iter().product()
    }

    /// Rows of an image of that size: extra ones and patches.
    pub fn rows(&self) -> usize {
        self.rows_of(self.size)
    }

    /// Rows of an image of another.
    pub fn rows_of(&self, size: [usize; 2]) -> usize {
        self.extra.iter().map(|e| e.rows).sum::<usize>() + self.grid(size).iter().product::<usize>()
    }

    /// Rows that have positions.
    pub fn positioned(&self) -> usize {
        self.extra.iter().filter(|e| e.positioned).map(|e| e.rows).sum::<usize>() + self.patches()
    }
}

impl StemSpec {
    pub(super) fn tensors(&self, hidden: usize) -> Vec<(String, Vec<usize>)> {
        match self {
            Self::Text(text) => {
                let tables = text.types.iter().map(|(name, rows)| (name, rows));
                let tables = tables.chain(text.positions.iter().map(|(name, rows, _)| (name, rows)));
                let tables = tables.map(|(name, &rows)| (format!("{name}.weight"), vec![rows, hidden]));
                let norms = text.norm.iter().flat_map(|n| n.tensors(hidden));
                text.table.tensors().chain(tables).chain(norms).collect()
            }
            Self::Image(image) => {
                let extra = image.extra.iter().map(|e| (e.name.clone(), vec![1, e.rows, hidden]));
                let positions = (image.positions.clone(), vec![1, image.positioned(), hidden]);
                image.projection.tensors().chain(extra).chain([positions]).collect()
            }
        }
    }
}
