//! XLM-R: the frozen multilingual encoder. A text's vector is the mean of its last hidden states.

use std::path::Path;

use candle_core::{DType, Tensor};

use super::backend::Backend;
use super::batches::{Batching, Packed, check_ids, in_batches};
use super::config::XlmRobertaConfig;
use super::ops::{
    Attention, AttentionSpans, Causality, Embedding, Form, FrozenLinear, add_layer_norm, gelu, layer_norm,
};
use super::weights::Weights;
use crate::Result;
use crate::device::TokenCost;

/// XLM-R without its tokenizer: token ids in, vectors out.
pub(crate) struct XlmRoberta {
    config: XlmRobertaConfig,
    words: Embedding,  // [vocab, hidden]
    positions: Tensor, // [max_position_embeddings, hidden], the one token type's row added
    norm: LayerNorm,
    layers: Vec<Layer>,
    batching: Batching,
    path: String,
}

impl XlmRoberta {
    /// Loads the weights of a folder in Hugging Face layout.
    pub(crate) fn load(dir: &Path, backend: &Backend) -> Result<Self> {
        let config = XlmRobertaConfig::load(dir)?;
        let weights = Weights::open(dir, &["", "roberta.", "model."], backend)?;
        let hidden = config.hidden_size;
        let words = weights.embedding("embeddings.word_embeddings.weight", [config.vocab_size, hidden])?;
        let types = weights.tensor(
            "embeddings.token_type_embeddings.weight",
            &[config.type_vocab_size, hidden],
        )?;
        let positions = weights.tensor(
            "embeddings.position_embeddings.weight",
            &[config.max_position_embeddings, hidden],
        )?;
        let positions = positions.broadcast_add(&types.get(0)?)?;
        let norm = LayerNorm::load(&weights, "embeddings.LayerNorm", &config)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&weights, &format!("encoder.layer.{index}"), &config))
            .collect::<Result<_>>()?;
        let cost = TokenCost::forward(
            hidden,
            config.intermediate_size,
            config.num_attention_heads,
            config.max_tokens(),
            backend.value_bytes(),
        );
        Ok(Self {
            batching: Batching::new(cost),
            config,
            words,
            positions,
            norm,
            layers,
            path: dir.display().to_string(),
        })
    }

    pub(crate) fn config(&self) -> &XlmRobertaConfig {
        &self.config
    }

    /// The vector of each sequence, in the order of `ids`.
    pub(crate) fn vectors(
        &self,
        ids: &[Vec<u32>],
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        check_ids(ids, self.config.vocab_size, self.config.max_tokens(), &self.path)?;
        // A padding token within a text is not attended, has no position and no part in the mean: as if not there.
        let attended: Vec<Vec<u32>> = ids
            .iter()
            .map(|ids| {
                ids.iter()
                    .copied()
                    .filter(|&id| id != self.config.pad_token_id)
                    .collect()
            })
            .collect();
        in_batches(
            &attended,
            self.positions.device(),
            token_budget,
            &self.batching,
            progress,
            |packed| self.pooled(packed),
        )
    }

    /// The mean of each sequence's last hidden states, [B, hidden].
    fn pooled(&self, packed: &Packed) -> Result<Tensor> {
        if packed.ids.is_empty() {
            let shape = (packed.offsets.len() - 1, self.config.hidden_size);
            return Ok(Tensor::zeros(shape, DType::F32, self.positions.device())?);
        }
        let spans = self.spans(packed)?;
        spans.mean_rows(&self.hidden_states(packed, &spans)?)
    }

    fn spans(&self, packed: &Packed) -> Result<AttentionSpans> {
        let (form, offsets) = (self.norm.form, || packed.offsets.clone());
        let (dtype, device) = (self.positions.dtype(), self.positions.device());
        AttentionSpans::new(form, offsets(), offsets(), Causality::Bidirectional, dtype, device)
    }

    /// The last hidden states, [T, hidden].
    fn hidden_states(&self, packed: &Packed, spans: &AttentionSpans) -> Result<Tensor> {
        let device = self.positions.device();
        let first = self.config.pad_token_id as usize + 1;
        let positions = Tensor::new(packed.positions(first), device)?;
        let words = self.words.rows(&packed.ids)?;
        let mut x = self
            .norm
            .forward((words + self.positions.index_select(&positions, 0)?)?)?;
        for layer in &self.layers {
            x = layer.forward(&x, spans)?;
        }
        Ok(x)
    }
}

struct LayerNorm {
    form: Form,
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
}

impl LayerNorm {
    fn load(weights: &Weights, name: &str, config: &XlmRobertaConfig) -> Result<Self> {
        let width = &[config.hidden_size];
        Ok(Self {
            form: weights.form(),
            gamma: weights.tensor(&format!("{name}.weight"), width)?,
            beta: weights.tensor(&format!("{name}.bias"), width)?,
            eps: config.layer_norm_eps,
        })
    }

    fn forward(&self, x: Tensor) -> Result<Tensor> {
        layer_norm(self.form, x, &self.gamma, &self.beta, self.eps)
    }

    fn forward_sum(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        add_layer_norm(self.form, x, residual, &self.gamma, &self.beta, self.eps)
    }
}

struct Layer {
    query: FrozenLinear,
    key: FrozenLinear,
    value: FrozenLinear,
    attention: Attention,
    attention_output: FrozenLinear,
    attention_norm: LayerNorm,
    intermediate: FrozenLinear,
    output: FrozenLinear,
    output_norm: LayerNorm,
}

impl Layer {
    fn load(weights: &Weights, name: &str, config: &XlmRobertaConfig) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |part: &str, rows: usize, columns: usize| -> Result<FrozenLinear> {
            let (weight, bias) = (format!("{name}.{part}.weight"), format!("{name}.{part}.bias"));
            weights.linear(&weight, [rows, columns], Some(&bias))
        };
        let heads = config.num_attention_heads;
        Ok(Self {
            query: linear("attention.self.query", hidden, hidden)?,
            key: linear("attention.self.key", hidden, hidden)?,
            value: linear("attention.self.value", hidden, hidden)?,
            attention: Attention {
                heads,
                kv_heads: heads,
                head_dim: config.head_dim(),
            },
            attention_output: linear("attention.output.dense", hidden, hidden)?,
            attention_norm: LayerNorm::load(weights, &format!("{name}.attention.output.LayerNorm"), config)?,
            intermediate: linear("intermediate.dense", inner, hidden)?,
            output: linear("output.dense", hidden, inner)?,
            output_norm: LayerNorm::load(weights, &format!("{name}.output.LayerNorm"), config)?,
        })
    }

    /// x [T, hidden] → [T, hidden].
    fn forward(&self, x: &Tensor, spans: &AttentionSpans) -> Result<Tensor> {
        let (q, k, v) = (self.query.forward(x)?, self.key.forward(x)?, self.value.forward(x)?);
        let attended = self
            .attention_output
            .forward(&self.attention.attend(&q, &k, &v, spans)?)?;
        let x = self.attention_norm.forward_sum(attended, x)?;
        let inner = gelu(self.output_norm.form, self.intermediate.forward(&x)?)?; // [T, intermediate]
        self.output_norm.forward_sum(self.output.forward(&inner)?, &x)
    }
}
