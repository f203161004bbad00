//! The operations on tensors of the models and of the method's modules. Each operation decides how it runs. On the CPU, f32 uses this crate's fused
//! kernels on slices; everything else uses candle's. Tests compare both with a definition by tensor operations.
//!
//! No operation takes part in candle's gradients, because the backward pass of the frozen models is written by hand.

mod activation;
mod attention;
mod attention_backward;
pub(crate) mod backend;
mod dense;
mod elementwise;
mod embedding;
#[cfg(feature = "flash-attn")]
mod flash;
mod frozen_linear;
mod gelu_dropout;
mod layer_norm;
mod low_rank;
mod norm;
mod product;
mod rope;
mod row_masks;
mod unit_rows;

pub(crate) use activation::{gelu, silu_mul, silu_mul_backward};
pub(crate) use attention::{Attention, AttentionSpans, Causality, MeanOf};
pub use backend::Backend;
pub(crate) use dense::{matmul, matmul_into, sum_rows_into};
pub(crate) use elementwise::{multiply, subtract_row, sum_of_squares, to_halves};
pub(crate) use embedding::Embedding;
pub use embedding::NO_TOKEN;
pub(crate) use frozen_linear::FrozenLinear;
pub(crate) use gelu_dropout::gelu_dropout;
pub(crate) use layer_norm::{Normed, layer_norm_backward, layer_norm_kept, standardized};
pub(crate) use low_rank::{LowRank, LowRankGradient};
pub(crate) use norm::{add_layer_norm, add_rms_norm, layer_norm, rms_norm, rms_norm_backward};
pub(crate) use product::{Format, FrozenMatrix, Memory, Precision, Stored, bf16_on_cpu};
pub(crate) use rope::Rope;
pub(crate) use row_masks::RowMasks;
pub(crate) use unit_rows::UnitRows;

use std::cell::RefCell;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, StorageRef, Tensor};

use crate::Result;

/// Returns whether the CPU's fused kernels apply to these inputs.
pub(crate) fn fused(inputs: &[&Tensor]) -> bool {
    inputs.iter().all(|x| x.device().is_cpu() && x.dtype() == DType::F32 && !x.track_op() && x.is_contiguous())
}

/// Returns read access to the values of a contiguous f32 tensor on the CPU.
pub(crate) fn values(x: &Tensor) -> Result<impl Deref<Target = [f32]> + Sync> {
    let (storage, layout) = x.storage_and_layout();
    let range = contiguous(layout)?;
    let values = StorageRef::try_map(storage, |storage| match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Some(&values[range]),
        _ => None,
    });
    Ok(values.map_err(|_| candle_core::Error::Msg("expected f32 values on the CPU".into()))?)
}

fn contiguous(layout: &Layout) -> candle_core::Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => Err(candle_core::Error::Msg(format!("expected contiguous values, found {layout:?}"))),
    }
}

/// Changes the values of a contiguous f32 tensor on the CPU in place. The caller holds the only view of them.
pub(crate) fn edit(x: &Tensor, change: impl FnMut(&mut [f32])) -> Result<()> {
    struct Edit<F>(RefCell<F>);
    impl<F: FnMut(&mut [f32])> InplaceOp1 for Edit<F> {
        fn name(&self) -> &'static str {
            "edit"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let range = contiguous(layout)?;
            match storage {
                CpuStorage::F32(values) => {
                    (self.0.borrow_mut())(&mut values[range]);
                    Ok(())
                }
                _ => Err(candle_core::Error::Msg("expected f32 values".into())),
            }
        }
    }
    Ok(x.inplace_op1(&Edit(RefCell::new(change)))?)
}

/// Returns the number of rows of `width` values that one thread takes at a time. Fewer would not be worth the overhead.
fn rows_per_chunk(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

#[cfg(test)]
pub(crate) mod testing {
    use std::ops::{Add, Sub};

    use candle_core::{Device, Tensor, Var};

    use crate::numerics::random::noise;

    /// Returns a random tensor `[rows, width]`.
    pub fn random(rows: usize, width: usize, seed: u64) -> Tensor {
        Tensor::from_vec(noise(seed, rows * width), (rows, width), &Device::Cpu).unwrap()
    }

    /// Returns the same values with candle's gradients, for which operations are composed.
    pub fn tracked(x: &Tensor) -> Tensor {
        Var::from_tensor(x).unwrap().into_inner()
    }

    /// Returns the central differences of `f` at `values`, each of which changes by `width`.
    pub fn differences<T>(values: &[T], width: T, f: impl Fn(&[T]) -> f64) -> Vec<f64>
    where
        T: Copy + Add<Output = T> + Sub<Output = T> + Into<f64>,
    {
        let (mut values, count, step): (_, _, f64) = (values.to_vec(), values.len(), width.into());
        let difference = |index: usize| {
            let at = values[index];
            values[index] = at + width;
            let above = f(&values);
            values[index] = at - width;
            let below = f(&values);
            values[index] = at;
            (above - below) / (2.0 * step)
        };
        (0..count).map(difference).collect()
    }

    /// Returns ‖a − b‖ / ‖b‖.
    pub fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
        let a: Vec<f32> = a.flatten_all().unwrap().to_vec1().unwrap();
        let b: Vec<f32> = b.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(a.len(), b.len());
        let gap: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let norm: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
        (gap / norm).sqrt()
    }
}
