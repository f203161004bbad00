//! Stage A's loss over the whole global batch and its gradient by the projected rows, as `llink::align_losses` defines them. Every rank
//! computes all of it from the gathered rows: beside a projector's products that is little, and nothing but the rows has to cross.

use candle_core::{D, DType, Device, Tensor};

use super::{normalized, through_normalization};
use crate::Result;
use crate::llink::align_losses::AlignWeights;
use crate::llink::whitening::Whitening;

const NORM_EPSILON: f64 = 1e-8;

/// What a loss is taken of: the global batch on the device, f32.
pub(super) struct AlignLossInput<'a> {
    /// As the metric sees them, normalized.
    pub(super) seen: &'a Normalized,
    /// The rows themselves, normalized.
    pub(super) raw: &'a Normalized,
    pub(super) metric: Option<&'a DeviceMetric>,
    /// The hard negatives [H, d], if there are any.
    pub(super) hard: Option<&'a Tensor>,
    /// τ.
    pub(super) temperature: f64,
}

/// `info_nce`, `direction`, `log_norm` as numbers on the device, and the gradient of the weighted sum by the projected rows.
pub(super) fn align_loss(input: &AlignLossInput<'_>, weights: &AlignWeights) -> Result<([Tensor; 3], Tensor)> {
    let (info_nce, grad_seen) = info_nce(input)?;
    let grad_projected = match input.metric {
        Some(metric) => metric.backward(&grad_seen)?,
        None => grad_seen,
    };
    let ((students, norms), (teachers, teacher_norms)) = (&input.raw.students, &input.raw.teachers);
    let n = students.dim(0)? as f64;
    let cosines = (students * teachers)?.sum_keepdim(1)?; // [B, 1]
    let direction = ((1.0 - &cosines)?.sum_all()? * (1.0 / n))?;
    let difference = ((norms + NORM_EPSILON)?.log()? - (teacher_norms + NORM_EPSILON)?.log()?)?;
    let log_norm = (difference.sqr()?.sum_all()? * (1.0 / n))?;

    let by_students = (teachers * (-weights.direction / n))?;
    let outward = ((difference * (2.0 * weights.log_norm / n))? / (norms + NORM_EPSILON)?)?;
    let raw = (through_normalization(&by_students, students, norms)? + students.broadcast_mul(&outward)?)?;
    Ok(([info_nce, direction, log_norm], (grad_projected + raw)?))
}

/// The symmetric InfoNCE, and its gradient by the rows that the metric sees.
fn info_nce(input: &AlignLossInput<'_>) -> Result<(Tensor, Tensor)> {
    let ((students, norms), (teachers, _)) = (&input.seen.students, &input.seen.teachers);
    let (batch, tau) = (students.dim(0)?, input.temperature);
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

    // Softmaxes less the labels, whose part lies along t̂.
    let towards = (by_rows.matmul(&pool)? + by_columns.matmul(teachers)?)?;
    let by_students = ((towards * (0.5 / (n * tau)))? - (teachers * (1.0 / (n * tau)))?)?;
    Ok((info_nce, through_normalization(&by_students, students, norms)?))
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

/// The rows of a batch and of its teachers, normalized [B, d], and their norms [B, 1].
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

/// A [`Whitening`] on a device, f32.
pub(super) struct DeviceMetric {
    mean: Tensor,           // [d]
    matrix: Option<Tensor>, // [d, d]
}

impl DeviceMetric {
    pub(super) fn new(metric: &Whitening, device: &Device) -> Result<Self> {
        let width = metric.width();
        let matrix = metric
            .matrix()
            .map(|matrix| Tensor::from_slice(matrix, (width, width), device));
        Ok(Self {
            mean: Tensor::from_slice(metric.mean(), width, device)?,
            matrix: matrix.transpose()?,
        })
    }

    /// Rows [n, d] as the metric sees them.
    pub(super) fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let centered = rows.broadcast_sub(&self.mean)?;
        Ok(match &self.matrix {
            Some(matrix) => centered.matmul(matrix)?,
            None => centered,
        })
    }

    /// From the gradient by [`DeviceMetric::apply`]'s result to that by its argument.
    fn backward(&self, grad_seen: &Tensor) -> Result<Tensor> {
        Ok(match &self.matrix {
            Some(matrix) => grad_seen.matmul(&matrix.t()?)?,
            None => grad_seen.clone(),
        })
    }
}
