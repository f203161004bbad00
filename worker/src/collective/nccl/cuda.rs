//! NCCL itself, through cudarc's thin layer over its functions. cudarc's safe layer is not used, because it waits while
//! it makes a communicator, and panics when one is dropped.

use std::cell::OnceCell;
use std::ffi::CStr;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::{CpuStorage, CudaDevice, DType, Device, InplaceOp1, InplaceOp2, Layout};
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr};
use cudarc::nccl::{result, sys};
use half::bf16;

use super::{Attempt, CommunicatorState, NcclApi, UniqueId};
use crate::{Error, Result};

/// NCCL's mark of a valid configuration.
const MAGIC: u32 = 0xcafe_beef;
/// The version of this configuration; a newer library reads the fields of this version.
const CONFIG_VERSION: u32 = 23_000;
/// NCCL's value for "undefined", which leaves a choice to the library.
const UNDEFINED: i32 = i32::MIN;

/// NCCL on one GPU. Its work runs on its own stream, concurrent with the device's computation.
pub struct CudaNccl {
    device: Device,
    cuda: CudaDevice,
    stream: Arc<CudaStream>,
}

/// The handle of a communicator.
pub struct Communicator(sys::ncclComm_t);

// SAFETY: NCCL allows a communicator on any thread, one thread at a time, and only the owner uses it.
unsafe impl Send for Communicator {}

/// Work on the stream, which is done when the event behind it has occurred.
pub struct Ticket(OnceCell<CudaEvent>);

impl CudaNccl {
    /// Opens NCCL for a CUDA device.
    ///
    /// # Errors
    /// [`Error::Device`] when the device is not a CUDA device, or the library can't be loaded.
    pub fn new(device: &Device) -> Result<Self> {
        let Device::Cuda(cuda) = device else {
            return Err(Error::Device("NCCL is for GPUs".into()));
        };
        crate::device::require_library("nccl")?;
        let stream = cuda.cuda_stream().context().new_stream();
        Ok(Self {
            device: device.clone(),
            cuda: cuda.clone(),
            stream: stream.map_err(|error| Error::Device(format!("a stream for NCCL: {error}")))?,
        })
    }

    /// Makes the id of a new communicator, which rank 0 distributes.
    ///
    /// # Errors
    /// [`Error::Device`] with NCCL's text.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let id = result::get_uniqueid().map_err(|error| Error::Device(format!("NCCL: {}", describe(error.0))))?;
        Ok(UniqueId(id.internal.map(|byte| byte as u8)))
    }

    /// Runs a collective after the device's earlier work.
    fn enqueue(&self, run: impl FnOnce() -> candle_core::Result<()>) -> Attempt<Ticket> {
        self.stream.join(&self.cuda.cuda_stream()).map_err(|error| error.to_string())?;
        run().map_err(|error| error.to_string())?;
        Ok(Ticket(OnceCell::new()))
    }
}

impl NcclApi for CudaNccl {
    type Communicator = Communicator;
    type Ticket = Ticket;

