//! The correction of a linear layer by LoRA (Hu et al., 2021): y += scale · dropout(x)·Aᵀ·Bᵀ.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::row_masks::{RowMasks, mask_rows};
use super::{edit, fused, values};
use crate::Result;
use crate::numerics::kernels::add;
use crate::numerics::matrix::{Matrix, Target, matmul, matmul_add};

const CHUNK: usize = 1 << 14;

/// The low-rank matrices of one layer, A `[rank, in]` and B `[out, rank]`, in the model's dtype.
pub(crate) struct LowRank {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    /// The scale, alpha / rank.
    pub(crate) scale: f32,
    /// The dropout of x, with a mask for each row.
    pub(crate) dropout: Option<RowMasks>,
}

/// The result of [`LowRank::backward`].
pub(crate) struct LowRankGradient {
    /// The gradient of x, including that of the frozen layer, `[T, in]`.
    pub(crate) grad_x: Tensor,
    /// The gradient of A, `[rank, in]`, f32.
    pub(crate) grad_a: Tensor,
    /// The gradient of B, `[out, rank]`, f32.
    pub(crate) grad_b: Tensor,
}

impl LowRank {
    /// Adds the correction of x `[T, in]` to y `[T, out]`. It consumes y, whose values nothing else may share.
    pub(crate) fn add_to(&self, y: Tensor, x: &Tensor) -> Result<Tensor> {
        if !self.is_fused(&[x, &y]) {
            let thin = self.dropped(x)?.matmul(&self.a.t()?)?;
            let correction = (thin.matmul(&self.b.t()?)? * f64::from(self.scale))?;
            return Ok((&y + correction.to_dtype(y.dtype())?)?);
        }
        let thin = self.thin(x)?;
        let (rank, outer, rows) = (self.a.dim(0)?, self.b.dim(0)?, x.dim(0)?);
        let b = values(&self.b)?;
        let b = Matrix::new(&b, outer, rank).transposed();
        edit(&y, |y| {
            matmul_add(Matrix::new(&thin, rows, rank), b, Target::new(y, outer), self.scale);
        })?;
        Ok(y)
    }

    /// Returns the gradients of A and B, and adds the correction's part of the gradient of x to `grad_x`. `grad`
    /// `[T, out]` is the gradient of y. It consumes `grad_x`, whose values nothing else may share.
    pub(crate) fn backward(&self, x: &Tensor, grad: &Tensor, grad_x: Tensor) -> Result<LowRankGradient> {
        match self.is_fused(&[x, grad, &grad_x]) {
            true => self.backward_fused(x, grad, grad_x),
            false => self.backward_composed(x, grad, &grad_x),
        }
    }

    fn backward_fused(&self, x: &Tensor, grad: &Tensor, grad_x: Tensor) -> Result<LowRankGradient> {
        let (rank, outer, (rows, inner)) = (self.a.dim(0)?, self.b.dim(0)?, x.dims2()?);
        let (a, b, grad) = (values(&self.a)?, values(&self.b)?, values(grad)?);
        let (a, b) = (Matrix::new(&a, rank, inner), Matrix::new(&b, outer, rank));
        let grad = Matrix::new(&grad, rows, outer);
        let (mut grad_a, mut grad_b) = (vec![0f32; rank * inner], vec![0f32; outer * rank]);
        // [out, T] · [T, rank]
        let thin = self.thin(x)?;
        matmul_add(grad.transposed(), Matrix::new(&thin, rows, rank), Target::new(&mut grad_b, rank), self.scale);
        // [T, out] · [out, rank]
        let mut grad_thin = thin;
        matmul(grad, b, Target::new(&mut grad_thin, rank));
        let grad_thin = Matrix::new(&grad_thin, rows, rank);
        // [rank, T] · [T, in]
        let dropped = self.dropped(x)?;
        let dropped = values(&dropped)?;
        let dropped = Matrix::new(&dropped, rows, inner);
        matmul_add(grad_thin.transposed(), dropped, Target::new(&mut grad_a, inner), self.scale);
        // [T, rank] · [rank, in]
        match &self.dropout {
            None => edit(&grad_x, |grad_x| {
                matmul_add(grad_thin, a, Target::new(grad_x, inner), self.scale);
            })?,
            Some(masks) => {
                let mut part = vec![0f32; rows * inner];
                matmul_add(grad_thin, a, Target::new(&mut part, inner), self.scale);
                mask_rows(&mut part, masks.rows(), inner);
                edit(&grad_x, |grad_x| {
                    grad_x.par_chunks_mut(CHUNK).zip(part.par_chunks(CHUNK)).for_each(|(sum, part)| add(sum, part));
                })?;
            }
        }
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok(LowRankGradient { grad_a: tensor(grad_a, &self.a)?, grad_b: tensor(grad_b, &self.b)?, grad_x })
    }

