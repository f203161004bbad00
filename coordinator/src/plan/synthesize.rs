//! The `synthesize` stage: a task for each shard of pairs that is asked about.

use llink_datasets::manifest::Manifest;
use llink_proto::task::Kind;
use llink_proto::{Artifact, CleaningRules, ModelEndpoint, SynthesisPrompt, Synthesize, Task, TaskResult};

use super::{
    Inputs, Phase, PlanError, PlannedTask, Ranks, StageName, content_of, earlier, json, manifest_of, with_role,
};
use crate::job::SynthesizeSection;

const STAGE: StageName = StageName::Synthesize;
/// Where answers are kept, below the job's output: shared by all jobs that write there.
const CACHE: &str = "synthesize-cache";

fn section<'a>(inputs: &Inputs<'a>) -> Result<&'a SynthesizeSection, PlanError> {
    inputs.job.synthesize.as_ref().ok_or_else(|| PlanError {
        stage: STAGE,
        reason: "the job has no [synthesize]".into(),
    })
}

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    // Where the model is reached and how fast it is asked changes no answer.
    let section = SynthesizeSection {
        url: String::new(),
        api_key_env: String::new(),
        concurrency: 0,
        requests_per_minute: 0.0,
        timeout_s: 0.0,
        attempts: 0,
        ..section(inputs)?.clone()
    };
    Ok(vec![
        content_of(shard, "pairs/train"),
        content_of(shard, "pairs/holdout"),
        json(&section),
    ])
}

/// What counts say of how many pairs a task asked about.
const ASKED: &str = "synthesized.rows";
/// Pairs that are asked about at most, for each example that is wanted: a model that refuses most of what it is asked
/// would otherwise be asked about everything.
const MOST_ASKED: u64 = 2;

/// Pairs of one shard that are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Portion {
    shard: usize,
    /// Pairs of a fit length that were asked about before.
    skip: u64,
    rows: u64,
}

/// The examples of one side: which are wanted, and how far the pairs they are made from are used up.
struct SidePlan {
    side: &'static str,
    pairs: Vec<Artifact>,
    wanted: u64,
    kept: u64,
    asked: u64,
    shard: usize,
    skip: u64,
    /// Portions of the phases before.
    portions: usize,
}

impl SidePlan {
    fn new(shard: &Manifest, from: &str, side: &'static str, wanted: u64) -> Self {
        Self {
            side,
            pairs: with_role(shard, from),
            wanted,
            kept: 0,
            asked: 0,
            shard: 0,
            skip: 0,
            portions: 0,
        }
    }

    /// What is asked about next: as many pairs as examples are missing, if there are so many.
    fn next(&self) -> Vec<Portion> {
        let may_ask = (self.wanted * MOST_ASKED).saturating_sub(self.asked);
        let mut left = self.wanted.saturating_sub(self.kept).min(may_ask);
        let mut portions = Vec::new();
        for (shard, pairs) in self.pairs.iter().enumerate().skip(self.shard) {
            let skip = if shard == self.shard { self.skip } else { 0 };
            let rows = pairs.rows.saturating_sub(skip).min(left);
            if rows > 0 {
                portions.push(Portion { shard, skip, rows });
                left -= rows;
            }
        }
        portions
    }

    /// Takes in what came of [`SidePlan::next`]. Of a shard in which fewer pairs than planned were of a fit length,
    /// nothing is left.
    fn take(&mut self, portions: &[Portion], results: &[TaskResult]) {
        for (portion, result) in portions.iter().zip(results) {
            let asked = result.counts.get(ASKED).copied().unwrap_or(0);
            self.asked += asked;
            self.kept += result.artifacts.iter().map(|a| a.rows).sum::<u64>();
            (self.shard, self.skip) = if asked < portion.rows {
                (portion.shard + 1, 0)
            } else {
                (portion.shard, portion.skip + asked)
            };
        }
        self.portions += portions.len();
    }

