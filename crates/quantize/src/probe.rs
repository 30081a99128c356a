//! Trying something on one block: its full-precision inputs and outputs, and the error of a block that stands in for it.

use crate::QuantizeError;
use crate::store::{Place, Store, windows_side_by_side};
use crate::stream::QuantizedBlock;
use halfbyte_checkpoint::StoredLayer;
use halfbyte_model::{Block, Linear, RotaryTables, Weight};
use halfbyte_tensor::{Layout, sum_of_squares};

/// What a block makes of its input.
///
/// # Errors
/// When a store cannot be read or written.
pub(crate) fn forward(
    block: &Block,
    hidden: &Store,
    rotary: &RotaryTables,
    layouts: &[Layout],
    place: &Place,
) -> Result<Store, QuantizeError> {
    let mut out = Store::new(place, hidden.channels(), hidden.rows())?;
    windows_side_by_side(
        &mut out,
        hidden.windows(),
        |_, i| hidden.get(i),
        |i, window| block.forward(window, rotary, &layouts[i]),
        |out, i, window| out.put(i, window),
    )?;
    Ok(out)
}

/// The same activations elsewhere.
///
/// # Errors
/// As [`forward`].
pub(crate) fn copy(store: &Store, place: &Place) -> Result<Store, QuantizeError> {
    let mut out = Store::new(place, store.channels(), store.rows())?;
    for i in 0..store.windows() {
        out.put(i, store.get(i)?)?;
    }
    Ok(out)
}

/// Mean over all rows of the squared error of a block's output for `entering` over the square of `leaving`, the output that is
/// wanted: row by row, since the next norm divides by its root.
///
/// # Errors
/// When a store cannot be read.
pub(crate) fn output_error(
    block: &Block,
    entering: &Store,
    leaving: &Store,
    rotary: &RotaryTables,
    layouts: &[Layout],
) -> Result<f64, QuantizeError> {
    let (mut sum, mut rows) = (0.0, 0);
    for i in 0..entering.windows() {
        let mut got = block.forward(entering.get(i)?, rotary, &layouts[i]);
        let wanted = leaving.get(i)?;
        got.data.iter_mut().zip(&wanted.data).for_each(|(g, w)| *g -= w);
        let pairs = got.data.chunks_exact(got.cols).zip(wanted.data.chunks_exact(got.cols));
        let relative =
            |(e, w): (&[f32], &[f32])| sum_of_squares(e) / sum_of_squares(w).max(f64::MIN_POSITIVE);
        sum += pairs.map(relative).sum::<f64>();
        rows += got.rows;
    }
    Ok(sum / rows.max(1) as f64)
}

/// Gives a block the codes that it was quantized to.
pub(crate) fn replace(block: &mut Block, done: QuantizedBlock) {
    for site in done.sites {
        if let Some(linear) = block.linears.iter_mut().flatten().find(|l| l.site.name == site.name) {
            stand_in(linear, site.stored);
        }
    }
    block.products = done.attention.map(|a| a.stored);
}

/// Gives a layer the codes that it was quantized to.
pub(crate) fn stand_in(linear: &mut Linear, stored: StoredLayer) {
    if let Some(weight) = stored.weight {
        linear.weight = Weight::Quantized(weight);
    }
    (linear.input, linear.low_rank) = (stored.input, stored.low_rank);
}