    fn backward_composed(&self, x: &Tensor, grad: &Tensor, grad_x: &Tensor) -> Result<LowRankGradient> {
        let grad = (grad.to_dtype(self.a.dtype())? * f64::from(self.scale))?;
        let dropped = self.dropped(x)?;
        let thin = dropped.matmul(&self.a.t()?)?;
        let grad_thin = grad.matmul(&self.b)?;
        let part = self.masked(grad_thin.matmul(&self.a)?)?;
        Ok(LowRankGradient {
            grad_x: (grad_x + part.to_dtype(grad_x.dtype())?)?,
            grad_a: grad_thin.t()?.matmul(&dropped)?.to_dtype(DType::F32)?,
            grad_b: grad.t()?.matmul(&thin)?.to_dtype(DType::F32)?,
        })
    }

    fn is_fused(&self, others: &[&Tensor]) -> bool {
        fused(others) && fused(&[&self.a, &self.b])
    }

    /// Computes dropout(x)·Aᵀ `[T, rank]`.
    fn thin(&self, x: &Tensor) -> Result<Vec<f32>> {
        let (rank, (rows, inner)) = (self.a.dim(0)?, x.dims2()?);
        let dropped = self.dropped(x)?;
        let (dropped, a) = (values(&dropped)?, values(&self.a)?);
        let mut thin = vec![0f32; rows * rank];
        let a = Matrix::new(&a, rank, inner).transposed();
        matmul(Matrix::new(&dropped, rows, inner), a, Target::new(&mut thin, rank));
        Ok(thin)
    }

    /// Computes dropout(x) in the matrices' dtype.
    fn dropped(&self, x: &Tensor) -> Result<Tensor> {
        self.masked(x.to_dtype(self.a.dtype())?)
    }

    fn masked(&self, x: Tensor) -> Result<Tensor> {
        match &self.dropout {
            Some(masks) => masks.apply(&x),
            None => Ok(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;
    use crate::numerics::dropout::{Dropout, RowMask};
    use candle_core::Var;
    use std::sync::Arc;

    /// Computes the correction by tensor operations with gradients.
    fn definition(x: &Tensor, a: &Tensor, b: &Tensor, scale: f32, factors: &Tensor) -> Tensor {
        let thin = (x * factors).unwrap().matmul(&a.t().unwrap()).unwrap();
        (thin.matmul(&b.t().unwrap()).unwrap() * f64::from(scale)).unwrap()
    }

    #[test]
    fn both_ways_follow_the_definition_and_its_gradients() {
        let (rows, inner, outer, rank) = (37, 48, 33, 4);
        let dropout = Dropout::new(0.25, 5, 9);
        let masks: Arc<[RowMask]> = (0..rows as u64).map(|row| dropout.row(row)).collect();
        for masks in [None, Some(masks)] {
            let (x, y, grad) = (random(rows, inner, 1), random(rows, outer, 2), random(rows, outer, 3));
            let grad_x = random(rows, inner, 6);
            let mut factors = vec![1f32; rows * inner];
            masks.iter().for_each(|masks| mask_rows(&mut factors, masks, inner));
            let factors = Tensor::from_vec(factors, (rows, inner), x.device()).unwrap();
            let low_rank = LowRank {
                a: random(rank, inner, 4),
                b: random(outer, rank, 5),
                scale: 0.75,
                dropout: masks.map(|masks| RowMasks::new(masks, x.device()).unwrap()),
            };
            let vars = [&x, &low_rank.a, &low_rank.b].map(|x| Var::from_tensor(x).unwrap());
            let out = definition(&vars[0], &vars[1], &vars[2], 0.75, &factors);
            let expected = (&y + &out).unwrap().detach();
            let graph = (out * &grad).unwrap().sum_all().unwrap().backward().unwrap();
            let expected_by_x = (&grad_x + graph.get(&vars[0]).unwrap()).unwrap();

            // This compares the fused form and that of other devices. A strided operand uses the latter on the CPU too.
            let strided = x.t().unwrap().contiguous().unwrap().t().unwrap();
            for x in [&x, &strided] {
                let found = low_rank.add_to(y.copy().unwrap(), x).unwrap();
                assert!(relative_error(&found, &expected) < 1e-5);
            }
            let fused = low_rank.backward_fused(&x, &grad, grad_x.copy().unwrap()).unwrap();
            let composed = low_rank.backward_composed(&x, &grad, &grad_x).unwrap();
            for found in [fused, composed] {
                assert!(relative_error(&found.grad_x, &expected_by_x) < 1e-5);
                for (found, var) in [(found.grad_a, &vars[1]), (found.grad_b, &vars[2])] {
                    assert!(relative_error(&found, graph.get(var).unwrap()) < 1e-5);
                }
            }
        }
    }
}
