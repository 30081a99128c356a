//! What transforms may write beside the codes of a block, from its shapes alone.

use super::fold::Joint;
use super::{Transform, TransformKind};
use crate::recipe::Recipe;
use halfbyte_model::{BlockSpec, Site, TapKind};
use std::collections::BTreeSet;

/// A tensor that is not quantized and that transforms may write, in f32.
pub(crate) struct Rewritten {
    /// The name that the architecture has for it.
    pub(crate) name: String,
    /// Its values.
    pub(crate) elements: u64,
    /// Whether the checkpoint has it, as it has no migrations.
    pub(crate) stored: bool,
}

/// The tensors of a block that transforms may write beside codes: all that they can reach, of which a search may leave some
/// alone.
pub(crate) fn rewritten(spec: &BlockSpec, hidden: usize, recipe: &Recipe) -> Vec<Rewritten> {
    if recipe.transforms.is_empty() {
        return Vec::new();
    }
    let taps = 0..spec.taps.len();
    let folds = |t: &Transform, tap| {
        Joint::of(spec, tap, t.migrate).ok().filter(|_| t.wants(spec, tap, recipe)).map(|joint| joint.into)
    };
    let reached = |tap: usize, site: &Site| {
        recipe.transforms.iter().any(|t| match t.kind {
            TransformKind::Rotate { .. } => true,
            TransformKind::HadamardHeads { .. } => {
                matches!(spec.taps[tap].kind, TapKind::AttentionInput | TapKind::AttentionOutput)
            }
            _ => {
                folds(t, tap).is_some()
                    || taps.clone().any(|r| folds(t, r).is_some_and(|into| into == site.name))
            }
        })
    };
    let sites = || taps.clone().flat_map(|tap| spec.taps[tap].sites.iter().map(move |s| (tap, s)));
    let left: BTreeSet<String> =
        sites().filter(|(tap, s)| recipe.codes(s) || !reached(*tap, s)).map(|(_, s)| s.weight()).collect();
    let of = |(name, shape): (String, Vec<usize>), stored| {
        let elements = shape.iter().product::<usize>() as u64;
        Rewritten { name, elements, stored }
    };
    let own = spec.tensors(hidden).into_iter().filter(|(name, _)| !left.contains(name));
    let own: Vec<Rewritten> = own.map(|t| of(t, true)).collect();
    let migrations =
        taps.clone().filter(|&tap| recipe.transforms.iter().any(|t| t.migrates(spec, tap, recipe)));
    let migrations = migrations.filter_map(|tap| {
        Some(
            spec.migration(tap)?.tensors(spec.taps[tap].channels()).map(|t| of(t, false)).collect::<Vec<_>>(),
        )
    });
    own.into_iter().chain(migrations.flatten()).collect()
}
