//! One request to a program, and what became of it.

use std::error::Error;
use std::time::Duration;

use llink_proto::shown::quoted;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const LARGEST_ANSWER: usize = 1 << 20;
/// The most characters of an answer that an error quotes.
const QUOTED: usize = 300;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) text: String,
    pub(super) passes: bool,
    pub(super) wait: Option<Duration>,
    pub(super) status: Option<StatusCode>,
}

impl Fault {
    fn passing(text: String) -> Self {
        Self { text, passes: true, wait: None, status: None }
    }
}

/// A client with a token that every request carries. The token is in no error.
pub(super) struct Http {
    client: reqwest::Client,
    token: Option<String>,
}

impl Http {
    pub(super) fn new(token: Option<(HeaderName, String)>) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        if let Some((name, text)) = &token {
            let text = match *name {
                AUTHORIZATION => format!("Bearer {text}"),
                _ => text.clone(),
            };
            let value =
                HeaderValue::from_str(&text).map_err(|_| "the token holds characters that no token can hold")?;
            headers.insert(name, value);
        }
        headers.values_mut().for_each(|value| value.set_sensitive(true));
        let client = reqwest::Client::builder()
            .user_agent(concat!("llink/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .timeout(PATIENCE)
            // The job's URL was checked, but not the target of a redirect.
            .redirect(Policy::none())
            .build();
        Ok(Self { client: client.map_err(|e| e.to_string())?, token: token.map(|(_, text)| text) })
    }

    /// Sends JSON and returns the JSON of the answer, which is null if it has none.
    pub(super) async fn json(&self, method: Method, url: &str, body: Option<&Value>) -> Result<Value, Fault> {
        let mut request = self.client.request(method, url);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let answer = self.send(request).await?;
        Ok(serde_json::from_slice(&answer).unwrap_or(Value::Null))
    }

    pub(super) fn post(&self, url: &str) -> RequestBuilder {
        self.client.post(url)
    }

    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Vec<u8>, Fault> {
        let mut response = request.send().await.map_err(|e| broken(&e))?;
        let status = response.status();
        let wait = response.headers().get(RETRY_AFTER).and_then(|wait| wait.to_str().ok());
        let wait = wait.and_then(|wait| Some(Duration::from_secs(wait.trim().parse().ok()?)));
        let mut content = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| broken(&e))? {
            content.extend_from_slice(&piece);
            if content.len() > LARGEST_ANSWER {
                return Err(Fault::passing("it sent more than 1 MiB".into()));
            }
        }
        if status.is_success() {
            return Ok(content);
        }
        let mut said = String::from_utf8_lossy(&content).into_owned();
        if let Some(token) = &self.token {
            said = said.replace(token.as_str(), "***");
        }
        let text = match (status.is_redirection(), said.trim()) {
            (true, _) => {
                format!("it answered {status}, and redirects are not followed: write the URL that it leads to")
            }
            (false, "") => format!("it answered {status}"),
            (false, said) => format!("it answered {status}: {}", quoted(said, QUOTED)),
        };
        let is_busy = matches!(status.as_u16(), 408 | 425 | 429);
        Err(Fault { text, passes: is_busy || status.is_server_error(), wait, status: Some(status) })
    }
}

fn broken(error: &reqwest::Error) -> Fault {
    if error.is_timeout() {
        return Fault::passing(format!("it did not answer in {} seconds", PATIENCE.as_secs()));
    }
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    Fault::passing(cause.map_or_else(|| "the connection broke".into(), ToString::to_string))
}
