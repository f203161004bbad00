//! Reads requests for chat completions. A field that asks for what cannot be done is refused by its name.

use axum::http::StatusCode;
use llink_datasets::text::{ZeroWidth, clean_line};
use llink_worker::bundle::Answering;
use llink_worker::models::{Part, Sampling, Turn};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::error::ApiError;

/// The value of a part's key `llink` that marks a foreign text.
const PASSAGE: &str = "passage";
/// The most texts at which an answer may end.
const STOPS: usize = 4;
const WITHOUT_EFFECT: [&str; 7] =
    ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"];

#[derive(Debug, Clone, PartialEq)]
pub(super) struct ChatRequest {
    pub(super) messages: Vec<Message>,
    pub(super) answering: Answering,
    /// The texts before the first of which the answer ends.
    pub(super) stop: Vec<String>,
    pub(super) stream: bool,
    /// Whether a stream ends with the numbers of tokens.
    pub(super) include_usage: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    role: &'static str,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Passage(String),
}

impl Message {
    /// Returns the message for the decoder's chat template.
    pub(super) fn turn(&self) -> Turn<'_> {
        let parts = self.pieces.iter().map(|piece| match piece {
            Piece::Text(text) => Part::Text(text),
            Piece::Passage(text) => Part::Passage(text),
        });
        Turn { role: self.role, parts: parts.collect() }
    }
}

/// Values that the server gives to requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults<'a> {
    pub(super) model: &'a str,
    /// The most tokens of an answer, if the request does not say it.
    pub(super) max_tokens: usize,
    pub(super) seed: u64,
}

impl ChatRequest {
    pub(super) fn parse(body: &[u8], defaults: Defaults<'_>) -> Result<Self, ApiError> {
        let body: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
            let text = format!("the body is not a JSON object: {error}");
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", text)
        })?;
        let mut fields = Fields(body);
        let model: String = fields.required("model", "the name of the model as a text")?;
        if model != defaults.model {
            return Err(ApiError {
                status: StatusCode::NOT_FOUND,
                ..ApiError::of_field(
                    "model",
                    "model_not_found",
                    format!("there is no model {model:?} here: this server has {:?}", defaults.model),
                )
            });
        }
        let messages: Vec<Value> = fields.required("messages", "a list of messages")?;
        if messages.is_empty() {
            return Err(wrong("messages", "has no message: expected at least one"));
        }
        let messages = messages.into_iter().enumerate();
        let messages = messages.map(|(at, message)| Message::parse(message, &format!("messages[{at}]")));
        let messages = messages.collect::<Result<_, _>>()?;
        let answering = fields.answering(defaults)?;
        let stop = fields.stop()?;
        let stream = fields.take("stream", "true or false")?.unwrap_or(false);
        let include_usage = fields.include_usage(stream)?;
        fields.conclude()?;
        Ok(Self { messages, answering, stop, stream, include_usage })
    }
}

fn wrong(param: impl Into<String>, what: impl std::fmt::Display) -> ApiError {
    let param = param.into();
    let text = format!("{param}: {what}");
    ApiError::of_field(param, "invalid_value", text)
}

fn cannot(param: impl Into<String>, what: impl std::fmt::Display) -> ApiError {
    let param = param.into();
    let text = format!("{param}: {what}");
    ApiError::of_field(param, "unsupported_parameter", text)
}

/// The fields of a request that were not read yet.
struct Fields(Map<String, Value>);

