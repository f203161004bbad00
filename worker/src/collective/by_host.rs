//! Collectives of tensors through host memory, for transports without device support.

use candle_core::{DType, Tensor};

use super::{Collective, check_counts};
use crate::Result;

/// Sums a contiguous tensor over all ranks, in place.
pub(super) fn all_reduce(collective: &mut (impl Collective + ?Sized), tensor: &Tensor) -> Result<()> {
    if collective.world_size() == 1 {
        // There is nothing to add or to fetch, so only the ranks are synchronized.
        return collective.barrier();
    }
    sum(tensor, |values| collective.all_reduce_sum(values))
}

/// Replaces a contiguous tensor by what `reduce` makes of its values.
pub(super) fn sum(tensor: &Tensor, reduce: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    let mut values = host(tensor)?;
    reduce(&mut values)?;
    let sum = Tensor::from_vec(values, tensor.elem_count(), tensor.device())?.to_dtype(tensor.dtype())?;
    Ok(tensor.flatten_all()?.slice_set(&sum, 0, 0)?)
}

pub(super) fn all_gather(
    collective: &mut (impl Collective + ?Sized),
    mine: &Tensor,
    counts: &[usize],
) -> Result<Tensor> {
    if collective.world_size() == 1 {
        collective.barrier()?;
        check_counts(mine.elem_count(), counts, 0, 1)?;
        return Ok(mine.flatten_all()?);
    }
    let values = collective.all_gather(&host(mine)?, counts)?;
    let count = values.len();
    Ok(Tensor::from_vec(values, count, mine.device())?.to_dtype(mine.dtype())?)
}

fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}
