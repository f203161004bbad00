//! The form of a request. Endpoints agree on most of it, and report their differences.

use super::said::Said;

/// The differences that an endpoint has reported. They are found out once and then hold for the whole task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Dialect {
    /// The name of the token limit. OpenAI's o and gpt-5 models accept only `max_completion_tokens`.
    pub(super) limit: Limit,
    /// Whether the temperature is sent. Those models have a fixed temperature and refuse the field.
    pub(super) temperature: Temperature,
    /// The place of the system message. Gemma and o1-mini have none.
    pub(super) system: System,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Limit {
    #[default]
    MaxTokens,
    MaxCompletionTokens,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Temperature {
    #[default]
    Named,
    LeftOut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum System {
    #[default]
    OwnMessage,
    BeforeTheQuestion,
}

/// Phrases by which endpoints refuse a parameter.
const UNWANTED: [&str; 12] = [
    "unsupported",
    "not supported",
    "does not support",
    "doesn't support",
    "not permitted",
    "not allowed",
    "unrecognized",
    "unknown",
    "extra inputs",
    "deprecated",
    "instead",
    "only the default",
];

impl Dialect {
    /// Returns the dialect that a refusal asks for, or `None` if it asks for none or for the current one.
    pub(super) fn wanted_by(self, said: &Said) -> Option<Self> {
        let unwanted = UNWANTED.iter().any(|word| said.speaks_of(&[word]));
        if unwanted && self.limit == Limit::MaxTokens && said.speaks_of(&["max_completion_tokens"]) {
            return Some(Self { limit: Limit::MaxCompletionTokens, ..self });
        }
        let strict = said.speaks_of(&["strictly positive"]);
        if (unwanted || strict) && self.temperature == Temperature::Named && said.speaks_of(&["temperature"]) {
            return Some(Self { temperature: Temperature::LeftOut, ..self });
        }
        let role = unwanted && said.speaks_of(&["system", "role"]);
        if role && self.system == System::OwnMessage {
            return Some(Self { system: System::BeforeTheQuestion, ..self });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;
    use serde_json::json;

    use super::*;

    fn wanted(dialect: Dialect, message: &str) -> Option<Dialect> {
        let body = json!({ "error": { "message": message, "type": "invalid_request_error" } }).to_string();
        dialect.wanted_by(&Said::of(StatusCode::BAD_REQUEST, body.as_bytes(), None))
    }

    #[test]
    fn each_wish_is_granted_once() {
        let limit = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.";
        let temperature = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.";
        let system = "Unsupported value: 'messages[0].role' does not support 'system' with this model.";
        let first = wanted(Dialect::default(), limit).unwrap();
        assert_eq!((first.limit, first.temperature), (Limit::MaxCompletionTokens, Temperature::Named));
        assert_eq!(wanted(first, limit), None);
        let second = wanted(first, temperature).unwrap();
        assert_eq!(second.temperature, Temperature::LeftOut);
        assert_eq!(wanted(second, temperature), None);
        let third = wanted(second, system).unwrap();
        assert_eq!(third.system, System::BeforeTheQuestion);
        assert_eq!(wanted(third, system), None);
        assert_eq!(wanted(Dialect::default(), "System role not supported").unwrap().system, System::BeforeTheQuestion);
    }

    #[test]
    fn a_text_that_is_too_long_changes_nothing() {
        for message in [
            "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 4096 tokens.",
            "This model's maximum context length is 4096 tokens, however you requested 5000 tokens.",
        ] {
            assert_eq!(wanted(Dialect::default(), message), None, "{message}");
        }
    }
}
