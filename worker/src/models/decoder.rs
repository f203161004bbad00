//! The decoder's interface for tasks: teacher vectors, logits, greedy continuations.
//!
//! A teacher vector is the last hidden state at a slot token after the sentence, or the mean of a hidden layer over it.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use llink_datasets::numbers::Scanner;
use llink_proto::settings::TeacherLayer;

use super::batches::{Packed, Progress, Vectors};
use super::chat::{Chat, ChatPrompt, Passages, PromptForm, Turn};
use super::config::LlamaConfig;
use super::generate::{GenerateOptions, LoadedAdapter, Sampling};
use super::llama::{Llama, Rows};
use super::model_files::ModelFiles;
use super::tokenizer::{SpecialTokens, Tokenizer};
use crate::ops::backend::Backend;
use crate::{Error, Result};

/// The largest number of a teacher sentence's tokens before the slot, including the beginning-of-text token.
pub const TEACHER_TOKENS: usize = 127;

/// Returns the number of a teacher's layer among `layers`.
///
/// # Errors
/// [`Error::Input`] when there is no such layer.
pub fn layer_number(layer: TeacherLayer, layers: usize) -> Result<usize> {
    let (number, given) = match layer {
        TeacherLayer::Number(number) => (Some(number as usize), number.to_string()),
        TeacherLayer::Share(share) => {
            let number = (0.0..=1.0).contains(&share).then(|| (share * layers as f64).round() as usize);
            (number, share.to_string())
        }
    };
    number.filter(|number| *number <= layers).ok_or_else(|| {
        Error::Input(format!(
            "embed.teacher.layer is {given}, but the decoder has {layers} layers (0 is its embedding, {layers} its last). Set it to \
             one of them, or to a share of the depth from 0.0 to 1.0"
        ))
    })
}

/// A loaded decoder with Llama's architecture, and its tokenizer.
pub struct Decoder {
    model: Llama,
    tokenizer: Tokenizer,
    chat: Chat,
    /// The token that begins a text.
    begin: Option<u32>,
    teacher_slot: u32,
}

impl Decoder {
    /// Loads a folder in Hugging Face layout, or a GGUF file, and converts its weights to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming a part that is missing, has the wrong shape or is not supported, or
    /// a chat template that cannot be rendered; [`Error::Io`](crate::Error::Io) for unreadable files.
    pub fn load(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        Self::load_on(dir, &Backend::new(device, dtype))
    }

    /// Loads a decoder as [`Decoder::load`] does, for another backend.
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

    /// Returns the chat format.
    pub fn chat(&self) -> &Chat {
        &self.chat
    }

    /// Replaces the folder's own prompt form, for example by that of a bundle's training.
    pub fn set_prompt_form(&mut self, form: PromptForm) {
        self.chat.set_form(form, &self.tokenizer);
    }

    /// Returns the token at which teacher vectors are read, or [`NO_TOKEN`](super::NO_TOKEN) if the vocabulary has no
    /// spare one.
    pub fn teacher_slot(&self) -> u32 {
        self.teacher_slot
    }

    /// Sets another token at which teacher vectors are read.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the vocabulary lacks it.
    pub fn set_teacher_slot(&mut self, token: &str) -> Result<()> {
        self.teacher_slot = self.tokenizer.require(token)?;
        Ok(())
    }

    /// Returns the prompt for an instruction about a text that `slots` slots represent.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the tokenizer cannot encode it.
    pub fn slot_prompt(&self, instruction: &str, slots: usize) -> Result<ChatPrompt> {
        self.chat.slot_prompt(&self.tokenizer, instruction, slots, "")
    }

    /// Returns the same prompt for the text `foreign`, with the numbers that `numbers` finds in it behind the slots.
    pub fn prompt_about(
        &self,
        instruction: &str,
        slots: usize,
        foreign: &str,
        numbers: Option<&Scanner>,
    ) -> Result<ChatPrompt> {
        let numbers = numbers.map(|scanner| scanner.ascii(foreign)).unwrap_or_default();
        self.chat.slot_prompt(&self.tokenizer, instruction, slots, &numbers)
    }

    /// Returns the prompt for an instruction about a foreign text, which is cut to `max_tokens` tokens.
    pub fn direct_prompt(&self, instruction: &str, foreign: &str, max_tokens: usize) -> Result<ChatPrompt> {
        self.chat.direct_prompt(&self.tokenizer, instruction, foreign, max_tokens)
    }

