//! Copies numbers to a device through page-locked memory, from which a GPU reads while it works.

use candle_core::{Device, Shape, Tensor};

use crate::Result;

/// Page-locked buffers that are used again. The CPU needs none.
#[derive(Default)]
pub struct Staging {
    #[cfg(feature = "cuda")]
    pinned: cuda::Pinned,
}

impl Staging {
    /// Returns `values` as a tensor on `device`. The copy may still be under way, but `values` may be changed.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when shape and values do not fit, or the device fails.
    pub fn upload(&mut self, values: &[f32], shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device
            && !values.is_empty()
        {
            return Ok(self.pinned.upload(values, shape.into(), cuda)?);
        }
        Ok(Tensor::from_slice(values, shape, device)?)
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::collections::HashMap;

    use candle_core::cuda_backend::WrapErr;
    use candle_core::op::BackpropOp;
    use candle_core::{CudaDevice, CudaStorage, Result, Shape, Storage, Tensor, bail};
    use cudarc::driver::{CudaEvent, PinnedHostSlice};

    /// Two buffers of each length: one is filled while the other is copied.
    #[derive(Default)]
    pub(super) struct Pinned(HashMap<usize, Vec<Buffer>>);

    struct Buffer {
        memory: PinnedHostSlice<f32>,
        /// The event of the last copy out of the buffer.
        copied: Option<CudaEvent>,
    }

    const BUFFERS: usize = 2;

    impl Pinned {
        pub(super) fn upload(&mut self, values: &[f32], shape: Shape, device: &CudaDevice) -> Result<Tensor> {
            if shape.elem_count() != values.len() {
                bail!("{} values for {shape:?}", values.len());
            }
            let stream = device.cuda_stream();
            let buffers = self.0.entry(values.len()).or_default();
            let mut buffer = if buffers.len() < BUFFERS {
                // SAFETY: it is written before anything reads it.
                let memory = unsafe { stream.context().alloc_pinned_with_flags(values.len(), 0) }.w()?;
                Buffer { memory, copied: None }
            } else {
                buffers.remove(0)
            };
            if let Some(copied) = &buffer.copied {
                copied.synchronize().w()?;
            }
            buffer.memory.as_mut_slice().w()?.copy_from_slice(values);
            let copy = stream.clone_htod(&buffer.memory).w()?;
            buffer.copied = Some(stream.record_event(None).w()?);
            buffers.push(buffer);
            let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(copy, device.clone()));
            Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
        }
    }
}
