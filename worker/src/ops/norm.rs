//! LayerNorm and RMSNorm over the last dimension, alone or after a residual sum.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::{edit, fused, rows_per_chunk, values};
use crate::Result;
use crate::numerics::kernels::{add, reduce};
use crate::numerics::vectorized::vectorized;

/// Computes (x − mean) / √(variance + eps) · gamma + beta over rows `[T, width]`. It consumes x, whose values nothing
/// else may share.
pub(crate) fn layer_norm(x: Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    if !fused(&[&x, gamma, beta]) {
        return layer_norm_by_kernel(&x, gamma, beta, eps);
    }
    let (width, gamma, beta) = (x.dim(D::Minus1)?, values(gamma)?, values(beta)?);
    edit(&x, |x| {
        let rows = x.par_chunks_mut(width).with_min_len(rows_per_chunk(width));
        rows.for_each(|row| layer_norm_row(row, &gamma, &beta, eps as f32));
    })?;
    Ok(x)
}

/// Computes layer_norm(x + residual). It consumes x.
pub(crate) fn add_layer_norm(x: Tensor, residual: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    if !fused(&[&x, residual, gamma, beta]) {
        return layer_norm_by_kernel(&(x + residual)?, gamma, beta, eps);
    }
    let (width, residual, gamma, beta) = (x.dim(D::Minus1)?, values(residual)?, values(gamma)?, values(beta)?);
    edit(&x, |x| {
        let rows = x.par_chunks_mut(width).zip(residual.par_chunks(width)).with_min_len(rows_per_chunk(width));
        rows.for_each(|(row, residual)| {
            add(row, residual);
            layer_norm_row(row, &gamma, &beta, eps as f32);
        });
    })?;
    Ok(x)
}

/// Computes x / √(mean square + eps) · gamma over rows `[T, width]`.
pub(crate) fn rms_norm(x: &Tensor, gamma: &Tensor, eps: f64) -> Result<Tensor> {
    if !fused(&[x, gamma]) {
        return rms_norm_by_kernel(x, gamma, eps);
    }
    let (width, rows, gamma) = (x.dim(D::Minus1)?, values(x)?, values(gamma)?);
    let mut out = vec![0f32; rows.len()];
    let each = out.par_chunks_mut(width).zip(rows.par_chunks(width)).with_min_len(rows_per_chunk(width));
    each.for_each(|(out, row)| rms_norm_row(out, row, &gamma, eps as f32));
    Ok(Tensor::from_vec(out, x.shape(), x.device())?)
}

/// Returns the residual sum x + y and its RMSNorm.
pub(crate) fn add_rms_norm(x: &Tensor, y: &Tensor, gamma: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    if !fused(&[x, y, gamma]) {
        let sum = (x + y)?;
        let normed = rms_norm_by_kernel(&sum, gamma, eps)?;
        return Ok((sum, normed));
    }
    let (width, gamma, y) = (x.dim(D::Minus1)?, values(gamma)?, values(y)?);
    let (mut sums, mut normed) = (values(x)?.to_vec(), vec![0f32; y.len()]);
    let each = sums.par_chunks_mut(width).zip(normed.par_chunks_mut(width)).zip(y.par_chunks(width));
    each.with_min_len(rows_per_chunk(width)).for_each(|((sum, normed), y)| {
        add(sum, y);
        rms_norm_row(normed, sum, &gamma, eps as f32);
    });
    let tensor = |values| Tensor::from_vec(values, x.shape(), x.device());
    Ok((tensor(sums)?, tensor(normed)?))
}

/// Returns the gradient of x from that of rms_norm(x), rows `[T, width]`. The weights have no gradient.
pub(crate) fn rms_norm_backward(x: &Tensor, gamma: &Tensor, eps: f64, grad: &Tensor) -> Result<Tensor> {
    if !fused(&[x, gamma, grad]) {
        return rms_norm_backward_composed(x, gamma, eps, grad);
    }
    let (width, rows, gamma, grad) = (x.dim(D::Minus1)?, values(x)?, values(gamma)?, values(grad)?);
    let mut out = vec![0f32; rows.len()];
    let each = out.par_chunks_mut(width).zip(rows.par_chunks(width)).zip(grad.par_chunks(width));
    each.with_min_len(rows_per_chunk(width))
        .for_each(|((out, row), grad)| rms_norm_backward_row(out, row, &gamma, grad, eps as f32));
    Ok(Tensor::from_vec(out, x.shape(), x.device())?)
}

/// Computes s · g − x · s³ · mean(g · x) with s = 1 / √(mean x² + eps) and g = grad · gamma.
fn rms_norm_backward_composed(x: &Tensor, gamma: &Tensor, eps: f64, grad: &Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let g = grad.to_dtype(DType::F32)?.broadcast_mul(&gamma.to_dtype(DType::F32)?)?;
    let s = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    let along = ((&g * &x)?.mean_keepdim(D::Minus1)? * s.powf(3.0)?)?;
    let out = (g.broadcast_mul(&s)? - x.broadcast_mul(&along)?)?;
    Ok(out.to_dtype(dtype)?)
}

fn layer_norm_by_kernel(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(candle_nn::ops::layer_norm(&x.contiguous()?, gamma, beta, eps as f32)?)
}

