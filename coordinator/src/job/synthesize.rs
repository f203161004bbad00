//! Instruction examples that a large model makes from the job's own pairs (`[synthesize]`).

use llink_proto::settings::{ABOVE_0, Expect, at_least, between, zero};
use serde::{Deserialize, Serialize};

use super::check;

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

llink_proto::settings! {
    /// The endpoint, the prompts and the speed of the synthesis (`[synthesize]`).
    pub struct SynthesizeSection = "synthesize" {
        result {
            /// The base URL of an OpenAI-compatible endpoint, which ends in `/v1`.
            url: String = String::new();
            /// The name of the model at the endpoint.
            model: String = String::new();
            /// The environment variable, on each worker, that holds the key. Absent: no key is sent.
            #[serde(skip_serializing_if = "String::is_empty")]
            api_key_env: String = String::new();
            /// Training examples, made from as many training pairs.
            train: u64 = 40_000, at_least(1.0);
            /// Validation examples, made from as many held-out pairs.
            validation: u64 = 2_000, at_least(1.0);
            /// The prompts. Each pair gets one of them, drawn by its id.
            prompts: Vec<PromptEntry> = paper_prompts();
            /// Pairs whose foreign side has fewer characters are not used.
            min_chars: u32 = 12;
            /// Pairs whose foreign side has more characters are not used.
            max_chars: u32 = 256, between(1.0, 65_535.0);
            /// Requests at the same time, on each worker.
            concurrency: u32 = 8, between(1.0, 1024.0);
            /// The most requests that start in a minute, on each worker; 0 sets no limit.
            #[serde(with = "zero")]
            requests_per_minute: Option<f64> = None, between(0.001, 1e9).because("0 sets no limit");
            /// The time limit of a request, in seconds.
            timeout_s: f64 = 120.0, ABOVE_0.at_most(86_400.0);
            /// The number of tries of a request.
            attempts: u32 = 6, between(1.0, 100.0);
            /// The most tokens in an answer. A longer answer is dropped.
            max_tokens: u32 = 256, at_least(1.0);
            /// The sampling temperature; 0 asks for the likeliest answer.
            temperature: f64 = 0.0, between(0.0, 2.0);
            /// Further beginnings that mark an answer as a refusal.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            refusals: Vec<String> = Vec::new();
        }
    }
}

/// Returns the four tasks of the paper.
fn paper_prompts() -> Vec<PromptEntry> {
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

pub(super) fn problems(s: &SynthesizeSection, expect: Expect<'_>) {
    check::http(&s.url, "synthesize.url", expect, "an http:// or https:// URL, up to /v1");
    let host = s.url.split('/').nth(2).unwrap_or_default();
    expect(
        !host.contains('@'),
        "synthesize.url",
        &"with a password in it",
        "a URL without one: URLs are shown; name the variable that holds the key in `synthesize.api_key_env`",
    );
    expect(!s.model.is_empty(), "synthesize.model", &"empty", "a model's name");
    let complete = |p: &PromptEntry| !p.task.is_empty() && !p.instruction.is_empty();
    expect(
        !s.prompts.is_empty() && s.prompts.iter().all(complete),
        "synthesize.prompts",
        &"incomplete",
        "one or more, each with a task and an instruction",
    );
    let grounded = |p: &PromptEntry| p.prompt.is_empty() || p.prompt.contains("{english}");
    expect(
        s.prompts.iter().all(grounded),
        "synthesize.prompts",
        &"without `{english}`",
        "a prompt that holds {english}",
    );
    let ordered = s.min_chars <= s.max_chars;
    expect(ordered, "synthesize.min_chars", &s.min_chars, "at most `synthesize.max_chars`");
    s.check_bounds(expect);
}
