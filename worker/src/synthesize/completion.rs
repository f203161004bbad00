//! Decides what counts as a complete, final answer, for synthesis and for the judge.

use llink_proto::shown;
use serde_json::{Value, json};

use super::thoughts::without_thoughts;

/// The most characters of an unusable answer that are kept for quoting.
const QUOTED: usize = 200;

/// The result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A complete, final answer, without thoughts. It may be empty.
    Text(String),
    /// An incomplete answer or none, with the reason and its beginning.
    Unusable(Unusable, String),
    /// The endpoint refuses the request itself, for example because it is too long, with this text. Asking again at
    /// once changes nothing.
    Rejected(String),
}

/// The reason why an endpoint's reply is not an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unusable {
    /// The reply ended at a token limit, or inside the thoughts.
    CutOff,
    /// A content filter removed the reply or a part of it.
    Filtered,
    /// The model declined in the field for refusals.
    Refusal,
    /// The model called a tool, although none was offered.
    ToolCall,
    /// Something other than the model ended the reply.
    Interrupted,
    /// The reply has no text.
    Empty,
}

impl Unusable {
    /// Returns the name in counts, after `dropped_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CutOff => "cut_off",
            Self::Filtered => "filtered",
            Self::Refusal => "refusal",
            Self::ToolCall => "tool_call",
            Self::Interrupted => "interrupted",
            Self::Empty => "empty_answer",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Body {
    Answer(Answer),
    /// Gateways also send errors with status 200, once they have started to answer.
    Error(Value),
    /// The body is not a complete chat completion.
    Unreadable,
}

/// Reads the first choice of a chat completion.
pub(super) fn read(body: &[u8]) -> Body {
    let Some(value) = serde_json::from_slice(body).ok().or_else(|| joined(body)) else {
        return Body::Unreadable;
    };
    let choice = value.pointer("/choices/0");
    let is_error = |value: &Value| value.get("error").is_some_and(|error| !error.is_null());
    if let Some(failed) = choice.filter(|choice| is_error(choice)) {
        return Body::Error(failed.clone());
    }
    if is_error(&value) {
        return Body::Error(value);
    }
    match choice.and_then(|choice| Some((choice, choice.get("message")?))) {
        Some((choice, message)) => Body::Answer(answer(choice.get("finish_reason"), message)),
        None => Body::Unreadable,
    }
}

fn answer(finish_reason: Option<&Value>, message: &Value) -> Answer {
    let Some((text, declined)) = text_of(message) else {
        let why = ended(finish_reason).err().unwrap_or(Unusable::Empty);
        return Answer::Unusable(why, String::new());
    };
    let unusable = |why, text: &str| Answer::Unusable(why, shown::quoted(text, QUOTED));
    if let Err(why) = ended(finish_reason) {
        return unusable(why, &text);
    }
    if let Some(declined) = declined {
        return unusable(Unusable::Refusal, &declined);
    }
    match without_thoughts(&text) {
        Some(answer) => Answer::Text(answer),
        None => unusable(Unusable::CutOff, &text),
    }
}

/// Returns `Ok` if the model itself ended its answer. Servers name this in different ways.
fn ended(finish_reason: Option<&Value>) -> Result<(), Unusable> {
    let reason = match finish_reason {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(reason)) => reason.to_lowercase(),
        Some(_) => return Err(Unusable::Interrupted),
    };
    match reason.trim_start_matches("finish_reason_") {
        "" | "stop" | "stopped" | "eos" | "eos_token" | "end" | "end_turn" | "end_of_turn" | "stop_sequence"
        | "stop_token" | "complete" | "completed" | "finished" | "done" | "normal" | "null" | "none" => Ok(()),
        "length"
        | "max_tokens"
        | "max_output_tokens"
        | "max_completion_tokens"
        | "max_length"
        | "model_length"
        | "token_limit"
        | "context_window_exceeded"
        | "model_context_window_exceeded"
        | "incomplete" => Err(Unusable::CutOff),
        "content_filter"
        | "content_filtered"
        | "safety"
        | "recitation"
        | "blocklist"
        | "prohibited_content"
        | "spii"
        | "sensitive"
        | "moderation"
        | "guardrail_intervened" => Err(Unusable::Filtered),
        "refusal" => Err(Unusable::Refusal),
        "tool_calls" | "tool_call" | "tool_use" | "function_call" | "malformed_function_call" => {
            Err(Unusable::ToolCall)
        }
        _ => Err(Unusable::Interrupted),
    }
}

