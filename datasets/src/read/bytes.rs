//! The bytes of a corpus file, decompressed on the way, with bounded memory.

use bytes::{Buf, Bytes};

use super::compression::{Compression, Decoder};
use crate::byte_stream::ByteStream;
use crate::store::Store;
use crate::{Error, Result};

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
    /// Opens a file; without a compression, its name tells it.
    pub(crate) async fn open(url: &str, compression: Option<Compression>) -> Result<Self> {
        let (store, name) = Store::open_object(url)?;
        let (total, stream) = store.stream(&name).await.map_err(|error| match error {
            Error::NotFound { .. } => Error::NotFound { path: url.to_owned() },
            other => other,
        })?;
        let compression = compression.unwrap_or_else(|| Compression::of(&name).0);
        Ok(Self {
            url: url.to_owned(),
            stream,
            decoder: Decoder::new(compression).map_err(|e| corrupt(url, &e))?,
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
                // An empty file is an empty corpus, and said so later.
                None if self.read == 0 => return Ok(false),
                None => {
                    self.decoder.finish(buffer).map_err(|e| corrupt(&self.url, &e))?;
                    return Ok(false);
                }
            }
        }
        let used = self
            .decoder
            .feed(&self.pending, buffer)
            .map_err(|e| corrupt(&self.url, &e))?;
        self.pending.advance(used);
        self.read += used as u64;
        Ok(true)
    }
}

fn corrupt(url: &str, reason: &str) -> Error {
    Error::Content {
        path: url.to_owned(),
        reason: format!("can't be decompressed: {reason}; fetch or compress it again"),
    }
}
