//! Reads the bytes of an object piece by piece.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore};
use tracing::Instrument;

use crate::store::Store;
use crate::{Error, Result};

/// The pieces of an object: large blocks of a local file, or whatever the network delivers.
pub(crate) enum ByteStream {
    File(std::fs::File, String),
    /// A download, with the store and the path that name it in errors.
    Remote(BoxStream<'static, object_store::Result<Bytes>>, Store, String),
}

impl ByteStream {
    const BLOCK: usize = 1 << 20;

    /// Returns the next piece, or `None` at the end. Reading a local file blocks.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::File(file, name) => {
                let mut block = vec![0; Self::BLOCK];
                let read = std::io::Read::read(file, &mut block)
                    .map_err(|e| Error::Store { path: name.clone(), source: Box::new(e) })?;
                block.truncate(read);
                Ok((read > 0).then(|| block.into()))
            }
            Self::Remote(stream, store, path) => {
                let piece = stream.next().await.transpose();
                piece.map_err(|e| store.failed(path, e))
            }
        }
    }
}

/// Bytes of one request.
const PART: u64 = 8 << 20;
/// Parts that are requested or waiting, besides the one in use.
const AHEAD: usize = 2;

/// Reads an object part by part and fetches the next parts while one is used. If the object that `meta` describes is
/// replaced meanwhile, that is an error.
pub(crate) fn parts(
    objects: Arc<dyn ObjectStore>,
    meta: ObjectMeta,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    let starts = (0..meta.size).step_by(PART as usize);
    let fetch = move |start: u64| {
        let (objects, location) = (Arc::clone(&objects), meta.location.clone());
        let options = GetOptions {
            range: Some(GetRange::Bounded(start..meta.size.min(start + PART))),
            if_match: meta.e_tag.clone(),
            ..GetOptions::default()
        };
        // A separate task, so that the download continues while the consumer of the parts is busy.
        let part = async move { objects.get_opts(&location, options).await?.bytes().await };
        let task = tokio::spawn(part.in_current_span());
        async move { task.await.map_err(|source| object_store::Error::JoinError { source }).flatten() }
    };
    futures::stream::iter(starts).map(fetch).buffered(AHEAD).boxed()
}
