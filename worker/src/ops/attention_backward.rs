//! The gradient of attention. Probabilities are computed again from q and k, so that nothing of size `[Lq, Lk]` is
//! kept.
//!
//! With P = softmax(q·kᵀ / √head_dim) and the gradient dO of P·v: dV = Pᵀ·dO, dP = dO·vᵀ, dS = P ∘ (dP − Σ P ∘ dP) /
//! √head_dim, dQ = dS·k, dK = dSᵀ·q.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::attention::{Attention, AttentionSpans, Padded};
use super::{fused, values};
use crate::Result;
use crate::numerics::kernels::reduce;
use crate::numerics::matrix::{Existing, Matrix, Target, multiply_on_one_thread};
use crate::numerics::vectorized::vectorized;

/// The gradients of q, k and v.
pub(crate) type AttentionGradients = (Tensor, Tensor, Tensor);

/// The values of one sequence, or their gradients: q rows, k rows, v rows.
struct Rows<Q, K> {
    q: Q,
    k: K,
    v: K,
}

impl Attention {
    /// Returns the gradients of q `[Tq, heads·head_dim]`, k and v `[Tk, kv_heads·head_dim]` from that of
    /// [`Attention::attend`].
    pub(crate) fn backward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spans: &AttentionSpans,
        grad: &Tensor,
    ) -> Result<AttentionGradients> {
        match &spans.padded {
            Some(padded) => self.backward_composed(q, k, v, padded, grad),
            None if fused(&[q, k, v, grad]) => self.backward_fused(q, k, v, spans, grad),
            None => Err(candle_core::Error::Msg("attention spans made for another dtype or device".into()).into()),
        }
    }

    fn backward_composed(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        padded: &Padded,
        grad: &Tensor,
    ) -> Result<AttentionGradients> {
        let dtype = q.dtype();
        let [q, k, v] = self.side_by_side(q, k, v, padded)?;
        let mut grad = self.apart(grad, &padded.queries, self.group())?;
        if let Some(real) = &padded.real {
            // The gradient of padded queries must not reach keys and values.
            let real = real.reshape((padded.queries.batch, 1, padded.queries.longest, 1))?;
            grad = grad.broadcast_mul(&real.repeat((1, 1, self.group(), 1))?.to_dtype(dtype)?)?;
        }
        // Products are in the model's dtype; softmax and its gradient are in f32.
        let weights = self.weights(&q, &k, padded)?;
        let grad_v = weights.to_dtype(dtype)?.t()?.matmul(&grad)?;
        let grad_weights = grad.matmul(&v.t()?)?.to_dtype(DType::F32)?;
        let along = (&grad_weights * &weights)?.sum_keepdim(D::Minus1)?;
        let grad_scores =
            (grad_weights.broadcast_sub(&along)?.mul(&weights)? * f64::from(self.scale()))?.to_dtype(dtype)?;
        let grad_q = grad_scores.matmul(&k)?;
        let grad_k = grad_scores.t()?.matmul(&q)?;
        Ok((
            self.end_to_end(&grad_q, &padded.queries, self.group())?,
            self.end_to_end(&grad_k, &padded.keys, 1)?,
            self.end_to_end(&grad_v, &padded.keys, 1)?,
        ))
    }

    fn backward_fused(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spans: &AttentionSpans,
        grad: &Tensor,
    ) -> Result<AttentionGradients> {
        let (q_values, k_values, v_values, grad_values) = (values(q)?, values(k)?, values(v)?, values(grad)?);
        let (q_width, k_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut grad_q = vec![0f32; q_values.len()];
        let (mut grad_k, mut grad_v) = (vec![0f32; k_values.len()], vec![0f32; v_values.len()]);
        let mut sequences = Vec::with_capacity(spans.queries.len());
        let mut rest = Rows { q: grad_q.as_mut_slice(), k: grad_k.as_mut_slice(), v: grad_v.as_mut_slice() };
        for (queries, keys) in spans.queries.windows(2).zip(spans.keys.windows(2)) {
            let queries = queries[0] * q_width..queries[1] * q_width;
            let keys = keys[0] * k_width..keys[1] * k_width;
            let taken = "the gradients have a row for each query and each key";
            let gradients = Rows {
                q: rest.q.split_off_mut(..queries.len()).expect(taken),
                k: rest.k.split_off_mut(..keys.len()).expect(taken),
                v: rest.v.split_off_mut(..keys.len()).expect(taken),
            };
            let values = Rows { q: &q_values[queries.clone()], k: &k_values[keys.clone()], v: &v_values[keys] };
            sequences.push((gradients, values, &grad_values[queries]));
        }
        sequences.into_par_iter().for_each_init(
            || (Vec::new(), Vec::new()),
            |scratch, (gradients, values, grad)| {
                self.backward_sequence(gradients, &values, grad, spans.causality, scratch);
            },
        );
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((tensor(grad_q, q)?, tensor(grad_k, k)?, tensor(grad_v, v)?))
    }

    fn backward_sequence(
        &self,
        gradients: Rows<&mut [f32], &mut [f32]>,
        values: &Rows<&[f32], &[f32]>,
        grad: &[f32],
        causality: super::Causality,
        (weights, grad_scores): &mut (Vec<f32>, Vec<f32>),
    ) {
        let (q_width, k_width, width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim, self.head_dim);
        let (nq, nk) = (values.q.len() / q_width, values.k.len() / k_width);
        if nq == 0 {
            return;
        }
        weights.resize(nq * nk, 0.0);
        grad_scores.resize(nq * nk, 0.0);
        let (weights, grad_scores) = (&mut weights[..nq * nk], &mut grad_scores[..nq * nk]);
        for head in 0..self.heads {
            let (q_at, k_at) = self.columns(head);
            self.probabilities(weights, &values.q[q_at..], &values.k[k_at..], (nq, nk), causality);
            // dV [nk, head_dim] += Pᵀ · dO
            multiply_on_one_thread(
                Matrix::new(weights, nq, nk).transposed(),
                Matrix::strided(&grad[q_at..], nq, width, q_width),
                Target::new(&mut gradients.v[k_at..], k_width),
                Existing::Kept,
                1.0,
            );
            // dP [nq, nk] = dO · vᵀ
            multiply_on_one_thread(
                Matrix::strided(&grad[q_at..], nq, width, q_width),
                Matrix::strided(&values.v[k_at..], nk, width, k_width).transposed(),
                Target::new(grad_scores, nk),
                Existing::Overwritten,
                1.0,
            );
            for (grad_scores, weights) in grad_scores.chunks_exact_mut(nk).zip(weights.chunks_exact(nk)) {
                softmax_backward(grad_scores, weights);
            }
            // dQ [nq, head_dim] = dS · k
            multiply_on_one_thread(
                Matrix::new(grad_scores, nq, nk),
                Matrix::strided(&values.k[k_at..], nk, width, k_width),
                Target::new(&mut gradients.q[q_at..], q_width),
                Existing::Overwritten,
                self.scale(),
            );
            // dK [nk, head_dim] += dSᵀ · q
            multiply_on_one_thread(
                Matrix::new(grad_scores, nq, nk).transposed(),
                Matrix::strided(&values.q[q_at..], nq, width, q_width),
                Target::new(&mut gradients.k[k_at..], k_width),
                Existing::Kept,
                self.scale(),
            );
        }
    }
}

