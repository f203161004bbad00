//! Normalized rows, forward and backward.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{edit, fused, values};
use crate::Result;
use crate::numerics::kernels::{normalize, rows_per_task, through_normalization};

/// The smallest divisor of a row.
const SMALLEST_NORM: f64 = 1e-12;

/// The normalized rows, f32.
pub(crate) struct UnitRows {
    /// The rows of norm 1, `[b, d]`.
    pub(crate) unit: Tensor,
    /// The divisors of the rows, `[b, 1]`.
    pub(crate) norms: Tensor,
}

impl UnitRows {
    /// Normalizes rows `[b, d]`.
    pub(crate) fn of(rows: &Tensor) -> Result<Self> {
        if !fused(&[rows]) {
            let norms = rows.sqr()?.sum_keepdim(1)?.sqrt()?;
            let unit = rows.broadcast_div(&norms.maximum(SMALLEST_NORM)?)?;
            return Ok(Self { unit, norms });
        }
        let (count, width) = rows.dims2()?;
        let from = values(rows)?;
        let (mut unit, mut norms) = (vec![0f32; count * width], vec![0f32; count]);
        let each = from.par_chunks(width).zip(unit.par_chunks_mut(width)).zip(&mut norms);
        each.with_min_len(rows_per_task(count, width)).for_each(|((row, unit), norm)| *norm = normalize(row, unit));
        Ok(Self {
            unit: Tensor::from_vec(unit, (count, width), rows.device())?,
            norms: Tensor::from_vec(norms, (count, 1), rows.device())?,
        })
    }

    pub(crate) fn narrow(&self, from: usize, count: usize) -> Result<Self> {
        Ok(Self { unit: self.unit.narrow(0, from, count)?, norms: self.norms.narrow(0, from, count)? })
    }

    /// Returns the gradient of the rows from that of the normalized rows x̂: (g − (g·x̂) x̂) / |x|. It consumes `by`.
    pub(crate) fn backward(&self, by: Tensor) -> Result<Tensor> {
        let Self { unit, norms } = self;
        if !fused(&[&by, unit, norms]) {
            let along = (&by * unit)?.sum_keepdim(1)?;
            let across = (by - unit.broadcast_mul(&along)?)?;
            return Ok(across.broadcast_div(&norms.maximum(SMALLEST_NORM)?)?);
        }
        let (count, width) = by.dims2()?;
        let (unit, norms) = (values(unit)?, values(norms)?);
        edit(&by, |by| {
            let rows = by.par_chunks_mut(width).zip(unit.par_chunks(width)).zip(&*norms);
            rows.with_min_len(rows_per_task(count, width)).for_each(|((by, unit), norm)| {
                through_normalization(by, unit, 1.0 / norm.max(SMALLEST_NORM as f32));
            });
        })?;
        Ok(by)
    }
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
            let var = Var::from_tensor(&x).unwrap();
            let norms = var.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
            let expected = var.broadcast_div(&norms).unwrap();
            let graph = (&expected * &by).unwrap().sum_all().unwrap().backward().unwrap();
            for (x, by) in [(x.clone(), by.copy().unwrap()), (tracked(&x), tracked(&by))] {
                let rows = UnitRows::of(&x).unwrap();
                assert!(relative_error(&rows.unit, &expected) < 1e-6 && relative_error(&rows.norms, &norms) < 1e-6);
                let found = rows.backward(by).unwrap();
                assert!(relative_error(&found, graph.get(&var).unwrap()) < 1e-5);
            }
        }
    }
}
