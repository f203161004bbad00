//! The JSON files of a model folder, read as in Python. A byte order mark, `NaN` and `Infinity` are allowed. A key
//! whose value is null or not a number counts as missing.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::placeholder::placeholder;
use crate::{Error, Result};

/// A JSON file, and its path for errors.
pub(crate) struct JsonFile {
    pub(crate) path: String,
    pub(crate) value: Value,
}

impl JsonFile {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Ok(Self { path: path.display().to_string(), value: read(path)? })
    }

    pub(crate) fn read_if_there(path: &Path) -> Result<Option<Self>> {
        path.exists().then(|| Self::read(path)).transpose()
    }

    pub(crate) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        parse(&self.value).map_err(|reason| self.refuse(reason))
    }

    pub(crate) fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::model(&self.path, reason)
    }
}

/// Reads a JSON file.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::Model`] when it is not JSON, or a placeholder of a file that was not
/// downloaded.
pub(crate) fn read(path: &Path) -> Result<Value> {
    let mut value = read_with_nulls(path)?;
    drop_nulls(&mut value);
    Ok(value)
}

/// Reads a JSON file in which null has a meaning. See [`read`].
pub(crate) fn read_with_nulls(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    from_bytes(&bytes).map_err(|reason| Error::model(path.display(), reason))
}

/// Returns the value of a JSON text, or a description of the content that is not JSON.
fn from_bytes(bytes: &[u8]) -> std::result::Result<Value, String> {
    if let Some(reason) = placeholder(bytes) {
        return Err(reason);
    }
    let text = std::str::from_utf8(without_mark(bytes)).map_err(|error| format!("is not UTF-8: {error}"))?;
    serde_json::from_str(&finite(text)).map_err(|error| format!("is not JSON: {error}"))
}

/// Returns `value` as a `T`, or a description with the faulty key.
pub(crate) fn parse<'a, T: Deserialize<'a>>(value: &'a Value) -> std::result::Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let key = error.path().to_string();
        match key.as_str() {
            "." => error.into_inner().to_string(),
            key => format!("{key}: {}", error.inner()),
        }
    })
}

/// Returns a file's bytes without the byte order mark of UTF-8.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Returns the text with `null` in place of Python's own constants outside strings.
fn finite(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(['"', '-', 'N', 'I']) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let constant = ["NaN", "Infinity", "-Infinity"].into_iter().find(|name| rest.starts_with(name));
        let taken = match constant {
            Some(name) => {
                out.push_str("null");
                name.len()
            }
            None => {
                let end = if rest.starts_with('"') { string_end(rest) } else { 1 };
                out.push_str(&rest[..end]);
                end
            }
        };
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
}

/// Returns the length of the string literal at the beginning of `text`.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_python_reads_is_read() {
        for (text, value) in [
            ("\u{feff}{\"a\": 1}", json!({"a": 1})),
            ("{\"a\": NaN, \"b\": [Infinity, -Infinity, -1]}", json!({"b": [null, null, -1]})),
            ("{\"a\": null, \"b\": {\"c\": null}}", json!({"b": {}})),
            (
                r#"{"NaN": "NaN, \" Infinity", "b\\": "-Infinity"}"#,
                json!({"NaN": "NaN, \" Infinity", "b\\": "-Infinity"}),
            ),
        ] {
            let mut found = from_bytes(text.as_bytes()).unwrap();
            drop_nulls(&mut found);
            assert_eq!(found, value, "{text}");
        }
        for text in ["{\"a\": Nan}", "{\"a\": 1,}", "", "{\"a\": \"x"] {
            let said = from_bytes(text.as_bytes()).unwrap_err();
            assert!(said.contains("JSON") || said.contains("empty"), "{text}: {said}");
        }
    }

    #[test]
    fn an_error_names_the_key() {
        #[derive(Debug, Deserialize)]
        struct Inner {
            #[expect(dead_code)]
            b: usize,
        }
        #[derive(Debug, Deserialize)]
        struct Outer {
            #[expect(dead_code)]
            a: Inner,
        }
        let said = parse::<Outer>(&json!({"a": {"b": "x"}})).unwrap_err();
        assert!(said.starts_with("a.b: invalid type: string \"x\""), "{said}");
        assert_eq!(parse::<Outer>(&json!({})).unwrap_err(), "missing field `a`");
    }
}
