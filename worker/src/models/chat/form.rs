//! A rendered prompt with placeholders for the user's content.

use super::super::tokenizer::Tokenizer;

/// The placeholder of the instruction while a template is rendered. Templates do not contain or change this text.
pub(super) const INSTRUCTION: &str = "\u{10ffff}0";
/// The placeholder of the slots or the foreign text.
pub(super) const PLACE: &str = "\u{10ffff}1";

/// The texts around the instruction and around the slots or the foreign text. Control tokens are written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptForm {
    before: String,
    between: String,
    after: String,
}

impl PromptForm {
    /// Parses a text with `{instruction}` and `place`. Returns `None` unless it contains each once, in this order.
    pub fn parse(text: &str, place: &str) -> Option<Self> {
        Self::split(text, "{instruction}", place)
    }

    /// Returns the prompt as a text for other programs, with `{instruction}` and `place` as placeholders.
    pub fn text(&self, place: &str) -> String {
        self.filled("{instruction}", place)
    }

    pub(super) fn split(text: &str, instruction: &str, place: &str) -> Option<Self> {
        let (before, rest) = text.split_once(instruction)?;
        let (between, after) = rest.split_once(place)?;
        let once = ![before, between, after].iter().any(|part| part.contains(instruction) || part.contains(place));
        once.then(|| Self { before: before.into(), between: between.into(), after: after.into() })
    }

    /// Returns the same form with marks in place of control tokens.
    pub(super) fn marked(&self, tokenizer: &Tokenizer) -> Self {
        Self {
            before: tokenizer.marked(&self.before),
            between: tokenizer.marked(&self.between),
            after: tokenizer.marked(&self.after),
        }
    }

    pub(super) fn filled(&self, instruction: &str, place: &str) -> String {
        let Self { before, between, after } = self;
        format!("{before}{instruction}{between}{place}{after}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_it_is_written() {
        let text = "<s>[INST] {instruction}\n{slots} [/INST]";
        assert_eq!(PromptForm::parse(text, "{slots}").unwrap().text("{slots}"), text);
        for other in ["{slots}{instruction}", "{instruction}", "{instruction}{slots}{slots}"] {
            assert_eq!(PromptForm::parse(other, "{slots}"), None, "{other}");
        }
    }
}
