//! Stage A's loss over the global batch, and its gradient by the projected vectors.
//!
//! With p̂ and t̂ the projected and teacher rows as the metric sees them, normalized, s = p̂ t̂ᵀ, h = p̂ qᵀ over the hard negatives q, and
//! B pairs:
//!
//! - `info_nce` = ½ (mean CE of row i of [s | h] / τ, label i  +  mean CE of column j of s / τ, label j)
//! - `direction` = mean (1 − cos(p, t));  `log_norm` = mean (ln(|p| + ε) − ln(|t| + ε))², both of the rows themselves
//!
//! A rank holds the rows of s and h that belong to its own pairs: the logits and their gradient are shared out over the
//! ranks with nothing computed twice. What crosses ranks is small: the sum of all p̂ (for mining), each rank's best
//! candidates, and the maximum and sum of each column of s, which the second cross entropy needs.

use std::borrow::Cow;
use std::ops::{Add, Range};

use rayon::prelude::*;

use super::hard_negatives::{Candidate, best, mine};
use super::kernels::{add, dot, normalize, reduce, rows_per_task};
use super::matrix::{Matrix, Target, matmul};
use super::softmax::{Columns, softmaxes};
use super::teacher_queue::TeacherQueue;
use super::vectorized::vectorized;
use super::whitening::Whitening;
use crate::Result;
use crate::collective::Collective;

const NORM_EPSILON: f32 = 1e-8;

/// How the parts of the loss are weighed.
#[derive(Debug, Clone, Copy)]
pub struct AlignWeights {
    /// How many hard negatives are drawn from the queue.
    pub hard_negatives: usize,
    /// Of `direction`.
    pub direction: f64,
    /// Of `log_norm`.
    pub log_norm: f64,
}

/// One step's vectors, as one rank sees them.
#[derive(Debug, Clone)]
pub struct AlignBatch<'a> {
    /// Pair ids of the global batch, `[B]`.
    pub ids: &'a [u64],
    /// Teacher vectors of the global batch, `[B, d]`.
    pub teacher: &'a [f32],
    /// Which rows of the global batch are this rank's.
    pub own: Range<usize>,
    /// This rank's projected rows, `[b, d]`.
    pub projected: &'a [f32],
    /// τ.
    pub temperature: f64,
    /// What `info_nce` and the mining see of a vector; none sees it as it is.
    pub metric: Option<&'a Whitening>,
}

/// The loss and its parts; or a rank's share of each, which add up to them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AlignLosses {
    /// Symmetric InfoNCE.
    pub info_nce: f64,
    /// Mean of 1 − cosine.
    pub direction: f64,
    /// Mean squared difference of the logarithms of the norms.
    pub log_norm: f64,
}

impl AlignLosses {
    /// The weighted sum that training minimizes.
    #[must_use]
    pub fn total(&self, weights: &AlignWeights) -> f64 {
        self.info_nce + weights.direction * self.direction + weights.log_norm * self.log_norm
    }
}

impl Add for AlignLosses {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            info_nce: self.info_nce + other.info_nce,
            direction: self.direction + other.direction,
            log_norm: self.log_norm + other.log_norm,
        }
    }
}

/// Buffers kept from step to step.
#[derive(Debug, Default)]
pub struct LossBuffers {
    /// t̂, then the hard negatives, `[B + H, d]`.
    pool: Vec<f32>,
    /// Norms of the teachers that the metric sees, `[B]`.
    teacher_norms: Vec<f32>,
    /// p̂ of this rank, `[b, d]`.
    own: Vec<f32>,
    /// Norms of this rank's projected rows that the metric sees, `[b]`.
    own_norms: Vec<f32>,
    /// [s | h] of this rank, then the gradient by it, `[b, B + H]`.
    logits: Vec<f32>,
    /// The gradient by this rank's projected rows, `[b, d]`.
    pub gradient: Vec<f32>,
}

impl LossBuffers {
    /// The normalized teacher rows of the last batch, `[B, d]`: what the queue takes in after the step.
    #[must_use]
    pub fn normalized_teacher(&self, width: usize) -> &[f32] {
        &self.pool[..self.teacher_norms.len() * width]
    }
}

