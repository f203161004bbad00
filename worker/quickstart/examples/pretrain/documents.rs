//! What the tiny models read: sentences of the sample grammar, and instructions about them, in English where the decoder learns.

use llink_datasets::clean::FOREIGN_PLACEHOLDER;
use llink_datasets::rows::InstructionExample;
use llink_quickstart::sample;

use llink_worker::Result;
use llink_worker::models::{Decoder, SpecialTokens};
use llink_worker::numerics::random::key;

/// Soft slots that a text is packed into.
const SLOTS: usize = 8;

/// What a document is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An instruction about an English text, and its answer.
    Answer(Given),
    /// The same, the answer being the sentence itself.
    SayAgain(Given),
    /// A text alone whose teacher vector is to hold it.
    Teacher,
}

/// How a document's text is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// Token by token.
    Tokens,
    /// Packed into soft slots, several tokens in each.
    Slots,
}

/// Returns the kind of a document. They make up an assistant that knows English, reads soft slots, and remembers.
fn kind(number: u64) -> Kind {
    match number % 10 {
        0..2 => Kind::Answer(Given::Tokens),
        2 => Kind::Answer(Given::Slots),
        3..5 => Kind::SayAgain(Given::Tokens),
        5..7 => Kind::SayAgain(Given::Slots),
        _ => Kind::Teacher,
    }
}

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

    /// A document for the decoder, of the kind that the number says.
    pub(super) fn document(&self, decoder: &Decoder, number: u64) -> Result<Document> {
        self.document_of(decoder, kind(number), number / 10)
    }

    pub(super) fn document_of(&self, decoder: &Decoder, kind: Kind, number: u64) -> Result<Document> {
        let (instruction, text, answer, given) = match kind {
            Kind::Teacher => {
                let ids = decoder.tokenize_teacher(&[self.english(number)])?.remove(0);
                return Ok(Document::plain(ids, 1));
            }
            Kind::Answer(given) => {
                let example = pick(&self.instructions, number);
                (example.instruction.as_str(), &example.english_ref, &example.answer, given)
            }
            Kind::SayAgain(given) => {
                let (english, _) = pick(&self.pairs, number);
                (self.translation(number), english, english, given)
            }
        };
        let instruction = instruction.replace(FOREIGN_PLACEHOLDER, "");
        let tokens = decoder.tokenizer().encode(text, SpecialTokens::Omit)?;
        let mut document = match given {
            Given::Slots if tokens.len() >= SLOTS => {
                let prompt = decoder.slot_prompt(&instruction, SLOTS)?;
                let held =
                    |slot: usize| tokens[slot * tokens.len() / SLOTS..(slot + 1) * tokens.len() / SLOTS].to_vec();
                Document {
                    packed: prompt.slots.iter().enumerate().map(|(slot, at)| (*at, held(slot))).collect(),
                    ..Document::plain(prompt.ids, 0)
                }
            }
            _ => Document::plain(decoder.direct_prompt(&instruction, text, usize::MAX)?.ids, 0),
        };
        document.given = document.ids.len();
        document.ids.extend(decoder.answer_tokens(answer)?);
        Ok(document)
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
        self.translations.get(number as usize % self.translations.len().max(1)).map_or("", String::as_str)
    }
}

pub(super) struct Document {
    pub(super) ids: Vec<u32>,
    /// So many of its first tokens are given, the rest is to be said.
    pub(super) given: usize,
    /// Places that hold several tokens at once, and these.
    pub(super) packed: Vec<(usize, Vec<u32>)>,
}

impl Document {
    pub(super) const fn plain(ids: Vec<u32>, given: usize) -> Self {
        Self { ids, given, packed: Vec::new() }
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
