//! Finds the training pairs of a shard whose margin is too low. Their neighbors are searched in the same shard, whose rows are
//! a fair sample, so that each shard is a task of its own.

use std::collections::HashSet;

use half::slice::HalfFloatSliceExt;
use llink_datasets::pairs::read_pairs;
use llink_datasets::role::Role;
use llink_datasets::vectors::{VectorTable, read_vectors};
use llink_proto::{Artifact, FilterPairs, TaskResult};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{OpenContext, TaskContext, given};
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
    let context = &context.opened()?;
    let pairs = given(&task.pairs, "a filter task without its pairs")?;
    let pairs = read_pairs(&context.describe(pairs), context.read(pairs)?)?;
    let vectors = |artifact: &Artifact| {
        let name = context.describe(artifact);
        let table = read_vectors(&name, context.read(artifact)?)?;
        match table.ids == pairs.ids {
            true => Ok(table),
            false => Err(Error::Input(format!("{name}: holds the vectors of other pairs"))),
        }
    };
    let foreign = given(&task.foreign_vectors, "a filter task without its vectors of the foreign sides")?;
    let english = given(&task.english_vectors, "a filter task without its vectors of the English sides")?;
    let (foreign, english) = (vectors(foreign)?, vectors(english)?);
    context.control.check()?;
    let margins = margins(&foreign.values.to_f32_vec(), &english.values.to_f32_vec(), foreign.width)?;
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
        artifacts: vec![context.write(&task.path, Role::Dropped, rows, lines.into())?],
        counts: [("pairs.dropped_below_margin".to_owned(), rows)].into(),
        ..TaskResult::default()
    })
}

/// The ids of the training pairs that the filter dropped.
#[derive(Debug, Default)]
pub(super) struct DroppedPairs(HashSet<u64>);

impl DroppedPairs {
    pub(super) fn read(context: &OpenContext<'_>, artifacts: &[Artifact]) -> Result<Self> {
        let mut ids = HashSet::new();
        for artifact in artifacts {
            for pair in lines(&context.read(artifact)?, &context.describe(artifact)) {
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

pub(super) fn lines(content: &[u8], name: &str) -> impl Iterator<Item = Result<Dropped>> {
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(move |line| {
        serde_json::from_slice(line).map_err(|error| Error::Input(format!("{name}: no list of dropped pairs: {error}")))
    })
}
