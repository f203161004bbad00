//! JSON lines that hold pairs, under keys of the user's choice.

use serde_json::Value;

use super::RawRow;
use crate::clean::DropReason;

/// A pair from a line.
pub(super) fn pair(line: &str, english: &str, foreign: &str) -> Result<RawRow, DropReason> {
    let object = object(line)?;
    Ok(RawRow::Pair {
        english: text(&object, english)?.to_owned(),
        foreign: text(&object, foreign)?.to_owned(),
    })
}

/// The JSON object on a line.
pub(super) fn object(line: &str) -> Result<Value, DropReason> {
    let value: Value = serde_json::from_str(line).map_err(|_| DropReason::BrokenJson)?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(DropReason::BrokenJson)
    }
}

/// The text under a key; `a.b` is the key of that name or, failing that, `b` within `a`.
pub(super) fn text<'a>(object: &'a Value, key: &str) -> Result<&'a str, DropReason> {
    let value = match object.get(key) {
        Some(value) => Some(value),
        None => key.split('.').try_fold(object, |value, part| value.get(part)),
    };
    match value {
        Some(Value::String(text)) => no_nul(text),
        Some(Value::Null) | None => Err(DropReason::MissingColumn),
        Some(_) => Err(DropReason::NotText),
    }
}

/// JSON can spell a NUL that no byte of the line shows.
pub(super) fn no_nul(text: &str) -> Result<&str, DropReason> {
    if text.contains('\0') {
        Err(DropReason::NulByte)
    } else {
        Ok(text)
    }
}
