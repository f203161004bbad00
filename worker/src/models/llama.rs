//! Llama: the frozen decoder. A teacher vector is the last hidden state at a reserved slot token after the sentence.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::batches::{Packed, token_batches};
use super::config::LlamaConfig;
use super::ops::{
    Attention, AttentionSpans, Causality, FrozenLinear, Rope, add_rms_norm, rms_norm, silu_mul,
};
use super::tokenizer::{SpecialTokens, Tokenizer};
use super::weights::Weights;
use super::{check_ids, cpu_rows};
use crate::{Error, Result};

/// The slot token of teacher vectors unless [`Decoder::slot_token`] says otherwise.
pub const TEACHER_SLOT: &str = "<|reserved_special_token_0|>";

/// The first `n` reserved tokens that stand for soft slots in a prompt: `first`, `first + 1`, ….
pub fn slot_tokens(first: usize, n: usize) -> Vec<String> {
    (first..first + n)
        .map(|index| format!("<|reserved_special_token_{index}|>"))
        .collect()
}

/// A teacher sentence has at most so many tokens before the slot, the beginning-of-text token included.
pub const TEACHER_TOKENS: usize = 127;

/// A loaded Llama decoder with its tokenizer.
pub struct Decoder {
    /// The reserved token at which teacher vectors are read.
    pub slot_token: String,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    embedding: Tensor, // [vocab, hidden]
    layers: Vec<Layer>,
    norm: Tensor,
    head: FrozenLinear,
    frequencies: Vec<f32>,
    path: String,
}

/// Keys and values of the tokens so far, one pair per layer: [tokens, kv_heads·head_dim] each.
#[derive(Default)]
struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    tokens: usize,
}

/// Which rows the last layer has to give.
#[derive(Clone, Copy)]
enum Rows {
    All,
    LastOfEach,
}

