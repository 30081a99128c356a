//! Rotation of the values within each head (QuaRot, arXiv 2404.00456; R2 of SpinQuant, arXiv 2405.16406). Attention mixes the
//! rows of values and leaves their channels apart, so that what the value projection gives can be turned, `V ← V Q`, and turned
//! back where the output layer reads it, `W ← W Q` in the columns of every head. Heads that share values share the matrix.

use super::fold::Values;
use super::orthogonal::Orthogonal;
use super::{Note, Transform, TransformKind};
use crate::{QuantizeError, Recipe};
use halfbyte_model::{Block, BlockSpec, TapKind};
use std::collections::BTreeSet;

/// Checks that there is a matrix for the heads of a block, and gives it.
///
/// # Errors
/// [`QuantizeError::Recipe`] if not.
pub(super) fn matrix(
    transform: &Transform,
    spec: &BlockSpec,
    recipe: &Recipe,
) -> Result<Orthogonal, QuantizeError> {
    let block = match transform.kind {
        TransformKind::HadamardHeads { block } => block,
        _ => None,
    };
    // Other signs than those of the stream.
    let seed = recipe.seed ^ 0x6865_6164;
    Orthogonal::new(spec.attention.head_dim, block, seed).map_err(|why| transform.refused(&why))
}

/// Turns the values of a block; what was done, and the names of the tensors that are new.
///
/// # Errors
/// As [`matrix`].
pub(super) fn fold(
    transform: &Transform,
    block: &mut Block,
    recipe: &Recipe,
) -> Result<(Note, BTreeSet<String>), QuantizeError> {
    let q = matrix(transform, &block.spec, recipe)?;
    let (values, dim) = (Values::of(&block.spec), q.channels());
    let mut changed = BTreeSet::new();
    let maker = &mut block.linears[values.tap][values.site];
    let inputs = maker.site.inputs;
    for rows in values.rows.chunks_exact(dim) {
        // The rows of a head follow each other in every way to fuse projections.
        let (from, to) = (rows[0], rows[0] + dim);
        q.columns(&mut maker.weight_mut()[from * inputs..to * inputs], inputs);
        if let Some(bias) = &mut maker.bias {
            q.rows(&mut bias[from..to], None);
        }
    }
    changed.insert(maker.site.weight());
    changed.extend(maker.site.bias.clone());
    let into = maker.site.name.clone();
    let mut layers = Vec::new();
    let taps = block.spec.taps.iter().zip(&mut block.linears);
    for linear in taps.filter(|(t, _)| t.kind == TapKind::AttentionOutput).flat_map(|(_, linears)| linears) {
        // A row is the heads one after the other.
        q.rows(linear.weight_mut(), None);
        changed.insert(linear.site.weight());
        layers.push(linear.site.name.clone());
    }
    Ok((Note::turned(transform, layers, into), changed))
}
