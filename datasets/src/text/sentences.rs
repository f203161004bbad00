//! Splits a text into sentences.

use regex::Regex;
use serde::{Deserialize, Serialize};

/// The end of a sentence, with the space behind it. Python reads the pattern alike. Full stops that Latin script has in
/// numbers too end a sentence only before a space. `។ល។` means "and so on".
const END: &str = r#"(?:(?:។ល។|[។៕။።۔؟।॥。！？]+)[”’»)\]」』]* ?|[.!?…]+["'”’»)\]]* )"#;

/// How a text is split into sentences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentenceRules {
    /// The most sentences of a text. The last one has the rest of the text.
    pub most: usize,
    /// A regular expression that matches the end of a sentence, with the space behind it.
    pub end: String,
}

impl SentenceRules {
    /// Returns this program's rules for at most `most` sentences.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, end: END.into() }
    }
}

/// Splits texts by rules.
#[derive(Debug, Clone)]
pub struct Splitter {
    most: usize,
    end: Regex,
}

impl Splitter {
    /// Returns a splitter with this program's rules for at most `most` sentences.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self::by(&SentenceRules::new(most)).expect("the own pattern is valid")
    }

    /// Returns a splitter by `rules`.
    pub fn by(rules: &SentenceRules) -> Result<Self, String> {
        let end = Regex::new(&rules.end).map_err(|error| format!("the end of a sentence: {error}"))?;
        Ok(Self { most: rules.most, end })
    }

    /// Returns the sentences of a clean line, and at least one text.
    #[must_use]
    pub fn split<'a>(&self, line: &'a str) -> Vec<&'a str> {
        let ends = self.end.find_iter(line).map(|found| found.end()).take(self.most.saturating_sub(1));
        let mut start = 0;
        let pieces = ends.chain([line.len()]).map(|end| &line[std::mem::replace(&mut start, end)..end]);
        let trimmed = pieces.map(|piece| piece.trim_matches([' ', '\u{200B}', '\u{200C}', '\u{200D}']));
        let found: Vec<&str> = trimmed.filter(|piece| !piece.is_empty()).collect();
        if found.is_empty() { vec![line] } else { found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_their_script_ends_them() {
        let split = |text| Splitter::new(9).split(text);
        assert_eq!(split("ខ្ញុំទៅផ្សារ។ គាត់នៅផ្ទះ។"), ["ខ្ញុំទៅផ្សារ។", "គាត់នៅផ្ទះ។"]);
        assert_eq!(split("ត្រី បន្លែ ។ល។ និងអង្ករ៕"), ["ត្រី បន្លែ ។ល។", "និងអង្ករ៕"]);
        assert_eq!(split("It costs 1.5 kW. Why?\" Yes"), ["It costs 1.5 kW.", "Why?\"", "Yes"]);
        assert_eq!(split("他来了。「好！」我走"), ["他来了。", "「好！」", "我走"]);
        assert_eq!(split("v1.2.3"), ["v1.2.3"]);
        assert_eq!(split("មួយ។\u{200B}ពីរ"), ["មួយ។", "ពីរ"]);
        assert_eq!(split("។"), ["។"]);
        assert_eq!(split(""), [""]);
    }

    #[test]
    fn the_last_of_the_sentences_has_the_rest() {
        assert_eq!(Splitter::new(2).split("A. B. C."), ["A.", "B. C."]);
        assert_eq!(Splitter::new(1).split("A. B."), ["A. B."]);
    }
}
