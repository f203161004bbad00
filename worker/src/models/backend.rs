//! Where and how a model computes.

use candle_core::{DType, Device};

/// A device, a number format, and how weights are held there.
#[derive(Debug, Clone)]
pub struct Backend {
    device: Device,
    dtype: DType,
    weights: WeightsIn,
}

/// Where a model's matrices and embeddings lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightsIn {
    /// In the mapped file, from where the CPU's products read them.
    File,
    /// In tensors on the device.
    Tensors,
}

impl Backend {
    /// The fastest for a device: on the CPU weights stay in their mapped file, elsewhere they are tensors. On the CPU bf16 means
    /// products in bf16 of what is otherwise f32.
    #[must_use]
    pub fn new(device: &Device, dtype: DType) -> Self {
        let weights = match device.is_cpu() {
            true => WeightsIn::File,
            false => WeightsIn::Tensors,
        };
        Self {
            weights,
            ..Self::of_tensors(device, dtype)
        }
    }

    /// Weights as tensors on any device, and every value in `dtype`: what GPUs hold, so that it can be compared elsewhere.
    #[must_use]
    pub fn of_tensors(device: &Device, dtype: DType) -> Self {
        Self {
            device: device.clone(),
            dtype,
            weights: WeightsIn::Tensors,
        }
    }

    /// Where tensors lie.
    #[must_use]
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// What is computed in.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// What flows between layers.
    pub(crate) const fn activations(&self) -> DType {
        match self.weights {
            WeightsIn::File => DType::F32,
            WeightsIn::Tensors => self.dtype,
        }
    }

    /// Bytes of a number that flows between layers.
    pub(crate) fn value_bytes(&self) -> usize {
        self.activations().size_in_bytes()
    }

    pub(crate) const fn weights(&self) -> WeightsIn {
        self.weights
    }
}
