//! A linear map whose weights never change.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, D, Layout, Shape, Storage, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

use super::{Values, fused};
use crate::Result;

/// x·Wᵀ + b with frozen weight W [out, in] and optional bias b [out]. The gradient flows to x only.
pub(crate) struct FrozenLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl FrozenLinear {
    /// From a weight [out, in] and a bias [out].
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// x [T, in] → [T, out].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if fused(&[x, &self.weight]) && self.bias.as_ref().is_none_or(|bias| fused(&[bias])) {
            return self.forward_fused(x);
        }
        let product = if x.track_op() {
            x.apply_op1_arc(Arc::new(Box::new(InputGradientOnly {
                weight: self.weight.clone(),
            })))?
        } else {
            x.matmul(&self.weight.t()?)?
        };
        match &self.bias {
            Some(bias) => Ok(product.broadcast_add(bias)?),
            None => Ok(product),
        }
    }

    /// The gradient by x [T, in] from that by x·Wᵀ [T, out].
    pub(crate) fn input_gradient(&self, by: &Tensor) -> Result<Tensor> {
        Ok(by.matmul(&self.weight)?)
    }

    fn forward_fused(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, inner) = x.dims2()?;
        let (outer, weight_inner) = self.weight.dims2()?;
        if inner != weight_inner {
            // Let the tensor library say it in its own words.
            return Ok(x.matmul(&self.weight.t()?)?);
        }
        let (x_values, weight) = (Values::of(x)?, Values::of(&self.weight)?);
        let (x_values, weight) = (x_values.get()?, weight.get()?);
        let mut out: Vec<f32> = Vec::with_capacity(rows * outer);
        if let Some(bias) = &self.bias {
            let bias = Values::of(bias)?;
            let bias = bias.get()?;
            out.resize(rows * outer, 0.0);
            out.par_chunks_mut(outer * super::rows_per_chunk(outer))
                .for_each(|rows| {
                    rows.chunks_exact_mut(outer).for_each(|row| row.copy_from_slice(bias));
                });
        }
        let accumulate = self.bias.is_some();
        // SAFETY: x is rows × inner and the weight outer × inner, both contiguous; out has room for rows × outer values,
        // which gemm writes all, reading them first only when the bias has filled them.
        unsafe {
            gemm::gemm(
                rows,
                outer,
                inner,
                out.as_mut_ptr(),
                1,
                outer as isize,
                accumulate,
                x_values.as_ptr(),
                1,
                inner as isize,
                weight.as_ptr(),
                inner as isize,
                1,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::Rayon(rayon::current_num_threads()),
            );
            out.set_len(rows * outer);
        }
        Ok(Tensor::from_vec(out, (rows, outer), x.device())?)
    }
}

/// x·Wᵀ inside a gradient graph, without the weight's gradient.
struct InputGradientOnly {
    weight: Tensor,
}

impl InputGradientOnly {
    fn sizes(&self, x: &Layout) -> candle_core::Result<(usize, usize, usize, usize)> {
        let (outer, inner) = self.weight.dims2()?;
        let rows = x.shape().elem_count() / inner;
        Ok((1, rows, outer, inner))
    }

    fn shape(&self, x: &Layout) -> candle_core::Result<Shape> {
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.weight.dim(0)?;
        }
        Ok(dims.into())
    }
}

impl CustomOp1 for InputGradientOnly {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let transposed = self.weight.t()?;
        let (weight, weight_layout) = transposed.storage_and_layout();
        match &*weight {
            Storage::Cpu(weight) => Ok((
                x.matmul(weight, self.sizes(layout)?, layout, weight_layout)?,
                self.shape(layout)?,
            )),
            _ => Err(candle_core::Error::Msg(
                "input on the CPU, weight on another device".into(),
            )),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let transposed = self.weight.t()?;
        let (weight, weight_layout) = transposed.storage_and_layout();
        match &*weight {
            Storage::Cuda(weight) => Ok((
                x.matmul(weight, self.sizes(layout)?, layout, weight_layout)?,
                self.shape(layout)?,
            )),
            _ => Err(candle_core::Error::Msg(
                "input on a GPU, weight on another device".into(),
            )),
        }
    }

    fn bwd(&self, _x: &Tensor, _out: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (outer, inner) = self.weight.dims2()?;
        let mut dims = gradient.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = inner;
        }
        let rows = gradient.elem_count() / gradient.dim(D::Minus1)?;
        Ok(Some(
            gradient.reshape((rows, outer))?.matmul(&self.weight)?.reshape(dims)?,
        ))
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
            let plain = FrozenLinear::new(weight.clone(), None).forward(&x).unwrap();
            assert!(relative_error(&plain, &product) < 1e-5);
            let biased = FrozenLinear::new(weight, Some(bias.clone())).forward(&x).unwrap();
            assert!(relative_error(&biased, &product.broadcast_add(&bias).unwrap()) < 1e-5);
        }
    }

    #[test]
    fn the_gradient_reaches_the_input() {
        let (x, weight, pull) = (random(7, 12, 1), random(9, 12, 2), random(7, 9, 3));
        let var = Var::from_tensor(&x).unwrap();
        let out = FrozenLinear::new(weight.clone(), None)
            .forward(var.as_tensor())
            .unwrap();
        let gradients = (out * &pull).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = pull.matmul(&weight).unwrap();
        assert!(relative_error(gradients.get(&var).unwrap(), &expected) < 1e-5);
    }
}