/// This rank's share of the losses; the gradient of the total by its projected rows is left in `buffers.gradient`.
///
/// # Errors
/// Those of the collective.
pub fn align_losses(
    batch: &AlignBatch<'_>,
    queue: &TeacherQueue,
    weights: &AlignWeights,
    collective: &mut dyn Collective,
    buffers: &mut LossBuffers,
) -> Result<AlignLosses> {
    let (d, n, own) = (queue.width(), batch.ids.len(), batch.own.len());
    let seen = |rows| match batch.metric {
        Some(metric) => Cow::Owned(metric.apply(rows)),
        None => Cow::Borrowed(rows),
    };
    normalize_rows(&seen(batch.teacher), d, &mut buffers.pool, &mut buffers.teacher_norms);
    normalize_rows(&seen(batch.projected), d, &mut buffers.own, &mut buffers.own_norms);

    let mut sum = vec![0.0; d];
    buffers.own.chunks_exact(d).for_each(|row| add(&mut sum, row));
    collective.all_reduce_sum(&mut sum)?;
    let (rank, ranks) = (collective.rank(), collective.world_size());
    let part = rank * queue.len() / ranks..(rank + 1) * queue.len() / ranks;
    let candidates = mine(queue, part, &sum, batch.ids, weights.hard_negatives);

    // The queue may hold fewer rows than are asked for, so the width of the logits is known only after the gathering.
    let widest = n + weights.hard_negatives.min(queue.len());
    buffers.logits.resize(own * widest, 0.0);
    let by_own = Matrix::new(&buffers.own, own, d);
    // [b, d] · [d, B]
    let teacher = Matrix::new(&buffers.pool[..n * d], n, d).transposed();
    matmul(by_own, teacher, Target::columns_from(&mut buffers.logits, widest, 0));
    let columns = Columns::of(&buffers.logits, widest, n, batch.temperature as f32);
    let (hard, columns) = gather(
        candidates,
        columns,
        weights.hard_negatives,
        batch.temperature as f32,
        collective,
    )?;

    buffers.pool.resize((n + hard.len()) * d, 0.0);
    for (candidate, row) in hard.iter().zip(buffers.pool[n * d..].chunks_exact_mut(d)) {
        queue.read(candidate.position, row);
    }
    if !hard.is_empty() && own > 0 {
        // [b, d] · [d, H]
        let negatives = Matrix::new(&buffers.pool[n * d..], hard.len(), d).transposed();
        matmul(by_own, negatives, Target::columns_from(&mut buffers.logits, widest, n));
    }
    let info_nce = cross_entropies(batch, &columns, widest, hard.len(), &mut buffers.logits);

    // [b, B + H] · [B + H, d]; a column that no negative took has no gradient.
    buffers.pool.resize(widest * d, 0.0);
    buffers.gradient.resize(own * d, 0.0);
    let by_logits = Matrix::new(&buffers.logits, own, widest);
    matmul(
        by_logits,
        Matrix::new(&buffers.pool, widest, d),
        Target::new(&mut buffers.gradient, d),
    );
    normalization_backward(d, buffers);
    if let Some(metric) = batch.metric {
        metric.backward(&mut buffers.gradient);
    }
    Ok(AlignLosses {
        info_nce,
        ..of_raw_vectors(batch, weights, d, &mut buffers.gradient)
    })
}

/// Normalizes rows and keeps their norms.
pub(super) fn normalize_rows(rows: &[f32], width: usize, normalized: &mut Vec<f32>, norms: &mut Vec<f32>) {
    normalized.resize(rows.len(), 0.0);
    norms.resize(rows.len() / width, 0.0);
    let block = rows_per_task(norms.len(), width);
    let blocks = rows
        .par_chunks(block * width)
        .zip(normalized.par_chunks_mut(block * width));
    blocks
        .zip(norms.par_chunks_mut(block))
        .for_each(|((rows, normalized), norms)| {
            let rows = rows.chunks_exact(width).zip(normalized.chunks_exact_mut(width));
            rows.zip(norms)
                .for_each(|((row, normalized), norm)| *norm = normalize(row, normalized));
        });
}

/// All ranks' best candidates, of which the best are taken, and all ranks' columns, in one gathering.
fn gather(
    candidates: Vec<Candidate>,
    columns: Columns,
    n: usize,
    temperature: f32,
    collective: &mut dyn Collective,
) -> Result<(Vec<Candidate>, Columns)> {
    let (ranks, width) = (collective.world_size(), columns.sums.len());
    if ranks == 1 {
        return Ok((candidates, columns));
    }
    // Two numbers a candidate: queues are checked to be short enough for positions to be exact in f32.
    let absent = Candidate {
        score: f32::NEG_INFINITY,
        position: 0,
    };
    let padded = candidates.into_iter().chain(std::iter::repeat(absent)).take(n);
    let mut message: Vec<f32> = padded
        .flat_map(|candidate| [candidate.score, candidate.position as f32])
        .collect();
    message.extend(columns.maxima.iter().chain(&columns.sums));
    let length = message.len();
    let gathered = collective.all_gather(&message, &vec![length; ranks])?;
    let mut candidates = Vec::with_capacity(ranks * n);
    let mut merged = Columns {
        maxima: vec![f32::NEG_INFINITY; width],
        sums: vec![0.0; width],
    };
    for message in gathered.chunks_exact(length) {
        let (found, columns) = message.split_at(2 * n);
        let found = found.chunks_exact(2).filter(|pair| pair[0].is_finite());
        candidates.extend(found.map(|pair| Candidate {
            score: pair[0],
            position: pair[1] as usize,
        }));
        let (maxima, sums) = columns.split_at(width);
        merged.merge(maxima, sums, temperature);
    }
    Ok((best(candidates, n), merged))
}