    fn tasks(&self, key: &str, inputs: &Inputs<'_>, section: &SynthesizeSection) -> Vec<PlannedTask> {
        let role = format!("instructions/{}", self.side);
        let task = |(number, portion): (usize, Portion)| {
            let pairs = &self.pairs[portion.shard];
            let kind = Kind::Synthesize(Synthesize {
                pairs: Some(pairs.clone()),
                rows: portion.rows,
                skip: portion.skip,
                prompts: prompts(section),
                endpoint: Some(endpoint(section)),
                rules: Some(CleaningRules {
                    min_chars: section.min_chars,
                    max_chars: section.max_chars,
                    ..CleaningRules::default()
                }),
                path: format!("{}/{role}/{number:05}.parquet", inputs.directory(STAGE, key)),
                role: role.clone(),
                stage_key: key.into(),
                cache: CACHE.into(),
            });
            PlannedTask {
                spec: Task {
                    output_url: inputs.job.output.clone(),
                    kind: Some(kind),
                },
                weight: portion.rows,
                ranks: Ranks::ONE,
                label: format!("ask about {}", pairs.path.rsplit('/').next().unwrap_or_default()),
            }
        };
        (self.portions..).zip(self.next()).map(task).collect()
    }

    fn shortfall(&self) -> Option<String> {
        (self.kept < self.wanted).then(|| {
            format!(
                "instructions/{} has {} rows of the {} asked for, after {} pairs were asked about: too few pairs of \
                 `synthesize.min_chars` to `synthesize.max_chars` characters, or too many answers that can't be used",
                self.side, self.kept, self.wanted, self.asked
            )
        })
    }
}

/// Asks about as many pairs as examples are wanted, then about further ones in place of those whose answers can't be
/// used.
pub(super) fn phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    let section = section(inputs)?;
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    let mut sides = [
        SidePlan::new(shard, "pairs/train", "train", section.train),
        SidePlan::new(shard, "pairs/holdout", "validation", section.validation),
    ];
    for answered in results {
        let mut rest = answered.as_slice();
        for side in &mut sides {
            let portions = side.next();
            let (own, others) = rest.split_at(portions.len().min(rest.len()));
            side.take(&portions, own);
            rest = others;
        }
    }
    let tasks: Vec<PlannedTask> = sides.iter().flat_map(|s| s.tasks(key, inputs, section)).collect();
    if !tasks.is_empty() {
        let label = if results.is_empty() { "ask" } else { "ask about more" };
        return Ok(Phase::Tasks {
            label: label.into(),
            tasks,
        });
    }
    if let Some(side) = sides.iter().find(|side| side.kept == 0) {
        let reason = format!(
            "no answer can be used: {}. Is `synthesize.model` the model that was meant, and are the prompts right?",
            side.shortfall().unwrap_or_default()
        );
        return Err(PlanError { stage: STAGE, reason });
    }
    let mut manifest = manifest_of(STAGE, key, results.iter().flatten());
    // In the order of their roles, whichever phase they are from.
    manifest.artifacts.sort_by(|a, b| a.path.cmp(&b.path));
    manifest.warnings.extend(sides.iter().filter_map(SidePlan::shortfall));
    Ok(Phase::Complete(manifest))
}

fn prompts(section: &SynthesizeSection) -> Vec<SynthesisPrompt> {
    let prompt = |p: &crate::job::PromptEntry| SynthesisPrompt {
        task: p.task.clone(),
        instruction: p.instruction.clone(),
        prompt: p.prompt.clone(),
    };
    section.prompts.iter().map(prompt).collect()
}

fn endpoint(section: &SynthesizeSection) -> ModelEndpoint {
    ModelEndpoint {
        url: section.url.clone(),
        model: section.model.clone(),
        api_key_env: section.api_key_env.clone(),
        concurrency: section.concurrency,
        requests_per_minute: section.requests_per_minute,
        timeout_s: section.timeout_s,
        attempts: section.attempts,
        max_tokens: section.max_tokens,
        temperature: section.temperature,
        refusals: section.refusals.clone(),
    }
}
