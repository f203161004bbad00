//! One interface for every place of objects: local disk, memory, S3, GCS, Azure, HTTP, the Hugging Face Hub.
//!
//! A [`Store`] is a folder-like URL. Paths are relative to that URL and use `/`. Local writes are atomic (staged, then
//! renamed) and reach the disk before the call returns, so every visible object is complete.

#[cfg(feature = "cloud")]
mod aws_profile;
#[cfg(feature = "cloud")]
mod cloud;
#[cfg(feature = "cloud")]
mod hub;
mod open;
mod traced;
#[cfg(feature = "cloud")]
mod traceparent;
#[cfg(feature = "cloud")]
mod web;

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

pub use open::{object_name, without_query};
pub use traced::{SPANS, trace_requests};

use crate::{Error, Result};
use open::bad_url;
pub(crate) use open::without_dots;

/// A place that holds objects: a local folder, or a prefix in an object store. Cheap to clone.
///
/// Its methods fail with [`Error::Store`], which has what the store said (disk full, permissions, network), and reading an
/// object that does not exist with [`Error::NotFound`].
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    url: Arc<str>,
    local: Option<Arc<FsPath>>,
    transfer: Transfer,
    /// The secrets of its URL, which must not be shown when a server repeats them.
    secrets: Arc<[String]>,
    /// The repository of the Hugging Face Hub, if the store is one; its objects are read from the Hub's cache on this
    /// machine.
    #[cfg(feature = "cloud")]
    hub: Option<Arc<hub::HubRepo>>,
}

/// The way to read an object from its first byte to its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfer {
    /// The object is read as one stream.
    Whole,
    /// The object is read part by part, each a request with its own retries and deadline. A single connection for
    /// gigabytes breaks sooner or later while they are cleaned.
    Parts,
    /// The object is read part by part if the server supports it and tags the content, so that all parts are of one
    /// object.
    #[cfg_attr(not(feature = "cloud"), expect(dead_code, reason = "only corpora lie on web servers"))]
    PartsIfAble,
}

/// The number of tries of a listing whose answer breaks off, and the wait between them.
const LISTING_TRIES: u32 = 5;
const LISTING_PAUSE: Duration = Duration::from_millis(250);

/// The metadata of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Path relative to the store.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last write, in milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// The store's tag of the content, if it has one.
    pub e_tag: Option<String>,
}

/// The result of [`Store::create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object was written by this call.
    Written,
    /// Another writer was first, and its content is unchanged.
    AlreadyThere,
}

impl Store {
    /// Returns the URL or path of the store, without a trailing `/` and without the query of a web address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the path of an object on the local disk, or `None` if the store is not local.
    #[must_use]
    pub fn local_path(&self, path: &str) -> Option<PathBuf> {
        self.local.as_ref().map(|folder| folder.join(path))
    }

    /// Returns the name of an object of this store in errors and warnings.
    #[must_use]
    pub fn describe(&self, path: &str) -> String {
        if path.is_empty() { self.url.to_string() } else { format!("{}/{path}", self.url) }
    }

    /// Returns an `hf://` URL with its current commit, and any other URL unchanged.
    ///
    /// # Errors
    /// [`Error::Url`] when there is no such repository or revision, or nobody may read it; [`Error::Store`] when the Hub
    /// can't be reached.
    pub async fn pinned(url: &str) -> Result<String> {
        if url.starts_with("hf://") { Self::open(url)?.pinned_url().await } else { Ok(url.to_owned()) }
    }

    /// Does the same as [`Store::pinned`] for an open store.
    pub async fn pinned_url(&self) -> Result<String> {
        #[cfg(feature = "cloud")]
        if let Some(hub) = &self.hub {
            let pinned = hub.pinned().await?;
            return Ok(match self.prefix.as_ref() {
                "" => pinned,
                path => format!("{pinned}/{path}"),
            });
        }
        Ok(self.url.to_string())
    }

    /// Returns the folder on this machine that holds the objects that were read. For an `hf://` URL it is in the Hub's
    /// cache, which [`Store::get`] and [`Store::keep`] fill. The result is `None` for stores that are not local.
    pub async fn folder(&self) -> Result<Option<PathBuf>> {
        #[cfg(feature = "cloud")]
        if let Some(hub) = &self.hub {
            let snapshot = hub.folder().await?;
            return Ok(Some(match self.prefix.as_ref() {
                "" => snapshot,
                path => snapshot.join(path),
            }));
        }
        Ok(self.local_path(""))
    }

    /// Downloads an object of an `hf://` URL into the Hub's cache. For other stores it does nothing.
    pub async fn keep(&self, path: &str) -> Result<()> {
        #[cfg(feature = "cloud")]
        if let Some(hub) = &self.hub {
            hub.file(self.location(path)?.as_ref()).await?;
        }
        #[cfg(not(feature = "cloud"))]
        let _ = path;
        Ok(())
    }

    /// Reads a whole object.
    pub async fn get(&self, path: &str) -> Result<Bytes> {
        let result = self.objects.get(&self.location(path)?).await.map_err(|e| self.failed(path, e))?;
        result.bytes().await.map_err(|e| self.failed(path, e))
    }