impl Fields {
    /// Takes a field. A missing one is the same as null.
    fn take<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let found = brief(&value);
                let read = serde_json::from_value(value);
                read.map(Some).map_err(|_| wrong(key, format!("expected {expected}, found {found}")))
            }
        }
    }

    fn required<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Result<T, ApiError> {
        self.take(key, expected)?
            .ok_or_else(|| ApiError::of_field(key, "missing_field", format!("{key} is missing: expected {expected}")))
    }

    fn answering(&mut self, defaults: Defaults<'_>) -> Result<Answering, ApiError> {
        let number = |key: &str, found: Option<f32>, fits: fn(f32) -> bool, expected: &str| match found {
            Some(value) if !fits(value) => Err(wrong(key, format!("expected {expected}, found {value}"))),
            found => Ok(found),
        };
        let (warm, likely) = ("a number from 0 to 2", "a number above 0 and at most 1");
        let temperature = self.take("temperature", warm)?;
        let temperature = number("temperature", temperature, |t| (0.0..=2.0).contains(&t), warm)?;
        let top_p = self.take("top_p", likely)?;
        let top_p = number("top_p", top_p, |p| p > 0.0 && p <= 1.0, likely)?;
        let seed: Option<i64> = self.take("seed", "a whole number")?;
        let seed = seed.map_or(defaults.seed, i64::cast_unsigned);
        let most = "a whole number of at least 1";
        let mut max_tokens = None;
        for key in ["max_completion_tokens", "max_tokens"] {
            let Some(given) = self.take::<usize>(key, most)? else {
                continue;
            };
            if given == 0 {
                return Err(wrong(key, format!("expected {most}, found 0")));
            }
            if max_tokens.is_some_and(|other| other != given) {
                return Err(wrong(key, "differs from max_completion_tokens: give one of the two"));
            }
            max_tokens = Some(given);
        }
        Ok(Answering {
            max_tokens: max_tokens.unwrap_or(defaults.max_tokens),
            sampling: Sampling::of(temperature, top_p, seed),
        })
    }

    fn stop(&mut self) -> Result<Vec<String>, ApiError> {
        let expected = "a text or a list of texts";
        let stop = match self.take("stop", expected)? {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one],
            Some(several) => {
                let found = brief(&several);
                serde_json::from_value::<Vec<String>>(several)
                    .map_err(|_| wrong("stop", format!("expected {expected}, found {found}")))?
            }
        };
        if stop.len() > STOPS || stop.iter().any(String::is_empty) {
            return Err(wrong("stop", format!("expected at most {STOPS} texts, none of them empty")));
        }
        Ok(stop)
    }

    fn include_usage(&mut self, stream: bool) -> Result<bool, ApiError> {
        let Some(options) = self.take::<Map<String, Value>>("stream_options", "an object")? else {
            return Ok(false);
        };
        if !stream {
            return Err(wrong("stream_options", "needs \"stream\": true"));
        }
        let mut options = Fields(options);
        let include = options.take("include_usage", "true or false")?.unwrap_or(false);
        // Padding against observers of the network has no effect here.
        let _: Option<bool> = options.take("include_obfuscation", "true or false")?;
        match options.0.keys().next() {
            Some(key) => Err(cannot(format!("stream_options.{key}"), "is not known here: leave it out")),
            None => Ok(include),
        }
    }

    /// Refuses the fields that are left, unless they change nothing.
    fn conclude(self) -> Result<(), ApiError> {
        for (key, value) in self.0 {
            let asks_for_nothing = match key.as_str() {
                key if WITHOUT_EFFECT.contains(&key) => true,
                "n" => value == 1,
                "logprobs" => value == false,
                "presence_penalty" | "frequency_penalty" => value.as_f64() == Some(0.0),
                "response_format" => value == json!({"type": "text"}),
                "modalities" => value == json!(["text"]),
                "tools" | "functions" => value == json!([]),
                "tool_choice" | "function_call" => value == "none",
                "logit_bias" => value == json!({}),
                _ => false,
            };
            if !asks_for_nothing && !value.is_null() {
                let text = format!("this server cannot do what {} asks for: leave it out", brief(&value));
                return Err(cannot(key, text));
            }
        }
        Ok(())
    }
}

impl Message {
    /// Parses a message. `at` is its place in the request.
    fn parse(message: Value, at: &str) -> Result<Self, ApiError> {
        let Value::Object(mut message) = message else {
            return Err(wrong(at, format!("expected an object, found {}", brief(&message))));
        };
        let role = match message.remove("role") {
            Some(Value::String(role)) => role,
            _ => return Err(wrong(format!("{at}.role"), "expected system, user or assistant")),
        };
        let role = match role.as_str() {
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "assistant",
            other => {
                let text = format!("{other:?} cannot be used here: expected system, user or assistant");
                return Err(cannot(format!("{at}.role"), text));
            }
        };
        let asks = |value: &Value| !value.is_null() && *value != json!([]);
        for key in ["tool_calls", "function_call", "audio", "tool_call_id"] {
            if message.get(key).is_some_and(asks) {
                return Err(cannot(format!("{at}.{key}"), "this server has no tools and no audio: leave it out"));
            }
        }
        let at = format!("{at}.content");
        let pieces = match message.remove("content") {
            Some(Value::String(text)) => vec![Piece::Text(text)],
            Some(Value::Array(parts)) => {
                let parts = parts.into_iter().enumerate();
                let parts = parts.map(|(index, part)| Piece::parse(part, &format!("{at}[{index}]")));
                parts.collect::<Result<_, _>>()?
            }
            _ => return Err(wrong(at, "expected a text or a list of parts")),
        };
        Ok(Self { role, pieces })
    }
}

impl Piece {
    fn parse(part: Value, at: &str) -> Result<Self, ApiError> {
        let kind = part["type"].as_str().unwrap_or_default();
        if kind != "text" {
            let text = format!("this server reads texts only, not {}: expected \"text\"", brief(&part["type"]));
            return Err(cannot(format!("{at}.type"), text));
        }
        let Some(text) = part["text"].as_str().map(str::to_owned) else {
            return Err(wrong(format!("{at}.text"), "expected a text"));
        };
        match &part["llink"] {
            Value::Null => Ok(Self::Text(text)),
            kind if *kind != PASSAGE => {
                let text = format!("expected \"{PASSAGE}\" for a foreign text, found {}", brief(kind));
                Err(wrong(format!("{at}.llink"), text))
            }
            _ if clean_line(&text, ZeroWidth::Keep).is_empty() => {
                Err(wrong(format!("{at}.text"), "has nothing to read in it: give a passage with visible characters"))
            }
            _ => Ok(Self::Passage(text)),
        }
    }
}

/// Returns a value for an error, cut if it is long.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 40;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests;
