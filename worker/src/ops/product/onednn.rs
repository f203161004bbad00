//! Products in bf16 by oneDNN, which is loaded at run time if it is installed.
//!
//! oneDNN uses the matrix units of each processor (AMX, `avx512_bf16`). Debian's `libdnnl3` and PyPI's `onednn`
//! packages contain the library. `LLINK_ONEDNN` names its file if the loader does not find it. Only version 3 is
//! supported, because version 2 has another interface.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use half::bf16;
use libloading::Library;
use rayon::prelude::*;

/// The environment variable that names the library's file.
const PATH_VARIABLE: &str = "LLINK_ONEDNN";
const NAMES: [&str; 2] = ["libdnnl.so.3", "libdnnl.so"];
const MAJOR: c_int = 3;

// These are constants of dnnl_types.h, version 3.
const CPU: c_int = 1;
const IN_ORDER: c_uint = 1;
const BF16: c_int = 2;
const F32: c_int = 3;
const ARG_SOURCE: c_int = 1;
const ARG_DESTINATION: c_int = 17;
const ARG_WEIGHTS: c_int = 33;
const ARG_BIAS: c_int = 41;
const MAX_DIMS: usize = 12;

type Handle = *mut c_void;
type Status = c_int;

#[repr(C)]
struct Version {
    major: c_int,
    minor: c_int,
    patch: c_int,
}

#[repr(C)]
struct ExecArg {
    arg: c_int,
    memory: Handle,
}

/// Declares the functions that are used, and loads them.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty,)*) => {
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Functions {
            fn load(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: the types are those of dnnl.h, version 3, which the caller checks before any other call.
                unsafe {
                    Ok(Self {
                        $($name: *library.get(concat!("dnnl_", stringify!($name)).as_bytes())?,)*
                    })
                }
            }
        }
    };
}

functions! {
    version: fn() -> *const Version,
    engine_create: fn(*mut Handle, c_int, usize) -> Status,
    stream_create: fn(*mut Handle, Handle, c_uint) -> Status,
    stream_destroy: fn(Handle) -> Status,
    stream_wait: fn(Handle) -> Status,
    memory_desc_create_with_strides: fn(*mut Handle, c_int, *const i64, c_int, *const i64) -> Status,
    memory_desc_destroy: fn(Handle) -> Status,
    matmul_primitive_desc_create: fn(*mut Handle, Handle, Handle, Handle, Handle, Handle, Handle) -> Status,
    primitive_desc_destroy: fn(Handle) -> Status,
    primitive_create: fn(*mut Handle, Handle) -> Status,
    primitive_destroy: fn(Handle) -> Status,
    primitive_execute: fn(Handle, Handle, c_int, *const ExecArg) -> Status,
    memory_create: fn(*mut Handle, Handle, Handle, *mut c_void) -> Status,
    memory_destroy: fn(Handle) -> Status,
}

/// The library, and its engine for this processor.
struct OneDnn {
    functions: Functions,
    set_threads: Option<unsafe extern "C" fn(c_int)>,
    engine: Handle,
    // This field is never dropped, because the static below keeps it. It would be dropped last.
    _library: Library,
}

// SAFETY: oneDNN's engines may be used by several threads at once, and all other handles stay within one call.
unsafe impl Send for OneDnn {}
// SAFETY: the same holds for shared references.
unsafe impl Sync for OneDnn {}

/// A matrix of bf16 values with its strides.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    /// The bits of the values.
    pub(super) bits: &'a [u16],
    /// The numbers of rows and columns.
    pub(super) shape: [usize; 2],
    /// The distance in values from one row, and from one column, to the next.
    pub(super) strides: [usize; 2],
}

pub(super) fn available() -> bool {
    library().is_some()
}

/// Returns the library's name and version, or the reason why there is none.
pub(super) fn version() -> Result<String, &'static str> {
    let library = loaded().as_ref().map_err(String::as_str)?;
    // SAFETY: a loaded library has a version, which lives as long as the library.
    let version = unsafe { &*(library.functions.version)() };
    Ok(format!("oneDNN {}.{}.{}", version.major, version.minor, version.patch))
}

