//! Reads shards of instruction examples.

use bytes::Bytes;

use crate::Result;
use crate::table::{decode, texts, u64s};

/// An instruction example from a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstructionRow {
    /// The example's id.
    pub id: u64,
    /// The task: `translate`, `summarize`, …
    pub task: String,
    /// The instruction, without the place of the foreign text.
    pub instruction: String,
    /// The foreign text.
    pub foreign: String,
    /// The meaning of the foreign text, in English.
    pub english_ref: String,
    /// The expected answer.
    pub answer: String,
}

/// Reads a shard of instructions. Errors call the shard `name`.
pub fn read_instructions(name: &str, content: Bytes) -> Result<Vec<InstructionRow>> {
    const COLUMNS: [&str; 6] = ["id", "task", "instruction", "foreign", "english_ref", "answer"];
    let mut rows = Vec::new();
    for batch in decode(name, content, &COLUMNS)? {
        let ids = u64s(name, &batch, "id")?;
        let task = texts(name, &batch, "task")?;
        let instruction = texts(name, &batch, "instruction")?;
        let foreign = texts(name, &batch, "foreign")?;
        let english_ref = texts(name, &batch, "english_ref")?;
        let answer = texts(name, &batch, "answer")?;
        rows.extend((0..batch.num_rows()).map(|row| InstructionRow {
            id: ids.value(row),
            task: task.value(row).to_owned(),
            instruction: instruction.value(row).to_owned(),
            foreign: foreign.value(row).to_owned(),
            english_ref: english_ref.value(row).to_owned(),
            answer: answer.value(row).to_owned(),
        }));
    }
    Ok(rows)
}
