//! Checks whether this machine has a GPU that this binary can use, and what is missing if not.
//!
//! The driver and CUDA's libraries are loaded at run time. They are checked here first, because the layers above panic
//! if they are missing.

use super::DeviceChoice;
use crate::{Error, Result};

/// The driver that a binary built with CUDA 13.0 needs, as in `cuDriverGetVersion`.
const DRIVER_NEEDED: i32 = 13_000;

/// The properties of a machine.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    /// True if the binary has the feature `cuda`.
    pub built_with_cuda: bool,
    /// The newest CUDA version of the driver (13000 is 13.0), or why it could not be loaded.
    pub driver: Option<std::result::Result<i32, String>>,
    /// The libraries that could not be loaded, with reasons.
    pub missing: Vec<String>,
    /// Number of GPUs that the driver shows.
    pub devices: usize,
}

impl Probe {
    /// Examines this machine.
    pub fn of_this_machine() -> Self {
        #[cfg(feature = "cuda")]
        return cuda::probe();
        #[cfg(not(feature = "cuda"))]
        Self::default()
    }

    /// Returns why no GPU can be used, or `None` if one can.
    pub fn why_not(&self) -> Option<String> {
        if !self.built_with_cuda {
            return Some("this binary was built without CUDA (worker/cuda/build.sh makes one with it)".into());
        }
        let version = match &self.driver {
            Some(Ok(version)) => *version,
            Some(Err(reason)) => return Some(format!("there is no NVIDIA driver: {reason}")),
            None => return Some("there is no NVIDIA driver".into()),
        };
        if version < DRIVER_NEEDED {
            let known = words(version);
            let needed = words(DRIVER_NEEDED);
            return Some(format!(
                "the NVIDIA driver knows CUDA {known}, this binary needs {needed}: install driver 580 or newer"
            ));
        }
        if self.devices == 0 {
            return Some("the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES may hide them)".into());
        }
        if !self.missing.is_empty() {
            return Some(format!(
                "CUDA 13's libraries are missing: {}. Install them, or set LD_LIBRARY_PATH to where they are",
                self.missing.join("; ")
            ));
        }
        None
    }
}

fn words(version: i32) -> String {
    format!("{}.{}", version / 1_000, version % 1_000 / 10)
}

/// Returns the GPU to use, or none for the CPU.
///
/// # Errors
/// [`Error::Device`] when a GPU was asked for that can't be used.
pub fn choose(choice: DeviceChoice, probe: &Probe) -> Result<Option<usize>> {
    match (choice, probe.why_not()) {
        (DeviceChoice::Cpu, _) | (DeviceChoice::Auto, Some(_)) => Ok(None),
        (DeviceChoice::Auto, None) => Ok(Some(0)),
        (DeviceChoice::Cuda(_), Some(reason)) => Err(Error::Device(format!("device `{choice}`: {reason}"))),
        (DeviceChoice::Cuda(index), None) if index < probe.devices => Ok(Some(index)),
        (DeviceChoice::Cuda(index), None) => Err(Error::Device(format!(
            "device `{choice}`: this machine shows {} GPUs, counted from 0, and none has the number {index}",
            probe.devices
        ))),
    }
}

/// Returns the most helpful of the reasons why a library could not be loaded under each of its names. A file that
/// exists but needs a missing one comes before files that do not exist.
#[cfg(any(feature = "cuda", test))]
fn telling(names: &[String], reasons: Vec<String>) -> String {
    let is_absent = |(name, reason): (&String, &String)| reason.starts_with(&format!("{name}: cannot open"));
    let lacks = names.iter().zip(&reasons).position(|tried| !is_absent(tried));
    reasons.into_iter().nth(lacks.unwrap_or(0)).unwrap_or_default()
}

