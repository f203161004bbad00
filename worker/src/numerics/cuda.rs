//! The CUDA kernels of this crate, `cuda/kernels.cu`. They are loaded at first use and launched on candle's stream.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};
use cudarc::driver::{CudaSlice, DeviceRepr, LaunchConfig, PushKernelArg};
use half::bf16;

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
const MODULE: &str = "llink";

/// The dropout masks of some rows.
pub(crate) struct Masks<'a> {
    /// Key and salt of each row, u32.
    pub(crate) keys: &'a Tensor,
    /// The threshold below which a column is dropped, and the factor of the others.
    pub(crate) constants: (u32, f32),
}

/// Multiplies contiguous rows by their masks.
pub(crate) fn mask_rows(storage: &CudaStorage, layout: &Layout, masks: &Masks<'_>) -> Result<(CudaStorage, Shape)> {
    let out = match storage.dtype() {
        DType::F32 => masked::<f32>("mask_rows_f32", storage, layout, masks)?,
        DType::BF16 => masked::<bf16>("mask_rows_bf16", storage, layout, masks)?,
        other => bail!("row masks are for f32 and bf16, not {other:?}"),
    };
    Ok((out, layout.shape().clone()))
}

fn masked<T: CudaDType + DeviceRepr>(
    kernel: &str,
    storage: &CudaStorage,
    layout: &Layout,
    masks: &Masks<'_>,
) -> Result<CudaStorage> {
    let (start, end) = span(layout)?;
    let (count, width) = ((end - start) as u64, layout.dims()[1] as u32);
    let device = storage.device();
    let function = device.get_or_load_custom_func(kernel, MODULE, PTX)?;
    let x = storage.as_cuda_slice::<T>()?.slice(start..end);
    // SAFETY: the kernel writes every value.
    let out: CudaSlice<T> = unsafe { device.alloc(end - start)? };
    let (keys, keys_layout) = masks.keys.storage_and_layout();
    let Storage::Cuda(keys) = &*keys else {
        bail!("row masks made for another device");
    };
    let (first, last) = span(keys_layout)?;
    let keys = keys.as_cuda_slice::<u32>()?.slice(first..last);
    let (threshold, scale) = masks.constants;
    let mut launch = function.builder();
    launch.arg(&x).arg(&out).arg(&keys).arg(&count).arg(&width).arg(&threshold).arg(&scale);
    // SAFETY: the arguments match the kernel, and all spans hold `count` values, the keys two for each row.
    unsafe { launch.launch(LaunchConfig::for_num_elems(count as u32)) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// Applies AdamW to `state` [3, n] with `gradient` [n] and the constants of the optimizer's update.
pub(crate) fn adamw(
    state: &mut CudaStorage,
    state_layout: &Layout,
    gradient: &CudaStorage,
    gradient_layout: &Layout,
    constants: [f32; 8],
) -> Result<()> {
    let ((start, end), (first, last)) = (span(state_layout)?, span(gradient_layout)?);
    let count = (last - first) as u64;
    if end - start != 3 * (last - first) {
        bail!("AdamW with {} numbers for {count} parameters", end - start);
    }
    let function = gradient.device().get_or_load_custom_func("adamw", MODULE, PTX)?;
    let gradient = gradient.as_cuda_slice::<f32>()?.slice(first..last);
    let mut state = state.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
    let mut launch = function.builder();
    launch.arg(&mut state).arg(&gradient).arg(&count);
    for constant in &constants {
        launch.arg(constant);
    }
    // SAFETY: the arguments match the kernel, and the spans were checked.
    unsafe { launch.launch(LaunchConfig::for_num_elems(count as u32)) }.w()?;
    Ok(())
}

fn span(layout: &Layout) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(span) => Ok(span),
        None => bail!("expected contiguous values, found {layout:?}"),
    }
}
