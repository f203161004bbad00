//! LoRA's correction of a linear layer (Hu et al., 2021): y += scale · dropout(x)·Aᵀ·Bᵀ.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::{Values, edit, fused, rows_per_chunk};
use crate::Result;
use crate::llink::kernels::add;
use crate::llink::matrix::{Matrix, Target, matmul, matmul_add};
use crate::train::dropout::RowMask;

/// The two thin matrices of one layer: A [rank, in] and B [out, rank], f32 in every case.
pub(crate) struct LowRank {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    /// alpha / rank.
    pub(crate) scale: f32,
    /// What the correction does not see of x, a mask for each row.
    pub(crate) dropout: Option<Arc<[RowMask]>>,
}

impl LowRank {
    /// y + correction of x: x [T, in], y [T, out]. Takes y over: nobody else may hold its values.
    pub(crate) fn add_to(&self, y: Tensor, x: &Tensor) -> Result<Tensor> {
        if !self.is_fused(&[x, &y]) {
            let thin = self.dropped(x)?.matmul(&self.a.t()?)?;
            let correction = (thin.matmul(&self.b.t()?)? * f64::from(self.scale))?;
            return Ok((&y + correction.to_dtype(y.dtype())?)?);
        }
        let thin = self.thin(x)?;
        let (rank, outer, rows) = (self.a.dim(0)?, self.b.dim(0)?, x.dim(0)?);
        let b = Values::of(&self.b)?;
        let b = Matrix::new(b.get()?, outer, rank).transposed();
        edit(&y, |y| {
            matmul_add(Matrix::new(&thin, rows, rank), b, Target::new(y, outer), self.scale);
        })?;
        Ok(y)
    }

    /// Adds the gradients by A and B, one after the other, to `gradient`, and returns `by_x` with the correction's part of the
    /// gradient by x. `by` [T, out] is the gradient by y. Takes `by_x` over.
    pub(crate) fn backward(&self, x: &Tensor, by: &Tensor, by_x: Tensor, gradient: &mut [f32]) -> Result<Tensor> {
        if !self.is_fused(&[x, by, &by_x]) {
            return self.backward_composed(x, by, &by_x, gradient);
        }
        let (rank, outer, (rows, inner)) = (self.a.dim(0)?, self.b.dim(0)?, x.dims2()?);
        let (a, b, by) = (Values::of(&self.a)?, Values::of(&self.b)?, Values::of(by)?);
        let (a, b) = (Matrix::new(a.get()?, rank, inner), Matrix::new(b.get()?, outer, rank));
        let by = Matrix::new(by.get()?, rows, outer);
        let (by_a, by_b) = gradient.split_at_mut(rank * inner);
        // [out, T] · [T, rank]
        let thin = self.thin(x)?;
        matmul_add(
            by.transposed(),
            Matrix::new(&thin, rows, rank),
            Target::new(by_b, rank),
            self.scale,
        );
        // [T, out] · [out, rank]
        let mut by_thin = thin;
        matmul(by, b, Target::new(&mut by_thin, rank));
        let by_thin = Matrix::new(&by_thin, rows, rank);
        // [rank, T] · [T, in]
        let dropped = self.dropped(x)?;
        let dropped = Values::of(&dropped)?;
        matmul_add(
            by_thin.transposed(),
            Matrix::new(dropped.get()?, rows, inner),
            Target::new(by_a, inner),
            self.scale,
        );
        // [T, rank] · [rank, in]
        match &self.dropout {
            None => edit(&by_x, |by_x| {
                matmul_add(by_thin, a, Target::new(by_x, inner), self.scale);
            })?,
            Some(masks) => {
                let mut part = vec![0f32; rows * inner];
                matmul_add(by_thin, a, Target::new(&mut part, inner), self.scale);
                mask_rows(&mut part, masks, inner);
                edit(&by_x, |by_x| {
                    let chunk = rows_per_chunk(inner) * inner;
                    by_x.par_chunks_mut(chunk)
                        .zip(part.par_chunks(chunk))
                        .for_each(|(by_x, part)| add(by_x, part));
                })?;
            }
        }
        Ok(by_x)
    }

    fn backward_composed(&self, x: &Tensor, by: &Tensor, by_x: &Tensor, gradient: &mut [f32]) -> Result<Tensor> {
        let scale = f64::from(self.scale);
        let by = (by.to_dtype(DType::F32)? * scale)?;
        let dropped = self.dropped(x)?;
        let thin = dropped.matmul(&self.a.t()?)?;
        let by_thin = by.matmul(&self.b)?;
        let by_a: Vec<f32> = by_thin.t()?.matmul(&dropped)?.flatten_all()?.to_vec1()?;
        let by_b: Vec<f32> = by.t()?.matmul(&thin)?.flatten_all()?.to_vec1()?;
        let (into_a, into_b) = gradient.split_at_mut(by_a.len());
        add(into_a, &by_a);
        add(into_b, &by_b);
        let part = self.masked(&by_thin.matmul(&self.a)?)?;
        Ok((by_x + part.to_dtype(by_x.dtype())?)?)
    }

