//! The slot expander and the losses of the slots on a device, by candle's gradient graph: it is small beside the decoder.

use std::ops::Range;

use candle_core::{D, DType, Tensor, Var};

use super::align::concatenated;
use crate::Result;
use crate::llink::projector::ProjectorShape;
use crate::llink::slot_expander::SlotExpanderShape;
use crate::llink::slot_losses::SlotWeights;

const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Projected vectors, and the projector's parameters as leaves of the graph where it moves.
pub(super) struct Projected {
    /// [b, d] in f32.
    vectors: Tensor,
    /// In the order of [`ProjectorShape::tensors`].
    leaves: Vec<Var>,
}

impl Projected {
    /// By a projector that is left as it is, [b, d] in f32.
    pub(super) fn fixed(vectors: Tensor) -> Self {
        Self {
            vectors,
            leaves: Vec::new(),
        }
    }

    /// By a projector that moves: `encoder` [b, d_e] in f32; products in `dtype`.
    pub(super) fn moving(shape: ProjectorShape, dtype: DType, parameters: &Tensor, encoder: &Tensor) -> Result<Self> {
        let leaves = leaves(&shape.ranges(), &shape.tensors(), dtype, parameters)?;
        let [up, up_bias, down, down_bias, norm, norm_bias] = &leaves[..] else {
            return Err(candle_core::Error::Msg("a projector has six tensors".into()).into());
        };
        let x = encoder.to_dtype(dtype)?;
        let hidden = x.matmul(&up.t()?)?.broadcast_add(up_bias)?.gelu_erf()?; // [b, h]
        let x = hidden.matmul(&down.t()?)?.broadcast_add(down_bias)?; // [b, d]
        let normed = standardized(&x.to_dtype(DType::F32)?)?;
        let vectors = normed
            .broadcast_mul(&norm.to_dtype(DType::F32)?)?
            .broadcast_add(&norm_bias.to_dtype(DType::F32)?)?;
        Ok(Self { vectors, leaves })
    }
}

/// The expander's parameters as leaves of a graph, and the slots that come of them.
pub(super) struct SlotGraph {
    scale: Var,
    /// In the order of [`SlotExpanderShape::tensors`], the scale left out.
    others: Vec<Var>,
    /// The projector's, if it moves.
    projector: Vec<Var>,
    /// [b · K, d] in f32, tracked.
    pub(super) slots: Tensor,
    shape: SlotExpanderShape,
}

/// Gradients of the scale and of the other parameters, f32 [1] and [n]; this rank's shares of the two losses [2].
pub(super) struct SlotGradients {
    pub(super) by_scale: Tensor,
    pub(super) by_others: Tensor,
    /// Of the projector, f32 [n], where it moves.
    pub(super) by_projector: Option<Tensor>,
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
        projected: Projected,
    ) -> Result<Self> {
        let scale = Var::from_tensor(&scale.copy()?)?;
        // The scale stands before them in the flat buffer.
        let ranges = shape.ranges().map(|range| range.start.saturating_sub(1)..range.end - 1);
        let others = leaves(&ranges[1..], &shape.tensors()[1..], dtype, others)?;
        let [up, up_bias, down, down_bias, norm, norm_bias] = &others[..] else {
            return Err(candle_core::Error::Msg("a slot expander has six tensors beside its scale".into()).into());
        };
        let scaled = standardized(&projected.vectors)?
            .broadcast_mul(&scale)?
            .to_dtype(dtype)?;
        let hidden = scaled.matmul(&up.t()?)?.broadcast_add(up_bias)?.gelu_erf()?; // [b, h]
        let x = hidden.matmul(&down.t()?)?.broadcast_add(down_bias)?; // [b, K·d]
        let x = x.to_dtype(DType::F32)?.reshape(((), shape.width))?;
        let normed = standardized(&x)?
            .broadcast_mul(&norm.to_dtype(DType::F32)?)?
            .broadcast_add(&norm_bias.to_dtype(DType::F32)?)?;
        let slots = (unit(&normed)? * f64::from(median_norm))?;
        Ok(Self {
            scale,
            others,
            projector: projected.leaves,
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
        let all = |leaves: &[Var]| leaves.iter().map(of).collect::<candle_core::Result<Vec<_>>>();
        let others = all(&self.others)?;
        let by_projector = match self.projector.is_empty() {
            true => None,
            false => Some(concatenated(&all(&self.projector)?)?),
        };
        Ok(SlotGradients {
            by_scale: of(&self.scale)?.flatten_all()?,
            by_others: concatenated(&others)?,
            by_projector,
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

/// Each tensor of a flat buffer as a leaf of its own.
fn leaves(
    ranges: &[Range<usize>],
    tensors: &[(&'static str, Vec<usize>)],
    dtype: DType,
    parameters: &Tensor,
) -> Result<Vec<Var>> {
    let leaf = |(range, (_, shape)): (&Range<usize>, &(&'static str, Vec<usize>))| {
        let values = parameters.narrow(0, range.start, range.len())?;
        Var::from_tensor(&values.reshape(shape.as_slice())?.to_dtype(dtype)?.copy()?)
    };
    Ok(ranges
        .iter()
        .zip(tensors)
        .map(leaf)
        .collect::<candle_core::Result<_>>()?)
}

/// A LayerNorm without weights of f32 rows.
fn standardized(rows: &Tensor) -> candle_core::Result<Tensor> {
    let centred = rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?;
    centred.broadcast_div(&deviation(&centred)?)
}

fn deviation(centred: &Tensor) -> candle_core::Result<Tensor> {
    (centred.sqr()?.mean_keepdim(D::Minus1)? + LAYER_NORM_EPSILON)?.sqrt()
}

fn unit(rows: &Tensor) -> candle_core::Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}