    /// Reads a part of an object, up to the object's end. The rest is not fetched.
    pub async fn get_range(&self, path: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
        let location = self.location(path)?;
        #[cfg(feature = "cloud")]
        if let Some(hub) = &self.hub {
            return hub.part(location.as_ref(), range).await;
        }
        let read = self.objects.get_range(&location, range).await;
        read.map_err(|e| self.failed(path, e))
    }

    /// Returns the metadata of an object, or `None` if it does not exist.
    pub async fn head(&self, path: &str) -> Result<Option<ObjectInfo>> {
        match self.objects.head(&self.location(path)?).await {
            Ok(meta) => Ok(Some(self.info(&meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// Lists all objects under a folder, sorted by path. The empty prefix lists the whole store. An empty result is not
    /// an error.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let location = self.location(prefix)?;
        let mut tries = LISTING_TRIES;
        let metas: Vec<ObjectMeta> = loop {
            tries -= 1;
            match self.objects.list(Some(&location)).try_collect().await {
                Ok(metas) => break metas,
                // The store retries failed requests itself, but not an answer that breaks off.
                Err(object_store::Error::Generic { .. }) if tries > 0 && self.transfer == Transfer::Parts => {
                    tokio::time::sleep(LISTING_PAUSE).await;
                }
                Err(error) => return Err(self.failed(prefix, error)),
            }
        };
        let mut found: Vec<_> = metas.iter().map(|meta| self.info(meta)).collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Writes an object and replaces an existing one. Readers see the old content or the new one, never a part.
    pub async fn put(&self, path: &str, content: Bytes) -> Result<()> {
        let payload = PutPayload::from_bytes(content);
        self.objects.put(&self.location(path)?, payload).await.map_err(|e| self.failed(path, e))?;
        Ok(())
    }

    /// Writes an object unless it exists. Of any number of writers, exactly one gets [`Created::Written`].
    pub async fn create(&self, path: &str, content: Bytes) -> Result<Created> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from_bytes(content);
        match self.objects.put_opts(&self.location(path)?, payload, options).await {
            Ok(_) => Ok(Created::Written),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Created::AlreadyThere),
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// Removes an object. A missing object is not an error.
    pub async fn delete(&self, path: &str) -> Result<()> {
        match self.objects.delete(&self.location(path)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// Returns the size of an object, and its bytes piece by piece.
    #[cfg(feature = "shards")]
    pub(crate) async fn stream(&self, path: &str) -> Result<(u64, crate::byte_stream::ByteStream)> {
        use crate::byte_stream::{ByteStream, parts};
        use object_store::GetResultPayload;
        let location = self.location(path)?;
        let meta = match self.transfer {
            Transfer::Whole => None,
            Transfer::Parts => Some(self.objects.head(&location).await.map_err(|e| self.failed(path, e))?),
            Transfer::PartsIfAble => match self.objects.head(&location).await {
                Ok(meta) if meta.e_tag.is_some() && meta.size > 0 => {
                    let first = self.objects.get_range(&location, 0..1).await;
                    first.is_ok().then_some(meta)
                }
                _ => None,
            },
        };
        if let Some(meta) = meta {
            let bytes = meta.size;
            let stream = parts(Arc::clone(&self.objects), meta);
            return Ok((bytes, ByteStream::Remote(stream, self.clone(), path.to_owned())));
        }
        let result = self.objects.get(&location).await.map_err(|e| self.failed(path, e))?;
        let bytes = result.meta.size;
        Ok((
            bytes,
            match result.payload {
                GetResultPayload::File(file, _) => ByteStream::File(file, self.describe(path)),
                GetResultPayload::Stream(stream) => ByteStream::Remote(stream, self.clone(), path.to_owned()),
            },
        ))
    }

    /// Returns the object store, for requests for parts of an object.
    #[cfg(feature = "shards")]
    pub(crate) fn objects(&self) -> &dyn ObjectStore {
        &*self.objects
    }

    pub(crate) fn location(&self, path: &str) -> Result<Path> {
        let path = Path::parse(path).map_err(|e| bad_url(&self.describe(path), &e.to_string()))?;
        Ok(self.prefix.parts().chain(path.parts()).collect())
    }

    fn info(&self, meta: &ObjectMeta) -> ObjectInfo {
        let full = meta.location.as_ref();
        let path = full.strip_prefix(self.prefix.as_ref()).unwrap_or(full).trim_start_matches('/');
        ObjectInfo {
            path: path.to_owned(),
            bytes: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
            e_tag: meta.e_tag.clone(),
        }
    }

    /// Makes an error of the store's error, without the secrets of its URL, which servers may repeat.
    pub(crate) fn failed(&self, path: &str, error: object_store::Error) -> Error {
        let path = self.describe(path);
        if let object_store::Error::NotFound { .. } = error {
            return Error::NotFound { path };
        }
        // The Hub's own errors already name their object and give advice.
        let error = match error {
            object_store::Error::Generic { store, source } => match source.downcast::<Error>() {
                Ok(error) => return *error,
                Err(source) => object_store::Error::Generic { store, source },
            },
            other => other,
        };
        let mut text = with_causes(&error);
        for secret in self.secrets.iter() {
            text = text.replace(secret.as_str(), "…");
        }
        #[cfg(feature = "cloud")]
        if let Some(advice) = cloud::without_keys(&path, &text) {
            text = advice;
        }
        Error::Store { path, source: text.into() }
    }
}

/// Returns an error's text with the texts of its causes, each once. The innermost is often the operating system's.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}