vectorized! {
    /// Turns the gradient of one row's weights into that of its scores.
    fn softmax_backward(grad: &mut [f32], weights: &[f32]) {
        let along = reduce(grad, weights, |by, weight| by * weight);
        for (grad, weight) in grad.iter_mut().zip(weights) {
            *grad = weight * (*grad - along);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Causality;
    use super::super::testing::{random, relative_error};
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn gradients_are_those_of_the_graph() {
        let attention = Attention { heads: 6, kv_heads: 2, head_dim: 16 };
        let keys = vec![0usize, 5, 6, 40, 57];
        let last = vec![0usize, 1, 2, 3, 4];
        for causality in [Causality::Bidirectional, Causality::Causal] {
            for queries in [keys.clone(), last.clone()] {
                let (q, grad) = (random(queries[4], 96, 1), random(queries[4], 96, 4));
                let (k, v) = (random(57, 32, 2), random(57, 32, 3));
                let vars = [&q, &k, &v].map(|x| Var::from_tensor(x).unwrap());
                let device = &Device::Cpu;
                let composed = AttentionSpans::side_by_side(queries.clone(), keys.clone(), causality);
                let fused = AttentionSpans::new(queries, keys.clone(), causality, DType::F32, device).unwrap();
                let out = attention.attend(&vars[0], &vars[1], &vars[2], &composed).unwrap();
                let graph = (out * &grad).unwrap().sum_all().unwrap().backward().unwrap();
                for spans in [composed, fused] {
                    let (grad_q, grad_k, grad_v) = attention.backward(&q, &k, &v, &spans, &grad).unwrap();
                    for (found, var) in [grad_q, grad_k, grad_v].iter().zip(&vars) {
                        assert!(relative_error(found, graph.get(var).unwrap()) < 1e-5, "{causality:?}");
                    }
                }
            }
        }
    }
}
