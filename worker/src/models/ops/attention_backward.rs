//! The gradient of attention. Probabilities are computed again from q and k, so that nothing of size [Lq, Lk] is kept.
//!
//! With P = softmax(q·kᵀ / √head_dim) and the gradient dO by P·v: dV = Pᵀ·dO, dP = dO·vᵀ,
//! dS = P ∘ (dP − Σ P ∘ dP) / √head_dim, dQ = dS·k, dK = dSᵀ·q.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::attention::{Attention, AttentionSpans, Padded};
use super::simd::{dot, vectorised};
use super::strided::product;
use super::{Values, fused};
use crate::Result;
use crate::llink::matrix::Existing;

/// Gradients by q, k and v.
pub(crate) type ByAttention = (Tensor, Tensor, Tensor);

/// One sequence's values, or its gradients: q rows, k rows, v rows.
struct Rows<Q, K> {
    q: Q,
    k: K,
    v: K,
}

impl Attention {
    /// The gradients by q [Tq, heads·head_dim], k and v [Tk, kv_heads·head_dim] from that by [`Attention::attend`].
    pub(crate) fn backward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spans: &AttentionSpans,
        by: &Tensor,
    ) -> Result<ByAttention> {
        match &spans.padded {
            Some(padded) => self.backward_composed(q, k, v, padded, by),
            None if fused(&[q, k, v, by]) => self.backward_fused(q, k, v, spans, by),
            None => Err(candle_core::Error::Msg("attention spans made for another dtype or device".into()).into()),
        }
    }

    fn backward_composed(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        padded: &Padded,
        by: &Tensor,
    ) -> Result<ByAttention> {
        let dtype = q.dtype();
        let (q, k, v) = (
            self.side_by_side(q, padded)?,
            self.keys_side_by_side(k, padded)?,
            self.keys_side_by_side(v, padded)?,
        );
        let mut by = self.side_by_side(by, padded)?;
        if let Some(real) = &padded.real {
            // What stands in the place of a query that is not there must not reach keys and values.
            by = by.broadcast_mul(&self.real_places(real, padded)?.to_dtype(dtype)?)?;
        }
        // Products in the model's dtype, softmax and its gradient in f32.
        let weights = self.weights(&q, &k, padded)?;
        let by_v = weights.to_dtype(dtype)?.t()?.matmul(&by)?;
        let by_weights = by.matmul(&v.t()?)?.to_dtype(DType::F32)?;
        let along = (&by_weights * &weights)?.sum_keepdim(D::Minus1)?;
        let by_scores =
            (by_weights.broadcast_sub(&along)?.mul(&weights)? * f64::from(self.scale()))?.to_dtype(dtype)?;
        let by_q = by_scores.matmul(&k)?;
        let by_k = by_scores.t()?.matmul(&q)?;
        Ok((
            self.end_to_end(&by_q, padded)?,
            self.keys_end_to_end(&by_k, padded)?,
            self.keys_end_to_end(&by_v, padded)?,
        ))
    }

    /// 1 for places of real queries: [B, 1, group·Lq, 1].
    fn real_places(&self, real: &Tensor, padded: &Padded) -> Result<Tensor> {
        let (batch, lq, _) = padded.size;
        let group = self.heads / self.kv_heads;
        Ok(real.reshape((batch, 1, lq, 1))?.repeat((1, 1, group, 1))?)
    }

    fn backward_fused(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spans: &AttentionSpans,
        by: &Tensor,
    ) -> Result<ByAttention> {
        let (q_values, k_values) = (Values::of(q)?, Values::of(k)?);
        let (v_values, by_values) = (Values::of(v)?, Values::of(by)?);
        let (q_values, k_values) = (q_values.get()?, k_values.get()?);
        let (v_values, by_values) = (v_values.get()?, by_values.get()?);
        let (q_width, k_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut by_q = vec![0f32; q_values.len()];
        let (mut by_k, mut by_v) = (vec![0f32; k_values.len()], vec![0f32; v_values.len()]);
        let mut sequences = Vec::with_capacity(spans.queries.len());
        let mut rest = (by_q.as_mut_slice(), by_k.as_mut_slice(), by_v.as_mut_slice());
        for (queries, keys) in spans.queries.windows(2).zip(spans.keys.windows(2)) {
            let queries = queries[0] * q_width..queries[1] * q_width;
            let keys = keys[0] * k_width..keys[1] * k_width;
            let split = (
                rest.0.split_at_mut(queries.len()),
                rest.1.split_at_mut(keys.len()),
                rest.2.split_at_mut(keys.len()),
            );
            let gradients = Rows {
                q: split.0.0,
                k: split.1.0,
                v: split.2.0,
            };
            rest = (split.0.1, split.1.1, split.2.1);
            let values = Rows {
                q: &q_values[queries.clone()],
                k: &k_values[keys.clone()],
                v: &v_values[keys],
            };
            sequences.push((gradients, values, &by_values[queries]));
        }
        sequences.into_par_iter().for_each_init(
            || (Vec::new(), Vec::new()),
            |scratch, (gradients, values, by)| {
                self.backward_sequence(gradients, &values, by, spans.causality, scratch);
            },
        );
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((tensor(by_q, q)?, tensor(by_k, k)?, tensor(by_v, v)?))
    }

    fn backward_sequence(
        &self,
        gradients: Rows<&mut [f32], &mut [f32]>,
        values: &Rows<&[f32], &[f32]>,
        by: &[f32],
        causality: super::Causality,
        (weights, by_scores): &mut (Vec<f32>, Vec<f32>),
    ) {
        let (q_width, k_width, width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim, self.head_dim);
        let (nq, nk) = (values.q.len() / q_width, values.k.len() / k_width);
        if nq == 0 {
            return;
        }
        weights.resize(nq * nk, 0.0);
        by_scores.resize(nq * nk, 0.0);
        let (weights, by_scores) = (&mut weights[..nq * nk], &mut by_scores[..nq * nk]);
        for head in 0..self.heads {
            let (q_at, k_at) = self.columns(head);
            self.probabilities(weights, &values.q[q_at..], &values.k[k_at..], (nq, nk), causality);
            // dV [nk, head_dim] += Pᵀ · dO
            product(
                (nk, width, nq),
                (&mut gradients.v[k_at..], k_width, Existing::Kept),
                (weights, nk, 1),
                (&by[q_at..], 1, q_width),
                1.0,
            );
            // dP [nq, nk] = dO · vᵀ
            product(
                (nq, nk, width),
                (by_scores, nk, Existing::Overwritten),
                (&by[q_at..], 1, q_width),
                (&values.v[k_at..], k_width, 1),
                1.0,
            );
            for (by_scores, weights) in by_scores.chunks_exact_mut(nk).zip(weights.chunks_exact(nk)) {
                softmax_backward(by_scores, weights);
            }
            // dQ [nq, head_dim] = dS · k
            product(
                (nq, width, nk),
                (&mut gradients.q[q_at..], q_width, Existing::Overwritten),
                (by_scores, 1, nk),
                (&values.k[k_at..], 1, k_width),
                self.scale(),
            );
            // dK [nk, head_dim] += dSᵀ · q
            product(
                (nk, width, nq),
                (&mut gradients.k[k_at..], k_width, Existing::Kept),
                (by_scores, nk, 1),
                (&values.q[q_at..], 1, q_width),
                self.scale(),
            );
        }
    }
}

