//! Sends requests to an OpenAI-compatible endpoint, with retries and back-off, and never faster than allowed.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use llink_datasets::shown::ShownUrl;
use llink_proto::ModelEndpoint;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use tokio::time::Instant;

use super::completion::{Answer, Body, Unusable, read};
use super::dialect::{Dialect, Temperature};
use super::prompt::Request;
use super::retry_after::asked_wait;
use super::said::{Meaning, Said};
use crate::control::lock;
use crate::{Error, Result};

/// The most bytes of an answer that are read. An endpoint that sends more is broken.
const LARGEST_ANSWER: usize = 4 << 20;
/// The longest `Retry-After` that is obeyed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The wait before the second try of a request. Each further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);

enum Fault {
    /// A later try may succeed, after at least this wait.
    Passing { reason: String, wait: Option<Duration> },
    /// No further try can succeed, even with another text.
    Lasting(String),
    /// The endpoint refuses the request in this form; its text says why.
    Refused(Said),
}

/// A client of an endpoint. The key is in no message, event or debug output.
pub struct Client {
    http: reqwest::Client,
    /// The endpoint's section in the job file, for errors.
    section: &'static str,
    endpoint: ModelEndpoint,
    first_wait: Duration,
    key: Option<Key>,
    next_start: Mutex<Instant>,
    dialect: Mutex<Dialect>,
}

/// The endpoint's key, and the header that carries it.
struct Key {
    text: String,
    header: HeaderValue,
}

impl Key {
    /// Reads the key from an environment variable of this worker. An empty variable counts as unset.
    fn from_variable(name: &str) -> std::result::Result<Self, String> {
        let value = std::env::var(name).unwrap_or_default();
        let text = value.trim();
        if text.is_empty() {
            return Err(format!("the environment variable {name}, which must hold its key, is not set on this worker"));
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {text}"))
            .map_err(|_| format!("the environment variable {name} holds characters that a key cannot contain"))?;
        header.set_sensitive(true);
        Ok(Self { text: text.into(), header })
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client for the endpoint in `section` of a job, and reads the key.
    ///
    /// # Errors
    /// [`Error::Input`] where the key's variable is not set or the URL is invalid.
    pub fn new(section: &'static str, endpoint: ModelEndpoint) -> Result<Self> {
        let refuse = |reason: String| Error::Input(format!("{}: {reason}", ShownUrl::of(&endpoint.url)));
        let key = match endpoint.api_key_env.as_str() {
            "" => None,
            name => Some(Key::from_variable(name).map_err(&refuse)?),
        };
        let timeout = Duration::from_secs_f64(endpoint.timeout_s);
        let http = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(10)))
            // The job's URL was checked, but not the target of a redirect.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| refuse(e.to_string()))?;
        let (next_start, dialect) = (Mutex::new(Instant::now()), Mutex::default());
        Ok(Self { http, section, endpoint, first_wait: FIRST_WAIT, key, next_start, dialect })
    }

    /// Sets the wait before the second try of a request.
    #[must_use]
    pub const fn with_first_wait(mut self, wait: Duration) -> Self {
        self.first_wait = wait;
        self
    }

    /// Returns warnings for people about differences between the endpoint's behavior and the job's settings.
    pub fn warnings(&self) -> Vec<String> {
        let left_out = self.dialect().temperature == Temperature::LeftOut;
        let warning = || {
            format!(
                "{}: the model accepts no temperature: it samples at its own, and its answers may differ from one \
                 run to the next",
                self.shown()
            )
        };
        left_out.then(warning).into_iter().collect()
    }

    /// Returns the answer to a request, after as many tries as allowed.
    ///
    /// # Errors
    /// [`Error::Input`] where the endpoint refuses every request alike (no such model, no access), or every try failed.
    pub async fn ask(&self, request: &Request) -> Result<Answer> {
        let (attempts, first_wait) = (self.endpoint.attempts, self.first_wait);
        // The factor spreads the retries of requests that failed together.
        let apart = first_wait.mul_f64(request.fraction());
        let mut backoff = first_wait;
        let mut attempt = 1;
        let last = loop {
            self.keep_pace().await;
            let dialect = self.dialect();
            match self.try_once(request, dialect).await {
                Ok(answer) => return Ok(answer),
                Err(Fault::Lasting(reason)) => {
                    return Err(Error::Input(format!("{}: {reason}", self.shown())));
                }
                // This does not count as a try. The number of dialects is limited.
                Err(Fault::Refused(said)) if self.learn(dialect, &said) => {}
                Err(Fault::Refused(said)) => return Ok(Answer::Rejected(said.described())),
                Err(Fault::Passing { reason, wait }) => {
                    tracing::debug!(attempt, reason, "the endpoint gave no answer");
                    if attempt >= attempts {
                        break reason;
                    }
                    attempt += 1;
                    let wait = wait.unwrap_or_default().min(LONGEST_WAIT);
                    self.hold_back(wait);
                    tokio::time::sleep(wait.max(backoff) + apart).await;
                    backoff = (backoff * 2).min(LONGEST_WAIT);
                }
            }
        };
        Err(Error::Input(format!(
            "{}: no answer after {attempts} tries, the last time because {last}. The answers so far are kept: submit the \
             job again when the endpoint works again",
            self.shown()
        )))
    }

