//! The audit log: one JSON object a line for every call but heartbeats, whoever made it and however it ended.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A log of this size is put aside as `….1`, and what lay there is dropped.
const KEPT_BYTES: u64 = 64 << 20;

/// An audit log that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("audit log {path}: {source}")]
pub struct AuditError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// A call, as it is noted.
#[derive(Debug, serde::Serialize)]
pub(super) struct Entry<'a> {
    /// Milliseconds since the Unix epoch.
    pub(super) at: i64,
    pub(super) who: &'a str,
    pub(super) role: &'a str,
    /// certificate, token, none.
    pub(super) by: &'a str,
    pub(super) from: &'a str,
    /// `JobService/Submit`.
    pub(super) call: &'a str,
    /// The job or the worker that it was about, where that is known.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) about: &'a str,
    /// `ok`, `denied`, or the code that gRPC has for it.
    pub(super) outcome: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) reason: &'a str,
}

/// The log.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    // Calls end on many threads, and a line is written in one piece.
    file: Mutex<(File, u64)>,
}

impl AuditLog {
    /// Opens the log, or makes one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let failed = |source| AuditError {
            path: path.into(),
            source,
        };
        let file = append_to(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(Self {
            path: path.into(),
            file: Mutex::new((file, bytes)),
        })
    }

    pub(super) fn note(&self, entry: &Entry<'_>) {
        if let Err(e) = self.try_note(entry) {
            tracing::error!(path = %self.path.display(), "the audit log cannot be written: {e}");
        }
    }

    fn try_note(&self, entry: &Entry<'_>) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, bytes) = &mut *guard;
        if *bytes + line.len() as u64 > KEPT_BYTES {
            let mut aside = self.path.clone().into_os_string();
            aside.push(".1");
            std::fs::rename(&self.path, aside)?;
            (*file, *bytes) = (append_to(&self.path)?, 0);
        }
        file.write_all(&line)?;
        *bytes += line.len() as u64;
        Ok(())
    }
}

fn append_to(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().create(true).append(true).mode(0o600).open(path)
}
