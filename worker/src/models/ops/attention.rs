//! Scaled dot-product attention over packed sequences.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::simd::softmax;
use super::strided::product;
use super::{Values, fused};
use crate::Result;
use crate::llink::matrix::Existing;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Causality {
    /// All of its sequence.
    Bidirectional,
    /// Those up to its own position. Queries are the last of their sequence's positions.
    Causal,
}

/// Where each sequence's query rows and key rows stand, sequences end to end. For a whole forward pass the two are
/// the same; the last layer of a teacher pass has one query row each, a generation step has cached keys.
pub(crate) struct AttentionSpans {
    pub(super) queries: Vec<usize>,
    pub(super) keys: Vec<usize>,
    pub(super) causality: Causality,
    pub(super) padded: Option<Padded>,
}

/// What the composed form needs: sequences side by side in [B, longest].
pub(super) struct Padded {
    queries: Tensor,             // [B·Lq] row to read for each place; row 0 where there is none
    keys: Tensor,                // [B·Lk]
    mask: Tensor,                // [B, 1, 1, Lq, Lk] 0 or −∞, f32
    pub(super) rows: Tensor,     // [Tq] place of each real query
    pub(super) key_rows: Tensor, // [Tk] place of each real key
    pub(super) real: Tensor,     // [B·Lq, 1] 1 for real queries, 0 for others, f32
    pub(super) size: (usize, usize, usize),
}

impl AttentionSpans {
    /// From offsets, each list one longer than there are sequences. `dtype` is that of the queries to come.
    pub(crate) fn new(
        queries: Vec<usize>,
        keys: Vec<usize>,
        causality: Causality,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let composed = !(device.is_cpu() && dtype == DType::F32);
        let padded = composed
            .then(|| Padded::new(&queries, &keys, causality, device))
            .transpose()?;
        Ok(Self {
            queries,
            keys,
            causality,
            padded,
        })
    }

    #[cfg(test)]
    /// The same in the composed form, for tensors inside a gradient graph.
    pub(crate) fn for_training(
        queries: Vec<usize>,
        keys: Vec<usize>,
        causality: Causality,
        device: &Device,
    ) -> Result<Self> {
        let padded = Some(Padded::new(&queries, &keys, causality, device)?);
        Ok(Self {
            queries,
            keys,
            causality,
            padded,
        })
    }

    /// How many keys query `i` of `n` sees among `keys`.
    fn visible(causality: Causality, i: usize, queries: usize, keys: usize) -> usize {
        match causality {
            Causality::Bidirectional => keys,
            Causality::Causal => keys + i + 1 - queries,
        }
    }
}

impl Padded {
    fn new(queries: &[usize], keys: &[usize], causality: Causality, device: &Device) -> Result<Self> {
        let longest = |offsets: &[usize]| offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        let (batch, lq, lk) = (queries.len() - 1, longest(queries), longest(keys));
        let places = |offsets: &[usize], longest: usize| {
            let mut rows = vec![0u32; batch * longest];
            for (b, w) in offsets.windows(2).enumerate() {
                for (i, row) in (w[0]..w[1]).enumerate() {
                    rows[b * longest + i] = row as u32;
                }
            }
            rows
        };
        let mut mask = vec![f32::NEG_INFINITY; batch * lq * lk];
        let (mut rows, mut key_rows) = (Vec::with_capacity(queries[batch]), Vec::with_capacity(keys[batch]));
        let mut real = vec![0f32; batch * lq];
        for b in 0..batch {
            let (nq, nk) = (queries[b + 1] - queries[b], keys[b + 1] - keys[b]);
            for i in 0..lq {
                // A padded query sees the first key, so that its softmax stays finite; nobody reads the result.
                let visible = if i < nq {
                    AttentionSpans::visible(causality, i, nq, nk)
                } else {
                    1
                };
                let at = (b * lq + i) * lk;
                mask[at..at + visible].fill(0.0);
                if i < nq {
                    rows.push((b * lq + i) as u32);
                    real[b * lq + i] = 1.0;
                }
            }
            key_rows.extend((b * lk..b * lk + nk).map(|place| place as u32));
        }
        Ok(Self {
            queries: Tensor::from_vec(places(queries, lq), batch * lq, device)?,
            keys: Tensor::from_vec(places(keys, lk), batch * lk, device)?,
            mask: Tensor::from_vec(mask, (batch, 1, 1, lq, lk), device)?,
            rows: Tensor::new(rows, device)?,
            key_rows: Tensor::new(key_rows, device)?,
            real: Tensor::from_vec(real, (batch * lq, 1), device)?,
            size: (batch, lq, lk),
        })
    }
}

