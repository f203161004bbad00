//! Instruction examples that a large model makes from the job's own pairs (`[synthesize]`).

use serde::{Deserialize, Serialize};

/// A task for which examples are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptEntry {
    /// The name of the task.
    pub task: String,
    /// The instruction of the example about the foreign text.
    pub instruction: String,
    /// The prompt for the model, with `{instruction}` and `{english}`. Absent: the instruction, then the text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt: String,
}

/// The expected number of requests in a minute, for errors.
pub(super) const RATE: &str = "0, or 0.001 to 1000000000";

/// Returns whether a number of requests in a minute is as expected.
pub(super) fn is_rate(per_minute: f64) -> bool {
    per_minute == 0.0 || (0.001..=1e9).contains(&per_minute)
}

/// The endpoint, the prompts and the speed of the synthesis (`[synthesize]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SynthesizeSection {
    /// The base URL of an OpenAI-compatible endpoint, which ends in `/v1`.
    pub url: String,
    /// The name of the model at the endpoint.
    pub model: String,
    /// The environment variable, on each worker, that holds the key. Absent: no key is sent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_key_env: String,
    /// Training examples, made from as many training pairs.
    #[serde(default = "default_train")]
    pub train: u64,
    /// Validation examples, made from as many held-out pairs.
    #[serde(default = "default_validation")]
    pub validation: u64,
    /// The prompts. Each pair gets one of them, drawn by its id.
    #[serde(default = "default_prompts")]
    pub prompts: Vec<PromptEntry>,
    /// Pairs whose foreign side has fewer characters are not used.
    #[serde(default = "default_min_chars")]
    pub min_chars: u32,
    /// Pairs whose foreign side has more characters are not used.
    #[serde(default = "default_max_chars")]
    pub max_chars: u32,
    /// Requests at the same time, on each worker.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// The most requests that start in a minute, on each worker; 0 sets no limit.
    #[serde(default)]
    pub requests_per_minute: f64,
    /// The time limit of a request, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout_s: f64,
    /// The number of tries of a request.
    #[serde(default = "default_attempts")]
    pub attempts: u32,
    /// The most tokens in an answer. A longer answer is dropped.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
    /// The sampling temperature; 0 asks for the likeliest answer.
    #[serde(default)]
    pub temperature: f64,
    /// Further beginnings that mark an answer as a refusal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<String>,
}

fn default_train() -> u64 {
    40_000
}

fn default_validation() -> u64 {
    2_000
}

fn default_min_chars() -> u32 {
    12
}

fn default_max_chars() -> u32 {
    256
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
    256
}

/// Returns the four tasks of the paper.
fn default_prompts() -> Vec<PromptEntry> {
    [
        ("translate", "Translate the text into English."),
        ("summarize", "Summarize the text in one sentence."),
        ("bullet_points", "List the main points of the text as bullet points."),
        ("question_answering", "What is the text about?"),
    ]
    .map(|(task, instruction)| PromptEntry {
        task: task.into(),
        instruction: instruction.into(),
        prompt: String::new(),
    })
    .to_vec()
}

/// Returns every invalid value: key, what was given, what was expected.
pub(super) fn faults(s: &SynthesizeSection) -> Vec<(&'static str, String, &'static str)> {
    let mut found = Vec::new();
    let mut expect = |holds: bool, key: &'static str, given: String, expected: &'static str| {
        if !holds {
            found.push((key, given, expected));
        }
    };
    let is_http = s.url.starts_with("http://") || s.url.starts_with("https://");
    expect(
        is_http,
        "synthesize.url",
        format!("{:?}", s.url),
        "an http:// or https:// URL, up to /v1",
    );
    let host = s.url.split('/').nth(2).unwrap_or_default();
    expect(
        !host.contains('@'),
        "synthesize.url",
        "with a password in it".into(),
        "a URL without one: URLs are shown; name the variable that holds the key in `synthesize.api_key_env`",
    );
    expect(
        !s.model.is_empty(),
        "synthesize.model",
        "empty".into(),
        "a model's name",
    );
    expect(s.train >= 1, "synthesize.train", s.train.to_string(), "at least 1");
    expect(
        s.validation >= 1,
        "synthesize.validation",
        s.validation.to_string(),
        "at least 1",
    );
    let prompts = !s.prompts.is_empty()
        && s.prompts
            .iter()
            .all(|p| !p.task.is_empty() && !p.instruction.is_empty());
    expect(
        prompts,
        "synthesize.prompts",
        "incomplete".into(),
        "one or more, each with a task and an instruction",
    );
    let grounded = s
        .prompts
        .iter()
        .all(|p| p.prompt.is_empty() || p.prompt.contains("{english}"));
    expect(
        grounded,
        "synthesize.prompts",
        "without `{english}`".into(),
        "a prompt that holds {english}",
    );
    let chars = s.min_chars <= s.max_chars && (1..=65_535).contains(&s.max_chars);
    expect(
        chars,
        "synthesize.max_chars",
        s.max_chars.to_string(),
        "`synthesize.min_chars` to 65535",
    );
    let concurrency = (1..=1024).contains(&s.concurrency);
    expect(
        concurrency,
        "synthesize.concurrency",
        s.concurrency.to_string(),
        "1 to 1024",
    );
    expect(
        is_rate(s.requests_per_minute),
        "synthesize.requests_per_minute",
        s.requests_per_minute.to_string(),
        RATE,
    );
    let timeout = s.timeout_s > 0.0 && s.timeout_s <= 86_400.0;
    expect(
        timeout,
        "synthesize.timeout_s",
        s.timeout_s.to_string(),
        "above 0, at most 86400",
    );
    expect(
        (1..=100).contains(&s.attempts),
        "synthesize.attempts",
        s.attempts.to_string(),
        "1 to 100",
    );
    expect(
        s.max_tokens >= 1,
        "synthesize.max_tokens",
        s.max_tokens.to_string(),
        "at least 1",
    );
    let temperature = (0.0..=2.0).contains(&s.temperature);
    expect(
        temperature,
        "synthesize.temperature",
        s.temperature.to_string(),
        "0 to 2",
    );
    found
}
