//! The bytes of a corpus file, decompressed on the way, with bounded memory.

use std::io::Write;

use bytes::{Buf, Bytes};
use flate2::write::MultiGzDecoder;
use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use crate::byte_stream::ByteStream;
use crate::store::Store;
use crate::{Error, Result};

/// How much compressed input is decoded at once: bounds what a highly compressed file can blow up to in memory.
const PIECE: usize = 16 << 10;
const ZSTD_BLOCK: usize = 128 << 10;

/// How a file is compressed, by the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// The compression of a file and its name without that ending.
    pub(crate) fn of(name: &str) -> (Self, &str) {
        for (ending, compression) in [(".gz", Self::Gzip), (".zst", Self::Zstd)] {
            if let Some(stem) = name.strip_suffix(ending) {
                return (compression, stem);
            }
        }
        (Self::None, name)
    }
}

enum Decoder {
    None,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zstd {
        decoder: ZstdDecoder<'static>,
        frame_open: bool,
    },
}

/// A corpus file being read.
pub(crate) struct ByteSource {
    url: String,
    stream: ByteStream,
    decoder: Decoder,
    pending: Bytes,
    read: u64,
    total: u64,
}

impl ByteSource {
    pub(crate) async fn open(url: &str) -> Result<Self> {
        let (store, name) = Store::open_object(url)?;
        let (total, stream) = store.stream(&name).await.map_err(|error| match error {
            Error::NotFound { .. } => Error::NotFound {
                path: url.to_owned(),
            },
            other => other,
        })?;
        let decoder = match Compression::of(&name).0 {
            Compression::None => Decoder::None,
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Compression::Zstd => Decoder::Zstd {
                decoder: ZstdDecoder::new().map_err(|e| corrupt(url, &e))?,
                frame_open: false,
            },
        };
        Ok(Self {
            url: url.to_owned(),
            stream,
            decoder,
            pending: Bytes::new(),
            read: 0,
            total,
        })
    }

    /// Bytes of the file consumed so far and its size, both as they lie in the store.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.read, self.total)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Appends the next piece to `buffer`; false at the end of the file. A piece may be empty.
    pub(crate) async fn read_into(&mut self, buffer: &mut Vec<u8>) -> Result<bool> {
        if self.pending.is_empty() {
            match self.stream.next().await? {
                Some(piece) => self.pending = piece,
                None => return self.finish(buffer).map(|()| false),
            }
        }
        let used = match &mut self.decoder {
            Decoder::None => {
                buffer.extend_from_slice(&self.pending);
                self.pending.len()
            }
            Decoder::Gzip(decoder) => {
                let piece = &self.pending[..self.pending.len().min(PIECE)];
                decoder
                    .write_all(piece)
                    .map_err(|e| corrupt(&self.url, &e))?;
                buffer.append(decoder.get_mut());
                piece.len()
            }
            Decoder::Zstd {
                decoder,
                frame_open,
            } => {
                let start = buffer.len();
                buffer.resize(start + ZSTD_BLOCK, 0);
                let mut input = InBuffer::around(&self.pending);
                let mut output = OutBuffer::around(&mut buffer[start..]);
                let left = decoder
                    .run(&mut input, &mut output)
                    .map_err(|e| corrupt(&self.url, &e))?;
                *frame_open = left > 0;
                let (used, made) = (input.pos(), output.pos());
                buffer.truncate(start + made);
                used
            }
        };
        self.pending.advance(used);
        self.read += used as u64;
        Ok(true)
    }

    fn finish(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        match &mut self.decoder {
            Decoder::None => Ok(()),
            // An empty file is an empty corpus, and said so later.
            _ if self.total == 0 => Ok(()),
            Decoder::Gzip(decoder) => {
                decoder.try_finish().map_err(|e| corrupt(&self.url, &e))?;
                buffer.append(decoder.get_mut());
                Ok(())
            }
            Decoder::Zstd {
                decoder,
                frame_open,
            } => loop {
                let start = buffer.len();
                buffer.resize(start + ZSTD_BLOCK, 0);
                let mut output = OutBuffer::around(&mut buffer[start..]);
                let flushed = if *frame_open {
                    decoder.run(&mut InBuffer::around(&[]), &mut output)
                } else {
                    Ok(0)
                };
                let made = output.pos();
                buffer.truncate(start + made);
                let left = flushed.map_err(|e| corrupt(&self.url, &e))?;
                if left == 0 {
                    return Ok(());
                }
                if made == 0 {
                    return Err(corrupt(
                        &self.url,
                        &"the file ends in the middle of a frame",
                    ));
                }
            },
        }
    }
}

fn corrupt(url: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::Content {
        path: url.to_owned(),
        reason: format!("can't be decompressed: {reason}; fetch or compress it again"),
    }
}
