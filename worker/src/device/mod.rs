//! The device of a worker: the one that it was told to use, or the best that it finds, and its memory.

mod budget;
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

use crate::ops::{Backend, bf16_on_cpu};
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
        let wrong = || Error::Input(format!("`{text}` is not a device: `auto`, `cpu`, `cuda` or `cuda:N` is expected"));
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

/// The wanted number format of products with frozen weights. Sums are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, strum::Display, strum::EnumString)]
#[strum(serialize_all = "lowercase", parse_err_ty = Error, parse_err_fn = no_format)]
pub enum Arithmetic {
    /// bf16 on GPUs. On the CPU bf16 where oneDNN is installed and a fifth faster in it than in f32, else f32.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// Values rounded to bf16.
    Bf16,
}

fn no_format(text: &str) -> Error {
    Error::Input(format!("`{text}` is no number format: `auto`, `f32` or `bf16` is expected"))
}

impl Arithmetic {
    /// The dtype of products on the CPU. `Auto` measures both.
    fn on_cpu(self) -> Result<DType> {
        if self == Self::F32 {
            return Ok(DType::F32);
        }
        match (bf16_on_cpu(), self) {
            (Err(reason), Self::Bf16) => Err(Error::Device(format!(
                "products in bf16 were asked for, and the CPU can't: {reason}. Install oneDNN 3 (Debian's libdnnl3, PyPI's onednn) and name its \
                 file in LLINK_ONEDNN where the loader doesn't find it, or compute in f32"
            ))),
            (Err(reason), _) => {
                tracing::debug!("products in f32: {reason}");
                Ok(DType::F32)
            }
            (Ok(bf16), Self::Bf16) => {
                tracing::info!("products in bf16 by {}", bf16.library);
                Ok(DType::BF16)
            }
            (Ok(bf16), _) => {
                let speedup = bf16.speedup();
                tracing::info!("{} multiplies {speedup:.1} times as fast in bf16 as llink in f32", bf16.library);
                Ok(if speedup >= WORTHWHILE { DType::BF16 } else { DType::F32 })
            }
        }
    }

    fn on_gpu(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Auto | Self::Bf16 => DType::BF16,
        }
    }
}

/// The least speedup over f32 for which `auto` takes bf16 on the CPU.
const WORTHWHILE: f64 = 1.2;

/// An open device with its properties.
#[derive(Debug, Clone)]
pub struct Compute {
    /// The device of the tensors.
    pub device: Device,
    /// The number format of frozen models. On the CPU bf16 means products in bf16 of activations in f32.
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
    pub fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            name: std::env::consts::ARCH.into(),
            index: 0,
            memory: total_memory(),
        }
    }

    /// Opens the device of `choice`, to compute as `arithmetic` says.
    ///
    /// # Errors
    /// [`Error::Device`] when a GPU or bf16 was asked for and can't be used. The text says what is missing and what to do.
    pub fn open(choice: DeviceChoice, arithmetic: Arithmetic) -> Result<Self> {
        let mut compute = Self::device(choice)?;
        compute.dtype = if compute.device.is_cpu() { arithmetic.on_cpu()? } else { arithmetic.on_gpu() };
        Ok(compute)
    }

    fn device(choice: DeviceChoice) -> Result<Self> {
        if choice == DeviceChoice::Cpu {
            return Ok(Self::cpu());
        }
        let probe = Probe::of_this_machine();
        let Some(index) = choose(choice, &probe)? else {
            tracing::info!("computing on the CPU: {}", probe.why_not().unwrap_or_default());
            return Ok(Self::cpu());
        };
        match open_cuda(index) {
            Err(error) if choice == DeviceChoice::Auto => {
                tracing::warn!("computing on the CPU: {error}");
                Ok(Self::cpu())
            }
            opened => opened,
        }
    }

    /// Returns where and how this device trains a projector: on the CPU in f32, whatever the products of frozen models are computed in.
    pub fn training_backend(&self) -> Backend {
        let dtype = if self.device.is_cpu() { DType::F32 } else { self.dtype };
        Backend::new(&self.device, dtype)
    }

    /// Returns `cpu` or `cuda`.
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
    Err(Error::Device(format!("GPU {index}: this binary was built without CUDA")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_formats_are_named_as_they_are_read() {
        for arithmetic in [Arithmetic::Auto, Arithmetic::F32, Arithmetic::Bf16] {
            assert_eq!(arithmetic.to_string().parse::<Arithmetic>().unwrap(), arithmetic);
        }
        let text = "fp8".parse::<Arithmetic>().unwrap_err().to_string();
        assert!(text.contains("`bf16`"), "{text}");
    }

    #[test]
    fn the_cpu_computes_in_what_was_asked_for_or_says_what_is_missing() {
        let dtype = |arithmetic| Compute::open(DeviceChoice::Cpu, arithmetic).map(|compute| compute.dtype);
        assert_eq!(dtype(Arithmetic::F32).unwrap(), DType::F32);
        let bf16 = dtype(Arithmetic::Bf16);
        match bf16_on_cpu() {
            Ok(_) => assert_eq!(bf16.unwrap(), DType::BF16),
            Err(_) => {
                let text = bf16.unwrap_err().to_string();
                assert!(text.contains("libdnnl3") && text.contains("LLINK_ONEDNN"), "{text}");
                assert_eq!(dtype(Arithmetic::Auto).unwrap(), DType::F32);
            }
        }
    }

    #[test]
    fn a_projector_trains_in_f32_on_the_cpu_whatever_models_compute_in() {
        let mut compute = Compute::cpu();
        for dtype in [DType::F32, DType::BF16] {
            compute.dtype = dtype;
            assert_eq!(compute.training_backend().dtype(), DType::F32);
        }
    }

    #[test]
    fn devices_are_named_as_they_are_read() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(3)] {
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for wrong in ["gpu", "cuda:", "cuda:x", ""] {
            let text = wrong.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(text.contains("cuda:N"), "{text}");
        }
    }
}
