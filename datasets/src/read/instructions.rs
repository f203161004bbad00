//! Reads JSON lines with instruction examples. Each line has one of three forms.
//!
//! - The authors': `task_type`, `input` with the placeholder, `output` (in older files `response`), `foreign_raw`,
//!   `english_ref`.
//! - Alpaca: `instruction`, `input`, `output`. The foreign text is `foreign_raw`, or else `input` itself.
//! - Chat: `messages` of `role` and `content` (or `conversations` of `from` and `value`), one question and one answer,
//!   with `foreign_raw`.
//!
//! The last two also need an `english_ref`, because the method trains against the English meaning of the text. If a
//! prompt contains the foreign text itself, the placeholder replaces it.

use serde_json::Value;

use super::jsonl::{missing, no_nul, object, text};
use super::{Fault, RawRow, ReadRow};
use crate::clean::{DropReason, FOREIGN_PLACEHOLDER};
use crate::rows::InstructionExample;

/// The task of an example whose line names none.
const UNNAMED_TASK: &str = "instruction";

/// Reads an example from a line.
pub(super) fn instruction(line: &str, source: &str) -> ReadRow {
    let object = object(line)?;
    example(&object, source).map_err(|reason| Fault {
        hint: (reason == DropReason::MissingColumn).then(|| missing(&object, lacking(&object))),
        ..reason.into()
    })
}

/// Returns the first key that an example needs and this one lacks, for the note to the user.
fn lacking(object: &Value) -> &'static str {
    let has = |key: &str| object.get(key).is_some_and(|v| !v.is_null());
    let has = |key: &str| has(key) || (key == "output" && has("response"));
    let needed: &[&str] = match () {
        () if has("messages") || has("conversations") => &["foreign_raw"],
        () if has("instruction") => &["output"],
        () => &["input", "output", "foreign_raw"],
    };
    needed.iter().find(|key| !has(key)).unwrap_or(&"english_ref")
}

fn example(object: &Value, source: &str) -> Result<RawRow, DropReason> {
    let has = |key: &str| object.get(key).is_some_and(|v| !v.is_null());
    let prompted = if has("messages") || has("conversations") {
        chat(object)?
    } else if has("instruction") {
        alpaca(object)?
    } else {
        authors(object)?
    };
    let Prompted { prompt, answer, foreign } = prompted;
    let instruction = if prompt.contains(FOREIGN_PLACEHOLDER) || foreign.is_empty() {
        prompt
    } else {
        prompt.replacen(&foreign, FOREIGN_PLACEHOLDER, 1)
    };
    let task = match first(object, &["task_type", "task"]) {
        Err(DropReason::MissingColumn) => UNNAMED_TASK,
        found => found?,
    };
    Ok(RawRow::Instruction(InstructionExample {
        task: task.to_owned(),
        instruction,
        foreign,
        english_ref: text(object, "english_ref")?.to_owned(),
        answer,
        source: source.to_owned(),
    }))
}

struct Prompted {
    prompt: String,
    answer: String,
    foreign: String,
}

fn authors(object: &Value) -> Result<Prompted, DropReason> {
    Ok(Prompted {
        prompt: text(object, "input")?.to_owned(),
        answer: first(object, &["output", "response"])?.to_owned(),
        foreign: text(object, "foreign_raw")?.to_owned(),
    })
}

fn alpaca(object: &Value) -> Result<Prompted, DropReason> {
    let instruction = text(object, "instruction")?;
    let input = match text(object, "input") {
        Err(DropReason::MissingColumn) => "",
        found => found?,
    };
    let (prompt, foreign) = match text(object, "foreign_raw") {
        Err(DropReason::MissingColumn) => (format!("{instruction}\n{FOREIGN_PLACEHOLDER}"), input),
        found => (format!("{instruction}\n{input}"), found?),
    };
    Ok(Prompted { prompt, answer: first(object, &["output", "response"])?.to_owned(), foreign: foreign.to_owned() })
}

/// Reads a chat of one question and one answer. A system message is put before the question.
fn chat(object: &Value) -> Result<Prompted, DropReason> {
    let turns =
        ["messages", "conversations"].iter().find_map(|key| object.get(*key)?.as_array()).ok_or(DropReason::NotText)?;
    let (mut system, mut user, mut assistant) = (None, None, None);
    for turn in turns {
        let content = first(turn, &["content", "value"])?;
        let slot = match first(turn, &["role", "from"])? {
            "system" => &mut system,
            "user" | "human" => &mut user,
            "assistant" | "gpt" => &mut assistant,
            _ => return Err(DropReason::ManyTurns),
        };
        if slot.replace(content).is_some() {
            return Err(DropReason::ManyTurns);
        }
    }
    let user = user.ok_or(DropReason::EmptyInstruction)?;
    Ok(Prompted {
        prompt: system.map_or_else(|| user.to_owned(), |system| format!("{system}\n{user}")),
        answer: assistant.ok_or(DropReason::EmptyAnswer)?.to_owned(),
        foreign: text(object, "foreign_raw")?.to_owned(),
    })
}

/// Returns the text under the first key that is present.
fn first<'a>(object: &'a Value, keys: &[&str]) -> Result<&'a str, DropReason> {
    for key in keys {
        match object.get(*key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => return no_nul(text),
            Some(_) => return Err(DropReason::NotText),
        }
    }
    Err(DropReason::MissingColumn)
}
