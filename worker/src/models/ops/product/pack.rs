//! Unpacking W into panels of [units, 32 columns], and inputs into units, in AVX-512.

use std::arch::x86_64::*;
use std::ops::Range;

use super::View;
use super::avx512::COLUMNS;

/// Units, or columns, of one vector.
const LANES: usize = 16;

/// The first `n` of 16 lanes.
fn lanes(n: usize) -> __mmask16 {
    ((1u32 << n.min(LANES)) - 1) as __mmask16
}

/// Sixteen values from `at` on as f32; those that `mask` leaves out are 0 and not read.
///
/// # Safety
/// The values that the mask takes are within the view.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_f32(view: View<'_>, at: usize, mask: __mmask16) -> __m512i {
    // SAFETY: the caller's; a masked load does not touch what its mask leaves out.
    unsafe {
        match view {
            View::F32(values) => _mm512_maskz_loadu_epi32(mask, values.as_ptr().wrapping_add(at).cast()),
            View::Bf16(bits) => _mm512_slli_epi32::<16>(load_words(bits, at, mask)),
            View::F16(bits) => {
                let half = _mm256_maskz_loadu_epi16(mask, bits.as_ptr().wrapping_add(at).cast());
                _mm512_castps_si512(_mm512_cvtph_ps(half))
            }
        }
    }
}

/// Sixteen 16-bit values from `at` on, each in 32 bits.
///
/// # Safety
/// As [`load_f32`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_words(bits: &[u16], at: usize, mask: __mmask16) -> __m512i {
    // SAFETY: the caller's.
    let words = unsafe { _mm256_maskz_loadu_epi16(mask, bits.as_ptr().wrapping_add(at).cast()) };
    _mm512_cvtepu16_epi32(words)
}

