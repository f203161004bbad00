//! The owners of jobs, the used tokens, and backups of the database.

use std::path::Path;

use rusqlite::{OptionalExtension, params};

use super::{StateError, StateStore, private, sqlite};

/// The tables of version 3: the person who submitted a job first, and the process that used a token of one use.
pub(super) const ACCESS_SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS owners (job TEXT PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS used_tokens (
    token_sha256 TEXT PRIMARY KEY, instance_sha256 TEXT NOT NULL, at INTEGER NOT NULL);
";

/// The user of a token of one use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    Ours,
    ByAnother,
}

impl StateStore {
    pub fn owner(&self, job: &str) -> Result<Option<String>, StateError> {
        self.ask(|_| self.find_owner(job))
    }

    pub(super) fn find_owner(&self, job: &str) -> rusqlite::Result<Option<String>> {
        let mut statement = self.connection.prepare_cached("SELECT name FROM owners WHERE job = ?1")?;
        statement.query_row([job], |row| row.get(0)).optional()
    }

    /// Records who submitted a job, unless someone did before.
    pub fn set_owner(&mut self, job: &str, name: &str) -> Result<(), StateError> {
        self.ask(|c| c.execute("INSERT OR IGNORE INTO owners VALUES (?1, ?2)", [job, name]).map(|_| ()))
    }

    /// Records that a process used a token of one use. The same process may show it again, because the answer may have
    /// been lost.
    pub fn claim_token(&mut self, token: &str, instance: &str, now: i64) -> Result<Claimed, StateError> {
        let by: String = self.ask(|c| {
            c.execute("INSERT OR IGNORE INTO used_tokens VALUES (?1, ?2, ?3)", params![token, instance, now])?;
            let user = "SELECT instance_sha256 FROM used_tokens WHERE token_sha256 = ?1";
            c.query_row(user, [token], |row| row.get(0))
        })?;
        Ok(if by == instance { Claimed::Ours } else { Claimed::ByAnother })
    }

    /// Copies the whole database into a new file, while a coordinator may be writing.
    pub fn backup(&self, to: &Path) -> Result<(), StateError> {
        let failed = |source| StateError::Directory { path: to.into(), source };
        // SQLite accepts an empty file as a new database.
        private::file(to).map_err(failed)?;
        let name = to.to_string_lossy().into_owned();
        self.connection.execute("VACUUM INTO ?1", [&name]).map(|_| ()).map_err(|e| sqlite(to, e))?;
        // SQLite does not sync the file that it vacuums into.
        let synced = std::fs::File::open(to).and_then(|file| file.sync_all());
        synced.map_err(failed)
    }

    pub fn check(&self) -> Result<(), StateError> {
        self.check_pages("integrity_check")?;
        self.load().map(|_| ())
    }
}
