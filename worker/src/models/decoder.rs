//! The decoder as tasks use it: teacher vectors, logits, greedy continuations.
//!
//! A teacher vector is the last hidden state at a slot token after the sentence, or the mean of a hidden layer over it.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::backend::Backend;
use super::batches::Packed;
use super::chat::{Chat, ChatPrompt, PromptForm};
use super::config::LlamaConfig;
use super::generate::{GenerateOptions, LoadedAdapter, Sampling};
use super::llama::{Llama, Rows};
use super::model_files::ModelFiles;
use super::tokenizer::{SpecialTokens, Tokenizer};
use crate::{Error, Result};

/// A teacher sentence has at most so many tokens before the slot, the beginning-of-text token included.
pub const TEACHER_TOKENS: usize = 127;

/// The mean of one hidden layer over a sentence: a teacher that needs no slot token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TeacherLayer {
    /// 0 is the embedding, the number of layers is the last one, after the final norm.
    Number(usize),
    /// A share of the depth, rounded to the nearest layer.
    Share(f64),
}

impl TeacherLayer {
    /// Which of `layers` it is.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no such layer.
    pub fn of(self, layers: usize) -> Result<usize> {
        let (layer, given) = match self {
            Self::Number(number) => (Some(number), number.to_string()),
            Self::Share(share) => {
                let layer = (0.0..=1.0)
                    .contains(&share)
                    .then(|| (share * layers as f64).round() as usize);
                (layer, share.to_string())
            }
        };
        layer.filter(|layer| *layer <= layers).ok_or_else(|| {
            Error::Input(format!(
                "embed.teacher.layer is {given}, but the decoder has {layers} layers (0 is its embedding, {layers} its last). Set it to \
                 one of them, or to a share of the depth from 0.0 to 1.0"
            ))
        })
    }
}

/// A loaded decoder of Llama's form with its tokenizer.
pub struct Decoder {
    model: Llama,
    tokenizer: Tokenizer,
    chat: Chat,
    /// What a text begins with.
    begin: Option<u32>,
    teacher_slot: u32,
}

impl Decoder {
    /// Loads a folder in Hugging Face layout, or a GGUF file, and converts its weights to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming what is missing, misshapen or not supported, a chat template that can't be
    /// rendered included; [`Error::Io`](crate::Error::Io) for unreadable files.
    pub fn load(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        Self::load_on(dir, &Backend::new(device, dtype))
    }

