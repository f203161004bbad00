//! The device of a worker: the one that it was told to use, or the best that it finds, and its memory.

mod budget;
#[cfg(feature = "cuda")]
pub(crate) mod kernels;
mod probe;
mod staging;

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};

pub(crate) use budget::total_memory;
pub use budget::{TokenCost, free_memory, is_out_of_memory, token_budget, within_memory};
#[cfg(feature = "cuda")]
pub(crate) use probe::require_library;
pub use probe::{Probe, choose};
pub use staging::Staging;

use crate::models::Backend;
use crate::{Error, Result};

/// The device that a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// A GPU if one can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU only.
    Cpu,
    /// The GPU with this number only.
    Cuda(usize),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::Input(format!(
                "`{text}` is not a device: `auto`, `cpu`, `cuda` or `cuda:N` is expected"
            ))
        };
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(wrong)?;
                index.parse().map(Self::Cuda).map_err(|_| wrong())
            }
        }
    }
}

/// An open device with its properties.
#[derive(Debug, Clone)]
pub struct Compute {
    /// The device of the tensors.
    pub device: Device,
    /// The number format of frozen models: bf16 on GPUs, f32 on the CPU.
    pub dtype: DType,
    /// The name for people, and its place.
    pub name: String,
    /// The number among devices of its kind.
    pub index: usize,
    /// All of its memory in bytes, or 0 if the system does not say.
    pub memory: u64,
}

impl Compute {
    /// Returns the CPU.
    #[must_use]
    pub fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            name: std::env::consts::ARCH.into(),
            index: 0,
            memory: total_memory(),
        }
    }

    /// Opens the device of `choice`.
    ///
    /// # Errors
    /// [`Error::Device`] when a GPU was asked for and can't be used. The text says what is missing and what to do.
    pub fn open(choice: DeviceChoice) -> Result<Self> {
        if choice == DeviceChoice::Cpu {
            return Ok(Self::cpu());
        }
        let probe = Probe::of_this_machine();
        match choose(choice, &probe) {
            Ok(Some(index)) => match open_cuda(index) {
                Err(error) if choice == DeviceChoice::Auto => {
                    tracing::warn!("computing on the CPU: {error}");
                    Ok(Self::cpu())
                }
                opened => opened,
            },
            Ok(None) => {
                tracing::info!("computing on the CPU: {}", probe.why_not().unwrap_or_default());
                Ok(Self::cpu())
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the device on which Stage A computes in tensors, or none on the CPU, where Stage A computes on slices.
    #[must_use]
    pub fn training_backend(&self) -> Option<Backend> {
        (!self.device.is_cpu()).then(|| Backend::new(&self.device, self.dtype))
    }

    /// Returns `cpu` or `cuda`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.device.is_cpu() { "cpu" } else { "cuda" }
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> Result<Compute> {
    // cudarc panics if an old driver lacks a function.
    let opened = std::panic::catch_unwind(|| probe::open(index));
    opened.unwrap_or_else(|_| {
        Err(Error::Device(format!(
            "GPU {index} could not be opened: the driver lacks a function. Update the NVIDIA driver, or use --device cpu"
        )))
    })
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(index: usize) -> Result<Compute> {
    Err(Error::Device(format!(
        "GPU {index}: this binary was built without CUDA"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_read() {
        for choice in [
            DeviceChoice::Auto,
            DeviceChoice::Cpu,
            DeviceChoice::Cuda(0),
            DeviceChoice::Cuda(3),
        ] {
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for wrong in ["gpu", "cuda:", "cuda:x", ""] {
            let text = wrong.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(text.contains("cuda:N"), "{text}");
        }
    }
}
