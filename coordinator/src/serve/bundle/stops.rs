//! Ends an answer before the first of some texts, even if that text comes in pieces.

/// The end of an answer's text that may begin one of the texts at which it ends.
#[derive(Debug)]
pub(super) struct Stops {
    texts: Vec<String>,
    held: String,
}

impl Stops {
    pub(super) fn at(texts: Vec<String>) -> Self {
        let held = String::new();
        Self { texts, held }
    }

    /// Adds a piece of the answer. Returns the text that is certain by now, and whether the answer has ended.
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let first = self.texts.iter().filter_map(|text| self.held.find(text.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |at: &usize| self.texts.iter().any(|text| text.starts_with(&self.held[*at..]));
        let certain = self.held.char_indices().map(|(at, _)| at).find(may_begin);
        let rest = self.held.split_off(certain.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Returns the text that was held back, at the end of the answer.
    pub(super) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(texts: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut stops = Stops::at(texts.iter().map(|text| (*text).to_owned()).collect());
        let mut said = Vec::new();
        for piece in pieces {
            let (text, ended) = stops.push(piece);
            said.push(text);
            if ended {
                return (said, true);
            }
        }
        said.push(stops.rest());
        (said, false)
    }

    #[test]
    fn a_text_across_pieces_ends_the_answer_and_nothing_of_it_is_said() {
        assert_eq!(said(&["END"], &["a E", "N", "D b"]), (vec!["a ".into(), "".into(), "".into()], true));
        assert_eq!(said(&["។", "\n\n"], &["ត្រី", "។ x"]), (vec!["ត្រី".into(), "".into()], true));
        assert_eq!(said(&["b", "ab"], &["xab"]), (vec!["x".into()], true), "the first in the text counts");
    }

    #[test]
    fn what_only_looks_like_the_beginning_of_a_text_is_said_later() {
        assert_eq!(said(&["END"], &["a E", "X", "E"]), (vec!["a ".into(), "EX".into(), "".into(), "E".into()], false));
        assert_eq!(said(&["aab"], &["aa", "a", "b"]), (vec!["".into(), "a".into(), "".into()], true));
        assert_eq!(said(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
    }
}
