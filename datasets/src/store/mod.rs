//! One store for every place: local disk, memory, S3, GCS, Azure, HTTP.
//!
//! A [`Store`] is a folder-like URL. Paths handed to it are relative to that URL and use `/`. Local writes are atomic
//! (staged, then renamed) and reach the disk before the call returns, so that an object that can be seen is whole.

#[cfg(feature = "cloud")]
mod aws_profile;
#[cfg(feature = "cloud")]
mod cloud;
#[cfg(feature = "cloud")]
mod hub;
mod open;
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

use crate::{Error, Result};
use open::bad_url;
pub(crate) use open::without_dots;

/// A place that holds objects: a local folder, or a prefix in an object store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    url: Arc<str>,
    local: Option<Arc<FsPath>>,
    transfer: Transfer,
    /// What authenticates its URL, and must not be seen in what a server answers.
    secrets: Arc<[String]>,
    /// The repository of the Hugging Face Hub that it is; its objects are read from the Hub's cache on this machine.
    #[cfg(feature = "cloud")]
    hub: Option<Arc<hub::HubRepo>>,
}

/// How an object is read from its first byte to its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfer {
    /// As one stream.
    Whole,
    /// Part by part, each a request with retries and a deadline of its own: a connection over which gigabytes come while
    /// they are cleaned breaks sooner or later.
    Parts,
    /// Part by part where the server can do that and says by a tag that all are of the same object.
    #[cfg_attr(
        not(feature = "shards"),
        expect(dead_code, reason = "only corpora lie on web servers")
    )]
    PartsIfAble,
}

/// How often a listing whose answer breaks off is asked for, and how long is waited between.
const LISTING_TRIES: u32 = 5;
const LISTING_PAUSE: Duration = Duration::from_millis(250);

/// What a store knows about one object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Relative to the store.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// When it was written, in milliseconds since the Unix epoch.
    pub modified_ms: i64,
    /// The store's tag of this content, where it has one.
    pub e_tag: Option<String>,
}

/// What [`Store::create`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object was written by this call.
    Written,
    /// Another writer was first; its content stands untouched.
    AlreadyThere,
}

impl Store {
    /// The URL or path that the store was opened with, without a trailing `/` and a web address's query.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where an object lies on the local disk; `None` for stores that are elsewhere.
    #[must_use]
    pub fn local_path(&self, path: &str) -> Option<PathBuf> {
        self.local.as_ref().map(|folder| folder.join(path))
    }

    /// How errors and warnings name an object of this store.
    #[must_use]
    pub fn describe(&self, path: &str) -> String {
        if path.is_empty() {
            self.url.to_string()
        } else {
            format!("{}/{path}", self.url)
        }
    }

    /// The URL with what it means today: an `hf://` URL with its commit, any other as it is.
    ///
    /// # Errors
    /// [`Error::Url`] when there is no such repository or revision, or nobody may read it; [`Error::Store`] when the Hub
    /// can't be reached.
    pub async fn pinned(url: &str) -> Result<String> {
        match url.starts_with("hf://") {
            true => Self::open(url)?.pinned_url().await,
            false => Ok(url.to_owned()),
        }
    }

    /// As [`Store::pinned`], of a store that is open.
    ///
    /// # Errors
    /// As [`Store::pinned`].
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

    /// The folder on this machine in which the objects lie that were read: that of a local store, and that in the Hub's
    /// cache of an `hf://` URL, where [`Store::get`] and [`Store::keep`] bring them. `None` for other stores.
    ///
    /// # Errors
    /// Those of [`Store::pinned`].
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

    /// Brings an object of an `hf://` URL into the Hub's cache; of other stores, does nothing.
    ///
    /// # Errors
    /// As [`Store::get`].
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
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Store`] with what the store said.
    pub async fn get(&self, path: &str) -> Result<Bytes> {
        let result = self
            .objects
            .get(&self.location(path)?)
            .await
            .map_err(|e| self.failed(path, e))?;
        result.bytes().await.map_err(|e| self.failed(path, e))
    }

    /// Reads a part of an object; what lies beyond its end is left out. The rest is not fetched.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn get_range(&self, path: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
        let location = self.location(path)?;
        #[cfg(feature = "cloud")]
        if let Some(hub) = &self.hub {
            return hub.part(location.as_ref(), range).await;
        }
        let read = self.objects.get_range(&location, range).await;
        read.map_err(|e| self.failed(path, e))
    }

    /// What the store knows about an object; `None` where it is not there.
    ///
    /// # Errors
    /// [`Error::Store`] with what the store said.
    pub async fn head(&self, path: &str) -> Result<Option<ObjectInfo>> {
        match self.objects.head(&self.location(path)?).await {
            Ok(meta) => Ok(Some(self.info(&meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// All objects under a folder (the empty prefix lists the whole store), sorted by path. None is no error.
    ///
    /// # Errors
    /// [`Error::Store`] with what the store said.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let location = self.location(prefix)?;
        let mut tries = LISTING_TRIES;
        let metas: Vec<ObjectMeta> = loop {
            tries -= 1;
            match self.objects.list(Some(&location)).try_collect().await {
                Ok(metas) => break metas,
                // Requests are tried again below this, but not an answer that is cut off.
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

    /// Writes an object, replacing what was there. Readers see the old content or the new one, never a part.
    ///
    /// # Errors
    /// [`Error::Store`] with what the store said: disk full, permissions, network.
    pub async fn put(&self, path: &str, content: Bytes) -> Result<()> {
        let payload = PutPayload::from_bytes(content);
        self.objects
            .put(&self.location(path)?, payload)
            .await
            .map_err(|e| self.failed(path, e))?;
        Ok(())
    }

    /// Writes an object unless there is one already: of any number of writers exactly one gets [`Created::Written`].
    ///
    /// # Errors
    /// [`Error::Store`] with what the store said.
    pub async fn create(&self, path: &str, content: Bytes) -> Result<Created> {
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        let payload = PutPayload::from_bytes(content);
        match self.objects.put_opts(&self.location(path)?, payload, options).await {
            Ok(_) => Ok(Created::Written),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Created::AlreadyThere),
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// [`Error::Store`] with what the store said.
    pub async fn delete(&self, path: &str) -> Result<()> {
        match self.objects.delete(&self.location(path)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// An object's bytes, piece by piece, and its size.
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

    /// What is asked for parts of an object.
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
        let path = full
            .strip_prefix(self.prefix.as_ref())
            .unwrap_or(full)
            .trim_start_matches('/');
        ObjectInfo {
            path: path.to_owned(),
            bytes: meta.size,
            modified_ms: meta.last_modified.timestamp_millis(),
            e_tag: meta.e_tag.clone(),
        }
    }

    /// What the store said of an object, without what authenticates its URL: servers repeat it.
    pub(crate) fn failed(&self, path: &str, error: object_store::Error) -> Error {
        let path = self.describe(path);
        if let object_store::Error::NotFound { .. } = error {
            return Error::NotFound { path };
        }
        // The Hub's own errors name what they are about, and what to do.
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
        Error::Store {
            path,
            source: text.into(),
        }
    }
}

/// An error's text with the texts of its causes, each once: the operating system's words are often the innermost.
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