/// Writes x `[rows, k]` · w `[k, columns]` + bias `[columns]` to out `[rows, columns]`. x is rounded to bf16, and sums
/// are f32. Returns false if oneDNN cannot.
pub(super) fn multiply(x: &[f32], w: Strided<'_>, bias: Option<&[f32]>, out: &mut [f32]) -> bool {
    let Some(library) = library() else { return false };
    let [k, columns] = w.shape;
    let rows = out.len() / columns;
    assert_eq!(x.len(), rows * k, "x is rows × k");
    assert_eq!(out.len(), rows * columns, "out is whole rows");
    assert!(bias.is_none_or(|bias| bias.len() == columns), "a bias for each column");
    let last = (k - 1) * w.strides[0] + (columns - 1) * w.strides[1];
    assert!(last < w.bits.len(), "W has a value for each element");
    let rounded = round(x);
    library.multiply(&rounded, rows, w, bias, out).is_ok()
}

/// Returns the bits of x rounded to bf16, computed by all threads.
fn round(x: &[f32]) -> Vec<u16> {
    let mut bits = vec![0; x.len()];
    let chunks = bits.par_chunks_mut(1 << 14).zip(x.par_chunks(1 << 14));
    chunks.for_each(|(bits, x)| {
        for (bits, x) in bits.iter_mut().zip(x) {
            *bits = bf16::from_f32(*x).to_bits();
        }
    });
    bits
}

fn library() -> Option<&'static OneDnn> {
    loaded().as_ref().ok()
}

fn loaded() -> &'static Result<OneDnn, String> {
    static LIBRARY: OnceLock<Result<OneDnn, String>> = OnceLock::new();
    LIBRARY.get_or_init(OneDnn::open)
}

fn checked(status: Status) -> Result<(), Status> {
    if status == 0 { Ok(()) } else { Err(status) }
}

/// A handle and the function that destroys it.
struct Owned(Handle, unsafe extern "C" fn(Handle) -> Status);

impl Owned {
    fn new(
        destroy: unsafe extern "C" fn(Handle) -> Status,
        create: impl FnOnce(*mut Handle) -> Status,
    ) -> Result<Self, Status> {
        let mut handle = ptr::null_mut();
        checked(create(&raw mut handle))?;
        Ok(Self(handle, destroy))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the handle was created, and nothing uses it after this. A failure would leave it allocated.
        unsafe { (self.1)(self.0) };
    }
}

impl OneDnn {
    fn open() -> Result<Self, String> {
        let named = std::env::var(PATH_VARIABLE).ok().filter(|path| !path.is_empty());
        let names: Vec<&str> = named.as_deref().map_or(NAMES.to_vec(), |path| vec![path]);
        let mut reason = String::new();
        for name in names {
            // SAFETY: oneDNN's initializers only read the processor's features and its own environment variables.
            match unsafe { Library::new(name) } {
                Ok(library) => return Self::of(library, name),
                Err(error) if reason.is_empty() => reason = format!("oneDNN cannot be loaded: {error}"),
                Err(_) => {}
            }
        }
        Err(reason)
    }

    fn of(library: Library, name: &str) -> Result<Self, String> {
        let functions = Functions::load(&library).map_err(|error| format!("{name} is not oneDNN {MAJOR}: {error}"))?;
        // SAFETY: every version of oneDNN has this function, and its result lives as long as the library.
        let version = unsafe { &*(functions.version)() };
        if version.major != MAJOR {
            return Err(format!("{name} is oneDNN {}.{}, and {MAJOR} is needed", version.major, version.minor));
        }
        // Builds with OpenMP start as many threads as there are cores, whatever the caller's pool is.
        // SAFETY: the function is OpenMP's, which takes an int.
        let set_threads = unsafe { library.get(b"omp_set_num_threads").ok().map(|function| *function) };
        let mut engine = ptr::null_mut();
        // SAFETY: `engine` is written once.
        checked(unsafe { (functions.engine_create)(&raw mut engine, CPU, 0) })
            .map_err(|status| format!("{name} has no engine for this processor (status {status})"))?;
        let library = Self { functions, set_threads, engine, _library: library };
        // Processors without such instructions refuse bf16.
        let (ones, mut out) = (vec![bf16::ONE.to_bits(); 4], [0.0; 4]);
        let weights = Strided { bits: &ones, shape: [2, 2], strides: [2, 1] };
        match library.multiply(&ones, 2, weights, None, &mut out) {
            Ok(()) if out == [2.0; 4] => Ok(library),
            Ok(()) => Err(format!("{name} multiplies bf16 wrongly on this processor")),
            Err(status) => Err(format!("{name} does not multiply bf16 on this processor (status {status})")),
        }
    }

