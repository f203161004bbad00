//! Prompts by Llama 3's chat template: the user's turn is the instruction and a line with the soft slots, or with the foreign
//! text itself; the assistant's turn is the answer.
//!
//! Special tokens are placed by id. Text that merely looks like one is broken up, so that data cannot end a turn.

use super::decoder::{Decoder, slot_tokens};
use super::tokenizer::SpecialTokens;
use crate::Result;

/// The reserved token that stands for the first slot. The one before it is the teacher's neighbour and stays free.
pub const FIRST_SLOT: usize = 2;

const BEGIN_OF_TEXT: &str = "<|begin_of_text|>";
const START_HEADER: &str = "<|start_header_id|>";
const END_HEADER: &str = "<|end_header_id|>";
/// Ends a turn, and so an answer.
pub const END_OF_TURN: &str = "<|eot_id|>";

/// A prompt as a text whose special tokens are written out, with `{instruction}` and `place` where the slots or the foreign text
/// stand: for other programs.
#[must_use]
pub fn prompt_form(place: &str) -> String {
    format!(
        "{BEGIN_OF_TEXT}{START_HEADER}user{END_HEADER}\n\n{{instruction}}\n{place}\n\
         {END_OF_TURN}{START_HEADER}assistant{END_HEADER}\n\n"
    )
}

/// What the decoder is given before its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Where the slots stand; none in a direct prompt.
    pub slots: Vec<usize>,
}

impl Decoder {
    /// The prompt for an instruction about a text that `slots` soft slots stand for.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming the token that the vocabulary lacks.
    pub fn slot_prompt(&self, instruction: &str, slots: usize) -> Result<ChatPrompt> {
        let tokens = slot_tokens(FIRST_SLOT, slots);
        let tokens = tokens.iter().map(|token| self.tokenizer().require(token));
        let slot_ids: Vec<u32> = tokens.collect::<Result<_>>()?;
        let mut ids = self.user_turn(instruction)?;
        let first = ids.len();
        ids.extend(slot_ids);
        self.answer_header(&mut ids)?;
        Ok(ChatPrompt {
            ids,
            slots: (first..first + slots).collect(),
        })
    }

    /// The prompt for an instruction about a text that stands there itself, cut to `max_tokens` tokens.
    ///
    /// # Errors
    /// As [`Decoder::slot_prompt`].
    pub fn direct_prompt(&self, instruction: &str, foreign: &str, max_tokens: usize) -> Result<ChatPrompt> {
        let mut ids = self.user_turn(instruction)?;
        ids.extend(self.plain(foreign)?.into_iter().take(max_tokens));
        self.answer_header(&mut ids)?;
        Ok(ChatPrompt { ids, slots: Vec::new() })
    }

    /// An answer's tokens, the end of the turn included.
    ///
    /// # Errors
    /// As [`Decoder::slot_prompt`].
    pub fn answer_tokens(&self, answer: &str) -> Result<Vec<u32>> {
        let mut ids = self.plain(answer)?;
        ids.push(self.tokenizer().require(END_OF_TURN)?);
        Ok(ids)
    }

    /// Everything up to the line that the foreign text, or its slots, stand on.
    fn user_turn(&self, instruction: &str) -> Result<Vec<u32>> {
        let id = |token| self.tokenizer().require(token);
        let mut ids = vec![id(BEGIN_OF_TEXT)?, id(START_HEADER)?];
        ids.extend(self.plain("user")?);
        ids.push(id(END_HEADER)?);
        ids.extend(self.plain(&format!("\n\n{}\n", instruction.trim()))?);
        Ok(ids)
    }

    fn answer_header(&self, ids: &mut Vec<u32>) -> Result<()> {
        let id = |token| self.tokenizer().require(token);
        ids.extend(self.plain("\n")?);
        ids.extend([id(END_OF_TURN)?, id(START_HEADER)?]);
        ids.extend(self.plain("assistant")?);
        ids.push(id(END_HEADER)?);
        ids.extend(self.plain("\n\n")?);
        Ok(())
    }

    fn plain(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer().encode(&text.replace("<|", "< |"), SpecialTokens::Omit)
    }
}
