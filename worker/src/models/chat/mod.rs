//! Prompts by the decoder's own chat template: the user's turn is the instruction and a line with the soft slots, or with the
//! foreign text itself; the assistant's turn is the answer.
//!
//! A template is rendered once, with places for what the user says. A prompt is tokenized as a whole, so that it is what
//! Transformers' `apply_chat_template` gives, but for text that looks like a control token: that stays text.

mod form;
mod spare;
mod template;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

pub use form::PromptForm;

use self::form::{INSTRUCTION, PLACE};
use self::template::{GenerationPrompt, Message, render};
use super::conventions::Conventions;
use super::tokenizer::{NO_TOKEN, SpecialTokens, Tokenizer, mark};
use crate::{Error, Result};

/// Llama 3's turns without a system prompt: for folders with its tokens and no template.
const LLAMA3: &str = include_str!("llama3.jinja");
const LLAMA3_TOKENS: [&str; 4] = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
];
/// For base models, which know no turns: the user's lines, an empty line, the answer, the end of the text.
const PLAIN: &str = include_str!("plain.jinja");
/// Stands for what the assistant says.
const ANSWER: &str = "\u{10ffff}2";

/// How a decoder is spoken to.
#[derive(Debug, Clone)]
pub struct Chat {
    form: PromptForm,
    /// As the tokenizer reads it.
    marked: PromptForm,
    /// Ends an answer in training.
    end_of_turn: u32,
    stop: Vec<u32>,
    /// Ids that no text uses: see [`Chat::teacher_slot`] and [`Chat::slot_ids`].
    spare: Vec<u32>,
}

/// What the decoder is given before its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    /// Token ids; [`NO_TOKEN`] where a slot has none.
    pub ids: Vec<u32>,
    /// Where the slots stand; none in a direct prompt.
    pub slots: Vec<usize>,
}

impl Chat {
    /// Renders the template of `conventions`. Without one, Llama 3's turns are used where the vocabulary has Llama 3's tokens,
    /// else a plain form: the user's lines, an empty line, the answer and the end of the text.
    ///
    /// `rows` is how many rows the embedding has.
    ///
    /// # Errors
    /// [`Error::Model`] when the template can't be rendered or does not show what the user says, and when nothing is known that
    /// ends an answer.
    pub(super) fn new(conventions: &Conventions, tokenizer: &Tokenizer, rows: usize) -> Result<Self> {
        let refuse = |reason: String| Error::Model {
            path: conventions.path.clone(),
            reason,
        };
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
        let user = Message {
            role: "user",
            content: &question,
        };
        let rendered = render(template, &named, &[user], GenerationPrompt::Add).map_err(|error| {
            refuse(format!(
                "the chat template can't be rendered: {error}. Give the folder a chat_template.jinja that shows a user's turn and \
                 `add_generation_prompt`"
            ))
        })?;
        let form = PromptForm::split(&rendered, INSTRUCTION, PLACE).ok_or_else(|| {
            refuse(format!(
                "the chat template does not show what the user says once and in order: it gives {rendered:?}"
            ))
        })?;
        let answer = Message {
            role: "assistant",
            content: ANSWER,
        };
        // A template that can't show an answer does not say what ends one either.
        let whole = render(template, &named, &[user, answer], GenerationPrompt::Omit).unwrap_or_default();
        let after_answer = whole
            .rsplit_once(ANSWER)
            .and_then(|(_, after)| tokenizer.first_control(after));
        let eos = conventions.eos_token().and_then(|token| tokenizer.token_to_id(token));
        let end_of_turn = after_answer.map(|(_, id)| id).or(eos).ok_or_else(|| {
            refuse(
                "nothing says what ends an answer: name `eos_token` in tokenizer_config.json, or give the folder a \
                 chat_template.jinja that ends the assistant's turn with a special token"
                    .into(),
            )
        })?;
        let mut stop = vec![end_of_turn];
        let known = eos.into_iter().chain(conventions.end.iter().copied());
        known.for_each(|id| {
            if !stop.contains(&id) {
                stop.push(id)
            }
        });
        let named_ids = named.values().filter_map(|token| tokenizer.token_to_id(token));
        let used: HashSet<u32> = stop.iter().copied().chain(named_ids).chain(conventions.begin).collect();
        Ok(Self {
            spare: spare::ids(tokenizer, template, &used, rows),
            marked: form.marked(tokenizer),
            form,
            end_of_turn,
            stop,
        })
    }