    fn descriptor(&self, [rows, columns]: [usize; 2], strides: [usize; 2], kind: c_int) -> Result<Owned, Status> {
        let (mut dims, mut steps) = ([0_i64; MAX_DIMS], [0_i64; MAX_DIMS]);
        (dims[0], dims[1]) = (rows as i64, columns as i64);
        (steps[0], steps[1]) = (strides[0] as i64, strides[1] as i64);
        let create = self.functions.memory_desc_create_with_strides;
        // SAFETY: both arrays have as many elements as oneDNN reads.
        Owned::new(self.functions.memory_desc_destroy, |handle| unsafe {
            create(handle, 2, dims.as_ptr(), kind, steps.as_ptr())
        })
    }

    /// Multiplies x `[rows, k]` in bf16 by w `[k, columns]`. The caller has checked the sizes.
    fn multiply(
        &self,
        x: &[u16],
        rows: usize,
        w: Strided<'_>,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<(), Status> {
        let f = &self.functions;
        let [k, columns] = w.shape;
        let source = self.descriptor([rows, k], [k, 1], BF16)?;
        let weights = self.descriptor(w.shape, w.strides, BF16)?;
        let bias_row = self.descriptor([1, columns], [columns, 1], F32)?;
        let destination = self.descriptor([rows, columns], [columns, 1], F32)?;
        let no_bias = if bias.is_some() { bias_row.0 } else { ptr::null_mut() };
        // SAFETY: all handles live until the end of this function; no attributes are given.
        let plan = Owned::new(f.primitive_desc_destroy, |handle| unsafe {
            (f.matmul_primitive_desc_create)(
                handle,
                self.engine,
                source.0,
                weights.0,
                no_bias,
                destination.0,
                ptr::null_mut(),
            )
        })?;
        // SAFETY: as above. oneDNN caches what it made for a shape, so that a second time is cheap.
        let primitive = Owned::new(f.primitive_destroy, |handle| unsafe { (f.primitive_create)(handle, plan.0) })?;
        let memory = |descriptor: &Owned, values: *mut c_void| {
            // SAFETY: the values cover what the descriptor says, and outlive the memory object.
            Owned::new(f.memory_destroy, |handle| unsafe {
                (f.memory_create)(handle, descriptor.0, self.engine, values)
            })
        };
        let mut memories = vec![
            (ARG_SOURCE, memory(&source, x.as_ptr().cast_mut().cast())?),
            (ARG_WEIGHTS, memory(&weights, w.bits.as_ptr().cast_mut().cast())?),
            (ARG_DESTINATION, memory(&destination, out.as_mut_ptr().cast())?),
        ];
        if let Some(bias) = bias {
            memories.push((ARG_BIAS, memory(&bias_row, bias.as_ptr().cast_mut().cast())?));
        }
        let arguments: Vec<ExecArg> =
            memories.iter().map(|(arg, memory)| ExecArg { arg: *arg, memory: memory.0 }).collect();
        // SAFETY: the stream is used by this call alone.
        let stream =
            Owned::new(f.stream_destroy, |handle| unsafe { (f.stream_create)(handle, self.engine, IN_ORDER) })?;
        // SAFETY: oneDNN reads x, w and the bias, and writes `out`, which nothing else uses until the wait ends.
        unsafe {
            if let Some(set_threads) = self.set_threads {
                set_threads(rayon::current_num_threads() as c_int);
            }
            checked((f.primitive_execute)(primitive.0, stream.0, arguments.len() as c_int, arguments.as_ptr()))?;
            checked((f.stream_wait)(stream.0))
        }
    }
}
