//! The training data of Stage B: instructions in tokens, and the cached vectors of their texts.

use std::ops::Range;

use llink_datasets::instructions::InstructionRow;
use llink_datasets::numbers::Scanner;
use llink_datasets::vectors::VectorTable;

use super::batch::InstructExample;
use super::options::{InstructArm, InstructOptions};
use crate::llink::projector::Projector;
use crate::models::Decoder;
use crate::train::batch::gather;
use crate::{Error, Result};

/// The examples, each with the vectors of its foreign text and of the English translation.
pub struct InstructData {
    examples: Vec<InstructExample>,
    /// The encoder vectors in the order of the examples: a text's own, and those of its windows, in one row. A text that is
    /// split has a row for each sentence.
    encoder: VectorTable,
    /// The rows of each example's text in `encoder`.
    rows: Vec<Range<usize>>,
    teacher: VectorTable,
    projector: Projector,
    arm: InstructArm,
    /// Whether Stage B trains the projector.
    moves_projector: bool,
    /// The number of examples that were left out because they have too many tokens.
    pub too_long: usize,
}

impl InstructData {
    /// Matches rows and vectors, and turns the rows into tokens.
    ///
    /// # Errors
    /// [`Error::Input`] naming the id when they do not belong together; those of the tokenizer.
    pub fn new(
        decoder: &Decoder,
        options: &InstructOptions,
        rows: &[InstructionRow],
        encoder: VectorTable,
        teacher: VectorTable,
        projector: Projector,
    ) -> Result<Self> {
        let texts = encoder.texts();
        for (name, table) in [("encoder", &encoder), ("teacher", &teacher)] {
            let of_texts = table.ids.chunk_by(|a, b| a == b).map(|rows| &rows[0]);
            if !of_texts.eq(rows.iter().map(|row| &row.id)) {
                return Err(Error::Input(format!(
                    "the {name} vectors are of other texts than the {} instructions: {} vectors",
                    rows.len(),
                    table.len()
                )));
            }
        }
        let numbers = options.settings.numbers.then(Scanner::default);
        let examples = rows.iter().zip(&texts);
        let examples = examples.map(|(row, text)| example(decoder, options, row, text.len(), numbers.as_ref()));
        let examples: Vec<InstructExample> = examples.collect::<Result<_>>()?;
        let longest = (options.settings.max_tokens as usize).min(decoder.config().max_position_embeddings);
        let fits: Vec<usize> = (0..examples.len()).filter(|index| examples[*index].tokens() <= longest).collect();
        let too_long = examples.len() - fits.len();
        if fits.is_empty() {
            return Err(Error::Input(format!(
                "none of {} instructions has at most {longest} tokens: raise instruct.max_tokens",
                rows.len()
            )));
        }
        let encoder = select(&encoder, fits.iter().flat_map(|index| texts[*index].clone()));
        Ok(Self {
            examples: fits.iter().map(|index| examples[*index].clone()).collect(),
            rows: encoder.texts(),
            encoder,
            teacher: select(&teacher, fits.into_iter()),
            projector,
            arm: options.arm,
            moves_projector: options.moves_projector(),
            too_long,
        })
    }

    pub(super) fn examples(&self) -> &[InstructExample] {
        &self.examples
    }

    /// Returns the projector of Stage A.
    pub const fn projector(&self) -> &Projector {
        &self.projector
    }

    pub(super) fn ids(&self) -> &[u64] {
        &self.teacher.ids
    }

    /// Returns the vectors of some examples, as in [`InstructInput::vectors`](super::step::InstructInput::vectors).
    ///
    /// # Errors
    /// [`Error::Input`] when the projector is for vectors of another width.
    pub(super) fn vectors(&self, examples: &[usize]) -> Result<Vec<f32>> {
        if self.arm == InstructArm::Direct {
            return Ok(Vec::new());
        }
        let rows: Vec<usize> = examples.iter().flat_map(|example| self.rows[*example].clone()).collect();
        let vectors = gather(&self.encoder, &rows);
        if self.moves_projector { Ok(vectors) } else { self.projector.project(&vectors) }
    }

    /// Returns the teacher vectors of some examples, `[b, d]`. They are empty if no prompt has slots.
    pub(super) fn teacher(&self, examples: &[usize]) -> Vec<f32> {
        match self.arm {
            InstructArm::Slots => gather(&self.teacher, examples),
            InstructArm::Direct => Vec::new(),
        }
    }
}

/// Turns one row into prompt and answer. Its text is read as this many `sentences`.
fn example(
    decoder: &Decoder,
    options: &InstructOptions,
    row: &InstructionRow,
    sentences: usize,
    numbers: Option<&Scanner>,
) -> Result<InstructExample> {
    let prompt = match options.arm {
        InstructArm::Slots => {
            let slots = options.settings.slots as usize * sentences;
            decoder.prompt_about(&row.instruction, slots, &row.foreign, numbers)?
        }
        InstructArm::Direct => {
            decoder.direct_prompt(&row.instruction, &row.foreign, options.settings.max_tokens as usize)?
        }
    };
    Ok(InstructExample {
        id: row.id,
        prompt: prompt.ids,
        slots: prompt.slots,
        answer: decoder.answer_tokens(&row.answer)?,
    })
}

fn select(table: &VectorTable, rows: impl Iterator<Item = usize> + Clone) -> VectorTable {
    VectorTable {
        ids: rows.clone().map(|row| table.ids[row]).collect(),
        width: table.width,
        values: rows.flat_map(|row| table.row(row)).copied().collect(),
    }
}
