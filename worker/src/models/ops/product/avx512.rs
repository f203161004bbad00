//! Tiles of a product in AVX-512: twelve rows of inputs by thirty-two columns, in registers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::pack;
use super::{Direction, View};

/// The number of columns of a panel, which is two vectors.
pub(super) const COLUMNS: usize = 32;
/// The number of rows of a tile.
pub(super) const ROWS: usize = 12;
/// The number of units of depth that are unpacked at a time.
pub(super) const DEPTH: usize = 384;

/// Returns whether the processor has the instructions of this file.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

/// The matrix W `[outer, inner]` as the right factor of a product. It exists only if [`available`] is true.
pub(super) struct Operand<'a> {
    view: View<'a>,
    outer: usize,
    inner: usize,
    direction: Direction,
}

impl<'a> Operand<'a> {
    /// Returns the operand if the processor can multiply it. `view` holds the outer × inner values of W.
    pub(super) fn new(view: View<'a>, (outer, inner): (usize, usize), direction: Direction) -> Option<Self> {
        assert_eq!(view.len(), outer * inner, "a value for each element");
        available().then_some(Self {
            view,
            outer,
            inner,
            direction,
        })
    }

    /// Returns the length of one row of inputs.
    pub(super) fn width(&self) -> usize {
        match self.direction {
            Direction::Product => self.inner,
            Direction::Gradient => self.outer,
        }
    }

    /// Returns the length of one row of the output.
    pub(super) fn columns(&self) -> usize {
        match self.direction {
            Direction::Product => self.outer,
            Direction::Gradient => self.inner,
        }
    }

    /// Unpacks a block of W into panels of `[units, 32 columns]` each.
    pub(super) fn pack(&self, columns: Range<usize>, units: Range<usize>, panels: &mut [u32]) {
        let size = units.len() * COLUMNS;
        let panels = &mut panels[..columns.len().div_ceil(COLUMNS) * size];
        assert!(
            columns.end <= self.columns() && units.end <= self.width(),
            "the block is within W"
        );
        for (index, panel) in panels.chunks_exact_mut(size).enumerate() {
            let first = columns.start + index * COLUMNS;
            let columns = first..(first + COLUMNS).min(columns.end);
            // SAFETY: an operand exists only if the processor has its instructions; the block is within W, as just
            // checked.
            unsafe {
                match self.direction {
                    Direction::Product => {
                        pack::product_f32(self.view, self.inner, columns, units.clone(), panel);
                    }
                    Direction::Gradient => {
                        pack::gradient_f32(self.view, self.inner, columns, units.clone(), panel);
                    }
                }
            }
        }
    }
}

/// The initial value of a tile's sums.
pub(super) enum Start<'a> {
    /// The sums start at zero.
    Zero,
    /// The sums start at the bias of each column.
    Bias(&'a [f32]),
    /// The sums start at the values of the output.
    Sum,
}

/// Multiplies `rows` rows of inputs by `columns` columns of panels, `units` deep, into `out`, whose rows are `stride`
/// apart.
///
/// # Safety
/// `out` is valid for rows × columns values at this stride, and nothing else uses them.
///
/// # Panics
/// When inputs, panels or the bias are too short.
pub(super) unsafe fn tiles(
    (rows, columns, units): (usize, usize, usize),
    inputs: &[u32],
    panels: &[u32],
    start: &Start<'_>,
    out: *mut f32,
    stride: usize,
) {
    assert!(
        (1..=ROWS).contains(&rows) && units <= DEPTH && inputs.len() >= (rows - 1) * DEPTH + units,
        "there are inputs for the tile"
    );
    assert!(
        panels.len() >= columns.div_ceil(COLUMNS) * units * COLUMNS,
        "there are panels for the tile"
    );
    for first in (0..columns).step_by(COLUMNS) {
        let n = COLUMNS.min(columns - first);
        let bits = ((1u64 << n) - 1) as u32;
        let start = match start {
            Start::Zero => Start::Zero,
            Start::Bias(bias) => Start::Bias(&bias[first..first + n]),
            Start::Sum => Start::Sum,
        };
        let tile = Tile {
            units,
            inputs: inputs.as_ptr(),
            panel: panels[first * units..].as_ptr(),
            start,
            // SAFETY: the offset is within the output, as the caller promises.
            out: unsafe { out.add(first) },
            stride,
            masks: [bits as u16, (bits >> 16) as u16],
        };
        // SAFETY: an operand exists only if the processor has its instructions; the sizes are checked above.
        unsafe { self::tile(rows, &tile) }
    }
}

/// The part of [`tiles`] that one panel computes.
struct Tile<'a> {
    units: usize,
    inputs: *const u32,
    panel: *const u32,
    start: Start<'a>,
    out: *mut f32,
    stride: usize,
    masks: [__mmask16; 2],
}

/// Computes a tile's product.
///
/// # Safety
/// The processor has these instructions; inputs, panel and output are as [`tiles`] has checked.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn tile(rows: usize, tile: &Tile<'_>) {
    // SAFETY: the features are the same, and the caller keeps the conditions of `tile`.
    unsafe {
        match rows {
            1 => tile_of::<1>(tile),
            2 => tile_of::<2>(tile),
            3 => tile_of::<3>(tile),
            4 => tile_of::<4>(tile),
            5 => tile_of::<5>(tile),
            6 => tile_of::<6>(tile),
            7 => tile_of::<7>(tile),
            8 => tile_of::<8>(tile),
            9 => tile_of::<9>(tile),
            10 => tile_of::<10>(tile),
            11 => tile_of::<11>(tile),
            _ => tile_of::<12>(tile),
        }
    }
}

/// Computes the product of `ROWS` rows of inputs with a panel. Each number of rows has its own function, so that all
/// sums stay in registers.
///
/// # Safety
/// That of [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn tile_of<const ROWS: usize>(tile: &Tile<'_>) {
    // SAFETY: the caller of `tiles` guarantees the output, and `tiles` itself checks inputs and panel.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for unit in 0..tile.units {
            let w0 = _mm512_load_ps(tile.panel.add(unit * COLUMNS).cast());
            let w1 = _mm512_load_ps(tile.panel.add(unit * COLUMNS + 16).cast());
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*tile.inputs.add(row * DEPTH + unit).cast::<f32>());
                sums[0] = _mm512_fmadd_ps(x, w0, sums[0]);
                sums[1] = _mm512_fmadd_ps(x, w1, sums[1]);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                let out = tile.out.wrapping_add(row * tile.stride + half * 16);
                let mask = tile.masks[half];
                let sum = match tile.start {
                    Start::Zero => *sum,
                    Start::Sum => _mm512_add_ps(*sum, _mm512_maskz_loadu_ps(mask, out)),
                    Start::Bias(bias) => {
                        let bias = bias.as_ptr().wrapping_add(half * 16);
                        _mm512_add_ps(*sum, _mm512_maskz_loadu_ps(mask, bias))
                    }
                };
                _mm512_mask_storeu_ps(out, mask, sum);
            }
        }
    }
}
