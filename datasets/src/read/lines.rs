//! Lines of a corpus file: each either text or a counted fault.

use crate::clean::DropReason;
use crate::read::bytes::ByteSource;
use crate::{Error, Result};

/// The longest line that is taken in.
pub(crate) const LONGEST_LINE: usize = 1 << 20;

/// One line, without its line break.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    Text(&'a str),
    Fault(DropReason),
}

/// A file, line by line. Holds no more than the longest line and one piece of the file.
pub(crate) struct Lines {
    bytes: ByteSource,
    buffer: Vec<u8>,
    // What of `buffer` was handed out, and up to where no line break was found.
    start: usize,
    searched: usize,
    number: u64,
    ended: bool,
    opened: bool,
}

impl Lines {
    pub(crate) async fn open(url: &str) -> Result<Self> {
        let bytes = ByteSource::open(url).await?;
        Ok(Self {
            bytes,
            buffer: Vec::new(),
            start: 0,
            searched: 0,
            number: 0,
            ended: false,
            opened: false,
        })
    }

    pub(crate) fn progress(&self) -> (u64, u64) {
        self.bytes.progress()
    }

    /// The number of the line that was handed out last, from 1.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The next line; `None` at the end. A line break at the very end begins no line.
    pub(crate) async fn next(&mut self) -> Result<Option<Line<'_>>> {
        if !self.opened {
            self.skip_mark().await?;
        }
        let mut too_long = false;
        let end = loop {
            if let Some(offset) = memchr(b'\n', &self.buffer[self.searched..]) {
                break self.searched + offset;
            }
            self.searched = self.buffer.len();
            if self.ended {
                if self.start == self.buffer.len() && !too_long {
                    return Ok(None);
                }
                break self.buffer.len();
            }
            if self.buffer.len() - self.start > LONGEST_LINE {
                too_long = true;
                self.start = self.buffer.len();
            }
            self.fill().await?;
        };
        let line = self.start..end;
        self.start = (end + 1).min(self.buffer.len());
        self.searched = self.start;
        self.number += 1;
        if too_long || line.len() > LONGEST_LINE {
            return Ok(Some(Line::Fault(DropReason::LineTooLong)));
        }
        let line = &self.buffer[line];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.contains(&0) {
            return Ok(Some(Line::Fault(DropReason::NulByte)));
        }
        Ok(Some(match std::str::from_utf8(line) {
            Ok(text) => Line::Text(text),
            Err(_) => Line::Fault(DropReason::BrokenUtf8),
        }))
    }

    /// Steps over a UTF-8 byte order mark, and refuses UTF-16, of which every line would be broken.
    async fn skip_mark(&mut self) -> Result<()> {
        while self.buffer.len() < 3 && !self.ended {
            self.fill().await?;
        }
        self.opened = true;
        if self.buffer.starts_with(&[0xEF, 0xBB, 0xBF]) {
            self.start = 3;
            self.searched = 3;
        } else if self.buffer.starts_with(&[0xFF, 0xFE]) || self.buffer.starts_with(&[0xFE, 0xFF]) {
            return Err(Error::Content {
                path: self.bytes.url().to_owned(),
                reason: "is UTF-16; convert it to UTF-8, for instance with `iconv -f UTF-16 -t UTF-8`".to_owned(),
            });
        }
        Ok(())
    }

    async fn fill(&mut self) -> Result<()> {
        // Each byte is moved at most once: what is kept is less than a line.
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.ended = !self.bytes.read_into(&mut self.buffer).await?;
        Ok(())
    }
}

fn memchr(wanted: u8, bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == wanted)
}
