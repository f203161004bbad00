//! Makes text from elsewhere safe to show. Workers, file names, jobs and servers may send control characters,
//! bidirectional overrides and texts of any length. All text for a terminal, a log or a page passes through here.

use std::borrow::Cow;
use std::fmt::{Debug, Write};

/// The most bytes of a field that are logged.
const LOGGED_BYTES: usize = 16 << 10;

/// Returns true if a terminal or a page would obey the character instead of showing it. The zero-width space and
/// joiners are not among these characters, because Khmer and other scripts need them.
#[must_use]
pub fn acts(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Returns the text on one line. Each control character is written as an escape, such as `\n` or `\u{1b}`.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\t', |c, out| out.extend(c.escape_debug()))
}

/// Returns the text with its line breaks and tabs. Every other control character is written as an escape.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'), |c, out| out.extend(c.escape_debug()))
}

/// Returns JSON in which each control character is a JSON escape, so that programs read the same strings.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    escaped(
        text,
        |c| c == '\n',
        |c, out| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        },
    )
}

fn escaped<'a>(text: &'a str, stays: fn(char) -> bool, write: impl Fn(char, &mut String)) -> Cow<'a, str> {
    let escapes = |c: char| acts(c) && !stays(c);
    if !text.contains(escapes) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match escapes(c) {
            true => write(c, &mut out),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Returns at most `most` bytes of the text, with a note of how many were cut.
#[must_use]
pub fn bounded(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    Cow::Owned(format!("{}… [{} more bytes were cut]", &text[..end], text.len() - end))
}

/// Formats a field of a log event on one line: the message as it is, other fields with their names.
#[must_use]
pub fn log_field(name: &str, value: &dyn Debug) -> String {
    let value = format!("{value:?}");
    let value = bounded(&value, LOGGED_BYTES);
    match name.trim_start_matches("r#") {
        "message" => line(&value).into_owned(),
        name => format!("{name}={}", line(&value)),
    }
}

/// Returns the first `most` characters of a text from elsewhere, for quoting: on one line, with each run of blanks as
/// one space.
#[must_use]
pub fn quoted(text: &str, most: usize) -> String {
    let mut words = String::new();
    for word in text.split_whitespace() {
        if words.len() > most * 4 {
            break;
        }
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
    }
    let mut chars = words.chars();
    let mut beginning: String = chars.by_ref().take(most).collect();
    if chars.next().is_some() {
        beginning.push('…');
    }
    line(&beginning).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let hostile = "\u{1b}]0;owned\u{7}\r\u{9b}2J\u{202e}fdp.exe\u{2066}\u{7f}\u{e0041}";
        for shown in [line(hostile), text(hostile), json(hostile)] {
            assert!(!shown.contains(acts), "{shown:?}");
            assert!(shown.contains("owned") && shown.contains("fdp.exe"), "{shown}");
        }
        for c in ('\0'..=char::MAX).filter(|c| acts(*c)) {
            assert!(!line(&format!("a{c}b")).contains(|c| acts(c) && c != '\t'), "{c:?}");
        }
        assert_eq!(line("a\nb\u{1b}[1m"), "a\\nb\\u{1b}[1m");
        assert_eq!(text("a\nb\u{1b}[1m"), "a\nb\\u{1b}[1m");
        assert!(matches!(line("ភាសា\u{200b}ខ្មែរ 👩\u{200d}🌾"), Cow::Borrowed(_)), "scripts are left alone");
    }

    #[test]
    fn json_means_the_same_to_programs() {
        assert_eq!(json("{\"a\":\"\u{9b}\u{202e}\u{e0041}\"}"), "{\"a\":\"\\u009b\\u202e\\udb40\\udc41\"}");
    }

    #[test]
    fn long_texts_are_cut_between_characters_and_say_so() {
        assert_eq!(bounded("abc", 3), "abc");
        assert_eq!(bounded("កខគ", 4), "ក… [6 more bytes were cut]");
        assert_eq!(quoted(" a\n\tb\u{1b}  c", 10), "a b\\u{1b} c");
        assert_eq!(quoted("abcdef", 3), "abc…");
        assert!(quoted(&"x".repeat(1 << 20), 200).chars().count() == 201);
    }
}
