//! Compares every kernel with sums in f64, for shapes that do not fit into whole tiles.

use super::*;
use crate::numerics::random::noise;
use half::{bf16, f16};
use std::sync::Arc;

fn draw(n: usize, seed: u64) -> Vec<f32> {
    noise(seed, n)
}

/// Returns ‖a − b‖ / ‖b‖.
fn error(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let gap: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| b.powi(2)).sum();
    (gap / norm).sqrt()
}

/// Computes lhs `[m, k]` · rhs `[k, n]`. `at` gives the position of an element of rhs.
fn exact(lhs: &[f32], rhs: &[f32], (m, n, k): (usize, usize, usize), at: impl Fn(usize, usize) -> usize) -> Vec<f64> {
    let mut out = vec![0f64; m * n];
    for i in 0..m {
        for l in 0..k {
            let x = f64::from(lhs[i * k + l]);
            for j in 0..n {
                out[i * n + j] += x * f64::from(rhs[at(l, j)]);
            }
        }
    }
    out
}

const SHAPES: [(usize, usize, usize); 12] = [
    (1, 5, 3),
    (1, 385, 130),
    (3, 33, 70),
    (5, 1, 1),
    (6, 31, 33),
    (12, 384, 32),
    (13, 769, 129),
    (25, 400, 128),
    (64, 17, 257),
    (131, 96, 31),
    (200, 1000, 100),
    (7, 1601, 16),
];

/// Returns matrices of each format whose values equal those of `values`, which are rounded to fit.
fn formats(values: &mut [f32]) -> Vec<(&'static str, Stored)> {
    for value in values.iter_mut() {
        // The value has few enough bits for both 16-bit formats.
        *value = bf16::from_f32(*value).to_f32().clamp(-4.0, 4.0);
        if value.abs() < 1e-3 {
            *value = 0.0;
        }
    }
    let halves: Vec<u16> = values.iter().map(|x| f16::from_f32(*x).to_bits()).collect();
    let (f16_file, f16_bytes) = mapped(bytemuck::cast_slice(&halves));
    let (f32_file, f32_bytes) = mapped(bytemuck::cast_slice(values));
    let (odd_file, odd_bytes) = mapped(&[&[0u8; 1], bytemuck::cast_slice::<_, u8>(values)].concat());
    vec![
        ("f32", Stored::F32(Arc::new(values.to_vec()))),
        ("bf16", Stored::Bf16(Arc::new(values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect()))),
        ("mapped f32", Stored::mapped(f32_file, f32_bytes, Format::F32)),
        ("mapped f16", Stored::mapped(f16_file, f16_bytes, Format::F16)),
        ("unaligned f32", Stored::mapped(odd_file, 1..odd_bytes.end, Format::F32)),
    ]
}

fn mapped(bytes: &[u8]) -> (Arc<Memory>, std::ops::Range<usize>) {
    let mut map = memmap2::MmapMut::map_anon(bytes.len()).unwrap();
    map.copy_from_slice(bytes);
    (Arc::new(Memory::File(map.make_read_only().unwrap())), 0..bytes.len())
}

#[test]
fn products_and_gradients_agree_with_f64_whatever_the_shape_and_format() {
    for (rows, inner, outer) in SHAPES {
        let mut values = draw(outer * inner, 1);
        let formats = formats(&mut values);
        let (x, g, bias) = (draw(rows * inner, 2), draw(rows * outer, 3), draw(outer, 4));
        let product = exact(&x, &values, (rows, outer, inner), |l, j| j * inner + l);
        let gradient = exact(&g, &values, (rows, inner, outer), |l, j| l * inner + j);
        let biased: Vec<f64> = product.iter().enumerate().map(|(i, x)| x + f64::from(bias[i % outer])).collect();
        for (name, stored) in formats {
            for wish in [Precision::F32, Precision::Bf16] {
                let matrix = FrozenMatrix::new(stored.clone(), outer, inner, wish);
                let bound = match matrix.precision {
                    Precision::F32 => 1e-6,
                    Precision::Bf16 => 1e-2,
                };
                let case = format!("{rows}×{inner}·{outer}, {name}, {wish:?}");
                let gap = error(&matrix.product(&x, None), &product);
                assert!(gap < bound, "{case}: product {gap:.1e}");
                let gap = error(&matrix.product(&x, Some(&bias)), &biased);
                assert!(gap < bound, "{case}: with bias {gap:.1e}");
                let gap = error(&matrix.gradient(&g), &gradient);
                assert!(gap < bound, "{case}: gradient {gap:.1e}");
            }
        }
    }
}

#[test]
fn no_rows_give_none() {
    let matrix = FrozenMatrix::new(Stored::F32(Arc::new(draw(6, 1))), 2, 3, Precision::Bf16);
    assert!(matrix.product(&[], None).is_empty());
    assert!(matrix.gradient(&[]).is_empty());
}
