//! Llama as a graph to train: what [`llink_worker::models::Decoder`] computes of a folder's weights, with a gradient for each.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::share::Share;
use super::variables::{Variables, attend, heads};
use llink_worker::Result;
use llink_worker::models::config::LlamaConfig;

/// A decoder in training. Its head is its embedding.
pub(super) struct TrainableDecoder {
    pub(super) config: LlamaConfig,
    pub(super) variables: Variables,
}

impl TrainableDecoder {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        Ok(Self { config: LlamaConfig::load(dir)?, variables: Variables::read(&dir.join("model.safetensors"))? })
    }

    /// The last hidden states after the final norm, [B·T, hidden].
    pub(super) fn states(&self, Share { batch, packed, .. }: &Share) -> Result<Tensor> {
        let words = self.words()?;
        let mut x = packed.placed(words.index_select(&batch.ids, 0)?, words)?;
        let (bias, rope) = (batch.attention_bias(true)?, self.rope(batch.shape.1)?);
        for layer in 0..self.config.num_hidden_layers {
            x = self.layer(layer, &x, batch.shape, &bias, &rope)?;
        }
        self.variables.rms_norm("model.norm.weight", &x, self.config.rms_norm_eps)
    }

    /// The word embeddings and the head, [vocab, hidden].
    pub(super) fn words(&self) -> Result<&Tensor> {
        self.variables.get("model.embed_tokens.weight")
    }

    /// The logits of `rows` of [`TrainableDecoder::states`], [rows, vocab].
    pub(super) fn logits(&self, states: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let states = states.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
        Ok(states.matmul(&self.words()?.t()?)?)
    }

    /// cos and sin of each position's angles, [T, head_dim / 2] each.
    fn rope(&self, tokens: usize) -> Result<(Tensor, Tensor)> {
        let frequencies = self.config.rope_frequencies();
        let angles = (0..tokens).flat_map(|at| frequencies.iter().map(move |f| at as f32 * f));
        let angles = Tensor::from_vec(angles.collect::<Vec<_>>(), (tokens, frequencies.len()), &Device::Cpu)?;
        Ok((angles.cos()?, angles.sin()?))
    }

    fn layer(
        &self,
        layer: usize,
        x: &Tensor,
        shape: (usize, usize),
        bias: &Tensor,
        (cos, sin): &(Tensor, Tensor),
    ) -> Result<Tensor> {
        let (v, eps, config) = (&self.variables, self.config.rms_norm_eps, &self.config);
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let (query_heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let normed = v.rms_norm(&name("input_layernorm"), x, eps)?;
        let of = |part: &str, count| heads(&v.product(&name(&format!("self_attn.{part}")), &normed)?, shape, count);
        let turn = |heads: Tensor| {
            Ok::<_, llink_worker::Error>(candle_nn::rotary_emb::rope_slow(&heads.contiguous()?, cos, sin)?)
        };
        let q = turn(of("q_proj", query_heads)?)?;
        let shared = |heads: Tensor| repeat(&heads, query_heads / kv_heads);
        let k = shared(turn(of("k_proj", kv_heads)?)?)?;
        let mixed = attend(&q, &k, &shared(of("v_proj", kv_heads)?)?, bias)?;
        let x = (x + v.product(&name("self_attn.o_proj"), &mixed)?)?;
        let normed = v.rms_norm(&name("post_attention_layernorm"), &x, eps)?;
        let gate = v.product(&name("mlp.gate_proj"), &normed)?.silu()?;
        let inner = (gate * v.product(&name("mlp.up_proj"), &normed)?)?;
        Ok((x + v.product(&name("mlp.down_proj"), &inner)?)?)
    }
}

/// Each head `times` times, one after the other: [B, heads, T, d] → [B, heads·times, T, d].
fn repeat(heads: &Tensor, times: usize) -> Result<Tensor> {
    let (batch, count, tokens, width) = heads.dims4()?;
    let wide = heads.unsqueeze(2)?.expand((batch, count, times, tokens, width))?;
    Ok(wide.reshape((batch, count * times, tokens, width))?)
}
