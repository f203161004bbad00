//! A corpus file cut at a delimiter (a line break, `</tu>`): each piece either text or a counted fault.

use memchr::memmem::Finder;

use super::bytes::ByteSource;
use super::compression::Compression;
use crate::clean::DropReason;
use crate::{Error, Result};

/// The longest piece that is taken in.
pub(crate) const LONGEST_PIECE: usize = 1 << 20;

/// One piece, without its delimiter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Fault(DropReason),
}

/// A file, piece by piece. Holds no more than the longest piece and one block of the file.
pub(crate) struct Pieces {
    bytes: ByteSource,
    delimiter: Finder<'static>,
    buffer: Vec<u8>,
    // What of `buffer` was handed out, and up to where no delimiter begins.
    start: usize,
    searched: usize,
    number: u64,
    ended: bool,
    opened: bool,
    rest: bool,
}

impl Pieces {
    pub(crate) async fn lines(url: &str, compression: Option<Compression>) -> Result<Self> {
        Self::open(url, compression, b"\n").await
    }

    pub(crate) async fn open(url: &str, compression: Option<Compression>, delimiter: &'static [u8]) -> Result<Self> {
        Ok(Self {
            bytes: ByteSource::open(url, compression).await?,
            delimiter: Finder::new(delimiter),
            buffer: Vec::new(),
            start: 0,
            searched: 0,
            number: 0,
            ended: false,
            opened: false,
            rest: false,
        })
    }

    pub(crate) fn progress(&self) -> (u64, u64) {
        self.bytes.progress()
    }

    pub(crate) fn url(&self) -> &str {
        self.bytes.url()
    }

    /// The number of the piece that was handed out last, from 1.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Whether no delimiter stands after the piece that was handed out last.
    pub(crate) fn is_rest(&self) -> bool {
        self.rest
    }

    /// The next piece; `None` at the end. A delimiter at the very end begins no piece.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece<'_>>> {
        if !self.opened {
            self.skip_mark().await?;
        }
        let width = self.delimiter.needle().len();
        let mut too_long = false;
        let (end, next) = loop {
            if let Some(offset) = self.delimiter.find(&self.buffer[self.searched..]) {
                let end = self.searched + offset;
                break (end, end + width);
            }
            self.searched = (self.buffer.len() + 1).saturating_sub(width).max(self.start);
            if self.ended {
                if self.start == self.buffer.len() && !too_long {
                    return Ok(None);
                }
                self.rest = true;
                break (self.buffer.len(), self.buffer.len());
            }
            if self.buffer.len() - self.start > LONGEST_PIECE {
                too_long = true;
                self.start = self.searched;
            }
            self.fill().await?;
        };
        let piece = self.start..end;
        self.start = next;
        self.searched = next;
        self.number += 1;
        if too_long || piece.len() > LONGEST_PIECE {
            return Ok(Some(Piece::Fault(DropReason::LineTooLong)));
        }
        let piece = &self.buffer[piece];
        let piece = piece.strip_suffix(b"\r").unwrap_or(piece);
        if memchr::memchr(0, piece).is_some() {
            return Ok(Some(Piece::Fault(DropReason::NulByte)));
        }
        Ok(Some(match std::str::from_utf8(piece) {
            Ok(text) => Piece::Text(text),
            Err(_) => Piece::Fault(DropReason::BrokenUtf8),
        }))
    }

    /// Steps over a UTF-8 byte order mark, and refuses UTF-16, of which every piece would be broken.
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
        // Each byte is moved at most once: what is kept is less than a piece.
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.ended = !self.bytes.read_into(&mut self.buffer).await?;
        Ok(())
    }
}
