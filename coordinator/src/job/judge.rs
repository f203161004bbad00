//! The judge (`[evaluate.judge]`): a large model that prefers one answer to another.

use llink_proto::settings::{ABOVE_0, Expect, at_least, between, zero};

use super::{JobFile, check};

llink_proto::settings! {
    /// The judge's endpoint and the answers that it compares (`[evaluate.judge]`).
    pub struct JudgeSection = "evaluate.judge" {
        result {
            /// The base URL of an OpenAI-compatible endpoint, which ends in `/v1`.
            url: String = String::new();
            /// The name of the model at the endpoint.
            model: String = String::new();
            /// The environment variable, on each worker, that holds the key. Absent: no key is sent.
            #[serde(skip_serializing_if = "String::is_empty")]
            api_key_env: String = String::new();
            /// The number of answers to judge, from the first on. Each is compared with the base decoder's answer, twice.
            examples: u32 = 100, at_least(1.0);
            /// The `answers.jsonl` of another job with the same instructions and `mode = "direct"`, for comparison. A job with
            /// mode `both` compares with its own direct answers.
            #[serde(skip_serializing_if = "Option::is_none")]
            direct_answers: Option<String> = None;
            /// Requests at the same time.
            concurrency: u32 = 8, between(1.0, 1024.0);
            /// The most requests that start in a minute; 0 sets no limit.
            #[serde(with = "zero")]
            requests_per_minute: Option<f64> = None, between(0.001, 1e9).because("0 sets no limit");
            /// The time limit of a request, in seconds.
            timeout_s: f64 = 120.0, ABOVE_0.at_most(86_400.0);
            /// The number of tries of a request.
            attempts: u32 = 6, between(1.0, 100.0);
            /// The most tokens in a reply. Models that think aloud need more.
            max_tokens: u32 = 16, at_least(1.0);
            /// How often each pair is judged in both orders. With 2 or more, the report says how many verdicts change between runs.
            runs: u32 = 1, between(1.0, 10.0);
        }
    }
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
    check::http(&judge.url, "evaluate.judge.url", expect, "an http:// or https:// URL, up to /v1");
    expect(!judge.model.is_empty(), "evaluate.judge.model", &"empty", "a model's name");
    judge.check_bounds(expect);
}
