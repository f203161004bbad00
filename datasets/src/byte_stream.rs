//! The bytes of an object, piece by piece.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::store::store_error;
use crate::{Error, Result};

/// The pieces of an object: from a local file in large blocks, or as the network brings them.
pub(crate) enum ByteStream {
    File(std::fs::File, String),
    Remote(BoxStream<'static, object_store::Result<Bytes>>, String),
}

impl ByteStream {
    const BLOCK: usize = 1 << 20;

    /// The next piece; `None` at the end. Reading a local file blocks.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::File(file, name) => {
                let mut block = vec![0; Self::BLOCK];
                let read = std::io::Read::read(file, &mut block).map_err(|e| Error::Store {
                    path: name.clone(),
                    source: Box::new(e),
                })?;
                block.truncate(read);
                Ok((read > 0).then(|| block.into()))
            }
            Self::Remote(stream, name) => stream
                .next()
                .await
                .transpose()
                .map_err(|e| store_error(name.clone(), &e)),
        }
    }
}
