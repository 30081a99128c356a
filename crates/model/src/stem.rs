//! The stem: from inputs to the first block's input.

use crate::linear::{Linear, Weight};
use crate::norm::Norm;
use crate::positions::resample;
use crate::spec::{ImageStem, TextStem};
use crate::{Input, ModelError};
use halfbyte_tensor::{Layout, Matrix, add_assign};
use std::borrow::Cow;

/// The stem with its weights.
#[derive(Debug)]
pub struct Stem {
    pub(crate) kind: Kind,
    pub(crate) hidden: usize,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Text(Text),
    Image(Image),
}

/// Tables as f32, row after row; the word table as it is stored.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) spec: TextStem,
    pub(crate) table: Weight,
    pub(crate) types: Vec<f32>,
    pub(crate) positions: Vec<f32>,
    pub(crate) norm: Option<Norm>,
}

#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) spec: ImageStem,
    pub(crate) projection: Linear,
    /// The extra rows.
    pub(crate) extra: Vec<f32>,
    pub(crate) positions: Vec<f32>,
}

impl Stem {
    /// The weight that recipes call the embedding: the table of tokens, or the projection of patches.
    pub fn weight(&self) -> &Weight {
        match &self.kind {
            Kind::Text(text) => &text.table,
            Kind::Image(image) => &image.projection.weight,
        }
    }

    /// Puts that weight in another form, such as its codes, and gives back the one before.
    pub fn replace_weight(&mut self, weight: Weight) -> Weight {
        let place = match &mut self.kind {
            Kind::Text(text) => &mut text.table,
            Kind::Image(image) => &mut image.projection.weight,
        };
        std::mem::replace(place, weight)
    }

    /// The first block's input `[rows, hidden]` for these inputs side by side, and which rows are whose.
    ///
    /// # Errors
    /// [`ModelError::Token`] for an id outside the vocabulary; [`ModelError::Input`] for an input of another kind or size
    /// than the network takes.
    pub fn embed(&self, inputs: &[Input]) -> Result<(Matrix, Layout), ModelError> {
        let mut layout = Layout::default();
        match &self.kind {
            Kind::Text(text) => {
                let (mut ids, mut types) = (Vec::new(), Vec::new());
                for input in inputs {
                    ids.extend_from_slice(input.tokens());
                    layout.push(input.tokens().len(), &[]);
                    match input {
                        Input::Tokens(ids) => types.resize(types.len() + ids.len(), 0),
                        Input::Segments { ids, types: own } if own.len() == ids.len() => types.extend(own),
                        Input::Segments { ids, types } => {
                            let (ids, types) = (ids.len(), types.len());
                            return Err(ModelError::Input(format!(
                                "{ids} tokens with {types} segment types"
                            )));
                        }
                        Input::Pixels { .. } => return Err(mismatch(input, "tokens")),
                    }
                }
                Ok((text.embed(self.hidden, &ids, &types, &layout)?, layout))
            }
            Kind::Image(image) => {
                for input in inputs {
                    layout.push(image.rows(input)?, &[]);
                }
                let mut out = Matrix::zeros(layout.rows(), self.hidden);
                let mut rest = &mut out.data[..];
                // Images of one size follow each other more often than not.
                let mut positions = (image.spec.size, Cow::Borrowed(&image.positions[..]));
                for input in inputs {
                    let (own, behind) = rest.split_at_mut(image.rows(input)? * self.hidden);
                    image.embed(input, self.hidden, &mut positions, own)?;
                    rest = behind;
                }
                Ok((out, layout))
            }
        }
    }

    /// The first block's input `[rows, hidden]` for tokens that form the sequences of `layout`.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn embed_tokens(&self, tokens: &[u32], layout: &Layout) -> Result<Matrix, ModelError> {
        match &self.kind {
            Kind::Text(text) => text.embed(self.hidden, tokens, &vec![0; tokens.len()], layout),
            Kind::Image(_) => Err(ModelError::Input("the model takes images, not tokens".into())),
        }
    }
}

fn mismatch(input: &Input, wanted: &str) -> ModelError {
    ModelError::Input(format!("the model takes {wanted}, and it was given {}", input.kind()))
}

