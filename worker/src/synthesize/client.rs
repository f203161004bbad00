//! An OpenAI-compatible endpoint, asked patiently: retries with back-off, and never faster than allowed.

use std::time::Duration;

use llink_proto::ModelEndpoint;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::prompt::Request;
use crate::{Error, Result};

/// The most of an answer that is read: an endpoint that sends without end is broken.
const LARGEST_ANSWER: usize = 4 << 20;
/// Characters of an endpoint's refusal that are shown.
const SAID: usize = 200;
/// The longest that a `Retry-After` is obeyed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Where to ask and how often to try.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// The part of the job file that it stands in, for errors.
    pub section: &'static str,
    /// Up to and with `/v1`.
    pub url: String,
    /// The environment variable that holds the key; empty: none is sent.
    pub api_key_env: String,
    /// Requests begun in a minute; 0: any number.
    pub requests_per_minute: f64,
    /// How long one request may take.
    pub timeout: Duration,
    /// How faults are met.
    pub patience: Patience,
}

/// Before the second try of what a job asks.
const FIRST_WAIT: Duration = Duration::from_millis(500);

impl Endpoint {
    /// What a job says in `section` of an endpoint.
    #[must_use]
    pub fn of(section: &'static str, endpoint: &ModelEndpoint) -> Self {
        Self {
            section,
            url: endpoint.url.clone(),
            api_key_env: endpoint.api_key_env.clone(),
            requests_per_minute: endpoint.requests_per_minute,
            timeout: Duration::from_secs_f64(endpoint.timeout_s),
            patience: Patience {
                attempts: endpoint.attempts,
                first_wait: FIRST_WAIT,
            },
        }
    }
}

/// How often a request is tried, and how long the first wait is; each further one is twice as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Tries in all.
    pub attempts: u32,
    /// Before the second try.
    pub first_wait: Duration,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The whole text.
    Text(String),
    /// The text ended at the token limit.
    CutOff,
    /// The endpoint takes the request itself for wrong (too long, for instance), with what it said: asking again at once
    /// changes nothing.
    Rejected(String),
}

/// Why one try brought nothing.
enum Fault {
    /// Worth another try, after at least this long.
    Passing { reason: String, wait: Option<Duration> },
    /// Of no use to try again, now or with another text.
    Lasting(String),
}

/// Asks. The key is in no message, event or debug output.
pub struct Client {
    http: reqwest::Client,
    endpoint: Endpoint,
    key: Option<String>,
    next_start: Mutex<Instant>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Reads the key and makes ready to ask.
    ///
    /// # Errors
    /// [`Error::Input`] where the key's variable is not set or the URL is none.
    pub fn new(endpoint: Endpoint) -> Result<Self> {
        let refuse = |reason: String| Error::Input(format!("{}: {reason}", endpoint.url));
        let key = match endpoint.api_key_env.as_str() {
            "" => None,
            name => {
                let unset = |_| {
                    refuse(format!(
                        "the environment variable {name}, which is to hold its key, is not set on this worker"
                    ))
                };
                Some(std::env::var(name).map_err(unset)?.trim().to_owned())
            }
        };
        let http = reqwest::Client::builder()
            .timeout(endpoint.timeout)
            .connect_timeout(endpoint.timeout.min(Duration::from_secs(10)))
            // The job's URL was checked; where it would send us was not.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| refuse(e.to_string()))?;
        Ok(Self {
            http,
            endpoint,
            key,
            next_start: Mutex::new(Instant::now()),
        })
    }