    /// As [`Decoder::load`], for a backend of the caller's choice.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_on(dir: &Path, backend: &Backend) -> Result<Self> {
        let files = ModelFiles::open(dir)?;
        let rows = files.config()?.vocab_size;
        let tokenizer = files.tokenizer(rows)?;
        let conventions = files.conventions(&tokenizer)?;
        let chat = Chat::new(&conventions, &tokenizer, rows)?;
        Ok(Self {
            model: Llama::of(&files, backend)?,
            begin: conventions.begin,
            teacher_slot: chat.teacher_slot(),
            chat,
            tokenizer,
        })
    }

    /// How the decoder is spoken to.
    pub fn chat(&self) -> &Chat {
        &self.chat
    }

    /// Speaks by another form of prompt than the folder's own, such as the one that a bundle was trained with.
    pub fn set_prompt_form(&mut self, form: PromptForm) {
        self.chat.set_form(form, &self.tokenizer);
    }

    /// The token at which teacher vectors are read, [`NO_TOKEN`](super::NO_TOKEN) where the vocabulary has none to spare.
    pub fn teacher_slot(&self) -> u32 {
        self.teacher_slot
    }

    /// Reads teacher vectors at another token.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the vocabulary lacks it.
    pub fn set_teacher_slot(&mut self, token: &str) -> Result<()> {
        self.teacher_slot = self.tokenizer.require(token)?;
        Ok(())
    }

    /// The prompt for an instruction about a text that `slots` soft slots stand for.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the tokenizer can't encode it.
    pub fn slot_prompt(&self, instruction: &str, slots: usize) -> Result<ChatPrompt> {
        self.chat.slot_prompt(&self.tokenizer, instruction, slots)
    }

    /// The prompt for an instruction about a text that stands there itself, cut to `max_tokens` tokens.
    ///
    /// # Errors
    /// As [`Decoder::slot_prompt`].
    pub fn direct_prompt(&self, instruction: &str, foreign: &str, max_tokens: usize) -> Result<ChatPrompt> {
        self.chat
            .direct_prompt(&self.tokenizer, instruction, foreign, max_tokens)
    }

    /// An answer's tokens, the end of the turn included.
    ///
    /// # Errors
    /// As [`Decoder::slot_prompt`].
    pub fn answer_tokens(&self, answer: &str) -> Result<Vec<u32>> {
        self.chat.answer_tokens(&self.tokenizer, answer)
    }

    /// Width of the hidden states.
    pub fn hidden_size(&self) -> usize {
        self.config().hidden_size
    }

    /// The model's shape.
    pub fn config(&self) -> &LlamaConfig {
        self.model.config()
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The whole token embedding, [vocab, hidden]; on the CPU an f32 copy.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) when the device fails.
    pub fn embedding(&self) -> Result<Tensor> {
        self.model.embedding().table()
    }

    /// The embeddings of `ids`, [T, hidden].
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.model.embedding().rows(ids)
    }

    /// The token ids whose last hidden state is each text's teacher vector: at most [`TEACHER_TOKENS`], the first one BOS where the
    /// model has one, then the slot token.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the tokenizer can't encode a text.
    pub fn tokenize_teacher(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<u32>>> {
        let mut ids = self.tokenize_sentences(texts)?;
        for ids in &mut ids {
            ids.push(self.teacher_slot);
        }
        Ok(ids)
    }

    /// The first [`TEACHER_TOKENS`] tokens of each text, which begins with BOS whether or not the tokenizer's template adds it.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the tokenizer can't encode a text.
    pub fn tokenize_sentences(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<u32>>> {
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let mut ids = self.tokenizer.encode_batch(&texts, SpecialTokens::Add)?;
        for ids in &mut ids {
            if let Some(begin) = self.begin.filter(|begin| ids.first() != Some(begin)) {
                ids.insert(0, begin);
            }
            ids.truncate(TEACHER_TOKENS);
        }
        Ok(ids)
    }

    /// The teacher vector of each text, in the order of `texts`.
    ///
    /// A batch holds at most `token_budget` tokens, padding counted. `progress` is told after each batch how many
    /// tokens are done so far.
    ///
    /// # Errors
    /// As [`Decoder::tokenize_teacher`]; [`Error::Tensor`](crate::Error::Tensor) when the device fails.
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
    /// [`Error::Input`](crate::Error::Input) for an empty sequence, one that is too long, or an id outside the
    /// vocabulary.
    pub fn last_hidden(
        &self,
        ids: &[Vec<u32>],
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        self.model.vectors(ids, token_budget, progress)
    }

    /// The mean of a hidden layer over each sequence's tokens, without the first where there are others. Layers behind it are not
    /// computed.
    ///
    /// # Errors
    /// As [`Decoder::last_hidden`]; [`Error::Input`](crate::Error::Input) when the decoder has no such layer.
    pub fn pooled(
        &self,
        ids: &[Vec<u32>],
        layer: TeacherLayer,
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        let layer = layer.of(self.config().num_hidden_layers)?;
        self.model.pooled(ids, layer, token_budget, progress)
    }

    /// The model without its tokenizer.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// The hidden states of one sequence after the final norm, [T, hidden].
    ///
    /// # Errors
    /// As [`Decoder::last_hidden`].
    pub fn hidden_states(&self, ids: &[u32]) -> Result<Tensor> {
        self.model.check(&[ids])?;
        self.model.forward(&Packed::new([ids]), None, Rows::All, &[])
    }

    /// The logits of each position of one sequence, [T, vocab].
    ///
    /// # Errors
    /// As [`Decoder::last_hidden`].
    pub fn logits(&self, ids: &[u32]) -> Result<Tensor> {
        self.model.logits(&self.hidden_states(ids)?)
    }

    /// The greedy continuation of `ids`: at most `max_tokens` tokens, up to and without the first of `stop`.
    /// Of equal logits the lowest id wins.
    ///
    /// # Errors
    /// As [`Decoder::last_hidden`].
    pub fn generate(&self, ids: &[u32], max_tokens: usize, stop: &[u32]) -> Result<Vec<u32>> {
        let prompt = ChatPrompt {
            ids: ids.to_vec(),
            slots: Vec::new(),
        };
        let options = GenerateOptions {
            max_tokens,
            stop: stop.to_vec(),
            sampling: Sampling::Greedy,
        };
        let adapter = LoadedAdapter::default();
        let going_on = &mut |_| ControlFlow::Continue(());
        self.model.generate(&prompt, None, &adapter, &options, going_on)
    }
}
