//! Hard negatives, the teachers in the queue that are nearest to the batch.
//!
//! The mean cosine of a queue row to the batch is its product with the mean of the batch's normalized rows. Mining is
//! therefore one matrix-vector product over the queue.

use candle_core::{CpuStorage, DType, Storage, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::Result;
use crate::numerics::kernels::{dot_rows_f16, rows_per_task};
use crate::numerics::matrix::Existing;
use crate::ops::{fused, sum_rows_into, values};

/// The number of rows that one sort takes. More do not fit into the shared memory of a GPU's block.
const SORTED_AT_ONCE: usize = 4_096;
/// The number of candidates for each wanted negative. Cosines in f16 choose the candidates, and cosines in f32 choose
/// among them.
const CANDIDATES: usize = 2;

/// Returns the `n` rows with the highest mean cosine to `students`, best first, in f32: `[at most n, d]`. Returns
/// `None` when there are none.
///
/// `vectors` is `[m, d]` in f16, and `students` is `[B, d]`, normalized, in f32. Of equal rows the one at the lower
/// position comes first. The sorted positions `left_out` and rows without a finite score do not count. At least `n`
/// other rows must exist.
pub(super) fn hardest(vectors: &Tensor, students: &Tensor, left_out: &[usize], n: usize) -> Result<Option<Tensor>> {
    if !fused(&[students]) {
        return composed(vectors, students, left_out, n).map(Some);
    }
    let width = vectors.dim(1)?;
    // The sum of the students gives the same order as their mean.
    let direction = Tensor::zeros(width, DType::F32, students.device())?;
    sum_rows_into(&direction, students, None, Existing::Overwritten)?;
    let (storage, layout) = vectors.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F16(halves)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(candle_core::Error::Msg("expected a contiguous f16 queue on the CPU".into()).into());
    };
    let rows = &halves[start..end];
    let positions = mine(rows, &values(&direction)?, left_out, n);
    if positions.is_empty() {
        return Ok(None);
    }
    let mut found = vec![0f32; positions.len() * width];
    for (position, row) in positions.iter().zip(found.chunks_exact_mut(width)) {
        rows[position * width..][..width].convert_to_f32_slice(row);
    }
    Ok(Some(Tensor::from_vec(found, (positions.len(), width), students.device())?))
}

/// Returns the positions of the `n` rows with the highest scores against `direction`.
fn mine(rows: &[f16], direction: &[f32], left_out: &[usize], n: usize) -> Vec<usize> {
    let width = direction.len();
    let mut scores = vec![0f32; rows.len() / width];
    let block = rows_per_task(scores.len(), width);
    let blocks = rows.par_chunks(block * width).zip(scores.par_chunks_mut(block));
    blocks.for_each(|(rows, scores)| dot_rows_f16(rows, direction, scores));
    left_out.iter().for_each(|position| scores[*position] = f32::NEG_INFINITY);
    let mut best: Vec<usize> = (0..scores.len()).filter(|position| scores[*position].is_finite()).collect();
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if best.len() > n {
        best.select_nth_unstable_by(n - 1, order);
        best.truncate(n);
    }
    best.sort_unstable_by(order);
    best
}

fn composed(vectors: &Tensor, students: &Tensor, left_out: &[usize], n: usize) -> Result<Tensor> {
    let count = vectors.dim(0)?;
    let direction = students.mean(0)?;
    // A vector of length 1 uses the precision of f16 best. Its length does not change the order.
    let length = direction.sqr()?.sum_all()?.sqrt()?;
    let coarse = direction.broadcast_div(&length.maximum(1e-30)?)?.to_dtype(DType::F16)?;
    let mut scores = vectors.matmul(&coarse.unsqueeze(1)?)?.squeeze(1)?.to_dtype(DType::F32)?;
    if !left_out.is_empty() {
        let mut mask = vec![0f32; count];
        left_out.iter().for_each(|position| mask[*position] = f32::NEG_INFINITY);
        scores = (scores + Tensor::from_vec(mask, count, students.device())?)?;
    }
    let candidates = top(&scores, (CANDIDATES * n).min(count - left_out.len()))?;
    // The candidates are put in the order of their positions, so that among equals the lower position comes first.
    let (candidates, _) = candidates.sort_last_dim(true)?;
    let rows = vectors.index_select(&candidates, 0)?.to_dtype(DType::F32)?;
    let fine = rows.matmul(&direction.unsqueeze(1)?)?.squeeze(1)?;
    Ok(rows.index_select(&top(&fine, n)?, 0)?)
}

