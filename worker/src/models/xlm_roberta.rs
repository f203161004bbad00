//! XLM-R: the frozen multilingual encoder. A text's vector is the mean of its last hidden states.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::batches::{Packed, token_batches};
use super::config::XlmRobertaConfig;
use super::ops::{
    Attention, AttentionSpans, Causality, FrozenLinear, add_layer_norm, gelu, layer_norm,
};
use super::tokenizer::{SpecialTokens, Tokenizer};
use super::weights::Weights;
use super::{check_ids, cpu_rows};
use crate::{Error, Result};

/// How much of a text the encoder reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLimits {
    /// A text is cut after so many Unicode scalar values.
    pub max_chars: usize,
    /// Its tokens, special ones included, are cut after so many.
    pub max_tokens: usize,
}

impl Default for TextLimits {
    fn default() -> Self {
        Self {
            max_chars: 256,
            max_tokens: 256,
        }
    }
}

impl TextLimits {
    /// The text's first `max_chars` characters.
    pub fn cut<'a>(&self, text: &'a str) -> &'a str {
        match text.char_indices().nth(self.max_chars) {
            Some((end, _)) => &text[..end],
            None => text,
        }
    }
}

/// A loaded XLM-R encoder with its tokenizer.
pub struct Encoder {
    config: XlmRobertaConfig,
    tokenizer: Tokenizer,
    words: Tensor,     // [vocab, hidden], the one token type's row added
    positions: Tensor, // [max_position_embeddings, hidden]
    norm: LayerNorm,
    layers: Vec<Layer>,
    path: String,
}

impl Encoder {
    /// Loads a folder in Hugging Face layout and converts its weights to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::Model`] naming what is missing, misshapen or not supported; [`Error::Io`] for unreadable files.
    pub fn load(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let config = XlmRobertaConfig::load(dir)?;
        let tokenizer = Tokenizer::load(dir)?;
        let path = dir.display().to_string();
        if tokenizer.vocab_size() > config.vocab_size {
            let (has, rows) = (tokenizer.vocab_size(), config.vocab_size);
            let reason =
                format!("tokenizer.json has {has} tokens, config.json's vocab_size is {rows}");
            return Err(Error::Model { path, reason });
        }
        let weights = Weights::open(dir, &["", "roberta.", "model."], device, dtype)?;
        let hidden = config.hidden_size;
        let words = weights.tensor(
            "embeddings.word_embeddings.weight",
            &[config.vocab_size, hidden],
        )?;
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
        Ok(Self {
            config,
            tokenizer,
            words,
            positions,
            norm,
            layers,
            path,
        })
    }

