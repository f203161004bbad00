//! Scaled dot-product attention over packed sequences.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::{fused, values};
use crate::Result;
use crate::numerics::matrix::{Existing, Matrix, Target, multiply_on_one_thread};
use crate::numerics::softmax::softmax;

/// The keys that a query attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Causality {
    /// All keys of its sequence.
    Bidirectional,
    /// The keys up to its own position. Queries are at the last positions of their sequence.
    Causal,
}

/// The rows of a sequence that a mean is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MeanOf {
    /// All rows.
    All,
    /// All rows but the first, unless it is the only one.
    AllButFirst,
}

/// The query rows and key rows of each sequence, with sequences end to end. In a whole forward pass the two are the
/// same. The last layer of a teacher pass has one query row for each sequence, and a generation step has cached keys.
pub(crate) struct AttentionSpans {
    pub(super) queries: Vec<usize>,
    pub(super) keys: Vec<usize>,
    pub(super) causality: Causality,
    pub(super) padded: Option<Padded>,
    #[cfg(feature = "flash-attn")]
    flash: Option<super::flash::Flash>,
}

/// The form of sequences for attention by tensor operations, which pads them to `[B, longest]`.
pub(super) struct Padded {
    pub(super) queries: Side,
    pub(super) keys: Side,
    mask: Option<Tensor>, // [B or 1, 1, 1, Lq or 1, Lk], 0 or −∞, f32; `None` if every query attends to all keys
    pub(super) real: Option<Tensor>, // [B·Lq, 1], 1 for real queries, 0 for padding, f32; `None` without padding
}

/// The queries or the keys of all sequences.
pub(super) struct Side {
    pub(super) batch: usize,
    pub(super) longest: usize,
    /// The indices from packed to padded rows and back. `None` if all sequences have one length.
    places: Option<(Tensor, Tensor)>,
}

impl Side {
    fn new(offsets: &[usize], device: &Device) -> Result<Self> {
        let batch = offsets.len() - 1;
        let longest = offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        if offsets[batch] == batch * longest {
            return Ok(Self { batch, longest, places: None });
        }
        let mut from = vec![0u32; batch * longest]; // [B·L] row to read for each padded row; 0 for padding
        let mut to = Vec::with_capacity(offsets[batch]); // [T] padded row of each row
        for (b, w) in offsets.windows(2).enumerate() {
            for (i, row) in (w[0]..w[1]).enumerate() {
                from[b * longest + i] = row as u32;
                to.push((b * longest + i) as u32);
            }
        }
        Ok(Self { batch, longest, places: Some((Tensor::new(from, device)?, Tensor::new(to, device)?)) })
    }

    /// Maps `[T, width]` to `[B·L, width]`.
    fn padded(&self, x: &Tensor) -> Result<Tensor> {
        self.places.as_ref().map_or_else(|| Ok(x.clone()), |(from, _)| Ok(x.index_select(from, 0)?))
    }

    /// Maps `[B·L, width]` to `[T, width]`.
    fn packed(&self, x: &Tensor) -> Result<Tensor> {
        self.places.as_ref().map_or_else(|| Ok(x.clone()), |(_, to)| Ok(x.index_select(to, 0)?))
    }
}

impl AttentionSpans {
    /// Takes offsets, each list one longer than there are sequences. `dtype` is that of the queries.
    pub(crate) fn new(
        queries: Vec<usize>,
        keys: Vec<usize>,
        causality: Causality,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let padded = match device.is_cpu() && dtype == DType::F32 {
            true => None,
            false => Some(Padded::new(&queries, &keys, causality, device)?),
        };
        Ok(Self {
            #[cfg(feature = "flash-attn")]
            flash: super::flash::Flash::new(&queries, &keys, causality, dtype, device)?,
            queries,
            keys,
            causality,
            padded,
        })
    }

    /// Uses the padded form on the CPU too, as on other devices.
    #[cfg(test)]
    pub(super) fn side_by_side(queries: Vec<usize>, keys: Vec<usize>, causality: Causality) -> Self {
        let padded = Padded::new(&queries, &keys, causality, &Device::Cpu).unwrap();
        let padded = Some(padded);
        Self { padded, ..Self::new(queries, keys, causality, DType::F32, &Device::Cpu).unwrap() }
    }

