//! The division of products by panels into tasks, on processors with AVX-512.
//!
//! A task is a stripe of output columns for a run of rows. For each block of the depth it unpacks its part of W into
//! panels, which stay in the second-level cache. Then it multiplies a few rows of x at a time, which stay in the
//! first-level cache, by all panels.

use rayon::prelude::*;

use super::avx512::{self, COLUMNS, DEPTH, Operand, ROWS, Start};
use super::scratch::with_scratch;

/// The number of columns of a stripe, which has 4 panels.
const STRIPE: usize = 4 * COLUMNS;
/// The smallest number of rows of a run. Fewer rows are not worth unpacking W.
const FEW_ROWS: usize = 64;

/// The output `[rows, columns]`, shared by tasks that write disjoint parts of it.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: each task writes its own columns of its own rows, and nothing reads until all have ended.
unsafe impl Send for Output {}
// SAFETY: the same holds for shared references.
unsafe impl Sync for Output {}

impl Output {
    /// Returns a pointer to the value at `index`.
    ///
    /// # Safety
    /// The index is within the output.
    unsafe fn at(self, index: usize) -> *mut f32 {
        // SAFETY: the caller keeps the index within the output.
        unsafe { self.0.add(index) }
    }
}

/// Writes x `[rows, width]` times the operand, plus the bias, to out `[rows, columns]`.
///
/// # Panics
/// When a slice has another size.
pub(super) fn multiply(operand: &Operand<'_>, x: &[f32], rows: usize, bias: Option<&[f32]>, out: &mut [f32]) {
    let (width, columns) = (operand.width(), operand.columns());
    assert_eq!(x.len(), rows * width, "x is rows × width");
    assert_eq!(out.len(), rows * columns, "out is rows × columns");
    assert!(bias.is_none_or(|bias| bias.len() == columns), "a bias for each column");
    let x: &[u32] = bytemuck::cast_slice(x);
    let output = Output(out.as_mut_ptr());
    let stripes = columns.div_ceil(STRIPE);
    let runs = (2 * rayon::current_num_threads())
        .div_ceil(stripes)
        .min(rows / FEW_ROWS)
        .max(1);
    let run = rows.div_ceil(runs).next_multiple_of(ROWS);
    let tasks = stripes * rows.div_ceil(run);
    (0..tasks).into_par_iter().with_max_len(1).for_each(|task| {
        let first_row = task / stripes * run;
        let task_rows = first_row..(first_row + run).min(rows);
        let first_column = task % stripes * STRIPE;
        let n = STRIPE.min(columns - first_column);
        with_scratch(|scratch| {
            let (panels, inputs) = scratch.parts(STRIPE * DEPTH, ROWS * DEPTH);
            for from in (0..width).step_by(DEPTH) {
                let units = from..(from + DEPTH).min(width);
                operand.pack(first_column..first_column + n, units.clone(), panels);
                let start = match bias {
                    _ if from > 0 => Start::Sum,
                    None => Start::Zero,
                    Some(bias) => Start::Bias(&bias[first_column..first_column + n]),
                };
                for row in task_rows.clone().step_by(ROWS) {
                    let m = ROWS.min(task_rows.end - row);
                    // Rows are copied, because rows with the stride of x would often compete for the same cache sets.
                    for (row, inputs) in (row..row + m).zip(inputs.chunks_exact_mut(DEPTH)) {
                        inputs[..units.len()].copy_from_slice(&x[row * width..][units.clone()]);
                    }
                    // SAFETY: the tile's rows and columns are within the output, and no other task writes them.
                    unsafe {
                        let to = output.at(row * columns + first_column);
                        avx512::tiles((m, n, units.len()), inputs, panels, &start, to, columns);
                    }
                }
            }
        });
    });
}