#[cfg(feature = "cuda")]
pub(super) use cuda::open;
#[cfg(feature = "cuda")]
pub(crate) use cuda::require_library;

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{CudaDevice, DType, Device};
    use cudarc::driver::CudaContext;
    use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID;
    use libloading::Library;

    use super::Probe;
    use crate::device::Compute;
    use crate::{Error, Result};

    /// The libraries that candle needs, each under the names that cudarc tries.
    const LIBRARIES: [&str; 3] = ["cublas", "cublasLt", "curand"];

    pub(super) fn probe() -> Probe {
        let driver = driver_version();
        let devices = match driver {
            Ok(version) if version >= super::DRIVER_NEEDED => {
                std::panic::catch_unwind(CudaContext::device_count).ok().and_then(std::result::Result::ok).unwrap_or(0)
                    as usize
            }
            _ => 0,
        };
        Probe {
            built_with_cuda: true,
            driver: Some(driver),
            missing: LIBRARIES.iter().filter_map(|name| load(name).err()).collect(),
            devices,
        }
    }

    fn driver_version() -> std::result::Result<i32, String> {
        let library = load("cuda")?;
        let mut version = 0;
        // SAFETY: the function's type matches the driver's header, and it may be called before anything else.
        let status = unsafe {
            let get = library.get::<unsafe extern "C" fn(*mut i32) -> i32>(b"cuDriverGetVersion\0");
            get.map_err(|error| error.to_string())?(&raw mut version)
        };
        match status {
            0 => Ok(version),
            code => Err(format!("cuDriverGetVersion answers {code}")),
        }
    }

    fn load(name: &str) -> std::result::Result<Library, String> {
        let names = [
            format!("lib{name}.so"),
            format!("lib{name}.so.13"),
            format!("lib{name}.so.10"),
            format!("lib{name}.so.1"),
        ];
        let mut reasons = Vec::new();
        for name in &names {
            // SAFETY: NVIDIA's libraries may be loaded and unloaded.
            match unsafe { Library::new(name) } {
                Ok(library) => return Ok(library),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        let reason = super::telling(&names, reasons);
        // This is NCCL's own name, which cudarc does not try.
        // SAFETY: as above.
        if unsafe { Library::new(format!("lib{name}.so.2")) }.is_ok() {
            return Err(format!(
                "lib{name}.so (lib{name}.so.2 is there: a link lib{name}.so beside it is what is missing)"
            ));
        }
        Err(format!("lib{name} ({reason})"))
    }

    /// Returns an error if a library is missing.
    pub(crate) fn require_library(name: &str) -> Result<()> {
        load(name).map(drop).map_err(|reason| Error::Device(format!("{reason} can't be loaded")))
    }

    pub(crate) fn open(index: usize) -> Result<Compute> {
        let failed = |what: &str, error: &dyn std::fmt::Display| Error::Device(format!("GPU {index}: {what}: {error}"));
        // The stream is shared: candle's default stream differs in each thread, and tasks pass tensors between threads.
        let cuda = CudaDevice::new_with_stream(index).map_err(|error| failed("it could not be opened", &error))?;
        // SAFETY: all of candle's work is in that one stream. NCCL's stream is joined to it before and after each use,
        // and its tensors are kept until the work is done. Tracking would cost two events for every tensor.
        unsafe { cuda.disable_event_tracking() };
        let context = cuda.cuda_stream().context().clone();
        let model = context.name().map_err(|error| failed("its name", &error))?;
        let bus = context.attribute(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID).unwrap_or(0);
        let memory = context.total_mem().map_err(|error| failed("its memory", &error))? as u64;
        Ok(Compute {
            device: Device::Cuda(cuda),
            dtype: DType::BF16,
            name: format!("{model} at PCI bus {bus:02x}"),
            index,
            memory,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> Probe {
        Probe { built_with_cuda: true, driver: Some(Ok(13_000)), missing: Vec::new(), devices: 2 }
    }

    #[test]
    fn a_machine_that_lacks_something_falls_back_or_is_refused_with_the_reason() {
        let old = Probe { driver: Some(Ok(12_040)), ..fit() };
        let none = Probe { driver: Some(Err("libcuda.so: cannot open".into())), ..fit() };
        let hidden = Probe { devices: 0, ..fit() };
        let bare = Probe { missing: vec!["libcublas (cannot open)".into()], ..fit() };
        for (probe, words) in [
            (Probe::default(), "built without CUDA"),
            (old, "knows CUDA 12.4, this binary needs 13.0"),
            (none, "libcuda.so: cannot open"),
            (hidden, "CUDA_VISIBLE_DEVICES"),
            (bare, "libcublas"),
        ] {
            assert_eq!(choose(DeviceChoice::Auto, &probe).unwrap(), None, "{words}");
            let refusal = choose(DeviceChoice::Cuda(0), &probe).unwrap_err();
            assert!(matches!(&refusal, Error::Device(text) if text.contains(words)), "{refusal}");
            assert_eq!(choose(DeviceChoice::Cpu, &probe).unwrap(), None);
        }
    }

    #[test]
    fn a_library_that_lacks_another_says_which() {
        let names = ["libcurand.so", "libcurand.so.10"].map(str::to_owned);
        let absent = |name: &str| format!("{name}: cannot open shared object file: No such file or directory");
        let lacks = "libcudart.so.13: cannot open shared object file: No such file or directory".to_owned();
        assert_eq!(telling(&names, vec![absent(&names[0]), lacks.clone()]), lacks);
        assert_eq!(telling(&names, vec![absent(&names[0]), absent(&names[1])]), absent(&names[0]));
    }

    #[test]
    fn a_fit_machine_gives_the_gpu_that_was_asked_for() {
        assert_eq!(choose(DeviceChoice::Auto, &fit()).unwrap(), Some(0));
        assert_eq!(choose(DeviceChoice::Cuda(1), &fit()).unwrap(), Some(1));
        let refusal = choose(DeviceChoice::Cuda(2), &fit()).unwrap_err().to_string();
        assert!(refusal.contains("2 GPUs") && refusal.contains("cuda:2"), "{refusal}");
    }
}
