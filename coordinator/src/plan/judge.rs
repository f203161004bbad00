//! The judge's part of the `evaluate` stage.

use llink_proto::{Judge, ModelEndpoint};

use super::Inputs;
use crate::job::{EvaluateSection, JobFile, JudgeSection};

/// The folder of cached replies, below the job's output. All jobs with this output share it.
const CACHE: &str = "judge-cache";

/// Returns the section without the settings that change no result: the judge's URL and the speed of its requests.
pub(super) fn evaluate_section(job: &JobFile) -> EvaluateSection {
    let judge = job.evaluate.judge.as_ref().map(|judge| JudgeSection {
        url: String::new(),
        api_key_env: String::new(),
        concurrency: 0,
        requests_per_minute: None,
        timeout_s: 0.0,
        attempts: 0,
        direct_answers: None,
        ..judge.clone()
    });
    EvaluateSection { judge, ..job.evaluate.clone() }
}

pub(super) fn stamp(inputs: &Inputs<'_>) -> String {
    let judge = inputs.job.evaluate.judge.as_ref();
    let url = judge.and_then(|judge| judge.direct_answers.as_ref());
    url.and_then(|url| inputs.stamps.get(url)).cloned().unwrap_or_default()
}

/// Returns the judge's part of the task, if the job has a judge; its judgments go into `directory`.
pub(super) fn judge(directory: &str, job: &JobFile) -> Option<Judge> {
    let judge = job.evaluate.judge.as_ref()?;
    let section = job.instruct.as_ref()?;
    Some(Judge {
        endpoint: Some(ModelEndpoint {
            url: judge.url.clone(),
            model: judge.model.clone(),
            api_key_env: judge.api_key_env.clone(),
            concurrency: judge.concurrency,
            requests_per_minute: judge.requests_per_minute,
            timeout_s: judge.timeout_s,
            attempts: judge.attempts,
            max_tokens: judge.max_tokens,
            ..ModelEndpoint::default()
        }),
        examples: judge.examples,
        direct_answers: judge.direct_answers.clone(),
        max_answer_tokens: job.evaluate.max_answer_tokens,
        max_tokens: section.max_tokens,
        path: format!("{directory}/judgements.jsonl"),
        cache: CACHE.into(),
        runs: judge.runs,
    })
}
