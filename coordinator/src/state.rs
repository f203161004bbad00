//! The state store: jobs, stages, tasks, attempts and events in SQLite, written before anything is acknowledged.
//!
//! One writer (the engine's thread), write-ahead log, full sync. Heartbeats are not written. Never put it on NFS.

use std::path::{Path, PathBuf};

use llink_proto::{Failure, FailureKind, JobState, StageState, Task, TaskResult};
use prost::Message;
use rusqlite::{Connection, OpenFlags, Row, Transaction, params};

use crate::plan::Ranks;
use crate::schedule::{Cluster, Effects, Job, Stage, TaskRecord, TaskState};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, file TEXT NOT NULL, stamps TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
    submitted_at INTEGER NOT NULL, ended_at INTEGER NOT NULL, failure_kind INTEGER, failure_text TEXT, report TEXT);
CREATE TABLE IF NOT EXISTS stages (
    job TEXT NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
    key TEXT NOT NULL, phases TEXT NOT NULL, manifest TEXT, started_at INTEGER NOT NULL, ended_at INTEGER NOT NULL,
    spent_before INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (job, position));
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
const SCHEMA_VERSION: i64 = 2;
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
    /// The directory cannot be made.
    #[error("state directory {path}: {source}")]
    Directory {
        /// The directory.
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

impl StateStore {
    /// Opens the store in `directory`, or makes one.
    ///
    /// # Errors
    /// When the directory or the database cannot be opened, or was written by a newer version.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        std::fs::create_dir_all(directory).map_err(|source| StateError::Directory {
            path: directory.into(),
            source,
        })?;
        let path = directory.join("state.db");
        let connection = Connection::open(&path).map_err(|e| sqlite(&path, e))?;
        let store = Self { path, connection };
        store.set_up().map_err(|e| sqlite(&store.path, e))?;
        store.check_version()?;
        Ok(store)
    }

    /// Opens the store to look at it, beside a coordinator that may be writing.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open_read_only(directory: &Path) -> Result<Self, StateError> {
        let path = directory.join("state.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(|e| sqlite(&path, e))?;
        let store = Self { path, connection };
        store.check_version()?;
        Ok(store)
    }

    fn set_up(&self) -> rusqlite::Result<()> {
        self.connection.busy_timeout(std::time::Duration::from_secs(5))?;
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        let version: i64 = self.connection.query_row("PRAGMA user_version", [], |r| r.get(0))?;
        if version == 0 {
            self.connection.execute_batch(SCHEMA)?;
            self.connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        if version == 1 {
            let upgrade = format!(
                "BEGIN; ALTER TABLE stages ADD COLUMN spent_before INTEGER NOT NULL DEFAULT 0;
                 PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            );
            self.connection.execute_batch(&upgrade)?;
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

    /// What happened to a job after `sequence`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn events(&self, job: &str, after: u64) -> Result<Vec<llink_proto::Event>, StateError> {
        let run = || -> rusqlite::Result<Vec<llink_proto::Event>> {
            let mut statement = self
                .connection
                .prepare_cached("SELECT * FROM events WHERE job = ?1 AND sequence > ?2 ORDER BY sequence")?;
            statement.query_map(params![job, after as i64], read_event)?.collect()
        };
        run().map_err(|e| sqlite(&self.path, e))
    }
}

fn sqlite(path: &Path, source: rusqlite::Error) -> StateError {
    StateError::Sqlite {
        path: path.into(),
        source,
    }
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("jobs and manifests are plain data")
}

fn save_job(tx: &Transaction<'_>, job: &Job) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO jobs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
        .execute(params![
            job.id,
            to_json(&job.file),
            to_json(&job.stamps),
            i32::from(job.state),
            job.reason,
            job.submitted_at,
            job.ended_at,
            job.failure.as_ref().map(|f| f.kind),
            job.failure.as_ref().map(|f| &f.text),
            job.report,
        ])?;
    for (position, stage) in job.stages.iter().enumerate() {
        tx.prepare_cached("INSERT OR REPLACE INTO stages VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?
            .execute(params![
                job.id,
                position as i64,
                stage.name.as_str(),
                i32::from(stage.state),
                stage.reason,
                stage.key,
                to_json(&stage.phases),
                stage.manifest.as_ref().map(to_json),
                stage.started_at,
                stage.ended_at,
                stage.spent_before,
            ])?;
    }
    Ok(())
}

fn save_task(tx: &Transaction<'_>, task: &TaskRecord) -> rusqlite::Result<()> {
    let (state, reason, result) = match &task.state {
        TaskState::Waiting { reason, .. } => ("waiting", reason.clone(), None),
        TaskState::Leased(lease) => {
            let who: Vec<&str> = lease.members.iter().map(|m| m.worker.as_str()).collect();
            ("leased", who.join(" "), None)
        }
        TaskState::Done(result) => ("done", String::new(), Some(result.encode_to_vec())),
        TaskState::Failed(failure) => ("failed", failure.text.clone(), Some(failure.encode_to_vec())),
        TaskState::Cancelled => ("cancelled", String::new(), None),
    };
    tx.prepare_cached(
        "INSERT OR REPLACE INTO tasks VALUES
         (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
    )?
    .execute(params![
        task.id as i64,
        task.job,
        task.stage.as_str(),
        task.phase as i64,
        task.index as i64,
        task.label,
        task.spec.encode_to_vec(),
        task.weight as i64,
        task.ranks.min,
        task.ranks.max,
        state,
        task.token as i64,
        task.failures,
        task.losses,
        task.last_world_size,
        reason,
        result,
    ])?;
    Ok(())
}

fn unreadable(what: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, what.into())
}

fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|e| unreadable(format!("{column}: {e}")))
}

