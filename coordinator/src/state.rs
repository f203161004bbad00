//! The state store. It keeps jobs, stages, tasks, attempts and events in SQLite, and writes them before anything is
//! acknowledged.
//!
//! Only the engine's thread writes. The database uses a write-ahead log and a full sync. Heartbeats are not written.
//! The directory must not be on NFS, whose file locks are not reliable.

mod access;
mod events;
mod old;
pub mod private;
pub mod replica;
mod rows;
mod schema;
mod told;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

pub use access::Claimed;
pub use events::EventPage;
use events::NewestEvents;
use rows::{Spec, drop_result, read_job, read_pack, read_stage, read_task, save_job, save_pack, save_task};
use schema::{APART_VERSION, APPENDED_VERSION, OLDEST_VERSION, SCHEMA_VERSION};

use crate::schedule::{Cluster, Effects, Job, TaskRecord};

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state store {path}: {source}")]
    Sqlite { path: PathBuf, source: rusqlite::Error },
    #[error(
        "state store {path} is damaged ({reason}). Put a backup in its place with `llink-coord restore FILE --replace`, or \
         move it and its -wal and -shm away: finished stages are found again by their keys"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("state directory: {path}: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("state store {path}: {reason}")]
    Content { path: PathBuf, reason: String },
    #[error("the state's replica: {0}")]
    Replica(#[from] llink_datasets::Error),
    #[error("the state's replica {0} does not answer")]
    Silent(String),
    #[error("{0} cannot hold a replica: its store does not support creating an object only where there is none")]
    NotKept(String),
    #[error("{by} leads on the state's replica {url} now")]
    Succeeded { url: String, by: String },
}

#[derive(Debug)]
pub struct StateStore {
    path: PathBuf,
    connection: Connection,
    newest_events: NewestEvents,
    /// Where everything that is saved is copied to.
    replica: Option<replica::Replica>,
}

impl StateStore {
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let failed = |path: &Path, source| StateError::Directory { path: path.into(), source };
        private::directory(directory).map_err(|e| failed(directory, e))?;
        let path = directory.join("state.db");
        // SQLite gives the files beside it the same mode.
        private::file(&path).map_err(|e| failed(&path, e))?;
        let connection = Connection::open(&path).map_err(|e| sqlite(&path, e))?;
        let mut store = Self::on(path, connection);
        store.check_pages("quick_check(1)")?;
        schema::set_up(&mut store.connection).map_err(|e| sqlite(&store.path, e))?;
        store.check_version()?;
        Ok(store)
    }

    /// Opens the store for reading, while a coordinator may be writing.
    pub fn open_read_only(directory: &Path) -> Result<Self, StateError> {
        Self::open_file(&directory.join("state.db"))
    }

    /// Opens a database file, such as a backup, for reading.
    pub fn open_file(path: &Path) -> Result<Self, StateError> {
        let path = path.to_owned();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(|e| sqlite(&path, e))?;
        let store = Self::on(path, connection);
        store.check_version()?;
        Ok(store)
    }

    fn on(path: PathBuf, connection: Connection) -> Self {
        Self { path, connection, newest_events: NewestEvents::default(), replica: None }
    }

    /// Queries the database, or changes it outside of a step.
    fn ask<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        query(&self.connection).map_err(|e| sqlite(&self.path, e))
    }

    /// Reads every page, so that damage is reported now and not during a job.
    fn check_pages(&self, check: &str) -> Result<(), StateError> {
        let said: String = self.ask(|c| c.query_row(&format!("PRAGMA {check}"), [], |row| row.get(0)))?;
        if said == "ok" {
            return Ok(());
        }
        Err(StateError::Damaged { path: self.path.clone(), reason: said.lines().collect::<Vec<_>>().join(" ") })
    }

    fn check_version(&self) -> Result<(), StateError> {
        let version = self.ask(schema::version)?;
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

    /// Saves what steps changed, in one transaction, and copies it to the replica.
    /// If SQLite cannot write, because the disk is full for example, nothing of the steps is saved. If the replica cannot be
    /// written, or another coordinator leads on it, nothing of the steps may be acknowledged.
    pub async fn save(&mut self, cluster: &Cluster, fx: &Effects) -> Result<(), StateError> {
        let path = self.path.clone();
        self.try_save(cluster, fx).map_err(|e| sqlite(&path, e))?;
        match &mut self.replica {
            Some(replica) => replica.ship(&mut self.connection, &path).await,
            None => Ok(()),
        }
    }

    /// Closes the store, and gives up the lead on the replica if there is one.
    /// If the replica cannot be written, other coordinators wait until the leader has been silent for long enough.
    pub async fn close(self) -> Result<(), StateError> {
        match self.replica {
            Some(replica) => replica.hand_over().await,
            None => Ok(()),
        }
    }

    fn try_save(&mut self, cluster: &Cluster, fx: &Effects) -> rusqlite::Result<()> {
        if fx.change_nothing() {
            return Ok(());
        }
        let tx = self.connection.transaction()?;
        for job in fx.jobs.iter().filter_map(|id| cluster.jobs.get(id)) {
            save_job(&tx, job, |stage| fx.manifests.contains(&(job.id.clone(), stage)))?;
        }
        for job in &fx.folded {
            events::fold(&tx, job)?;
        }
        for id in &fx.dropped_tasks {
            tx.prepare_cached("DELETE FROM attempts WHERE task = ?1")?.execute([*id as i64])?;
            drop_result(&tx, *id)?;
            tx.prepare_cached("DELETE FROM tasks WHERE id = ?1")?.execute([*id as i64])?;
        }
        if let Some(highest) = fx.dropped_tasks.last() {
            tx.prepare_cached(
                "INSERT INTO forgotten VALUES (1, ?1) ON CONFLICT DO UPDATE SET highest_task = MAX(highest_task, ?1)",
            )?
            .execute([*highest as i64])?;
        }
        for id in &fx.dropped_packs {
            tx.prepare_cached("DELETE FROM packs WHERE id = ?1")?.execute([*id as i64])?;
        }
        for pack in &fx.packs {
            save_pack(&tx, pack)?;
        }
        for task in fx.tasks.iter().filter_map(|id| cluster.tasks.get(id)) {
            save_task(&tx, task)?;
        }
        for a in &fx.attempts {
            tx.prepare_cached("INSERT OR REPLACE INTO attempts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
                .execute(params![a.task as i64, a.token as i64, a.rank, a.worker, a.began, a.ended, a.outcome])?;
        }
        for event in &fx.events {
            self.newest_events.add(&tx, event)?;
        }
        tx.commit()
    }

    /// Loads every job and every task, as they were at one point in time.
    pub fn load(&self) -> Result<(Vec<Job>, Vec<TaskRecord>), StateError> {
        // A coordinator may save between two of these queries. Of one transaction all see the same rows.
        self.ask(|connection| {
            let _snapshot = connection.unchecked_transaction()?;
            match schema::version(connection)? {
                ..APART_VERSION => old::load(connection),
                _ => self.try_load(),
            }
        })
    }

    fn try_load(&self) -> rusqlite::Result<(Vec<Job>, Vec<TaskRecord>)> {
        let mut statement = self.connection.prepare("SELECT * FROM jobs ORDER BY submitted_at")?;
        let mut jobs: Vec<Job> = statement.query_map([], read_job)?.collect::<Result<_, _>>()?;
        let mut stages = self.connection.prepare("SELECT * FROM stages WHERE job = ?1 ORDER BY position")?;
        let mut manifest = self.connection.prepare("SELECT manifest FROM manifests WHERE job = ?1 AND stage = ?2")?;
        for job in &mut jobs {
            job.owner = self.find_owner(&job.id)?;
            let mut rows = stages.query([&job.id])?;
            while let Some(row) = rows.next()? {
                let mut stage = read_stage(row)?;
                stage.phases = vec![Vec::new(); row.get::<_, i64>("phases")? as usize];
                let text = manifest.query_row([&job.id, stage.name.as_str()], |row| row.get::<_, String>(0));
                if let Some(text) = text.optional()? {
                    stage.manifest = Some(rows::parsed(&text, "manifest")?);
                }
                job.stages.push(stage);
            }
        }
        let mut statement = self.connection.prepare("SELECT id, specs FROM packs")?;
        let packs: HashMap<i64, Vec<Spec>> = statement.query_map([], read_pack)?.collect::<Result<_, _>>()?;
        let places: HashMap<String, usize> = jobs.iter().enumerate().map(|(at, job)| (job.id.clone(), at)).collect();
        let of_task = match schema::version(&self.connection)? {
            ..APPENDED_VERSION => "results.task = tasks.id",
            _ => "results.id = tasks.result",
        };
        let mut statement = self.connection.prepare(&format!(
            "SELECT tasks.*, results.result AS outcome FROM tasks LEFT JOIN results ON {of_task} ORDER BY tasks.id"
        ))?;
        let mut rows = statement.query([])?;
        let mut tasks = Vec::new();
        while let Some(row) = rows.next()? {
            let spec = |pack: i64, place: u32| packs.get(&pack)?.get(place as usize).cloned();
            let task = read_task(row, spec)?;
            let job = places.get(&*task.job).map(|at| &mut jobs[*at]);
            let stage = job.and_then(|job| job.stages.iter_mut().find(|stage| stage.name == task.stage));
            // The numbers of tasks follow the order of their places.
            if let Some(phase) = stage.and_then(|stage| stage.phases.get_mut(task.phase)) {
                phase.push(task.id);
                tasks.push(task);
            }
        }
        Ok((jobs, tasks))
    }

    pub fn highest_forgotten_task(&self) -> Result<u64, StateError> {
        let sql = "SELECT highest_task FROM forgotten";
        let found = self.ask(|c| c.query_row(sql, [], |row| row.get::<_, i64>(0)).optional())?;
        Ok(found.unwrap_or(0) as u64)
    }
}

#[cfg(test)]
impl StateStore {
    /// For tests that have many steps and no power cut.
    pub fn without_sync(&self) {
        self.connection.pragma_update(None, "synchronous", "OFF").unwrap();
    }

    /// Limits the database to this number of further pages, as a full disk would.
    pub fn leave_room_for(&self, pages: i64) -> rusqlite::Result<()> {
        let used: i64 = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        let most = format!("PRAGMA max_page_count = {}", used + pages);
        self.connection.query_row(&most, [], |_| Ok(()))
    }
}

fn sqlite(path: &Path, source: rusqlite::Error) -> StateError {
    let path = path.into();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StateError::Damaged { path, reason: source.to_string() }
        }
        _ => StateError::Sqlite { path, source },
    }
}