vectorised! {
    /// One row: the gradient by the weights becomes that by the scores.
    fn softmax_backward(by: &mut [f32], weights: &[f32]) {
        let along = dot(by, weights);
        for (by, weight) in by.iter_mut().zip(weights) {
            *by = weight * (*by - along);
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
        let attention = Attention {
            heads: 6,
            kv_heads: 2,
            head_dim: 16,
        };
        let keys = vec![0usize, 5, 6, 40, 57];
        let last = vec![0usize, 1, 2, 3, 4];
        for causality in [Causality::Bidirectional, Causality::Causal] {
            for queries in [keys.clone(), last.clone()] {
                let (q, by) = (random(queries[4], 96, 1), random(queries[4], 96, 4));
                let (k, v) = (random(57, 32, 2), random(57, 32, 3));
                let vars = [&q, &k, &v].map(|x| Var::from_tensor(x).unwrap());
                let device = &Device::Cpu;
                let composed = AttentionSpans::side_by_side(queries.clone(), keys.clone(), causality);
                let fused = AttentionSpans::new(queries, keys.clone(), causality, DType::F32, device).unwrap();
                let out = attention.attend(&vars[0], &vars[1], &vars[2], &composed).unwrap();
                let graph = (out * &by).unwrap().sum_all().unwrap().backward().unwrap();
                for spans in [composed, fused] {
                    let (by_q, by_k, by_v) = attention.backward(&q, &k, &v, &spans, &by).unwrap();
                    for (found, var) in [by_q, by_k, by_v].iter().zip(&vars) {
                        assert!(relative_error(found, graph.get(var).unwrap()) < 1e-5, "{causality:?}");
                    }
                }
            }
        }
    }
}
