//! The reader of databases of versions 1 to 4. There the row of a task holds its spec and its result, and the row of a
//! stage its manifest and its tasks.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use llink_proto::Task;
use prost::Message;
use rusqlite::{Connection, Row};

use super::rows::{from_json, read_job, read_stage, state_of, unless_0, unreadable};
use crate::plan::{Ranks, StageName};
use crate::schedule::{Job, Packed, Stage, TaskRecord, traits};

pub(super) fn load(connection: &Connection) -> rusqlite::Result<(Vec<Job>, Vec<TaskRecord>)> {
    let mut statement = connection.prepare("SELECT * FROM jobs ORDER BY submitted_at")?;
    let mut jobs: Vec<Job> = statement.query_map([], read_job)?.collect::<Result<_, _>>()?;
    let mut stages = connection.prepare("SELECT * FROM stages WHERE job = ?1 ORDER BY position")?;
    for job in &mut jobs {
        job.stages = stages.query_map([&job.id], read_old_stage)?.collect::<Result<_, _>>()?;
    }
    let mut statement = connection.prepare("SELECT * FROM tasks ORDER BY id")?;
    let tasks: Vec<OldTask> = statement.query_map([], read_old_task)?.collect::<Result<_, _>>()?;
    Ok((jobs, packed(tasks)))
}

fn read_old_stage(row: &Row<'_>) -> rusqlite::Result<Stage> {
    let manifest: Option<String> = row.get("manifest")?;
    Ok(Stage {
        phases: from_json(row, "phases")?,
        manifest: manifest
            .map(|m| serde_json::from_str(&m).map_err(|e| unreadable(format!("manifest: {e}"))))
            .transpose()?,
        ..read_stage(row)?
    })
}

struct OldTask {
    task: TaskRecord,
    spec: Task,
    label: String,
}

fn read_old_task(row: &Row<'_>) -> rusqlite::Result<OldTask> {
    let stage: String = row.get("stage")?;
    let state: String = row.get("state")?;
    let spec: Vec<u8> = row.get("spec")?;
    let spec = Task::decode(spec.as_slice()).map_err(|e| unreadable(e.to_string()))?;
    let (model, part) = traits(&spec);
    let job: String = row.get("job")?;
    let result: Option<Vec<u8>> = row.get("result")?;
    let code = match state.as_str() {
        "done" => 3,
        "failed" => 4,
        "cancelled" => 5,
        _ => 1,
    };
    let task = TaskRecord {
        id: row.get::<_, i64>("id")? as u64,
        job: job.into(),
        stage: stage.parse().map_err(unreadable)?,
        phase: row.get::<_, i64>("phase")? as usize,
        index: row.get::<_, i64>("position")? as usize,
        packed: Packed::default(),
        model: model.map(Into::into),
        part,
        weight: NonZeroU64::new(row.get::<_, i64>("weight")? as u64),
        ranks: Ranks { min: row.get("min_ranks")?, max: unless_0(row.get("max_ranks")?) },
        state: state_of(code, result)?,
        token: row.get::<_, i64>("token")? as u64,
        failures: row.get("failures")?,
        losses: row.get("losses")?,
        last_world_size: row.get("last_world_size")?,
        furthest: 0,
    };
    Ok(OldTask { task, spec, label: row.get("label")? })
}

/// Packs the specs of tasks, phase by phase.
fn packed(tasks: Vec<OldTask>) -> Vec<TaskRecord> {
    let mut phases: BTreeMap<(std::sync::Arc<str>, StageName, usize), Vec<OldTask>> = BTreeMap::new();
    for old in tasks {
        let phase = (old.task.job.clone(), old.task.stage, old.task.phase);
        phases.entry(phase).or_default().push(old);
    }
    let mut next = 1;
    let mut packed = Vec::new();
    for phase in phases.into_values() {
        let specs = Packed::all(phase.iter().map(|old| (&old.spec, old.label.as_str())), &mut next);
        let tasks = phase.into_iter().zip(specs);
        packed.extend(tasks.map(|(old, packed)| TaskRecord { packed, ..old.task }));
    }
    packed
}
