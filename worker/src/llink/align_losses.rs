//! Stage A's loss over the global batch, and its gradient with respect to the projected vectors.
//!
//! Let p̂ and t̂ be the normalized projected and teacher rows in the metric, s = p̂ t̂ᵀ, and h = p̂ qᵀ over the hard
//! negatives q. For B pairs:
//!
//! - `info_nce` = ½ (mean CE of row i of [s | h] / τ, label i  +  mean CE of column j of s / τ, label j)
//! - `direction` = mean (1 − cos(p, t)) of the vectors outside the metric
//! - `log_norm` = mean (ln(|p| + ε) − ln(|t| + ε))² of the vectors outside the metric
//!
//! Every rank computes the losses of all gathered rows, and the gradient of its own rows.

use std::ops::Range;

use candle_core::Tensor;
use llink_proto::settings::AlignSettings;
use rayon::prelude::*;

use super::info_nce::info_nce;
use super::teacher_queue::TeacherQueue;
use super::whitening::Metric;
use crate::Result;
use crate::numerics::kernels::{dot, rows_per_task};
use crate::numerics::vectorized::vectorized;
use crate::ops::{UnitRows, edit, fused, matmul, values};

const NORM_EPSILON: f64 = 1e-8;

/// The weights of the parts of the loss.
#[derive(Debug, Clone, Copy)]
pub struct AlignWeights {
    /// The number of hard negatives that are drawn from the queue.
    pub hard_negatives: usize,
    /// The weight of `direction`.
    pub direction: f64,
    /// The weight of `log_norm`.
    pub log_norm: f64,
}

impl From<&AlignSettings> for AlignWeights {
    fn from(settings: &AlignSettings) -> Self {
        Self {
            hard_negatives: settings.hard_negatives as usize,
            direction: settings.direction_weight,
            log_norm: settings.log_norm_weight,
        }
    }
}

/// The parts of the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AlignLosses {
    /// The symmetric InfoNCE.
    pub info_nce: f64,
    /// The mean of 1 − cosine.
    pub direction: f64,
    /// The mean squared difference of the logarithms of the norms.
    pub log_norm: f64,
}

impl AlignLosses {
    /// Returns the weighted sum that training minimizes.
    pub fn total(&self, weights: &AlignWeights) -> f64 {
        self.info_nce + weights.direction * self.direction + weights.log_norm * self.log_norm
    }
}

/// The vectors of one step's global batch, in f32.
pub(crate) struct AlignBatch<'a> {
    /// The pair ids, `[B]`.
    pub(crate) ids: &'a [u64],
    /// The projected vectors, `[B, d]`.
    pub(crate) projected: &'a Tensor,
    /// The teacher vectors, `[B, d]`.
    pub(crate) teacher: &'a Tensor,
    /// The b rows of this rank.
    pub(crate) own: Range<usize>,
    /// The temperature τ.
    pub(crate) temperature: f64,
    /// The metric in which `info_nce` and the mining compare vectors. `None` compares the vectors themselves.
    pub(crate) metric: Option<&'a Metric>,
}

/// The losses and the gradient of a batch, as tensors on its device.
pub(crate) struct AlignFound {
    /// `info_nce`, `direction` and `log_norm`, each a scalar.
    pub(crate) losses: [Tensor; 3],
    /// The gradient with respect to this rank's projected rows, `[b, d]`.
    pub(crate) gradient: Tensor,
    /// The normalized teachers in the metric, `[B, d]`. The queue takes them after the step.
    pub(crate) teachers: Tensor,
}

/// Computes the losses of a batch with hard negatives from `queue`, and the gradient of their weighted sum.
pub(crate) fn align_losses(batch: &AlignBatch<'_>, queue: &TeacherQueue, weights: &AlignWeights) -> Result<AlignFound> {
    let seen = |rows: &Tensor| match batch.metric {
        Some(metric) => UnitRows::of(&metric.apply(rows)?),
        None => UnitRows::of(rows),
    };
    let (students, teachers) = (seen(batch.projected)?, seen(batch.teacher)?);
    let pool = match queue.hardest(&students.unit, batch.ids, weights.hard_negatives)? {
        Some(negatives) => Tensor::cat(&[&teachers.unit, &negatives], 0)?,
        None => teachers.unit.clone(),
    };
    let cosines = matmul(&students.unit, &pool.t()?)?; // [B, B + H]
    let (info_nce, grad_cosines) = info_nce(cosines, batch.temperature)?;

    let (first, count) = (batch.own.start, batch.own.len());
    let grad_unit = matmul(&grad_cosines.narrow(0, first, count)?, &pool)?;
    let grad_seen = students.narrow(first, count)?.backward(grad_unit)?;
    let gradient = match batch.metric {
        Some(metric) => metric.backward(&grad_seen)?,
        None => grad_seen,
    };
    let ([direction, log_norm], gradient) = of_vectors_themselves(batch, weights, gradient)?;
    Ok(AlignFound { losses: [info_nce, direction, log_norm], gradient, teachers: teachers.unit })
}