/// The heads of one attention block. Each key head serves `heads / kv_heads` query heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
}

impl Attention {
    /// softmax(q·kᵀ / √head_dim)·v for each head: q [Tq, heads·head_dim], k and v [Tk, kv_heads·head_dim] → as q.
    pub(crate) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, spans: &AttentionSpans) -> Result<Tensor> {
        match &spans.padded {
            Some(padded) => self.composed(q, k, v, padded),
            None if fused(&[q, k, v]) => self.fused(q, k, v, spans),
            None => Err(candle_core::Error::Msg("attention spans made for another dtype or device".into()).into()),
        }
    }

    fn fused(&self, q: &Tensor, k: &Tensor, v: &Tensor, spans: &AttentionSpans) -> Result<Tensor> {
        let (q_values, k_values, v_values) = (Values::of(q)?, Values::of(k)?, Values::of(v)?);
        let (q_values, k_values, v_values) = (q_values.get()?, k_values.get()?, v_values.get()?);
        let (q_width, k_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut out = vec![0f32; q_values.len()];
        let mut sequences = Vec::with_capacity(spans.queries.len());
        let mut rest = out.as_mut_slice();
        for (queries, keys) in spans.queries.windows(2).zip(spans.keys.windows(2)) {
            let (own, others) = rest.split_at_mut((queries[1] - queries[0]) * q_width);
            rest = others;
            let q = &q_values[queries[0] * q_width..queries[1] * q_width];
            let k = &k_values[keys[0] * k_width..keys[1] * k_width];
            let v = &v_values[keys[0] * k_width..keys[1] * k_width];
            sequences.push((own, q, k, v));
        }
        sequences
            .into_par_iter()
            .for_each_init(Vec::new, |scores, (out, q, k, v)| {
                self.attend_sequence(out, q, k, v, spans.causality, scores);
            });
        Ok(Tensor::from_vec(out, q.shape(), q.device())?)
    }

    /// One sequence: q and out [nq, heads·head_dim], k and v [nk, kv_heads·head_dim].
    fn attend_sequence(
        &self,
        out: &mut [f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        causality: Causality,
        scores: &mut Vec<f32>,
    ) {
        let (q_width, k_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (nq, nk) = (q.len() / q_width, k.len() / k_width);
        if nq == 0 {
            return;
        }
        scores.resize(nq * nk, 0.0);
        for head in 0..self.heads {
            let (q_at, k_at) = self.columns(head);
            self.probabilities(scores, &q[q_at..], &k[k_at..], (nq, nk), causality);
            // out [nq, head_dim] = scores [nq, nk] · v [nk, head_dim]
            product(
                (nq, self.head_dim, nk),
                (&mut out[q_at..], q_width, Existing::Overwritten),
                (scores, 1, nk),
                (&v[k_at..], 1, k_width),
                1.0,
            );
        }
    }

    /// Where a query head's columns start, and those of its key head.
    pub(super) fn columns(&self, head: usize) -> (usize, usize) {
        let key_head = head / (self.heads / self.kv_heads);
        (head * self.head_dim, key_head * self.head_dim)
    }

    /// softmax(q·kᵀ / √head_dim) [nq, nk] of one head, whose columns `q` and `k` start with.
    pub(super) fn probabilities(
        &self,
        out: &mut [f32],
        q: &[f32],
        k: &[f32],
        (nq, nk): (usize, usize),
        causality: Causality,
    ) {
        let (q_width, k_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        // [nq, head_dim] · [head_dim, nk]
        product(
            (nq, nk, self.head_dim),
            (out, nk, Existing::Overwritten),
            (q, 1, q_width),
            (k, k_width, 1),
            self.scale(),
        );
        for (i, row) in out.chunks_exact_mut(nk).enumerate() {
            softmax(row, AttentionSpans::visible(causality, i, nq, nk));
        }
    }

    /// 1 / √head_dim.
    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn composed(&self, q: &Tensor, k: &Tensor, v: &Tensor, padded: &Padded) -> Result<Tensor> {
        let (q, k, v) = (
            self.side_by_side(q, padded)?,
            self.keys_side_by_side(k, padded)?,
            self.keys_side_by_side(v, padded)?,
        );
        let out = self.weights(&q, &k, padded)?.to_dtype(v.dtype())?.matmul(&v)?;
        self.end_to_end(&out, padded)
    }

    /// Query rows [Tq, heads·head_dim] → [B, kv_heads, group·Lq, head_dim].
    pub(super) fn side_by_side(&self, q: &Tensor, padded: &Padded) -> Result<Tensor> {
        let (batch, lq, _) = padded.size;
        let (kv_heads, group, width) = (self.kv_heads, self.heads / self.kv_heads, self.head_dim);
        Ok(q.index_select(&padded.queries, 0)?
            .reshape((batch, lq, kv_heads, group, width))?
            .permute((0, 2, 3, 1, 4))?
            .reshape((batch, kv_heads, group * lq, width))?)
    }

    /// Key or value rows [Tk, kv_heads·head_dim] → [B, kv_heads, Lk, head_dim].
    pub(super) fn keys_side_by_side(&self, x: &Tensor, padded: &Padded) -> Result<Tensor> {
        let (batch, _, lk) = padded.size;
        let x = x
            .index_select(&padded.keys, 0)?
            .reshape((batch, lk, self.kv_heads, self.head_dim))?;
        Ok(x.transpose(1, 2)?.contiguous()?)
    }

    /// softmax(q·kᵀ / √head_dim) in f32, [B, kv_heads, group·Lq, Lk].
    pub(super) fn weights(&self, q: &Tensor, k: &Tensor, padded: &Padded) -> Result<Tensor> {
        let (batch, lq, lk) = padded.size;
        let group = self.heads / self.kv_heads;
        let scores = (q.matmul(&k.t()?)? * f64::from(self.scale()))?
            .to_dtype(DType::F32)?
            .reshape((batch, self.kv_heads, group, lq, lk))?
            .broadcast_add(&padded.mask)?;
        let weights = if scores.track_op() {
            candle_nn::ops::softmax(&scores, D::Minus1)?
        } else {
            candle_nn::ops::softmax_last_dim(&scores)?
        };
        Ok(weights.reshape((batch, self.kv_heads, group * lq, lk))?)
    }

    /// [B, kv_heads, group·Lq, head_dim] → query rows [Tq, heads·head_dim].
    pub(super) fn end_to_end(&self, out: &Tensor, padded: &Padded) -> Result<Tensor> {
        let (batch, lq, _) = padded.size;
        let (kv_heads, group, width) = (self.kv_heads, self.heads / self.kv_heads, self.head_dim);
        let out = out
            .reshape((batch, kv_heads, group, lq, width))?
            .permute((0, 3, 1, 2, 4))? // [B, Lq, kv_heads, group, head_dim]
            .reshape((batch * lq, self.heads * width))?;
        Ok(out.index_select(&padded.rows, 0)?)
    }

    /// [B, kv_heads, Lk, head_dim] → key rows [Tk, kv_heads·head_dim].
    pub(super) fn keys_end_to_end(&self, x: &Tensor, padded: &Padded) -> Result<Tensor> {
        let (batch, _, lk) = padded.size;
        let x = x
            .transpose(1, 2)?
            .reshape((batch * lk, self.kv_heads * self.head_dim))?;
        Ok(x.index_select(&padded.key_rows, 0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;

    #[test]
    fn fused_attention_agrees_with_the_composed_one() {
        let attention = Attention {
            heads: 6,
            kv_heads: 2,
            head_dim: 16,
        };
        let keys = vec![0usize, 5, 6, 40, 57];
        let last = vec![0usize, 1, 2, 3, 4];
        for causality in [Causality::Bidirectional, Causality::Causal] {
            for queries in [keys.clone(), last.clone()] {
                let q = random(queries[4], 96, 1);
                let (k, v) = (random(57, 32, 2), random(57, 32, 3));
                let device = &Device::Cpu;
                let fused = AttentionSpans::new(queries.clone(), keys.clone(), causality, DType::F32, device).unwrap();
                let composed = AttentionSpans::for_training(queries, keys.clone(), causality, device).unwrap();
                let expected = attention.attend(&q, &k, &v, &composed).unwrap();
                let found = attention.attend(&q, &k, &v, &fused).unwrap();
                assert!(relative_error(&found, &expected) < 1e-5, "{causality:?}");
            }
        }
    }
}
