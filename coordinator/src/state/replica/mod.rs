//! A replica of the state in an object store, from which it is restored, and which one coordinator at a time leads.
//!
//! What a group of steps changes is an entry of a log there before any of the steps is acknowledged. So the replica is the
//! state, and the database in the state directory is a copy of it. Whoever takes the lead makes its copy anew.

mod lead;
mod objects;
mod pages;
mod restore;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llink_datasets::store::Store;
use rusqlite::{Connection, MAIN_DB};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::{StateError, StateStore, private, sqlite};
use crate::machine::Machine;
use lead::{Lead, Pace};
use objects::{Kind, Objects, Position, Writer};
use pages::{Pages, WriteAheadLog};

/// The number of entries after which a snapshot is written. It bounds the time of a restore.
pub(crate) const ENTRIES: u32 = 1_000;
/// The size in bytes from which the write-ahead log is moved into the database.
const LOG_BYTES: u64 = 8 << 20;
/// The file in a state directory that names its replica.
const MARK: &str = "replica.json";

/// Copies what a database commits to its replica.
#[derive(Debug)]
pub(super) struct Replica {
    lead: Lead,
    log: WriteAheadLog,
    entries: u32,
    snapshot_after: u32,
    /// Ends with the snapshot that is being written.
    snapshot: Option<oneshot::Receiver<()>>,
}

/// The replica that a state directory holds a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    url: String,
    /// A name that no other state directory has.
    directory: String,
}

/// Opens the state that a replica holds, in a directory whose lock is held: waits until no other coordinator leads on the
/// replica, takes the lead, and makes the directory's database anew. A replica that holds nothing gets the directory's state.
/// A snapshot follows after every `snapshot_after` entries.
/// A directory that holds another state than the replica is refused.
pub(crate) async fn open(
    directory: &Path,
    url: &str,
    machine: Arc<dyn Machine>,
    snapshot_after: u32,
) -> Result<StateStore, StateError> {
    let objects = Objects::new(Store::open(url)?);
    open_with(directory, objects, Pace::default(), snapshot_after, machine).await
}

async fn open_with(
    directory: &Path,
    objects: Objects,
    pace: Pace,
    snapshot_after: u32,
    machine: Arc<dyn Machine>,
) -> Result<StateStore, StateError> {
    let writer = Writer { process: process(), directory: mark(directory, &objects).await?, id: random_name()? };
    let mut lead = Lead::take(objects.clone(), writer, pace, machine.clone()).await?;
    let (seal, into) = (lead.seal, directory.to_owned());
    let opened = async {
        let beside = into.join("state.db.restoring");
        let is_restored = restore::restore(&objects, seal, &beside).await?;
        let opening = machine.aside(move || {
            let placed = match is_restored {
                true => put_in_place(&into, &beside),
                false => std::fs::remove_file(&beside),
            };
            placed.map_err(|source| directory_error(&beside, source))?;
            StateStore::open(&into)
        });
        let store = opening
            .await
            .ok_or_else(|| StateError::Content { path: directory.into(), reason: "it could not be opened".into() })??;
        Ok((store, is_restored))
    };
    let (mut store, is_restored) = lead.beat_during(opened).await?;
    let (path, url) = (store.path.clone(), objects.url());
    match is_restored {
        true => tracing::info!("{} is restored from {url}; this coordinator leads now", path.display()),
        false => tracing::info!("{url} held no state: {} is copied there", path.display()),
    }
    store.replica = Some(Replica::start(lead, &mut store.connection, &path, is_restored, snapshot_after).await?);
    Ok(store)
}

/// Forgets that a directory holds a copy: what is in it goes on by itself.
pub fn forget(directory: &Path) {
    // Without the mark, a replica with a state is refused and not taken for newer than this one.
    if std::fs::remove_file(directory.join(MARK)).is_ok() {
        tracing::warn!("{} is no longer a copy of a replica: it goes on by itself", directory.display());
    }
}

/// Puts a database file into a directory, and what is there aside as `state.db.replaced`.
pub fn put_in_place(directory: &Path, file: &Path) -> std::io::Result<()> {
    let missing_is_fine = |done: std::io::Result<()>| match done {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    };
    if directory.join("state.db").exists() {
        // The write-ahead log belongs to the state. One of an earlier state must not stay beside this one.
        for part in ["-wal", "-shm", ""] {
            let of = |name: &str| directory.join(format!("{name}{part}"));
            missing_is_fine(std::fs::remove_file(of("state.db.replaced")))?;
            missing_is_fine(std::fs::rename(of("state.db"), of("state.db.replaced")))?;
        }
    }
    std::fs::rename(file, directory.join("state.db"))
}

