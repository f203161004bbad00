//! The text of an answer whose tokens come one by one.

use crate::Result;
use crate::models::Tokenizer;

/// The tokens of an answer so far, and the text of them that was given out.
#[derive(Debug, Default)]
pub struct ReplyText {
    ids: Vec<u32>,
    said: String,
}

impl ReplyText {
    /// Adds a token. Returns the text that it completes, which is empty in the middle of a character.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) when the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> Result<String> {
        self.ids.push(id);
        let text = tokenizer.decode(&self.ids)?;
        // This is half a character, which the next token completes.
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        Ok(self.new_in(text))
    }

    /// Returns the text at the end that was not given out.
    pub fn rest(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = self.whole(tokenizer)?;
        Ok(self.new_in(text))
    }

    /// Returns the whole text.
    pub fn whole(&self, tokenizer: &Tokenizer) -> Result<String> {
        tokenizer.decode(&self.ids)
    }

    /// Returns the number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    fn new_in(&mut self, text: String) -> String {
        let Some(new) = text.strip_prefix(self.said.as_str()).map(str::to_owned) else {
            return String::new();
        };
        self.said = text;
        new
    }
}
