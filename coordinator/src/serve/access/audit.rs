//! The audit log. It has one line of JSON for every call but heartbeats, whoever made it and however it ended.
//!
//! Equal refused calls are counted and written together. Refused calls have their own share of the file, so that they
//! cannot displace the records of admitted calls.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The most bytes of admitted calls in a file. After that the file is renamed to `….1`, in place of the earlier one.
const KEPT_BYTES: u64 = 48 << 20;
/// The most bytes of refused calls in a file. Further ones are not written.
const REFUSED_BYTES: u64 = 16 << 20;
/// The time within which equal refused calls share a line.
const FOLDED_MS: i64 = 60_000;
/// The most kinds of refused calls that are counted separately.
const MOST_KINDS: usize = 1000;

#[derive(Debug, thiserror::Error)]
#[error("audit log {path}: {source}")]
pub struct AuditError {
    pub path: PathBuf,
    pub source: std::io::Error,
}

pub(super) const DENIED: &str = "denied";

#[derive(Debug, Clone, serde::Serialize)]
pub(super) struct Entry {
    /// The time in milliseconds since the Unix epoch. Several calls have the time of the last.
    pub(super) at: i64,
    pub(super) who: String,
    pub(super) role: &'static str,
    /// The proof of identity: `certificate`, `token` or `none`.
    pub(super) by: &'static str,
    pub(super) from: String,
    /// The name of the call, such as `JobService/Submit`.
    pub(super) call: String,
    /// The id of the job or the worker of the call, where it is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) about: String,
    /// The outcome: `ok`, `denied`, or gRPC's code.
    pub(super) outcome: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
}

#[derive(Debug, serde::Serialize)]
struct Folded {
    #[serde(flatten)]
    last: Entry,
    times: u64,
    since: i64,
}

/// The parts in which equal refused calls agree: caller, address, call and reason.
type Kind = (String, String, String, String);

#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    // Calls end on many threads, and each line must be written in one piece.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    kept: u64,
    refused: u64,
    /// The counts of each kind of refused calls since its last line, and the time of that line.
    folded: HashMap<Kind, (i64, Option<Folded>)>,
    full_was_told: bool,
}

impl AuditLog {
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let failed = |source| AuditError { path: path.into(), source };
        let file = append_to(path).map_err(failed)?;
        let (kept, refused) = shares(path).map_err(failed)?;
        Ok(Self {
            path: path.into(),
            state: Mutex::new(State { file, kept, refused, folded: HashMap::new(), full_was_told: false }),
        })
    }

    pub(super) fn note(&self, entry: Entry) {
        self.with(|state| match entry.outcome == DENIED {
            true => state.refuse(entry),
            false => state.keep(&self.path, &entry),
        });
    }

    /// Writes the refused calls that were held back for more than a minute before `now`.
    pub fn settle(&self, now: i64) {
        self.with(|state| state.settle(now - FOLDED_MS));
    }

    fn with(&self, f: impl FnOnce(&mut State) -> std::io::Result<()>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = f(&mut state) {
            tracing::error!(path = %self.path.display(), "the audit log cannot be written: {e}");
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.with(|state| state.settle(i64::MAX));
    }
}

impl State {
    fn keep(&mut self, path: &Path, entry: &Entry) -> std::io::Result<()> {
        let line = line_of(entry)?;
        if self.kept + line.len() as u64 > KEPT_BYTES {
            let mut aside = path.to_owned().into_os_string();
            aside.push(".1");
            std::fs::rename(path, aside)?;
            self.file = append_to(path)?;
            (self.kept, self.refused, self.full_was_told) = (0, 0, false);
        }
        self.file.write_all(&line)?;
        self.kept += line.len() as u64;
        Ok(())
    }

    /// Writes the first call of its kind, and holds the others back.
    fn refuse(&mut self, entry: Entry) -> std::io::Result<()> {
        let address = entry.from.rsplit_once(':').map_or(entry.from.as_str(), |(address, _)| address);
        let mut kind = (entry.who.clone(), address.to_owned(), entry.call.clone(), entry.reason.clone());
        if self.folded.len() >= MOST_KINDS && !self.folded.contains_key(&kind) {
            kind = Kind::default();
        }
        match self.folded.get_mut(&kind) {
            None => {
                self.folded.insert(kind, (entry.at, None));
                self.write_refused(&entry)
            }
            Some((_, held @ None)) => {
                let since = entry.at;
                *held = Some(Folded { last: entry, times: 1, since });
                Ok(())
            }
            Some((written, Some(held))) => {
                (held.last, held.times) = (entry, held.times + 1);
                if held.last.at - *written < FOLDED_MS {
                    return Ok(());
                }
                self.settle_kind(&kind)
            }
        }
    }