    /// Returns the endpoint's URL without credentials.
    fn shown(&self) -> ShownUrl {
        ShownUrl::of(&self.endpoint.url)
    }

    fn dialect(&self) -> Dialect {
        *lock(&self.dialect)
    }

    /// Changes the dialect as a refusal asks. Returns true if the refused request can be written in another way.
    fn learn(&self, used: Dialect, said: &Said) -> bool {
        let mut dialect = lock(&self.dialect);
        if *dialect == used {
            let Some(wanted) = used.wanted_by(said) else {
                return false;
            };
            tracing::info!(?wanted, "the endpoint asks for another form of request: {}", said.text);
            *dialect = wanted;
        }
        true
    }

    /// Waits until this request may start.
    async fn keep_pace(&self) {
        let rate = self.endpoint.requests_per_minute;
        let apart = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(60.0 / rate));
        let turn = {
            let mut next = lock(&self.next_start);
            let turn = (*next).max(Instant::now());
            *next = turn + apart;
            turn
        };
        tokio::time::sleep_until(turn).await;
    }

    /// Starts no request before the endpoint's requested wait is over.
    fn hold_back(&self, wait: Duration) {
        let mut next = lock(&self.next_start);
        *next = (*next).max(Instant::now() + wait);
    }

    async fn try_once(&self, request: &Request, dialect: Dialect) -> std::result::Result<Answer, Fault> {
        let passing = |reason: String| Fault::Passing { reason, wait: None };
        let mut post = self
            .http
            .post(completions_url(&self.endpoint.url))
            .header(CONTENT_TYPE, "application/json")
            .body(request.body(dialect));
        if let Some(key) = &self.key {
            post = post.header(AUTHORIZATION, key.header.clone());
        }
        let mut response = post.send().await.map_err(|e| passing(causes(&e)))?;
        let status = response.status();
        let wait = asked_wait(response.headers(), SystemTime::now());
        let mut content = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| passing(causes(&e)))? {
            content.extend_from_slice(&piece);
            if content.len() > LARGEST_ANSWER {
                return Err(passing("it sent more than 4 MiB".into()));
            }
        }
        let key = self.key.as_ref().map(|key| key.text.as_str());
        let said = match status.is_success().then(|| read(&content)) {
            None => Said::of(status, &content, key),
            Some(Body::Answer(answer)) => return Ok(answer),
            Some(Body::Error(error)) => Said::of_value(status, &error, key),
            Some(Body::Unreadable) => {
                let text = Said::of(status, &content, key).text;
                return Err(passing(format!("its answer is not a chat completion: {text}")));
            }
        };
        match said.meaning() {
            Meaning::Filtered => Ok(Answer::Unusable(Unusable::Filtered, said.text)),
            Meaning::Rejected => Err(Fault::Refused(said)),
            Meaning::Passing => Err(Fault::Passing { reason: format!("it answered {}", said.described()), wait }),
            Meaning::Lasting => Err(Fault::Lasting(match said.advice(self.section) {
                Some(advice) => format!("it answered {}; {advice}", said.described()),
                None => format!("it answered {}", said.described()),
            })),
        }
    }
}

/// Returns the URL for chat completions below a URL, which may have parameters (`?api-version=…`).
fn completions_url(url: &str) -> String {
    let (path, query) = url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
    let path = format!("{}/chat/completions", path.trim_end_matches('/'));
    query.map_or(path.clone(), |query| format!("{path}?{query}"))
}

/// Returns an error's text with its causes, without the URL, which may hold a password.
fn causes(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "it took too long".to_owned() } else { String::new() };
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    if text.is_empty() { "the connection broke".into() } else { text }
}
