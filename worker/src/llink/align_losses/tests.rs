//! Losses and gradients of Stage A against a plain form of their definition.

use candle_core::{DType, Device};
use half::f16;

use super::*;
use crate::llink::teacher_queue::StoredQueue;
use crate::llink::whitening::Whitening;
use crate::numerics::kernels::normalize;
use crate::ops::Backend;
use crate::ops::testing::{differences, tracked};

const D: usize = 6;
const WEIGHTS: AlignWeights = AlignWeights { hard_negatives: 5, direction: 0.05, log_norm: 0.02 };
const TAU: f64 = 0.15;

fn numbers(count: usize, key: f32) -> Vec<f32> {
    (0..count).map(|i| ((i as f32 + 1.0) * key).sin() * 2.0).collect()
}

/// Returns a queue of twelve teachers of other pairs and one of a pair in the batch.
fn queue() -> StoredQueue {
    let mut rows = numbers(13 * D, 1.37);
    for row in rows.chunks_exact_mut(D) {
        let copy = row.to_vec();
        normalize(&copy, row);
    }
    let vectors = rows.into_iter().map(f16::from_f32).collect();
    let ids = vec![100, 101, 102, 103, 2, 105, 106, 107, 108, 109, 110, 111, 112];
    StoredQueue::restore(13, D, vectors, ids, 0).unwrap()
}

/// Computes with the fused kernels and with composed operations. Returns the losses, the gradient of all rows, and the
/// teachers for the queue.
fn run(
    projected: &[f32],
    teacher: &[f32],
    ids: &[u64],
    queue: &StoredQueue,
    metric: Option<&Whitening>,
) -> (AlignLosses, Vec<f32>, Vec<f32>) {
    let backend = Backend::new(&Device::Cpu, DType::F32);
    let [fused, composed] = [Tensor::clone, tracked].map(|form| {
        let rows = |values: &[f32]| form(&Tensor::from_slice(values, (ids.len(), D), &Device::Cpu).unwrap());
        let numbers = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let metric = metric.map(|metric| Metric::new(metric, &backend).unwrap());
        let batch = AlignBatch {
            ids,
            projected: &rows(projected),
            teacher: &rows(teacher),
            own: 0..ids.len(),
            temperature: TAU,
            metric: metric.as_ref(),
        };
        let queue = TeacherQueue::new(queue, &backend).unwrap();
        let found = align_losses(&batch, &queue, &WEIGHTS).unwrap();
        let own = AlignBatch { own: 1..ids.len(), ..batch };
        let of_own = align_losses(&own, &queue, &WEIGHTS).unwrap();
        for (part, whole) in numbers(&of_own.gradient).iter().zip(&numbers(&found.gradient)[D..]) {
            assert!(whole.is_nan() || (part - whole).abs() < 1e-6, "a rank's part: {part} {whole}");
        }
        let [info_nce, direction, log_norm] = found.losses.map(|loss| f64::from(loss.to_scalar::<f32>().unwrap()));
        let losses = AlignLosses { info_nce, direction, log_norm };
        (losses, numbers(&found.gradient), numbers(&found.teachers))
    });
    let total = fused.0.total(&WEIGHTS);
    assert!(total.is_nan() || (total - composed.0.total(&WEIGHTS)).abs() < 1e-5);
    for (a, b) in fused.1.iter().zip(&composed.1).chain(fused.2.iter().zip(&composed.2)) {
        assert!(total.is_nan() || (a - b).abs() < 1e-5, "{a} {b}");
    }
    fused
}

/// Returns a metric with a mean far from zero and a matrix that is not symmetric.
fn metric() -> Whitening {
    let matrix = (0..D * D).map(|at| (at as f32 * 0.7).cos() + if at % (D + 1) == 0 { 2.0 } else { 0.0 });
    Whitening::new(numbers(D, 0.31), Some(matrix.collect())).unwrap()
}

