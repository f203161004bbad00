//! The frozen multilingual encoder: XLM-R, RoBERTa and BERT. They differ in the first position.

use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Tensor};

use super::batches::{Batching, Packed, Progress, Vectors, check_ids, in_batches};
use super::config::{EncoderConfig, EncoderFamily};
use super::sentence::{Head, Pooling, Reading};
use super::weights::{Weights, prefixed};
use crate::Result;
use crate::device::TokenCost;
use crate::ops::backend::Backend;
use crate::ops::{
    Attention, AttentionSpans, Causality, Embedding, FrozenLinear, MeanOf, add_layer_norm, gelu, layer_norm,
};

/// The prefixes of tensor names. They depend on the class that saved the model.
const PREFIXES: &[&str] = &["", "bert.", "roberta.", "model."];

/// The encoder without its tokenizer. It maps token ids to vectors.
pub struct Bert {
    config: EncoderConfig,
    words: Embedding,  // [vocab, hidden]
    positions: Tensor, // [max_position_embeddings, hidden], with token type 0's row added
    norm: LayerNorm,
    layers: Vec<Layer>,
    head: Head,
    batching: Batching,
    path: String,
}

/// Returns tensors by which weights are recognized. One name of each list must exist.
pub(crate) fn landmarks(config: &EncoderConfig) -> [Vec<String>; 2] {
    let last = config.num_hidden_layers.saturating_sub(1);
    ["embeddings.word_embeddings.weight".to_owned(), format!("encoder.layer.{last}.output.dense.weight")]
        .map(|name| prefixed(PREFIXES, &name).collect())
}

impl Bert {
    /// Loads a folder in Hugging Face layout. The vector of a sequence is the mean of its last hidden states.
    ///
    /// # Errors
    /// As [`Encoder::load`](super::Encoder::load), except for the tokenizer.
    pub fn load_with_mean(dir: &Path, backend: &Backend) -> Result<Self> {
        let head = Head::load(&Reading::default(), &[], 0, backend.device())?;
        Self::load(dir, head, backend)
    }

    /// Loads the weights of a folder in Hugging Face layout. `head` turns hidden states into vectors.
    pub(crate) fn load(dir: &Path, head: Head, backend: &Backend) -> Result<Self> {
        let config = EncoderConfig::load(dir)?;
        let weights = Weights::open(dir, PREFIXES, backend)?;
        let hidden = config.hidden_size;
        let words = weights.embedding("embeddings.word_embeddings.weight", [config.vocab_size, hidden])?;
        let types = weights.tensor("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, hidden])?;
        let positions =
            weights.tensor("embeddings.position_embeddings.weight", &[config.max_position_embeddings, hidden])?;
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
            head,
            path: dir.display().to_string(),
        })
    }

    /// Returns the shape of the model.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    pub(crate) fn width(&self) -> usize {
        self.head.width(self.config.hidden_size)
    }

    /// Returns the vector of each sequence, followed by those of its windows, `[(1 + windows)·width]`.
    ///
    /// # Errors
    /// [`crate::Error`] where a sequence can't be read, or the device fails.
    pub fn vectors(
        &self,
        ids: &[Vec<u32>],
        windows: usize,
        token_budget: usize,
        progress: Progress<'_>,
    ) -> Result<Vectors> {
        check_ids(ids, self.config.vocab_size, self.config.max_tokens(), &self.path)?;
        // RoBERTa does not attend to a padding token within a text, and gives it no position and no part in the mean.
        // It is therefore removed. BERT treats it like any other token.
        let attended: Vec<Vec<u32>>;
        let ids = match self.config.family {
            EncoderFamily::Bert => ids,
            EncoderFamily::Roberta => {
                let real = |id: &u32| *id != self.config.pad_token_id;
                attended = ids.iter().map(|ids| ids.iter().copied().filter(real).collect()).collect();
                &attended
            }
        };
        in_batches(ids, self.positions.device(), token_budget, &self.batching, progress, |packed| {
            self.pooled(packed, windows)
        })
    }

    /// Returns the vectors of each sequence, `[B, (1 + windows)·width]`, f32.
    fn pooled(&self, packed: &Packed, windows: usize) -> Result<Tensor> {
        let (sequences, hidden) = (packed.offsets.len() - 1, self.config.hidden_size);
        let rows = (sequences * (1 + windows), hidden);
        let pooled = if packed.ids.is_empty() {
            Tensor::zeros(rows, DType::F32, self.positions.device())?
        } else {
            let spans = self.spans(packed)?;
            let states = self.hidden_states(packed, &spans)?;
            let whole = match self.head.pooling {
                Pooling::Mean => spans.mean_rows(&states, MeanOf::All)?,
                Pooling::Cls => first_rows(&states, &packed.offsets)?,
            };
            match windows {
                0 => whole,
                _ => {
                    let means = window_means(&states, &packed.offsets, windows)?;
                    let means = means.reshape((sequences, windows, hidden))?;
                    Tensor::cat(&[whole.unsqueeze(1)?, means], 1)?.reshape(rows)?
                }
            }
        };
        Ok(self.head.forward(pooled)?.reshape((sequences, ()))?)
    }

    fn spans(&self, packed: &Packed) -> Result<AttentionSpans> {
        let offsets = || packed.offsets.clone();
        let (dtype, device) = (self.positions.dtype(), self.positions.device());
        AttentionSpans::new(offsets(), offsets(), Causality::Bidirectional, dtype, device)
    }

    /// Returns the last hidden states, `[T, hidden]`.
    fn hidden_states(&self, packed: &Packed, spans: &AttentionSpans) -> Result<Tensor> {
        let device = self.positions.device();
        let positions = packed.positions(|_| self.config.first_position());
        let positions = Tensor::new(positions, device)?;
        let words = self.words.rows(&packed.ids)?;
        let mut x = self.norm.forward((words + self.positions.index_select(&positions, 0)?)?)?;
        for layer in &self.layers {
            x = layer.forward(&x, spans)?;
        }
        Ok(x)
    }
}