    /// The answer to a request, however often it takes.
    ///
    /// # Errors
    /// [`Error::Input`] where the endpoint refuses every request alike (no such model, no access), or every try failed.
    pub async fn ask(&self, request: &Request) -> Result<Answer> {
        let Patience { attempts, first_wait } = self.endpoint.patience;
        // Requests that failed together are not tried again together.
        let mut backoff = first_wait.mul_f64(0.75 + 0.5 * request.fraction());
        let mut last = String::new();
        for attempt in 1..=attempts.max(1) {
            self.keep_pace().await;
            match self.try_once(request).await {
                Ok(answer) => return Ok(answer),
                Err(Fault::Lasting(reason)) => {
                    return Err(Error::Input(format!("{}: {reason}", self.endpoint.url)));
                }
                Err(Fault::Passing { reason, wait }) => {
                    tracing::debug!(attempt, reason, "the endpoint gave no answer");
                    last = reason;
                    if attempt < attempts {
                        tokio::time::sleep(wait.unwrap_or_default().max(backoff).min(LONGEST_WAIT)).await;
                    }
                    backoff = (backoff * 2).min(LONGEST_WAIT);
                }
            }
        }
        Err(Error::Input(format!(
            "{}: no answer after {attempts} tries, the last time because {last}. The answers so far are kept: submit the \
             job again when the endpoint is well",
            self.endpoint.url
        )))
    }

    /// Waits for this request's turn.
    async fn keep_pace(&self) {
        if self.endpoint.requests_per_minute <= 0.0 {
            return;
        }
        let apart = Duration::from_secs_f64(60.0 / self.endpoint.requests_per_minute);
        let turn = {
            let mut next = self.next_start.lock().await;
            let turn = (*next).max(Instant::now());
            *next = turn + apart;
            turn
        };
        tokio::time::sleep_until(turn).await;
    }

    async fn try_once(&self, request: &Request) -> std::result::Result<Answer, Fault> {
        let passing = |reason: String| Fault::Passing { reason, wait: None };
        let section = self.endpoint.section;
        let url = format!("{}/chat/completions", self.endpoint.url.trim_end_matches('/'));
        let mut post = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .body(request.body());
        if let Some(key) = &self.key {
            post = post.bearer_auth(key);
        }
        let mut response = post.send().await.map_err(|e| passing(causes(&e)))?;
        let status = response.status();
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let mut content = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| passing(causes(&e)))? {
            content.extend_from_slice(&piece);
            if content.len() > LARGEST_ANSWER {
                return Err(passing("it sent more than 4 MiB".into()));
            }
        }
        match status.as_u16() {
            200 => text_of(&content).ok_or_else(|| passing("its answer is no chat completion".into())),
            408 | 409 | 425 | 429 | 500..=599 => Err(Fault::Passing {
                reason: format!("it answered {status}"),
                wait,
            }),
            400 | 413 | 422 => Ok(Answer::Rejected(format!("{status}: {}", beginning(&content)))),
            301 | 302 | 303 | 307 | 308 => Err(Fault::Lasting(format!(
                "it answered {status}, which is not followed: set `{section}.url` to where it leads"
            ))),
            401 | 403 => Err(Fault::Lasting(format!(
                "it answered {status}: set `{section}.api_key_env` to the variable that holds a valid key"
            ))),
            404 => Err(Fault::Lasting(format!(
                "it answered {status}: is `{section}.url` right up to /v1, and `{section}.model` a model that it serves?"
            ))),
            _ => Err(Fault::Lasting(format!("it answered {status}"))),
        }
    }
}

/// The beginning of what an endpoint said, on one line.
fn beginning(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(&content[..content.len().min(4 * SAID)]).into_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(SAID).collect()
}

/// The first choice of a chat completion.
fn text_of(content: &[u8]) -> Option<Answer> {
    let value: Value = serde_json::from_slice(content).ok()?;
    let choice = value.get("choices")?.get(0)?;
    if choice.get("finish_reason").and_then(Value::as_str) == Some("length") {
        return Some(Answer::CutOff);
    }
    match choice.get("message")?.get("content")? {
        Value::String(text) => Some(Answer::Text(text.clone())),
        Value::Null => Some(Answer::Text(String::new())),
        _ => None,
    }
}

/// An error's text with its causes, without the URL, which may hold a password.
fn causes(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "it took too long".to_owned()
    } else {
        String::new()
    };
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    if text.is_empty() {
        "the connection broke".into()
    } else {
        text
    }
}
