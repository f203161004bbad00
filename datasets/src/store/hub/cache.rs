//! The cache of the Hub on this machine, in the layout of `huggingface_hub`, which shares it. `refs/` maps names to
//! commits, `blobs/` holds contents, and `snapshots/COMMIT/` links to blobs.

use std::io;
use std::path::{Path, PathBuf};

use super::name::{RepoName, is_commit};

/// The part of the cache that belongs to one repository.
#[derive(Debug, Clone)]
pub(super) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn of(cache: &Path, repo: &RepoName) -> Self {
        let name = format!("{}--{}--{}", repo.kind.plural(), repo.owner, repo.name);
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// Returns the folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Returns the commit of a revision at the last request.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return self.snapshot(revision).is_dir().then(|| revision.to_owned());
        }
        let commit = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        let commit = commit.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// Saves the commit of a revision.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> io::Result<()> {
        let file = self.folder.join("refs").join(revision);
        std::fs::create_dir_all(file.parent().unwrap_or(&file))?;
        std::fs::write(file, commit)
    }

    /// Returns the path of a commit's file, if the cache has it.
    pub(super) fn file(&self, commit: &str, path: &str) -> Option<PathBuf> {
        let file = self.snapshot(commit).join(path);
        file.is_file().then_some(file)
    }

    /// Returns all cached files of a commit with their sizes, by their paths in it.
    pub(super) fn files(&self, commit: &str) -> Vec<(String, u64)> {
        let root = self.snapshot(commit);
        let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let Ok(meta) = path.metadata() else { continue };
                if meta.is_dir() {
                    folders.push(path);
                } else if let Some(name) = path.strip_prefix(&root).ok().and_then(Path::to_str) {
                    found.push((name.to_owned(), meta.len()));
                }
            }
        }
        found.sort();
        found
    }

    /// Returns the path of the content with this tag. A download has `.incomplete` at the end of its name.
    pub(super) fn blob(&self, tag: &str) -> PathBuf {
        self.folder.join("blobs").join(tag)
    }

    /// Locks a blob during its download.
    pub(super) fn lock(&self, tag: &str) -> io::Result<std::fs::File> {
        std::fs::create_dir_all(&self.locks)?;
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.locks.join(format!("{tag}.lock")))?;
        file.lock()?;
        Ok(file)
    }

    /// Links the file of a commit to its blob, in one step.
    pub(super) fn link(&self, commit: &str, path: &str, tag: &str) -> io::Result<PathBuf> {
        let file = self.snapshot(commit).join(path);
        let folder = file.parent().unwrap_or(&file);
        std::fs::create_dir_all(folder)?;
        let up = "../".repeat(2 + path.matches('/').count());
        let staged = folder.join(format!(".{tag}.{}.link", std::process::id()));
        let _ = std::fs::remove_file(&staged);
        std::os::unix::fs::symlink(format!("{up}blobs/{tag}"), &staged)?;
        std::fs::rename(&staged, &file)?;
        Ok(file)
    }
}
