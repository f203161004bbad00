//! What the `evaluate` stage asks a judge.

use llink_proto::{Judge, ModelEndpoint};

use super::Inputs;
use crate::job::{EvaluateSection, JobFile, JudgeSection};

/// Where replies are kept, below the job's output: shared by all jobs that write there.
const CACHE: &str = "judge-cache";

/// The section without what changes no result: where the judge is reached and how fast it is asked.
pub(super) fn evaluate_section(job: &JobFile) -> EvaluateSection {
    let judge = job.evaluate.judge.as_ref().map(|judge| JudgeSection {
        url: String::new(),
        api_key_env: String::new(),
        concurrency: 0,
        requests_per_minute: 0.0,
        timeout_s: 0.0,
        attempts: 0,
        direct_answers: None,
        ..judge.clone()
    });
    EvaluateSection {
        judge,
        ..job.evaluate.clone()
    }
}

/// The stamp of the direct answers, if there are any.
pub(super) fn stamp(inputs: &Inputs<'_>) -> String {
    let judge = inputs.job.evaluate.judge.as_ref();
    let url = judge.and_then(|judge| judge.direct_answers.as_ref());
    url.and_then(|url| inputs.stamps.get(url)).cloned().unwrap_or_default()
}

/// What the judge is asked, if the job has one; what it said goes into `directory`.
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
        direct_answers: judge.direct_answers.clone().unwrap_or_default(),
        max_answer_tokens: job.evaluate.max_answer_tokens,
        max_tokens: section.max_tokens,
        path: format!("{directory}/judgements.jsonl"),
        cache: CACHE.into(),
    })
}
