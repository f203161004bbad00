//! LoRA's correction of a linear layer (Hu et al., 2021): y += scale · dropout(x)·Aᵀ·Bᵀ.

use std::ops::Range;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::row_masks::{RowMasks, mask_rows};
use super::{Form, Values, edit, fused, rows_per_chunk};
use crate::Result;
use crate::llink::kernels::add;
use crate::llink::matrix::{Matrix, Target, matmul, matmul_add};

/// The two thin matrices of one layer: A [rank, in] and B [out, rank], in f32; as tensors, in what the model computes in.
pub(crate) struct LowRank {
    pub(crate) form: Form,
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    /// alpha / rank.
    pub(crate) scale: f32,
    /// What the correction does not see of x, a mask for each row.
    pub(crate) dropout: Option<RowMasks>,
}

/// Where the gradient by a layer's adapter goes.
pub(crate) enum AdapterGradient<'a> {
    /// Added to the layer's part of a buffer on the host.
    Slices(&'a mut [f32]),
    /// Kept on the device, one piece for each matrix: where in the layer's part it lies, and its values in f32.
    Tensors(&'a mut Vec<(Range<usize>, Tensor)>),
}

impl AdapterGradient<'_> {
    fn add(&mut self, place: Range<usize>, values: &Tensor) -> Result<()> {
        let values = values.flatten_all()?.to_dtype(DType::F32)?;
        match self {
            Self::Slices(gradient) => add(&mut gradient[place], &values.to_vec1::<f32>()?),
            Self::Tensors(pieces) => pieces.push((place, values)),
        }
        Ok(())
    }
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

    /// Adds the gradients by A and B, which lie one after the other at `place`, to `gradient`, and returns `by_x` with the
    /// correction's part of the gradient by x. `by` [T, out] is the gradient by y. Takes `by_x` over.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        by: &Tensor,
        by_x: Tensor,
        place: Range<usize>,
        gradient: &mut AdapterGradient<'_>,
    ) -> Result<Tensor> {
        match gradient {
            AdapterGradient::Slices(gradient) if self.is_fused(&[x, by, &by_x]) => {
                self.backward_fused(x, by, by_x, &mut gradient[place])
            }
            gradient => self.backward_composed(x, by, &by_x, place.start, gradient),
        }
    }

    fn backward_fused(&self, x: &Tensor, by: &Tensor, by_x: Tensor, gradient: &mut [f32]) -> Result<Tensor> {
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
                mask_rows(&mut part, masks.rows(), inner);
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

    fn backward_composed(
        &self,
        x: &Tensor,
        by: &Tensor,
        by_x: &Tensor,
        start: usize,
        gradient: &mut AdapterGradient<'_>,
    ) -> Result<Tensor> {
        let by = (by.to_dtype(self.a.dtype())? * f64::from(self.scale))?;
        let dropped = self.dropped(x)?;
        let thin = dropped.matmul(&self.a.t()?)?;
        let by_thin = by.matmul(&self.b)?;
        let middle = start + self.a.elem_count();
        gradient.add(start..middle, &by_thin.t()?.matmul(&dropped)?)?;
        gradient.add(middle..middle + self.b.elem_count(), &by.t()?.matmul(&thin)?)?;
        let part = self.masked(by_thin.matmul(&self.a)?)?;
        Ok((by_x + part.to_dtype(by_x.dtype())?)?)
    }

    fn is_fused(&self, others: &[&Tensor]) -> bool {
        fused(self.form, others) && fused(self.form, &[&self.a, &self.b])
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

    /// dropout(x) in the matrices' dtype.
    fn dropped(&self, x: &Tensor) -> Result<Tensor> {
        self.masked(x.to_dtype(self.a.dtype())?)
    }

    /// x times its masks.
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
    use crate::train::dropout::{Dropout, RowMask};
    use candle_core::Var;
    use std::sync::Arc;

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
            let mut low_rank = LowRank {
                form: Form::Slices,
                a: random(rank, inner, 4),
                b: random(outer, rank, 5),
                scale: 0.75,
                dropout: masks.map(|masks| RowMasks::new(masks, x.device()).unwrap()),
            };
            let vars = [&x, &low_rank.a, &low_rank.b].map(|x| Var::from_tensor(x).unwrap());
            let out = definition(&vars[0], &vars[1], &vars[2], 0.75, &factors);
            let expected = (&y + &out).unwrap().detach();
            let graph = (out * &by).unwrap().sum_all().unwrap().backward().unwrap();
            let expected_by_x = (&by_x + graph.get(&vars[0]).unwrap()).unwrap();

            let found = low_rank.add_to(y.copy().unwrap(), &x).unwrap();
            assert!(relative_error(&found, &expected) < 1e-5);
            let mut gradient = vec![1f32; rank * (inner + outer)];
            let whole = 0..gradient.len();
            let mut into = AdapterGradient::Slices(&mut gradient);
            let fused = low_rank
                .backward(&x, &by, by_x.copy().unwrap(), whole.clone(), &mut into)
                .unwrap();
            low_rank.form = Form::Tensors;
            let found = low_rank.add_to(y.copy().unwrap(), &x).unwrap();
            assert!(relative_error(&found, &expected) < 1e-5);
            let mut second = vec![1f32; rank * (inner + outer)];
            let mut pieces = Vec::new();
            let mut into = AdapterGradient::Tensors(&mut pieces);
            let composed = low_rank
                .backward(&x, &by, by_x.copy().unwrap(), whole, &mut into)
                .unwrap();
            for (place, values) in pieces {
                add(&mut second[place], &values.to_vec1::<f32>().unwrap());
            }
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
