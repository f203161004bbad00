//! Reads JSON lines with pairs, under keys that the user chooses.

use std::borrow::Cow;

use serde_json::Value;

use super::{Fault, RawRow, ReadRow};
use crate::clean::{DropReason, Language};

/// The most keys that a warning names.
const NAMED_KEYS: usize = 8;
/// The most characters of a key that a warning shows.
const KEY_CHARS: usize = 40;

/// Reads a pair from a line.
pub(super) fn pair(line: &str, english: &str, foreign: &str) -> ReadRow {
    let object = object(line)?;
    let side = |key: &str, language| {
        let found = text(&object, key).map(str::to_owned);
        found.map_err(|reason| Fault {
            language: Some(language),
            hint: (reason == DropReason::MissingColumn).then(|| missing(&object, key)),
            ..reason.into()
        })
    };
    Ok(RawRow::Pair { english: side(english, Language::English)?, foreign: side(foreign, Language::Foreign)? })
}

/// Reads the JSON object on a line.
pub(super) fn object(line: &str) -> Result<Value, DropReason> {
    // Concatenated files hold byte order marks in the middle.
    let line = line.trim_start_matches('\u{FEFF}');
    let value = json_value(line).map_err(|_| DropReason::BrokenJson)?;
    if value.is_object() { Ok(value) } else { Err(DropReason::BrokenJson) }
}

/// Parses a line of JSON as Python's `json` does: see [`strict_json`]. Numbers too large for a double become `null`
/// too.
pub fn json_value(line: &str) -> serde_json::Result<Value> {
    serde_json::from_str(line).or_else(|error| match rewritten(line, LargeNumbers::Drop) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(strict) => serde_json::from_str(&strict),
    })
}

/// Converts a line that Python's `json` wrote to strict JSON. `NaN` and `Infinity` become `null`, and half of a
/// surrogate pair becomes U+FFFD. Everything else stays as it is.
#[must_use]
pub fn strict_json(line: &str) -> Cow<'_, str> {
    rewritten(line, LargeNumbers::Keep)
}

/// The treatment of numbers beyond a double, which are valid JSON.
#[derive(Clone, Copy, PartialEq)]
enum LargeNumbers {
    Keep,
    Drop,
}

fn rewritten(line: &str, large: LargeNumbers) -> Cow<'_, str> {
    let (mut strict, mut kept, mut at) = (String::new(), 0, 0);
    let mut is_text = false;
    while at < line.len() {
        let rest = &line.as_bytes()[at..];
        let (width, instead) = match rest[0] {
            b'"' => {
                is_text = !is_text;
                (1, None)
            }
            b'\\' if is_text => match rest {
                [b'\\', b'u', ..] => surrogates(rest),
                _ => (2, None),
            },
            b'N' | b'I' | b'-' | b'0'..=b'9' if !is_text => number(&line[at..], large),
            _ => (1, None),
        };
        if let Some(instead) = instead {
            strict.push_str(&line[kept..at]);
            strict.push_str(instead);
            kept = at + width;
        }
        at += width;
    }
    if kept == 0 {
        return Cow::Borrowed(line);
    }
    strict.push_str(&line[kept..]);
    Cow::Owned(strict)
}

/// Returns the length of a number in bytes, and its replacement.
fn number(text: &str, large: LargeNumbers) -> (usize, Option<&'static str>) {
    let words = ["NaN", "Infinity", "-Infinity"];
    if let Some(word) = words.into_iter().find(|word| text.starts_with(word)) {
        return (word.len(), Some("null"));
    }
    let is_of_number = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    let width = text.find(|c| !is_of_number(c)).unwrap_or(text.len()).max(1);
    let is_beyond = large == LargeNumbers::Drop && text[..width].parse::<f64>().is_ok_and(f64::is_infinite);
    (width, is_beyond.then_some("null"))
}

/// Returns the length of an escape in bytes, and its replacement if it is half of a surrogate pair. A whole pair is one
/// escape.
fn surrogates(escape: &[u8]) -> (usize, Option<&'static str>) {
    let unit = |escape: &[u8]| {
        let digits = escape.strip_prefix(b"\\u")?.get(..4)?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    match unit(escape) {
        Some(0xD800..=0xDBFF) if matches!(unit(&escape[6..]), Some(0xDC00..=0xDFFF)) => (12, None),
        Some(0xD800..=0xDFFF) => (6, Some("\\ufffd")),
        Some(_) => (6, None),
        None => (2, None),
    }
}

/// Returns the note on an object that lacks a key.
pub(super) fn missing(object: &Value, key: &str) -> String {
    let keys = object.as_object().into_iter().flatten();
    let mut named: Vec<String> = Vec::new();
    for (name, value) in keys {
        match value.as_object() {
            // The form in which the user names a key inside a key.
            Some(inner) => named.extend(inner.keys().map(|inner| format!("{name}.{inner}"))),
            None => named.push(name.clone()),
        }
    }
    named.sort();
    let count = named.len();
    let mut named: Vec<String> =
        named.into_iter().take(NAMED_KEYS).map(|name| name.chars().take(KEY_CHARS).collect()).collect();
    if count > NAMED_KEYS {
        named.push(format!("and {} more", count - NAMED_KEYS));
    }
    let has = match count {
        0 => "nothing".to_owned(),
        _ => named.join(", "),
    };
    format!("no text under `{key}`, it has {has}")
}

/// Returns the text under a key. `a.b` is the key of that name or, if there is none, `b` within `a`.
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

/// Refuses a text with a NUL, which JSON can write as an escape.
pub(super) fn no_nul(text: &str) -> Result<&str, DropReason> {
    if text.contains('\0') { Err(DropReason::NulByte) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_writes_beyond_json_is_made_json() {
        for (given, expected) in [
            (r#"{"a": NaN, "b": -Infinity, "c": [Infinity]}"#, r#"{"a": null, "b": null, "c": [null]}"#),
            (r#"{"a": "NaN \" NaN", "b": NaN}"#, r#"{"a": "NaN \" NaN", "b": null}"#),
            (r#"{"a": "x \ud83d"}"#, r#"{"a": "x \ufffd"}"#),
            (r#"{"a": "\ud83d\ude00 \ude00\\ud83d"}"#, r#"{"a": "\ud83d\ude00 \ufffd\\ud83d"}"#),
        ] {
            assert_eq!(strict_json(given), expected);
            assert!(serde_json::from_str::<Value>(&strict_json(given)).is_ok(), "{given}");
        }
        for same in [r#"{"a": 1e5, "b": -0.5}"#, r#"{"a": "\u0e01\"#, r#"{"a": "\u12"#, "", "-", "\\"] {
            assert!(matches!(strict_json(same), Cow::Borrowed(_)), "{same}");
        }
    }

    #[test]
    fn numbers_beyond_a_double_spoil_no_line() {
        let line = r#"{"a":-1e400,"b":[1E999],"c":1.5}"#;
        assert_eq!(strict_json(line), line);
        assert_eq!(json_value(line).unwrap(), serde_json::json!({"a": null, "b": [null], "c": 1.5}));
        assert!(json_value("{\"a\": 1").is_err());
    }

    #[test]
    fn keys_that_are_there_are_named() {
        let object = serde_json::json!({"translation": {"en": "a", "km": "b"}, "id": 1});
        assert_eq!(missing(&object, "english"), "no text under `english`, it has id, translation.en, translation.km");
        let many: serde_json::Map<String, Value> = (0..20).map(|n| (format!("k{n:02}"), Value::Null)).collect();
        assert!(missing(&many.into(), "x").ends_with("k07, and 12 more"));
    }
}
