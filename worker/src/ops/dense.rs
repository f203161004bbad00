//! Matrix products and sums of rows in training, where both factors change from step to step.

use candle_core::{DType, Device, Tensor};

use super::{edit, fused, values};
use crate::Result;
use crate::numerics::layers::sum_columns_into;
use crate::numerics::matrix::{Existing, Matrix, Target, multiply_into};

/// Computes lhs `[m, k]` · rhs `[k, n]`. Either may be the transpose of a contiguous matrix.
pub(crate) fn matmul(lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
    let (Some(left), Some(right)) = (Factor::of(lhs)?, Factor::of(rhs)?) else {
        return Ok(lhs.matmul(rhs)?);
    };
    let (rows, columns) = (lhs.dim(0)?, rhs.dim(1)?);
    let mut out = vec![0f32; rows * columns];
    let (left_values, right_values) = (values(&left.straight)?, values(&right.straight)?);
    let (left, right) = (left.matrix(&left_values)?, right.matrix(&right_values)?);
    multiply_into(left, right, Target::new(&mut out, columns), Existing::Overwritten, 1.0);
    Ok(Tensor::from_vec(out, (rows, columns), &Device::Cpu)?)
}

/// Writes lhs `[m, k]` · rhs `[k, n]` to `into` `[m · n]`, a contiguous view in f32, or adds it there.
pub(crate) fn matmul_into(into: &Tensor, lhs: &Tensor, rhs: &Tensor, existing: Existing) -> Result<()> {
    let (Some(left), Some(right)) = (Factor::of(lhs)?, Factor::of(rhs)?) else {
        return put(into, &lhs.matmul(rhs)?, existing);
    };
    let (left_values, right_values) = (values(&left.straight)?, values(&right.straight)?);
    let (left, right, columns) = (left.matrix(&left_values)?, right.matrix(&right_values)?, rhs.dim(1)?);
    edit(into, |out| multiply_into(left, right, Target::new(out, columns), existing, 1.0))
}

/// Writes the sum of each column of `rows` `[b, d]`, or of its product with `factors` `[b, d]`, to `into` `[d]`, or
/// adds it there. `into` is a contiguous view in f32.
pub(crate) fn sum_rows_into(into: &Tensor, rows: &Tensor, factors: Option<&Tensor>, existing: Existing) -> Result<()> {
    if !fused(&[into, rows]) || !factors.is_none_or(|factors| fused(&[factors])) {
        let rows = rows.to_dtype(DType::F32)?;
        let sums = match factors {
            Some(factors) => (rows * factors)?.sum(0)?,
            None => rows.sum(0)?,
        };
        return put(into, &sums, existing);
    }
    let (rows, factors) = (values(rows)?, factors.map(values).transpose()?);
    edit(into, |sums| sum_columns_into(&rows, factors.as_deref(), sums, existing))
}

/// Replaces the values of a contiguous f32 view, or adds to them.
fn put(into: &Tensor, values: &Tensor, existing: Existing) -> Result<()> {
    let values = values.to_dtype(DType::F32)?.reshape(into.shape())?;
    let values = match existing {
        Existing::Overwritten => values,
        Existing::Kept => (into + values)?,
    };
    Ok(into.slice_set(&values, 0, 0)?)
}

/// A matrix that is contiguous, or the transpose of one.
struct Factor {
    straight: Tensor,
    is_turned: bool,
}

impl Factor {
    /// Returns `None` if the fused form does not apply.
    fn of(x: &Tensor) -> Result<Option<Self>> {
        let turned = x.t()?;
        Ok(match (fused(&[x]), fused(&[&turned])) {
            (true, _) => Some(Self { straight: x.clone(), is_turned: false }),
            (false, true) => Some(Self { straight: turned, is_turned: true }),
            (false, false) => None,
        })
    }

    fn matrix<'a>(&self, values: &'a [f32]) -> Result<Matrix<'a>> {
        let (rows, columns) = self.straight.dims2()?;
        let straight = Matrix::new(values, rows, columns);
        Ok(if self.is_turned { straight.transposed() } else { straight })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error, tracked};
    use super::*;

    #[test]
    fn products_and_their_sums_are_those_of_tensors_for_every_transposition() {
        let (m, n, k) = (37, 50, 29);
        let turned = |x: &Tensor| x.t().unwrap().contiguous().unwrap().t().unwrap();
        let (lhs, rhs) = (random(m, k, 1), random(k, n, 2));
        let expected = lhs.matmul(&rhs).unwrap();
        for (lhs, rhs) in [(lhs.clone(), rhs.clone()), (turned(&lhs), rhs.clone()), (lhs.clone(), turned(&rhs))] {
            assert!(relative_error(&matmul(&lhs, &rhs).unwrap(), &expected) < 1e-6);
            for lhs in [lhs.clone(), tracked(&lhs)] {
                let buffer = random(1, m * n + 10, 3).flatten_all().unwrap();
                let before: Vec<f32> = buffer.to_vec1().unwrap();
                let into = buffer.narrow(0, 7, m * n).unwrap();
                matmul_into(&into, &lhs, &rhs, Existing::Overwritten).unwrap();
                matmul_into(&into, &lhs, &rhs, Existing::Kept).unwrap();
                let found = into.reshape((m, n)).unwrap();
                assert!(relative_error(&found, &(&expected * 2.0).unwrap()) < 1e-6);
                let after: Vec<f32> = buffer.to_vec1().unwrap();
                assert_eq!((&after[..7], &after[7 + m * n..]), (&before[..7], &before[7 + m * n..]));
            }
        }
    }

    #[test]
    fn sums_of_rows_are_those_of_tensors() {
        for (rows, width) in [(1, 7), (33, 700)] {
            let (values, factors) = (random(rows, width, 1), random(rows, width, 2));
            for factors in [None, Some(&factors)] {
                let [fused, composed] = [values.clone(), tracked(&values)].map(|values| {
                    let buffer = Tensor::ones(width + 9, DType::F32, &Device::Cpu).unwrap();
                    let into = buffer.narrow(0, 5, width).unwrap();
                    sum_rows_into(&into, &values, factors, Existing::Overwritten).unwrap();
                    sum_rows_into(&into, &values, factors, Existing::Kept).unwrap();
                    buffer
                });
                assert!(relative_error(&fused, &composed) < 1e-5, "{rows}×{width}");
            }
        }
    }
}
