//! The values of a weight matrix, row by row and in place: in a mapped file, or in memory of their own.

use std::ops::{Deref, Range};
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;

/// The number formats that a weight file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    Bf16,
    F16,
}

impl Format {
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// The memory that holds weights.
pub(crate) enum Memory {
    /// A mapped file.
    File(Mmap),
    /// Unpacked bytes, in words so that they are aligned.
    Words(Vec<u32>),
}

impl Memory {
    /// Copies bytes, padded with zeros to a whole word.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let mut words = vec![0u32; bytes.len().div_ceil(4)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self::Words(words)
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::File(file) => file,
            Self::Words(words) => bytemuck::cast_slice(words),
        }
    }
}

/// Values in row-major order.
#[derive(Clone)]
pub(crate) enum Stored {
    /// Bytes in place, aligned for their format.
    Mapped {
        /// The file, or the values unpacked from it.
        file: Arc<Memory>,
        /// The range of the bytes.
        bytes: Range<usize>,
        /// The number format.
        format: Format,
    },
    /// Values in memory of their own.
    F32(Arc<Vec<f32>>),
    /// Values in memory of their own, as bits.
    Bf16(Arc<Vec<u16>>),
}

/// A view of stored values, with 16-bit formats as their bits.
#[derive(Clone, Copy)]
pub(crate) enum View<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
    F16(&'a [u16]),
}

impl Stored {
    /// Returns values in place. Values that are not aligned there are copied.
    pub(crate) fn mapped(file: Arc<Memory>, bytes: Range<usize>, format: Format) -> Self {
        let raw = &file[bytes.clone()];
        if (raw.as_ptr() as usize).is_multiple_of(format.size()) {
            return Self::Mapped { file, bytes, format };
        }
        let pairs = || raw.as_chunks::<2>().0.iter().map(|pair| u16::from_ne_bytes(*pair));
        match format {
            Format::F32 => {
                let words = raw.as_chunks::<4>().0.iter();
                Self::F32(Arc::new(words.map(|word| f32::from_ne_bytes(*word)).collect()))
            }
            Format::Bf16 => Self::Bf16(Arc::new(pairs().collect())),
            Format::F16 => Self::F32(Arc::new(pairs().map(|bits| f16::from_bits(bits).to_f32()).collect())),
        }
    }

    pub(crate) fn view(&self) -> View<'_> {
        match self {
            Self::F32(values) => View::F32(values),
            Self::Bf16(values) => View::Bf16(values),
            Self::Mapped { file, bytes, format } => {
                let raw = &file[bytes.clone()];
                match format {
                    Format::F32 => View::F32(bytemuck::cast_slice(raw)),
                    Format::Bf16 => View::Bf16(bytemuck::cast_slice(raw)),
                    Format::F16 => View::F16(bytemuck::cast_slice(raw)),
                }
            }
        }
    }

    /// Returns a copy of the values as f32.
    pub(crate) fn values(&self) -> Vec<f32> {
        let view = self.view();
        let mut values = vec![0.0; view.len()];
        view.read_parallel(0, &mut values);
        values
    }

    /// Returns the values rounded to bf16. They stay in place if they are bf16 already, and else are a copy of half the
    /// size of f32.
    pub(crate) fn rounded_to_bf16(self) -> Self {
        const CHUNK: usize = 1 << 16;
        let convert = |n: usize, convert: &(dyn Fn(usize, &mut [u16]) + Sync)| {
            let mut out = vec![0u16; n];
            out.par_chunks_mut(CHUNK).enumerate().for_each(|(index, out)| convert(index * CHUNK, out));
            Self::Bf16(Arc::new(out))
        };
        match self.view() {
            View::Bf16(_) => self,
            View::F32(values) => convert(values.len(), &|at, out| {
                let part = &values[at..at + out.len()];
                out.iter_mut().zip(part).for_each(|(out, x)| *out = round_to_bf16(*x));
            }),
            View::F16(values) => convert(values.len(), &|at, out| {
                let part = &values[at..at + out.len()];
                out.iter_mut().zip(part).for_each(|(out, x)| *out = round_to_bf16(f16::from_bits(*x).to_f32()));
            }),
        }
    }
}

impl View<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) | Self::F16(values) => values.len(),
        }
    }

    /// Does what [`View::read`] does, with all threads.
    pub(crate) fn read_parallel(&self, from: usize, out: &mut [f32]) {
        const CHUNK: usize = 1 << 14;
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(index, out)| self.read(from + index * CHUNK, out));
    }

    /// Writes the values `from..from + out.len()` as f32.
    pub(crate) fn read(&self, from: usize, out: &mut [f32]) {
        let range = from..from + out.len();
        match self {
            Self::F32(values) => out.copy_from_slice(&values[range]),
            Self::Bf16(values) => values[range].iter().zip(out).for_each(|(bits, out)| {
                *out = f32::from_bits(u32::from(*bits) << 16);
            }),
            Self::F16(values) => {
                use half::slice::HalfBitsSliceExt;
                values[range].reinterpret_cast::<f16>().convert_to_f32_slice(out);
            }
        }
    }
}

/// Returns the bits of the nearest bf16, ties to even.
#[inline(always)]
pub(super) fn round_to_bf16(x: f32) -> u16 {
    bf16::from_f32(x).to_bits()
}
