//! Memory that a thread keeps between tiles.

use std::cell::RefCell;

/// One cache line of 32-bit units.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u32; 16]);

/// Panels of W and rows of x of the tile at hand, aligned to cache lines.
#[derive(Default)]
pub(super) struct Scratch {
    lines: Vec<Line>,
}

impl Scratch {
    /// Two parts of `weights` and `inputs` units; what stands in them is left from before.
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

/// Lends this thread's scratch to `f`, which must not ask for it again.
pub(super) fn with_scratch<T>(f: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(f)
}
