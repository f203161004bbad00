//! Where and how a model computes.

use candle_core::{DType, Device};

use super::ops::Form;

/// A device, a number format, and the operations to compute with.
#[derive(Debug, Clone)]
pub struct Backend {
    device: Device,
    dtype: DType,
    form: Form,
}

impl Backend {
    /// The fastest for a device: this crate's kernels on the CPU, tensor operations elsewhere. On the CPU bf16 means products in bf16
    /// of what is otherwise f32.
    #[must_use]
    pub fn new(device: &Device, dtype: DType) -> Self {
        let form = if device.is_cpu() { Form::Slices } else { Form::Tensors };
        Self {
            form,
            ..Self::of_tensors(device, dtype)
        }
    }

    /// Tensor operations on any device, every value in `dtype`: what GPUs do, so that it can be compared elsewhere.
    #[must_use]
    pub fn of_tensors(device: &Device, dtype: DType) -> Self {
        Self {
            device: device.clone(),
            dtype,
            form: Form::Tensors,
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

    /// Bytes of a number that flows between layers.
    pub(crate) fn value_bytes(&self) -> usize {
        match self.form {
            Form::Slices => 4,
            Form::Tensors => self.dtype.size_in_bytes(),
        }
    }

    pub(crate) const fn form(&self) -> Form {
        self.form
    }
}
