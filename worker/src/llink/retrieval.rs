//! The retrieval metrics: how well a projected sentence finds its own translation among all.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::numerics::kernels::normalize;
use crate::numerics::matrix::{Matrix, Target, matmul};
use crate::{Error, Result};

/// The number of rows whose similarities are held at once.
const BLOCK: usize = 256;

/// Means over all students of the rank that each gives its own teacher.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RetrievalMetrics {
    /// The share of students whose own teacher comes first.
    pub r1: f64,
    /// The share of students whose own teacher is among the first 5.
    pub r5: f64,
    /// The share of students whose own teacher is among the first 10.
    pub r10: f64,
    /// The mean reciprocal rank.
    pub mrr: f64,
    /// The mean rank. The best is 1.
    pub mean_rank: f64,
}

impl RetrievalMetrics {
    /// Returns the metrics of a random order of `n` teachers.
    pub fn chance(n: usize) -> Self {
        let share = |k: usize| k.min(n) as f64 / n as f64;
        let mrr = (1..=n).map(|rank| 1.0 / rank as f64).sum::<f64>() / n as f64;
        Self { r1: share(1), r5: share(5), r10: share(10), mrr, mean_rank: (n as f64 + 1.0) / 2.0 }
    }

    /// Returns the metrics of these ranks.
    pub fn of_ranks(ranks: &[usize]) -> Self {
        let mean =
            |value: &dyn Fn(usize) -> f64| ranks.iter().map(|rank| value(*rank)).sum::<f64>() / ranks.len() as f64;
        let within = |k: usize| mean(&|rank| f64::from(u8::from(rank <= k)));
        Self {
            r1: within(1),
            r5: within(5),
            r10: within(10),
            mrr: mean(&|rank| 1.0 / rank as f64),
            mean_rank: mean(&|rank| rank as f64),
        }
    }
}

/// Ranks each student row against every teacher row by cosine. Student `i` belongs to teacher `i`, and both are
/// `[n, width]`. Ties count against the student.
///
/// # Errors
/// [`Error::Input`] when the two do not match, are empty, or hold NaN or infinity.
pub fn retrieval_metrics(students: &[f32], teachers: &[f32], width: usize) -> Result<RetrievalMetrics> {
    Ok(RetrievalMetrics::of_ranks(&retrieval_ranks(students, teachers, width)?))
}

/// Returns the rank, from 1, that each student gives its own teacher. See [`retrieval_metrics`].
pub fn retrieval_ranks(students: &[f32], teachers: &[f32], width: usize) -> Result<Vec<usize>> {
    if students.is_empty() || students.len() != teachers.len() || !students.len().is_multiple_of(width) {
        let (students, teachers) = (students.len(), teachers.len());
        return Err(Error::Input(format!("retrieval of {students} against {teachers} numbers in rows of {width}")));
    }
    if let Some(at) = students.iter().zip(teachers).position(|(s, t)| !s.is_finite() || !t.is_finite()) {
        return Err(Error::Input(format!("retrieval: row {} holds NaN or infinity", at / width)));
    }
    Ok(compared(&normalized(students, width), &normalized(teachers, width), width, |own, similarities| {
        similarities.iter().filter(|other| **other >= own).count()
    }))
}

/// Calls `compare` for each of `rows` `[n, width]`, with its similarity to its own partner among `others` `[n, width]` and
/// with those to all of them.
pub(super) fn compared<T: Send>(
    rows: &[f32],
    others: &[f32],
    width: usize,
    compare: impl Fn(f32, &mut [f32]) -> T + Sync,
) -> Vec<T> {
    let n = rows.len() / width;
    let mut similarities = vec![0.0; BLOCK.min(n) * n];
    let mut found = Vec::with_capacity(n);
    for (block, rows) in rows.chunks(BLOCK * width).enumerate() {
        let count = rows.len() / width;
        let similarities = &mut similarities[..count * n];
        // [block, width] · [width, n]
        let others = Matrix::new(others, n, width).transposed();
        matmul(Matrix::new(rows, count, width), others, Target::new(similarities, n));
        let each = similarities.par_chunks_exact_mut(n).enumerate();
        found.par_extend(each.map(|(row, similarities)| compare(similarities[block * BLOCK + row], similarities)));
    }
    found
}

/// Returns the rows, each scaled to length 1.
pub(super) fn normalized(rows: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.len()];
    for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        normalize(row, out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_what_is_nearer_and_ties_against_the_student() {
        // Student 0 finds its teacher first; student 1 is nearer to teacher 0; student 2 ties with teacher 3.
        let students = [1.0, 0.0, 1.0, 0.2, -1.0, 0.0, 0.0, -5.0];
        let teachers = [2.0, 0.0, 0.0, 3.0, -1.0, 0.0, -4.0, 0.0];
        // The cosines are 1, 0, -1, -1; then 0.98, 0.2, ...; then -1, 0, 1, 1. The last student's own teacher ties with
        // two others at 0.
        let metrics = retrieval_metrics(&students, &teachers, 2).unwrap();
        assert_eq!(metrics, RetrievalMetrics::of_ranks(&[1, 2, 2, 3]));
        assert_eq!((metrics.r1, metrics.r5, metrics.mean_rank), (0.25, 1.0, 2.0));
        assert!((metrics.mrr - (1.0 + 0.5 + 0.5 + 1.0 / 3.0) / 4.0).abs() < 1e-12);
    }

    #[test]
    fn chance_is_what_equal_ranks_give() {
        let ranks: Vec<usize> = (1..=40).collect();
        let (chance, expected) = (RetrievalMetrics::chance(40), RetrievalMetrics::of_ranks(&ranks));
        for (a, b) in [
            (chance.r1, expected.r1),
            (chance.r5, expected.r5),
            (chance.r10, expected.r10),
            (chance.mrr, expected.mrr),
            (chance.mean_rank, expected.mean_rank),
        ] {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
        assert_eq!(RetrievalMetrics::chance(4).r10, 1.0);
    }

    #[test]
    fn many_rows_are_ranked_as_few_are() {
        let (n, width) = (2 * BLOCK + 17, 3);
        let teachers: Vec<f32> = (0..n * width).map(|i| (i as f32 * 0.37).sin()).collect();
        let noisy: Vec<f32> = teachers.iter().enumerate().map(|(i, x)| x + 0.05 * (i as f32 * 1.3).cos()).collect();
        let metrics = retrieval_metrics(&noisy, &teachers, width).unwrap();
        let (s, t) = (normalized(&noisy, width), normalized(&teachers, width));
        let cosine = |i: usize, j: usize| (0..width).map(|c| s[i * width + c] * t[j * width + c]).sum::<f32>();
        let above = |i: usize| (0..n).filter(|j| *j != i && cosine(i, *j) > cosine(i, i)).count() + 1;
        let mean = (0..n).map(|i| above(i) as f64).sum::<f64>() / n as f64;
        assert!((metrics.mean_rank - mean).abs() < 0.02, "{} {mean}", metrics.mean_rank);
    }

    #[test]
    fn what_cant_be_ranked_is_refused() {
        assert!(retrieval_metrics(&[], &[], 2).is_err());
        assert!(retrieval_metrics(&[1.0, 2.0], &[1.0], 1).is_err());
        assert!(retrieval_metrics(&[1.0, f32::NAN], &[1.0, 1.0], 2).is_err());
    }
}
