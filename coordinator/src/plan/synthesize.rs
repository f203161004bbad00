//! The `synthesize` stage has a task for each shard of pairs that the model is asked about.

use llink_datasets::manifest::Manifest;
use llink_datasets::role::{Corpus, Role, Side};
use llink_proto::task::Kind;
use llink_proto::{Artifact, CleaningRules, ModelEndpoint, SynthesisPrompt, Synthesize, TaskResult};

use super::{
    Inputs, Phase, PlanError, PlannedTask, PlannedTasks, StageName, content_of, earlier, json, manifest_of, with_role,
};
use crate::job::SynthesizeSection;

const STAGE: StageName = StageName::Synthesize;
/// The folder of cached answers, below the job's output. All jobs with this output share it.
const CACHE: &str = "synthesize-cache";

fn section<'a>(inputs: &Inputs<'a>) -> Result<&'a SynthesizeSection, PlanError> {
    inputs
        .job
        .synthesize
        .as_ref()
        .ok_or_else(|| PlanError { stage: STAGE, reason: "the job has no [synthesize]".into() })
}

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    // The model's URL and the speed of its requests change no answer.
    let section = SynthesizeSection {
        url: String::new(),
        api_key_env: String::new(),
        concurrency: 0,
        requests_per_minute: None,
        timeout_s: 0.0,
        attempts: 0,
        ..section(inputs)?.clone()
    };
    Ok(vec![
        content_of(shard, Role::Shard(Corpus::Pairs, Side::Train)),
        content_of(shard, Role::Shard(Corpus::Pairs, Side::Holdout)),
        json(&section),
    ])
}

/// The count that holds the number of pairs that a task asked about.
const ASKED: &str = "synthesized.rows";
/// The most pairs that are asked about for each wanted example. Without this limit, a model that refuses most requests
/// would be asked about every pair.
const MOST_ASKED: u64 = 2;

/// A part of a shard's pairs to ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Portion {
    shard: usize,
    /// Number of pairs of a fitting length that were asked about before.
    skip: u64,
    rows: u64,
}

/// The examples of one side: how many are wanted, and which pairs are used up.
struct SidePlan {
    side: Side,
    pairs: Vec<Artifact>,
    wanted: u64,
    kept: u64,
    asked: u64,
    shard: usize,
    skip: u64,
    portions: usize,
}

impl SidePlan {
    fn new(shard: &Manifest, side: Side, wanted: u64) -> Self {
        Self {
            side,
            pairs: with_role(shard, Role::Shard(Corpus::Pairs, side)),
            wanted,
            kept: 0,
            asked: 0,
            shard: 0,
            skip: 0,
            portions: 0,
        }
    }

    /// Returns the next portions: as many pairs as examples are missing, if there are so many.
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

    /// Adds the results of [`SidePlan::next`]. A shard that had fewer pairs of a fitting length than planned is used
    /// up.
    fn take(&mut self, portions: &[Portion], results: &[TaskResult]) {
        for (portion, result) in portions.iter().zip(results) {
            let asked = result.counts.get(ASKED).copied().unwrap_or(0);
            self.asked += asked;
            self.kept += result.artifacts.iter().map(|a| a.rows).sum::<u64>();
            (self.shard, self.skip) =
                if asked < portion.rows { (portion.shard + 1, 0) } else { (portion.shard, portion.skip + asked) };
        }
        self.portions += portions.len();
    }

    fn tasks(&self, key: &str, inputs: &Inputs<'_>, section: &SynthesizeSection) -> Vec<PlannedTask> {
        let role = self.role();
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
                role: role.to_string(),
                stage_key: key.into(),
                cache: CACHE.into(),
            });
            let label = format!("ask about {}", pairs.path.rsplit('/').next().unwrap_or_default());
            inputs.task(kind, portion.rows, label)
        };
        (self.portions..).zip(self.next()).map(task).collect()
    }

    fn role(&self) -> Role {
        Role::Shard(Corpus::Instructions, self.side)
    }

    fn shortfall(&self) -> Option<String> {
        let (role, Self { kept, wanted, asked, .. }) = (self.role(), self);
        (kept < wanted).then(|| {
            format!(
                "{role} has {kept} rows of the {wanted} asked for, after {asked} pairs were asked about: too few pairs of \
                 `synthesize.min_chars` to `synthesize.max_chars` characters, or too many answers that can't be used",
            )
        })
    }
}

/// Asks about as many pairs as examples are wanted, then about further pairs for the answers that can't be used.
pub(super) fn phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    let section = section(inputs)?;
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    let mut sides =
        [SidePlan::new(shard, Side::Train, section.train), SidePlan::new(shard, Side::Holdout, section.validation)];
    for answered in results {
        let mut rest = answered.as_slice();
        for side in &mut sides {
            let portions = side.next();
            let (own, others) = rest.split_at(portions.len().min(rest.len()));
            side.take(&portions, own);
            rest = others;
        }
    }
    let tasks: PlannedTasks = sides.iter().flat_map(|s| s.tasks(key, inputs, section)).collect();
    if !tasks.is_empty() {
        let label = if results.is_empty() { "ask" } else { "ask about more" };
        return Ok(Phase::Tasks { label: label.into(), tasks });
    }
    if let Some(side) = sides.iter().find(|side| side.kept == 0) {
        let reason = format!(
            "no answer can be used: {}. Is `synthesize.model` the model that was meant, and are the prompts right?",
            side.shortfall().unwrap_or_default()
        );
        return Err(PlanError { stage: STAGE, reason });
    }
    let mut manifest = manifest_of(STAGE, key, results.iter().flatten());
    // The artifacts are sorted by their paths, whatever phase they are from.
    manifest.artifacts.sort_by(|a, b| a.path.cmp(&b.path));
    manifest.warnings.extend(sides.iter().filter_map(SidePlan::shortfall));
    Ok(Phase::Complete(manifest))
}

fn prompts(section: &SynthesizeSection) -> Vec<SynthesisPrompt> {
    let prompt = |p: &crate::job::PromptEntry| SynthesisPrompt {
        task: p.task.clone(),
        instruction: p.instruction.clone(),
        prompt: Some(p.prompt.clone()).filter(|prompt| !prompt.is_empty()),
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