    fn is_fused(&self, others: &[&Tensor]) -> bool {
        fused(others) && fused(&[&self.a, &self.b])
    }

    /// dropout(x)·Aᵀ [T, rank].
    fn thin(&self, x: &Tensor) -> Result<Vec<f32>> {
        let (rank, (rows, inner)) = (self.a.dim(0)?, x.dims2()?);
        let dropped = self.dropped(x)?;
        let (dropped, a) = (Values::of(&dropped)?, Values::of(&self.a)?);
        let mut thin = vec![0f32; rows * rank];
        matmul(
            Matrix::new(dropped.get()?, rows, inner),
            Matrix::new(a.get()?, rank, inner).transposed(),
            Target::new(&mut thin, rank),
        );
        Ok(thin)
    }

    /// dropout(x) in f32.
    fn dropped(&self, x: &Tensor) -> Result<Tensor> {
        self.masked(&x.to_dtype(DType::F32)?)
    }

    /// x times its masks.
    fn masked(&self, x: &Tensor) -> Result<Tensor> {
        let Some(masks) = &self.dropout else {
            return Ok(x.clone());
        };
        let width = x.dim(1)?;
        if fused(&[x]) {
            let mut values = Values::of(x)?.get()?.to_vec();
            mask_rows(&mut values, masks, width);
            return Ok(Tensor::from_vec(values, x.shape(), x.device())?);
        }
        let mut factors = vec![1f32; x.elem_count()];
        mask_rows(&mut factors, masks, width);
        Ok((x * Tensor::from_vec(factors, x.shape(), x.device())?)?)
    }
}

fn mask_rows(values: &mut [f32], masks: &[RowMask], width: usize) {
    let rows = rows_per_chunk(width);
    values
        .par_chunks_mut(rows * width)
        .zip(masks.par_chunks(rows))
        .for_each(|(values, masks)| {
            for (row, mask) in values.chunks_exact_mut(width).zip(masks) {
                mask.apply(row);
            }
        });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;
    use crate::train::dropout::Dropout;
    use candle_core::Var;

    /// The correction by tensor operations, inside a graph.
    fn definition(x: &Tensor, a: &Tensor, b: &Tensor, scale: f32, factors: &Tensor) -> Tensor {
        let thin = (x * factors).unwrap().matmul(&a.t().unwrap()).unwrap();
        (thin.matmul(&b.t().unwrap()).unwrap() * f64::from(scale)).unwrap()
    }

    #[test]
    fn both_forms_follow_the_definition_and_its_gradients() {
        let (rows, inner, outer, rank) = (37, 48, 33, 4);
        let dropout = Dropout::new(0.25, 5, 9);
        let masks: Arc<[RowMask]> = (0..rows as u64).map(|row| dropout.row(row)).collect();
        for masks in [None, Some(masks)] {
            let (x, y, by) = (random(rows, inner, 1), random(rows, outer, 2), random(rows, outer, 3));
            let by_x = random(rows, inner, 6);
            let mut factors = vec![1f32; rows * inner];
            masks.iter().for_each(|masks| mask_rows(&mut factors, masks, inner));
            let factors = Tensor::from_vec(factors, (rows, inner), x.device()).unwrap();
            let low_rank = LowRank {
                a: random(rank, inner, 4),
                b: random(outer, rank, 5),
                scale: 0.75,
                dropout: masks,
            };
            let vars = [&x, &low_rank.a, &low_rank.b].map(|x| Var::from_tensor(x).unwrap());
            let out = definition(&vars[0], &vars[1], &vars[2], 0.75, &factors);
            let expected = (&y + &out).unwrap().detach();
            let graph = (out * &by).unwrap().sum_all().unwrap().backward().unwrap();
            let expected_by_x = (&by_x + graph.get(&vars[0]).unwrap()).unwrap();

            let found = low_rank.add_to(y.copy().unwrap(), &x).unwrap();
            assert!(relative_error(&found, &expected) < 1e-5);
            let mut gradient = vec![1f32; rank * (inner + outer)];
            let fused = low_rank.backward(&x, &by, by_x.copy().unwrap(), &mut gradient).unwrap();
            let mut second = vec![1f32; rank * (inner + outer)];
            let composed = low_rank.backward_composed(&x, &by, &by_x, &mut second).unwrap();
            for (by_x, gradient) in [(fused, gradient), (composed, second)] {
                assert!(relative_error(&by_x, &expected_by_x) < 1e-5);
                let (by_a, by_b) = gradient.split_at(rank * inner);
                for (found, var) in [(by_a, &vars[1]), (by_b, &vars[2])] {
                    let expected = (graph.get(var).unwrap() + 1.0).unwrap();
                    let found = Tensor::from_slice(found, expected.shape(), x.device()).unwrap();
                    assert!(relative_error(&found, &expected) < 1e-5);
                }
            }
        }
    }
}
