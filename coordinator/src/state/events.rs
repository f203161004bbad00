//! The events of jobs, which are only appended.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::schema::{APPENDED_VERSION, version};
use super::{StateError, StateStore};
use crate::schedule::Happening;

/// The id of an event has its job's number in the upper bits, and its own number in the lower [`BITS`]. So the events of a
/// job lie together in their order, and a new one is appended.
pub(super) const EVENTS: &str = "
CREATE TABLE IF NOT EXISTS job_numbers (number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, stage TEXT NOT NULL, task INTEGER NOT NULL, level TEXT NOT NULL,
    text TEXT NOT NULL);
";
pub(super) const OLD_EVENTS: &str = "
INSERT INTO job_numbers (job) SELECT DISTINCT job FROM old_events;
INSERT INTO events SELECT (number << 32) + sequence, at, stage, task, level, text
    FROM old_events JOIN job_numbers USING (job) ORDER BY number, sequence;
DROP TABLE old_events;
";
const BITS: u32 = 32;
const MOST: i64 = (1 << BITS) - 1;
/// The bytes of texts after which a page of events ends.
const PAGE_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventPage {
    pub events: Vec<llink_proto::Event>,
    pub more: bool,
}

/// The ids of the newest events, for jobs with an event since the start.
#[derive(Debug, Default)]
pub(super) struct NewestEvents(HashMap<String, i64>);

impl NewestEvents {
    pub(super) fn add(&mut self, tx: &Transaction<'_>, event: &Happening) -> rusqlite::Result<()> {
        let newest = match self.0.get_mut(&event.job) {
            Some(newest) => newest,
            None => self.0.entry(event.job.clone()).or_insert(newest(tx, &event.job)?),
        };
        *newest += 1;
        tx.prepare_cached("INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![*newest, event.at, event.stage, event.task as i64, event.level.as_ref(), event.text])
            .map(|_| ())
    }
}

/// Returns the id of a job's newest event. A job without a number gets one.
fn newest(tx: &Transaction<'_>, job: &str) -> rusqlite::Result<i64> {
    tx.execute("INSERT OR IGNORE INTO job_numbers (job) VALUES (?1)", [job])?;
    let before = before_first(tx, job)?;
    let newest =
        tx.query_row("SELECT MAX(id) FROM events WHERE id > ?1 AND id <= ?2", [before, before + MOST], |row| {
            row.get::<_, Option<i64>>(0)
        })?;
    Ok(newest.unwrap_or(before))
}

/// Returns the number before the ids of a job's events.
fn before_first(connection: &Connection, job: &str) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached("SELECT number FROM job_numbers WHERE job = ?1")?;
    let number = statement.query_row([job], |row| row.get::<_, i64>(0)).optional()?;
    // No job has the number 0.
    Ok(number.unwrap_or(0) << BITS)
}

/// Deletes the events about a job's tasks that say nothing of a failure.
pub(super) fn fold(tx: &Transaction<'_>, job: &str) -> rusqlite::Result<()> {
    let before = before_first(tx, job)?;
    tx.prepare_cached("DELETE FROM events WHERE id > ?1 AND id <= ?2 AND task > 0 AND level = 'info'")?
        .execute([before, before + MOST])
        .map(|_| ())
}

impl StateStore {
    /// Returns the first `limit` events of a job after number `after`, and fewer if their texts are long.
    pub fn events(&self, job: &str, after: u64, limit: usize) -> Result<EventPage, StateError> {
        self.ask(|connection| {
            let (sql, before) = query(connection, job, "ASC")?;
            let mut statement = connection.prepare_cached(&sql)?;
            let after = i64::try_from(after).unwrap_or(MOST).min(MOST);
            let mut rows = statement.query(params![job, before + after, before + MOST])?;
            let mut page = EventPage::default();
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let event = read_event(row)?;
                bytes += event.text.len();
                // A page has at least one event, so that the reader makes progress.
                if page.events.len() >= limit.max(1) || (bytes > PAGE_BYTES && !page.events.is_empty()) {
                    page.more = true;
                    break;
                }
                page.events.push(event);
            }
            Ok(page)
        })
    }

    pub fn newest_events(&self, job: &str, limit: usize) -> Result<Vec<llink_proto::Event>, StateError> {
        self.ask(|connection| {
            let (sql, before) = query(connection, job, "DESC")?;
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params![job, before, before + MOST], read_event)?;
            rows.take(limit).collect()
        })
    }
}

/// Returns the query of a job's events by their ids, and the number before these ids.
fn query(connection: &Connection, job: &str, order: &str) -> rusqlite::Result<(String, i64)> {
    if version(connection)? < APPENDED_VERSION {
        let of_job = "SELECT * FROM events WHERE job = ?1 AND sequence > ?2 AND sequence <= ?3";
        return Ok((format!("{of_job} ORDER BY sequence {order}"), 0));
    }
    let of_job = "SELECT ?1 AS job, id & 4294967295 AS sequence, at, stage, task, level, text FROM events \
                  WHERE id > ?2 AND id <= ?3";
    Ok((format!("{of_job} ORDER BY id {order}"), before_first(connection, job)?))
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