    /// Width of the vectors.
    pub fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    /// The model's shape.
    pub fn config(&self) -> &XlmRobertaConfig {
        &self.config
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Token ids of each text, cut as `limits` says: characters first, then tokens.
    ///
    /// # Errors
    /// When the tokenizer can't encode a text.
    pub fn tokenize(&self, texts: &[impl AsRef<str>], limits: TextLimits) -> Result<Vec<Vec<u32>>> {
        let texts: Vec<&str> = texts.iter().map(|text| limits.cut(text.as_ref())).collect();
        let mut ids = self.tokenizer.encode_batch(&texts, SpecialTokens::Add)?;
        ids.iter_mut()
            .for_each(|ids| ids.truncate(limits.max_tokens));
        Ok(ids)
    }

    /// The vector of each text, in the order of `texts`.
    ///
    /// A batch holds at most `token_budget` tokens, padding counted. `progress` is told after each batch how many
    /// tokens are done so far.
    ///
    /// # Errors
    /// [`Error::Input`] when `limits` allow more tokens than the model has positions; [`Error::Tensor`] when the
    /// device fails.
    pub fn embed(
        &self,
        texts: &[impl AsRef<str>],
        limits: TextLimits,
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        let ids = self.tokenize(texts, limits)?;
        self.embed_ids(&ids, token_budget, progress)
    }

    /// As [`Encoder::embed`], from token ids.
    ///
    /// # Errors
    /// As [`Encoder::embed`]; also [`Error::Input`] for an id outside the vocabulary.
    pub fn embed_ids(
        &self,
        ids: &[Vec<u32>],
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        check_ids(
            ids,
            self.config.vocab_size,
            self.config.max_tokens(),
            &self.path,
        )?;
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
        let lengths: Vec<usize> = attended.iter().map(Vec::len).collect();
        let mut vectors = vec![Vec::new(); ids.len()];
        let mut done = 0;
        for batch in token_batches(&lengths, cpu_rows(self.words.device(), token_budget)) {
            let packed = Packed::new(batch.iter().map(|&index| attended[index].as_slice()));
            let pooled = self
                .pooled(&packed)?
                .to_dtype(DType::F32)?
                .to_vec2::<f32>()?;
            for (index, vector) in batch.into_iter().zip(pooled) {
                vectors[index] = vector;
            }
            done += packed.ids.len() as u64;
            progress(done);
        }
        Ok(vectors)
    }

    /// The mean of each sequence's last hidden states, [B, hidden].
    ///
    /// # Errors
    /// When the device fails.
    pub fn pooled(&self, packed: &Packed) -> Result<Tensor> {
        if packed.ids.is_empty() {
            let rows = packed.offsets.len() - 1;
            return Ok(Tensor::zeros(
                (rows, self.hidden_size()),
                self.words.dtype(),
                self.words.device(),
            )?);
        }
        mean_pool(&self.hidden_states(packed)?, &packed.offsets)
    }

    /// The last hidden states, [T, hidden].
    fn hidden_states(&self, packed: &Packed) -> Result<Tensor> {
        let device = self.words.device();
        let first = self.config.pad_token_id as usize + 1;
        let positions = Tensor::new(packed.positions(first), device)?;
        let words = self.words.index_select(&packed.ids_tensor(device)?, 0)?;
        let mut x = self
            .norm
            .forward((words + self.positions.index_select(&positions, 0)?)?)?;
        let offsets = packed.offsets.clone();
        let spans = AttentionSpans::new(
            offsets.clone(),
            offsets,
            Causality::Bidirectional,
            x.dtype(),
            device,
        )?;
        for layer in &self.layers {
            x = layer.forward(&x, &spans)?;
        }
        Ok(x)
    }
}

/// Mean of each sequence's rows: hidden [T, d] → [B, d]. A sequence without rows gives zeros.
fn mean_pool(hidden: &Tensor, offsets: &[usize]) -> Result<Tensor> {
    let means = offsets.windows(2).map(|w| {
        let rows = w[1] - w[0];
        if rows == 0 {
            return Ok(Tensor::zeros(hidden.dim(1)?, DType::F32, hidden.device())?);
        }
        Ok((hidden.narrow(0, w[0], rows)?.to_dtype(DType::F32)?.sum(0)? / rows as f64)?)
    });
    Ok(Tensor::stack(&means.collect::<Result<Vec<_>>>()?, 0)?)
}

struct LayerNorm {
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
}

impl LayerNorm {
    fn load(weights: &Weights, name: &str, config: &XlmRobertaConfig) -> Result<Self> {
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
    fn load(weights: &Weights, name: &str, config: &XlmRobertaConfig) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |part: &str, rows: usize, columns: usize| -> Result<FrozenLinear> {
            let weight = weights.tensor(&format!("{name}.{part}.weight"), &[rows, columns])?;
            let bias = weights.tensor(&format!("{name}.{part}.bias"), &[rows])?;
            Ok(FrozenLinear::new(weight, Some(bias)))
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
            attention_norm: LayerNorm::load(
                weights,
                &format!("{name}.attention.output.LayerNorm"),
                config,
            )?,
            intermediate: linear("intermediate.dense", inner, hidden)?,
            output: linear("output.dense", hidden, inner)?,
            output_norm: LayerNorm::load(weights, &format!("{name}.output.LayerNorm"), config)?,
        })
    }

    /// x [T, hidden] → [T, hidden].
    fn forward(&self, x: &Tensor, spans: &AttentionSpans) -> Result<Tensor> {
        let (q, k, v) = (
            self.query.forward(x)?,
            self.key.forward(x)?,
            self.value.forward(x)?,
        );
        let attended = self
            .attention_output
            .forward(&self.attention.attend(&q, &k, &v, spans)?)?;
        let x = self.attention_norm.forward_sum(attended, x)?;
        let inner = gelu(self.intermediate.forward(&x)?)?; // [T, intermediate]
        self.output_norm
            .forward_sum(self.output.forward(&inner)?, &x)
    }
}
