//! The state store: jobs, stages, tasks, attempts and events in SQLite, written before anything is acknowledged.
//!
//! One writer (the engine's thread), write-ahead log, full sync. Heartbeats are not written. Never put it on NFS.

mod access;
pub mod private;
mod rows;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params};

use access::ACCESS_SCHEMA;
pub use access::Claimed;
use rows::{read_event, read_job, read_stage, read_task, save_job, save_task};

use crate::schedule::{Cluster, Effects, Job, TaskRecord};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, file TEXT NOT NULL, stamps TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
    submitted_at INTEGER NOT NULL, ended_at INTEGER NOT NULL, failure_kind INTEGER, failure_text TEXT, report TEXT);
CREATE TABLE IF NOT EXISTS stages (
    job TEXT NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
    key TEXT NOT NULL, phases TEXT NOT NULL, manifest TEXT, started_at INTEGER NOT NULL, ended_at INTEGER NOT NULL,
    spent_before INTEGER NOT NULL DEFAULT 0, claim TEXT, PRIMARY KEY (job, position));
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, job TEXT NOT NULL, stage TEXT NOT NULL, phase INTEGER NOT NULL, position INTEGER NOT NULL,
    label TEXT NOT NULL, spec BLOB NOT NULL, weight INTEGER NOT NULL, min_ranks INTEGER NOT NULL,
    max_ranks INTEGER NOT NULL, state TEXT NOT NULL, token INTEGER NOT NULL, failures INTEGER NOT NULL,
    losses INTEGER NOT NULL, last_world_size INTEGER NOT NULL, reason TEXT NOT NULL, result BLOB);
CREATE TABLE IF NOT EXISTS attempts (
    task INTEGER NOT NULL, token INTEGER NOT NULL, rank INTEGER NOT NULL, worker TEXT NOT NULL,
    started_at INTEGER NOT NULL, ended_at INTEGER, outcome TEXT, PRIMARY KEY (task, token, rank));
CREATE TABLE IF NOT EXISTS events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, job TEXT NOT NULL, stage TEXT NOT NULL,
    task INTEGER NOT NULL, level TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_job ON events (job, sequence);
";
const SCHEMA_VERSION: i64 = 4;
/// The oldest version that [`StateStore::open`] brings up to date, and that can be looked at as it is.
const OLDEST_VERSION: i64 = 1;

/// A state store that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// SQLite refused.
    #[error("state store {path}: {source}")]
    Sqlite {
        /// The database file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The database cannot be read as one.
    #[error(
        "state store {path} is damaged ({reason}). Put a backup in its place with `llink-coord restore FILE --replace`, or \
         move it and its -wal and -shm away: finished stages are found again by their keys"
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What SQLite found.
        reason: String,
    },
    /// The directory or a file in it cannot be made.
    #[error("state directory: {path}: {source}")]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What it holds makes no sense to this version.
    #[error("state store {path}: {reason}")]
    Content {
        /// The database file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
}

/// The database.
#[derive(Debug)]
pub struct StateStore {
    path: PathBuf,
    connection: Connection,
}

/// Texts of this many bytes fill a page of events.
const PAGE_BYTES: usize = 4 << 20;

/// Events of a job, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventPage {
    /// The events.
    pub events: Vec<llink_proto::Event>,
    /// Whether others come after the last of these.
    pub more: bool,
}

