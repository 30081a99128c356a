//! A network that is changed in memory: what transforms of a checkpoint need.

use crate::block::Block;
use crate::head::Head;
use crate::linear::{Linear, Weight};
use crate::model::transposed;
use crate::norm::Norm;
use crate::spec::{Stored, TapKind};
use halfbyte_checkpoint::RawTensor;

impl Block {
    /// The norm of this name, if the block has it.
    pub fn norm_mut(&mut self, name: &str) -> Option<&mut Norm> {
        let around = [&mut self.attention, &mut self.mlp].into_iter();
        let around = around.flat_map(|a| [&mut a.before, &mut a.after, &mut a.post, &mut a.inside]).flatten();
        let heads = self.query_key.iter_mut().flat_map(|(q, k)| [q, k]);
        around.chain(heads).find(|n| n.spec().name == name)
    }

    /// The norms before attention and before the MLP.
    pub fn norms_before_mut(&mut self) -> [Option<&mut Norm>; 2] {
        [self.attention.before.as_mut(), self.mlp.before.as_mut()]
    }

    /// Puts an identity that a transform may change before the layers at tap `tap`, if there is room for one
    /// ([`BlockSpec::migration`](crate::BlockSpec::migration)).
    pub fn add_migration(&mut self, tap: usize) {
        let Some(spec) = self.spec.migration(tap) else { return };
        let place = match self.spec.taps[tap].kind {
            TapKind::AttentionInput | TapKind::AttentionOutput => &mut self.attention.before,
            TapKind::MlpInput => &mut self.mlp.before,
            TapKind::MlpInner | TapKind::Head => &mut self.mlp.inside,
        };
        *place = Some(Norm::identity(&spec, self.spec.taps[tap].channels()));
        *self.spec.migration_mut(tap) = Some(spec);
    }

    /// The values of a norm's or linear layer's tensor, in the order in which an unquantized checkpoint stores them; `None`
    /// if the block has no such tensor.
    pub fn stored(&self, tensor: &str) -> Option<Vec<f32>> {
        let around = [&self.attention, &self.mlp].into_iter();
        let around = around.flat_map(|a| [&a.before, &a.after, &a.post, &a.inside]).flatten();
        let heads = self.query_key.iter().flat_map(|(q, k)| [q, k]);
        let norm = || around.chain(heads).find_map(|n| stored_of_norm(n, tensor));
        self.linears.iter().flatten().find_map(|l| stored_of_linear(l, tensor)).or_else(norm)
    }

    /// The shape of a tensor of [`stored`](Self::stored).
    pub fn shape_of(&self, tensor: &str) -> Option<Vec<usize>> {
        let hidden = self.spec.taps.first().map_or(0, |t| t.channels());
        self.spec.tensors(hidden).into_iter().find(|(name, _)| name == tensor).map(|(_, shape)| shape)
    }
}

impl Head {
    /// The norm after the last block, if there is one.
    pub fn norm_mut(&mut self) -> Option<&mut Norm> {
        self.norm.as_mut()
    }
}

fn stored_of_norm(norm: &Norm, tensor: &str) -> Option<Vec<f32>> {
    match tensor.strip_prefix(&norm.spec().name)? {
        ".weight" => Some(norm.stored_weight()),
        ".bias" if !norm.bias.is_empty() => Some(norm.bias.clone()),
        _ => None,
    }
}

fn stored_of_linear(linear: &Linear, tensor: &str) -> Option<Vec<f32>> {
    if linear.site.bias.as_deref() == Some(tensor) {
        return linear.bias.clone();
    }
    if linear.site.weight() != tensor {
        return None;
    }
    let values = linear.weight.to_f32();
    Some(match linear.site.stored {
        Stored::Columns => transposed(&values.data, linear.site.inputs),
        Stored::Rows | Stored::Filters { .. } => values.data,
    })
}

impl Linear {
    /// The weight `[outputs, inputs]` as f32, to be changed; it is turned into f32 first if it is stored otherwise.
    pub fn weight_mut(&mut self) -> &mut [f32] {
        if !matches!(self.weight, Weight::Stored(RawTensor::F32(_), _)) {
            let values = self.weight.to_f32().data;
            self.weight = Weight::Stored(RawTensor::F32(values), self.site.inputs);
        }
        match &mut self.weight {
            Weight::Stored(RawTensor::F32(values), _) => values,
            // What was just replaced.
            _ => &mut [],
        }
    }
}
