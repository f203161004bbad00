//! What Stage B asks of the slots themselves: that their mean points at the teacher's vector, and at no other pair's.
//!
//! With ŝ the normalized mean of a pair's slots and t̂ the normalized teachers of the global batch of B pairs:
//! `cosine` = mean (1 − ŝ·t̂);  `info_nce` = mean CE of row i of ŝ t̂ᵀ / τ, label i.

use std::ops::Range;

use super::align_losses::{normalize_rows, through_normalization};
use super::kernels::add;
use super::matrix::{Matrix, Target, matmul};
use super::softmax::softmax;

/// How the losses of the slots are weighed in the total.
#[derive(Debug, Clone, Copy)]
pub struct SlotWeights {
    /// Of `cosine`.
    pub cosine: f64,
    /// Of `info_nce`.
    pub info_nce: f64,
    /// τ of `info_nce`.
    pub temperature: f64,
}

/// The losses of the slots; or a rank's share of each, which add up to them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SlotLosses {
    /// Mean of 1 − cosine between mean slot and teacher.
    pub cosine: f64,
    /// InfoNCE of mean slots against the batch's teachers.
    pub info_nce: f64,
}

/// This rank's share of the losses. Its slots are `[b, K, d]`, those of rows `own` of the global batch, whose teachers are
/// `[B, d]`. The weighted gradient by the slots is added to `by_slots`.
///
/// # Panics
/// When the buffers' lengths do not fit each other.
pub fn slot_losses(
    slots: &[f32],
    teacher: &[f32],
    width: usize,
    own: Range<usize>,
    weights: &SlotWeights,
    by_slots: &mut [f32],
) -> SlotLosses {
    assert_eq!(slots.len(), by_slots.len(), "one gradient for each slot");
    let (rows, pairs) = (own.len(), teacher.len() / width);
    if rows == 0 {
        return SlotLosses::default();
    }
    let slots_per_row = slots.len() / (rows * width);
    let mut means = vec![0.0; rows * width];
    for (mean, slots) in means
        .chunks_exact_mut(width)
        .zip(slots.chunks_exact(slots_per_row * width))
    {
        slots.chunks_exact(width).for_each(|slot| add(mean, slot));
        mean.iter_mut().for_each(|x| *x /= slots_per_row as f32);
    }
    let (mut students, mut student_norms, mut teachers, mut teacher_norms) = (vec![], vec![], vec![], vec![]);
    normalize_rows(&means, width, &mut students, &mut student_norms);
    normalize_rows(teacher, width, &mut teachers, &mut teacher_norms);

    // [b, d] · [d, B]
    let mut logits = vec![0.0; rows * pairs];
    let by_teachers = Matrix::new(&teachers, pairs, width);
    matmul(
        Matrix::new(&students, rows, width),
        by_teachers.transposed(),
        Target::new(&mut logits, pairs),
    );
    let (b, temperature) = (pairs as f64, weights.temperature);
    let of_info_nce = weights.info_nce / (b * temperature);
    let mut losses = SlotLosses::default();
    for (row, label) in logits.chunks_exact_mut(pairs).zip(own) {
        let cosine = row[label];
        let (max, sum) = softmax(row, (1.0 / temperature) as f32, of_info_nce as f32);
        row[label] -= (of_info_nce + weights.cosine / b) as f32;
        losses.cosine += (1.0 - f64::from(cosine)) / b;
        losses.info_nce += (f64::from(sum).ln() + f64::from(max - cosine) / temperature) / b;
    }

    // [b, B] · [B, d]
    let by_means = &mut means;
    matmul(
        Matrix::new(&logits, rows, pairs),
        by_teachers,
        Target::new(by_means, width),
    );
    let students = students.chunks_exact(width).zip(&student_norms);
    let per_row = by_means
        .chunks_exact_mut(width)
        .zip(by_slots.chunks_exact_mut(slots_per_row * width));
    for ((by_mean, by_slots), (student, norm)) in per_row.zip(students) {
        through_normalization(by_mean, student, 1.0 / norm.max(1e-12));
        by_mean.iter_mut().for_each(|x| *x /= slots_per_row as f32);
        by_slots
            .chunks_exact_mut(width)
            .for_each(|by_slot| add(by_slot, by_mean));
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: usize = 5;
    const K: usize = 3;
    const WEIGHTS: SlotWeights = SlotWeights {
        cosine: 0.05,
        info_nce: 0.01,
        temperature: 0.07,
    };

    fn numbers(count: usize, key: f64) -> Vec<f64> {
        (0..count).map(|i| ((i as f64 + 1.0) * key).sin()).collect()
    }

    fn narrow(values: &[f64]) -> Vec<f32> {
        values.iter().map(|x| *x as f32).collect()
    }

    fn definition(slots: &[f64], teacher: &[f64]) -> SlotLosses {
        let unit = |row: Vec<f64>| {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter().map(|x| x / norm).collect::<Vec<_>>()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mean = |row: &[f64]| {
            (0..D)
                .map(|c| (0..K).map(|k| row[k * D + c]).sum::<f64>() / K as f64)
                .collect()
        };
        let s: Vec<_> = slots.chunks(K * D).map(|row| unit(mean(row))).collect();
        let t: Vec<_> = teacher.chunks(D).map(|row| unit(row.to_vec())).collect();
        let mut losses = SlotLosses::default();
        for (i, s) in s.iter().enumerate() {
            let sum: f64 = t.iter().map(|t| (dot(s, t) / WEIGHTS.temperature).exp()).sum();
            losses.cosine += (1.0 - dot(s, &t[i])) / t.len() as f64;
            losses.info_nce += (sum.ln() - dot(s, &t[i]) / WEIGHTS.temperature) / t.len() as f64;
        }
        losses
    }

    #[test]
    fn losses_and_gradient_follow_the_definition_and_ranks_add_up() {
        let (mut slots, teacher) = (numbers(4 * K * D, 0.77), numbers(4 * D, 1.9));
        let (narrow_slots, narrow_teacher) = (narrow(&slots), narrow(&teacher));
        let mut gradient = vec![1.0; 4 * K * D];
        let (first, second) = (3 * K * D, 3);
        let mut sum = SlotLosses::default();
        for (part, rows) in [(0..first, 0..second), (first..4 * K * D, second..4), (0..0, 4..4)] {
            let by_slots = &mut gradient[part.clone()];
            let share = slot_losses(&narrow_slots[part], &narrow_teacher, D, rows, &WEIGHTS, by_slots);
            sum = SlotLosses {
                cosine: sum.cosine + share.cosine,
                info_nce: sum.info_nce + share.info_nce,
            };
        }
        let expected = definition(&slots, &teacher);
        assert!((sum.cosine - expected.cosine).abs() < 1e-5, "{sum:?} {expected:?}");
        assert!((sum.info_nce - expected.info_nce).abs() < 1e-5, "{sum:?} {expected:?}");
        let total = |slots: &[f64]| {
            let losses = definition(slots, &teacher);
            WEIGHTS.cosine * losses.cosine + WEIGHTS.info_nce * losses.info_nce
        };
        for (index, derivative) in gradient.iter().enumerate() {
            let at = slots[index];
            slots[index] = at + 1e-5;
            let above = total(&slots);
            slots[index] = at - 1e-5;
            let difference = (above - total(&slots)) / 2e-5;
            slots[index] = at;
            let error = (difference + 1.0 - f64::from(*derivative)).abs();
            assert!(error < 1e-5, "{index}: {derivative} {difference}");
        }
    }
}
