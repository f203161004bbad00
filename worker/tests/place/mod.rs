//! The device of the tests of the tensor form: the CPU, or the GPU if `LLINK_TEST_DEVICE` is `cuda`.

use candle_core::{DType, Device};
use llink_worker::device::{Arithmetic, Compute, DeviceChoice};
use llink_worker::models::Backend;

pub fn device() -> Device {
    match std::env::var("LLINK_TEST_DEVICE") {
        Ok(choice) => Compute::open(choice.parse::<DeviceChoice>().unwrap(), Arithmetic::Auto).unwrap().device,
        Err(_) => Device::Cpu,
    }
}

pub fn tensors(dtype: DType) -> Backend {
    Backend::of_tensors(&device(), dtype)
}
