//! Stage A's loss over the whole global batch and its gradient by the projected rows, as `llink::align_losses` defines them. Every rank
//! computes all of it from the gathered rows: beside a projector's products that is little, and nothing but the rows has to cross.

use candle_core::{D, DType, Tensor};

use super::{normalized, through_normalization};
use crate::Result;
use crate::llink::align_losses::AlignWeights;

const NORM_EPSILON: f64 = 1e-8;

/// What a loss is taken of: the global batch on the device, f32.
pub(super) struct AlignLossInput<'a> {
    /// Projected rows [B, d].
    pub(super) projected: &'a Tensor,
    /// p̂ and |p|, [B, d] and [B, 1].
    pub(super) students: (&'a Tensor, &'a Tensor),
    /// t̂ and |t|.
    pub(super) teachers: (&'a Tensor, &'a Tensor),
    /// The hard negatives [H, d], if there are any.
    pub(super) hard: Option<&'a Tensor>,
    /// τ.
    pub(super) temperature: f64,
}

/// `info_nce`, `direction`, `log_norm` as numbers on the device, and the gradient of the weighted sum by the projected rows.
pub(super) fn align_loss(input: &AlignLossInput<'_>, weights: &AlignWeights) -> Result<([Tensor; 3], Tensor)> {
    let ((students, norms), (teachers, teacher_norms)) = (input.students, input.teachers);
    let (batch, tau) = (input.projected.dim(0)?, input.temperature);
    let n = batch as f64;
    let pool = match input.hard {
        Some(hard) => Tensor::cat(&[teachers, hard], 0)?,
        None => teachers.clone(),
    };
    let cosines = students.matmul(&pool.t()?)?; // [B, B + H]
    let own = (students * teachers)?.sum_keepdim(1)?; // [B, 1], the diagonal

    let (by_rows, row_entropy) = cross_entropy(&cosines, &own, tau, D::Minus1)?;
    let among = cosines.narrow(1, 0, batch)?.contiguous()?;
    let (by_columns, column_entropy) = cross_entropy(&among, &own.t()?, tau, D::Minus2)?;
    let info_nce = ((row_entropy + column_entropy)? * (0.5 / n))?;
    let direction = ((1.0 - &own)?.sum_all()? * (1.0 / n))?;
    let difference = ((norms + NORM_EPSILON)?.log()? - (teacher_norms + NORM_EPSILON)?.log()?)?;
    let log_norm = (difference.sqr()?.sum_all()? * (1.0 / n))?;

    // Softmaxes less the labels, whose part and that of the direction both lie along t̂.
    let towards = (by_rows.matmul(&pool)? + by_columns.matmul(teachers)?)?;
    let along_teacher = 1.0 / (n * tau) + weights.direction / n;
    let by_students = ((towards * (0.5 / (n * tau)))? - (teachers * along_teacher)?)?;
    let outward = ((difference * (2.0 * weights.log_norm / n))? / (norms + NORM_EPSILON)?)?;
    let gradient = (through_normalization(&by_students, students, norms)? + students.broadcast_mul(&outward)?)?;
    Ok(([info_nce, direction, log_norm], gradient))
}

/// softmax(cosines / τ) along `dim`, and the sum of the cross entropies whose labels have the cosines `own`.
fn cross_entropy(cosines: &Tensor, own: &Tensor, tau: f64, dim: D) -> Result<(Tensor, Tensor)> {
    let largest = cosines.max_keepdim(dim)?;
    let exponentials = (cosines.broadcast_sub(&largest)? * (1.0 / tau))?.exp()?;
    let sums = exponentials.sum_keepdim(dim)?;
    let entropies = (sums.log()? + ((largest - own)? * (1.0 / tau))?)?;
    Ok((
        exponentials.broadcast_div(&sums)?,
        entropies.sum_all()?.to_dtype(DType::F32)?,
    ))
}

/// The rows of a batch and of its teachers, normalized.
pub(super) struct Normalized {
    pub(super) students: (Tensor, Tensor),
    pub(super) teachers: (Tensor, Tensor),
}

impl Normalized {
    pub(super) fn new(projected: &Tensor, teacher: &Tensor) -> Result<Self> {
        Ok(Self {
            students: normalized(projected)?,
            teachers: normalized(teacher)?,
        })
    }
}
