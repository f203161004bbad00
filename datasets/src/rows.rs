//! The rows of corpora, and their ids.

use std::borrow::Borrow;

use xxhash_rust::xxh3::xxh3_64;

pub use crate::role::{Corpus, Side};

/// An instruction about a foreign text, with the answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstructionExample {
    /// The task: `translate`, `summarize`, `bullet_points`, `question_answering`, or the source's own name.
    pub task: String,
    /// The instruction in English, without the place of the foreign text.
    pub instruction: String,
    /// The foreign text.
    pub foreign: String,
    /// The meaning of the foreign text in English, from which the decoder's teacher vector is made.
    pub english_ref: String,
    /// The expected answer.
    pub answer: String,
    /// The source of the row: a file's name, or `sample`.
    pub source: String,
}

impl InstructionExample {
    /// Returns [`row_id`] of `[task, instruction, foreign, english_ref, answer]`.
    #[must_use]
    pub fn id(&self) -> u64 {
        row_id::<&str>(&[&self.task, &self.instruction, &self.foreign, &self.english_ref, &self.answer])
    }
}

/// A row's id: XXH3 (64 bits, no seed) of its cleaned texts in UTF-8, joined by one NUL byte. Cleaned texts hold no
/// NUL, so no two rows share the bytes. The source of the row does not matter.
///
/// In Python: `xxhash.xxh3_64_intdigest("\0".join(texts).encode())`.
#[must_use]
pub fn row_id<Text: Borrow<str>>(texts: &[Text]) -> u64 {
    xxh3_64(texts.join("\0").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_texts_and_their_order() {
        assert_ne!(row_id(&["a", "b"]), row_id(&["ab", ""]));
        assert_ne!(row_id(&["a", "b"]), row_id(&["b", "a"]));
        // The value is that of xxhash.xxh3_64_intdigest(b"a\0b") in Python.
        assert_eq!(row_id(&["a", "b"]), xxh3_64(b"a\0b"));
    }
}