    /// Returns the mean of each sequence's rows of `x` `[Tq, width]`, in f32: `[B, width]`. A sequence without rows
    /// gives zeros.
    pub(crate) fn mean_rows(&self, x: &Tensor, of: MeanOf) -> Result<Tensor> {
        // The mean is over the rows of a sequence from this one on.
        let first = |rows: usize| usize::from(of == MeanOf::AllButFirst && rows > 1);
        let Some(padded) = &self.padded else {
            let means = self.queries.windows(2).map(|w| {
                let (skipped, rows) = (first(w[1] - w[0]), w[1] - w[0]);
                if rows == 0 {
                    return Ok(Tensor::zeros(x.dim(1)?, DType::F32, x.device())?);
                }
                let taken = rows - skipped;
                Ok((x.narrow(0, w[0] + skipped, taken)?.to_dtype(DType::F32)?.sum(0)? / taken as f64)?)
            });
            return Ok(Tensor::stack(&means.collect::<Result<Vec<_>>>()?, 0)?);
        };
        let Side { batch, longest, .. } = padded.queries;
        let mut shares = vec![0f32; batch * longest];
        for (b, w) in self.queries.windows(2).enumerate() {
            let rows = w[1] - w[0];
            let taken = first(rows)..rows;
            let share = 1.0 / taken.len().max(1) as f32;
            shares[b * longest..][taken].fill(share);
        }
        let shares = Tensor::from_vec(shares, (batch * longest, 1), x.device())?;
        let rows = padded.queries.padded(x)?.to_dtype(DType::F32)?.broadcast_mul(&shares)?;
        Ok(rows.reshape((batch, longest, x.dim(1)?))?.sum(1)?)
    }

    /// Returns the number of keys, out of `keys`, that query `i` of `queries` attends to.
    fn visible(causality: Causality, i: usize, queries: usize, keys: usize) -> usize {
        match causality {
            Causality::Bidirectional => keys,
            Causality::Causal => keys + i + 1 - queries,
        }
    }
}

impl Padded {
    fn new(queries: &[usize], keys: &[usize], causality: Causality, device: &Device) -> Result<Self> {
        let (of_queries, of_keys) = (Side::new(queries, device)?, Side::new(keys, device)?);
        let Side { batch, longest, .. } = of_queries;
        let real = of_queries.places.is_some().then(|| {
            let mut real = vec![0f32; batch * longest];
            for (b, w) in queries.windows(2).enumerate() {
                real[b * longest..b * longest + w[1] - w[0]].fill(1.0);
            }
            Tensor::from_vec(real, (batch * longest, 1), device)
        });
        let mask = mask(queries, keys, causality, device)?;
        Ok(Self { queries: of_queries, keys: of_keys, mask, real: real.transpose()? })
    }
}

/// Returns the attention mask with the fewest values: one for all sequences if they are alike, and one for all queries
/// if they are.
fn mask(queries: &[usize], keys: &[usize], causality: Causality, device: &Device) -> Result<Option<Tensor>> {
    let length = |offsets: &[usize], b: usize| offsets[b + 1] - offsets[b];
    let batch = queries.len() - 1;
    let (lq, lk) = (0..batch).fold((0, 0), |(lq, lk), b| (lq.max(length(queries, b)), lk.max(length(keys, b))));
    let same_keys = (0..batch).all(|b| length(keys, b) == lk);
    let from_the_start = (0..batch).all(|b| length(queries, b) == length(keys, b));
    // A query of padding attends to the first key, so that its softmax stays finite; the result is not read. In a
    // causal pass over whole sequences the mask already hides the padding, because it comes after all real tokens.
    let (sequences, rows) = match causality {
        Causality::Bidirectional if same_keys => return Ok(None),
        Causality::Bidirectional => (batch, 1),
        Causality::Causal if from_the_start => (1, lq),
        Causality::Causal => (batch, lq),
    };
    let mut mask = vec![f32::NEG_INFINITY; sequences * rows * lk];
    for b in 0..sequences {
        for i in 0..rows {
            let (nq, nk) = (length(queries, b), length(keys, b));
            let visible = match causality {
                Causality::Bidirectional => nk.max(1),
                Causality::Causal if from_the_start => i + 1,
                Causality::Causal if i < nq => AttentionSpans::visible(causality, i, nq, nk),
                Causality::Causal => 1,
            };
            let at = (b * rows + i) * lk;
            mask[at..at + visible.min(lk)].fill(0.0);
        }
    }
    Ok(Some(Tensor::from_vec(mask, (sequences, 1, 1, rows, lk), device)?))
}

