//! Reads and decompresses the bytes of a corpus file, with bounded memory.

use bytes::{Buf, Bytes, BytesMut};

use super::compression::{Compression, Decoder};
use super::content::{self, HEAD};
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
    note: Option<String>,
}

impl ByteSource {
    /// Opens a file. Its first bytes tell the compression. If they tell nothing, `compression` decides, and then the
    /// name.
    pub(crate) async fn open(url: &str, compression: Option<Compression>) -> Result<Self> {
        let (store, name) = Store::open_object(url)?;
        let (total, mut stream) = store.stream(&name).await.map_err(|error| match error {
            Error::NotFound { .. } => Error::NotFound { path: url.to_owned() },
            other => other,
        })?;
        let head = first_bytes(&mut stream).await?;
        let (expected, said) = match compression {
            Some(said) => (said, "`compression`"),
            None => (Compression::of(&name).0, "its name"),
        };
        let (compression, note) = content::decide(&head[..head.len().min(HEAD)], expected, said);
        Ok(Self {
            url: url.to_owned(),
            stream,
            decoder: Decoder::new(compression).map_err(|e| corrupt(url, &e))?,
            pending: head,
            read: 0,
            total,
            note,
        })
    }

    /// Returns how many bytes of the file were read, and its size, both compressed.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.read, self.total)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns a note on the file's compression for the user.
    pub(crate) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Appends the next piece, which may be empty, to `buffer`. Returns false at the end of the file.
    pub(crate) async fn read_into(&mut self, buffer: &mut Vec<u8>) -> Result<bool> {
        if self.pending.is_empty() {
            match self.stream.next().await? {
                Some(piece) => self.pending = piece,
                // An empty file is an empty corpus, which is reported later.
                None if self.read == 0 => return Ok(false),
                None => {
                    self.decoder.finish(buffer).map_err(|e| corrupt(&self.url, &e))?;
                    return Ok(false);
                }
            }
        }
        let used = self.decoder.feed(&self.pending, buffer).map_err(|e| corrupt(&self.url, &e))?;
        self.pending.advance(used);
        self.read += used as u64;
        Ok(true)
    }
}

/// Reads the first pieces of a file, until they tell what it is.
async fn first_bytes(stream: &mut ByteStream) -> Result<Bytes> {
    let mut head = BytesMut::new();
    while head.len() < HEAD {
        match stream.next().await? {
            // A block of a local file is used without copying it.
            Some(piece) if head.is_empty() && piece.len() >= HEAD => return Ok(piece),
            Some(piece) => head.extend_from_slice(&piece),
            None => break,
        }
    }
    Ok(head.freeze())
}

/// Returns the first bytes of a file as stored, or none if it can't be read.
pub(super) async fn head_of(url: &str) -> Bytes {
    let read = async {
        let (store, name) = Store::open_object(url)?;
        first_bytes(&mut store.stream(&name).await?.1).await
    };
    read.await.unwrap_or_default()
}

fn corrupt(url: &str, reason: &str) -> Error {
    Error::Content {
        path: url.to_owned(),
        reason: format!("can't be decompressed: {reason}; fetch or compress it again"),
    }
}
