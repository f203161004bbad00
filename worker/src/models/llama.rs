//! The frozen decoder with Llama's architecture.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::batches::{Batching, Packed, Progress, Vectors, check_ids, in_batches};
use super::cache::{self, Cache};
use super::config::LlamaConfig;
use super::llama_layer::{Extend, LastRows, Layer, Place};
use super::lora::LayerAdapter;
use super::model_files::ModelFiles;
use super::weights::{Weights, prefixed};
use crate::device::TokenCost;
use crate::ops::backend::Backend;
use crate::ops::{AttentionSpans, Causality, Embedding, FrozenLinear, MeanOf, Rope, rms_norm, rms_norm_backward};
use crate::{Error, Result};

/// The name of a GGUF file's factors of the rotary frequencies.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The sequence length for estimates of attention's memory. Teacher sentences have at most 128 tokens.
const USUAL_LENGTH: usize = 128;

/// Llama without its tokenizer. It maps token ids to hidden states and logits.
pub struct Llama {
    config: LlamaConfig,
    embedding: Embedding, // [vocab, hidden]
    pub(super) layers: Vec<Layer>,
    norm: Tensor,
    pub(super) head: FrozenLinear,
    frequencies: Vec<f32>,
    batching: Batching,
    path: String,
}

/// Returns the rotary frequencies. llama.cpp writes divisors for them beside the weights of Llama 3.1 and later.
fn frequencies(config: &LlamaConfig, weights: &Weights) -> Result<Vec<f32>> {
    let mut frequencies = config.rope_frequencies();
    if weights.has(ROPE_FACTORS) {
        let factors = weights.values(ROPE_FACTORS, &[frequencies.len()])?;
        frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
    }
    Ok(frequencies)
}

/// The rows that the last layer computes.
#[derive(Clone, Copy)]
pub(crate) enum Rows {
    All,
    LastOfEach,
}

/// The prefixes of tensor names. They depend on the class that saved the model.
pub(crate) const PREFIXES: &[&str] = &["model.", ""];

/// Returns tensors by which weights are recognized. One name of each list must exist.
pub(crate) fn landmarks(config: &LlamaConfig) -> [Vec<String>; 2] {
    let last = config.num_hidden_layers.saturating_sub(1);
    let mut embedding = vec!["embed_tokens.weight".to_owned()];
    if config.tie_word_embeddings {
        embedding.push("lm_head.weight".into());
    }
    [embedding, vec![format!("layers.{last}.mlp.down_proj.weight")]]
        .map(|names| names.iter().flat_map(|name| prefixed(PREFIXES, name)).collect())
}

impl Llama {
    /// Loads the weights of a folder in Hugging Face layout.
    ///
    /// # Errors
    /// [`Error::Model`] naming a part that is missing, has the wrong shape or is not supported; [`Error::Io`] for
    /// unreadable files.
    pub fn load_on(dir: &Path, backend: &Backend) -> Result<Self> {
        Self::of(&ModelFiles::open(dir)?, backend)
    }