fn rms_norm_by_kernel(x: &Tensor, gamma: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(candle_nn::ops::rms_norm(&x.contiguous()?, gamma, eps as f32)?)
}

vectorized! {
    fn layer_norm_row(row: &mut [f32], gamma: &[f32], beta: &[f32], eps: f32) {
        let width = row.len() as f32;
        let mean = reduce(row, row, |x, _| x) / width;
        let variance = reduce(row, row, |x, _| (x - mean) * (x - mean)) / width;
        let scale = 1.0 / (variance + eps).sqrt();
        for ((x, g), b) in row.iter_mut().zip(gamma).zip(beta) {
            *x = (*x - mean) * scale * g + b;
        }
    }

    fn rms_norm_row(out: &mut [f32], row: &[f32], gamma: &[f32], eps: f32) {
        let mean_square = reduce(row, row, |x, _| x * x) / row.len() as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for ((out, x), g) in out.iter_mut().zip(row).zip(gamma) {
            *out = x * scale * g;
        }
    }

    fn rms_norm_backward_row(out: &mut [f32], row: &[f32], gamma: &[f32], grad: &[f32], eps: f32) {
        let width = row.len() as f32;
        for ((out, grad), g) in out.iter_mut().zip(grad).zip(gamma) {
            *out = grad * g;
        }
        let scale = 1.0 / (reduce(row, row, |x, _| x * x) / width + eps).sqrt();
        let along = reduce(out, row, |by, x| by * x) / width * scale * scale * scale;
        for (out, x) in out.iter_mut().zip(row) {
            *out = *out * scale - x * along;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;
    use candle_core::Var;
    use candle_nn::ops::{layer_norm_slow, rms_norm_slow};

    #[test]
    fn the_gradient_of_rms_norm_is_that_of_its_graph() {
        for (rows, width) in [(1, 7), (41, 96), (30, 768)] {
            let (x, grad) = (random(rows, width, 1), random(rows, width, 2));
            let gamma = random(1, width, 3).squeeze(0).unwrap();
            let var = Var::from_tensor(&x).unwrap();
            let out = rms_norm_slow(var.as_tensor(), &gamma, 1e-5).unwrap();
            let graph = (out * &grad).unwrap().sum_all().unwrap().backward().unwrap();
            let expected = graph.get(&var).unwrap();
            let found = rms_norm_backward(&x, &gamma, 1e-5, &grad).unwrap();
            assert!(relative_error(&found, expected) < 1e-5, "{rows}×{width}");
            let found = rms_norm_backward_composed(&x, &gamma, 1e-5, &grad).unwrap();
            assert!(relative_error(&found, expected) < 1e-5, "{rows}×{width}");
        }
    }

    #[test]
    fn candles_kernels_agree_with_the_composed_norms() {
        let (x, y) = (random(41, 96, 1), random(41, 96, 2));
        let gamma = random(1, 96, 3).squeeze(0).unwrap();
        let beta = random(1, 96, 4).squeeze(0).unwrap();
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
            let cast = |x: &Tensor| x.to_dtype(dtype).unwrap();
            let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
            let expected = layer_norm_slow(&(&x + &y).unwrap(), &gamma, &beta, 1e-5).unwrap();
            let found = layer_norm_by_kernel(&cast(&(&x + &y).unwrap()), &cast(&gamma), &cast(&beta), 1e-5).unwrap();
            assert!(relative_error(&wide(&found), &expected) < tolerance, "{dtype:?}");
            let expected = rms_norm_slow(&x, &gamma, 1e-5).unwrap();
            let found = rms_norm_by_kernel(&cast(&x), &cast(&gamma), 1e-5).unwrap();
            assert!(relative_error(&wide(&found), &expected) < tolerance, "{dtype:?}");
        }
    }

    #[test]
    fn fused_norms_agree_with_the_composed_ones() {
        for (rows, width) in [(1, 7), (41, 96), (300, 768)] {
            let (x, y) = (random(rows, width, 1), random(rows, width, 2));
            let gamma = random(1, width, 3).squeeze(0).unwrap();
            let beta = random(1, width, 4).squeeze(0).unwrap();
            let both = (&x + &y).unwrap();
            let expected = layer_norm_slow(&both, &gamma, &beta, 1e-5).unwrap();
            let found = add_layer_norm(x.copy().unwrap(), &y, &gamma, &beta, 1e-5).unwrap();
            assert!(relative_error(&found, &expected) < 1e-5, "{rows}×{width}");
            let found = layer_norm(both.copy().unwrap(), &gamma, &beta, 1e-5).unwrap();
            assert!(relative_error(&found, &expected) < 1e-5, "{rows}×{width}");
            let expected = rms_norm_slow(&both, &gamma, 1e-5).unwrap();
            assert!(relative_error(&rms_norm(&both, &gamma, 1e-5).unwrap(), &expected) < 1e-5);
            let (sum, normed) = add_rms_norm(&x, &y, &gamma, 1e-5).unwrap();
            assert!(relative_error(&sum, &both) < 1e-6 && relative_error(&normed, &expected) < 1e-5);
        }
    }
}
