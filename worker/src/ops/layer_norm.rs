//! LayerNorm in training, forward and backward.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::{edit, fused, values};
use crate::Result;
use crate::numerics::kernels::rows_per_task;
use crate::numerics::layers::{self, LAYER_NORM_EPSILON};

/// The values of the forward pass that the backward pass needs, in f32.
pub(crate) struct Normed {
    /// The rows minus their mean, divided by their deviation, `[b, d]`.
    pub(crate) normalized: Tensor,
    /// The inverse of the deviation, `[b, 1]`.
    pub(crate) inverse: Tensor,
}

/// Normalizes each of the K rows of `d` numbers in a row of x + bias `[b, K·d]`. The result is `[b·K, d]` in f32. It
/// consumes x, whose values nothing else may share.
pub(crate) fn layer_norm_kept(x: Tensor, bias: &Tensor, weight: &Tensor, shift: &Tensor) -> Result<(Tensor, Normed)> {
    let width = weight.elem_count();
    if !fused(&[&x, bias, weight, shift]) {
        let rows = x.broadcast_add(bias)?.to_dtype(DType::F32)?.reshape(((), width))?;
        let normed = standardized(&rows)?;
        let out = normed.normalized.broadcast_mul(weight)?.broadcast_add(shift)?;
        return Ok((out, normed));
    }
    let rows = x.elem_count() / width;
    let (bias, weight, shift) = (values(bias)?, values(weight)?, values(shift)?);
    let (mut out, mut inverse) = (vec![0f32; rows * width], vec![0f32; rows]);
    let in_a_row = bias.len() / width;
    edit(&x, |x| {
        let rows_of_x = x.par_chunks_mut(width).zip(out.par_chunks_mut(width)).zip(&mut inverse);
        let rows_of_x = rows_of_x.enumerate().with_min_len(rows_per_task(rows, width));
        rows_of_x.for_each(|(row, ((x, out), inverse))| {
            let bias = &bias[row % in_a_row * width..][..width];
            *inverse = layers::layer_norm(x, out, bias, &weight, &shift);
        });
    })?;
    let out = Tensor::from_vec(out, (rows, width), x.device())?;
    let inverse = Tensor::from_vec(inverse, (rows, 1), x.device())?;
    let normalized = x.reshape((rows, width))?;
    Ok((out, Normed { normalized, inverse }))
}

/// Applies a LayerNorm without weights to f32 rows `[b, d]`.
pub(crate) fn standardized(rows: &Tensor) -> Result<Normed> {
    let centered = rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    let inverse = (variance + f64::from(LAYER_NORM_EPSILON))?.sqrt()?.recip()?;
    let normalized = centered.broadcast_mul(&inverse)?;
    Ok(Normed { normalized, inverse })
}

impl Normed {
    /// Returns the gradient of the rows from that of the normalized rows: (g − mean(g) − x̂ · mean(g ∘ x̂)) /
    /// deviation.
    pub(crate) fn backward(&self, grad: &Tensor) -> Result<Tensor> {
        let along = (grad * &self.normalized)?.mean_keepdim(D::Minus1)?;
        let inner = grad.broadcast_sub(&grad.mean_keepdim(D::Minus1)?)?.sub(&self.normalized.broadcast_mul(&along)?)?;
        Ok(inner.broadcast_mul(&self.inverse)?)
    }
}

/// Turns the gradient of the LayerNorm's output `[b, d]` into that of its input. It consumes `grad`.
pub(crate) fn layer_norm_backward(grad: Tensor, normed: &Normed, weight: &Tensor) -> Result<Tensor> {
    let Normed { normalized, inverse } = normed;
    if !fused(&[&grad, normalized, inverse, weight]) {
        return normed.backward(&grad.broadcast_mul(weight)?);
    }
    let (rows, width) = grad.dims2()?;
    let (normalized, inverse, weight) = (values(normalized)?, values(inverse)?, values(weight)?);
    edit(&grad, |grad| {
        let rows_of_grad = grad.par_chunks_mut(width).zip(normalized.par_chunks(width)).zip(&*inverse);
        rows_of_grad
            .with_min_len(rows_per_task(rows, width))
            .for_each(|((grad, x), inverse)| layers::layer_norm_backward(grad, x, &weight, *inverse));
    })?;
    Ok(grad)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::super::testing::{random, relative_error, tracked};
    use super::*;

    #[test]
    fn forth_and_back_are_those_of_the_graph() {
        for (rows, width) in [(1, 7), (41, 96), (130, 768)] {
            let (x, by) = (random(rows, width, 1), random(rows, width, 2));
            let [bias, weight, shift] = [3, 4, 5].map(|seed| random(1, width, seed).squeeze(0).unwrap());
            let var = Var::from_tensor(&x).unwrap();
            let normed = standardized(&var.broadcast_add(&bias).unwrap()).unwrap().normalized;
            let expected = normed.broadcast_mul(&weight).unwrap().broadcast_add(&shift).unwrap();
            let graph = (&expected * &by).unwrap().sum_all().unwrap().backward().unwrap();
            for (x, by) in [(x.copy().unwrap(), by.copy().unwrap()), (tracked(&x), tracked(&by))] {
                let (out, normed) = layer_norm_kept(x, &bias, &weight, &shift).unwrap();
                assert!(relative_error(&out, &expected) < 1e-5, "{rows}×{width}");
                let found = layer_norm_backward(by, &normed, &weight).unwrap();
                assert!(relative_error(&found, graph.get(&var).unwrap()) < 1e-4, "{rows}×{width}");
            }
        }
    }
}
