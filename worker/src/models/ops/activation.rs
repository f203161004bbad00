//! GELU and SiLU.

use candle_core::Tensor;
use rayon::prelude::*;

use super::simd::{erf, exp, vectorised};
use super::{Values, edit, fused};
use crate::Result;

const CHUNK: usize = 8_192;

/// GELU with the error function, x·Φ(x). Takes x over: nobody else may hold its values.
pub(crate) fn gelu(x: Tensor) -> Result<Tensor> {
    if !fused(&[&x]) {
        return Ok(x.gelu_erf()?);
    }
    edit(&x, |x| x.par_chunks_mut(CHUNK).for_each(gelu_slice))?;
    Ok(x)
}

/// silu(gate) · up, the middle of Llama's feed-forward block. Takes gate over: nobody else may hold its values.
pub(crate) fn silu_mul(gate: Tensor, up: &Tensor) -> Result<Tensor> {
    if !fused(&[&gate, up]) {
        return Ok((gate.silu()? * up)?);
    }
    let values = Values::of(up)?;
    let up = values.get()?;
    edit(&gate, |gate| {
        gate.par_chunks_mut(CHUNK)
            .zip(up.par_chunks(CHUNK))
            .for_each(|(gate, up)| silu_mul_slice(gate, up));
    })?;
    Ok(gate)
}

vectorised! {
    fn gelu_slice(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

vectorised! {
    fn silu_mul_slice(gate: &mut [f32], up: &[f32]) {
        for (g, u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;

    #[test]
    fn fused_activations_agree_with_the_composed_ones() {
        let (x, up) = (random(70, 257, 1), random(70, 257, 2));
        let composed = x.gelu_erf().unwrap();
        assert!(relative_error(&gelu(x.copy().unwrap()).unwrap(), &composed) < 1e-6);
        let composed = (x.silu().unwrap() * &up).unwrap();
        assert!(relative_error(&silu_mul(x.copy().unwrap(), &up).unwrap(), &composed) < 1e-6);
    }
}