/// This rank's share of `info_nce`; the logits become its gradient by them.
fn cross_entropies(batch: &AlignBatch<'_>, columns: &Columns, width: usize, hard: usize, logits: &mut [f32]) -> f64 {
    let n = batch.ids.len();
    let inverse_temperature = (1.0 / batch.temperature) as f32;
    let of_info_nce = (0.5 / (n as f64 * batch.temperature)) as f32;
    let of_label = (1.0 / (n as f64 * batch.temperature)) as f32;
    let inverse_sums: Vec<f32> = columns.sums.iter().map(|sum| of_info_nce / sum).collect();
    let block = rows_per_task(batch.own.len(), width);
    let shares = logits.par_chunks_mut(block * width).enumerate().map(|(at, rows)| {
        let mut share = 0.0;
        for (row, label) in rows.chunks_exact_mut(width).zip(batch.own.start + at * block..) {
            row[n + hard..].fill(0.0);
            let row = &mut row[..n + hard];
            let cosine = row[label];
            let (max, sum) = softmaxes(row, columns, &inverse_sums, inverse_temperature, of_info_nce);
            row[label] -= of_label;
            let by_row = f64::from(sum).ln() + f64::from(max - cosine) / batch.temperature;
            let by_column =
                f64::from(columns.sums[label]).ln() + f64::from(columns.maxima[label] - cosine) / batch.temperature;
            share += 0.5 * (by_row + by_column);
        }
        share
    });
    shares.collect::<Vec<f64>>().into_iter().sum::<f64>() / n as f64
}

/// From the gradient by p̂ to that by what was normalized.
fn normalization_backward(d: usize, buffers: &mut LossBuffers) {
    let LossBuffers {
        gradient,
        own,
        own_norms,
        ..
    } = buffers;
    let block = rows_per_task(own_norms.len(), d);
    let blocks = gradient.par_chunks_mut(block * d).zip(own.par_chunks(block * d));
    blocks
        .zip(own_norms.par_chunks(block))
        .for_each(|((gradient, own), norms)| {
            let rows = gradient.chunks_exact_mut(d).zip(own.chunks_exact(d)).zip(norms);
            rows.for_each(|((gradient, own), norm)| through_normalization(gradient, own, 1.0 / norm.max(1e-12)));
        });
}

/// This rank's share of `direction` and `log_norm`, whose gradient by the projected rows is added to `gradient`.
fn of_raw_vectors(batch: &AlignBatch<'_>, weights: &AlignWeights, d: usize, gradient: &mut [f32]) -> AlignLosses {
    let n = batch.ids.len() as f64;
    let teachers = &batch.teacher[batch.own.start * d..batch.own.end * d];
    let block = rows_per_task(batch.own.len(), d) * d;
    let blocks = gradient.par_chunks_mut(block).zip(batch.projected.par_chunks(block));
    let shares = blocks
        .zip(teachers.par_chunks(block))
        .map(|((gradient, projected), teachers)| {
            let rows = gradient
                .chunks_exact_mut(d)
                .zip(projected.chunks_exact(d))
                .zip(teachers.chunks_exact(d));
            let shares = rows.map(|((gradient, projected), teacher)| {
                let (norm, teacher_norm) = (dot(projected, projected).sqrt(), dot(teacher, teacher).sqrt());
                let (inverse, teacher_inverse) = (1.0 / norm.max(1e-12), 1.0 / teacher_norm.max(1e-12));
                let cosine = dot(projected, teacher) * inverse * teacher_inverse;
                let difference = f64::from(norm + NORM_EPSILON).ln() - f64::from(teacher_norm + NORM_EPSILON).ln();
                // −cos(p, t) by p is (cos · p̂ − t̂) / |p|; ln(|p| + ε) by p is p̂ / (|p| + ε).
                let of_direction = (weights.direction / n) as f32 * inverse;
                let of_log_norm = (weights.log_norm * 2.0 * difference / n) as f32 / (norm + NORM_EPSILON);
                let along_projected = (of_direction * cosine + of_log_norm) * inverse;
                add_two(
                    gradient,
                    projected,
                    along_projected,
                    teacher,
                    -of_direction * teacher_inverse,
                );
                AlignLosses {
                    direction: 1.0 - f64::from(cosine),
                    log_norm: difference * difference,
                    ..AlignLosses::default()
                }
            });
            shares.fold(AlignLosses::default(), Add::add)
        });
    let share = shares
        .collect::<Vec<_>>()
        .into_iter()
        .fold(AlignLosses::default(), Add::add);
    AlignLosses {
        info_nce: 0.0,
        direction: share.direction / n,
        log_norm: share.log_norm / n,
    }
}

vectorized! {
    /// `sums += a · factor_a + b · factor_b`
    fn add_two(sums: &mut [f32], a: &[f32], factor_a: f32, b: &[f32], factor_b: f32) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * factor_a + b * factor_b;
        }
    }
}

vectorized! {
    /// One row: from the gradient by p̂ to that by p.
    pub(super) fn through_normalization(gradient: &mut [f32], own: &[f32], inverse_norm: f32) {
        let along = -reduce(gradient, own, |by, x| by * x) * inverse_norm;
        for (by, x) in gradient.iter_mut().zip(own) {
            *by = *by * inverse_norm + along * x;
        }
    }
}

#[cfg(test)]
mod tests;
