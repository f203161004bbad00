//! The requests to a large model.

use llink_datasets::manifest::sha256_hex;
use llink_proto::SynthesisPrompt;
use serde_json::json;

use super::dialect::{Dialect, Limit, System, Temperature};

/// The default prompt.
const TEMPLATE: &str = "{instruction}\n\nText: {english}";
/// The system message, which limits answers to the content of the text.
const SYSTEM: &str = "You are given a text. Do what is asked, from what the text says and nothing else. Answer in English, \
with the answer alone.";

/// A request to a model. Equal requests have equal answers: answers are cached by [`Request::hash`].
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    model: String,
    system: String,
    asked: String,
    max_tokens: u32,
    temperature: f64,
}

impl Request {
    /// Makes a request to `model` about an English text.
    pub fn new(model: &str, prompt: &SynthesisPrompt, english: &str, max_tokens: u32, temperature: f64) -> Self {
        let template = prompt.prompt.as_deref().unwrap_or(TEMPLATE);
        // The text is inserted last, so that placeholders in it have no effect.
        let asked = template.replace("{instruction}", &prompt.instruction).replace("{english}", english);
        Self::chat(model, SYSTEM, &asked, max_tokens, temperature)
    }

    /// Makes a request to `model` with any question.
    pub fn chat(model: &str, system: &str, asked: &str, max_tokens: u32, temperature: f64) -> Self {
        Self { model: model.into(), system: system.into(), asked: asked.into(), max_tokens, temperature }
    }

    pub(super) fn body(&self, dialect: Dialect) -> String {
        let messages = match dialect.system {
            System::OwnMessage => json!([
                { "role": "system", "content": self.system },
                { "role": "user", "content": self.asked },
            ]),
            System::BeforeTheQuestion => json!([
                { "role": "user", "content": format!("{}\n\n{}", self.system, self.asked) },
            ]),
        };
        let mut body = json!({ "model": self.model, "messages": messages });
        let limit = match dialect.limit {
            Limit::MaxTokens => "max_tokens",
            Limit::MaxCompletionTokens => "max_completion_tokens",
        };
        body[limit] = self.max_tokens.into();
        if dialect.temperature == Temperature::Named {
            body["temperature"] = self.temperature.into();
        }
        body.to_string()
    }

    /// Returns a number from 0 to 1 that differs between requests.
    pub(super) fn fraction(&self) -> f64 {
        let hash = self.hash();
        u8::from_str_radix(&hash[..2], 16).map_or(0.0, |byte| f64::from(byte) / 255.0)
    }

    /// Returns the SHA-256 of the request, which does not depend on the endpoint's dialect.
    pub fn hash(&self) -> String {
        sha256_hex(self.body(Dialect::default()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_by_everything_that_is_asked() {
        let prompt = SynthesisPrompt { instruction: "Summarize.".into(), ..SynthesisPrompt::default() };
        let request = |text: &str, temperature: f64| Request::new("m", &prompt, text, 64, temperature).hash();
        assert_eq!(request("a", 0.0), request("a", 0.0));
        assert_ne!(request("a", 0.0), request("b", 0.0));
        assert_ne!(request("a", 0.0), request("a", 0.5));
        let body = Request::new("m", &prompt, "say {instruction}", 64, 0.0).body(Dialect::default());
        assert!(body.contains("Text: say {instruction}"), "{body}");
    }

    #[test]
    fn a_request_is_written_in_the_dialect_that_the_endpoint_wants() {
        let request = Request::chat("m", "Be brief.", "What?", 64, 0.5);
        let written = |dialect| serde_json::from_str::<serde_json::Value>(&request.body(dialect)).unwrap();
        let usual = written(Dialect::default());
        assert_eq!((&usual["max_tokens"], &usual["temperature"]), (&json!(64), &json!(0.5)));
        let other = written(Dialect {
            limit: Limit::MaxCompletionTokens,
            temperature: Temperature::LeftOut,
            system: System::BeforeTheQuestion,
        });
        assert_eq!(other["max_completion_tokens"], 64);
        assert!(other.get("max_tokens").is_none() && other.get("temperature").is_none(), "{other}");
        assert_eq!(other["messages"], json!([{ "role": "user", "content": "Be brief.\n\nWhat?" }]));
    }
}