    /// Returns the prompt for the answer to a conversation, by the folder's own chat template.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) when the template refuses the conversation; those of
    /// [`Decoder::slot_prompt`].
    pub fn conversation(&self, turns: &[Turn<'_>], passages: Passages<'_>) -> Result<ChatPrompt> {
        self.chat.conversation(&self.tokenizer, turns, passages)
    }

    /// Returns an answer's tokens, with the token that ends the turn.
    pub fn answer_tokens(&self, answer: &str) -> Result<Vec<u32>> {
        self.chat.answer_tokens(&self.tokenizer, answer)
    }

    /// Returns the width of the hidden states.
    pub fn hidden_size(&self) -> usize {
        self.config().hidden_size
    }

    /// Returns the model's shape.
    pub fn config(&self) -> &LlamaConfig {
        self.model.config()
    }

    /// Returns the model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns the whole token embedding, `[vocab, hidden]`. On the CPU it is a copy in f32.
    pub fn embedding(&self) -> Result<Tensor> {
        self.model.embedding().table()
    }

    /// Returns the embeddings of `ids`, `[T, hidden]`.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.model.embed(ids)
    }

    /// Returns the token ids whose last hidden state is each text's teacher vector. They are at most [`TEACHER_TOKENS`]
    /// tokens, beginning with BOS if the model has one, and then the slot token.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the tokenizer cannot encode a text.
    pub fn tokenize_teacher(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<u32>>> {
        let mut ids = self.tokenize_sentences(texts)?;
        for ids in &mut ids {
            ids.push(self.teacher_slot);
        }
        Ok(ids)
    }

    /// Returns the first [`TEACHER_TOKENS`] tokens of each text. They begin with BOS, even if the tokenizer's template
    /// does not add it.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the tokenizer cannot encode a text.
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

    /// Returns the teacher vector of each text, in the order of `texts`.
    ///
    /// A batch holds at most `token_budget` tokens, including padding. After each batch, `progress` gets the number of
    /// tokens that are done.
    ///
    /// # Errors
    /// Those of [`Decoder::tokenize_teacher`]; [`Error::Tensor`](crate::Error::Tensor) when the device fails.
    pub fn teacher(&self, texts: &[impl AsRef<str>], token_budget: usize, progress: Progress<'_>) -> Result<Vectors> {
        let ids = self.tokenize_teacher(texts)?;
        self.last_hidden(&ids, token_budget, progress)
    }

    /// Returns the last hidden state, after the final norm, at the last token of each sequence.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for a sequence that is empty or too long, or an id outside the vocabulary.
    pub fn last_hidden(&self, ids: &[Vec<u32>], token_budget: usize, progress: Progress<'_>) -> Result<Vectors> {
        self.model.vectors(ids, token_budget, progress)
    }

    /// Returns the mean of a hidden layer over each sequence's tokens. The first token is left out unless it is the
    /// only one. Later layers are not computed.
    ///
    /// # Errors
    /// Those of [`Decoder::last_hidden`]; [`Error::Input`](crate::Error::Input) when the decoder has no such layer.
    pub fn pooled(
        &self,
        ids: &[Vec<u32>],
        layer: TeacherLayer,
        token_budget: usize,
        progress: Progress<'_>,
    ) -> Result<Vectors> {
        let layer = layer_number(layer, self.config().num_hidden_layers)?;
        self.model.pooled(ids, layer, token_budget, progress)
    }

    /// Returns the model without its tokenizer.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// Returns the hidden states of one sequence after the final norm, `[T, hidden]`.
    pub fn hidden_states(&self, ids: &[u32]) -> Result<Tensor> {
        self.model.check(&[ids])?;
        self.model.forward(&Packed::new([ids]), Rows::All)
    }

    /// Returns the logits of each position of one sequence, `[T, vocab]`.
    pub fn logits(&self, ids: &[u32]) -> Result<Tensor> {
        self.model.logits(&self.hidden_states(ids)?)
    }

    /// Returns the greedy continuation of `ids`. It has at most `max_tokens` tokens and ends before the first token of
    /// `stop`. Of equal logits the lowest id wins.
    pub fn generate(&self, ids: &[u32], max_tokens: usize, stop: &[u32]) -> Result<Vec<u32>> {
        let prompt = ChatPrompt { ids: ids.to_vec(), slots: Vec::new() };
        let options = GenerateOptions { max_tokens, stop: stop.to_vec(), sampling: Sampling::Greedy };
        self.model.generate(&prompt, None, &LoadedAdapter::default(), &options)
    }
}
