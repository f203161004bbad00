//! The activations GELU and SiLU.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{edit, fused, values};
use crate::Result;
use crate::numerics::kernels::{self, exp};
use crate::numerics::vectorized::vectorized;

const CHUNK: usize = 8_192;

/// Computes GELU with the error function, x·Φ(x). It consumes x, whose values nothing else may share.
pub(crate) fn gelu(x: Tensor) -> Result<Tensor> {
    if !fused(&[&x]) {
        return Ok(x.gelu_erf()?);
    }
    edit(&x, |x| x.par_chunks_mut(CHUNK).for_each(gelu_slice))?;
    Ok(x)
}

/// Computes silu(gate) · up, the middle of Llama's feed-forward block.
pub(crate) fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !fused(&[gate, up]) {
        return Ok((gate.silu()? * up)?);
    }
    let (gate_values, up) = (values(gate)?, values(up)?);
    let mut out = vec![0f32; gate_values.len()];
    out.par_chunks_mut(CHUNK)
        .zip(gate_values.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .for_each(|(out, (gate, up))| silu_mul_slice(out, gate, up));
    Ok(Tensor::from_vec(out, gate.shape(), gate.device())?)
}

/// Returns the gradients of gate and up from that of silu(gate) · up. All have one shape.
pub(crate) fn silu_mul_backward(gate: &Tensor, up: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
    if !fused(&[gate, up, grad]) {
        let sigmoid = candle_nn::ops::sigmoid(gate)?;
        let silu = (gate * &sigmoid)?;
        // silu' = σ + silu · (1 − σ)
        let slope = (&sigmoid + &silu * (1.0 - &sigmoid)?)?;
        return Ok(((grad * up)?.mul(&slope)?, (grad * silu)?));
    }
    let (gate, up_values, grad) = (values(gate)?, values(up)?, values(grad)?);
    let (mut grad_gate, mut grad_up) = (vec![0f32; gate.len()], vec![0f32; gate.len()]);
    grad_gate.par_chunks_mut(CHUNK).zip(grad_up.par_chunks_mut(CHUNK)).enumerate().for_each(
        |(chunk, (grad_gate, grad_up))| {
            let at = chunk * CHUNK..chunk * CHUNK + grad_gate.len();
            silu_mul_backward_slice(grad_gate, grad_up, &gate[at.clone()], &up_values[at.clone()], &grad[at]);
        },
    );
    let tensor = |values| Tensor::from_vec(values, up.shape(), up.device());
    Ok((tensor(grad_gate)?, tensor(grad_up)?))
}

vectorized! {
    fn silu_mul_backward_slice(grad_gate: &mut [f32], grad_up: &mut [f32], gate: &[f32], up: &[f32], grad: &[f32]) {
        for ((((grad_gate, grad_up), g), u), grad) in grad_gate.iter_mut().zip(grad_up).zip(gate).zip(up).zip(grad) {
            let sigmoid = 1.0 / (1.0 + exp(-*g));
            let silu = g * sigmoid;
            *grad_gate = grad * u * (sigmoid + silu * (1.0 - sigmoid));
            *grad_up = grad * silu;
        }
    }

    fn gelu_slice(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x = kernels::gelu(*x).0;
        }
    }

    fn silu_mul_slice(out: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
            *out = *g / (1.0 + exp(-*g)) * u;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;
    use candle_core::Var;

    #[test]
    fn the_gradient_of_the_gated_product_is_that_of_its_graph() {
        let (gate, up, grad) = (random(70, 257, 1), random(70, 257, 2), random(70, 257, 3));
        let vars = [&gate, &up].map(|x| Var::from_tensor(x).unwrap());
        let out = (vars[0].silu().unwrap() * vars[1].as_tensor()).unwrap();
        let graph = (out * &grad).unwrap().sum_all().unwrap().backward().unwrap();
        let composed = silu_mul_backward(&gate.t().unwrap(), &up.t().unwrap(), &grad.t().unwrap()).unwrap();
        let fused = silu_mul_backward(&gate, &up, &grad).unwrap();
        for (grad_gate, grad_up) in [(composed.0.t().unwrap(), composed.1.t().unwrap()), fused] {
            assert!(relative_error(&grad_gate, graph.get(&vars[0]).unwrap()) < 1e-6);
            assert!(relative_error(&grad_up, graph.get(&vars[1]).unwrap()) < 1e-6);
        }
    }

    #[test]
    fn fused_activations_agree_with_the_composed_ones() {
        let (x, up) = (random(70, 257, 1), random(70, 257, 2));
        let composed = x.gelu_erf().unwrap();
        assert!(relative_error(&gelu(x.copy().unwrap()).unwrap(), &composed) < 1e-6);
        let composed = (x.silu().unwrap() * &up).unwrap();
        assert!(relative_error(&silu_mul(&x, &up).unwrap(), &composed) < 1e-6);
    }
}