    /// Writes what is held back since before `before`, and forgets kinds without new calls.
    fn settle(&mut self, before: i64) -> std::io::Result<()> {
        let due = self.folded.iter().filter(|(_, (written, _))| *written <= before);
        let due: Vec<Kind> = due.map(|(kind, _)| kind.clone()).collect();
        for kind in due {
            match self.folded.get(&kind) {
                Some((_, Some(_))) => self.settle_kind(&kind)?,
                _ => drop(self.folded.remove(&kind)),
            }
        }
        Ok(())
    }

    fn settle_kind(&mut self, kind: &Kind) -> std::io::Result<()> {
        let Some((written, held)) = self.folded.get_mut(kind) else {
            return Ok(());
        };
        let Some(held) = held.take() else { return Ok(()) };
        *written = held.last.at;
        match held.times {
            1 => self.write_refused(&held.last),
            _ => self.write_refused(&held),
        }
    }

    fn write_refused(&mut self, entry: &impl serde::Serialize) -> std::io::Result<()> {
        let line = line_of(entry)?;
        if self.refused + line.len() as u64 > REFUSED_BYTES {
            if !std::mem::replace(&mut self.full_was_told, true) {
                tracing::warn!("refused calls have filled their share of the audit log: further ones are not recorded");
            }
            return Ok(());
        }
        self.file.write_all(&line)?;
        self.refused += line.len() as u64;
        Ok(())
    }
}

fn line_of(entry: &impl serde::Serialize) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line)
}

/// Returns the bytes of admitted and of refused calls in an existing log.
fn shares(path: &Path) -> std::io::Result<(u64, u64)> {
    let (mut kept, mut refused) = (0, 0);
    let mark = format!("\"outcome\":\"{DENIED}\"");
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        let line = line?;
        let is_refused = line.windows(mark.len()).any(|part| part == mark.as_bytes());
        *(if is_refused { &mut refused } else { &mut kept }) += line.len() as u64 + 1;
    }
    Ok((kept, refused))
}

fn append_to(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: i64, from: &str, outcome: &str, reason: &str) -> Entry {
        Entry {
            at,
            who: "unknown".into(),
            role: "anybody",
            by: "none",
            from: from.into(),
            call: "JobService/List".into(),
            about: String::new(),
            outcome: outcome.into(),
            reason: reason.into(),
        }
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn equal_refused_calls_are_one_line_a_minute_and_others_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let log = AuditLog::open(&path).unwrap();
        for at in 0..100_000 {
            // Each call comes over a new connection.
            log.note(entry(at, &format!("10.0.0.1:{}", at % 60_000), DENIED, "the token is not known"));
        }
        log.note(entry(1, "10.0.0.2:1", DENIED, "the token is not known"));
        log.note(entry(2, "10.0.0.1:1", "ok", ""));
        let found = lines(&path);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert_eq!((&found[0]["at"], found[0].get("times")), (&0.into(), None), "the first at once");
        assert_eq!((&found[1]["times"], &found[1]["since"]), (&60_000.into(), &1.into()));
        log.settle(1_000_000);
        let last = lines(&path).pop().unwrap();
        assert_eq!((&last["times"], &last["at"]), (&39_999.into(), &99_999.into()), "none is uncounted");
        drop(log);
        assert_eq!(lines(&path).len(), 5);
    }

    #[test]
    fn refused_calls_never_push_out_what_was_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let log = AuditLog::open(&path).unwrap();
        log.note(entry(0, "10.0.0.1:1", "ok", "this was done"));
        // Each call is of its own kind and of the largest size.
        for n in 0..20_000_i64 {
            log.note(entry(n * FOLDED_MS, "10.0.0.1:1", DENIED, &format!("{n} {}", "x".repeat(2000))));
            log.settle((n + 2) * FOLDED_MS);
        }
        log.note(entry(1, "10.0.0.1:1", "ok", "and this"));
        drop(log);
        let bytes = std::fs::metadata(&path).unwrap().len();
        assert!(bytes < REFUSED_BYTES + 1000 && bytes > REFUSED_BYTES / 2, "{bytes}");
        assert!(!folder.path().join("audit.jsonl.1").exists());
        let found = lines(&path);
        assert_eq!(
            (&found[0]["reason"], &found.last().unwrap()["reason"]),
            (&"this was done".into(), &"and this".into())
        );
        // A log that is opened again knows its size.
        let again = AuditLog::open(&path).unwrap();
        again.note(entry(0, "10.0.0.9:1", DENIED, &"y".repeat(2000)));
        drop(again);
        assert_eq!(lines(&path).len(), found.len());
    }
}
