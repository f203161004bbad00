//! A linear map whose weights never change.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, D, DType, Layout, Shape, Storage, Tensor};

use super::product::{FrozenMatrix, Precision, Stored};
use super::{Values, contiguous, fused};
use crate::Result;

/// x·Wᵀ + b with frozen weight W [out, in] and optional bias b [out]. The gradient flows to x only.
pub(crate) struct FrozenLinear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Clone)]
enum Weight {
    /// On the CPU, for f32 inputs.
    Host(Arc<FrozenMatrix>),
    /// Anywhere else, or in the inputs' own dtype.
    Tensor(Tensor),
}

impl FrozenLinear {
    /// From a weight [out, in] and a bias [out].
    ///
    /// # Errors
    /// When the weight is not a matrix.
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        if !(weight.device().is_cpu() && weight.dtype() == DType::F32) {
            let weight = Weight::Tensor(weight);
            return Ok(Self { weight, bias });
        }
        let (outer, inner) = weight.dims2()?;
        let values = Stored::F32(Arc::new(weight.flatten_all()?.to_vec1()?));
        Ok(Self::from_matrix(
            FrozenMatrix::new(values, outer, inner, Precision::F32),
            bias,
        ))
    }

    /// On the CPU, from a matrix [out, in] and an f32 bias [out].
    pub(crate) fn from_matrix(weight: FrozenMatrix, bias: Option<Tensor>) -> Self {
        let weight = Weight::Host(Arc::new(weight));
        Self { weight, bias }
    }

    /// The weight on slices, when it is on the CPU.
    pub(crate) fn matrix(&self) -> Option<&FrozenMatrix> {
        match &self.weight {
            Weight::Host(matrix) => Some(matrix),
            Weight::Tensor(_) => None,
        }
    }

    /// x [T, in] → [T, out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(matrix) = self.matrix()
            && fused(&[x])
            && self.bias.as_ref().is_none_or(|bias| fused(&[bias]))
            && x.dim(D::Minus1)? == matrix.inner()
        {
            return self.forward_fused(x, matrix);
        }
        let product = match &self.weight {
            Weight::Tensor(weight) if !x.track_op() => x.matmul(&weight.t()?)?,
            weight => x.apply_op1_arc(Arc::new(Box::new(InputGradientOnly { weight: weight.clone() })))?,
        };
        match &self.bias {
            Some(bias) => Ok(product.broadcast_add(bias)?),
            None => Ok(product),
        }
    }

    fn forward_fused(&self, x: &Tensor, matrix: &FrozenMatrix) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(Values::of).transpose()?;
        let bias = bias.as_ref().map(Values::get).transpose()?;
        let out = matrix.product(Values::of(x)?.get()?, bias);
        Ok(Tensor::from_vec(out, (x.dim(0)?, matrix.outer()), x.device())?)
    }
}

/// x·Wᵀ inside a gradient graph, without the weight's gradient.
struct InputGradientOnly {
    weight: Weight,
}

impl InputGradientOnly {
    /// (out, in).
    fn dims(&self) -> candle_core::Result<(usize, usize)> {
        match &self.weight {
            Weight::Host(matrix) => Ok((matrix.outer(), matrix.inner())),
            Weight::Tensor(weight) => weight.dims2(),
        }
    }

    /// (batch, rows, out, in) of the product with x.
    fn sizes(&self, x: &Layout) -> candle_core::Result<(usize, usize, usize, usize)> {
        let (outer, inner) = self.dims()?;
        if x.dims().last() != Some(&inner) {
            let dims = x.dims();
            return Err(candle_core::Error::Msg(format!(
                "input {dims:?} for a linear map of {inner} values"
            )));
        }
        Ok((1, x.shape().elem_count() / inner, outer, inner))
    }

    fn shape(&self, x: &Layout) -> candle_core::Result<Shape> {
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.dims()?.0;
        }
        Ok(dims.into())
    }
}

fn elsewhere() -> candle_core::Error {
    candle_core::Error::Msg("input and frozen weight differ in device or dtype".into())
}

impl CustomOp1 for InputGradientOnly {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (sizes, shape) = (self.sizes(layout)?, self.shape(layout)?);
        match (&self.weight, x) {
            (Weight::Host(matrix), CpuStorage::F32(x)) => {
                let out = matrix.product(&x[contiguous(layout)?], None);
                Ok((CpuStorage::F32(out), shape))
            }
            (Weight::Tensor(weight), x) => {
                let transposed = weight.t()?;
                let (weight, weight_layout) = transposed.storage_and_layout();
                match &*weight {
                    Storage::Cpu(weight) => Ok((x.matmul(weight, sizes, layout, weight_layout)?, shape)),
                    _ => Err(elsewhere()),
                }
            }
            _ => Err(elsewhere()),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let Weight::Tensor(weight) = &self.weight else {
            return Err(elsewhere());
        };
        let transposed = weight.t()?;
        let (weight, weight_layout) = transposed.storage_and_layout();
        match &*weight {
            Storage::Cuda(weight) => Ok((
                x.matmul(weight, self.sizes(layout)?, layout, weight_layout)?,
                self.shape(layout)?,
            )),
            _ => Err(elsewhere()),
        }
    }

    fn bwd(&self, _x: &Tensor, _out: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (outer, inner) = self.dims()?;
        let mut dims = gradient.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = inner;
        }
        let gradient = gradient.contiguous()?.reshape((gradient.elem_count() / outer, outer))?;
        let pulled = match &self.weight {
            Weight::Tensor(weight) => gradient.matmul(weight)?,
            Weight::Host(matrix) => {
                let values = Values::of(&gradient).map_err(candle_core::Error::wrap)?;
                let out = matrix.gradient(values.get().map_err(candle_core::Error::wrap)?);
                Tensor::from_vec(out, (gradient.dim(0)?, inner), gradient.device())?
            }
        };
        Ok(Some(pulled.reshape(dims)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;
    use candle_core::Var;

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
    fn the_gradient_reaches_the_input() {
        let (x, weight, pull) = (random(7, 12, 1), random(9, 12, 2), random(7, 9, 3));
        let var = Var::from_tensor(&x).unwrap();
        let linear = FrozenLinear::new(weight.clone(), None).unwrap();
        let out = linear.forward(var.as_tensor()).unwrap();
        let gradients = (out * &pull).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = pull.matmul(&weight).unwrap();
        assert!(relative_error(gradients.get(&var).unwrap(), &expected) < 1e-5);
    }

    #[test]
    fn a_misshapen_input_is_refused() {
        let linear = FrozenLinear::new(random(9, 12, 2), None).unwrap();
        assert!(linear.forward(&random(7, 13, 1)).is_err());
    }
}
