//! The ends of jobs that the programs of `[track]` were told, or will not be told any more.

use std::collections::HashMap;

use rusqlite::params;

use super::{StateError, StateStore};

/// Other versions need not read it, and may lack it.
pub(super) const TOLD: &str = "CREATE TABLE IF NOT EXISTS told (
    job TEXT NOT NULL, program TEXT NOT NULL, ended_at INTEGER NOT NULL, PRIMARY KEY (job, program)) WITHOUT ROWID;";

impl StateStore {
    pub fn told(&self) -> Result<HashMap<(String, String), i64>, StateError> {
        self.ask(|c| {
            let mut statement = c.prepare("SELECT job, program, ended_at FROM told")?;
            let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
            rows.collect()
        })
    }

    pub fn set_told(&mut self, job: &str, program: &str, ended_at: i64) -> Result<(), StateError> {
        let sql = "INSERT OR REPLACE INTO told VALUES (?1, ?2, ?3)";
        self.ask(|c| c.execute(sql, params![job, program, ended_at]).map(|_| ()))
    }
}
