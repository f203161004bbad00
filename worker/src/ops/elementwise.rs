//! Small loops over tensors, elementwise or with one row for all rows.

use candle_core::{DType, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{edit, fused, values};
use crate::Result;
use crate::numerics::kernels;

const CHUNK: usize = 1 << 14;

/// Computes x · factors elementwise. It consumes x, whose values nothing else may share.
pub(crate) fn multiply(x: Tensor, factors: &Tensor) -> Result<Tensor> {
    if !fused(&[&x, factors]) {
        return Ok((x * factors)?);
    }
    let factors = values(factors)?;
    edit(&x, |x| {
        let chunks = x.par_chunks_mut(CHUNK).zip(factors.par_chunks(CHUNK));
        chunks.for_each(|(x, factors)| kernels::multiply(x, factors));
    })?;
    Ok(x)
}

/// Subtracts `row` `[d]` from each of `rows` `[n, d]`.
pub(crate) fn subtract_row(rows: &Tensor, row: &Tensor) -> Result<Tensor> {
    if !fused(&[rows, row]) {
        return Ok(rows.broadcast_sub(row)?);
    }
    let (from, row) = (values(rows)?, values(row)?);
    let mut out = vec![0f32; from.len()];
    let each = out.par_chunks_mut(row.len()).zip(from.par_chunks(row.len()));
    each.with_min_len(kernels::rows_per_task(from.len() / row.len(), row.len()))
        .for_each(|(out, from)| kernels::subtract(out, from, &row));
    Ok(Tensor::from_vec(out, rows.shape(), rows.device())?)
}

/// Rounds f32 to f16.
pub(crate) fn to_halves(x: &Tensor) -> Result<Tensor> {
    if !fused(&[x]) {
        return Ok(x.to_dtype(DType::F16)?.contiguous()?);
    }
    let values = values(x)?;
    let mut out = vec![f16::ZERO; values.len()];
    let chunks = out.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK));
    chunks.for_each(|(out, values)| out.convert_from_f32_slice(values));
    Ok(Tensor::from_vec(out, x.shape(), x.device())?)
}

/// Computes Σ x² of a flat buffer in f32, whose length is a multiple of `piece`.
pub(crate) fn sum_of_squares(x: &Tensor, piece: usize) -> Result<Tensor> {
    if !fused(&[x]) {
        // A long row is summed in pieces, because a GPU gives each sum to one of its blocks.
        return Ok(x.sqr()?.reshape((x.elem_count() / piece, piece))?.sum(1)?.sum_all()?);
    }
    let values = values(x)?;
    let chunks = values.par_chunks(CHUNK).with_min_len(4);
    let squares: Vec<f64> = chunks.map(|chunk| f64::from(kernels::dot(chunk, chunk))).collect();
    Ok(Tensor::new(squares.iter().sum::<f64>() as f32, x.device())?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error, tracked};
    use super::*;

    #[test]
    fn fused_loops_agree_with_the_composed_ones() {
        for (rows, width) in [(1, 7), (300, 96)] {
            let (x, y) = (random(rows, width, 1), random(rows, width, 2));
            let row = random(1, width, 3).squeeze(0).unwrap();
            let [fused, composed] = [x.copy().unwrap(), tracked(&x)].map(|x| multiply(x, &y).unwrap());
            assert!(relative_error(&fused, &composed) < 1e-7);
            let [fused, composed] = [x.clone(), tracked(&x)].map(|x| subtract_row(&x, &row).unwrap());
            assert!(relative_error(&fused, &composed) < 1e-7);
            let [fused, composed] = [x.clone(), tracked(&x)].map(|x| to_halves(&x).unwrap());
            assert_eq!(fused.to_vec2::<f16>().unwrap(), composed.to_vec2::<f16>().unwrap());
        }
        let x = random(1, 70 * 1024, 4).flatten_all().unwrap();
        let expected = x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        for x in [x.clone(), tracked(&x)] {
            let found = sum_of_squares(&x, 1024).unwrap().to_scalar::<f32>().unwrap();
            assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
        }
    }
}