/// Computes the losses by their definition in f64. The negatives are those that the f32 code would choose at
/// `mined_at`.
fn definition(
    projected: &[f64],
    teacher: &[f32],
    ids: &[u64],
    queue: &StoredQueue,
    metric: Option<&Whitening>,
    mined_at: &[f32],
) -> [f64; 3] {
    let unit = |row: &[f64]| -> (Vec<f64>, f64) {
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        (row.iter().map(|x| x / norm).collect(), norm)
    };
    let wide = |row: &[f32]| row.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let seen = |row: &[f64]| -> Vec<f64> {
        let Some(metric) = metric else { return row.to_vec() };
        let centered: Vec<f64> = row.iter().zip(wide(metric.mean())).map(|(x, mean)| x - mean).collect();
        let Some(matrix) = metric.matrix() else { return centered };
        let column = |j: usize| matrix.iter().skip(j).step_by(D).copied().collect::<Vec<_>>();
        (0..D).map(|j| dot(&centered, &wide(&column(j)))).collect()
    };
    let raw = |rows: &[f64]| rows.chunks(D).map(unit).collect::<Vec<_>>();
    let (raw_p, raw_t) = (raw(projected), raw(&wide(teacher)));
    let p: Vec<_> = projected.chunks(D).map(|row| unit(&seen(row))).collect();
    let t: Vec<_> = teacher.chunks(D).map(|row| unit(&seen(&wide(row)))).collect();
    let students: Vec<_> = mined_at.chunks(D).map(|row| unit(&seen(&wide(row))).0).collect();
    let stored = |position: usize| {
        let row = &queue.vectors()[position * D..][..D];
        row.iter().map(|x| x.to_f64()).collect::<Vec<_>>()
    };
    let mean = |position: usize| students.iter().map(|s| dot(s, &stored(position))).sum::<f64>();
    let mut usable: Vec<usize> = (0..queue.len()).filter(|i| !ids.contains(&queue.ids()[*i])).collect();
    usable.sort_by(|a, b| mean(*b).total_cmp(&mean(*a)));
    usable.truncate(WEIGHTS.hard_negatives);
    let n = ids.len();
    let log_sum = |logits: Vec<f64>| logits.iter().map(|x| x.exp()).sum::<f64>().ln();
    let mut sums = [0.0; 3];
    for i in 0..n {
        let own = dot(&p[i].0, &t[i].0);
        let row = t.iter().map(|t| dot(&p[i].0, &t.0)).chain(usable.iter().map(|q| dot(&p[i].0, &stored(*q))));
        let by_row = log_sum(row.map(|x| x / TAU).collect()) - own / TAU;
        let by_column = log_sum(p.iter().map(|p| dot(&p.0, &t[i].0) / TAU).collect()) - own / TAU;
        sums[0] += 0.5 * (by_row + by_column) / n as f64;
        sums[1] += (1.0 - dot(&raw_p[i].0, &raw_t[i].0)) / n as f64;
        sums[2] += ((raw_p[i].1 + 1e-8).ln() - (raw_t[i].1 + 1e-8).ln()).powi(2) / n as f64;
    }
    sums
}

#[test]
fn losses_and_gradient_are_those_of_the_definition_with_and_without_a_metric() {
    losses_and_gradient(None);
    losses_and_gradient(Some(&metric()));
    losses_and_gradient(Some(&Whitening::new(numbers(D, 0.31), None).unwrap()));
}

fn losses_and_gradient(metric: Option<&Whitening>) {
    let (ids, queue) = ([1, 2, 3, 4], queue());
    let (projected, teacher) = (numbers(4 * D, 0.71), numbers(4 * D, 2.13));
    let (losses, gradient, _) = run(&projected, &teacher, &ids, &queue, metric);
    let total = |values: &[f64]| {
        let [info_nce, direction, log_norm] = definition(values, &teacher, &ids, &queue, metric, &projected);
        AlignLosses { info_nce, direction, log_norm }
    };
    let wide: Vec<f64> = projected.iter().map(|x| f64::from(*x)).collect();
    let expected = total(&wide);
    assert!((losses.info_nce - expected.info_nce).abs() < 1e-5, "{losses:?} {expected:?}");
    assert!((losses.direction - expected.direction).abs() < 1e-5, "{losses:?} {expected:?}");
    assert!((losses.log_norm - expected.log_norm).abs() < 1e-5, "{losses:?} {expected:?}");
    let differences = differences(&wide, 1e-5, |values| total(values).total(&WEIGHTS));
    for (index, (derivative, difference)) in gradient.iter().zip(differences).enumerate() {
        assert!((difference - f64::from(*derivative)).abs() < 2e-5, "{index}: {derivative} against {difference}");
    }
}

#[test]
fn an_empty_queue_leaves_the_batch_alone_as_negatives() {
    let (projected, teacher) = (numbers(3 * D, 0.71), numbers(3 * D, 2.13));
    let empty = StoredQueue::new(8, D);
    let (losses, ..) = run(&projected, &teacher, &[1, 2, 3], &empty, None);
    let wide: Vec<f64> = projected.iter().map(|x| f64::from(*x)).collect();
    let expected = definition(&wide, &teacher, &[1, 2, 3], &empty, None, &projected);
    assert!((losses.info_nce - expected[0]).abs() < 1e-5, "{losses:?} {expected:?}");
}

#[test]
fn what_the_queue_takes_in_is_the_normalized_teacher_in_the_metric() {
    let (projected, teacher, metric) = (numbers(2 * D, 0.71), numbers(2 * D, 2.13), metric());
    let (.., taken_in) = run(&projected, &teacher, &[1, 2], &queue(), Some(&metric));
    let seen = metric.apply(&teacher).unwrap();
    for (row, source) in taken_in.chunks(D).zip(seen.chunks(D)) {
        let norm = source.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(row.iter().zip(source).all(|(x, source)| (x - source / norm).abs() < 1e-6));
    }
}

#[test]
fn a_nan_shows_in_the_losses() {
    let mut projected = numbers(2 * D, 0.71);
    projected[3] = f32::NAN;
    let (losses, ..) = run(&projected, &numbers(2 * D, 2.13), &[1, 2], &queue(), None);
    assert!(losses.total(&WEIGHTS).is_nan());
}