    pub(super) fn of(files: &ModelFiles, backend: &Backend) -> Result<Self> {
        let config = files.config()?;
        let weights = files.weights(backend)?;
        let shape = [config.vocab_size, config.hidden_size];
        // Some models with a shared embedding were saved with only one of its two names.
        let tied = config.tie_word_embeddings;
        let embedding = match tied && !weights.has("embed_tokens.weight") && weights.has("lm_head.weight") {
            true => "lm_head.weight",
            false => "embed_tokens.weight",
        };
        let head = if tied { embedding } else { "lm_head.weight" };
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&weights, &format!("layers.{index}"), &config))
            .collect::<Result<_>>()?;
        Ok(Self {
            norm: weights.tensor("norm.weight", &[config.hidden_size])?,
            head: weights.linear(head, shape, None)?,
            embedding: weights.embedding(embedding, shape)?,
            frequencies: frequencies(&config, &weights)?,
            batching: Batching::new(TokenCost::forward(
                config.hidden_size,
                config.intermediate_size,
                config.num_attention_heads,
                USUAL_LENGTH,
                backend.value_bytes(),
            )),
            config,
            layers,
            path: weights.path().to_owned(),
        })
    }

    /// Returns the model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Returns the token embedding, `[vocab, hidden]`.
    pub(crate) fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    /// Applies the output head to hidden states `[T, hidden]`. Returns logits `[T, vocab]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }

    /// Returns the last hidden state, after the final norm, at the last token of each sequence.
    ///
    /// # Errors
    /// [`Error`] where a sequence can't be read, or the device fails.
    pub fn vectors(&self, ids: &[Vec<u32>], token_budget: usize, progress: Progress<'_>) -> Result<Vectors> {
        self.check(ids)?;
        in_batches(ids, self.norm.device(), token_budget, &self.batching, progress, |packed| {
            self.forward(packed, Rows::LastOfEach)
        })
    }

    /// Returns the mean of hidden layer `layer` over each sequence's tokens. The first token is left out unless it is
    /// the only one. Layer 0 is the embedding, and the last one is after the final norm. Later layers are not computed.
    pub(crate) fn pooled(
        &self,
        ids: &[Vec<u32>],
        layer: usize,
        token_budget: usize,
        progress: Progress<'_>,
    ) -> Result<Vectors> {
        self.check(ids)?;
        in_batches(ids, self.norm.device(), token_budget, &self.batching, progress, |packed| {
            let (states, spans) = self.through(layer, self.embed(&packed.ids)?, packed, &mut [], Rows::All, &[])?;
            let states = if layer == self.layers.len() { self.final_norm(&states)? } else { states };
            spans.mean_rows(&states, MeanOf::AllButFirst)
        })
    }

    pub(crate) fn check(&self, ids: &[impl AsRef<[u32]>]) -> Result<()> {
        check_ids(ids, self.config.vocab_size, self.config.max_position_embeddings, &self.path)?;
        if ids.iter().any(|ids| ids.as_ref().is_empty()) {
            return Err(Error::Input(format!("{}: a sequence without tokens has no hidden state", self.path)));
        }
        Ok(())
    }

    /// Returns the embeddings of token ids, `[T, hidden]`.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.embedding.rows(ids)
    }

    /// Returns hidden states after the final norm: `[T, hidden]`, or `[B, hidden]` for the last row of each sequence.
    pub(crate) fn forward(&self, packed: &Packed, rows: Rows) -> Result<Tensor> {
        self.forward_from(self.embed(&packed.ids)?, packed, &mut [], rows, &[])
    }

    /// Computes [`Llama::forward`] with embeddings `[T, hidden]` in place of the tokens' own. `caches` is empty, or has
    /// one cache for each sequence, which continues the cached tokens. `adapter` is empty or has all layers.
    pub(crate) fn forward_from(
        &self,
        embeddings: Tensor,
        packed: &Packed,
        caches: &mut [&mut Cache],
        rows: Rows,
        adapter: &[LayerAdapter],
    ) -> Result<Tensor> {
        let (x, _) = self.through(self.layers.len(), embeddings, packed, caches, rows, adapter)?;
        self.final_norm(&x)
    }

    /// Returns the output of the first `depth` layers without the final norm, and the place of each sequence.
    fn through(
        &self,
        depth: usize,
        embeddings: Tensor,
        packed: &Packed,
        caches: &mut [&mut Cache],
        rows: Rows,
        adapter: &[LayerAdapter],
    ) -> Result<(Tensor, AttentionSpans)> {
        let (device, dtype) = (embeddings.device().clone(), embeddings.dtype());
        let past: Vec<usize> = caches.iter().map(|cache| cache.tokens()).collect();
        let past = |sequence: usize| past.get(sequence).copied().unwrap_or(0);
        let rope = self.rope(packed, past, dtype, &device)?;
        let queries = packed.offsets.clone();
        let before = (0..queries.len()).scan(0, |sum, sequence| Some(std::mem::replace(sum, *sum + past(sequence))));
        let keys: Vec<usize> = queries.iter().zip(before).map(|(own, before)| own + before).collect();
        let spans = AttentionSpans::new(queries, keys.clone(), Causality::Causal, dtype, &device)?;
        let last = match rows {
            Rows::All => None,
            Rows::LastOfEach => Some(LastRows::new(packed, keys, &rope, dtype, &device)?),
        };
        let mut x = embeddings;
        for (index, layer) in self.layers.iter().take(depth).enumerate() {
            let place = Place { spans: &spans, rope: &rope, only: last.as_ref().filter(|_| index + 1 == depth) };
            let is_cached = !caches.is_empty();
            let mut extend = |k: &Tensor, v: &Tensor| cache::extend(caches, index, k, v, &packed.offsets);
            let cached = is_cached.then_some(&mut extend as &mut Extend<'_>);
            (x, _) = layer.forward(x, &place, cached, adapter.get(index))?;
        }
        Ok((x, spans))
    }

    /// Returns the rotations of packed sequences. `past` gives the first position of each.
    pub(super) fn rope(
        &self,
        packed: &Packed,
        past: impl Fn(usize) -> usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Rope> {
        Rope::new(&packed.positions(past), &self.frequencies, dtype, device)
    }

    /// Returns the device and the dtype of the layers.
    pub(crate) fn activations(&self) -> (&Device, DType) {
        (self.norm.device(), self.norm.dtype())
    }

    pub(super) fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.norm, self.config.rms_norm_eps)
    }

    /// Returns the gradient of the input of [`Llama::final_norm`].
    pub(super) fn final_norm_backward(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        rms_norm_backward(x, &self.norm, self.config.rms_norm_eps, grad)
    }
}
