//! What can go wrong with a corpus, a shard or an object store.

use crate::shown::{ShownUrl, redacted};

/// An error of this crate. Every text names the object, row or key it is about, and holds nothing that authenticates a
/// URL: neither of the URL that it names nor of those that a reason or a cause holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A URL that cannot be opened at all: unknown scheme, missing part, a scheme this build leaves out.
    #[error("{}: {}", ShownUrl::of(url), redacted(reason))]
    Url {
        /// The URL as given.
        url: String,
        /// What is wrong with it and what to write instead.
        reason: String,
    },
    /// The object or file is not there.
    #[error("{}: no such file or object", ShownUrl::of(path))]
    NotFound {
        /// The path or URL.
        path: String,
    },
    /// The store refused or failed: permissions, disk full, network.
    #[error("{}: {}", ShownUrl::of(path), redacted(&source.to_string()))]
    Store {
        /// The path or URL.
        path: String,
        /// What the store said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The content is not what it should be.
    #[error("{}: {}", ShownUrl::of(path), redacted(reason))]
    Content {
        /// The path or URL.
        path: String,
        /// What is wrong, with the row or the column where there is one.
        reason: String,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
