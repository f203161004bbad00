//! Answers in the form of OpenAI's API.

use serde_json::{Map, Value, json};

/// The parts that all messages about one answer share.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) bundle: String,
    /// Whether a stream ends with the numbers of tokens.
    pub(super) include_usage: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    Stop,
    Length,
}

impl Finish {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// The numbers of tokens of a prompt and its answer, and of characters that the encoder did not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    pub(super) prompt: usize,
    pub(super) completion: usize,
    pub(super) unread_chars: usize,
}

impl Usage {
    fn value(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

impl Reply {
    pub(super) fn whole(&self, text: &str, finish: Finish, usage: Usage) -> Value {
        let message = json!({"role": "assistant", "content": text, "refusal": null});
        let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": finish.name()});
        let mut whole = self.head("chat.completion", json!([choice]));
        whole.insert("usage".into(), usage.value());
        add_unread(&mut whole, usage);
        whole.into()
    }

    /// Returns the first part of a stream, which has no text.
    pub(super) fn first(&self, usage: Usage) -> Value {
        let mut first = self.chunk(json!({"role": "assistant", "content": ""}), None);
        add_unread(&mut first, usage);
        first.into()
    }

    pub(super) fn piece(&self, text: &str) -> Value {
        self.chunk(json!({ "content": text }), None).into()
    }

    pub(super) fn last(&self, finish: Finish, usage: Usage) -> Vec<Value> {
        let mut last = vec![self.chunk(json!({}), Some(finish)).into()];
        if self.include_usage {
            let mut counted = self.head("chat.completion.chunk", json!([]));
            counted.insert("usage".into(), usage.value());
            last.push(counted.into());
        }
        last
    }

    fn chunk(&self, delta: Value, finish: Option<Finish>) -> Map<String, Value> {
        let finish = finish.map(Finish::name);
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
        let mut chunk = self.head("chat.completion.chunk", json!([choice]));
        if self.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        chunk
    }

    fn head(&self, object: &str, choices: Value) -> Map<String, Value> {
        let members = [
            ("id", json!(self.id)),
            ("object", json!(object)),
            ("created", json!(self.created)),
            ("model", json!(self.model)),
            ("system_fingerprint", json!(self.bundle)),
            ("choices", choices),
        ];
        members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// Tells a client that its passages were longer than the encoder's limit.
fn add_unread(answer: &mut Map<String, Value>, usage: Usage) {
    if usage.unread_chars > 0 {
        answer.insert("llink".into(), json!({"unread_chars": usage.unread_chars}));
    }
}