/// The heads of one attention block. Each key head serves `heads / kv_heads` query heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    /// The number of query heads.
    pub(crate) heads: usize,
    /// The number of key and value heads.
    pub(crate) kv_heads: usize,
    /// The width of a head.
    pub(crate) head_dim: usize,
}

impl Attention {
    /// Computes softmax(q·kᵀ / √head_dim)·v for each head. q is `[Tq, heads·head_dim]`, k and v are
    /// `[Tk, kv_heads·head_dim]`, and the result is like q.
    pub(crate) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, spans: &AttentionSpans) -> Result<Tensor> {
        #[cfg(feature = "flash-attn")]
        if let Some(flash) = spans.flash.as_ref().filter(|flash| flash.suits(self)) {
            return flash.attend(self, q, k, v);
        }
        match &spans.padded {
            Some(padded) => self.composed(q, k, v, padded),
            None if fused(&[q, k, v]) => self.fused(q, k, v, spans),
            None => Err(candle_core::Error::Msg("attention spans made for another dtype or device".into()).into()),
        }
    }

    /// Computes [`Attention::attend`] with the keys and values of each sequence apart.
    pub(crate) fn attend_each(&self, q: &Tensor, own: &[(Tensor, Tensor)], spans: &AttentionSpans) -> Result<Tensor> {
        if spans.padded.is_some() || !own.iter().all(|(k, v)| fused(&[q, k, v])) {
            let keys: Vec<&Tensor> = own.iter().map(|(k, _)| k).collect();
            let values: Vec<&Tensor> = own.iter().map(|(_, v)| v).collect();
            return self.attend(q, &Tensor::cat(&keys, 0)?, &Tensor::cat(&values, 0)?, spans);
        }
        let held = own.iter().map(|(k, v)| Ok((values(k)?, values(v)?))).collect::<Result<Vec<_>>>()?;
        self.fused_each(q, held.iter().map(|(k, v)| (&**k, &**v)), spans)
    }

    fn fused(&self, q: &Tensor, k: &Tensor, v: &Tensor, spans: &AttentionSpans) -> Result<Tensor> {
        let (k, v) = (values(k)?, values(v)?);
        let width = self.kv_heads * self.head_dim;
        let rows = spans.keys.windows(2).map(|keys| keys[0] * width..keys[1] * width);
        self.fused_each(q, rows.map(|rows| (&k[rows.clone()], &v[rows])), spans)
    }

    fn fused_each<'a>(
        &self,
        q: &Tensor,
        own: impl Iterator<Item = (&'a [f32], &'a [f32])>,
        spans: &AttentionSpans,
    ) -> Result<Tensor> {
        let q_values = values(q)?;
        let width = self.heads * self.head_dim;
        let mut out = vec![0f32; q_values.len()];
        let mut rest = out.as_mut_slice();
        let sequences = spans.queries.windows(2).zip(own).map(|(queries, (k, v))| {
            let queries = queries[0] * width..queries[1] * width;
            let out = rest.split_off_mut(..queries.len()).expect("a row of the result for each query");
            (out, &q_values[queries], k, v)
        });
        let sequences: Vec<_> = sequences.collect();
        sequences.into_par_iter().for_each_init(Vec::new, |scores, (out, q, k, v)| {
            self.attend_sequence(out, q, k, v, spans.causality, scores);
        });
        Ok(Tensor::from_vec(out, q.shape(), q.device())?)
    }

    /// Computes one sequence, with q and out `[nq, heads·head_dim]`, k and v `[nk, kv_heads·head_dim]`.
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
            multiply_on_one_thread(
                Matrix::new(scores, nq, nk),
                Matrix::strided(&v[k_at..], nk, self.head_dim, k_width),
                Target::new(&mut out[q_at..], q_width),
                Existing::Overwritten,
                1.0,
            );
        }
    }

    /// Returns the first column of a query head, and that of its key head.
    pub(super) fn columns(&self, head: usize) -> (usize, usize) {
        let key_head = head / self.group();
        (head * self.head_dim, key_head * self.head_dim)
    }

    /// Computes softmax(q·kᵀ / √head_dim) `[nq, nk]` of one head, whose columns are the first of `q` and `k`.
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
        multiply_on_one_thread(
            Matrix::strided(q, nq, self.head_dim, q_width),
            Matrix::strided(k, nk, self.head_dim, k_width).transposed(),
            Target::new(out, nk),
            Existing::Overwritten,
            self.scale(),
        );
        for (i, row) in out.chunks_exact_mut(nk).enumerate() {
            let (row, hidden) = row.split_at_mut(AttentionSpans::visible(causality, i, nq, nk));
            softmax(row, 1.0, 1.0);
            hidden.fill(0.0);
        }
    }

    /// Returns 1 / √head_dim.
    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn composed(&self, q: &Tensor, k: &Tensor, v: &Tensor, padded: &Padded) -> Result<Tensor> {
        let [q, k, v] = self.side_by_side(q, k, v, padded)?;
        let out = self.weights(&q, &k, padded)?.to_dtype(v.dtype())?.matmul(&v)?;
        self.end_to_end(&out, &padded.queries, self.group())
    }

    /// Maps query rows `[Tq, heads·head_dim]`, and key and value rows `[Tk, kv_heads·head_dim]`. See
    /// [`Attention::apart`].
    pub(super) fn side_by_side(&self, q: &Tensor, k: &Tensor, v: &Tensor, padded: &Padded) -> Result<[Tensor; 3]> {
        let q = self.apart(q, &padded.queries, self.group())?;
        Ok([q, self.apart(k, &padded.keys, 1)?, self.apart(v, &padded.keys, 1)?])
    }

    /// Maps rows `[T, kv_heads·group·head_dim]` to `[B, kv_heads, group·L, head_dim]`.
    pub(super) fn apart(&self, x: &Tensor, side: &Side, group: usize) -> Result<Tensor> {
        let (batch, longest, kv_heads, width) = (side.batch, side.longest, self.kv_heads, self.head_dim);
        let x = side.padded(x)?.reshape((batch, longest, kv_heads, group, width))?.permute((0, 2, 3, 1, 4))?;
        Ok(x.reshape((batch, kv_heads, group * longest, width))?)
    }

    /// Maps `[B, kv_heads, group·L, head_dim]` to rows `[T, kv_heads·group·head_dim]`.
    pub(super) fn end_to_end(&self, x: &Tensor, side: &Side, group: usize) -> Result<Tensor> {
        let (batch, longest, kv_heads, width) = (side.batch, side.longest, self.kv_heads, self.head_dim);
        let x = x.reshape((batch, kv_heads, group, longest, width))?.permute((0, 3, 1, 2, 4))?;
        side.packed(&x.reshape((batch * longest, kv_heads * group * width))?)
    }

    /// Returns the number of query heads that share a key head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Computes softmax(q·kᵀ / √head_dim) in f32, `[B, kv_heads, group·Lq, Lk]`.
    pub(super) fn weights(&self, q: &Tensor, k: &Tensor, padded: &Padded) -> Result<Tensor> {
        let (batch, lq, lk, group) = (padded.queries.batch, padded.queries.longest, padded.keys.longest, self.group());
        let mut scores = (q.matmul(&k.t()?)?.to_dtype(DType::F32)? * f64::from(self.scale()))?;
        if let Some(mask) = &padded.mask {
            let apart = scores.reshape((batch, self.kv_heads, group, lq, lk))?;
            scores = apart.broadcast_add(mask)?;
        }
        let weights = if scores.track_op() {
            candle_nn::ops::softmax(&scores, D::Minus1)?
        } else {
            candle_nn::ops::softmax_last_dim(&scores)?
        };
        Ok(weights.reshape((batch, self.kv_heads, group * lq, lk))?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, relative_error};
    use super::*;

    #[test]
    fn fused_attention_agrees_with_the_composed_one() {
        let attention = Attention { heads: 6, kv_heads: 2, head_dim: 16 };
        let (mixed, alike) = (vec![0usize, 5, 6, 40, 57], vec![0usize, 9, 18, 27, 36]);
        let last = vec![0usize, 1, 2, 3, 4];
        let shapes = [(&mixed, &mixed), (&last, &mixed), (&alike, &alike), (&last, &alike)];
        for causality in [Causality::Bidirectional, Causality::Causal] {
            for (queries, keys) in shapes {
                let (queries, keys) = (queries.clone(), keys.clone());
                let q = random(queries[4], 96, 1);
                let (k, v) = (random(keys[4], 32, 2), random(keys[4], 32, 3));
                let device = &Device::Cpu;
                let composed = AttentionSpans::side_by_side(queries.clone(), keys.clone(), causality);
                let fused = AttentionSpans::new(queries, keys, causality, DType::F32, device).unwrap();
                let expected = attention.attend(&q, &k, &v, &composed).unwrap();
                let found = attention.attend(&q, &k, &v, &fused).unwrap();
                assert!(relative_error(&found, &expected) < 1e-5, "{causality:?}");
            }
        }
    }
}
