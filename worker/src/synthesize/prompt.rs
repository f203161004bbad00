//! What is asked, and which answers are none.

use llink_datasets::manifest::sha256_hex;
use serde_json::{Value, json};

/// What is asked when the job says nothing else.
const TEMPLATE: &str = "{instruction}\n\nText: {english}";
/// Keeps answers to what the text says.
const SYSTEM: &str = "You are given a text. Do what is asked, from what the text says and nothing else. Answer in English, \
with the answer alone.";

/// How answers begin that are none.
const REFUSALS: [&str; 10] = [
    "i'm sorry",
    "i am sorry",
    "sorry,",
    "i cannot",
    "i can't",
    "i can’t",
    "i'm unable",
    "i am unable",
    "as an ai",
    "as a language model",
];

/// A task that examples are made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// `summarize`, …
    pub task: String,
    /// What the example asks.
    pub instruction: String,
    /// What the model is asked, with `{instruction}` and `{english}`; empty: the usual.
    pub template: String,
}

/// The body of a request. Equal bodies have equal answers: it is what answers are cached by.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    body: Value,
}

impl Request {
    /// Asks `model` about an English text.
    #[must_use]
    pub fn new(model: &str, prompt: &Prompt, english: &str, max_tokens: u32, temperature: f64) -> Self {
        let template = if prompt.template.is_empty() {
            TEMPLATE
        } else {
            &prompt.template
        };
        // The text last: what it says is not looked at for placeholders.
        let asked = template
            .replace("{instruction}", &prompt.instruction)
            .replace("{english}", english);
        Self::chat(model, SYSTEM, &asked, max_tokens, temperature)
    }

    /// Asks `model` anything.
    #[must_use]
    pub fn chat(model: &str, system: &str, asked: &str, max_tokens: u32, temperature: f64) -> Self {
        let messages = json!([
            { "role": "system", "content": system },
            { "role": "user", "content": asked },
        ]);
        Self {
            body: json!({
                "model": model,
                "messages": messages,
                "max_tokens": max_tokens,
                "temperature": temperature,
            }),
        }
    }

    /// As it is sent.
    #[must_use]
    pub fn body(&self) -> String {
        self.body.to_string()
    }

    /// A number from 0 to 1 that differs between requests.
    pub(super) fn fraction(&self) -> f64 {
        let hash = self.hash();
        u8::from_str_radix(&hash[..2], 16).map_or(0.0, |byte| f64::from(byte) / 255.0)
    }

    /// SHA-256 of what is sent.
    #[must_use]
    pub fn hash(&self) -> String {
        sha256_hex(self.body().as_bytes())
    }
}

/// Whether an answer begins as a refusal does; `more` are the job's own beginnings.
#[must_use]
pub fn is_refusal(answer: &str, more: &[String]) -> bool {
    let answer = answer.trim_start().to_lowercase();
    let begins = |beginning: &str| answer.starts_with(&beginning.to_lowercase());
    REFUSALS.iter().any(|r| begins(r)) || more.iter().any(|r| begins(r))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_by_everything_that_is_asked() {
        let prompt = Prompt {
            task: "summarize".into(),
            instruction: "Summarize.".into(),
            template: String::new(),
        };
        let request = |text: &str, temperature: f64| Request::new("m", &prompt, text, 64, temperature).hash();
        assert_eq!(request("a", 0.0), request("a", 0.0));
        assert_ne!(request("a", 0.0), request("b", 0.0));
        assert_ne!(request("a", 0.0), request("a", 0.5));
        let body = Request::new("m", &prompt, "say {instruction}", 64, 0.0).body();
        assert!(body.contains("Text: say {instruction}"), "{body}");
    }

    #[test]
    fn refusals_are_known_by_how_they_begin() {
        assert!(is_refusal(" I'm sorry, but I can't.", &[]));
        assert!(!is_refusal("The farmer says that he is sorry, I cannot tell why.", &[]));
        assert!(is_refusal("N/A", &["n/a".into()]));
    }
}
