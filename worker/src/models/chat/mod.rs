//! Prompts in the decoder's own chat template. The user's turn is the instruction and a line with the slots or the
//! foreign text. The assistant's turn is the answer.
//!
//! A template is rendered once, with placeholders for the user's content. A prompt is tokenized as a whole, so it
//! equals the result of Transformers' `apply_chat_template`. The exception is text that looks like a control token,
//! which stays text.

mod conversation;
mod form;
mod spare;
mod template;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};

pub use conversation::{Part, Passages, Turn};
pub use form::PromptForm;

use self::form::{INSTRUCTION, PLACE};
use self::template::{GenerationPrompt, Message, render};
use super::conventions::Conventions;
use super::tokenizer::{SpecialTokens, Tokenizer, mark};
use crate::ops::NO_TOKEN;
use crate::{Error, Result};

/// Llama 3's turns without a system prompt, for folders with its tokens but without a template.
const LLAMA3: &str = include_str!("llama3.jinja");
const LLAMA3_TOKENS: [&str; 4] = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];
/// The form for base models, which have no turns: the user's lines, an empty line, the answer, the end of the text.
const PLAIN: &str = include_str!("plain.jinja");
/// The placeholder of the assistant's answer.
const ANSWER: &str = "\u{10ffff}2";

/// The chat format of a decoder.
#[derive(Debug, Clone)]
pub struct Chat {
    form: PromptForm,
    /// The prompt's form with marks in place of control tokens.
    marked: PromptForm,
    /// The template, and the tokens that it may name.
    template: String,
    named: BTreeMap<String, String>,
    /// The token that ends an answer in training.
    end_of_turn: u32,
    stop: Vec<u32>,
    /// The ids that no text uses. See [`Chat::teacher_slot`] and [`Chat::slot_ids`].
    spare: Vec<u32>,
}

/// The input of the decoder before its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    /// The token ids, with [`NO_TOKEN`] for a slot without a token.
    pub ids: Vec<u32>,
    /// The positions of the slots. Empty in a direct prompt.
    pub slots: Vec<usize>,
}

impl Chat {
    /// Renders the template of `conventions`. Without a template, Llama 3's turns are used if the vocabulary has Llama
    /// 3's tokens. Otherwise the form is plain: the user's lines, an empty line, the answer and the end of the text.
    ///
    /// `rows` is the number of rows of the embedding.
    ///
    /// # Errors
    /// [`Error::Model`] when the template cannot be rendered or does not show the user's content, or no token is known
    /// to end an answer.
    pub(super) fn new(conventions: &Conventions, tokenizer: &Tokenizer, rows: usize) -> Result<Self> {
        let refuse = |reason: String| Error::model(&conventions.path, reason);
        let mut named = conventions.named.clone();
        let template = match &conventions.chat_template {
            Some(template) => template.as_str(),
            None if LLAMA3_TOKENS.iter().all(|token| tokenizer.token_to_id(token).is_some()) => LLAMA3,
            None => {
                if conventions.begin.is_none() {
                    named.remove("bos_token");
                }
                PLAIN
            }
        };
        let question = format!("{INSTRUCTION}\n{PLACE}\n");
        let user = Message { role: "user", content: &question };
        let rendered = render(template, &named, &[user], GenerationPrompt::Add).map_err(|error| {
            refuse(format!(
                "the chat template can't be rendered: {error}. Give the folder a chat_template.jinja that shows a user's turn and \
                 `add_generation_prompt`"
            ))
        })?;
        let form = PromptForm::split(&rendered, INSTRUCTION, PLACE).ok_or_else(|| {
            refuse(format!(
                "the chat template does not show the user's content once and in order: it gives {rendered:?}"
            ))
        })?;
        let answer = Message { role: "assistant", content: ANSWER };
        // A template that cannot show an answer has no end of an answer either.
        let whole = render(template, &named, &[user, answer], GenerationPrompt::Omit).unwrap_or_default();
        let after_answer = whole.rsplit_once(ANSWER).and_then(|(_, after)| tokenizer.first_control(after));
        let eos = conventions.eos_token().and_then(|token| tokenizer.token_to_id(token));
        let end_of_turn = after_answer.or(eos).ok_or_else(|| {
            refuse(
                "nothing says what ends an answer: name `eos_token` in tokenizer_config.json, or give the folder a \
                 chat_template.jinja that ends the assistant's turn with a special token"
                    .into(),
            )
        })?;
        let mut stop = vec![end_of_turn];
        for id in eos.into_iter().chain(conventions.end.iter().copied()) {
            if !stop.contains(&id) {
                stop.push(id);
            }
        }
        let named_ids = named.values().filter_map(|token| tokenizer.token_to_id(token));
        let used: HashSet<u32> = stop.iter().copied().chain(named_ids).chain(conventions.begin).collect();
        Ok(Self {
            spare: spare::ids(tokenizer, template, &used, rows),
            template: template.to_owned(),
            marked: form.marked(tokenizer),
            form,
            end_of_turn,
            stop,
            named,
        })
    }

