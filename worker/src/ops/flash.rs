//! Attention over packed sequences by candle-flash-attn: one kernel instead of about ten, without padding and without
//! scores in memory.
//!
//! It applies to bf16 and f16 on a GPU, and to the forward pass only. The gradient is computed again from q, k and v,
//! as on other devices.

use candle_core::{DType, Device, Tensor};

use super::attention::{Attention, Causality};
use crate::Result;

/// The start of each sequence, on the device.
pub(super) struct Flash {
    queries: Tensor, // [B + 1], u32
    keys: Tensor,
    longest_query: usize,
    longest_key: usize,
    causal: bool,
}

impl Flash {
    /// Returns `None` if the kernel does not apply.
    pub(super) fn new(
        queries: &[usize],
        keys: &[usize],
        causality: Causality,
        dtype: DType,
        device: &Device,
    ) -> Result<Option<Self>> {
        if !device.is_cuda() || !matches!(dtype, DType::BF16 | DType::F16) || queries.last() == Some(&0) {
            return Ok(None);
        }
        let offsets = |offsets: &[usize]| {
            let offsets: Vec<u32> = offsets.iter().map(|&offset| offset as u32).collect();
            Tensor::new(offsets, device)
        };
        let longest = |offsets: &[usize]| offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        Ok(Some(Self {
            queries: offsets(queries)?,
            keys: offsets(keys)?,
            longest_query: longest(queries),
            longest_key: longest(keys),
            // The kernel, too, puts queries at the last positions of their sequence.
            causal: causality == Causality::Causal,
        }))
    }

    /// Returns whether the kernel supports heads of this width.
    pub(super) fn suits(&self, attention: &Attention) -> bool {
        attention.head_dim.is_multiple_of(8) && attention.head_dim <= 256
    }

    /// Computes [`Attention::attend`].
    pub(super) fn attend(&self, attention: &Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let heads = |x: &Tensor, heads: usize| x.contiguous()?.reshape((x.dim(0)?, heads, attention.head_dim));
        let out = candle_flash_attn::flash_attn_varlen(
            &heads(q, attention.heads)?,
            &heads(k, attention.kv_heads)?,
            &heads(v, attention.kv_heads)?,
            &self.queries,
            &self.keys,
            self.longest_query,
            self.longest_key,
            attention.scale(),
            self.causal,
        )?;
        Ok(out.reshape(q.shape())?)
    }
}
