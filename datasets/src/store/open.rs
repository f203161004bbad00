//! Opens the store behind a URL or path.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use url::Url;

use super::traced::traced;
use super::{Store, Transfer};
use crate::shown::is_withheld;
use crate::{Error, Result};

const CLOUD_SCHEMES: [&str; 10] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "hf", "http", "https"];

/// The stores named `memory://name`, which live as long as the process.
static MEMORY: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// The stores that only this thread sees.
    static MOUNTED: RefCell<HashMap<String, Arc<dyn ObjectStore>>> = RefCell::default();
}

/// Returns the objects of `memory://name`.
fn in_memory(name: &str) -> Arc<dyn ObjectStore> {
    if let Some(mounted) = MOUNTED.with_borrow(|mounted| mounted.get(name).cloned()) {
        return mounted;
    }
    let mut stores = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::<InMemory>::clone(stores.entry(name.to_owned()).or_default())
}

impl Store {
    /// Opens a store. `url` is one of these:
    ///
    /// - a path, relative to the working folder or absolute, or `file://…`; the first write creates the folder
    /// - `memory://name`
    /// - with the `cloud` feature, `s3://`, `gs://` or `az://`, with credentials from the usual environment variables
    ///   (for S3 also from a profile of `~/.aws`)
    /// - with the `cloud` feature, `http(s)://` or `hf://`, which are read-only
    ///
    /// # Errors
    /// [`Error::Url`] for a scheme that is unknown or left out of this build, and for a URL that can't be requested.
    pub fn open(url: &str) -> Result<Self> {
        Self::open_with(url, std::env::vars())
    }

    /// Does the same as [`Store::open`], with the given options of a cloud store (`AWS_…`, `GOOGLE_…`, `AZURE_…`)
    /// instead of the environment.
    pub fn open_with(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        check_whole(url)?;
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
                let objects = in_memory(name);
                let prefix = Path::parse(prefix).map_err(|e| bad_url(url, &e.to_string()))?;
                Ok(Self::with_objects(url, objects, prefix, Transfer::Whole))
            }
            Some(("http" | "https", _)) => Self::open_web(url),
            #[cfg(feature = "cloud")]
            Some(("hf", _)) => Self::open_hub(url, options),
            Some((scheme, _)) if !CLOUD_SCHEMES.contains(&scheme) => Err(unknown_scheme(url, scheme)),
            Some((scheme, _)) => Self::open_cloud(url, scheme, options),
        }
    }

    /// Replaces the objects of `memory://name` for stores that this thread opens from then on. Tests pass in objects that
    /// fail or are slow.
    pub fn mount(name: &str, objects: Arc<dyn ObjectStore>) {
        MOUNTED.with_borrow_mut(|mounted| mounted.insert(name.to_owned(), objects));
    }

    /// Splits the URL or path of one object into the store that holds it and its name there. The query of a web address
    /// is sent with every request.
    ///
    /// # Errors
    /// Those of [`Store::open`], and [`Error::Url`] if no name follows the last `/`.
    pub fn open_object(url: &str) -> Result<(Self, String)> {
        Self::open_object_with(url, std::env::vars())
    }

    /// Does the same as [`Store::open_object`], with options as in [`Store::open_with`].
    pub fn open_object_with(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<(Self, String)> {
        check_whole(url)?;
        let address = without_query(url);
        let (parent, name) = match address.rsplit_once('/') {
            Some(("", name)) => ("/", name),
            Some(("file://", name)) => ("file:///", name),
            Some((parent, _)) if parent.ends_with(":/") || parent.ends_with(':') => {
                return Err(bad_url(url, "names no object; write scheme://place/name"));
            }
            Some((parent, name)) => (parent, name),
            None => (".", address),
        };
        if name.is_empty() {
            return Err(bad_url(url, "is a folder; name one file in it"));
        }
        let store = if is_web(url) { Self::open_web_file(url, parent)? } else { Self::open_with(parent, options)? };
        Ok((store, object_name(url)))
    }

    fn open_folder(url: &str, folder: &FsPath) -> Result<Self> {
        let folder = std::path::absolute(folder).map_err(|e| bad_url(url, &e.to_string()))?;
        // `absolute` keeps `..`, which object paths may not hold.
        let folder = without_dots(&folder);
        let prefix = Path::from_absolute_path(&folder).map_err(|e| bad_url(url, &e.to_string()))?;
        let objects = Arc::new(LocalFileSystem::new().with_fsync(true));
        Ok(Self { local: Some(folder.into()), ..Self::with_objects(url, objects, prefix, Transfer::Whole) })
    }

    pub(super) fn with_objects(url: &str, objects: Arc<dyn ObjectStore>, prefix: Path, transfer: Transfer) -> Self {
        Self {
            objects: traced(url, objects),
            prefix,
            url: without_query(url).trim_end_matches('/').into(),
            local: None,
            transfer,
            secrets: [].into(),
            #[cfg(feature = "cloud")]
            hub: None,
        }
    }

    #[cfg(feature = "cloud")]
    fn open_hub(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        use super::hub::{HubObjects, HubRepo};
        let options: HashMap<String, String> = options.into_iter().collect();
        let (repo, path) = HubRepo::open(url, |name| options.get(name).cloned())?;
        let prefix = Path::parse(path).map_err(|e| bad_url(url, &e.to_string()))?;
        let objects = Arc::new(HubObjects(Arc::clone(&repo)));
        Ok(Self { hub: Some(repo), ..Self::with_objects(url, objects, prefix, Transfer::Whole) })
    }

    #[cfg(not(feature = "cloud"))]
    fn open_web(url: &str) -> Result<Self> {
        Self::open_cloud(url, url.split("://").next().unwrap_or_default(), [])
    }

    #[cfg(not(feature = "cloud"))]
    fn open_web_file(url: &str, _: &str) -> Result<Self> {
        Self::open_web(url)
    }

    #[cfg(not(feature = "cloud"))]
    fn open_cloud(url: &str, scheme: &str, _: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let reason = format!("{scheme}:// is left out of this build; build with `--features cloud`");
        Err(bad_url(url, &reason))
    }
}

