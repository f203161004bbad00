//! Recognizes a file's type by its first bytes, whatever its name says.

use super::compression::Compression;

/// The number of first bytes that decide a file's type; the mark of a tar archive ends at byte 262.
pub(super) const HEAD: usize = 262;

/// A kind of file that the line readers do not accept.
struct Kind {
    at: usize,
    mark: &'static [u8],
    name: &'static str,
    advice: &'static str,
}

const fn kind(mark: &'static [u8], name: &'static str, advice: &'static str) -> Kind {
    Kind { at: 0, mark, name, advice }
}

const UNPACK: &str = "unpack it and name the corpus file in it";
const EXPORT: &str = "export its table as tab-separated UTF-8 text or as Parquet";

const KINDS: [Kind; 14] = [
    kind(b"PAR1\x15", "a Parquet file", "set format = \"parquet\", with english_column and foreign_column"),
    kind(b"PK\x03\x04", "a zip archive (or an Excel or Word file)", UNPACK),
    kind(b"PK\x05\x06", "an empty zip archive", UNPACK),
    kind(b"7z\xBC\xAF\x27\x1C", "a 7z archive", UNPACK),
    kind(b"Rar!\x1A\x07", "a RAR archive", UNPACK),
    Kind { at: 256, mark: b"\0ustar", name: "a tar archive", advice: UNPACK },
    kind(b"\x04\x22\x4D\x18", "lz4", "decompress it with `lz4 -d`"),
    kind(b"LZIP\x01", "lzip", "decompress it with `lzip -d`"),
    kind(b"\x1F\x9D", "compressed by `compress`", "decompress it with `gzip -d`"),
    kind(b"ARROW1\0", "an Arrow file", EXPORT),
    kind(b"SQLite format 3\0", "an SQLite database", EXPORT),
    kind(b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1", "an old Excel or Word file", EXPORT),
    kind(b"%PDF-", "a PDF", "its text must be extracted first"),
    kind(
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer and not the file itself",
        "fetch the file with `git lfs pull`",
    ),
];

/// Returns the compression that the first bytes tell.
pub(super) fn compression(head: &[u8]) -> Option<Compression> {
    match head {
        [0x1F, 0x8B, 0x08, ..] => Some(Compression::Gzip),
        // A frame, or one that must be skipped.
        [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Some(Compression::Zstd),
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
        // A text may begin with `BZh`, so more bytes are compared.
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
        | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Some(Compression::Bzip2),
        _ => None,
    }
}

/// Decides how a file is decompressed, and the note for the user if its name or the job file says otherwise.
///
/// `said` is the source of the expected compression: `compression` in the job file, or the name.
pub(super) fn decide(head: &[u8], expected: Compression, said: &str) -> (Compression, Option<String>) {
    match compression(head) {
        Some(found) if found == expected => (found, None),
        Some(found) => {
            let note = match expected {
                Compression::None => format!("is {found}, although {said} does not say so; it is read as {found}"),
                expected => format!("is {found}, and not {expected} as {said} says; it is read as {found}"),
            };
            (found, Some(note))
        }
        // Bytes that look like text are text. The decoder refuses anything else.
        None if expected != Compression::None && is_text(head) => {
            (Compression::None, Some(format!("is not compressed, though {said} says {expected}; it is read as it is")))
        }
        None => (expected, None),
    }
}

fn is_text(head: &[u8]) -> bool {
    let is_wide = head.starts_with(&[0xFF, 0xFE]) || head.starts_with(&[0xFE, 0xFF]);
    let is_utf8 = match std::str::from_utf8(head) {
        Ok(_) => true,
        // The head may end inside a character.
        Err(error) => error.error_len().is_none() && error.valid_up_to() > 0,
    };
    !head.is_empty() && (is_wide || (is_utf8 && !head.contains(&0)))
}

/// Returns what a file is if its decompressed bytes are not lines of text, with advice.
pub(super) fn refusal(head: &[u8]) -> Option<String> {
    if let Some(inner) = compression(head) {
        return Some(format!("is compressed twice, the second time as {inner}; unpack it once"));
    }
    let found = |kind: &&Kind| head.get(kind.at..).is_some_and(|rest| rest.starts_with(kind.mark));
    if let Some(kind) = KINDS.iter().find(found) {
        return Some(format!("is {}: {}", kind.name, kind.advice));
    }
    let text = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start();
    let begins = |words: &[u8]| text.get(..words.len()).is_some_and(|head| head.eq_ignore_ascii_case(words));
    (begins(b"<!doctype html") || begins(b"<html")).then(|| {
        "is a web page and not a corpus: the server may ask for a login, or the address is that of a page about the \
         file; fetch the file itself"
            .to_owned()
    })
}

/// Returns what a JSON file is if it does not hold one object in each line, with the command that converts it.
pub(super) fn not_lines_of_json(head: &[u8]) -> Option<String> {
    let text = head.trim_ascii_start();
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    match text.first() {
        Some(b'[') if text[1..].trim_ascii_start().first() == Some(&b'{') => {
            Some("is one JSON array; JSON lines hold one object a line, which `jq -c '.[]'` makes of it".to_owned())
        }
        Some(b'{') if first == b"{" => Some(
            "is JSON over several lines; JSON lines hold one object a line, which `jq -c .` makes of it".to_owned(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lie_are_overruled_and_texts_are_not_taken_for_archives() {
        let gz = [0x1F, 0x8B, 8, 0, 0];
        let (found, note) = decide(&gz, Compression::None, "the name");
        assert_eq!(found, Compression::Gzip);
        assert!(note.unwrap().contains("is gzip"));
        assert_eq!(decide(&gz, Compression::Gzip, "the name"), (Compression::Gzip, None));
        assert_eq!(decide(&gz, Compression::Xz, "the name").0, Compression::Gzip);
        assert_eq!(decide(b"a\tb\n", Compression::Zstd, "the name").0, Compression::None);
        assert_eq!(decide(b"\x1F\x8C\0\0", Compression::Gzip, "the name"), (Compression::Gzip, None));
        for text in ["BZh9 is how bzip2 begins", "PK is short", "PAR10", "7z", "<htmlx"] {
            assert_eq!(compression(text.as_bytes()), None, "{text}");
        }
        assert_eq!(refusal("BZh9 is how bzip2 begins\tx".as_bytes()), None);
        assert_eq!(refusal("<!DOCTYPE tmx>".as_bytes()), None);
        assert!(refusal(b"\n <!doctype HTML><html>").unwrap().contains("web page"));
    }

    #[test]
    fn arrays_and_pretty_json_are_told_from_lines() {
        for array in ["[{\"a\":1}]", " [\n {\"a\":1},"] {
            assert!(not_lines_of_json(array.as_bytes()).unwrap().contains("array"));
        }
        assert!(not_lines_of_json(b"{\r\n  \"a\": 1").unwrap().contains("several lines"));
        for lines in ["{\"a\":1}\n", "[1]\n{\"a\":1}\n", "", "x"] {
            assert_eq!(not_lines_of_json(lines.as_bytes()), None, "{lines}");
        }
    }
}
