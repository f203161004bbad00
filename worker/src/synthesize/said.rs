//! Interprets what an endpoint sends instead of an answer.

use llink_proto::shown;
use reqwest::StatusCode;
use serde_json::Value;

/// The most characters of it that are shown.
const SHOWN: usize = 300;
/// The most characters of a body that are searched for the refused part.
const READ: usize = 16 << 10;

/// A refusal: the status of the answer or of the error in it, and the parts of the error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) status: StatusCode,
    /// The error's `code` and `type`, in lower case.
    kinds: Vec<String>,
    /// The whole text, in lower case.
    whole: String,
    /// The endpoint's own text, safe to show.
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A content filter blocked the request or the answer.
    Filtered,
    /// This request is refused; another one may be answered.
    Rejected,
    /// The request may succeed later.
    Passing,
    /// Neither time nor another text helps.
    Lasting,
}

impl Said {
    /// Reads an answer whose status is not a success. Parts that repeat `key` are removed.
    pub(super) fn of(status: StatusCode, body: &[u8], key: Option<&str>) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => Self::of_value(status, &value, key),
            Err(_) => {
                let text = String::from_utf8_lossy(&body[..body.len().min(READ)]);
                let words =
                    if text.trim_start().starts_with('<') { page_text(&text) } else { text.clone().into_owned() };
                Self::new(status, Vec::new(), &text, &words, key)
            }
        }
    }

    /// Reads the JSON value of an error, which may hold its own status.
    pub(super) fn of_value(status: StatusCode, value: &Value, key: Option<&str>) -> Self {
        let error = match value.get("error") {
            Some(error) if !error.is_null() => error,
            _ => value,
        };
        let own = |name: &str| error.get(name).and_then(|code| code.as_u64().or_else(|| code.as_str()?.parse().ok()));
        let own = own("code").or_else(|| own("status"));
        let own = own.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
        let status = own.filter(|own| own.as_u16() >= 400 && status.is_success()).unwrap_or(status);
        let kinds = ["code", "type", "status"].iter().filter_map(|name| error.get(*name)?.as_str());
        let kinds = kinds.map(str::to_lowercase).collect();
        Self::new(status, kinds, &value.to_string(), &words_of(error), key)
    }

    fn new(status: StatusCode, kinds: Vec<String>, whole: &str, words: &str, key: Option<&str>) -> Self {
        let words = match key.filter(|key| !key.is_empty()) {
            Some(key) => words.replace(key, "[the key]"),
            None => words.to_owned(),
        };
        let whole: String = whole.chars().take(READ).collect();
        Self { status, kinds, whole: whole.to_lowercase(), text: shown::quoted(&words, SHOWN) }
    }

    /// Describes the refusal, such as `429 Too Many Requests: rate limited`.
    pub(super) fn described(&self) -> String {
        let status = match self.status.is_success() {
            true => format!("{} with an error", self.status),
            false => self.status.to_string(),
        };
        match self.text.as_str() {
            "" => status,
            text => format!("{status}: {text}"),
        }
    }

    /// Returns true if the text contains all of `words`, which are in lower case.
    pub(super) fn speaks_of(&self, words: &[&str]) -> bool {
        words.iter().all(|word| self.whole.contains(word))
    }

    pub(super) fn meaning(&self) -> Meaning {
        if self.is_filter() {
            return Meaning::Filtered;
        }
        if self.is_quota() {
            return Meaning::Lasting;
        }
        match self.status.as_u16() {
            400 | 413 | 422 => Meaning::Rejected,
            // An error with status 200 and no status of its own counts as temporary.
            200..=299 | 408 | 409 | 425 | 429 | 500..=599 => Meaning::Passing,
            _ => Meaning::Lasting,
        }
    }

    /// For a filtered request, Azure answers 400 and OpenRouter 403.
    fn is_filter(&self) -> bool {
        let named =
            ["content_filter", "content_policy_violation", "responsibleaipolicyviolation", "moderation_blocked"];
        self.kinds.iter().any(|kind| named.contains(&kind.as_str()))
            || (self.status == StatusCode::FORBIDDEN && self.speaks_of(&["flagged"]))
    }

    /// Returns true if a quota or balance is used up, which waiting does not restore. Gemini uses the same words for a
    /// limit per minute, so the words alone don't count.
    fn is_quota(&self) -> bool {
        let named = [
            "insufficient_quota",
            "insufficient_balance",
            "insufficient_credits",
            "billing_hard_limit_reached",
            "billing_not_active",
            "billing_error",
            "account_deactivated",
            "access_terminated",
        ];
        self.status == StatusCode::PAYMENT_REQUIRED
            || self.kinds.iter().any(|kind| named.contains(&kind.as_str()))
            || (self.status.is_client_error() && self.speaks_of(&["credit balance is too low"]))
    }

    /// Returns advice where waiting does not help.
    pub(super) fn advice(&self, section: &str) -> Option<String> {
        if self.is_quota() {
            return Some("the account's quota or balance is used up, and waiting does not help".into());
        }
        match self.status.as_u16() {
            401 | 403 => Some(format!("set `{section}.api_key_env` to the variable that holds a valid key")),
            404 => Some(format!("is `{section}.url` right up to /v1, and `{section}.model` a model that it serves?")),
            300..=399 => Some(format!("a redirect is not followed: set `{section}.url` to where it leads")),
            _ => None,
        }
    }
}

