//! Products with a weight matrix that never changes, on the CPU.
//!
//! The weights stay where they are, in the mapped file if they came from one; what the kernels need of them they unpack
//! tile by tile into a small scratch of each thread.

mod portable;
mod stored;

pub(crate) use stored::{Format, Stored, View};

/// What the multiplications are done in; sums are f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// Products of f32 values.
    F32,
    /// Products of values rounded to bf16, on processors that multiply those natively.
    Bf16,
}

/// A weight matrix W [outer, inner] that never changes.
///
/// Inputs are f32 slices, rows end to end, outputs are new ones; all threads of the current rayon pool take part.
#[derive(Clone)]
pub(crate) struct FrozenMatrix {
    stored: Stored,
    outer: usize,
    inner: usize,
    precision: Precision,
}

impl FrozenMatrix {
    /// W [outer, inner] from its values row by row. `Precision::Bf16` is a wish: without such a processor it is f32.
    ///
    /// # Panics
    /// When there are not outer × inner values.
    pub(crate) fn new(stored: Stored, outer: usize, inner: usize, _wish: Precision) -> Self {
        assert_eq!(stored.view().len(), outer * inner, "a value for each place");
        Self {
            stored,
            outer,
            inner,
            precision: Precision::F32,
        }
    }

    /// Rows of W: the width of a product.
    pub(crate) fn outer(&self) -> usize {
        self.outer
    }

    /// Columns of W: the width of what it is multiplied with.
    pub(crate) fn inner(&self) -> usize {
        self.inner
    }

    /// What the multiplications are done in.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// The values of W.
    pub(crate) fn view(&self) -> View<'_> {
        self.stored.view()
    }

    /// x·Wᵀ + bias: x [rows, inner], bias [outer] → [rows, outer].
    ///
    /// # Panics
    /// When x is not whole rows, or the bias has another width.
    pub(crate) fn product(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let rows = whole_rows(x, self.inner);
        let mut out = vec![0.0; rows * self.outer];
        if let Some(bias) = bias {
            assert_eq!(bias.len(), self.outer, "a bias for each output");
            out.chunks_exact_mut(self.outer)
                .for_each(|row| row.copy_from_slice(bias));
        }
        portable::product(self, x, rows, &mut out);
        out
    }

    /// g·W, the gradient of x in x·Wᵀ: g [rows, outer] → [rows, inner].
    ///
    /// # Panics
    /// When g is not whole rows.
    pub(crate) fn gradient(&self, g: &[f32]) -> Vec<f32> {
        let rows = whole_rows(g, self.outer);
        let mut out = vec![0.0; rows * self.inner];
        portable::gradient(self, g, rows, &mut out);
        out
    }
}

fn whole_rows(x: &[f32], width: usize) -> usize {
    assert!(
        width > 0 && x.len().is_multiple_of(width),
        "whole rows of {width} values"
    );
    x.len() / width
}