/// Returns the positions of the k largest of `scores` `[m]`, the largest first, as u32 `[k]`.
fn top(scores: &Tensor, k: usize) -> Result<Tensor> {
    let count = scores.dim(0)?;
    if count <= SORTED_AT_ONCE {
        let order = scores.unsqueeze(0)?.arg_sort_last_dim(false)?;
        return Ok(order.squeeze(0)?.narrow(0, 0, k)?.contiguous()?);
    }
    if k > SORTED_AT_ONCE / 2 {
        // Rounds would not reduce the number of rows for so large a k, so the host sorts them all.
        let values: Vec<f32> = scores.to_vec1()?;
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]));
        return Ok(Tensor::new(&order[..k], scores.device())?);
    }
    let rows = count.div_ceil(SORTED_AT_ONCE);
    let missing = rows * SORTED_AT_ONCE - count;
    let scores = match missing {
        0 => scores.clone(),
        _ => {
            let rest = Tensor::full(f32::NEG_INFINITY, missing, scores.device())?;
            Tensor::cat(&[scores, &rest], 0)?
        }
    };
    let apart = scores.reshape((rows, SORTED_AT_ONCE))?;
    let order = apart.arg_sort_last_dim(false)?.narrow(1, 0, k)?.contiguous()?;
    let best = apart.gather(&order, 1)?.flatten_all()?;
    let starts: Vec<u32> = (0..rows as u32).map(|row| row * SORTED_AT_ONCE as u32).collect();
    let places = order.broadcast_add(&Tensor::from_vec(starts, (rows, 1), scores.device())?)?;
    Ok(places.flatten_all()?.index_select(&top(&best, k)?, 0)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::numerics::random::noise;
    use crate::ops::UnitRows;
    use crate::ops::testing::tracked;

    fn halves(rows: &[[f32; 2]]) -> Vec<f16> {
        rows.as_flattened().iter().map(|x| f16::from_f32(*x)).collect()
    }

    #[test]
    fn the_best_come_first_and_ties_go_to_the_lower_position() {
        let rows = halves(&[[0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [0.6, 0.8], [0.8, 0.6]]);
        assert_eq!(mine(&rows, &[1.0, 0.0], &[], 3), [2, 4, 1]);
        assert_eq!(mine(&rows, &[1.0, 0.0], &[], 4), [2, 4, 1, 3]);
        assert_eq!(mine(&rows, &[1.0, 0.0], &[1, 2], 3), [4, 3, 0]);
        assert!(mine(&rows, &[f32::NAN, 0.0], &[], 3).is_empty());
    }

    #[test]
    fn both_forms_find_the_same_rows_in_the_same_order() {
        let (count, width) = (9_000, 24);
        let unit = |seed, rows: usize| {
            let rows = Tensor::from_vec(noise(seed, rows * width), (rows, width), &Device::Cpu).unwrap();
            UnitRows::of(&rows).unwrap().unit
        };
        let vectors = unit(1, count).to_dtype(DType::F16).unwrap();
        for step in 0..10 {
            let students = unit(100 + step, 50);
            let left_out: Vec<usize> = (0..count).skip(step as usize).step_by(7).collect();
            let [fused, composed] = [students.clone(), tracked(&students)].map(|students| {
                let found = hardest(&vectors, &students, &left_out, 32).unwrap().unwrap();
                found.to_vec2::<f32>().unwrap()
            });
            assert_eq!(fused, composed, "step {step}");
        }
    }

    #[test]
    fn the_largest_are_found_among_more_than_fit_at_once() {
        let scores = noise(5, 20_000);
        let mut order: Vec<u32> = (0..20_000).collect();
        order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
        let tensor = Tensor::new(scores.as_slice(), &Device::Cpu).unwrap();
        for k in [1, 256, 2_000, 7_000] {
            assert_eq!(top(&tensor, k).unwrap().to_vec1::<u32>().unwrap(), order[..k]);
        }
    }
}