fn read_job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let kind: Option<i32> = row.get("failure_kind")?;
    let text: Option<String> = row.get("failure_text")?;
    let failure = text.map(|text| Failure {
        kind: kind.unwrap_or_else(|| FailureKind::Internal.into()),
        text,
    });
    Ok(Job {
        id: row.get("id")?,
        file: from_json(row, "file")?,
        stamps: from_json(row, "stamps")?,
        state: JobState::try_from(row.get::<_, i32>("state")?).unwrap_or(JobState::Failed),
        reason: row.get("reason")?,
        stages: Vec::new(),
        submitted_at: row.get("submitted_at")?,
        ended_at: row.get("ended_at")?,
        failure,
        report: row.get("report")?,
    })
}

fn read_stage(row: &Row<'_>) -> rusqlite::Result<Stage> {
    let name: String = row.get("name")?;
    let manifest: Option<String> = row.get("manifest")?;
    Ok(Stage {
        name: name.parse().map_err(unreadable)?,
        state: StageState::try_from(row.get::<_, i32>("state")?).unwrap_or(StageState::Waiting),
        reason: row.get("reason")?,
        key: row.get("key")?,
        phases: from_json(row, "phases")?,
        manifest: manifest
            .map(|m| serde_json::from_str(&m).map_err(|e| unreadable(format!("manifest: {e}"))))
            .transpose()?,
        started_at: row.get("started_at")?,
        ended_at: row.get("ended_at")?,
        // Version 1 had no such column.
        spent_before: row.get("spent_before").unwrap_or(0),
    })
}

fn read_task(row: &Row<'_>) -> rusqlite::Result<TaskRecord> {
    let stage: String = row.get("stage")?;
    let state: String = row.get("state")?;
    let spec: Vec<u8> = row.get("spec")?;
    let result: Option<Vec<u8>> = row.get("result")?;
    let blob = result.unwrap_or_default();
    let decode_error = |e: prost::DecodeError| unreadable(e.to_string());
    let state = match state.as_str() {
        "done" => TaskState::Done(TaskResult::decode(blob.as_slice()).map_err(decode_error)?),
        "failed" => TaskState::Failed(Failure::decode(blob.as_slice()).map_err(decode_error)?),
        "cancelled" => TaskState::Cancelled,
        // A lease does not outlive the coordinator that gave it.
        _ => TaskState::Waiting {
            since: 0,
            not_before: 0,
            reason: row.get("reason")?,
        },
    };
    Ok(TaskRecord {
        id: row.get::<_, i64>("id")? as u64,
        job: row.get("job")?,
        stage: stage.parse().map_err(unreadable)?,
        phase: row.get::<_, i64>("phase")? as usize,
        index: row.get::<_, i64>("position")? as usize,
        label: row.get("label")?,
        spec: Task::decode(spec.as_slice()).map_err(decode_error)?,
        weight: row.get::<_, i64>("weight")? as u64,
        ranks: Ranks {
            min: row.get("min_ranks")?,
            max: row.get("max_ranks")?,
        },
        state,
        token: row.get::<_, i64>("token")? as u64,
        failures: row.get("failures")?,
        losses: row.get("losses")?,
        last_world_size: row.get("last_world_size")?,
        furthest: 0,
    })
}

fn read_event(row: &Row<'_>) -> rusqlite::Result<llink_proto::Event> {
    Ok(llink_proto::Event {
        sequence: row.get::<_, i64>("sequence")? as u64,
        at: row.get("at")?,
        job_id: row.get("job")?,
        stage: row.get("stage")?,
        task_id: row.get::<_, i64>("task")? as u64,
        level: row.get("level")?,
        text: row.get("text")?,
    })
}