/// The name of the state directory. It is refused where it holds a state of its own and the replica another one.
async fn mark(directory: &Path, objects: &Objects) -> Result<String, StateError> {
    let path = directory.join(MARK);
    let failed = |source| directory_error(&path, source);
    let known: Option<Mark> = std::fs::read(&path).ok().and_then(|mark| serde_json::from_slice(&mark).ok());
    if let Some(known) = known.filter(|known| known.url == objects.url()) {
        return Ok(known.directory);
    }
    let database = directory.join("state.db");
    if database.exists() && !objects.log().await?.is_empty() {
        let url = objects.url();
        return Err(StateError::Content {
            path: database,
            reason: format!(
                "it is no copy of {url}, which holds another state. To go on with that one, move state.db and its -wal and \
                 -shm away; to go on with this one, name an empty folder with --replica"
            ),
        });
    }
    let mark = Mark { url: objects.url().to_owned(), directory: random_name()? };
    private::directory(directory).map_err(failed)?;
    let content = serde_json::to_vec(&mark).expect("a mark is plain data");
    private::replace(&path, 0o600, &content).map_err(failed)?;
    Ok(mark.directory)
}

fn random_name() -> Result<String, StateError> {
    let number = getrandom::u64().map_err(|e| StateError::Content {
        path: "the system".into(),
        reason: format!("it gives no random bytes: {e}"),
    })?;
    Ok(format!("{number:016x}"))
}

fn process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("process {} on {}", std::process::id(), host.trim())
}

impl Replica {
    async fn start(
        mut lead: Lead,
        connection: &mut Connection,
        path: &Path,
        is_restored: bool,
        snapshot_after: u32,
    ) -> Result<Self, StateError> {
        let failed = |e| sqlite(path, e);
        // What is committed goes to the replica. A power cut may cost the copy here its newest steps, and never more.
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
        connection.pragma_update(None, "wal_autocheckpoint", 0).map_err(failed)?;
        let mut log = WriteAheadLog::new(PathBuf::from(format!("{}-wal", path.display())));
        let changed = log.committed().map_err(|source| directory_error(path, source))?;
        // A new database, or one that was brought up to date.
        if !is_restored || changed.is_some() {
            let all = Pages::all(&connection.serialize(MAIN_DB).map_err(failed)?).encode();
            lead.put(Kind::Pages, &all).await?;
        }
        Ok(Self { lead, log, entries: 0, snapshot_after, snapshot: None })
    }

    /// Copies what was committed since the last call. What was committed counts once this returns.
    pub(super) async fn ship(&mut self, connection: &mut Connection, path: &Path) -> Result<(), StateError> {
        let committed = self.log.committed().map_err(|source| directory_error(path, source))?;
        let at = match committed {
            Some(pages) => self.lead.put(Kind::Pages, &pages.encode()).await?,
            None if self.lead.is_silent() => self.lead.put(Kind::Beat, &[]).await?,
            None => return Ok(()),
        };
        if self.log.read() > LOG_BYTES {
            let checkpoint = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            checkpoint.map_err(|e| sqlite(path, e))?;
        }
        self.entries += 1;
        let is_writing = |snapshot: &mut oneshot::Receiver<()>| snapshot.try_recv() == Err(TryRecvError::Empty);
        if self.entries >= self.snapshot_after && !self.snapshot.as_mut().is_some_and(is_writing) {
            self.entries = 0;
            let image = connection.serialize(MAIN_DB).map_err(|e| sqlite(path, e))?.to_vec();
            let (machine, objects) = (self.lead.machine.clone(), self.lead.objects.clone());
            let (done, is_done) = oneshot::channel();
            self.snapshot = Some(is_done);
            self.lead.machine.spawn(Box::pin(async move {
                put_snapshot(machine, objects, at, image).await;
                drop(done);
            }));
        }
        Ok(())
    }

    /// Gives up the lead. Everything that was shipped is there for the next leader.
    pub(super) async fn hand_over(self) -> Result<(), StateError> {
        self.lead.give_up().await
    }
}

async fn put_snapshot(machine: Arc<dyn Machine>, objects: Objects, at: Position, image: Vec<u8>) {
    let packed = machine.aside(move || objects::packed(&image)).await;
    let Some(packed) = packed else { return };
    // The log is still whole: another snapshot follows after as many entries.
    if let Err(e) = objects.put_snapshot(at, packed.into()).await {
        tracing::warn!("no snapshot of the state: {e}");
    }
}

fn directory_error(path: &Path, source: std::io::Error) -> StateError {
    StateError::Directory { path: path.into(), source }
}
