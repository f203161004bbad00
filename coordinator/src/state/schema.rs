//! The tables, and the migration of older databases.

use rusqlite::{Connection, Transaction};

use super::access::ACCESS_SCHEMA;
use super::events::{EVENTS, OLD_EVENTS};
use super::old;
use super::rows::{save_job, save_pack, save_task};
use super::told::TOLD;
use crate::schedule::{Job, TaskRecord};

/// The rows that change when a task ends and the next is leased lie together. They have one size, and everything else
/// is appended. So many steps that are saved together share their pages.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, file TEXT NOT NULL, stamps TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
    submitted_at INTEGER NOT NULL, ended_at INTEGER NOT NULL, failure_kind INTEGER, failure_text TEXT, report TEXT,
    trace TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS stages (
    job TEXT NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
    key TEXT NOT NULL, phases INTEGER NOT NULL, started_at INTEGER NOT NULL, ended_at INTEGER NOT NULL,
    spent_before INTEGER NOT NULL, claim TEXT, PRIMARY KEY (job, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifests (
    job TEXT NOT NULL, stage TEXT NOT NULL, manifest TEXT NOT NULL, PRIMARY KEY (job, stage));
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY, job TEXT NOT NULL, stage TEXT NOT NULL, phase INTEGER NOT NULL, position INTEGER NOT NULL,
    pack INTEGER NOT NULL, place INTEGER NOT NULL, weight INTEGER NOT NULL, min_ranks INTEGER NOT NULL,
    max_ranks INTEGER NOT NULL, state INTEGER NOT NULL, token INTEGER NOT NULL, failures INTEGER NOT NULL,
    losses INTEGER NOT NULL, last_world_size INTEGER NOT NULL, result INTEGER);
CREATE TABLE IF NOT EXISTS packs (id INTEGER PRIMARY KEY, specs BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS results (id INTEGER PRIMARY KEY, result BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
    task INTEGER NOT NULL, token INTEGER NOT NULL, rank INTEGER NOT NULL, worker TEXT NOT NULL,
    started_at INTEGER NOT NULL, ended_at INTEGER, outcome TEXT, PRIMARY KEY (task, token, rank)) WITHOUT ROWID;
";
/// The highest number of a deleted task. Other versions need not read it, and may lack it.
const FORGOTTEN: &str =
    "CREATE TABLE IF NOT EXISTS forgotten (one INTEGER PRIMARY KEY CHECK (one = 1), highest_task INTEGER NOT NULL);";
pub(super) const SCHEMA_VERSION: i64 = 7;
/// The first version that appends results and events, instead of sorting them by task and by job.
pub(super) const APPENDED_VERSION: i64 = 7;
/// The first version that keeps the trace of a job.
const TRACE_VERSION: i64 = 6;
/// The first version that kept apart what changes with each task and what does not.
pub(super) const APART_VERSION: i64 = 5;
/// The oldest version that is brought up to date, and that can be looked at as it is.
pub(super) const OLDEST_VERSION: i64 = 1;

/// The page size of a new database in bytes. A step changes a few scattered rows, and each costs a page.
const PAGE_BYTES: i64 = 512;
/// The number of pages that the log gathers before they are written to their places.
const PAGES_IN_LOG: i64 = 16 << 10;

/// Returns the version of the tables, or 0 where there are none.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Creates the tables, or migrates those of an older version.
pub(super) fn set_up(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let found = version(connection)?;
    if found == 0 {
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", PAGES_IN_LOG)?;
    connection.set_prepared_statement_cache_capacity(64);
    match found {
        0 => {
            let whole =
                format!("BEGIN; {SCHEMA} {EVENTS} {ACCESS_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;");
            connection.execute_batch(&whole)
        }
        OLDEST_VERSION..SCHEMA_VERSION => bring_up_to_date(connection, found),
        SCHEMA_VERSION => Ok(()),
        // Another is refused.
        _ => return Ok(()),
    }?;
    connection.execute_batch(FORGOTTEN)?;
    connection.execute_batch(TOLD)
}

fn bring_up_to_date(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let old = (found < APART_VERSION).then(|| old::load(connection)).transpose()?;
    let tx = connection.transaction()?;
    if found < TRACE_VERSION {
        tx.execute_batch("ALTER TABLE jobs ADD COLUMN trace TEXT NOT NULL DEFAULT ''")?;
    }
    tx.execute_batch("ALTER TABLE events RENAME TO old_events")?;
    tx.execute_batch(EVENTS)?;
    match old {
        Some((jobs, tasks)) => take_apart(&tx, &jobs, &tasks)?,
        None => tx.execute_batch(
            "ALTER TABLE results RENAME COLUMN task TO id; ALTER TABLE tasks ADD COLUMN result INTEGER;
             UPDATE tasks SET result = id WHERE id IN (SELECT id FROM results);",
        )?,
    }
    tx.execute_batch(OLD_EVENTS)?;
    tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    tx.commit()
}

/// Version 5 keeps apart what changes with each task and what does not.
fn take_apart(tx: &Transaction<'_>, jobs: &[Job], tasks: &[TaskRecord]) -> rusqlite::Result<()> {
    tx.execute_batch(
        "DROP TABLE stages; DROP TABLE tasks; ALTER TABLE attempts RENAME TO old_attempts; DROP INDEX events_by_job;",
    )?;
    tx.execute_batch(SCHEMA)?;
    tx.execute_batch(ACCESS_SCHEMA)?;
    tx.execute_batch(
        "INSERT INTO attempts SELECT task, token, rank, worker, started_at, ended_at, outcome FROM old_attempts;
         DROP TABLE old_attempts;",
    )?;
    for job in jobs {
        save_job(tx, job, |_| true)?;
    }
    let mut last_pack = 0;
    for task in tasks {
        let pack = &task.packed.pack;
        if pack.id > last_pack {
            save_pack(tx, pack)?;
            last_pack = pack.id;
        }
        save_task(tx, task)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::path::Path;

    use futures::FutureExt;
    use llink_proto::task::Kind;
    use llink_proto::{Artifact, EmbedShard, Failure, ModelRef, ModelRole, Task, TaskResult};
    use prost::Message;
    use rusqlite::{Connection, params};

    use super::super::StateStore;
    use crate::plan::StageName;
    use crate::schedule::{Cluster, Effects, Happening, Level, Packed, TaskState, Timing};

    const VERSION_4: &str = "
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, file TEXT NOT NULL, stamps TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
        submitted_at INTEGER NOT NULL, ended_at INTEGER NOT NULL, failure_kind INTEGER, failure_text TEXT, report TEXT);
    CREATE TABLE stages (
        job TEXT NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
        key TEXT NOT NULL, phases TEXT NOT NULL, manifest TEXT, started_at INTEGER NOT NULL, ended_at INTEGER NOT NULL,
        spent_before INTEGER NOT NULL DEFAULT 0, claim TEXT, PRIMARY KEY (job, position));
    CREATE TABLE tasks (
        id INTEGER PRIMARY KEY, job TEXT NOT NULL, stage TEXT NOT NULL, phase INTEGER NOT NULL, position INTEGER NOT NULL,
        label TEXT NOT NULL, spec BLOB NOT NULL, weight INTEGER NOT NULL, min_ranks INTEGER NOT NULL,
        max_ranks INTEGER NOT NULL, state TEXT NOT NULL, token INTEGER NOT NULL, failures INTEGER NOT NULL,
        losses INTEGER NOT NULL, last_world_size INTEGER NOT NULL, reason TEXT NOT NULL, result BLOB);
    CREATE TABLE attempts (
        task INTEGER NOT NULL, token INTEGER NOT NULL, rank INTEGER NOT NULL, worker TEXT NOT NULL,
        started_at INTEGER NOT NULL, ended_at INTEGER, outcome TEXT, PRIMARY KEY (task, token, rank));
    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, job TEXT NOT NULL, stage TEXT NOT NULL,
        task INTEGER NOT NULL, level TEXT NOT NULL, text TEXT NOT NULL);
    CREATE INDEX events_by_job ON events (job, sequence);
    PRAGMA user_version = 4;
    ";

    fn spec(number: usize) -> Task {
        let model = ModelRef { role: ModelRole::Decoder.into(), fingerprint: "decoder".into(), ..ModelRef::default() };
        let kind = Kind::EmbedShard(EmbedShard {
            path: format!("embed/key/{number:05}"),
            model: Some(model),
            ..EmbedShard::default()
        });
        Task { output_url: "out".into(), kind: Some(kind) }
    }

    #[test]
    fn a_database_of_versions_1_to_4_keeps_its_jobs_tasks_results_and_events() {
        let later = ["ALTER TABLE stages DROP COLUMN spent_before;", "", "ALTER TABLE stages DROP COLUMN claim;"];
        for version in 1..=4 {
            keeps_what_it_holds(&format!("{} PRAGMA user_version = {version};", later[version - 1..].concat()));
        }
    }

    /// Checks a database that is of version 4 until it `is_made_older`.
    fn keeps_what_it_holds(is_made_older: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(VERSION_4).unwrap();
        let file = crate::job::parse("job.toml", "[corpus]\nsource = \"/a.tsv\"\n").unwrap();
        old.execute(
            "INSERT INTO jobs VALUES ('j', ?1, '{}', 1, '', 5, 0, NULL, NULL, NULL)",
            [serde_json::to_string(&file).unwrap()],
        )
        .unwrap();
        old.execute(
            "INSERT INTO stages VALUES ('j', 0, 'embed', 2, 'embed', 'key', '[[1,2,3]]', NULL, 7, 0, 11, NULL)",
            [],
        )
        .unwrap();
        let result = result("embed/key/00001");
        let failure = Failure { text: "no".into(), ..Failure::default() };
        let states =
            [("done", Some(result.encode_to_vec())), ("leased", None), ("failed", Some(failure.encode_to_vec()))];
        for (place, (state, result)) in states.into_iter().enumerate() {
            old.execute(
                "INSERT INTO tasks VALUES (?1, 'j', 'embed', 0, ?2, ?3, ?4, ?7, 1, ?2, ?5, 4, 1, 2, 1, '', ?6)",
                params![
                    place as i64 + 1,
                    place as i64,
                    format!("label {place}"),
                    spec(place).encode_to_vec(),
                    state,
                    result,
                    9 * place as i64
                ],
            )
            .unwrap();
        }
        old.execute("INSERT INTO events VALUES (41, 1, 'j', '', 0, 'info', 'submitted')", []).unwrap();
        old.execute_batch(is_made_older).unwrap();
        drop(old);

        let looked_at = StateStore::open_file(&path).unwrap();
        let before = looked_at.load().unwrap();
        let events = looked_at.events("j", 0, 10).unwrap();
        drop(looked_at);
        for _ in 0..2 {
            let store = StateStore::open(directory.path()).unwrap();
            let (jobs, tasks) = store.load().unwrap();
            assert_eq!(format!("{:?}", (&jobs, &tasks)), format!("{before:?}"));
            assert_eq!(jobs[0].stages[0].phases, [[1, 2, 3]]);
            assert_eq!((jobs[0].ended_at, jobs[0].stages[0].ended_at), (None, None));
            assert_eq!(jobs[0].stages[0].started_at, Some(7));
            let spent = if is_made_older.contains("spent_before") { 0 } else { 11 };
            assert_eq!((jobs[0].stages[0].name, jobs[0].stages[0].spent_before), (StageName::Embed, spent));
            for (place, task) in tasks.iter().enumerate() {
                assert_eq!((task.spec(), task.label()), (spec(place), format!("label {place}")));
                assert_eq!((task.model.as_deref(), task.part), (Some("decoder"), Some("teacher")));
                assert_eq!((task.token, task.failures, task.losses), (4, 1, 2));
                // 0 stood for a weight that is not known, and for no limit of the ranks.
                assert_eq!(task.weight, NonZeroU64::new(9 * place as u64));
                assert_eq!(task.ranks.max, (place > 0).then_some(place as u32));
            }
            assert!(matches!(&tasks[0].state, TaskState::Done(found) if found.decode() == result));
            assert!(matches!(&tasks[1].state, TaskState::Waiting { .. }));
            assert!(matches!(&tasks[2].state, TaskState::Failed(found) if found.text == "no"));
            assert_eq!(store.events("j", 0, 10).unwrap(), events);
            assert_eq!(events.events[0].sequence, 41);
        }
    }

    /// The tables of version 6. Version 5 had no trace.
    const VERSION_6: &str = "
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, file TEXT NOT NULL, stamps TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
        submitted_at INTEGER NOT NULL, ended_at INTEGER NOT NULL, failure_kind INTEGER, failure_text TEXT, report TEXT,
        trace TEXT NOT NULL);
    CREATE TABLE stages (
        job TEXT NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL, state INTEGER NOT NULL, reason TEXT NOT NULL,
        key TEXT NOT NULL, phases INTEGER NOT NULL, started_at INTEGER NOT NULL, ended_at INTEGER NOT NULL,
        spent_before INTEGER NOT NULL, claim TEXT, PRIMARY KEY (job, position)) WITHOUT ROWID;
    CREATE TABLE manifests (job TEXT NOT NULL, stage TEXT NOT NULL, manifest TEXT NOT NULL, PRIMARY KEY (job, stage));
    CREATE TABLE tasks (
        id INTEGER PRIMARY KEY, job TEXT NOT NULL, stage TEXT NOT NULL, phase INTEGER NOT NULL, position INTEGER NOT NULL,
        pack INTEGER NOT NULL, place INTEGER NOT NULL, weight INTEGER NOT NULL, min_ranks INTEGER NOT NULL,
        max_ranks INTEGER NOT NULL, state INTEGER NOT NULL, token INTEGER NOT NULL, failures INTEGER NOT NULL,
        losses INTEGER NOT NULL, last_world_size INTEGER NOT NULL);
    CREATE TABLE packs (id INTEGER PRIMARY KEY, specs BLOB NOT NULL);
    CREATE TABLE results (task INTEGER PRIMARY KEY, result BLOB NOT NULL);
    CREATE TABLE attempts (
        task INTEGER NOT NULL, token INTEGER NOT NULL, rank INTEGER NOT NULL, worker TEXT NOT NULL,
        started_at INTEGER NOT NULL, ended_at INTEGER, outcome TEXT, PRIMARY KEY (task, token, rank)) WITHOUT ROWID;
    CREATE TABLE events (
        job TEXT NOT NULL, sequence INTEGER NOT NULL, at INTEGER NOT NULL, stage TEXT NOT NULL, task INTEGER NOT NULL,
        level TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (job, sequence)) WITHOUT ROWID;
    CREATE TABLE owners (job TEXT PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE used_tokens (
        token_sha256 TEXT PRIMARY KEY, instance_sha256 TEXT NOT NULL, at INTEGER NOT NULL);
    PRAGMA user_version = 6;
    ";

    fn result(path: &str) -> TaskResult {
        let artifact = Artifact { path: path.into(), ..Artifact::default() };
        TaskResult { artifacts: vec![artifact], ..TaskResult::default() }
    }

    /// Makes a database of version 6 with a job of three tasks, of which the second and the third are done.
    fn make_version_6(path: &Path) -> Connection {
        let old = Connection::open(path).unwrap();
        old.execute_batch(VERSION_6).unwrap();
        let file = crate::job::parse("job.toml", "[corpus]\nsource = \"/a.tsv\"\n").unwrap();
        let file = serde_json::to_string(&file).unwrap();
        for job in ["j", "k"] {
            old.execute("INSERT INTO jobs VALUES (?1, ?2, '{}', 1, '', 5, 0, NULL, NULL, NULL, '')", [job, &file])
                .unwrap();
            for sequence in 1..=3 {
                old.execute(
                    "INSERT INTO events VALUES (?1, ?2, 7, 'embed', ?2, 'info', 'text of ' || ?1 || ?2)",
                    params![job, sequence],
                )
                .unwrap();
            }
        }
        old.execute("INSERT INTO stages VALUES ('j', 0, 'embed', 2, 'embed', 'key', 1, 7, 0, 0, NULL)", []).unwrap();
        let specs: Vec<_> = (0..3).map(|number| (spec(number), "label")).collect();
        let packed = Packed::all(specs.iter().map(|(spec, label)| (spec, *label)), &mut 1);
        old.execute("INSERT INTO packs VALUES (1, ?1)", [&*packed[0].pack.bytes]).unwrap();
        for (place, state) in [1, 3, 3].into_iter().enumerate() {
            let id = place as i64 + 1;
            old.execute(
                "INSERT INTO tasks VALUES (?1, 'j', 'embed', 0, ?2, 1, ?2, 9, 1, 1, ?3, 4, 0, 0, 1)",
                [id, place as i64, state],
            )
            .unwrap();
            if state == 3 {
                let result = result(&format!("result of {id}")).encode_to_vec();
                old.execute("INSERT INTO results VALUES (?1, ?2)", params![id, result]).unwrap();
            }
        }
        old
    }

    #[test]
    fn a_database_of_version_5_or_6_is_looked_at_as_it_is_and_brought_up_to_date() {
        for version in [5, 6] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("state.db");
            let old = make_version_6(&path);
            if version == 5 {
                old.execute_batch("ALTER TABLE jobs DROP COLUMN trace; PRAGMA user_version = 5;").unwrap();
            }
            drop(old);
            let seen = |store: &StateStore| {
                let events =
                    ["j", "k"].map(|job| (store.events(job, 1, 10).unwrap(), store.newest_events(job, 2).unwrap()));
                format!("{:?} {events:?}", store.load().unwrap())
            };
            let looked_at = StateStore::open_file(&path).unwrap();
            let before = seen(&looked_at);
            assert!(before.contains("text of k3") && !before.contains("text of k1"), "{before}");
            drop(looked_at);
            let mut store = StateStore::open(directory.path()).unwrap();
            assert_eq!(seen(&store), before, "version {version}");

            // What happens next comes after that: a new result of the second task, and an event.
            let (jobs, tasks) = store.load().unwrap();
            let mut cluster = Cluster::restore(Timing::default(), jobs, tasks, 0);
            cluster.jobs.get_mut("j").unwrap().trace = "00-1-2-01 ci=1".into();
            let mut fx = Effects { jobs: ["j".into()].into(), tasks: [2].into(), ..Effects::default() };
            fx.events.push(Happening {
                at: 8,
                job: "j".into(),
                stage: "embed".into(),
                task: 2,
                level: Level::Info,
                text: "again".into(),
            });
            store.save(&cluster, &fx).now_or_never().unwrap().unwrap();
            drop(store);
            let store = StateStore::open(directory.path()).unwrap();
            let (jobs, tasks) = store.load().unwrap();
            let traced = jobs.iter().find(|job| job.trace == "00-1-2-01 ci=1");
            assert_eq!(traced.map(|job| job.id.as_str()), Some("j"));
            let results = tasks.iter().map(|task| match &task.state {
                TaskState::Done(found) => Some(found.decode()),
                _ => None,
            });
            let expected = [None, Some(result("result of 2")), Some(result("result of 3"))];
            assert_eq!(results.collect::<Vec<_>>(), expected);
            let kept = "SELECT COUNT(*) FROM results";
            let kept: i64 = store.connection.query_row(kept, [], |row| row.get(0)).unwrap();
            assert_eq!(kept, 2, "a result takes the place of the one before");
            let newest = &store.newest_events("j", 1).unwrap()[0];
            assert_eq!((newest.sequence, newest.text.as_str()), (4, "again"));
        }
    }
}
