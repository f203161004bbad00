//! What the tiny models read: sentences of the sample grammar, and instructions about them, in English where the decoder learns.

use llink_datasets::clean::FOREIGN_PLACEHOLDER;
use llink_datasets::rows::InstructionExample;
use llink_datasets::sample;

use crate::Result;
use crate::models::Decoder;
use crate::train::random::key;

/// Documents whose number ends so ask to say a sentence again, and the greater ones stand before a teacher vector.
pub(super) const SAY_AGAIN: u64 = 2;
/// See [`SAY_AGAIN`].
pub(super) const TEACHER: u64 = 5;

/// Sentences that make up the models' world; those of other seeds are held out.
pub(super) struct Texts {
    /// English and Khmer.
    pub(super) pairs: Vec<(String, String)>,
    pub(super) instructions: Vec<InstructionExample>,
    /// Wordings that ask for a translation.
    translations: Vec<String>,
}

impl Texts {
    pub(super) fn new(rows: u64, seed: u64) -> Self {
        let instructions: Vec<InstructionExample> = sample::instructions(rows / 2, seed).collect();
        let translations = instructions.iter().filter(|example| example.task == "translate");
        Self {
            pairs: sample::pairs(rows, seed).collect(),
            translations: translations.map(|example| example.instruction.clone()).collect(),
            instructions,
        }
    }

    /// Khmer texts: sentences, and what instructions are about, which is up to three of them.
    pub(super) fn foreign(&self, number: u64) -> &str {
        match number % 8 {
            0 => &pick(&self.instructions, number / 8).foreign,
            _ => &pick(&self.pairs, number / 8).1,
        }
    }

    /// A document for the decoder. An assistant that knows English: of ten documents two are instructions about an English
    /// text, three ask to say an English sentence again, five are a text alone whose teacher vector is to hold it.
    pub(super) fn document(&self, decoder: &Decoder, number: u64) -> Result<Document> {
        let (kind, number) = (number % 10, number / 10);
        if kind >= TEACHER {
            return Ok(Document {
                ids: decoder.tokenize_teacher(&[self.english(number)])?.remove(0),
                given: 1,
            });
        }
        let example = pick(&self.instructions, number);
        let (instruction, text, answer) = match kind {
            0..SAY_AGAIN => (example.instruction.as_str(), &example.english_ref, &example.answer),
            _ => {
                let (english, _) = pick(&self.pairs, number);
                (self.translation(number), english, english)
            }
        };
        let instruction = instruction.replace(FOREIGN_PLACEHOLDER, "");
        let mut ids = decoder.direct_prompt(&instruction, text, usize::MAX)?.ids;
        let given = ids.len();
        ids.extend(decoder.answer_tokens(answer)?);
        Ok(Document { ids, given })
    }

    /// English texts: sentences, and what instructions are about.
    fn english(&self, number: u64) -> &str {
        match number % 8 {
            0 => &pick(&self.instructions, number / 8).english_ref,
            _ => &pick(&self.pairs, number / 8).0,
        }
    }

    /// One of the wordings that ask for a translation.
    fn translation(&self, number: u64) -> &str {
        self.translations
            .get(number as usize % self.translations.len().max(1))
            .map_or("", String::as_str)
    }
}

/// What the decoder reads.
pub(super) struct Document {
    pub(super) ids: Vec<u32>,
    /// So many of its first tokens are given, the rest is to be said.
    pub(super) given: usize,
}

/// The item of a number that was drawn.
fn pick<T>(items: &[T], number: u64) -> &T {
    &items[(number % items.len() as u64) as usize]
}

/// The numbers drawn for one step: the same for the same seed and step.
pub(super) fn drawn(seed: u64, step: u64, batch: usize) -> impl Iterator<Item = u64> {
    (0..batch as u64).map(move |place| key(&[seed, step, place]) >> 8)
}