impl Text {
    fn embed(
        &self,
        hidden: usize,
        ids: &[u32],
        types: &[u32],
        layout: &Layout,
    ) -> Result<Matrix, ModelError> {
        let vocabulary = self.spec.table.outputs;
        let mut out = Matrix::zeros(ids.len(), hidden);
        for (i, &token) in ids.iter().enumerate() {
            if token as usize >= vocabulary {
                return Err(ModelError::Token { token, vocabulary });
            }
            self.table.read_row(token as usize, out.row_mut(i));
        }
        if self.spec.scale != 1.0 {
            out.data.iter_mut().for_each(|v| *v *= self.spec.scale);
        }
        if let Some((name, rows)) = &self.spec.types {
            for (i, &segment) in types.iter().enumerate() {
                let row = self.types.chunks_exact(hidden).nth(segment as usize).ok_or_else(|| {
                    ModelError::Input(format!("segment type {segment}, and {name} has {rows} rows"))
                })?;
                add_assign(out.row_mut(i), row);
            }
        }
        if let Some((_, rows, first)) = &self.spec.positions {
            for (i, position) in layout.positions().enumerate() {
                let row = self.positions.chunks_exact(hidden).nth(position + first).ok_or_else(|| {
                    let most = rows - first;
                    ModelError::Input(format!("a sequence of more than {most} tokens, the model's most"))
                })?;
                add_assign(out.row_mut(i), row);
            }
        }
        Ok(match &self.norm {
            Some(norm) => norm.apply(&out),
            None => out,
        })
    }
}

impl Image {
    /// Rows of an image, which must be one that the network takes.
    fn rows(&self, input: &Input) -> Result<usize, ModelError> {
        let spec = &self.spec;
        let Input::Pixels { channels, height, width, values } = input else {
            return Err(mismatch(input, "images"));
        };
        let size = [*height, *width];
        let fits = size == spec.size || (spec.resampling.is_some() && spec.grid(size).iter().all(|&n| n > 0));
        if *channels != spec.channels || !fits || values.len() != channels * height * width {
            return Err(ModelError::Input(format!(
                "an image of {channels} x {height} x {width} pixels and {} values; the model takes {} x {} x {}{}",
                values.len(),
                spec.channels,
                spec.size[0],
                spec.size[1],
                if spec.resampling.is_some() { " and any other size of a patch or more" } else { "" }
            )));
        }
        Ok(spec.rows_of(size))
    }

    /// Writes the rows of one image. `positions` are those for images of a size, of another one once there was such an image.
    fn embed(
        &self,
        input: &Input,
        hidden: usize,
        positions: &mut ([usize; 2], Cow<'_, [f32]>),
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let spec = &self.spec;
        let Input::Pixels { channels, height, width, values } = input else {
            return Err(mismatch(input, "images"));
        };
        let size = [*height, *width];
        let without_patch = spec.positioned() - spec.patches();
        if let (true, Some(how)) = (positions.0 != size, spec.resampling) {
            let (own, of_patches) = self.positions.split_at(without_patch * hidden);
            let of_patches = resample(of_patches, spec.grid(spec.size), spec.grid(size), hidden, how);
            *positions = (size, [own, &of_patches].concat().into());
        }
        let patches = self.projection.forward(&unfold(values, (*channels, *height, *width), spec.patch));
        // Rows with a position come first, and the patches have those after them.
        let before: usize = spec.extra.iter().map(|e| e.rows).sum();
        let (extra, rest) = out.split_at_mut(before * hidden);
        extra.copy_from_slice(&self.extra);
        rest.copy_from_slice(&patches.data);
        let (own, of_patches) = positions.1.split_at(without_patch * hidden);
        add_assign(&mut extra[..own.len()], own);
        add_assign(rest, of_patches);
        Ok(())
    }
}

/// The patches of an image `[channels, height, width]`, row after row of them: `[patches, channels · patch · patch]`. What
/// is left at the right and at the bottom is left out.
fn unfold(values: &[f32], (channels, height, width): (usize, usize, usize), patch: [usize; 2]) -> Matrix {
    let (down, across) = (height / patch[0], width / patch[1]);
    let mut out = Matrix::zeros(down * across, channels * patch[0] * patch[1]);
    for p in 0..down * across {
        let (top, left) = (p / across * patch[0], p % across * patch[1]);
        for (line, to) in out.row_mut(p).chunks_exact_mut(patch[1]).enumerate() {
            let (channel, y) = (line / patch[0], line % patch[0]);
            let from = (channel * height + top + y) * width + left;
            to.copy_from_slice(&values[from..from + patch[1]]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_channels_then_lines() {
        // One channel of 4 x 5 pixels, patches of 2 x 2: the fifth column is left out.
        let values: Vec<f32> = (0..40).map(|v| v as f32).collect();
        let patches = unfold(&values, (2, 4, 5), [2, 2]);
        assert_eq!((patches.rows, patches.cols), (4, 8));
        assert_eq!(patches.row(1), [2., 3., 7., 8., 22., 23., 27., 28.]);
        assert_eq!(patches.row(2), [10., 11., 15., 16., 30., 31., 35., 36.]);
    }
}