/// Computes `direction` and `log_norm`, and adds their gradient with respect to this rank's rows to `gradient`.
fn of_vectors_themselves(
    batch: &AlignBatch<'_>,
    weights: &AlignWeights,
    gradient: Tensor,
) -> Result<([Tensor; 2], Tensor)> {
    if !fused(&[batch.projected, batch.teacher, &gradient]) {
        return of_vectors_composed(batch, weights, &gradient);
    }
    let (pairs, width) = batch.projected.dims2()?;
    let n = pairs as f64;
    let (projected, teacher) = (values(batch.projected)?, values(batch.teacher)?);
    let own = batch.own.start * width..batch.own.end * width;
    let block = rows_per_task(pairs, width);
    let found: Vec<Compared> = projected
        .par_chunks(width)
        .zip(teacher.par_chunks(width))
        .with_min_len(block)
        .map(|(projected, teacher)| compare(projected, teacher))
        .collect();
    edit(&gradient, |gradient| {
        let rows = gradient.par_chunks_mut(width).zip(projected[own.clone()].par_chunks(width));
        let rows = rows.zip(teacher[own.clone()].par_chunks(width)).zip(&found[batch.own.clone()]);
        rows.with_min_len(block).for_each(|(((gradient, projected), teacher), found)| {
            // The gradient of −cos(p, t) is (cos · p̂ − t̂) / |p|, and that of ln(|p| + ε) is p̂ / (|p| + ε).
            let inverse = 1.0 / found.norm.max(1e-12);
            let of_direction = (weights.direction / n) as f32 * inverse;
            let of_log_norm =
                (weights.log_norm * 2.0 * found.difference / n) as f32 / (found.norm + NORM_EPSILON as f32);
            let along_projected = (of_direction * found.cosine + of_log_norm) * inverse;
            let along_teacher = -of_direction / found.teacher_norm.max(1e-12);
            add_two(gradient, projected, along_projected, teacher, along_teacher);
        });
    })?;
    let mean = |term: &dyn Fn(&Compared) -> f64| {
        let sum: f64 = found.iter().map(term).sum();
        Tensor::new((sum / n) as f32, gradient.device())
    };
    let direction = mean(&|found| 1.0 - f64::from(found.cosine))?;
    let log_norm = mean(&|found| found.difference * found.difference)?;
    Ok(([direction, log_norm], gradient))
}

fn of_vectors_composed(
    batch: &AlignBatch<'_>,
    weights: &AlignWeights,
    gradient: &Tensor,
) -> Result<([Tensor; 2], Tensor)> {
    let (students, teachers) = (UnitRows::of(batch.projected)?, UnitRows::of(batch.teacher)?);
    let n = batch.ids.len() as f64;
    let cosines = (&students.unit * &teachers.unit)?.sum_keepdim(1)?; // [B, 1]
    let direction = ((1.0 - cosines)?.sum_all()? * (1.0 / n))?;
    let difference = ((&students.norms + NORM_EPSILON)?.log()? - (&teachers.norms + NORM_EPSILON)?.log()?)?;
    let log_norm = (difference.sqr()?.sum_all()? * (1.0 / n))?;

    let (first, count) = (batch.own.start, batch.own.len());
    let (students, teachers) = (students.narrow(first, count)?, teachers.narrow(first, count)?);
    let difference = difference.narrow(0, first, count)?;
    let outward = ((difference * (2.0 * weights.log_norm / n))? / (&students.norms + NORM_EPSILON)?)?;
    let of_log_norm = students.unit.broadcast_mul(&outward)?;
    let of_direction = students.backward((teachers.unit * (-weights.direction / n))?)?;
    Ok(([direction, log_norm], ((gradient + of_direction)? + of_log_norm)?))
}

struct Compared {
    norm: f32,
    teacher_norm: f32,
    cosine: f32,
    /// The difference of the logarithms of the norms.
    difference: f64,
}

fn compare(projected: &[f32], teacher: &[f32]) -> Compared {
    let (norm, teacher_norm) = (dot(projected, projected).sqrt(), dot(teacher, teacher).sqrt());
    let log = |norm: f32| f64::from(norm + NORM_EPSILON as f32).ln();
    Compared {
        norm,
        teacher_norm,
        cosine: dot(projected, teacher) / norm.max(1e-12) / teacher_norm.max(1e-12),
        difference: log(norm) - log(teacher_norm),
    }
}

vectorized! {
    fn add_two(sums: &mut [f32], a: &[f32], factor_a: f32, b: &[f32], factor_b: f32) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * factor_a + b * factor_b;
        }
    }
}

#[cfg(test)]
mod tests;