    fn version(&self) -> Attempt<String> {
        let version = result::get_nccl_version().map_err(|error| describe(error.0))?;
        Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn begin_init(&self, id: &UniqueId, rank: usize, world_size: usize) -> Attempt<Communicator> {
        let context = self.stream.context();
        context.bind_to_thread().map_err(|error| error.to_string())?;
        let id = sys::ncclUniqueId { internal: id.0.map(|byte| byte as std::ffi::c_char) };
        let mut config = non_blocking();
        let mut communicator: sys::ncclComm_t = std::ptr::null_mut();
        // SAFETY: handle and configuration are valid for the call, and NCCL copies the configuration.
        let begun = unsafe {
            result::comm_init_rank_config(&raw mut communicator, world_size as i32, id, rank as i32, &raw mut config)
        };
        match begun {
            Ok(_) => Ok(Communicator(communicator)),
            Err(error) => {
                let reason = describe(error.0);
                if !communicator.is_null() {
                    self.abort(Communicator(communicator));
                }
                Err(reason)
            }
        }
    }

    fn state(&self, communicator: &Communicator) -> CommunicatorState {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the communicator lives until it is destroyed or aborted, and both consume it.
        let asked = unsafe { sys::ncclCommGetAsyncError(communicator.0, &raw mut state) };
        match (asked, state) {
            (sys::ncclResult_t::ncclSuccess, sys::ncclResult_t::ncclSuccess) => CommunicatorState::Ready,
            (sys::ncclResult_t::ncclSuccess, sys::ncclResult_t::ncclInProgress) => CommunicatorState::Busy,
            (sys::ncclResult_t::ncclSuccess, failed) | (failed, _) => {
                CommunicatorState::Failed(describe_last(communicator, failed))
            }
        }
    }

    fn all_reduce(&self, communicator: &Communicator, values: &candle_core::Tensor) -> Attempt<Ticket> {
        self.enqueue(|| values.inplace_op1(&AllReduce(self.call(communicator))))
    }

    fn all_gather(
        &self,
        communicator: &Communicator,
        mine: &candle_core::Tensor,
        all: &candle_core::Tensor,
    ) -> Attempt<Ticket> {
        self.enqueue(|| all.inplace_op2(mine, &AllGather(self.call(communicator))))
    }

    fn broadcast(&self, communicator: &Communicator, root: usize, values: &candle_core::Tensor) -> Attempt<Ticket> {
        self.enqueue(|| values.inplace_op1(&Broadcast(self.call(communicator), root as i32)))
    }

    fn is_done(&self, ticket: &Ticket) -> Attempt<bool> {
        let event = match ticket.0.get() {
            Some(event) => event,
            // Only now is the work certainly in the stream.
            None => {
                let event = self.stream.record_event(None).map_err(|error| error.to_string())?;
                ticket.0.get_or_init(|| event)
            }
        };
        event.try_is_complete().map_err(|error| error.to_string())
    }

    fn begin_finalize(&self, communicator: &Communicator) -> Attempt<()> {
        // SAFETY: as in `state`.
        let begun = unsafe { result::comm_finalize(communicator.0) };
        begun.map(drop).map_err(|error| describe(error.0))
    }

    fn destroy(&self, communicator: Communicator) {
        // SAFETY: the communicator is consumed, so nobody uses it afterwards.
        if let Err(error) = unsafe { result::comm_destroy(communicator.0) } {
            tracing::warn!("an NCCL communicator was not freed: {}", describe(error.0));
        }
    }

    fn abort(&self, communicator: Communicator) {
        // SAFETY: the communicator is consumed, so nobody uses it afterwards.
        if let Err(error) = unsafe { result::comm_abort(communicator.0) } {
            tracing::warn!("an NCCL communicator was not aborted cleanly: {}", describe(error.0));
        }
    }
}

impl CudaNccl {
    fn call(&self, communicator: &Communicator) -> Call<'_> {
        Call { communicator: communicator.0, stream: &self.stream }
    }
}

/// The common arguments of every collective.
struct Call<'a> {
    communicator: sys::ncclComm_t,
    stream: &'a CudaStream,
}

impl Call<'_> {
    fn stream(&self) -> sys::cudaStream_t {
        self.stream.cu_stream().cast()
    }
}

struct AllReduce<'a>(Call<'a>);

struct AllGather<'a>(Call<'a>);

struct Broadcast<'a>(Call<'a>, i32);

/// The values of a contiguous tensor on the device: address, number and type.
struct Span {
    address: u64,
    count: usize,
    kind: sys::ncclDataType_t,
}

/// Returns the values for writing by `stream`.
fn written(storage: &mut CudaStorage, layout: &Layout, stream: &CudaStream) -> candle_core::Result<Span> {
    fn span<T: DeviceRepr>(slice: &mut CudaSlice<T>, start: usize, stream: &CudaStream) -> u64 {
        slice.device_ptr_mut(stream).0 + (start * size_of::<T>()) as u64
    }
    let (start, count, kind) = place(storage.dtype(), layout)?;
    let address = match storage.dtype() {
        DType::F32 => span(storage.as_cuda_slice_mut::<f32>()?, start, stream),
        _ => span(storage.as_cuda_slice_mut::<bf16>()?, start, stream),
    };
    Ok(Span { address, count, kind })
}

