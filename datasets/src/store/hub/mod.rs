//! Reads repositories of the Hugging Face Hub: `hf://owner/name[@revision]`. Files are downloaded once, into the cache
//! that `huggingface_hub` uses.
//!
//! This client exists because the `hf-hub` crate adds the Xet protocol with 200 crates and has no offline mode.

mod cache;
mod client;
mod name;
mod objects;
mod settings;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use reqwest::StatusCode;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::OnceCell;

use self::cache::RepoCache;
use self::client::{Client, Sibling, describe, unreachable};
use self::name::RepoName;
pub(super) use self::objects::HubObjects;
use self::settings::Settings;
use super::ObjectInfo;
use crate::{Error, Result};

/// The number of failed downloads in a row without progress before giving up.
const FRUITLESS: u32 = 5;

/// A repository at a revision.
#[derive(Debug)]
pub(super) struct HubRepo {
    name: RepoName,
    cache: RepoCache,
    client: Client,
    /// The repository at its commit, with its list of files.
    resolved: OnceCell<Resolved>,
}

#[derive(Debug)]
struct Resolved {
    name: RepoName,
    commit: String,
    /// The files, or `None` if only the cache is known.
    files: Option<Vec<Sibling>>,
}

impl HubRepo {
    /// Parses an `hf://` URL into its repository and the path inside it, with the Hub's settings from the environment.
    /// No request is sent.
    pub(super) fn open(url: &str, variable: impl Fn(&str) -> Option<String>) -> Result<(Arc<Self>, String)> {
        let (name, path) = RepoName::parse(url).map_err(|reason| super::open::bad_url(url, &reason))?;
        let settings = Settings::of(variable);
        let repo = Self {
            cache: RepoCache::of(&settings.cache, &name),
            client: Client::new(settings)?,
            name,
            resolved: OnceCell::new(),
        };
        Ok((Arc::new(repo), path))
    }

    /// Returns the repository's URL with its commit, whose content never changes.
    pub(super) async fn pinned(&self) -> Result<String> {
        Ok(self.resolved().await?.name.to_string())
    }

    /// Returns the cache folder that holds the files that were read.
    pub(super) async fn folder(&self) -> Result<PathBuf> {
        Ok(self.cache.snapshot(&self.resolved().await?.commit))
    }

    /// Lists the files.
    pub(super) async fn list(&self) -> Result<Vec<ObjectInfo>> {
        let resolved = self.resolved().await?;
        let Some(files) = &resolved.files else {
            let files = self.cache.files(&resolved.commit).into_iter();
            return Ok(files.map(|(path, bytes)| object(path, bytes, None)).collect());
        };
        let mut found = Vec::with_capacity(files.len());
        for file in files {
            let bytes = match file.size {
                Some(bytes) => bytes,
                // A mirror may not send the size; the file has it.
                None => self.client.file_info(&resolved.name, &file.path).await?.bytes.unwrap_or(0),
            };
            found.push(object(file.path.clone(), bytes, file.blob.clone()));
        }
        Ok(found)
    }

    /// Describes one file; `None` if it does not exist.
    pub(super) async fn head(&self, path: &str) -> Result<Option<ObjectInfo>> {
        Ok(self.list().await?.into_iter().find(|object| object.path == path))
    }

    /// Reads a part of a file. A file that is not in the cache is not added to it.
    pub(super) async fn part(&self, path: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
        let resolved = self.resolved().await?;
        match self.cache.file(&resolved.commit, path) {
            Some(file) => {
                let name = describe(&self.name, path);
                let read = move || read_part(&file, range);
                blocking(&name, read).await
            }
            None => self.client.part(&resolved.name, path, range.start, range.end).await,
        }
    }

    /// Returns the path of a file on this machine, downloaded if it was not there.
    pub(super) async fn file(&self, path: &str) -> Result<PathBuf> {
        let resolved = self.resolved().await?;
        if let Some(file) = self.cache.file(&resolved.commit, path) {
            return Ok(file);
        }
        let what = describe(&resolved.name, path);
        let Some(files) = &resolved.files else {
            return Err(offline(&what));
        };
        if !files.iter().any(|file| file.path == path) {
            return Err(Error::NotFound { path: what });
        }
        let info = self.client.file_info(&resolved.name, path).await?;
        let tag = info
            .tag
            .as_deref()
            .filter(|tag| is_file_name(tag))
            .map_or_else(|| crate::manifest::sha256_hex(what.as_bytes()), str::to_owned);
        let (cache, locked) = (self.cache.clone(), tag.clone());
        let lock = blocking(&what, move || cache.lock(&locked)).await?;
        if !self.cache.blob(&tag).is_file() {
            self.download(&resolved.name, path, &tag, info.bytes).await?;
        }
        drop(lock);
        let (cache, commit, path) = (self.cache.clone(), resolved.commit.clone(), path.to_owned());
        blocking(&what, move || cache.link(&commit, &path, &tag)).await
    }

    async fn resolved(&self) -> Result<&Resolved> {
        self.resolved.get_or_try_init(|| self.resolve()).await
    }