/// Returns an error's own text, with that of the provider behind a gateway.
fn words_of(error: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let words = ["message", "detail", "msg", "title", "error"].iter().find_map(|name| error.get(*name));
    let mut words = text(words.unwrap_or(error));
    if let Some(raw) = error.pointer("/metadata/raw").map(text).filter(|raw| !raw.is_empty()) {
        words.push_str(": ");
        words.push_str(&raw);
    }
    words
}

/// Returns the title of an HTML page, or the text between its tags.
fn page_text(html: &str) -> String {
    let lower = html.to_ascii_lowercase();
    if let Some((from, to)) = lower.find("<title>").zip(lower.find("</title>"))
        && let Some(title) = html.get(from + "<title>".len()..to)
    {
        return title.to_owned();
    }
    let between = html.split('<').filter_map(|part| part.split_once('>')).map(|(_, text)| text);
    between.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, body: &str) -> Said {
        Said::of(StatusCode::from_u16(status).unwrap(), body.as_bytes(), Some("sk-secret"))
    }

    #[test]
    fn what_an_endpoint_says_decides_whether_waiting_helps() {
        use Meaning::{Filtered, Lasting, Passing, Rejected};
        for (status, body, meaning) in [
            (429, r#"{"error":{"message":"rate limited"}}"#, Passing),
            (429, r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota"}}"#, Lasting),
            (429, r#"{"error":{"message":"You exceeded your current quota","status":"RESOURCE_EXHAUSTED"}}"#, Passing),
            (402, r#"{"error":{"message":"Insufficient Balance"}}"#, Lasting),
            (400, r#"{"error":{"message":"Your credit balance is too low to access the API."}}"#, Lasting),
            (400, r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#, Rejected),
            (400, r#"{"error":{"message":"The response was filtered","code":"content_filter"}}"#, Filtered),
            (403, r#"{"error":{"message":"Your input was flagged","metadata":{"reasons":["x"]}}}"#, Filtered),
            (403, "no", Lasting),
            (404, "", Lasting),
            (500, "", Passing),
            (529, r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#, Passing),
            (200, r#"{"error":{"message":"No endpoints found","code":404}}"#, Lasting),
            (200, r#"{"error":{"message":"busy","code":503}}"#, Passing),
            (200, r#"{"error":{"message":"slow down","code":"429"}}"#, Passing),
            (200, r#"{"error":"overloaded"}"#, Passing),
        ] {
            assert_eq!(said(status, body).meaning(), meaning, "{status} {body}");
        }
    }

    #[test]
    fn its_own_words_are_shown_short_harmless_and_without_the_key() {
        for (body, words) in [
            (r#"{"error":{"message":"no such model","code":"x"}}"#, "no such model"),
            (r#"{"error":"overloaded"}"#, "overloaded"),
            (r#"{"detail":[{"msg":"field required"}]}"#, "field required"),
            (
                r#"{"error":{"message":"Provider returned error","metadata":{"raw":"upstream says no"}}}"#,
                "upstream says no",
            ),
            ("<html><head><title>502 Bad\n Gateway</title></head><body>x</body></html>", "502 Bad Gateway"),
            ("<p>Service <b>down</b></p>", "Service down"),
            ("plain \u{1b}[2J words", "plain \\u{1b}[2J words"),
        ] {
            let text = said(500, body).text;
            assert!(text.contains(words), "{body}: {text}");
        }
        let echoed = said(401, r#"{"error":{"message":"Incorrect API key provided: sk-secret."}}"#);
        assert_eq!(echoed.described(), "401 Unauthorized: Incorrect API key provided: [the key].");
        assert!(said(500, &"x".repeat(1 << 20)).text.chars().count() <= SHOWN + 1);
    }
}