    /// Returns the prompt with placeholders for the instruction and for the slots or the foreign text.
    pub fn form(&self) -> &PromptForm {
        &self.form
    }

    pub(super) fn set_form(&mut self, form: PromptForm, tokenizer: &Tokenizer) {
        self.marked = form.marked(tokenizer);
        self.form = form;
    }

    /// Returns the tokens that end an answer: the end of the turn, and the ends that the model's files name.
    pub fn stop(&self) -> &[u32] {
        &self.stop
    }

    /// Returns the token at which the teacher vectors are read. It is a reserved token, else a special token that the
    /// chat template does not use, else a row without a token.
    ///
    /// If there is none, it is [`NO_TOKEN`], whose embedding is the mean of the table. Untrained rows are near this
    /// mean, and no word has it.
    pub fn teacher_slot(&self) -> u32 {
        self.spare.first().copied().unwrap_or(NO_TOKEN)
    }

    /// Returns further such tokens for `count` slots, in order, or nothing if there are not enough. The token after the
    /// teacher's stays free. Prompts work without such tokens too, because slots replace their embeddings.
    pub fn slot_ids(&self, count: usize) -> &[u32] {
        const FIRST: usize = 2;
        self.spare.get(FIRST..FIRST + count).unwrap_or_default()
    }

    /// See [`Decoder::prompt_about`](super::Decoder::prompt_about). `numbers` are the text's numbers in ASCII; they get a
    /// line of their own unless they are empty.
    pub(super) fn slot_prompt(
        &self,
        tokenizer: &Tokenizer,
        instruction: &str,
        slots: usize,
        numbers: &str,
    ) -> Result<ChatPrompt> {
        let ids = self.encode(tokenizer, instruction, &self::slots(tokenizer, slots, numbers))?;
        Ok(self.with_slot_ids(ids, slots))
    }

    /// Returns the prompt of `ids`, with [`NO_TOKEN`] at each place of a slot. These places get the ids of `slots` slots, again
    /// and again, if the vocabulary has as many.
    fn with_slot_ids(&self, mut ids: Vec<u32>, slots: usize) -> ChatPrompt {
        let places: Vec<usize> = (0..ids.len()).filter(|at| ids[*at] == NO_TOKEN).collect();
        for (place, id) in places.iter().zip(self.slot_ids(slots).iter().cycle()) {
            ids[*place] = *id;
        }
        ChatPrompt { ids, slots: places }
    }

    pub(super) fn direct_prompt(
        &self,
        tokenizer: &Tokenizer,
        instruction: &str,
        foreign: &str,
        max_tokens: usize,
    ) -> Result<ChatPrompt> {
        let foreign = tokenizer.unmarked(tokenizer.cut(foreign, max_tokens)?);
        Ok(ChatPrompt { ids: self.encode(tokenizer, instruction, &foreign)?, slots: Vec::new() })
    }

    /// Returns an answer's tokens, with the token that ends the turn.
    pub(super) fn answer_tokens(&self, tokenizer: &Tokenizer, answer: &str) -> Result<Vec<u32>> {
        let mut ids = tokenizer.encode(answer, SpecialTokens::Omit)?;
        ids.push(self.end_of_turn);
        Ok(ids)
    }

    /// Returns the prompt's tokens. `place` may contain marks.
    fn encode(&self, tokenizer: &Tokenizer, instruction: &str, place: &str) -> Result<Vec<u32>> {
        let instruction = tokenizer.unmarked(instruction.trim());
        tokenizer.encode_marked(&self.marked.filled(&instruction, place))
    }
}

/// Returns the text for a passage: a mark for each slot, and the passage's numbers, if any, on a line of their own.
fn slots(tokenizer: &Tokenizer, count: usize, numbers: &str) -> String {
    let line = if numbers.is_empty() { "" } else { "\n" };
    format!("{}{line}{}", mark(0).repeat(count), tokenizer.unmarked(numbers))
}
