//! The memory that a thread keeps between tiles.

use std::cell::RefCell;

/// One cache line of 32-bit units.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u32; 16]);

/// The panels of W and the rows of x of the current tile, aligned to cache lines.
#[derive(Default)]
pub(super) struct Scratch {
    lines: Vec<Line>,
}

impl Scratch {
    /// Returns two parts of `weights` and `inputs` units. They hold values of earlier use.
    pub(super) fn parts(&mut self, weights: usize, inputs: usize) -> (&mut [u32], &mut [u32]) {
        let units = weights.next_multiple_of(16) + inputs;
        self.lines
            .resize(units.div_ceil(16).max(self.lines.len()), Line([0; 16]));
        // SAFETY: a line is sixteen u32 without padding.
        let all =
            unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast::<u32>(), self.lines.len() * 16) };
        let (first, second) = all.split_at_mut(weights.next_multiple_of(16));
        (&mut first[..weights], &mut second[..inputs])
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lends this thread's scratch memory to `f`, which must not call this function again.
pub(super) fn with_scratch<T>(f: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(f)
}
