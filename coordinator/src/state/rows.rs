//! Jobs, stages, tasks and events as rows, both ways.

use llink_proto::{Failure, FailureKind, JobState, StageState, Task, TaskResult};
use prost::Message;
use rusqlite::{Row, Transaction, params};

use crate::plan::Ranks;
use crate::schedule::{Job, Pursuit, Stage, TaskRecord, TaskState};

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("jobs and manifests are plain data")
}

pub(super) fn save_job(tx: &Transaction<'_>, job: &Job) -> rusqlite::Result<()> {
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
        tx.prepare_cached("INSERT OR REPLACE INTO stages VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)")?
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
                stage.claim.as_ref().map(to_json),
            ])?;
    }
    Ok(())
}

pub(super) fn save_task(tx: &Transaction<'_>, task: &TaskRecord) -> rusqlite::Result<()> {
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

pub(super) fn read_job(row: &Row<'_>) -> rusqlite::Result<Job> {
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

pub(super) fn read_stage(row: &Row<'_>) -> rusqlite::Result<Stage> {
    let name: String = row.get("name")?;
    let manifest: Option<String> = row.get("manifest")?;
    // Version 3 had no such column.
    let claim: Option<String> = row.get("claim").unwrap_or(None);
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
        claim: claim.and_then(|claim| serde_json::from_str(&claim).ok()),
        pursuit: Pursuit::Idle,
    })
}

pub(super) fn read_task(row: &Row<'_>) -> rusqlite::Result<TaskRecord> {
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

pub(super) fn read_event(row: &Row<'_>) -> rusqlite::Result<llink_proto::Event> {
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
