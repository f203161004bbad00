//! A linear map whose weights never change.

use candle_core::{D, Device, Tensor};

use super::product::FrozenMatrix;
use super::{fused, values};
use crate::Result;

/// The map x·Wᵀ + b with a frozen weight W `[out, in]` and an optional bias b `[out]`.
pub(crate) struct FrozenLinear {
    weight: Weight,
    bias: Option<Tensor>,
}

enum Weight {
    /// The weight on the CPU, for f32 inputs.
    Host(FrozenMatrix),
    /// The weight on any other device, or for inputs in its own dtype.
    Tensor(Tensor),
}

impl FrozenLinear {
    /// Takes a weight `[out, in]` and a bias `[out]`.
    #[cfg(test)]
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        use super::product::{Precision, Stored};
        use candle_core::DType;
        use std::sync::Arc;

        if !(weight.device().is_cpu() && weight.dtype() == DType::F32) {
            return Ok(Self::of_tensor(weight, bias));
        }
        let (outer, inner) = weight.dims2()?;
        let values = Stored::F32(Arc::new(weight.flatten_all()?.to_vec1()?));
        Ok(Self::from_matrix(FrozenMatrix::new(values, outer, inner, Precision::F32), bias))
    }

    /// Takes a weight `[out, in]` that stays a tensor, and a bias `[out]`.
    pub(crate) fn of_tensor(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Tensor(weight), bias }
    }

    /// Takes a matrix `[out, in]` on the CPU and an f32 bias `[out]`.
    pub(crate) fn from_matrix(weight: FrozenMatrix, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Host(weight), bias }
    }

    /// Maps x `[T, in]` to `[T, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Weight::Host(matrix) = &self.weight
            && fused(&[x])
            && self.bias.as_ref().is_none_or(|bias| fused(&[bias]))
            && x.dim(D::Minus1)? == matrix.inner()
        {
            let bias = self.bias.as_ref().map(values).transpose()?;
            let out = matrix.product(&values(x)?, bias.as_deref());
            return Ok(Tensor::from_vec(out, (x.dim(0)?, matrix.outer()), x.device())?);
        }
        let product = x.matmul(&self.weight()?.t()?)?;
        match &self.bias {
            Some(bias) => Ok(product.broadcast_add(bias)?),
            None => Ok(product),
        }
    }

    /// Returns the gradient of x `[T, in]` from that of x·Wᵀ `[T, out]`. W has no gradient.
    pub(crate) fn input_gradient(&self, grad: &Tensor) -> Result<Tensor> {
        if let Weight::Host(matrix) = &self.weight
            && fused(&[grad])
            && grad.dim(D::Minus1)? == matrix.outer()
        {
            let out = matrix.gradient(&values(grad)?);
            return Ok(Tensor::from_vec(out, (grad.dim(0)?, matrix.inner()), grad.device())?);
        }
        Ok(grad.matmul(&self.weight()?)?)
    }

    /// Returns W as a tensor. A mapped W is copied.
    fn weight(&self) -> Result<Tensor> {
        match &self.weight {
            Weight::Tensor(weight) => Ok(weight.clone()),
            Weight::Host(matrix) => {
                Ok(Tensor::from_vec(matrix.values(), (matrix.outer(), matrix.inner()), &Device::Cpu)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;

    #[test]
    fn the_fused_product_agrees_with_the_composed_one() {
        for (rows, inner, outer) in [(1, 5, 3), (2, 96, 33), (70, 64, 256), (513, 40, 17)] {
            let (x, weight) = (random(rows, inner, 1), random(outer, inner, 2));
            let bias = random(1, outer, 3).squeeze(0).unwrap();
            let product = x.matmul(&weight.t().unwrap()).unwrap();
            let plain = FrozenLinear::new(weight.clone(), None).unwrap().forward(&x).unwrap();
            assert!(relative_error(&plain, &product) < 1e-5);
            let biased = FrozenLinear::new(weight, Some(bias.clone())).unwrap();
            let expected = product.broadcast_add(&bias).unwrap();
            assert!(relative_error(&biased.forward(&x).unwrap(), &expected) < 1e-5);
        }
    }

    #[test]
    fn the_inputs_gradient_is_that_of_the_product() {
        let (weight, grad) = (random(9, 12, 2), random(7, 9, 3));
        let linear = FrozenLinear::new(weight.clone(), None).unwrap();
        let expected = grad.matmul(&weight).unwrap();
        assert!(relative_error(&linear.input_gradient(&grad).unwrap(), &expected) < 1e-5);
        let strided = grad.t().unwrap().contiguous().unwrap().t().unwrap();
        assert!(relative_error(&linear.input_gradient(&strided).unwrap(), &expected) < 1e-5);
    }

    #[test]
    fn a_misshapen_input_is_refused() {
        let linear = FrozenLinear::new(random(9, 12, 2), None).unwrap();
        assert!(linear.forward(&random(7, 13, 1)).is_err());
    }
}
