//! JSON lines: pairs, and instruction examples in the form that LLINK's authors use.

use serde::Deserialize;

use crate::clean::DropReason;
use crate::read::RawRow;
use crate::rows::InstructionExample;

#[derive(Deserialize)]
struct PairLine {
    english: Option<String>,
    foreign: Option<String>,
}

/// The authors' form. `input` holds [`crate::clean::FOREIGN_PLACEHOLDER`]; the answer is `output`, in older files
/// `response`.
#[derive(Deserialize)]
struct InstructionLine {
    task_type: Option<String>,
    input: Option<String>,
    output: Option<String>,
    response: Option<String>,
    foreign_raw: Option<String>,
    english_ref: Option<String>,
}

pub(crate) fn pair(line: &str) -> Result<RawRow, DropReason> {
    let PairLine { english, foreign } = parse(line)?;
    Ok(RawRow::Pair {
        english: present(english)?,
        foreign: present(foreign)?,
    })
}

pub(crate) fn instruction(line: &str, source: &str) -> Result<RawRow, DropReason> {
    let raw: InstructionLine = parse(line)?;
    Ok(RawRow::Instruction(InstructionExample {
        task: present(raw.task_type)?,
        instruction: present(raw.input)?,
        foreign: present(raw.foreign_raw)?,
        english_ref: present(raw.english_ref)?,
        answer: present(raw.output.or(raw.response))?,
        source: source.to_owned(),
    }))
}

fn parse<'a, T: Deserialize<'a>>(line: &'a str) -> Result<T, DropReason> {
    serde_json::from_str(line).map_err(|_| DropReason::BrokenJson)
}

/// A key's value. JSON can spell a NUL that no byte of the line shows.
fn present(value: Option<String>) -> Result<String, DropReason> {
    let value = value.ok_or(DropReason::MissingColumn)?;
    if value.contains('\0') {
        Err(DropReason::NulByte)
    } else {
        Ok(value)
    }
}
