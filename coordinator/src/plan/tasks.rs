//! The tasks of a phase, in a compact form, since a phase may have hundreds of thousands of them.

use std::num::NonZeroU64;
use std::sync::Arc;

use llink_proto::task::Kind;
use llink_proto::{ModelRole, Task};

use super::pack::{PACKED_TOGETHER, Pack, Packed};
use super::{Inputs, Ranks};

#[derive(Debug, Clone, PartialEq)]
pub struct PlannedTask {
    pub spec: Task,
    /// The task's share of the stage's progress, in the stage's unit; `None` if only the worker will know.
    pub weight: Option<NonZeroU64>,
    pub ranks: Ranks,
    /// The name for people, such as `clean dev.tsv`.
    pub label: String,
}

impl Inputs<'_> {
    /// Returns a task that one worker runs alone. A weight of 0 is one that only the worker will know.
    pub(super) fn task(&self, kind: Kind, weight: u64, label: impl Into<String>) -> PlannedTask {
        let spec = Task { output_url: self.job.output.clone(), kind: Some(kind) };
        PlannedTask { spec, weight: NonZeroU64::new(weight), ranks: Ranks::ONE, label: label.into() }
    }
}

/// What scheduling reads of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Traits {
    /// The task's share of the stage's progress; `None` if only the worker will know.
    pub weight: Option<NonZeroU64>,
    pub ranks: Ranks,
    /// The fingerprint of the model that embeds the task's shard. Other tasks have none.
    pub model: Option<Arc<str>>,
    /// The part of the stage's progress that the task counts in.
    pub part: Option<&'static str>,
}

/// The tasks of a phase in their order. They are packed as they come.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlannedTasks {
    packs: Vec<(Pack, Vec<Traits>)>,
    /// The newest tasks, of which the next pack is made.
    newest: Vec<PlannedTask>,
}

impl PlannedTasks {
    pub fn push(&mut self, task: PlannedTask) {
        self.newest.push(task);
        if self.newest.len() == PACKED_TOGETHER {
            self.pack();
        }
    }

    fn pack(&mut self) {
        let newest = std::mem::take(&mut self.newest);
        let pack = Pack::of(newest.iter().map(|task| (&task.spec, task.label.as_str())));
        let mut last: Option<Arc<str>> = None;
        let traits = newest.into_iter().map(|task| {
            let (model, part) = traits(&task.spec);
            // Neighbors have the same model as a rule, and share its name.
            if last.as_deref() != model {
                last = model.map(Into::into);
            }
            Traits { weight: task.weight, ranks: task.ranks, model: last.clone(), part }
        });
        self.packs.push((pack, traits.collect()));
    }

    pub fn len(&self) -> usize {
        self.packs.iter().map(|(_, traits)| traits.len()).sum::<usize>() + self.newest.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = PlannedTask> {
        let packed = self.packs.iter().flat_map(|(pack, traits)| {
            pack.iter().zip(traits).map(|((spec, label), traits)| PlannedTask {
                spec,
                weight: traits.weight,
                ranks: traits.ranks,
                label,
            })
        });
        packed.chain(self.newest.iter().cloned())
    }

    /// Returns the places of the tasks in packs, whose ids are taken from `next`.
    pub fn packed(mut self, next: &mut u64) -> impl Iterator<Item = (Packed, Traits)> {
        if !self.newest.is_empty() {
            self.pack();
        }
        let packs = self.packs.into_iter();
        packs.flat_map(|(pack, traits)| Packed::places(pack, traits.len(), next).zip(traits))
    }
}

impl FromIterator<PlannedTask> for PlannedTasks {
    fn from_iter<I: IntoIterator<Item = PlannedTask>>(tasks: I) -> Self {
        let mut planned = Self::default();
        tasks.into_iter().for_each(|task| planned.push(task));
        planned
    }
}

/// Returns what scheduling reads from a task's spec: the fingerprint of the shard's model, and the part of the
/// progress.
pub(crate) fn traits(spec: &Task) -> (Option<&str>, Option<&'static str>) {
    let Some(Kind::EmbedShard(shard)) = &spec.kind else {
        return (None, None);
    };
    let Some(model) = &shard.model else { return (None, None) };
    let part = match model.role() {
        ModelRole::Encoder => Some("encoder"),
        ModelRole::Decoder => Some("teacher"),
        ModelRole::Unspecified => None,
    };
    (Some(&model.fingerprint), part)
}
