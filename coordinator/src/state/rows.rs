//! The conversion of jobs, stages, tasks and events to rows and back.

use std::num::NonZeroU64;
use std::sync::Arc;

use llink_proto::{Failure, FailureKind, JobState, StageState, TaskResult};
use prost::Message;
use rusqlite::{Row, Transaction, params};

use crate::plan::{Ranks, StageName};
use crate::schedule::{Encoded, Job, Pack, Packed, Pursuit, Stage, TaskRecord, TaskState, traits};

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("jobs and manifests are plain data")
}

/// Saves a job and its stages, with the manifests of those that `is_new` names.
pub(super) fn save_job(tx: &Transaction<'_>, job: &Job, is_new: impl Fn(StageName) -> bool) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO jobs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?.execute(
        params![
            job.id,
            to_json(&job.file),
            to_json(&job.stamps),
            i32::from(job.state),
            job.reason,
            job.submitted_at,
            job.ended_at.unwrap_or(0),
            job.failure.as_ref().map(|f| f.kind),
            job.failure.as_ref().map(|f| &f.text),
            job.report,
            job.trace,
        ],
    )?;
    for (position, stage) in job.stages.iter().enumerate() {
        tx.prepare_cached("INSERT OR REPLACE INTO stages VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?
            .execute(params![
                job.id,
                position as i64,
                stage.name.as_str(),
                i32::from(stage.state),
                stage.reason,
                stage.key,
                stage.phases.len() as i64,
                stage.started_at.unwrap_or(0),
                stage.ended_at.unwrap_or(0),
                stage.spent_before,
                stage.claim.as_ref().map(to_json),
            ])?;
        match &stage.manifest {
            Some(manifest) if is_new(stage.name) => {
                tx.prepare_cached("INSERT OR REPLACE INTO manifests VALUES (?1, ?2, ?3)")?.execute(params![
                    job.id,
                    stage.name.as_str(),
                    to_json(manifest)
                ])?;
            }
            Some(_) => {}
            None => {
                tx.prepare_cached("DELETE FROM manifests WHERE job = ?1 AND stage = ?2")?
                    .execute(params![job.id, stage.name.as_str()])?;
            }
        }
    }
    Ok(())
}

pub(super) fn save_pack(tx: &Transaction<'_>, pack: &Pack) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO packs VALUES (?1, ?2)")?
        .execute(params![pack.id as i64, &*pack.bytes])
        .map(|_| ())
}

pub(super) fn save_task(tx: &Transaction<'_>, task: &TaskRecord) -> rusqlite::Result<()> {
    drop_result(tx, task.id)?;
    let (state, result) = match &task.state {
        TaskState::Waiting { .. } => (WAITING, None),
        TaskState::Leased(_) => (LEASED, None),
        TaskState::Done(result) => (DONE, Some(result.0.to_vec())),
        TaskState::Failed(failure) => (FAILED, Some(failure.encode_to_vec())),
        TaskState::Cancelled => (CANCELLED, None),
    };
    let result = match result {
        Some(result) => {
            tx.prepare_cached("INSERT INTO results (result) VALUES (?1)")?.execute([result])?;
            Some(tx.last_insert_rowid())
        }
        None => None,
    };
    tx.prepare_cached(
        "INSERT OR REPLACE INTO tasks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
    )?
    .execute(params![
        task.id as i64,
        &*task.job,
        task.stage.as_str(),
        task.phase as i64,
        task.index as i64,
        task.packed.pack.id as i64,
        task.packed.at,
        task.weight.map_or(0, NonZeroU64::get) as i64,
        task.ranks.min,
        task.ranks.max.unwrap_or(0),
        state,
        task.token as i64,
        task.failures,
        task.losses,
        task.last_world_size,
        result,
    ])
    .map(|_| ())
}

pub(super) fn drop_result(tx: &Transaction<'_>, task: u64) -> rusqlite::Result<()> {
    tx.prepare_cached("DELETE FROM results WHERE id = (SELECT result FROM tasks WHERE id = ?1)")?
        .execute([task as i64])
        .map(|_| ())
}

/// Reads a number from a column in which 0 stands for none.
fn unless_0<T: Default + PartialEq>(number: T) -> Option<T> {
    (number != T::default()).then_some(number)
}

pub(super) fn unreadable(what: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, what.into())
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    parsed(&row.get::<_, String>(column)?, column)
}

pub(super) fn parsed<T: serde::de::DeserializeOwned>(text: &str, column: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|e| unreadable(format!("{column}: {e}")))
}

