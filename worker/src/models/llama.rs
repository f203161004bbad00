//! Llama: the frozen decoder's layers.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::batches::{Packed, check_ids, in_batches};
use super::config::LlamaConfig;
use super::ops::{
    Attention, AttentionSpans, Causality, Embedding, FrozenLinear, Rope, add_rms_norm, rms_norm, silu_mul,
};
use super::weights::Weights;
use crate::{Error, Result};

/// Llama without its tokenizer: token ids in, hidden states and logits out.
pub(crate) struct Llama {
    config: LlamaConfig,
    embedding: Embedding, // [vocab, hidden]
    layers: Vec<Layer>,
    norm: Tensor,
    head: FrozenLinear,
    frequencies: Vec<f32>,
    path: String,
}

/// Keys and values of the tokens so far, one pair per layer: [tokens, kv_heads·head_dim] each.
#[derive(Default)]
pub(crate) struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    tokens: usize,
}

impl Cache {
    /// How many tokens it holds.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }
}

/// Which rows the last layer has to give.
#[derive(Clone, Copy)]
pub(crate) enum Rows {
    All,
    LastOfEach,
}

impl Llama {
    /// Loads the weights of a folder in Hugging Face layout.
    pub(crate) fn load(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let config = LlamaConfig::load(dir)?;
        let weights = Weights::open(dir, &["model.", ""], device, dtype)?;
        let shape = [config.vocab_size, config.hidden_size];
        let head = match config.tie_word_embeddings {
            true => "embed_tokens.weight",
            false => "lm_head.weight",
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&weights, &format!("layers.{index}"), &config))
            .collect::<Result<_>>()?;
        Ok(Self {
            norm: weights.tensor("norm.weight", &[config.hidden_size])?,
            head: weights.linear(head, shape, None)?,
            embedding: weights.embedding("embed_tokens.weight", shape)?,
            frequencies: config.rope_frequencies(),
            config,
            layers,
            path: dir.display().to_string(),
        })
    }

    pub(crate) fn config(&self) -> &LlamaConfig {
        &self.config
    }

    pub(crate) fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// The output head: hidden [T, hidden] → logits [T, vocab].
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }

    /// The last hidden state, after the final norm, at the last token of each sequence.
    pub(crate) fn vectors(
        &self,
        ids: &[Vec<u32>],
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        self.check(ids)?;
        in_batches(ids, self.norm.device(), token_budget, progress, |packed| {
            self.forward(packed, None, Rows::LastOfEach)
        })
    }

    /// Refuses sequences that can't be read.
    pub(crate) fn check(&self, ids: &[impl AsRef<[u32]>]) -> Result<()> {
        check_ids(
            ids,
            self.config.vocab_size,
            self.config.max_position_embeddings,
            &self.path,
        )?;
        if ids.iter().any(|ids| ids.as_ref().is_empty()) {
            return Err(Error::Input(format!(
                "{}: a sequence without tokens has no hidden state",
                self.path
            )));
        }
        Ok(())
    }

    /// Hidden states after the final norm: [T, hidden], or [B, hidden] for the last row of each sequence.
    /// With a cache there is one sequence, which goes on from the cached tokens.
    pub(crate) fn forward(&self, packed: &Packed, mut cache: Option<&mut Cache>, rows: Rows) -> Result<Tensor> {
        let (device, dtype) = (self.norm.device(), self.norm.dtype());
        let past = cache.as_ref().map_or(0, |cache| cache.tokens);
        let mut x = self.embedding.rows(&packed.ids)?;
        let rope = Rope::new(&packed.positions(past), &self.frequencies, dtype, device)?;
        let queries = packed.offsets.clone();
        let keys: Vec<usize> = match past {
            0 => queries.clone(),
            _ => vec![0, past + packed.ids.len()],
        };
        let spans = AttentionSpans::new(queries, keys.clone(), Causality::Causal, dtype, device)?;
        let last = match rows {
            Rows::All => None,
            Rows::LastOfEach => Some(LastRows::new(packed, keys, &rope, dtype, device)?),
        };
        if let Some(cache) = cache.as_deref_mut() {
            cache.layers.resize_with(self.layers.len(), || None);
            cache.tokens += packed.ids.len();
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let only = last.as_ref().filter(|_| index + 1 == self.layers.len());
            let slot = cache.as_deref_mut().map(|cache| &mut cache.layers[index]);
            x = layer.forward(x, &spans, &rope, slot, only)?;
        }
        rms_norm(&x, &self.norm, self.config.rms_norm_eps)
    }
}