impl StateStore {
    /// Opens the store in `directory`, or makes one.
    ///
    /// # Errors
    /// When the directory or the database cannot be opened, or was written by a newer version.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let failed = |path: &Path, source| StateError::Directory {
            path: path.into(),
            source,
        };
        private::directory(directory).map_err(|e| failed(directory, e))?;
        let path = directory.join("state.db");
        // SQLite gives the files beside it the same mode.
        private::file(&path).map_err(|e| failed(&path, e))?;
        let connection = Connection::open(&path).map_err(|e| sqlite(&path, e))?;
        let store = Self { path, connection };
        store.check_pages()?;
        store.set_up().map_err(|e| sqlite(&store.path, e))?;
        store.check_version()?;
        Ok(store)
    }

    /// Opens the store to look at it, beside a coordinator that may be writing.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open_read_only(directory: &Path) -> Result<Self, StateError> {
        Self::open_file(&directory.join("state.db"))
    }

    /// Opens a database file, such as a backup, to look at it.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open_file(path: &Path) -> Result<Self, StateError> {
        let path = path.to_owned();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(|e| sqlite(&path, e))?;
        let store = Self { path, connection };
        store.check_version()?;
        Ok(store)
    }

    /// Rereads every page, so that damage is named now and not in the middle of a job.
    fn check_pages(&self) -> Result<(), StateError> {
        let said: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|e| sqlite(&self.path, e))?;
        if said == "ok" {
            return Ok(());
        }
        Err(StateError::Damaged {
            path: self.path.clone(),
            reason: said.lines().collect::<Vec<_>>().join(" "),
        })
    }

    fn set_up(&self) -> rusqlite::Result<()> {
        self.connection.busy_timeout(std::time::Duration::from_secs(5))?;
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        let version: i64 = self.connection.query_row("PRAGMA user_version", [], |r| r.get(0))?;
        if version == 0 {
            let whole = format!("BEGIN; {SCHEMA} {ACCESS_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;");
            self.connection.execute_batch(&whole)?;
        }
        if version == 1 {
            let upgrade = "BEGIN; ALTER TABLE stages ADD COLUMN spent_before INTEGER NOT NULL DEFAULT 0;
                           PRAGMA user_version = 2; COMMIT;";
            self.connection.execute_batch(upgrade)?;
        }
        if version == 1 || version == 2 {
            let upgrade = format!("BEGIN; {ACCESS_SCHEMA} PRAGMA user_version = 3; COMMIT;");
            self.connection.execute_batch(&upgrade)?;
        }
        if (1..4).contains(&version) {
            let upgrade = "BEGIN; ALTER TABLE stages ADD COLUMN claim TEXT; PRAGMA user_version = 4; COMMIT;";
            self.connection.execute_batch(upgrade)?;
        }
        Ok(())
    }

    fn check_version(&self) -> Result<(), StateError> {
        let version: i64 = self
            .connection
            .query_row("PRAGMA user_version", [], |r| r.get(0))
            .map_err(|e| sqlite(&self.path, e))?;
        if (OLDEST_VERSION..=SCHEMA_VERSION).contains(&version) {
            return Ok(());
        }
        if version == 0 {
            return Err(StateError::Content {
                path: self.path.clone(),
                reason: "it holds nothing yet: a coordinator may be about to start on it".into(),
            });
        }
        Err(StateError::Content {
            path: self.path.clone(),
            reason: format!(
                "schema version {version}, this llink-coord writes {SCHEMA_VERSION}: use the version that made it, or \
                 another --state directory (finished stages are found again by their keys)"
            ),
        })
    }

    /// Saves what a step changed, in one transaction.
    ///
    /// # Errors
    /// When SQLite cannot write: disk full, for one. Then nothing of the step is saved.
    pub fn save(&mut self, cluster: &Cluster, fx: &Effects) -> Result<(), StateError> {
        let path = self.path.clone();
        self.try_save(cluster, fx).map_err(|e| sqlite(&path, e))
    }

    fn try_save(&mut self, cluster: &Cluster, fx: &Effects) -> rusqlite::Result<()> {
        let nothing = fx.jobs.is_empty() && fx.tasks.is_empty() && fx.dropped_tasks.is_empty();
        if nothing && fx.events.is_empty() && fx.attempts.is_empty() {
            return Ok(());
        }
        let tx = self.connection.transaction()?;
        for job in fx.jobs.iter().filter_map(|id| cluster.jobs.get(id)) {
            save_job(&tx, job)?;
        }
        for id in &fx.dropped_tasks {
            tx.execute("DELETE FROM tasks WHERE id = ?1", [*id as i64])?;
        }
        for task in fx.tasks.iter().filter_map(|id| cluster.tasks.get(id)) {
            save_task(&tx, task)?;
        }
        for a in &fx.attempts {
            tx.prepare_cached(
                "INSERT INTO attempts (task, token, rank, worker, started_at) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET ended_at = ?5, outcome = ?6",
            )?
            .execute(params![
                a.task as i64,
                a.token as i64,
                a.rank,
                a.worker,
                a.at,
                a.outcome
            ])?;
        }
        for e in &fx.events {
            tx.prepare_cached(
                "INSERT INTO events (at, job, stage, task, level, text) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![e.at, e.job, e.stage, e.task as i64, e.level.as_str(), e.text])?;
        }
        tx.commit()
    }

    /// Every job and every task.
    ///
    /// # Errors
    /// When the database cannot be read or holds what this version does not know.
    pub fn load(&self) -> Result<(Vec<Job>, Vec<TaskRecord>), StateError> {
        let rows = |sql: &str| -> Result<Vec<Job>, StateError> {
            let mut statement = self.connection.prepare(sql).map_err(|e| sqlite(&self.path, e))?;
            let jobs = statement.query_map([], read_job).map_err(|e| sqlite(&self.path, e))?;
            jobs.collect::<Result<_, _>>().map_err(|e| sqlite(&self.path, e))
        };
        let mut jobs = rows("SELECT * FROM jobs ORDER BY submitted_at")?;
        for job in &mut jobs {
            job.stages = self.collect(
                "SELECT * FROM stages WHERE job = ?1 ORDER BY position",
                &job.id,
                read_stage,
            )?;
        }
        let mut tasks = Vec::new();
        for job in &jobs {
            tasks.extend(self.collect("SELECT * FROM tasks WHERE job = ?1 ORDER BY id", &job.id, read_task)?);
        }
        Ok((jobs, tasks))
    }

    fn collect<T>(
        &self,
        sql: &str,
        key: &str,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StateError> {
        let run = || -> rusqlite::Result<Vec<T>> {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_map([key], read)?.collect()
        };
        run().map_err(|e| sqlite(&self.path, e))
    }

    /// What happened to a job after `sequence`: the first `limit` events, fewer where their texts are long.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn events(&self, job: &str, after: u64, limit: usize) -> Result<EventPage, StateError> {
        let run = || -> rusqlite::Result<EventPage> {
            let mut statement = self
                .connection
                .prepare_cached("SELECT * FROM events WHERE job = ?1 AND sequence > ?2 ORDER BY sequence")?;
            let mut rows = statement.query(params![job, after as i64])?;
            let mut page = EventPage::default();
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let event = read_event(row)?;
                bytes += event.text.len();
                // One event is always sent, so that who asks gets on.
                if page.events.len() >= limit.max(1) || (bytes > PAGE_BYTES && !page.events.is_empty()) {
                    page.more = true;
                    break;
                }
                page.events.push(event);
            }
            Ok(page)
        };
        run().map_err(|e| sqlite(&self.path, e))
    }
}

fn sqlite(path: &Path, source: rusqlite::Error) -> StateError {
    let path = path.into();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StateError::Damaged {
            path,
            reason: source.to_string(),
        },
        _ => StateError::Sqlite { path, source },
    }
}
