//! What the losses and modules do row by row, in tensors, forward and backward. All of it is f32.

use candle_core::{D, DType, Tensor};

use crate::Result;

const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Rows of norm 1 and their norms [n, 1], of rows [n, d].
pub(crate) fn normalized(rows: &Tensor) -> Result<(Tensor, Tensor)> {
    let norms = rows.sqr()?.sum_keepdim(1)?.sqrt()?;
    let unit = rows.broadcast_div(&norms.maximum(1e-12)?)?;
    Ok((unit, norms))
}

/// From the gradient by normalized rows to that by the rows: (g − (g·x̂) x̂) / |x|.
pub(crate) fn through_normalization(grad: &Tensor, unit: &Tensor, norms: &Tensor) -> Result<Tensor> {
    let along = (grad * unit)?.sum_keepdim(1)?;
    Ok((grad - unit.broadcast_mul(&along)?)?.broadcast_div(&norms.maximum(1e-12)?)?)
}

/// A LayerNorm without weights of rows [n, d], and one over each row's deviation [n, 1].
pub(crate) fn standardized(rows: &Tensor) -> Result<(Tensor, Tensor)> {
    let centered = rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    let inverse = (variance + LAYER_NORM_EPSILON)?.sqrt()?.recip()?;
    Ok((centered.broadcast_mul(&inverse)?, inverse))
}

/// From the gradient by standardized rows to that by the rows: (g − mean(g) − x̂ · mean(g ∘ x̂)) / deviation.
pub(crate) fn through_standardization(grad: &Tensor, standardized: &Tensor, inverse: &Tensor) -> Result<Tensor> {
    let along = (grad * standardized)?.mean_keepdim(D::Minus1)?;
    let inner = grad
        .broadcast_sub(&grad.mean_keepdim(D::Minus1)?)?
        .sub(&standardized.broadcast_mul(&along)?)?;
    Ok(inner.broadcast_mul(inverse)?)
}

/// GELU with the error function, x·Φ(x), and its derivative Φ(x) + x·φ(x), both in the dtype of x.
pub(crate) fn gelu_with_slope(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let dtype = x.dtype();
    let wide = x.to_dtype(DType::F32)?;
    let cumulative = ((&wide * std::f64::consts::FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5))?;
    let density =
        ((wide.sqr()? * -0.5)?.exp()? * (0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2))?;
    let activated = (&wide * &cumulative)?;
    let slope = (cumulative + (wide * density)?)?;
    Ok((activated.to_dtype(dtype)?, slope.to_dtype(dtype)?))
}
