//! The device and the number formats of a model's computation.

use candle_core::{DType, Device};

/// A device, a number format, and the form in which weights are held.
#[derive(Debug, Clone)]
pub struct Backend {
    device: Device,
    dtype: DType,
    weights: WeightsIn,
}

/// The form in which a model's matrices and embeddings are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightsIn {
    /// The weights are in the mapped file, which the CPU's products read directly.
    File,
    /// The weights are tensors on the device.
    Tensors,
}

impl Backend {
    /// Returns the fastest backend of a device. On the CPU weights stay in their mapped file; elsewhere they are
    /// tensors. On the CPU, bf16 applies to products alone, and everything else is f32.
    pub fn new(device: &Device, dtype: DType) -> Self {
        let weights = if device.is_cpu() { WeightsIn::File } else { WeightsIn::Tensors };
        Self { weights, ..Self::of_tensors(device, dtype) }
    }

    /// Returns a backend with weights as tensors on any device, and every value in `dtype`. This is the form of GPUs,
    /// which tests compare on the CPU.
    pub fn of_tensors(device: &Device, dtype: DType) -> Self {
        Self { device: device.clone(), dtype, weights: WeightsIn::Tensors }
    }

    /// Returns the device of tensors.
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the dtype of the products.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the dtype of the activations between layers.
    pub(crate) const fn activations(&self) -> DType {
        match self.weights {
            WeightsIn::File => DType::F32,
            WeightsIn::Tensors => self.dtype,
        }
    }

    pub(crate) fn value_bytes(&self) -> usize {
        self.activations().size_in_bytes()
    }

    pub(crate) const fn weights(&self) -> WeightsIn {
        self.weights
    }
}
