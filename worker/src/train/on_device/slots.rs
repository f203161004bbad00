//! The slot expander and the losses of the slots on a device, by candle's gradient graph: it is small beside the decoder.

use std::ops::Range;

use candle_core::{D, DType, Tensor, Var};

use super::align::concatenated;
use crate::Result;
use crate::llink::slot_expander::SlotExpanderShape;
use crate::llink::slot_losses::SlotWeights;

const LAYER_NORM_EPSILON: f64 = 1e-5;

/// The expander's parameters as leaves of a graph, and the slots that come of them.
pub(super) struct SlotGraph {
    scale: Var,
    /// In the order of [`SlotExpanderShape::tensors`], the scale left out.
    others: Vec<Var>,
    /// [b · K, d] in f32, tracked.
    pub(super) slots: Tensor,
    shape: SlotExpanderShape,
}

/// Gradients of the scale and of the other parameters, f32 [1] and [n]; this rank's shares of the two losses [2].
pub(super) struct SlotGradients {
    pub(super) by_scale: Tensor,
    pub(super) by_others: Tensor,
    pub(super) losses: Tensor,
}

/// What the losses of the slots are taken against.
pub(super) struct SlotTargets<'a> {
    /// The global batch's teachers [B, d], f32.
    pub(super) teacher: &'a Tensor,
    /// Which of them are of this rank's rows.
    pub(super) own: Range<usize>,
    pub(super) weights: &'a SlotWeights,
}

impl SlotGraph {
    /// Expands projected vectors [b, d] in f32; products in `dtype`. `scale` [1] and `others` [n] are the parameters.
    pub(super) fn new(
        shape: SlotExpanderShape,
        median_norm: f32,
        dtype: DType,
        (scale, others): (&Tensor, &Tensor),
        projected: &Tensor,
    ) -> Result<Self> {
        let scale = Var::from_tensor(&scale.copy()?)?;
        let others = leaves(shape, dtype, others)?;
        let [up, up_bias, down, down_bias, norm, norm_bias] = &others[..] else {
            return Err(candle_core::Error::Msg("a slot expander has six tensors beside its scale".into()).into());
        };
        let centred = projected.broadcast_sub(&projected.mean_keepdim(D::Minus1)?)?;
        let standardized = centred.broadcast_div(&deviation(&centred)?)?;
        let scaled = standardized.broadcast_mul(&scale)?.to_dtype(dtype)?;
        let hidden = scaled.matmul(&up.t()?)?.broadcast_add(up_bias)?.gelu_erf()?; // [b, h]
        let x = hidden.matmul(&down.t()?)?.broadcast_add(down_bias)?; // [b, K·d]
        let x = x.to_dtype(DType::F32)?.reshape(((), shape.width))?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let normed = centred.broadcast_div(&deviation(&centred)?)?;
        let normed = normed
            .broadcast_mul(&norm.to_dtype(DType::F32)?)?
            .broadcast_add(&norm_bias.to_dtype(DType::F32)?)?;
        let slots = (unit(&normed)? * f64::from(median_norm))?;
        Ok(Self {
            scale,
            others,
            slots,
            shape,
        })
    }

    /// From the gradient by the slots [b · K, d] in f32 and the losses of the slots themselves to that by the parameters.
    pub(super) fn backward(&self, by_slots: &Tensor, targets: &SlotTargets<'_>) -> Result<SlotGradients> {
        let (cosine, info_nce) = self.losses(targets)?;
        let weighted = ((&cosine * targets.weights.cosine)? + (&info_nce * targets.weights.info_nce)?)?;
        let total = ((&self.slots * by_slots)?.sum_all()? + weighted)?;
        let gradients = total.backward()?;
        let of = |var: &Var| match gradients.get(var) {
            Some(gradient) => Ok(gradient.clone()),
            None => var.zeros_like(),
        };
        let others = self.others.iter().map(of).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(SlotGradients {
            by_scale: of(&self.scale)?.flatten_all()?,
            by_others: concatenated(&others)?,
            losses: Tensor::stack(&[cosine.detach(), info_nce.detach()], 0)?,
        })
    }

    /// This rank's shares of `cosine` and `info_nce`, as `llink::slot_losses` defines them.
    fn losses(&self, targets: &SlotTargets<'_>) -> Result<(Tensor, Tensor)> {
        let SlotTargets { teacher, own, weights } = targets;
        let (rows, pairs) = (own.len(), teacher.dim(0)?);
        let means = self
            .slots
            .reshape((rows, self.shape.slots, self.shape.width))?
            .mean(1)?;
        let cosines = unit(&means)?.matmul(&unit(teacher)?.t()?)?; // [b, B]
        let labels: Vec<u32> = (own.start as u32..own.end as u32).collect();
        let labels = Tensor::from_vec(labels, (rows, 1), cosines.device())?;
        let own = cosines.gather(&labels, 1)?;
        let cosine = ((1.0 - &own)?.sum_all()? * (1.0 / pairs as f64))?;
        let largest = cosines.detach().max_keepdim(1)?;
        let tau = 1.0 / weights.temperature;
        let sums = (cosines.broadcast_sub(&largest)? * tau)?.exp()?.sum_keepdim(1)?;
        let entropies = (sums.log()? + ((largest - own)? * tau)?)?;
        Ok((cosine, (entropies.sum_all()? * (1.0 / pairs as f64))?))
    }
}

/// The parameters but the scale, each a leaf of its own.
fn leaves(shape: SlotExpanderShape, dtype: DType, others: &Tensor) -> Result<Vec<Var>> {
    let (ranges, tensors) = (shape.ranges(), shape.tensors());
    let scale = ranges[0].len();
    let leaf = |(range, (_, shape)): (&Range<usize>, &(&'static str, Vec<usize>))| {
        let values = others.narrow(0, range.start - scale, range.len())?;
        Var::from_tensor(&values.reshape(shape.as_slice())?.to_dtype(dtype)?.copy()?)
    };
    let leaves = ranges.iter().zip(&tensors).skip(1).map(leaf);
    Ok(leaves.collect::<candle_core::Result<_>>()?)
}

fn deviation(centred: &Tensor) -> candle_core::Result<Tensor> {
    (centred.sqr()?.mean_keepdim(D::Minus1)? + LAYER_NORM_EPSILON)?.sqrt()
}

fn unit(rows: &Tensor) -> candle_core::Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}
