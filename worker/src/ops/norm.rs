//! LayerNorm and RMSNorm over the last dimension, alone or after a residual sum.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::{Values, edit, fused, rows_per_chunk};
use crate::Result;
use crate::numerics::kernels::reduce;
use crate::numerics::vectorized::vectorized;

/// Computes (x − mean) / √(variance + eps) · gamma + beta over rows `[T, width]`. It consumes x, whose values nothing
/// else may share.
pub(crate) fn layer_norm(x: Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    if !fused(&[&x, gamma, beta]) {
        return layer_norm_by_kernel(&x, gamma, beta, eps);
    }
    let width = x.dim(D::Minus1)?;
    let (gamma, beta) = (Values::of(gamma)?, Values::of(beta)?);
    let (gamma, beta) = (gamma.get()?, beta.get()?);
    edit(&x, |x| {
        x.par_chunks_mut(rows_per_chunk(width) * width).for_each(|rows| {
            rows.chunks_exact_mut(width).for_each(|row| layer_norm_row(row, gamma, beta, eps as f32));
        });
    })?;
    Ok(x)
}

/// Computes layer_norm(x + residual). It consumes x.
pub(crate) fn add_layer_norm(x: Tensor, residual: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    if !fused(&[&x, residual, gamma, beta]) {
        return layer_norm_by_kernel(&(x + residual)?, gamma, beta, eps);
    }
    let width = x.dim(D::Minus1)?;
    let (residual, gamma, beta) = (Values::of(residual)?, Values::of(gamma)?, Values::of(beta)?);
    let (residual, gamma, beta) = (residual.get()?, gamma.get()?, beta.get()?);
    let chunk = rows_per_chunk(width) * width;
    edit(&x, |x| {
        x.par_chunks_mut(chunk).zip(residual.par_chunks(chunk)).for_each(|(rows, residual)| {
            for (row, residual) in rows.chunks_exact_mut(width).zip(residual.chunks_exact(width)) {
                add(row, residual);
                layer_norm_row(row, gamma, beta, eps as f32);
            }
        });
    })?;
    Ok(x)
}

/// Computes x / √(mean square + eps) · gamma over rows `[T, width]`.
pub(crate) fn rms_norm(x: &Tensor, gamma: &Tensor, eps: f64) -> Result<Tensor> {
    if !fused(&[x, gamma]) {
        return rms_norm_by_kernel(x, gamma, eps);
    }
    let width = x.dim(D::Minus1)?;
    let (values, gamma) = (Values::of(x)?, Values::of(gamma)?);
    let (values, gamma) = (values.get()?, gamma.get()?);
    let mut out = vec![0f32; values.len()];
    let chunk = rows_per_chunk(width) * width;
    out.par_chunks_mut(chunk).zip(values.par_chunks(chunk)).for_each(|(out, rows)| {
        for (out, row) in out.chunks_exact_mut(width).zip(rows.chunks_exact(width)) {
            rms_norm_row(out, row, gamma, eps as f32);
        }
    });
    Ok(Tensor::from_vec(out, x.shape(), x.device())?)
}

/// Returns the residual sum x + y and its RMSNorm.
pub(crate) fn add_rms_norm(x: &Tensor, y: &Tensor, gamma: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    if !fused(&[x, y, gamma]) {
        let sum = (x + y)?;
        let normed = rms_norm_by_kernel(&sum, gamma, eps)?;
        return Ok((sum, normed));
    }
    let width = x.dim(D::Minus1)?;
    let (x_values, y, gamma) = (Values::of(x)?, Values::of(y)?, Values::of(gamma)?);
    let (x_values, y, gamma) = (x_values.get()?, y.get()?, gamma.get()?);
    let (mut sums, mut normed) = (vec![0f32; y.len()], vec![0f32; y.len()]);
    let chunk = rows_per_chunk(width) * width;
    sums.par_chunks_mut(chunk)
        .zip(normed.par_chunks_mut(chunk))
        .zip(x_values.par_chunks(chunk).zip(y.par_chunks(chunk)))
        .for_each(|((sums, normed), (x, y))| {
            sums.copy_from_slice(x);
            add(sums, y);
            for (normed, row) in normed.chunks_exact_mut(width).zip(sums.chunks_exact(width)) {
                rms_norm_row(normed, row, gamma, eps as f32);
            }
        });
    let tensor = |values| Tensor::from_vec(values, x.shape(), x.device());
    Ok((tensor(sums)?, tensor(normed)?))
}