pub(super) fn read_job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let kind: Option<i32> = row.get("failure_kind")?;
    let text: Option<String> = row.get("failure_text")?;
    let failure = text.map(|text| Failure { kind: kind.unwrap_or_else(|| FailureKind::Internal.into()), text });
    Ok(Job {
        id: row.get("id")?,
        owner: None,
        file: from_json(row, "file")?,
        stamps: from_json(row, "stamps")?,
        // Version 5 had no such column.
        trace: row.get("trace").unwrap_or_default(),
        state: JobState::try_from(row.get::<_, i32>("state")?).unwrap_or(JobState::Failed),
        reason: row.get("reason")?,
        stages: Vec::new(),
        submitted_at: row.get("submitted_at")?,
        ended_at: unless_0(row.get("ended_at")?),
        failure,
        report: row.get("report")?,
    })
}

pub(super) fn read_stage(row: &Row<'_>) -> rusqlite::Result<Stage> {
    let name: String = row.get("name")?;
    // Databases of version 3 have no such column.
    let claim: Option<String> = row.get("claim").unwrap_or(None);
    Ok(Stage {
        name: name.parse().map_err(unreadable)?,
        state: StageState::try_from(row.get::<_, i32>("state")?).unwrap_or(StageState::Waiting),
        reason: row.get("reason")?,
        key: row.get("key")?,
        phases: Vec::new(),
        manifest: None,
        started_at: unless_0(row.get("started_at")?),
        ended_at: unless_0(row.get("ended_at")?),
        // Databases of version 1 have no such column.
        spent_before: row.get("spent_before").unwrap_or(0),
        claim: claim.and_then(|claim| serde_json::from_str(&claim).ok()),
        pursuit: Pursuit::Idle,
    })
}

const WAITING: i64 = 1;
const LEASED: i64 = 2;
const DONE: i64 = 3;
const FAILED: i64 = 4;
const CANCELLED: i64 = 5;

fn state_of(state: i64, result: Option<Vec<u8>>) -> rusqlite::Result<TaskState> {
    let damaged = |e: prost::DecodeError| unreadable(format!("result: {e}"));
    let blob = result.unwrap_or_default();
    Ok(match state {
        DONE => {
            TaskResult::decode(blob.as_slice()).map_err(damaged)?;
            TaskState::Done(Encoded(blob.into()))
        }
        FAILED => TaskState::Failed(Failure::decode(blob.as_slice()).map_err(damaged)?),
        CANCELLED => TaskState::Cancelled,
        // A lease ends with the coordinator that gave it.
        _ => TaskState::Waiting { since: 0, not_before: 0 },
    })
}

/// Reads a task from its row, with its result as `outcome`. `found` looks up its job and spec.
pub(super) fn read_task(row: &Row<'_>, found: impl FnOnce(i64, u32) -> Option<Spec>) -> rusqlite::Result<TaskRecord> {
    let (pack, place) = (row.get(5)?, row.get(6)?);
    let Some(Spec { packed, model, part }) = found(pack, place) else {
        return Err(unreadable(format!("pack {pack} of specs has no place {place}, or is damaged")));
    };
    let stage = row.get_ref(2)?.as_str()?;
    Ok(TaskRecord {
        id: row.get::<_, i64>(0)? as u64,
        job: row.get_ref(1)?.as_str()?.into(),
        stage: stage.parse().map_err(unreadable)?,
        phase: row.get::<_, i64>(3)? as usize,
        index: row.get::<_, i64>(4)? as usize,
        packed,
        model,
        part,
        weight: NonZeroU64::new(row.get::<_, i64>(7)? as u64),
        ranks: Ranks { min: row.get(8)?, max: unless_0(row.get(9)?) },
        state: state_of(row.get(10)?, row.get("outcome")?)?,
        token: row.get::<_, i64>(11)? as u64,
        failures: row.get(12)?,
        losses: row.get(13)?,
        last_world_size: row.get(14)?,
        furthest: 0,
    })
}

/// A task's spec, with the parts that scheduling reads.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) packed: Packed,
    pub(super) model: Option<Arc<str>>,
    pub(super) part: Option<&'static str>,
}

/// Reads a pack's specs, each of them once as a check.
pub(super) fn read_pack(row: &Row<'_>) -> rusqlite::Result<(i64, Vec<Spec>)> {
    let (id, bytes): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
    let pack = Arc::new(Pack { id: id as u64, bytes: bytes.into() });
    let mut known: Vec<Arc<str>> = Vec::new();
    let mut specs = Vec::new();
    for (at, (spec, _)) in pack.iter().enumerate() {
        let (model, part) = traits(&spec);
        let model = model.map(|model| match known.iter().find(|name| ***name == *model) {
            Some(name) => name.clone(),
            None => {
                known.push(model.into());
                model.into()
            }
        });
        let packed = Packed { pack: pack.clone(), at: at as u32 };
        specs.push(Spec { packed, model, part });
    }
    Ok((id, specs))
}
