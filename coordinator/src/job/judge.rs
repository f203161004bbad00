//! The judge (`[evaluate.judge]`): a large model that prefers one answer to another.

use llink_proto::settings::Expect;
use serde::{Deserialize, Serialize};

use super::JobFile;
use super::synthesize::{RATE, is_rate};

/// The judge's endpoint and the answers that it compares (`[evaluate.judge]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeSection {
    /// The base URL of an OpenAI-compatible endpoint, which ends in `/v1`.
    pub url: String,
    /// The name of the model at the endpoint.
    pub model: String,
    /// The environment variable, on each worker, that holds the key. Absent: no key is sent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_key_env: String,
    /// The number of answers to judge, from the first on. Each is compared with the base decoder's answer, twice.
    #[serde(default = "default_examples")]
    pub examples: u32,
    /// The `answers.jsonl` of another job with the same instructions and `mode = "direct"`, for comparison. A job with
    /// mode `both` compares with its own direct answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_answers: Option<String>,
    /// Requests at the same time.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// The most requests that start in a minute; 0 sets no limit.
    #[serde(default)]
    pub requests_per_minute: f64,
    /// The time limit of a request, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout_s: f64,
    /// The number of tries of a request.
    #[serde(default = "default_attempts")]
    pub attempts: u32,
    /// The most tokens in a reply. Models that think aloud need more.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
}

fn default_examples() -> u32 {
    100
}

fn default_concurrency() -> u32 {
    8
}

fn default_timeout() -> f64 {
    120.0
}

fn default_attempts() -> u32 {
    6
}

fn default_max_tokens() -> u32 {
    16
}

/// Reports invalid values.
pub(super) fn problems(job: &JobFile, expect: Expect<'_>) {
    let Some(judge) = &job.evaluate.judge else { return };
    expect(
        job.instruct.is_some() && job.evaluate.answers > 0,
        "evaluate.judge",
        &"given",
        "an [instruct] section, and `evaluate.answers` above 0: answers are what is judged",
    );
    let is_http = judge.url.starts_with("http://") || judge.url.starts_with("https://");
    expect(
        is_http,
        "evaluate.judge.url",
        &format!("{:?}", judge.url),
        "an http:// or https:// URL, up to /v1",
    );
    expect(
        !judge.model.is_empty(),
        "evaluate.judge.model",
        &"empty",
        "a model's name",
    );
    for (key, value, most) in [
        ("evaluate.judge.examples", judge.examples, u32::MAX),
        ("evaluate.judge.concurrency", judge.concurrency, 1024),
        ("evaluate.judge.attempts", judge.attempts, 100),
        ("evaluate.judge.max_tokens", judge.max_tokens, u32::MAX),
    ] {
        let expected = match most {
            u32::MAX => "at least 1".to_owned(),
            most => format!("1 to {most}"),
        };
        expect((1..=most).contains(&value), key, &value, &expected);
    }
    expect(
        is_rate(judge.requests_per_minute),
        "evaluate.judge.requests_per_minute",
        &judge.requests_per_minute,
        RATE,
    );
    let timeout = judge.timeout_s > 0.0 && judge.timeout_s <= 86_400.0;
    expect(
        timeout,
        "evaluate.judge.timeout_s",
        &judge.timeout_s,
        "above 0, at most 86400",
    );
}
