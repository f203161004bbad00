//! Products with a constant weight matrix on the CPU.
//!
//! The weights stay in place, in the mapped file if they came from one. Products in f32 are by the `gemm` crate, and
//! those in bf16 by oneDNN.

mod by_gemm;
mod few;
mod onednn;
mod stored;
#[cfg(test)]
mod tests;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use stored::View;
pub(crate) use stored::{Format, Memory, Stored};

/// The number format of the multiplications. Sums are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// Products of f32 values.
    F32,
    /// Products of values rounded to bf16, by oneDNN.
    Bf16,
}

/// A constant weight matrix W `[outer, inner]`.
///
/// Inputs are f32 slices with rows end to end, and outputs are new ones. All threads of the current rayon pool take
/// part.
#[derive(Clone)]
pub(crate) struct FrozenMatrix {
    stored: Stored,
    outer: usize,
    inner: usize,
    precision: Precision,
}

impl FrozenMatrix {
    /// Takes W `[outer, inner]` as its values row by row. `Precision::Bf16` is a wish, which becomes f32 if oneDNN is
    /// not available.
    ///
    /// # Panics
    /// When there are not outer × inner values.
    pub(crate) fn new(stored: Stored, outer: usize, inner: usize, wish: Precision) -> Self {
        assert_eq!(stored.view().len(), outer * inner, "a value for each element");
        let precision = match wish {
            Precision::Bf16 if onednn::available() => Precision::Bf16,
            _ => Precision::F32,
        };
        let stored = match precision {
            Precision::F32 => stored,
            Precision::Bf16 => stored.rounded_to_bf16(),
        };
        Self { stored, outer, inner, precision }
    }

    /// Returns the number of rows of W, which is the width of a product.
    pub(crate) fn outer(&self) -> usize {
        self.outer
    }

    /// Returns the number of columns of W, which is the width of its inputs.
    pub(crate) fn inner(&self) -> usize {
        self.inner
    }

    /// Returns a copy of the values of W.
    pub(crate) fn values(&self) -> Vec<f32> {
        self.stored.values()
    }

    fn view(&self) -> View<'_> {
        self.stored.view()
    }

    /// Computes x·Wᵀ + bias for x `[rows, inner]` and bias `[outer]`. The result is `[rows, outer]`.
    ///
    /// # Panics
    /// When x is not whole rows, or the bias has another width.
    pub(crate) fn product(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let rows = whole_rows(x, self.inner);
        assert!(bias.is_none_or(|bias| bias.len() == self.outer), "a bias for each output");
        let mut out = vec![0.0; rows * self.outer];
        if rows == 0 {
            return out;
        }
        if few::suits(self.precision, rows) {
            few::multiply(self, x, bias, &mut out);
        } else if !self.multiply_bf16(Direction::Product, x, bias, &mut out) {
            if let Some(bias) = bias {
                out.chunks_exact_mut(self.outer).for_each(|row| row.copy_from_slice(bias));
            }
            by_gemm::product(self, x, rows, &mut out);
        }
        out
    }

    /// Computes g·W, the gradient of x in x·Wᵀ, for g `[rows, outer]`. The result is `[rows, inner]`.
    ///
    /// # Panics
    /// When g is not whole rows.
    pub(crate) fn gradient(&self, g: &[f32]) -> Vec<f32> {
        let rows = whole_rows(g, self.outer);
        let mut out = vec![0.0; rows * self.inner];
        if rows > 0 && !self.multiply_bf16(Direction::Gradient, g, None, &mut out) {
            by_gemm::gradient(self, g, rows, &mut out);
        }
        out
    }

    /// Multiplies by oneDNN if the product is in bf16. Returns false otherwise.
    fn multiply_bf16(&self, direction: Direction, x: &[f32], bias: Option<&[f32]>, out: &mut [f32]) -> bool {
        let (Precision::Bf16, View::Bf16(bits)) = (self.precision, self.view()) else {
            return false;
        };
        let (shape, strides) = match direction {
            Direction::Product => ([self.inner, self.outer], [1, self.inner]),
            Direction::Gradient => ([self.outer, self.inner], [self.inner, 1]),
        };
        onednn::multiply(x, onednn::Strided { bits, shape, strides }, bias, out)
    }
}

/// The dimension of W that the sums run along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// The product x·Wᵀ sums along W's rows.
    Product,
    /// The gradient g·W sums along W's columns.
    Gradient,
}

/// The library for products in bf16 on this CPU.
pub(crate) struct Bf16OnCpu {
    /// The library's name and version.
    pub(crate) library: String,
}

/// Returns whether this CPU can multiply in bf16, or the reason why not.
pub(crate) fn bf16_on_cpu() -> Result<Bf16OnCpu, &'static str> {
    onednn::version().map(|library| Bf16OnCpu { library })
}

impl Bf16OnCpu {
    /// Measures how many times as fast as f32 they are. It takes some tens of milliseconds.
    pub(crate) fn speedup(&self) -> f64 {
        const ROWS: usize = 256;
        const WIDTH: usize = 1_024;
        let bits: Vec<u16> =
            (0..WIDTH * WIDTH).map(|at| half::bf16::from_f32((at % 97) as f32 / 97.0).to_bits()).collect();
        let weights = Stored::Bf16(Arc::new(bits));
        let x = vec![0.5; ROWS * WIDTH];
        let best = |precision| {
            let matrix = FrozenMatrix::new(weights.clone(), WIDTH, WIDTH, precision);
            let times = (0..4).map(|_| {
                let start = Instant::now();
                black_box(matrix.product(&x, None));
                start.elapsed().as_secs_f64()
            });
            times.fold(f64::MAX, f64::min)
        };
        best(Precision::F32) / best(Precision::Bf16)
    }
}

fn whole_rows(x: &[f32], width: usize) -> usize {
    assert!(width > 0 && x.len().is_multiple_of(width), "whole rows of {width} values");
    x.len() / width
}