/// Returns a message's text, and the words in which the model declined, or `None` if it has neither.
fn text_of(message: &Value) -> Option<(String, Option<String>)> {
    let words =
        |value: Option<&Value>| value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let mut declined = words(message.get("refusal"));
    let text = match message.get("content") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => {
            let mut text = None;
            for part in parts {
                // Thoughts are in parts of other types.
                match (part, part.get("type").and_then(Value::as_str)) {
                    (Value::String(more), _) => text.get_or_insert_with(String::new).push_str(more),
                    (_, None | Some("text" | "output_text")) => {
                        if let Some(more) = part.get("text").and_then(Value::as_str) {
                            text.get_or_insert_with(String::new).push_str(more);
                        }
                    }
                    (_, Some("refusal")) => declined = declined.or_else(|| words(part.get("refusal"))),
                    _ => {}
                }
            }
            text
        }
        Some(part @ Value::Object(_)) => words(part.get("text")),
        _ => None,
    };
    match (text, &declined) {
        (None, None) => None,
        (text, _) => Some((text.unwrap_or_default(), declined)),
    }
}

/// Joins a stream of events into its completion, because some gateways always stream. Returns `None` if it is not a
/// stream or ended too soon.
fn joined(body: &[u8]) -> Option<Value> {
    let body = std::str::from_utf8(body).ok()?;
    let mut events = body.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim).peekable();
    events.peek()?;
    let (mut content, mut refusal) = (String::new(), String::new());
    let (mut finish_reason, mut whole) = (Value::Null, false);
    for event in events {
        if event == "[DONE]" {
            whole = true;
            break;
        }
        let event: Value = serde_json::from_str(event).ok()?;
        if event.get("error").is_some_and(|error| !error.is_null()) {
            return Some(event);
        }
        let Some(choice) = event.pointer("/choices/0") else {
            continue;
        };
        let delta = choice.get("delta").or_else(|| choice.get("message"));
        if let Some((text, declined)) = delta.and_then(text_of) {
            content.push_str(&text);
            refusal.push_str(&declined.unwrap_or_default());
        }
        if let Some(reason) = choice.get("finish_reason").filter(|reason| !reason.is_null()) {
            (finish_reason, whole) = (reason.clone(), true);
        }
    }
    let message = json!({ "content": content, "refusal": refusal });
    whole.then(|| json!({ "choices": [{ "message": message, "finish_reason": finish_reason }] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(message: Value, finish_reason: Value) -> Answer {
        let body = json!({ "choices": [{ "message": message, "finish_reason": finish_reason }] });
        match read(body.to_string().as_bytes()) {
            Body::Answer(answer) => answer,
            other => panic!("{body}: {other:?}"),
        }
    }

    fn why(answer: Answer) -> Unusable {
        match answer {
            Answer::Unusable(why, _) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_whole_answer_is_read_in_each_of_its_forms() {
        let fish = Answer::Text("A fish.".into());
        for message in [
            json!({ "content": "A fish." }),
            json!({ "content": "A fish.", "refusal": null, "tool_calls": [] }),
            json!({ "content": "A fish.", "reasoning_content": "Okay", "reasoning": "Okay" }),
            json!({ "content": "<think>Okay</think>\n\nA fish." }),
            json!({ "content": [{ "type": "text", "text": "A " }, { "type": "text", "text": "fish." }] }),
            json!({ "content": [{ "type": "thinking", "thinking": [{ "type": "text", "text": "Okay" }] },
                                { "type": "text", "text": "A fish." }] }),
            json!({ "content": ["A fish."] }),
        ] {
            for finish in [json!("stop"), json!(null), json!("eos"), json!("END_TURN"), json!("FINISH_REASON_STOP")] {
                assert_eq!(of(message.clone(), finish.clone()), fish, "{message} {finish}");
            }
        }
        assert_eq!(of(json!({ "content": "  " }), json!("stop")), Answer::Text(String::new()));
    }

    #[test]
    fn what_is_not_whole_has_its_reason() {
        let half = || json!({ "content": "A fi" });
        for (finish, expected) in [
            ("length", Unusable::CutOff),
            ("MAX_TOKENS", Unusable::CutOff),
            ("model_length", Unusable::CutOff),
            ("content_filter", Unusable::Filtered),
            ("SAFETY", Unusable::Filtered),
            ("refusal", Unusable::Refusal),
            ("tool_calls", Unusable::ToolCall),
            ("insufficient_system_resource", Unusable::Interrupted),
            ("abort", Unusable::Interrupted),
            ("a reason of tomorrow", Unusable::Interrupted),
        ] {
            assert_eq!(of(half(), json!(finish)), Answer::Unusable(expected, "A fi".into()), "{finish}");
        }
        assert_eq!(why(of(json!({ "content": null }), json!("length"))), Unusable::CutOff);
        assert_eq!(why(of(json!({ "content": "<think>Okay" }), json!("stop"))), Unusable::CutOff);
        let silent = json!({ "content": null, "reasoning_content": "Okay, the user gives me a text." });
        assert_eq!(why(of(silent, json!("stop"))), Unusable::Empty);
        for declined in [
            json!({ "content": null, "refusal": "I can't." }),
            json!({ "content": [{ "type": "refusal", "refusal": "I can't." }] }),
        ] {
            assert_eq!(why(of(declined, json!("stop"))), Unusable::Refusal);
        }
    }

    #[test]
    fn errors_in_a_200_are_errors() {
        for body in [
            json!({ "error": { "message": "no", "code": 404 } }),
            json!({ "error": "overloaded", "choices": [] }),
            json!({ "choices": [{ "error": { "message": "no", "code": 502 }, "message": { "content": "A f" }, "finish_reason": "error" }] }),
        ] {
            assert!(matches!(read(body.to_string().as_bytes()), Body::Error(_)), "{body}");
        }
        for body in
            ["", "{}", "<html>", "{\"choices\": []}", "{\"choices\": [oops", "{\"choices\":null,\"error\":null}"]
        {
            assert_eq!(read(body.as_bytes()), Body::Unreadable, "{body}");
        }
    }

    #[test]
    fn a_stream_that_nobody_asked_for_is_put_together_if_it_came_to_its_end() {
        let event = |delta: Value, finish: Value| {
            format!("data: {}\n\n", json!({ "choices": [{ "delta": delta, "finish_reason": finish }] }))
        };
        let begun = format!(
            ": waiting\n\n{}{}",
            event(json!({ "role": "assistant", "content": "A " }), json!(null)),
            event(json!({ "content": "fish." }), json!(null))
        );
        let fish = Body::Answer(Answer::Text("A fish.".into()));
        assert_eq!(read(format!("{begun}data: [DONE]\n\n").as_bytes()), fish);
        assert_eq!(read(format!("{begun}{}", event(json!({}), json!("stop"))).as_bytes()), fish);
        assert_eq!(read(begun.as_bytes()), Body::Unreadable, "the connection broke");
        let cut = format!("{begun}{}data: [DONE]\n\n", event(json!({}), json!("length")));
        assert_eq!(read(cut.as_bytes()), Body::Answer(Answer::Unusable(Unusable::CutOff, "A fish.".into())));
        let failed = format!("{begun}data: {}\n\n", json!({ "error": { "message": "overloaded" } }));
        assert!(matches!(read(failed.as_bytes()), Body::Error(_)));
    }
}
