//! Parses the Hub's addresses: `hf://owner/name[@revision][/path]`, and `hf://datasets/…` for data sets.

use std::fmt;

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RepoName {
    pub(super) kind: RepoKind,
    pub(super) owner: String,
    pub(super) name: String,
    pub(super) revision: Option<String>,
}

/// The supported kinds of repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RepoKind {
    Model,
    Dataset,
}

impl RepoKind {
    /// Returns the name in the Hub's API and in the names of cached folders.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// Returns what precedes the owner in addresses.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

impl RepoName {
    /// Parses an `hf://` URL into its repository and the path inside it, which is empty for the whole repository.
    pub(super) fn parse(url: &str) -> Result<(Self, String), String> {
        let expected = "write hf://owner/name, hf://owner/name@revision, or hf://datasets/owner/name/path/to/file";
        let rest = url.strip_prefix("hf://").ok_or(expected)?;
        let mut parts = rest.split('/').filter(|part| !part.is_empty()).peekable();
        let kind = match parts.peek() {
            Some(&"datasets") => RepoKind::Dataset,
            Some(&"spaces") => return Err(format!("a space holds neither models nor texts; {expected}")),
            _ => RepoKind::Model,
        };
        if matches!(parts.peek(), Some(&("datasets" | "models"))) {
            parts.next();
        }
        let (Some(owner), Some(name)) = (parts.next(), parts.next()) else {
            return Err(format!("names no repository; {expected}"));
        };
        let (name, revision) = match name.split_once('@') {
            None => (name, None),
            // The Hub's own references are written unchanged; other slashes become %2F.
            Some((name, "refs")) => {
                let [kind, of] = [parts.next(), parts.next()].map(Option::unwrap_or_default);
                (name, Some(format!("refs/{kind}/{of}")))
            }
            Some((name, revision)) => (name, Some(revision.replace("%2F", "/").replace("%2f", "/"))),
        };
        if !is_plain(owner) || !is_plain(name) {
            return Err(format!("names no repository; {expected}"));
        }
        if revision.as_deref().is_some_and(|r| !r.split('/').all(is_plain)) {
            return Err("its revision is not a branch, tag or commit".into());
        }
        let path: Vec<&str> = parts.collect();
        if path.iter().any(|part| matches!(*part, "." | "..")) {
            return Err("a path in a repository holds no `.` or `..`".into());
        }
        let repo = Self { kind, owner: owner.into(), name: name.into(), revision };
        Ok((repo, path.join("/")))
    }

    /// Returns the name without the revision.
    pub(super) fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// Returns the revision, or the default branch if none is given.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Returns the revision if it is a commit, whose content never changes.
    pub(super) fn commit(&self) -> Option<&str> {
        self.revision.as_deref().filter(|revision| is_commit(revision))
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://{}{}", self.kind.prefix(), self.id())?;
        match &self.revision {
            Some(revision) if revision.starts_with("refs/") => write!(f, "@{revision}"),
            Some(revision) => write!(f, "@{}", revision.replace('/', "%2F")),
            None => Ok(()),
        }
    }
}

pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Returns true if a part of a name is safe as a part of a path.
fn is_plain(part: &str) -> bool {
    let letters = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    letters && !part.is_empty() && !part.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_hub_writes_them() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (url, shown, path) in [
            ("hf://intfloat/multilingual-e5-small", "hf://intfloat/multilingual-e5-small", ""),
            ("hf://models/a/b@v1.0/", "hf://a/b@v1.0", ""),
            ("hf://datasets/a/b@main/data/x y.parquet", "hf://datasets/a/b@main", "data/x y.parquet"),
            (
                "hf://datasets/a/b@refs/convert/parquet/default/0.parquet",
                "hf://datasets/a/b@refs/convert/parquet",
                "default/0.parquet",
            ),
            ("hf://a/b@dev%2Fx/model.gguf", "hf://a/b@dev%2Fx", "model.gguf"),
        ] {
            let (repo, within) = RepoName::parse(url).unwrap();
            assert_eq!((repo.to_string().as_str(), within.as_str()), (shown, path), "{url}");
            assert_eq!(RepoName::parse(&repo.to_string()).unwrap().0, repo, "{url}");
        }
        let (pinned, _) = RepoName::parse(&format!("hf://a/b@{commit}")).unwrap();
        assert_eq!(pinned.commit(), Some(commit));
        for url in [
            "hf://",
            "hf://gpt2",
            "hf://datasets/a",
            "hf://spaces/a/b",
            "hf://a/..",
            "hf://../b",
            "hf://a/b@",
            "hf://a/b@../x",
            "hf://a/b@refs",
            "hf://a/b/../c",
            "hf://a b/c",
        ] {
            assert!(RepoName::parse(url).is_err(), "{url}");
        }
    }
}