/// What the last layer needs to compute the last row of each sequence and no other.
struct LastRows {
    rows: Tensor, // [B]
    spans: AttentionSpans,
    rope: Rope,
}

impl LastRows {
    fn new(packed: &Packed, keys: Vec<usize>, rope: &Rope, dtype: DType, device: &Device) -> Result<Self> {
        let rows = Tensor::new(packed.last_rows(), device)?;
        let queries = (0..packed.offsets.len()).collect();
        let spans = AttentionSpans::new(queries, keys, Causality::Causal, dtype, device)?;
        let rope = rope.select(&rows)?;
        Ok(Self { rows, spans, rope })
    }
}

struct Layer {
    input_norm: Tensor,
    q_proj: FrozenLinear,
    k_proj: FrozenLinear,
    v_proj: FrozenLinear,
    o_proj: FrozenLinear,
    post_norm: Tensor,
    gate_proj: FrozenLinear,
    up_proj: FrozenLinear,
    down_proj: FrozenLinear,
    attention: Attention,
    eps: f64,
}

impl Layer {
    fn load(weights: &Weights, name: &str, config: &LlamaConfig) -> Result<Self> {
        let attention = Attention {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (
            attention.heads * attention.head_dim,
            attention.kv_heads * attention.head_dim,
        );
        let linear = |part: &str, rows: usize, columns: usize| -> Result<FrozenLinear> {
            weights.linear(&format!("{name}.{part}.weight"), [rows, columns], None)
        };
        Ok(Self {
            input_norm: weights.tensor(&format!("{name}.input_layernorm.weight"), &[hidden])?,
            q_proj: linear("self_attn.q_proj", q_width, hidden)?,
            k_proj: linear("self_attn.k_proj", kv_width, hidden)?,
            v_proj: linear("self_attn.v_proj", kv_width, hidden)?,
            o_proj: linear("self_attn.o_proj", hidden, q_width)?,
            post_norm: weights.tensor(&format!("{name}.post_attention_layernorm.weight"), &[hidden])?,
            gate_proj: linear("mlp.gate_proj", inner, hidden)?,
            up_proj: linear("mlp.up_proj", inner, hidden)?,
            down_proj: linear("mlp.down_proj", hidden, inner)?,
            attention,
            eps: config.rms_norm_eps,
        })
    }

    /// x [T, hidden] → [T, hidden], or [B, hidden] when only each sequence's last row is wanted.
    fn forward(
        &self,
        x: Tensor,
        spans: &AttentionSpans,
        rope: &Rope,
        cached: Option<&mut Option<(Tensor, Tensor)>>,
        only: Option<&LastRows>,
    ) -> Result<Tensor> {
        let normed = rms_norm(&x, &self.input_norm, self.eps)?;
        let mut k = rope.turn(self.k_proj.forward(&normed)?)?; // [T, kv_heads·head_dim]
        let mut v = self.v_proj.forward(&normed)?;
        if let Some(cached) = cached {
            if let Some((past_k, past_v)) = cached.as_ref() {
                (k, v) = (Tensor::cat(&[past_k, &k], 0)?, Tensor::cat(&[past_v, &v], 0)?);
            }
            *cached = Some((k.clone(), v.clone()));
        }
        let (x, normed, spans, rope) = match only {
            None => (x, normed, spans, rope),
            Some(last) => (
                x.index_select(&last.rows, 0)?,
                normed.index_select(&last.rows, 0)?,
                &last.spans,
                &last.rope,
            ),
        };
        let q = rope.turn(self.q_proj.forward(&normed)?)?; // [T, heads·head_dim]
        let attended = self.o_proj.forward(&self.attention.attend(&q, &k, &v, spans)?)?;
        let (x, normed) = add_rms_norm(x, &attended, &self.post_norm, self.eps)?;
        let gated = silu_mul(self.gate_proj.forward(&normed)?, &self.up_proj.forward(&normed)?)?;
        Ok((x + self.down_proj.forward(&gated)?)?)
    }
}
