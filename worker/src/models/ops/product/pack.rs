//! Unpacks W into panels of `[units, 32 columns]` with AVX-512. A unit is one f32.

use std::arch::x86_64::*;
use std::ops::Range;

use super::View;
use super::avx512::COLUMNS;

/// The number of units, or columns, of one vector.
const LANES: usize = 16;

/// Returns the mask of the first `n` of 16 lanes.
fn lanes(n: usize) -> __mmask16 {
    ((1u32 << n.min(LANES)) - 1) as __mmask16
}

/// Loads sixteen values from `at` on as f32. Values outside `mask` are 0 and are not read.
///
/// # Safety
/// The values in the mask are within the view.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_f32(view: View<'_>, at: usize, mask: __mmask16) -> __m512i {
    // SAFETY: the caller keeps the mask within the view; a masked load does not touch other values.
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

/// Loads sixteen 16-bit values from `at` on, each into 32 bits.
///
/// # Safety
/// That of [`load_f32`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_words(bits: &[u16], at: usize, mask: __mmask16) -> __m512i {
    // SAFETY: the caller keeps the mask within the bits.
    let words = unsafe { _mm256_maskz_loadu_epi16(mask, bits.as_ptr().wrapping_add(at).cast()) };
    _mm512_cvtepu16_epi32(words)
}

/// Transposes sixteen vectors of sixteen units.
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

/// Packs for x·Wᵀ, whose units run along W's rows. Sixteen rows by sixteen units are transposed at a time.
///
/// # Safety
/// The processor has these instructions; columns and units are within W, and the panel holds units × 32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn product_f32(
    view: View<'_>,
    inner: usize,
    columns: Range<usize>,
    units: Range<usize>,
    panel: &mut [u32],
) {
    for half in 0..2 {
        let first = columns.start + half * LANES;
        for from in units.clone().step_by(LANES) {
            let mask = lanes(inner - from);
            let mut rows = [_mm512_setzero_si512(); LANES];
            for (row, column) in rows.iter_mut().zip(first..columns.end) {
                // SAFETY: row `column` of W has the values in the mask.
                *row = unsafe { load_f32(view, column * inner + from, mask) };
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

/// Packs for g·W, whose units run along W's columns. The panel holds rows of W as f32.
///
/// # Safety
/// That of [`product_f32`].
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
            // SAFETY: row `unit` of W has the values in the mask; the line has two halves.
            unsafe {
                let values = load_f32(view, at, mask);
                _mm512_storeu_si512(line.as_mut_ptr().add(half * LANES).cast(), values);
            }
        }
    }
}

/// Returns the masks of the two halves of `n` columns.
fn halves(n: usize) -> [__mmask16; 2] {
    [lanes(n), lanes(n.saturating_sub(LANES))]
}
