//! What a quantized weight lacks, as a product of two thin matrices: `W ≈ Ŵ + U D`.

use crate::{Checkpoint, CheckpointError, Dtype, RawTensor, TensorSpec};
use half::bf16;

/// The low-rank part of a layer, beside its codes. It reads the same (quantized) input.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// Rows of D and columns of U.
    pub rank: usize,
    /// D `[rank, inputs]`.
    pub down: Vec<bf16>,
    /// U `[outputs, rank]`.
    pub up: Vec<bf16>,
}

const DOWN: &str = ".low_rank_down";
const UP: &str = ".low_rank_up";

/// The tensors of a low-rank part of this rank of layer `name`, a `[rows, cols]` weight.
pub(crate) fn tensors(name: &str, rank: usize, rows: usize, cols: usize) -> [TensorSpec; 2] {
    [
        TensorSpec::new(format!("{name}{DOWN}"), Dtype::BF16, [rank, cols]),
        TensorSpec::new(format!("{name}{UP}"), Dtype::BF16, [rows, rank]),
    ]
}

impl LowRank {
    /// The bytes of the tensor `suffix` of a layer, if it is one of these.
    pub(crate) fn bytes(&self, suffix: &str) -> Option<Vec<u8>> {
        let values = match suffix {
            DOWN => &self.down,
            UP => &self.up,
            _ => return None,
        };
        Some(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Reads that of layer `name`, a `[rows, cols]` weight.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape or type, or not finite.
    pub(crate) fn read(
        checkpoint: &Checkpoint,
        name: &str,
        rank: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Self, CheckpointError> {
        let read = |spec: &TensorSpec| match checkpoint.read_raw(&spec.name, &spec.shape)? {
            RawTensor::BF16(values) => Ok(values),
            other => Ok::<_, CheckpointError>(other.into_f32().into_iter().map(bf16::from_f32).collect()),
        };
        let [down, up] = &tensors(name, rank, rows, cols);
        Ok(Self { rank, down: read(down)?, up: read(up)? })
    }

    /// Adds `U D` to `weight` `[outputs, inputs]`.
    pub fn add_to(&self, weight: &mut [f32]) {
        let inputs = self.down.len() / self.rank.max(1);
        let rows = weight.chunks_exact_mut(inputs.max(1)).zip(self.up.chunks_exact(self.rank.max(1)));
        for (row, up) in rows {
            for (&u, down) in up.iter().zip(self.down.chunks_exact(inputs.max(1))) {
                let u = u.to_f32();
                row.iter_mut().zip(down).for_each(|(w, d)| *w += u * d.to_f32());
            }
        }
    }
}