/// Turns sixteen vectors of sixteen units into sixteen of the same unit.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut pairs = rows;
    for i in 0..LANES / 2 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = pairs;
    for i in 0..LANES / 4 {
        for j in 0..2 {
            let (a, b) = (pairs[4 * i + j], pairs[4 * i + 2 + j]);
            fours[4 * i + 2 * j] = _mm512_unpacklo_epi64(a, b);
            fours[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    // fours[4 g + c] has, in its 128-bit lane l, unit 4 l + c of rows 4 g .. 4 g + 4.
    let mut out = fours;
    for c in 0..4 {
        let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(fours[c], fours[4 + c]);
        let odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(fours[c], fours[4 + c]);
        let even_high = _mm512_shuffle_i32x4::<0b10_00_10_00>(fours[8 + c], fours[12 + c]);
        let odd_high = _mm512_shuffle_i32x4::<0b11_01_11_01>(fours[8 + c], fours[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even, even_high);
        out[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even, even_high);
        out[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd, odd_high);
        out[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd, odd_high);
    }
    out
}

/// Defines the unpacking for x·Wᵀ, whose units run along W's rows: sixteen rows by sixteen units are turned at a time.
macro_rules! product_pack {
    ($(#[$meta:meta])* $name:ident($values:ident: $ty:ty), $per_unit:literal, $lanes:expr, $load:ident) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The processor has these instructions; columns and units are within W, the panel holds units × 32.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        pub(super) unsafe fn $name(
            $values: $ty,
            inner: usize,
            columns: Range<usize>,
            units: Range<usize>,
            panel: &mut [u32],
        ) {
            for half in 0..2 {
                let first = columns.start + half * LANES;
                for from in units.clone().step_by(LANES) {
                    let mask = $lanes((inner - from * $per_unit).min(LANES * $per_unit));
                    let mut rows = [_mm512_setzero_si512(); LANES];
                    for (row, column) in rows.iter_mut().zip(first..columns.end) {
                        // SAFETY: row `column` of W has the values that the mask takes.
                        *row = unsafe { $load($values, column * inner + from * $per_unit, mask) };
                    }
                    let count = LANES.min(units.end - from);
                    let at = (from - units.start) * COLUMNS + half * LANES;
                    let to = &mut panel[at..at + (count - 1) * COLUMNS + LANES];
                    for (unit, row) in transpose(rows).iter().enumerate().take(count) {
                        // SAFETY: `to` reaches to the end of the last unit's half.
                        unsafe { _mm512_storeu_si512(to.as_mut_ptr().add(unit * COLUMNS).cast(), *row) };
                    }
                }
            }
        }
    };
}

product_pack!(
    /// Values of any format as f32.
    product_f32(view: View<'_>), 1, lanes, load_f32
);
product_pack!(
    /// bf16 values in pairs along W's rows; the second of the last is 0 when their number is odd.
    product_bf16(bits: &[u16]), 2, double_lanes, load_pairs
);

/// The first `n` of 32 lanes.
fn double_lanes(n: usize) -> __mmask32 {
    ((1u64 << n.min(2 * LANES)) - 1) as __mmask32
}

/// Sixteen pairs of bf16 from `at` on.
///
/// # Safety
/// As [`load_f32`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_pairs(bits: &[u16], at: usize, mask: __mmask32) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_maskz_loadu_epi16(mask, bits.as_ptr().wrapping_add(at).cast()) }
}

/// For g·W, whose units run along W's columns: rows of W, as f32.
///
/// # Safety
/// As [`product_f32`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn gradient_f32(
    view: View<'_>,
    inner: usize,
    columns: Range<usize>,
    units: Range<usize>,
    panel: &mut [u32],
) {
    let masks = halves(columns.len());
    for (unit, line) in units.zip(panel.chunks_exact_mut(COLUMNS)) {
        for (half, mask) in masks.into_iter().enumerate() {
            let at = unit * inner + columns.start + half * LANES;
            // SAFETY: row `unit` of W has the values that the mask takes; the line has two halves.
            unsafe {
                let values = load_f32(view, at, mask);
                _mm512_storeu_si512(line.as_mut_ptr().add(half * LANES).cast(), values);
            }
        }
    }
}

/// For g·W in bf16: rows of W two by two; the last is paired with 0 when their number is odd.
///
/// # Safety
/// As [`product_f32`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn gradient_bf16(
    bits: &[u16],
    (outer, inner): (usize, usize),
    columns: Range<usize>,
    units: Range<usize>,
    panel: &mut [u32],
) {
    let masks = halves(columns.len());
    for (unit, line) in units.zip(panel.chunks_exact_mut(COLUMNS)) {
        for (half, mask) in masks.into_iter().enumerate() {
            let at = 2 * unit * inner + columns.start + half * LANES;
            let second = if 2 * unit + 1 < outer { mask } else { 0 };
            // SAFETY: rows 2 unit and, where the mask takes any, 2 unit + 1 of W have those values; the line has two halves.
            unsafe {
                let (low, high) = (load_words(bits, at, mask), load_words(bits, at + inner, second));
                let values = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                _mm512_storeu_si512(line.as_mut_ptr().add(half * LANES).cast(), values);
            }
        }
    }
}

/// Masks of the two halves of `n` columns.
fn halves(n: usize) -> [__mmask16; 2] {
    [lanes(n), lanes(n.saturating_sub(LANES))]
}

/// Rounds x to bf16 in pairs; the second of the last is 0 when their number is odd.
///
/// # Safety
/// The processor has these instructions.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn round_pairs(x: &[f32], units: &mut [u32]) {
    assert_eq!(x.len().div_ceil(2), units.len(), "a unit for each pair");
    for (x, units) in x.chunks(2 * LANES).zip(units.chunks_mut(LANES)) {
        let masks = halves(x.len());
        // SAFETY: the masks take x's values and no others, and as many units as there are.
        unsafe {
            let low = _mm512_maskz_loadu_ps(masks[0], x.as_ptr());
            let high = _mm512_maskz_loadu_ps(masks[1], x.as_ptr().wrapping_add(LANES));
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi32(units.as_mut_ptr().cast(), lanes(units.len()), rounded);
        }
    }
}
