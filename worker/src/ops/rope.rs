//! The rotary position embedding in Llama's layout, which rotates the first half of a head against the second.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{edit, fused, rows_per_chunk, values};
use crate::Result;
use crate::numerics::vectorized::vectorized;

/// The cos and sin of each row's position times each frequency, `[T, head_dim / 2]`, in the dtype of the rotated
/// tensor.
pub(crate) struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// Returns the rotations of T rows at `positions`. Angles are f32 products, as in the reference.
    pub(crate) fn new(positions: &[u32], frequencies: &[f32], dtype: DType, device: &Device) -> Result<Self> {
        let angles = || positions.iter().flat_map(|&p| frequencies.iter().map(move |&f| f64::from(p as f32 * f)));
        let shape = (positions.len(), frequencies.len());
        let cos = Tensor::from_vec(angles().map(|a| a.cos() as f32).collect::<Vec<_>>(), shape, device)?;
        let sin = Tensor::from_vec(angles().map(|a| a.sin() as f32).collect::<Vec<_>>(), shape, device)?;
        let (cos, sin) = (cos.to_dtype(dtype)?, sin.to_dtype(dtype)?);
        Ok(Self { cos, sin })
    }

    pub(crate) fn select(&self, rows: &Tensor) -> Result<Self> {
        let (cos, sin) = (self.cos.index_select(rows, 0)?, self.sin.index_select(rows, 0)?);
        Ok(Self { cos, sin })
    }

    /// Rotates each head of x `[T, heads·head_dim]`. It consumes x, whose values nothing else may share.
    pub(crate) fn turn(&self, x: Tensor) -> Result<Tensor> {
        self.turn_by(x, &self.sin)
    }

    /// Returns the gradient of the input of [`Rope::turn`] from that of its result, by the inverse rotation. It
    /// consumes `grad`.
    pub(crate) fn turn_back(&self, grad: Tensor) -> Result<Tensor> {
        self.turn_by(grad, &self.sin.neg()?)
    }

    fn turn_by(&self, x: Tensor, sin: &Tensor) -> Result<Tensor> {
        if !fused(&[&x, &self.cos, sin]) {
            return self.turn_by_kernel(&x, sin);
        }
        let (width, half) = (x.dim(1)?, self.cos.dim(1)?);
        let (cos, sin) = (values(&self.cos)?, values(sin)?);
        edit(&x, |x| {
            let rows = x.par_chunks_mut(width).zip(cos.par_chunks(half)).zip(sin.par_chunks(half));
            rows.with_min_len(rows_per_chunk(width)).for_each(|((row, cos), sin)| {
                row.chunks_exact_mut(2 * half).for_each(|head| turn_head(head, cos, sin));
            });
        })?;
        Ok(x)
    }

    /// Rotates with candle's kernel, which takes all rows as one sequence with an angle for each row.
    fn turn_by_kernel(&self, x: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let head_dim = 2 * self.cos.dim(1)?;
        let heads = x.contiguous()?.reshape((1, rows, width / head_dim, head_dim))?;
        let turned = candle_nn::rotary_emb::rope_thd(&heads, &self.cos, sin)?;
        Ok(turned.reshape((rows, width))?)
    }
}

vectorized! {
    fn turn_head(head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (first, second) = head.split_at_mut(cos.len());
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;

    #[test]
    fn both_kernels_turn_as_the_definition_does() {
        let frequencies = [1.0, 0.3, 0.05, 0.002];
        let positions: Vec<u32> = (0..50).map(|i| i * 3 % 41).collect();
        let rope = Rope::new(&positions, &frequencies, DType::F32, &Device::Cpu).unwrap();
        let x = random(50, 6 * 8, 9);
        let apart = x.reshape((1, 50, 6, 8)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap(); // [1, heads, T, head_dim]
        let expected = candle_nn::rotary_emb::rope_slow(&apart, &rope.cos, &rope.sin).unwrap();
        let expected = expected.transpose(1, 2).unwrap().reshape((50, 48)).unwrap();
        let turned = rope.turn(x.copy().unwrap()).unwrap();
        assert!(relative_error(&turned, &expected) < 1e-6);
        let from_kernel = rope.turn_by_kernel(&x, &rope.sin).unwrap();
        assert!(relative_error(&from_kernel, &expected) < 1e-6);
        // A rotation keeps lengths and dot products, so its gradient is the inverse rotation.
        assert!(relative_error(&rope.turn_back(turned).unwrap(), &x) < 1e-6);
    }
}
