//! The `synthesize` stage: one task for each shard of pairs that is asked about.

use llink_proto::task::Kind;
use llink_proto::{CleaningRules, ModelEndpoint, SynthesisPrompt, Synthesize, Task, TaskResult};

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

pub(super) fn phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    let section = section(inputs)?;
    if let Some(answered) = results.first() {
        let mut manifest = manifest_of(STAGE, key, answered);
        for (side, wanted) in [("train", section.train), ("validation", section.validation)] {
            let role = format!("instructions/{side}");
            let made: u64 = with_role(&manifest, &role).iter().map(|a| a.rows).sum();
            if made < wanted {
                manifest.warnings.push(format!(
                    "{role} has {made} rows of the {wanted} asked for: too few pairs of `synthesize.min_chars` to \
                     `synthesize.max_chars`, or too many answers that can't be used"
                ));
            }
        }
        return Ok(Phase::Complete(manifest));
    }
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    let mut tasks = Vec::new();
    for (from, side, wanted) in [
        ("pairs/train", "train", section.train),
        ("pairs/holdout", "validation", section.validation),
    ] {
        let mut left = wanted;
        for (i, pairs) in with_role(shard, from).into_iter().enumerate() {
            let rows = pairs.rows.min(left);
            left -= rows;
            if rows == 0 {
                break;
            }
            let role = format!("instructions/{side}");
            let kind = Kind::Synthesize(Synthesize {
                pairs: Some(pairs),
                rows,
                prompts: prompts(section),
                endpoint: Some(endpoint(section)),
                rules: Some(CleaningRules {
                    min_chars: section.min_chars,
                    max_chars: section.max_chars,
                    ..CleaningRules::default()
                }),
                path: format!("{}/{role}/{i:05}.parquet", super::directory(STAGE, key)),
                role,
                stage_key: key.into(),
                cache: CACHE.into(),
            });
            tasks.push(PlannedTask {
                spec: Task {
                    output_url: inputs.job.output.clone(),
                    kind: Some(kind),
                },
                weight: rows,
                ranks: Ranks::ONE,
                label: format!("ask about {from}/{i:05}"),
            });
        }
    }
    Ok(Phase::Tasks {
        label: "ask".into(),
        tasks,
    })
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
