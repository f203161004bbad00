//! The dropout masks of rows, drawn on the device of the rows.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{contiguous, rows_per_chunk};
use crate::Result;
use crate::numerics::dropout::RowMask;

/// A mask for each of T rows.
#[derive(Clone)]
pub(crate) struct RowMasks {
    rows: Arc<[RowMask]>,
    /// The key and the salt of each row, `[2·T]`, on a GPU.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "read by the kernel"))]
    keys: Option<Tensor>,
}

impl RowMasks {
    pub(crate) fn new(rows: Arc<[RowMask]>, device: &Device) -> Result<Self> {
        let keys = (!device.is_cpu()).then(|| {
            let keys: Vec<u32> = rows.iter().flat_map(RowMask::key).collect();
            Tensor::new(keys, device)
        });
        let keys = keys.transpose()?;
        Ok(Self { rows, keys })
    }

    pub(crate) fn rows(&self) -> &[RowMask] {
        &self.rows
    }

    /// Returns the masks if their number is `rows`.
    pub(super) fn of_rows(&self, rows: usize) -> Result<&[RowMask]> {
        match self.rows.len() {
            masks if masks == rows => Ok(&self.rows),
            masks => Err(candle_core::Error::Msg(format!("{masks} masks for {rows} rows")).into()),
        }
    }

    /// Multiplies x `[T, width]` by its masks.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let rows = x.dim(0)?;
        self.of_rows(rows)?;
        if rows == 0 {
            return Ok(x.clone());
        }
        Ok(x.contiguous()?.apply_op1_no_bwd(self)?)
    }
}

impl CustomOp1 for RowMasks {
    fn name(&self) -> &'static str {
        "row-masks"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (range, width) = (contiguous(layout)?, layout.dims()[1]);
        let masked = match storage {
            CpuStorage::F32(values) => {
                let mut values = values[range].to_vec();
                mask_rows(&mut values, &self.rows, width);
                CpuStorage::F32(values)
            }
            CpuStorage::BF16(values) => {
                let mut wide = vec![0f32; range.len()];
                values[range].convert_to_f32_slice(&mut wide);
                mask_rows(&mut wide, &self.rows, width);
                CpuStorage::BF16(wide.into_iter().map(bf16::from_f32).collect())
            }
            _ => candle_core::bail!("row-masks are for f32 and bf16"),
        };
        Ok((masked, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        let keys = self.keys.as_ref().ok_or_else(|| candle_core::Error::Msg("masks made for the CPU".into()))?;
        let masks = crate::numerics::cuda::Masks { keys, constants: self.rows[0].constants() };
        crate::numerics::cuda::mask_rows(storage, layout, &masks)
    }
}

/// Multiplies rows of `width` values by their masks.
pub(super) fn mask_rows(values: &mut [f32], masks: &[RowMask], width: usize) {
    let rows = values.par_chunks_mut(width).zip(masks).with_min_len(rows_per_chunk(width));
    rows.for_each(|(row, mask)| mask.apply(row));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;
    use crate::numerics::dropout::Dropout;
    use candle_core::DType;

    #[test]
    fn halves_meet_the_same_masks_as_whole_numbers() {
        let dropout = Dropout::new(0.3, 5, 9);
        let masks = RowMasks::new((0..19).map(|row| dropout.row(row)).collect(), &Device::Cpu).unwrap();
        let x = random(19, 40, 1);
        let mut expected: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        mask_rows(&mut expected, masks.rows(), 40);
        let expected = Tensor::from_vec(expected, (19, 40), &Device::Cpu).unwrap();
        assert!(relative_error(&masks.apply(&x).unwrap(), &expected) < 1e-7);
        let halves = masks.apply(&x.to_dtype(DType::BF16).unwrap()).unwrap();
        assert!(relative_error(&halves.to_dtype(DType::F32).unwrap(), &expected) < 1e-2);
        assert!(masks.apply(&random(18, 40, 1)).is_err());
    }
}
