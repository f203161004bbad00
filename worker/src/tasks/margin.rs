//! Finds the training pairs of a shard whose margin is too low. Their neighbors are searched in the same shard, whose rows are
//! a fair sample, so that each shard is a task of its own.

use std::collections::HashSet;

use llink_datasets::pairs::read_pairs;
use llink_datasets::role::Role;
use llink_datasets::store::Store;
use llink_datasets::vectors::{VectorTable, read_vectors};
use llink_proto::{Artifact, FilterPairs, TaskResult};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::TaskContext;
use super::instruct::widened;
use crate::llink::margin::margins;
use crate::{Error, Result};

/// A line of the list of dropped pairs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Dropped {
    pub id: u64,
    pub margin: f32,
    pub english: String,
    pub foreign: String,
}

pub(super) fn run(context: &TaskContext, task: &FilterPairs) -> Result<TaskResult> {
    let store = context.store()?;
    let read = |artifact: &Option<Artifact>, what: &str| {
        let missing = || Error::Input(format!("a filter task without its {what}"));
        let artifact = artifact.as_ref().ok_or_else(missing)?;
        Ok::<_, Error>((store.describe(&artifact.path), context.read(&store, artifact)?))
    };
    let (name, content) = read(&task.pairs, "pairs")?;
    let pairs = read_pairs(&name, content)?;
    let vectors = |artifact: &Option<Artifact>, what: &str| {
        let (name, content) = read(artifact, what)?;
        let table = read_vectors(&name, content)?;
        match table.ids == pairs.ids {
            true => Ok(table),
            false => Err(Error::Input(format!("{name}: holds the vectors of other pairs"))),
        }
    };
    let foreign = vectors(&task.foreign_vectors, "vectors of the foreign sides")?;
    let english = vectors(&task.english_vectors, "vectors of the English sides")?;
    context.control.check()?;
    let margins = margins(&widened(&foreign), &widened(&english), foreign.width)?;
    let rows = margins.iter().enumerate();
    let below = rows.filter(|(_, margin)| f64::from(**margin) < task.margin);
    let mut dropped: Vec<Dropped> = below
        .map(|(row, margin)| Dropped {
            id: pairs.ids[row],
            margin: *margin,
            english: pairs.english[row].clone(),
            foreign: pairs.foreign[row].clone(),
        })
        .collect();
    dropped.sort_by(|one, other| one.margin.total_cmp(&other.margin));
    let lines: String = dropped.iter().map(|pair| format!("{}\n", json!(pair))).collect();
    let rows = dropped.len() as u64;
    context.control.advance(pairs.ids.len() as u64, pairs.ids.len() as u64);
    Ok(TaskResult {
        artifacts: vec![context.write(&store, &task.path, Role::Dropped, rows, lines.into())?],
        counts: [("pairs.dropped_below_margin".to_owned(), rows)].into(),
        ..TaskResult::default()
    })
}

/// The ids of the training pairs that the filter dropped.
#[derive(Debug, Default)]
pub(super) struct DroppedPairs(HashSet<u64>);

impl DroppedPairs {
    pub(super) fn read(context: &TaskContext, store: &Store, artifacts: &[Artifact]) -> Result<Self> {
        let mut ids = HashSet::new();
        for artifact in artifacts {
            let content = context.read(store, artifact)?;
            let name = store.describe(&artifact.path);
            for pair in lines(&content, &name) {
                ids.insert(pair?.id);
            }
        }
        Ok(Self(ids))
    }

    /// Returns the vectors of the other pairs.
    pub(super) fn out_of(&self, table: VectorTable) -> VectorTable {
        match self.0.is_empty() {
            true => table,
            false => table.retain(|id| !self.0.contains(&id)),
        }
    }
}

/// Reads the lines of a list of dropped pairs.
pub(super) fn lines(content: &[u8], name: &str) -> impl Iterator<Item = Result<Dropped>> {
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(move |line| {
        serde_json::from_slice(line).map_err(|error| Error::Input(format!("{name}: no list of dropped pairs: {error}")))
    })
}
