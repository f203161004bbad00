//! The errors of corpora, shards and object stores.

use crate::shown::{ShownUrl, redacted};

/// An error of this crate. Each text names the object, row or key. No text holds credentials of a URL, whether the
/// error names that URL or a reason or cause repeats it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A URL that cannot be opened: its scheme is unknown or not in this build, or a part is missing.
    #[error("{}: {}", ShownUrl::of(url), redacted(reason))]
    Url {
        /// The URL as given.
        url: String,
        /// The reason, and what to write instead.
        reason: String,
    },
    /// The object or file does not exist.
    #[error("{}: no such file or object", ShownUrl::of(path))]
    NotFound {
        /// The path or URL.
        path: String,
    },
    /// The store refused or failed, for example for missing permissions, a full disk or a network fault.
    #[error("{}: {}", ShownUrl::of(path), redacted(&source.to_string()))]
    Store {
        /// The path or URL.
        path: String,
        /// The error of the store.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The content is invalid.
    #[error("{}: {}", ShownUrl::of(path), redacted(reason))]
    Content {
        /// The path or URL.
        path: String,
        /// The reason, with the row or the column if there is one.
        reason: String,
    },
}

impl Error {
    /// Returns the exit code of a program that this error ends. `docs/running.md` documents the codes.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Url { .. } => 2,
            Self::NotFound { .. } | Self::Content { .. } => 3,
            Self::Store { .. } => 4,
        }
    }
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;