impl Decoder {
    /// Loads a folder in Hugging Face layout and converts its weights to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::Model`] naming what is missing, misshapen or not supported, a lacking [`TEACHER_SLOT`] included;
    /// [`Error::Io`] for unreadable files.
    pub fn load(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let config = LlamaConfig::load(dir)?;
        let tokenizer = Tokenizer::load(dir)?;
        tokenizer.require(TEACHER_SLOT)?;
        let path = dir.display().to_string();
        if tokenizer.vocab_size() > config.vocab_size {
            let (has, rows) = (tokenizer.vocab_size(), config.vocab_size);
            let reason =
                format!("tokenizer.json has {has} tokens, config.json's vocab_size is {rows}");
            return Err(Error::Model { path, reason });
        }
        let weights = Weights::open(dir, &["model.", ""], device, dtype)?;
        let shape = [config.vocab_size, config.hidden_size];
        let embedding = weights.tensor("embed_tokens.weight", &shape)?;
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => weights.tensor("lm_head.weight", &shape)?,
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&weights, &format!("layers.{index}"), &config))
            .collect::<Result<_>>()?;
        Ok(Self {
            slot_token: TEACHER_SLOT.into(),
            norm: weights.tensor("norm.weight", &[config.hidden_size])?,
            head: FrozenLinear::new(head, None),
            frequencies: config.rope_frequencies(),
            config,
            tokenizer,
            embedding,
            layers,
            path,
        })
    }

    /// Width of the hidden states.
    pub fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The token embedding, [vocab, hidden].
    pub fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// The token ids whose last hidden state is each text's teacher vector: at most [`TEACHER_TOKENS`] of the text's
    /// own, then the slot token.
    ///
    /// # Errors
    /// [`Error::Model`] when the vocabulary lacks [`Decoder::slot_token`], or the tokenizer can't encode a text.
    pub fn tokenize_teacher(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<u32>>> {
        let slot = self.tokenizer.require(&self.slot_token)?;
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let mut ids = self.tokenizer.encode_batch(&texts, SpecialTokens::Add)?;
        for ids in &mut ids {
            ids.truncate(TEACHER_TOKENS);
            ids.push(slot);
        }
        Ok(ids)
    }

    /// The teacher vector of each text, in the order of `texts`.
    ///
    /// A batch holds at most `token_budget` tokens, padding counted. `progress` is told after each batch how many
    /// tokens are done so far.
    ///
    /// # Errors
    /// As [`Decoder::tokenize_teacher`]; [`Error::Tensor`] when the device fails.
    pub fn teacher(
        &self,
        texts: &[impl AsRef<str>],
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        let ids = self.tokenize_teacher(texts)?;
        self.last_hidden(&ids, token_budget, progress)
    }

    /// The last hidden state, after the final norm, at the last token of each sequence.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty sequence, one that is too long, or an id outside the vocabulary.
    pub fn last_hidden(
        &self,
        ids: &[Vec<u32>],
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        self.check(ids)?;
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        let mut vectors = vec![Vec::new(); ids.len()];
        let mut done = 0;
        for batch in token_batches(&lengths, cpu_rows(self.embedding.device(), token_budget)) {
            let packed = Packed::new(batch.iter().map(|&index| ids[index].as_slice()));
            let last = self.forward(&packed, None, Rows::LastOfEach)?;
            for (index, vector) in batch
                .into_iter()
                .zip(last.to_dtype(DType::F32)?.to_vec2::<f32>()?)
            {
                vectors[index] = vector;
            }
            done += packed.ids.len() as u64;
            progress(done);
        }
        Ok(vectors)
    }

    /// The hidden states of one sequence after the final norm, [T, hidden].
    ///
    /// # Errors
    /// As [`Decoder::last_hidden`].
    pub fn hidden_states(&self, ids: &[u32]) -> Result<Tensor> {
        self.check(&[ids])?;
        self.forward(&Packed::new([ids]), None, Rows::All)
    }

    /// The logits of each position of one sequence, [T, vocab].
    ///
    /// # Errors
    /// As [`Decoder::last_hidden`].
    pub fn logits(&self, ids: &[u32]) -> Result<Tensor> {
        self.head.forward(&self.hidden_states(ids)?)
    }

    /// The greedy continuation of `ids`: at most `max_tokens` tokens, up to and without the first of `stop`.
    /// Of equal logits the lowest id wins.
    ///
    /// # Errors
    /// As [`Decoder::last_hidden`].
    pub fn generate(&self, ids: &[u32], max_tokens: usize, stop: &[u32]) -> Result<Vec<u32>> {
        self.check(&[ids])?;
        let mut cache = Cache::default();
        let mut next = ids.to_vec();
        let mut generated = Vec::new();
        while generated.len() < max_tokens
            && cache.tokens + next.len() <= self.config.max_position_embeddings
        {
            let hidden = self.forward(
                &Packed::new([next.as_slice()]),
                Some(&mut cache),
                Rows::LastOfEach,
            )?;
            let logits = self
                .head
                .forward(&hidden)?
                .to_dtype(DType::F32)?
                .get(0)?
                .to_vec1::<f32>()?;
            let token = argmax(&logits);
            if stop.contains(&token) {
                break;
            }
            generated.push(token);
            next = vec![token];
        }
        Ok(generated)
    }

    fn check(&self, ids: &[impl AsRef<[u32]>]) -> Result<()> {
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
    fn forward(
        &self,
        packed: &Packed,
        mut cache: Option<&mut Cache>,
        rows: Rows,
    ) -> Result<Tensor> {
        let (device, dtype) = (self.embedding.device(), self.embedding.dtype());
        let past = cache.as_ref().map_or(0, |cache| cache.tokens);
        let mut x = self
            .embedding
            .index_select(&packed.ids_tensor(device)?, 0)?;
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

/// The lowest index of the largest value.
fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best as u32
}

/// What the last layer needs to compute the last row of each sequence and no other.
struct LastRows {
    rows: Tensor, // [B]
    spans: AttentionSpans,
    rope: Rope,
}

impl LastRows {
    fn new(
        packed: &Packed,
        keys: Vec<usize>,
        rope: &Rope,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
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
            let weight = weights.tensor(&format!("{name}.{part}.weight"), &[rows, columns])?;
            Ok(FrozenLinear::new(weight, None))
        };
        Ok(Self {
            input_norm: weights.tensor(&format!("{name}.input_layernorm.weight"), &[hidden])?,
            q_proj: linear("self_attn.q_proj", q_width, hidden)?,
            k_proj: linear("self_attn.k_proj", kv_width, hidden)?,
            v_proj: linear("self_attn.v_proj", kv_width, hidden)?,
            o_proj: linear("self_attn.o_proj", hidden, q_width)?,
            post_norm: weights.tensor(
                &format!("{name}.post_attention_layernorm.weight"),
                &[hidden],
            )?,
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
                (k, v) = (
                    Tensor::cat(&[past_k, &k], 0)?,
                    Tensor::cat(&[past_v, &v], 0)?,
                );
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
        let attended = self
            .o_proj
            .forward(&self.attention.attend(&q, &k, &v, spans)?)?;
        let (x, normed) = add_rms_norm(x, &attended, &self.post_norm, self.eps)?;
        let gated = silu_mul(
            self.gate_proj.forward(&normed)?,
            &self.up_proj.forward(&normed)?,
        )?;
        Ok((x + self.down_proj.forward(&gated)?)?)
    }
}