/// Refuses a URL of which a part was withheld.
fn check_whole(url: &str) -> Result<()> {
    match is_withheld(url) {
        false => Ok(()),
        true => Err(bad_url(
            url,
            "its query was kept in the coordinator's memory only, and the coordinator was started anew: submit the job \
             again, and it goes on from what is finished",
        )),
    }
}

fn is_web(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("https://")
}

/// Returns the name of the file or object behind a URL or path: the part after the last `/`. Web addresses and file
/// URLs are decoded, and the query of a web address is left out.
#[must_use]
pub fn object_name(url: &str) -> String {
    let name = without_query(url).trim_end_matches('/').rsplit('/').next().unwrap_or(url);
    match is_web(url) || url.starts_with("file://") {
        true => Path::from_url_path(name).map_or_else(|_| name.to_owned(), |path| path.to_string()),
        false => name.to_owned(),
    }
}

/// Returns a web address without its query, and any other URL unchanged.
#[must_use]
pub fn without_query(url: &str) -> &str {
    let end = url.find(['?', '#']).filter(|_| is_web(url));
    &url[..end.unwrap_or(url.len())]
}

pub(super) fn bad_url(url: &str, reason: &str) -> Error {
    Error::Url { url: url.to_owned(), reason: reason.to_owned() }
}

fn unknown_scheme(url: &str, scheme: &str) -> Error {
    bad_url(url, &format!("{scheme}:// is not known; use a path, file, memory, s3, gs, az, hf, http or https"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths_and_urls() {
        for (url, name) in [
            ("/data/a b%20.tsv", "a b%20.tsv"),
            ("a.tsv.gz", "a.tsv.gz"),
            ("file:///data/a%20b.tsv", "a b.tsv"),
            ("s3://bucket/deep/a%20b#c?d.tsv", "a%20b#c?d.tsv"),
            ("https://host/d/a%20b.tsv.gz?download=true&path=x/y#top", "a b.tsv.gz"),
            ("memory://x/a?b", "a?b"),
        ] {
            assert_eq!(object_name(url), name, "{url}");
        }
    }
}
