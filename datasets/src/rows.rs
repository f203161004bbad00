//! The rows that the crate deals in, and their ids.

use xxhash_rust::xxh3::xxh3_64;

/// A sentence in both languages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The English side.
    pub english: String,
    /// The other language's side.
    pub foreign: String,
    /// Which source it came from: a file's name, or `sample`.
    pub source: String,
}

impl Pair {
    /// [`row_id`] of `[english, foreign]`.
    #[must_use]
    pub fn id(&self) -> u64 {
        row_id(&[&self.english, &self.foreign])
    }
}

/// An instruction about a foreign text, with the answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstructionExample {
    /// `translate`, `summarize`, `bullet_points`, `question_answering`, or what the source calls it.
    pub task: String,
    /// What is asked, in English, without the place where the foreign text stands.
    pub instruction: String,
    /// The text that it is about.
    pub foreign: String,
    /// What the text says, in English: what the decoder's teacher vector is made from.
    pub english_ref: String,
    /// What is to be answered.
    pub answer: String,
    /// Which source it came from: a file's name, or `sample`.
    pub source: String,
}

impl InstructionExample {
    /// [`row_id`] of `[task, instruction, foreign, english_ref, answer]`.
    #[must_use]
    pub fn id(&self) -> u64 {
        row_id(&[
            &self.task,
            &self.instruction,
            &self.foreign,
            &self.english_ref,
            &self.answer,
        ])
    }
}

/// A row's id: XXH3 (64 bits, no seed) of its cleaned texts in UTF-8, joined by one NUL byte. Cleaned texts hold no
/// NUL, so no two rows share the bytes. Where the row came from is no part of it.
///
/// In Python: `xxhash.xxh3_64_intdigest("\0".join(texts).encode())`.
#[must_use]
pub fn row_id(texts: &[&str]) -> u64 {
    xxh3_64(texts.join("\0").as_bytes())
}

/// What kind of rows a corpus holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Corpus {
    /// [`Pair`]s.
    Pairs,
    /// [`InstructionExample`]s.
    Instructions,
}

impl Corpus {
    /// The role of a shard of this corpus.
    #[must_use]
    pub fn role(self, side: Side) -> &'static str {
        match (self, side) {
            (Self::Pairs, Side::Train) => "pairs/train",
            (Self::Pairs, Side::Holdout) => "pairs/holdout",
            (Self::Instructions, Side::Train) => "instructions/train",
            (Self::Instructions, Side::Holdout) => "instructions/validation",
        }
    }
}

/// On which side of a split a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// What is trained on.
    Train,
    /// What is measured on, and never trained on.
    Holdout,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_texts_and_not_the_source() {
        let pair = |english: &str, foreign: &str, source: &str| {
            Pair {
                english: english.into(),
                foreign: foreign.into(),
                source: source.into(),
            }
            .id()
        };
        assert_eq!(pair("a", "b", "x"), pair("a", "b", "y"));
        assert_ne!(pair("a", "b", "x"), pair("ab", "", "x"));
        assert_ne!(pair("a", "b", "x"), pair("b", "a", "x"));
        // xxhash.xxh3_64_intdigest(b"a\0b") in Python.
        assert_eq!(pair("a", "b", "x"), xxh3_64(b"a\0b"));
    }
}
