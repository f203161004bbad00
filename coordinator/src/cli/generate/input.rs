//! Reads the texts to answer, line by line, as the corpus readers do.

use std::io::{BufRead, BufReader};
use std::path::Path;

use llink_datasets::clean::DropReason;
use llink_datasets::read::Lines;
use llink_datasets::text::{ZeroWidth, clean_line};
use tokio::runtime::Handle;

use super::{complain, unreadable};
use crate::cli::Failed;

pub(super) const STANDARD_INPUT: &str = "-";
/// The fault of a text without visible characters.
pub(super) const NOTHING_TO_READ: &str = "has nothing to read in its text";

const BYTE_ORDER_MARK: &str = "\u{FEFF}";

pub(super) struct Input {
    name: String,
    number: u64,
    lines: Source,
}

enum Source {
    File(Box<Lines>, Handle),
    /// Standard input and pipes, whose lines are answered as they come.
    Stream(Box<dyn BufRead>),
}

impl Input {
    /// Opens a file of texts, one on each line.
    pub(super) fn of_text(file: &Path, runtime: &Handle) -> Result<Self, Failed> {
        Self::open(file, runtime, |url| runtime.block_on(Lines::of_text(url)))
    }

    pub(super) fn of_json(file: &Path, runtime: &Handle) -> Result<Self, Failed> {
        Self::open(file, runtime, |url| runtime.block_on(Lines::of_json(url)))
    }

    fn open(
        file: &Path,
        runtime: &Handle,
        open: impl FnOnce(&str) -> llink_datasets::Result<Lines>,
    ) -> Result<Self, Failed> {
        let name = match file.to_str() {
            Some(STANDARD_INPUT) => "standard input".to_owned(),
            _ => file.display().to_string(),
        };
        let is_stream = |file: &Path| std::fs::metadata(file).is_ok_and(|found| !found.is_file() && !found.is_dir());
        let lines = if file == Path::new(STANDARD_INPUT) {
            Source::Stream(Box::new(std::io::stdin().lock()))
        } else if is_stream(file) {
            let opened = std::fs::File::open(file).map_err(|e| unreadable(file, &e))?;
            Source::Stream(Box::new(BufReader::new(opened)))
        } else {
            let lines = open(&name)?;
            lines.notes().iter().for_each(|note| complain(&format!("{name} {note}")));
            Source::File(Box::new(lines), runtime.clone())
        };
        Ok(Self { name, number: 0, lines })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of the last line, from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Returns the next line, or its fault; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Result<String, String>>, Failed> {
        let line = match &mut self.lines {
            Source::File(lines, runtime) => {
                let line = runtime.block_on(lines.next())?;
                line.map(|line| line.map_err(in_words))
            }
            Source::Stream(reader) => {
                let line = next_of(reader, self.number == 0);
                line.map_err(|e| unreadable(Path::new(&self.name), &e))?
            }
        };
        self.number += 1;
        Ok(line)
    }
}

fn next_of(reader: &mut dyn BufRead, is_first: bool) -> std::io::Result<Option<Result<String, String>>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if is_first && (line.starts_with(&[0xFF, 0xFE]) || line.starts_with(&[0xFE, 0xFF])) {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "is UTF-16; pipe it through `iconv -f UTF-16 -t UTF-8`, or name the file by --file or --jsonl",
        ));
    }
    let text = line.strip_suffix(b"\n").unwrap_or(&line);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    Ok(Some(match std::str::from_utf8(text) {
        Ok(text) if text.contains('\0') => Err(in_words(DropReason::NulByte)),
        Ok(text) if is_first => Ok(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).to_owned()),
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(in_words(DropReason::BrokenUtf8)),
    }))
}

fn in_words(reason: DropReason) -> String {
    match reason {
        DropReason::BrokenUtf8 => "is not UTF-8".to_owned(),
        DropReason::NulByte => "holds a NUL byte".to_owned(),
        DropReason::LineTooLong => "is longer than a reader takes in".to_owned(),
        other => other.to_string(),
    }
}

pub(super) fn is_readable(text: &str) -> bool {
    !clean_line(text, ZeroWidth::Keep).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_stream_are_freed_of_marks_and_faulty_ones_are_told() {
        let mut reader: &[u8] = b"\xEF\xBB\xBFone\r\ncaf\xE9\nx\0y\ntwo";
        let mut lines = Vec::new();
        while let Some(line) = next_of(&mut reader, lines.is_empty()).unwrap() {
            lines.push(line);
        }
        let fault = |words: &str| Err(words.to_owned());
        let expected = [Ok("one".to_owned()), fault("is not UTF-8"), fault("holds a NUL byte"), Ok("two".to_owned())];
        assert_eq!(lines, expected);
        let mut wide: &[u8] = b"\xFF\xFEa\0\n\0";
        assert!(next_of(&mut wide, true).unwrap_err().to_string().contains("iconv"));
    }
}