/// Returns the values for reading by `stream`.
fn read(storage: &CudaStorage, layout: &Layout, stream: &CudaStream) -> candle_core::Result<Span> {
    fn span<T: DeviceRepr>(slice: &CudaSlice<T>, start: usize, stream: &CudaStream) -> u64 {
        slice.device_ptr(stream).0 + (start * size_of::<T>()) as u64
    }
    let (start, count, kind) = place(storage.dtype(), layout)?;
    let address = match storage.dtype() {
        DType::F32 => span(storage.as_cuda_slice::<f32>()?, start, stream),
        _ => span(storage.as_cuda_slice::<bf16>()?, start, stream),
    };
    Ok(Span { address, count, kind })
}

fn place(dtype: DType, layout: &Layout) -> candle_core::Result<(usize, usize, sys::ncclDataType_t)> {
    let kind = match dtype {
        DType::F32 => sys::ncclDataType_t::ncclFloat32,
        DType::BF16 => sys::ncclDataType_t::ncclBfloat16,
        other => candle_core::bail!("NCCL is given f32 and bf16 here, not {other:?}"),
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok((start, end - start, kind)),
        None => candle_core::bail!("NCCL needs contiguous values, not {layout:?}"),
    }
}

fn checked(call: std::result::Result<result::NcclStatus, result::NcclError>) -> candle_core::Result<()> {
    match call {
        Ok(_) => Ok(()),
        Err(error) => candle_core::bail!("{}", describe(error.0)),
    }
}

const NOT_HERE: &str = "NCCL works on GPUs";

impl InplaceOp1 for AllReduce<'_> {
    fn name(&self) -> &'static str {
        "nccl all-reduce"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("{NOT_HERE}")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let values = written(storage, layout, self.0.stream)?;
        let (address, sum) = (values.address as *mut std::ffi::c_void, sys::ncclRedOp_t::ncclSum);
        // SAFETY: the span belongs to the tensor, which the caller keeps until the work is done.
        checked(unsafe {
            result::all_reduce(address, address, values.count, values.kind, sum, self.0.communicator, self.0.stream())
        })
    }
}

impl InplaceOp2 for AllGather<'_> {
    fn name(&self) -> &'static str {
        "nccl all-gather"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("{NOT_HERE}")
    }

    fn cuda_fwd(
        &self,
        all: &mut CudaStorage,
        all_layout: &Layout,
        mine: &CudaStorage,
        mine_layout: &Layout,
    ) -> candle_core::Result<()> {
        let mine = read(mine, mine_layout, self.0.stream)?;
        let all = written(all, all_layout, self.0.stream)?;
        // SAFETY: the spans belong to the tensors, which the caller keeps until the work is done; `all` has room for
        // every rank's values.
        checked(unsafe {
            result::all_gather(
                mine.address as *const _,
                all.address as *mut _,
                mine.count,
                mine.kind,
                self.0.communicator,
                self.0.stream(),
            )
        })
    }
}

impl InplaceOp1 for Broadcast<'_> {
    fn name(&self) -> &'static str {
        "nccl broadcast"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("{NOT_HERE}")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let values = written(storage, layout, self.0.stream)?;
        let address = values.address as *mut std::ffi::c_void;
        // SAFETY: as in the all-reduce.
        checked(unsafe {
            result::broadcast(address, address, values.count, values.kind, self.1, self.0.communicator, self.0.stream())
        })
    }
}

/// Returns a configuration in which no call may wait, and everything else is the library's choice.
fn non_blocking() -> sys::ncclConfig_t {
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: std::ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
        graphUsageMode: UNDEFINED,
        numRmaCtx: UNDEFINED,
        maxP2pPeers: UNDEFINED,
    }
}

/// Returns NCCL's text for a result.
fn describe(code: sys::ncclResult_t) -> String {
    // SAFETY: the text is static.
    text(unsafe { sys::ncclGetErrorString(code) }).unwrap_or_else(|| format!("{code:?}"))
}

/// Returns NCCL's text for a result, and its last error message.
fn describe_last(communicator: &Communicator, code: sys::ncclResult_t) -> String {
    // SAFETY: the text is copied before any other call.
    let last = text(unsafe { sys::ncclGetLastError(communicator.0) });
    match last.filter(|last| !last.trim().is_empty()) {
        Some(last) => format!("{}: {}", describe(code), last.trim()),
        None => describe(code),
    }
}

fn text(words: *const std::ffi::c_char) -> Option<String> {
    // SAFETY: NCCL's texts end with a zero byte.
    (!words.is_null()).then(|| unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned())
}