    async fn resolve(&self) -> Result<Resolved> {
        let revision = self.name.revision();
        let at = |commit: String, files| Resolved {
            name: RepoName { revision: Some(commit.clone()), ..self.name.clone() },
            commit,
            files,
        };
        let cached = || self.cache.commit_of(revision);
        if self.client.settings().offline {
            let commit = cached().ok_or_else(|| offline(&self.name.to_string()))?;
            return Ok(at(commit, None));
        }
        match self.client.repo(&self.name).await {
            Ok(info) if name::is_commit(&info.sha) => {
                if self.name.commit().is_none() {
                    let remembered = self.cache.remember(revision, &info.sha);
                    remembered.map_err(|e| self.disk(&self.name.to_string(), &e))?;
                }
                Ok(at(info.sha, Some(info.siblings)))
            }
            Ok(info) => Err(Error::Content {
                path: self.name.to_string(),
                reason: format!("the Hub names a commit {:?}, which is none", info.sha),
            }),
            // If the Hub can't be reached, the cached files are used.
            Err(error @ Error::Store { .. }) => match cached() {
                Some(commit) => {
                    tracing::warn!("{error}; going on with what the cache has of {}", self.name);
                    Ok(at(commit, None))
                }
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    async fn download(&self, repo: &RepoName, path: &str, tag: &str, bytes: Option<u64>) -> Result<()> {
        let what = describe(repo, path);
        let blob = self.cache.blob(tag);
        let part = blob.with_file_name(format!("{tag}.incomplete"));
        let disk = |e: io::Error| self.disk(&what, &e);
        let folder = blob.parent().unwrap_or(&blob);
        tokio::fs::create_dir_all(folder).await.map_err(disk)?;
        tracing::info!(bytes, "downloading {what}");
        let options = tokio::fs::File::options().create(true).append(true).open(&part).await;
        let mut file = options.map_err(disk)?;
        let mut have = file.metadata().await.map_err(disk)?.len();
        let mut fruitless = 0;
        while bytes != Some(have) {
            if bytes.is_some_and(|bytes| have > bytes) {
                file.set_len(0).await.map_err(disk)?;
                have = 0;
            }
            let before = have;
            let mut response = self.client.file(repo, path, have, None).await?;
            if have > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
                file.set_len(0).await.map_err(disk)?;
                have = 0;
            }
            let broken = loop {
                match response.chunk().await {
                    Ok(Some(chunk)) => {
                        file.write_all(&chunk).await.map_err(disk)?;
                        have += chunk.len() as u64;
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            match broken {
                None if bytes.is_none_or(|bytes| bytes == have) => break,
                None => fruitless += 1,
                Some(_) if have > before => fruitless = 0,
                Some(error) if fruitless == FRUITLESS => return Err(unreachable(&what, &error)),
                Some(_) => fruitless += 1,
            }
            if fruitless > FRUITLESS {
                return Err(Error::Content {
                    path: what.clone(),
                    reason: format!("the Hub sent {have} bytes where it had announced {}", bytes.unwrap_or(0)),
                });
            }
        }
        file.sync_all().await.map_err(disk)?;
        self.keep(&what, part, blob, tag).await
    }

    /// Turns a complete download into the blob, if its content matches the tag.
    async fn keep(&self, what: &str, part: PathBuf, blob: PathBuf, tag: &str) -> Result<()> {
        let expected = (tag.len() == 64).then(|| tag.to_owned());
        let whole = blocking(what, move || {
            if let Some(expected) = expected
                && sha256_of(&part)? != expected
            {
                std::fs::remove_file(&part)?;
                return Ok(false);
            }
            std::fs::rename(&part, &blob).map(|()| true)
        });
        if whole.await? {
            return Ok(());
        }
        Err(Error::Content {
            path: what.to_owned(),
            reason: "differs from what the Hub says it is (another SHA-256): submit the job again to download it anew"
                .into(),
        })
    }

    fn disk(&self, what: &str, error: &io::Error) -> Error {
        Error::Store {
            path: what.to_owned(),
            source: format!(
                "can't be kept in the Hub's cache {} ({error}): HF_HOME or HF_HUB_CACHE name another place",
                self.client.settings().cache.display()
            )
            .into(),
        }
    }
}

fn object(path: String, bytes: u64, e_tag: Option<String>) -> ObjectInfo {
    ObjectInfo { path, bytes, modified_ms: 0, e_tag }
}

fn offline(what: &str) -> Error {
    Error::Url {
        url: what.to_owned(),
        reason: "is not in the Hub's cache, and the Hub is not asked (HF_HUB_OFFLINE is set, or it can't be reached): \
                 download it once where it can be reached, or unset the variable"
            .into(),
    }
}

fn is_file_name(tag: &str) -> bool {
    let plain = tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    plain && !tag.is_empty() && !tag.starts_with('.') && tag.len() <= 200
}

async fn blocking<T: Send + 'static>(what: &str, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|e| Err(io::Error::other(e)));
    done.map_err(|e| Error::Store { path: what.to_owned(), source: e.into() })
}

fn read_part(file: &Path, range: std::ops::Range<u64>) -> io::Result<Bytes> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(file)?;
    let end = range.end.min(file.metadata()?.len());
    let mut content = vec![0; end.saturating_sub(range.start) as usize];
    file.read_exact_at(&mut content, range.start)?;
    Ok(content.into())
}

fn sha256_of(file: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut std::fs::File::open(file)?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