/// Returns the gradient of x from that of rms_norm(x), rows `[T, width]`. The weights have no gradient.
pub(crate) fn rms_norm_backward(x: &Tensor, gamma: &Tensor, eps: f64, grad: &Tensor) -> Result<Tensor> {
    if !fused(&[x, gamma, grad]) {
        return rms_norm_backward_composed(x, gamma, eps, grad);
    }
    let width = x.dim(D::Minus1)?;
    let (values, gamma, grad) = (Values::of(x)?, Values::of(gamma)?, Values::of(grad)?);
    let (values, gamma, grad) = (values.get()?, gamma.get()?, grad.get()?);
    let mut out = vec![0f32; values.len()];
    let chunk = rows_per_chunk(width) * width;
    out.par_chunks_mut(chunk).zip(values.par_chunks(chunk).zip(grad.par_chunks(chunk))).for_each(
        |(out, (rows, grad))| {
            let rows = rows.chunks_exact(width).zip(grad.chunks_exact(width));
            for (out, (row, grad)) in out.chunks_exact_mut(width).zip(rows) {
                rms_norm_backward_row(out, row, gamma, grad, eps as f32);
            }
        },
    );
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

/// Computes the LayerNorm by its definition.
#[cfg(test)]
fn layer_norm_composed(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(dtype)?;
    Ok(normed.broadcast_mul(gamma)?.broadcast_add(beta)?)
}

/// Computes the RMSNorm by its definition.
#[cfg(test)]
fn rms_norm_composed(x: &Tensor, gamma: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.to_dtype(dtype)?;
    Ok(normed.broadcast_mul(gamma)?)
}

vectorized! {
    fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
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
}

vectorized! {
    fn rms_norm_row(out: &mut [f32], row: &[f32], gamma: &[f32], eps: f32) {
        let mean_square = reduce(row, row, |x, _| x * x) / row.len() as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for ((out, x), g) in out.iter_mut().zip(row).zip(gamma) {
            *out = x * scale * g;
        }
    }
}

vectorized! {
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

    #[test]
    fn the_gradient_of_rms_norm_is_that_of_its_graph() {
        for (rows, width) in [(1, 7), (41, 96), (30, 768)] {
            let (x, grad) = (random(rows, width, 1), random(rows, width, 2));
            let gamma = random(1, width, 3).squeeze(0).unwrap();
            let var = Var::from_tensor(&x).unwrap();
            let out = rms_norm_composed(var.as_tensor(), &gamma, 1e-5).unwrap();
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
            let expected = layer_norm_composed(&(&x + &y).unwrap(), &gamma, &beta, 1e-5).unwrap();
            let found = layer_norm_by_kernel(&cast(&(&x + &y).unwrap()), &cast(&gamma), &cast(&beta), 1e-5).unwrap();
            assert!(relative_error(&wide(&found), &expected) < tolerance, "{dtype:?}");
            let expected = rms_norm_composed(&x, &gamma, 1e-5).unwrap();
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
            let expected = layer_norm_composed(&both, &gamma, &beta, 1e-5).unwrap();
            let found = add_layer_norm(x.copy().unwrap(), &y, &gamma, &beta, 1e-5).unwrap();
            assert!(relative_error(&found, &expected) < 1e-5, "{rows}×{width}");
            let found = layer_norm(both.copy().unwrap(), &gamma, &beta, 1e-5).unwrap();
            assert!(relative_error(&found, &expected) < 1e-5, "{rows}×{width}");
            let expected = rms_norm_composed(&both, &gamma, 1e-5).unwrap();
            assert!(relative_error(&rms_norm(&both, &gamma, 1e-5).unwrap(), &expected) < 1e-5);
            let (sum, normed) = add_rms_norm(&x, &y, &gamma, 1e-5).unwrap();
            assert!(relative_error(&sum, &both) < 1e-6 && relative_error(&normed, &expected) < 1e-5);
        }
    }
}
