//! What the tiny models read: sentences of the sample grammar, and instructions about them, in English where the decoder learns.

use llink_datasets::clean::FOREIGN_PLACEHOLDER;
use llink_datasets::rows::InstructionExample;
use llink_datasets::sample;

use crate::Result;
use crate::models::{Decoder, END_OF_TURN, SpecialTokens};
use crate::train::random::key;

/// Sentences that make up the models' world; those of other seeds are held out.
pub(super) struct Texts {
    /// English and Khmer.
    pub(super) pairs: Vec<(String, String)>,
    pub(super) instructions: Vec<InstructionExample>,
}

impl Texts {
    pub(super) fn new(rows: u64, seed: u64) -> Self {
        Self {
            pairs: sample::pairs(rows, seed).collect(),
            instructions: sample::instructions(rows / 2, seed).collect(),
        }
    }

    /// Khmer texts: sentences, and what instructions are about, which is up to three of them.
    pub(super) fn foreign(&self, number: u64) -> &str {
        match number % 8 {
            0 => &pick(&self.instructions, number / 8).foreign,
            _ => &pick(&self.pairs, number / 8).1,
        }
    }

    /// A document for the decoder, and how many of its tokens are given and not learnt. An assistant that knows English: of ten
    /// documents four are instructions about an English text, three ask to say an English sentence again, three are a sentence
    /// alone.
    pub(super) fn document(&self, decoder: &Decoder, number: u64) -> Result<(Vec<u32>, usize)> {
        let (kind, number) = (number % 10, number / 10);
        if kind >= 7 {
            let (english, _) = pick(&self.pairs, number);
            let mut ids = decoder.tokenizer().encode(english, SpecialTokens::Add)?;
            ids.push(decoder.tokenizer().require(END_OF_TURN)?);
            return Ok((ids, 1));
        }
        let example = pick(&self.instructions, number);
        let (instruction, text, answer) = match kind {
            0..4 => (example.instruction.as_str(), &example.english_ref, &example.answer),
            _ => {
                let (english, _) = pick(&self.pairs, number);
                (self.translation(number), english, english)
            }
        };
        let instruction = instruction.replace(FOREIGN_PLACEHOLDER, "");
        let mut ids = decoder.direct_prompt(&instruction, text, usize::MAX)?.ids;
        let given = ids.len();
        ids.extend(decoder.answer_tokens(answer)?);
        Ok((ids, given))
    }

    /// One of the wordings that ask for a translation.
    fn translation(&self, number: u64) -> &str {
        let mut translations = self
            .instructions
            .iter()
            .cycle()
            .skip(number as usize % self.instructions.len());
        translations
            .find(|example| example.task == "translate")
            .map_or("", |example| example.instruction.as_str())
    }
}

/// The item of a number that was drawn.
fn pick<T>(items: &[T], number: u64) -> &T {
    &items[(number % items.len() as u64) as usize]
}

/// The numbers drawn for one step: the same for the same seed and step.
pub(super) fn drawn(seed: u64, step: u64, batch: usize) -> impl Iterator<Item = u64> {
    (0..batch as u64).map(move |place| key(&[seed, step, place]) >> 8)
}
