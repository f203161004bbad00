//! Prompts of whole conversations, in which passages of foreign text stand beside English text.

use llink_datasets::numbers::Scanner;

use super::super::tokenizer::{MARK, Tokenizer, mark, mark_index};
use super::template::{GenerationPrompt, Message, render};
use super::{Chat, ChatPrompt, slots};
use crate::{Error, Result};

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn<'a> {
    /// The role by the chat template, such as `user`.
    pub role: &'a str,
    /// The content in order.
    pub parts: Vec<Part<'a>>,
}

/// A part of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// A text that the decoder reads itself.
    Text(&'a str),
    /// A foreign text. As in training, it stands on a line of its own.
    Passage(&'a str),
}

impl<'a> Part<'a> {
    /// Returns the foreign text.
    pub fn passage(&self) -> Option<&'a str> {
        match self {
            Self::Text(_) => None,
            Self::Passage(text) => Some(text),
        }
    }
}

/// What stands in the prompt for a passage.
#[derive(Debug, Clone, Copy)]
pub enum Passages<'a> {
    /// The number of slots of each passage, and the scanner that finds the passages' numbers.
    Slots(&'a [usize], Option<&'a Scanner>),
    /// The text itself, cut to this number of tokens.
    Text(usize),
}

impl Chat {
    /// Returns the prompt for the answer to a conversation, by the folder's own chat template.
    ///
    /// # Errors
    /// [`Error::Input`] when the template refuses the conversation or leaves out a part of it; [`Error::Model`] when the
    /// tokenizer cannot encode it.
    pub(in super::super) fn conversation(
        &self,
        tokenizer: &Tokenizer,
        turns: &[Turn<'_>],
        passages: Passages<'_>,
    ) -> Result<ChatPrompt> {
        // The template gets a mark for each part, which it can neither change nor read as markup.
        let mut parts: Vec<Part<'_>> = Vec::new();
        let contents: Vec<String> = turns.iter().map(|turn| marked_content(turn, &mut parts)).collect();
        let messages = turns.iter().zip(&contents).map(|(turn, content)| Message { role: turn.role, content });
        let messages: Vec<Message<'_>> = messages.collect();
        let rendered = render(&self.template, &self.named, &messages, GenerationPrompt::Add)
            .map_err(|error| Error::Input(format!("the decoder's chat template refuses this conversation: {error}")))?;
        let mut pieces = rendered.split(MARK);
        let mut text = tokenizer.marked(pieces.next().unwrap_or_default());
        let mut shown = 0;
        for piece in pieces {
            let mut after = piece.chars();
            let at = after.next().and_then(mark_index).unwrap_or(usize::MAX);
            match parts.get(at) {
                Some(Part::Text(said)) => text.push_str(&tokenizer.unmarked(said)),
                Some(Part::Passage(said)) => match passages {
                    Passages::Slots(counts, numbers) => {
                        let before = parts[..at].iter().filter(|part| part.passage().is_some()).count();
                        let count = counts.get(before).copied().unwrap_or_default();
                        let numbers = numbers.map(|scanner| scanner.ascii(said)).unwrap_or_default();
                        text.push_str(&slots(tokenizer, count, &numbers));
                    }
                    Passages::Text(most) => text.push_str(&tokenizer.unmarked(tokenizer.cut(said, most)?)),
                },
                None => {}
            }
            text.push_str(&tokenizer.marked(after.as_str()));
            shown += 1;
        }
        if shown != parts.len() {
            return Err(Error::Input(format!(
                "the decoder's chat template shows {shown} of the {} parts of this conversation's messages: leave out \
                 messages with roles that the decoder does not know",
                parts.len()
            )));
        }
        let count = match passages {
            Passages::Slots(counts, _) => counts.iter().copied().min().unwrap_or_default(),
            Passages::Text(_) => 0,
        };
        Ok(self.with_slot_ids(tokenizer.encode_marked(&text)?, count))
    }
}

/// Returns a turn's content with a mark for each part, and adds the parts to `parts`.
fn marked_content<'a>(turn: &Turn<'a>, parts: &mut Vec<Part<'a>>) -> String {
    let mut content = String::new();
    let mut is_line_open = false;
    for part in &turn.parts {
        let place = mark(parts.len() as u32);
        match part {
            Part::Text(text) => {
                content.push_str(&place);
                is_line_open = !text.ends_with('\n');
            }
            Part::Passage(_) => {
                if is_line_open {
                    content.push('\n');
                }
                content.push_str(&place);
                content.push('\n');
                is_line_open = false;
            }
        }
        parts.push(*part);
    }
    content
}
