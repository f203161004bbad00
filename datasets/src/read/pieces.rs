//! Cuts a corpus file at a delimiter (a line break, `</tu>`). Each piece is text or a counted fault.

use memchr::memmem::Finder;

use super::compression::Compression;
use super::encoding::TextSource;
use crate::Result;
use crate::clean::DropReason;

/// The longest piece that is accepted, in bytes.
pub(crate) const LONGEST_PIECE: usize = 1 << 20;

/// One piece, without its delimiter.
pub(crate) type Piece<'a> = std::result::Result<&'a str, DropReason>;

/// Reads a file piece by piece. Memory holds no more than the longest piece and one block of the file.
pub(crate) struct Pieces {
    source: TextSource,
    delimiter: Finder<'static>,
    buffer: Vec<u8>,
    // The end of the part of `buffer` that was returned, and the position before which no delimiter begins.
    start: usize,
    searched: usize,
    number: u64,
    ended: bool,
    opened: bool,
    rest: bool,
    has_bare_returns: bool,
}

impl Pieces {
    pub(crate) async fn lines(url: &str, compression: Option<Compression>) -> Result<Self> {
        Self::open(url, compression, b"\n").await
    }

    pub(crate) async fn open(url: &str, compression: Option<Compression>, delimiter: &'static [u8]) -> Result<Self> {
        Ok(Self {
            source: TextSource::open(url, compression).await?,
            delimiter: Finder::new(delimiter),
            buffer: Vec::new(),
            start: 0,
            searched: 0,
            number: 0,
            ended: false,
            opened: false,
            rest: false,
            has_bare_returns: false,
        })
    }

    /// Returns the beginning of the file, as far as it was read to find how lines end.
    pub(crate) async fn head(&mut self) -> Result<&[u8]> {
        self.begin().await?;
        Ok(&self.buffer[self.start..])
    }

    /// Returns notes for the user on how the file is read.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.source.notes().map(str::to_owned).collect();
        if self.has_bare_returns {
            notes.push("ends its lines with carriage returns only, like old Mac files; it is read that way".to_owned());
        }
        notes
    }

    pub(crate) fn progress(&self) -> (u64, u64) {
        self.source.bytes().progress()
    }

    pub(crate) fn url(&self) -> &str {
        self.source.bytes().url()
    }

    /// Returns the number of the last piece, from 1.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Returns true if no delimiter follows the last piece.
    pub(crate) fn is_rest(&self) -> bool {
        self.rest
    }

    /// Returns the next piece; `None` at the end. A delimiter at the very end begins no piece.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece<'_>>> {
        self.begin().await?;
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
        (self.start, self.searched) = (next, next);
        self.number += 1;
        if too_long || piece.len() > LONGEST_PIECE {
            return Ok(Some(Err(DropReason::LineTooLong)));
        }
        let piece = &self.buffer[piece];
        let piece = piece.strip_suffix(b"\r").unwrap_or(piece);
        if memchr::memchr(0, piece).is_some() {
            return Ok(Some(Err(DropReason::NulByte)));
        }
        Ok(Some(std::str::from_utf8(piece).map_err(|_| DropReason::BrokenUtf8)))
    }

    /// Reads enough to tell how lines end. If the longest line holds no line feed but carriage returns, they end the
    /// lines. Beside line feeds, a carriage return is part of its line.
    async fn begin(&mut self) -> Result<()> {
        if self.opened {
            return Ok(());
        }
        self.opened = true;
        self.fill().await?;
        if self.delimiter.needle() != b"\n" {
            return Ok(());
        }
        let mut looked_at = 0;
        // A line feed at the very end does not turn the rest into lines.
        let has_feeds = loop {
            let last = self.buffer.len().saturating_sub(1);
            if memchr::memchr(b'\n', &self.buffer[looked_at..last]).is_some() {
                break true;
            }
            if self.ended || last > LONGEST_PIECE {
                break false;
            }
            looked_at = last;
            self.fill().await?;
        };
        if !has_feeds && memchr::memchr(b'\r', self.buffer.trim_ascii_end()).is_some() {
            self.delimiter = Finder::new(b"\r");
            self.has_bare_returns = true;
            if self.ended && self.buffer.ends_with(b"\n") {
                self.buffer.pop();
            }
        }
        Ok(())
    }

    async fn fill(&mut self) -> Result<()> {
        // Each byte is moved at most once, because the kept part is shorter than a piece.
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.ended = !self.source.read_into(&mut self.buffer).await?;
        Ok(())
    }
}