    /// The prompt, with places for the instruction and for the slots or the foreign text.
    pub fn form(&self) -> &PromptForm {
        &self.form
    }

    /// Speaks by another form, such as a bundle's.
    pub(super) fn set_form(&mut self, form: PromptForm, tokenizer: &Tokenizer) {
        self.marked = form.marked(tokenizer);
        self.form = form;
    }

    /// Any of these ends an answer: the end of the turn, and what the model's files call an end.
    pub fn stop(&self) -> &[u32] {
        &self.stop
    }

    /// The token at which the teacher vectors are read: a reserved token of the vocabulary, else a special token that the chat
    /// template does not use, else a row of the embedding that no token has. Where there is none it is [`NO_TOKEN`], whose
    /// embedding is the mean of the table: what an untrained row tends to, and no word's.
    pub fn teacher_slot(&self) -> u32 {
        self.spare.first().copied().unwrap_or(NO_TOKEN)
    }

    /// Other tokens of the same kind that hold the places of `count` slots, in order; none unless there are enough. The one after
    /// the teacher's stays free. A slot's own embedding takes the place of the token's, so that prompts do well without.
    pub fn slot_ids(&self, count: usize) -> &[u32] {
        const FIRST: usize = 2;
        self.spare.get(FIRST..FIRST + count).unwrap_or_default()
    }

    /// The prompt for an instruction about a text that `slots` soft slots stand for.
    ///
    /// # Errors
    /// [`Error::Model`] when the tokenizer can't encode it.
    pub(super) fn slot_prompt(&self, tokenizer: &Tokenizer, instruction: &str, slots: usize) -> Result<ChatPrompt> {
        let mut ids = self.encode(tokenizer, instruction, &mark(0).repeat(slots))?;
        let places: Vec<usize> = (0..ids.len()).filter(|at| ids[*at] == NO_TOKEN).collect();
        for (place, id) in places.iter().zip(self.slot_ids(slots)) {
            ids[*place] = *id;
        }
        Ok(ChatPrompt { ids, slots: places })
    }

    /// The prompt for an instruction about a text that stands there itself, cut to `max_tokens` tokens.
    ///
    /// # Errors
    /// As [`Chat::slot_prompt`].
    pub(super) fn direct_prompt(
        &self,
        tokenizer: &Tokenizer,
        instruction: &str,
        foreign: &str,
        max_tokens: usize,
    ) -> Result<ChatPrompt> {
        let foreign = tokenizer.unmarked(tokenizer.cut(foreign, max_tokens)?);
        Ok(ChatPrompt {
            ids: self.encode(tokenizer, instruction, &foreign)?,
            slots: Vec::new(),
        })
    }

    /// An answer's tokens, the end of the turn included.
    ///
    /// # Errors
    /// As [`Chat::slot_prompt`].
    pub(super) fn answer_tokens(&self, tokenizer: &Tokenizer, answer: &str) -> Result<Vec<u32>> {
        let mut ids = tokenizer.encode(answer, SpecialTokens::Omit)?;
        ids.push(self.end_of_turn);
        Ok(ids)
    }

    /// The prompt's tokens; marks count in `place`.
    fn encode(&self, tokenizer: &Tokenizer, instruction: &str, place: &str) -> Result<Vec<u32>> {
        let instruction = tokenizer.unmarked(instruction.trim());
        tokenizer.encode_marked(&self.marked.filled(&instruction, place))
    }
}