/// Returns the means of `windows` equal parts of each sequence of `x` `[T, width]`, in f32: `[B·windows, width]`.
///
/// Part w of n rows has the rows from w·n/W up to (w + 1)·n/W, both rounded down, and at least one row. A sequence without
/// rows gives zeros.
fn window_means(x: &Tensor, offsets: &[usize], windows: usize) -> Result<Tensor> {
    let parts = offsets.windows(2).flat_map(|at| {
        let (start, rows) = (at[0], at[1] - at[0]);
        (0..windows).map(move |window| {
            let first = window * rows / windows;
            let after = ((window + 1) * rows / windows).max(first + 1).min(rows);
            start + first..start + after
        })
    });
    let parts: Vec<Range<usize>> = parts.collect();
    let longest = parts.iter().map(Range::len).max().unwrap_or(0).max(1);
    let mut places = vec![0u32; parts.len() * longest]; // of the rows of each part; 0 for padding
    let mut shares = vec![0f32; parts.len() * longest]; // of each row in the mean; 0 for padding
    for (index, part) in parts.into_iter().enumerate() {
        let at = index * longest..index * longest + part.len();
        shares[at.clone()].fill(1.0 / part.len() as f32);
        places[at].iter_mut().zip(part).for_each(|(place, row)| *place = row as u32);
    }
    let count = places.len();
    let rows = x.index_select(&Tensor::from_vec(places, count, x.device())?, 0)?;
    let shares = Tensor::from_vec(shares, (count, 1), x.device())?;
    let rows = rows.to_dtype(DType::F32)?.broadcast_mul(&shares)?;
    Ok(rows.reshape(((), longest, x.dim(1)?))?.sum(1)?)
}

/// Returns the first row of each sequence of `x` `[T, width]`, in f32: `[B, width]`. A sequence without rows gives
/// zeros.
fn first_rows(x: &Tensor, offsets: &[usize]) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let zeros = Tensor::zeros((1, width), x.dtype(), x.device())?;
    let firsts: Vec<u32> = offsets.windows(2).map(|w| if w[0] < w[1] { w[0] } else { rows } as u32).collect();
    let firsts = Tensor::new(firsts, x.device())?;
    Ok(Tensor::cat(&[x, &zeros], 0)?.index_select(&firsts, 0)?.to_dtype(DType::F32)?)
}

struct LayerNorm {
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
}

impl LayerNorm {
    fn load(weights: &Weights, name: &str, config: &EncoderConfig) -> Result<Self> {
        let width = &[config.hidden_size];
        Ok(Self {
            gamma: weights.tensor(&format!("{name}.weight"), width)?,
            beta: weights.tensor(&format!("{name}.bias"), width)?,
            eps: config.layer_norm_eps,
        })
    }

    fn forward(&self, x: Tensor) -> Result<Tensor> {
        layer_norm(x, &self.gamma, &self.beta, self.eps)
    }

    fn forward_sum(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        add_layer_norm(x, residual, &self.gamma, &self.beta, self.eps)
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
    fn load(weights: &Weights, name: &str, config: &EncoderConfig) -> Result<Self> {
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
            attention: Attention { heads, kv_heads: heads, head_dim: config.head_dim() },
            attention_output: linear("attention.output.dense", hidden, hidden)?,
            attention_norm: LayerNorm::load(weights, &format!("{name}.attention.output.LayerNorm"), config)?,
            intermediate: linear("intermediate.dense", inner, hidden)?,
            output: linear("output.dense", hidden, inner)?,
            output_norm: LayerNorm::load(weights, &format!("{name}.output.LayerNorm"), config)?,
        })
    }

    fn forward(&self, x: &Tensor, spans: &AttentionSpans) -> Result<Tensor> {
        let (q, k, v) = (self.query.forward(x)?, self.key.forward(x)?, self.value.forward(x)?);
        let attended = self.attention_output.forward(&self.attention.attend(&q, &k, &v, spans)?)?;
        let x = self.attention_norm.forward_sum(attended, x)?;
        let inner = gelu(self.intermediate.forward(&x)?)?; // [T, intermediate]
        self.output_norm.forward_sum(self.output.forward(&inner)?, &x)
    }
}
