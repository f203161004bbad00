//! One store for every place: local disk, memory, S3, GCS, Azure, HTTP.
//!
//! A [`Store`] is a folder-like URL. Paths handed to it are relative to that URL and use `/`. Local writes are atomic
//! (staged, then renamed) and reach the disk before the call returns, so that an object that can be seen is whole.

use std::collections::HashMap;
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use url::Url;

use crate::{Error, Result};

/// A place that holds objects: a local folder, or a prefix in an object store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    url: Arc<str>,
    local: Option<Arc<FsPath>>,
}

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

/// Stores named `memory://name`, which live as long as the process.
static MEMORY: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);

impl Store {
    /// Opens a store. `url` is a path (relative to the working folder, or absolute; the folder is made on the first
    /// write), `file://…`, `memory://name`, or with the `cloud` feature `s3://`, `gs://`, `az://`, `http(s)://`, which
    /// take their credentials from the usual environment variables.
    ///
    /// # Errors
    /// [`Error::Url`] for a scheme that is unknown or left out of this build.
    pub fn open(url: &str) -> Result<Self> {
        Self::open_with(url, std::env::vars())
    }

    /// As [`Store::open`], with the options of a cloud store (`AWS_…`, `GOOGLE_…`, `AZURE_…`) from elsewhere than the
    /// environment.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        match url.split_once("://") {
            None if url.is_empty() => Err(bad_url(url, "is empty; write a folder or a URL")),
            None => Self::open_folder(url, FsPath::new(url)),
            Some(("file", _)) => {
                let parsed = Url::parse(url).map_err(|e| bad_url(url, &e.to_string()))?;
                let path = parsed
                    .to_file_path()
                    .map_err(|()| bad_url(url, "is not a local file; write file:///absolute/path"))?;
                Self::open_folder(url, &path)
            }
            Some(("memory", rest)) => {
                let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let mut stores = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
                let objects = Arc::clone(stores.entry(name.to_owned()).or_default());
                Self::with_objects(url, objects, prefix)
            }
            Some((scheme, _)) => Self::open_cloud(url, scheme, options),
        }
    }

    /// Splits the URL or path of one object into the store that holds it and its name there.
    ///
    /// # Errors
    /// As [`Store::open`], and [`Error::Url`] where there is no name after the last `/`.
    pub fn open_object(url: &str) -> Result<(Self, String)> {
        let (parent, name) = match url.rsplit_once('/') {
            Some(("", name)) => ("/", name),
            Some((parent, _)) if parent.ends_with(":/") || parent.ends_with(':') => {
                return Err(bad_url(url, "names no object; write scheme://place/name"));
            }
            Some((parent, name)) => (parent, name),
            None => (".", url),
        };
        if name.is_empty() {
            return Err(bad_url(url, "is a folder; name one file in it"));
        }
        // In a URL the name is percent-encoded as its folder is.
        let name = if url.starts_with("file://") {
            let path = Url::parse(url).ok().and_then(|u| u.to_file_path().ok());
            path.as_deref()
                .and_then(FsPath::file_name)
                .map_or_else(|| name.to_owned(), |n| n.to_string_lossy().into_owned())
        } else {
            name.to_owned()
        };
        let parent = if parent == "file://" { "file:///" } else { parent };
        Ok((Self::open(parent)?, name))
    }

    fn open_folder(url: &str, folder: &FsPath) -> Result<Self> {
        let folder = std::path::absolute(folder).map_err(|e| bad_url(url, &e.to_string()))?;
        // `absolute` keeps `..`; object paths may not hold it.
        let folder = without_dots(&folder);
        let prefix = Path::from_absolute_path(&folder).map_err(|e| bad_url(url, &e.to_string()))?;
        Ok(Self {
            objects: Arc::new(LocalFileSystem::new().with_fsync(true)),
            prefix,
            url: url.trim_end_matches('/').into(),
            local: Some(folder.into()),
        })
    }

    fn with_objects(url: &str, objects: Arc<dyn ObjectStore>, prefix: &str) -> Result<Self> {
        let prefix = Path::parse(prefix).map_err(|e| bad_url(url, &e.to_string()))?;
        Ok(Self {
            objects,
            prefix,
            url: url.trim_end_matches('/').into(),
            local: None,
        })
    }

    #[cfg(feature = "cloud")]
    fn open_cloud(url: &str, scheme: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        if !CLOUD_SCHEMES.contains(&scheme) {
            return Err(unknown_scheme(url, scheme));
        }
        let parsed = Url::parse(url).map_err(|e| bad_url(url, &e.to_string()))?;
        let options = options.into_iter().filter(|(key, _)| {
            ["AWS_", "GOOGLE_", "AZURE_"]
                .iter()
                .any(|prefix| key.starts_with(prefix))
        });
        let (objects, prefix) =
            object_store::parse_url_opts(&parsed, options).map_err(|e| bad_url(url, &with_causes(&e)))?;
        Self::with_objects(url, objects.into(), prefix.as_ref())
    }

    #[cfg(not(feature = "cloud"))]
    fn open_cloud(url: &str, scheme: &str, _: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        if CLOUD_SCHEMES.contains(&scheme) {
            let reason = format!("{scheme}:// is left out of this build; build with `--features cloud`");
            return Err(bad_url(url, &reason));
        }
        Err(unknown_scheme(url, scheme))
    }

    /// The URL or path that the store was opened with, without a trailing `/`.
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
        let metas: Vec<ObjectMeta> = self
            .objects
            .list(Some(&location))
            .try_collect()
            .await
            .map_err(|e| self.failed(prefix, e))?;
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
        use crate::byte_stream::ByteStream;
        use object_store::GetResultPayload;
        let result = self
            .objects
            .get(&self.location(path)?)
            .await
            .map_err(|e| self.failed(path, e))?;
        let bytes = result.meta.size;
        Ok((
            bytes,
            match result.payload {
                GetResultPayload::File(file, _) => ByteStream::File(file, self.describe(path)),
                GetResultPayload::Stream(stream) => ByteStream::Remote(stream, self.describe(path)),
            },
        ))
    }

    /// What a Parquet reader needs to read parts of an object.
    #[cfg(feature = "shards")]
    pub(crate) fn parts(&self, path: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
        Ok((Arc::clone(&self.objects), self.location(path)?))
    }

    fn location(&self, path: &str) -> Result<Path> {
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

    fn failed(&self, path: &str, error: object_store::Error) -> Error {
        store_error(self.describe(path), &error)
    }
}

const CLOUD_SCHEMES: [&str; 9] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https"];

fn bad_url(url: &str, reason: &str) -> Error {
    Error::Url {
        url: url.to_owned(),
        reason: reason.to_owned(),
    }
}

fn unknown_scheme(url: &str, scheme: &str) -> Error {
    bad_url(
        url,
        &format!("{scheme}:// is not known; use a path, file, memory, s3, gs, az, http or https"),
    )
}

pub(crate) fn store_error(path: String, error: &object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => Error::NotFound { path },
        other => Error::Store {
            path,
            source: with_causes(other).into(),
        },
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

pub(crate) fn without_dots(path: &FsPath) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}
