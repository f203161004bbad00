//! The reader of databases of versions 1 to 4. There the row of a task holds its spec and its result, and the row of a
//! stage its manifest and its tasks.

use std::collections::BTreeMap;

use llink_proto::Task;
use prost::Message;
use rusqlite::{Connection, Row};

use super::rows::{Spec, from_json, parsed, read_job, read_stage, read_task, unreadable};
use crate::plan::StageName;
use crate::schedule::{Job, Packed, Stage, TaskRecord, traits};

pub(super) fn load(connection: &Connection) -> rusqlite::Result<(Vec<Job>, Vec<TaskRecord>)> {
    let mut statement = connection.prepare("SELECT * FROM jobs ORDER BY submitted_at")?;
    let mut jobs: Vec<Job> = statement.query_map([], read_job)?.collect::<Result<_, _>>()?;
    let mut stages = connection.prepare("SELECT * FROM stages WHERE job = ?1 ORDER BY position")?;
    for job in &mut jobs {
        job.stages = stages.query_map([&job.id], read_old_stage)?.collect::<Result<_, _>>()?;
    }
    let mut statement = connection.prepare(TASKS)?;
    let tasks: Vec<OldTask> = statement.query_map([], read_old_task)?.collect::<Result<_, _>>()?;
    Ok((jobs, packed(tasks)))
}

fn read_old_stage(row: &Row<'_>) -> rusqlite::Result<Stage> {
    let manifest: Option<String> = row.get("manifest")?;
    Ok(Stage {
        phases: from_json(row, "phases")?,
        manifest: manifest.map(|text| parsed(&text, "manifest")).transpose()?,
        ..read_stage(row)?
    })
}

/// The columns of a task in their order of today, and those that it had.
const TASKS: &str = "
SELECT id, job, stage, phase, position, 0 AS pack, 0 AS place, weight, min_ranks, max_ranks,
    CASE state WHEN 'done' THEN 3 WHEN 'failed' THEN 4 WHEN 'cancelled' THEN 5 ELSE 1 END AS state,
    token, failures, losses, last_world_size, result AS outcome, spec, label FROM tasks ORDER BY id";

struct OldTask {
    task: TaskRecord,
    spec: Task,
    label: String,
}

fn read_old_task(row: &Row<'_>) -> rusqlite::Result<OldTask> {
    let spec: Vec<u8> = row.get("spec")?;
    let spec = Task::decode(spec.as_slice()).map_err(|e| unreadable(e.to_string()))?;
    let (model, part) = traits(&spec);
    let found = Spec { packed: Packed::default(), model: model.map(Into::into), part };
    Ok(OldTask { task: read_task(row, |_, _| Some(found))?, spec, label: row.get("label")? })
}

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
