//! Sends requests to the Hub.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use url::Url;

use super::name::RepoName;
use super::settings::Settings;
use crate::{Error, Result};

/// The number of tries of a request that fails temporarily.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest silence of the Hub during a request.
const SILENCE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 10;

/// A client that sends the token to the Hub and to no other host.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    settings: Settings,
}

/// The Hub's description of a repository at a revision.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct RepoInfo {
    pub(super) sha: String,
    #[serde(default)]
    pub(super) siblings: Vec<Sibling>,
}

/// A file of the repository.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Sibling {
    #[serde(rename = "rfilename")]
    pub(super) path: String,
    pub(super) size: Option<u64>,
    #[serde(rename = "blobId")]
    pub(super) blob: Option<String>,
}

/// The Hub's description of a file, without its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FileInfo {
    /// The tag of the content; for large files, its SHA-256.
    pub(super) tag: Option<String>,
    pub(super) bytes: Option<u64>,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Result<Self> {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("llink/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(SILENCE)
            .read_timeout(SILENCE)
            .build();
        Ok(Self { http: http.map_err(|e| unreachable(&settings.endpoint, &e))?, settings })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Asks for the contents of a repository.
    pub(super) async fn repo(&self, repo: &RepoName) -> Result<RepoInfo> {
        let (kind, id, revision) = (repo.kind.plural(), repo.id(), repo.revision().replace('/', "%2F"));
        let address = format!("{}/api/{kind}/{id}/revision/{revision}?blobs=true", self.settings.endpoint);
        let response = self.ask(Method::GET, &address, None, repo, "").await?.0;
        let content = response.bytes().await.map_err(|e| unreachable(&repo.to_string(), &e))?;
        serde_json::from_slice(&content).map_err(|e| Error::Content {
            path: repo.to_string(),
            reason: format!("{} does not answer as the Hub does ({e}): check HF_ENDPOINT", self.settings.endpoint),
        })
    }

    /// Asks for the description of a file, before it is downloaded.
    pub(super) async fn file_info(&self, repo: &RepoName, path: &str) -> Result<FileInfo> {
        let address = self.file_address(repo, path)?;
        Ok(self.ask(Method::HEAD, &address, None, repo, path).await?.1)
    }

    /// Requests the bytes of a file from `start` to `end`, exclusive. If the status is 200, the answer begins at 0.
    pub(super) async fn file(&self, repo: &RepoName, path: &str, start: u64, end: Option<u64>) -> Result<Response> {
        let address = self.file_address(repo, path)?;
        let range = match (start, end) {
            (0, None) => None,
            (start, None) => Some(format!("bytes={start}-")),
            (start, Some(end)) => Some(format!("bytes={start}-{}", end.saturating_sub(1))),
        };
        Ok(self.ask(Method::GET, &address, range, repo, path).await?.0)
    }

    /// Reads a part of a file.
    pub(super) async fn part(&self, repo: &RepoName, path: &str, start: u64, end: u64) -> Result<Bytes> {
        let failed = |e| unreachable(&describe(repo, path), &e);
        let mut response = self.file(repo, path, start, Some(end)).await?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            return response.bytes().await.map_err(failed);
        }
        // A server without ranges sends the whole file; nothing after the part is read.
        let mut content = Vec::new();
        while (content.len() as u64) < end {
            match response.chunk().await.map_err(failed)? {
                Some(chunk) => content.extend_from_slice(&chunk),
                None => break,
            }
        }
        let whole = Bytes::from(content);
        let length = whole.len() as u64;
        Ok(whole.slice(start.min(length) as usize..end.min(length) as usize))
    }

    fn file_address(&self, repo: &RepoName, path: &str) -> Result<String> {
        let base = format!("{}/resolve/{}/", page(repo, &self.settings), repo.revision().replace('/', "%2F"));
        let wrong = |e: String| Error::Url { url: describe(repo, path), reason: e };
        let mut address = Url::parse(&base).map_err(|e| wrong(format!("{base}: {e}")))?;
        let mut segments = address.path_segments_mut().map_err(|()| wrong(format!("{base} is not a web address")))?;
        segments.pop_if_empty().extend(path.split('/'));
        drop(segments);
        Ok(address.into())
    }

    /// Returns an answer that is not a refusal, and the Hub's headers from before any redirect. HEAD requests do not
    /// follow redirects away from the Hub, because only the content is elsewhere.
    async fn ask(
        &self,
        method: Method,
        address: &str,
        range: Option<String>,
        repo: &RepoName,
        path: &str,
    ) -> Result<(Response, FileInfo)> {
        let mut pause = FIRST_PAUSE;
        for tries_left in (0..TRIES).rev() {
            let wait = match self.try_once(&method, address, range.as_deref()).await {
                Ok((response, info)) if response.status().is_success() || response.status().is_redirection() => {
                    return Ok((response, info));
                }
                Ok((response, _)) => {
                    let busy =
                        response.status().is_server_error() || response.status() == StatusCode::TOO_MANY_REQUESTS;
                    if !busy || tries_left == 0 {
                        return Err(refused(&response, repo, path, &self.settings));
                    }
                    retry_after(response.headers()).unwrap_or(pause)
                }
                Err(error) if tries_left == 0 || error.is_builder() => {
                    return Err(unreachable(&describe(repo, path), &error));
                }
                Err(_) => pause,
            };
            tokio::time::sleep(wait.min(LONGEST_PAUSE)).await;
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    async fn try_once(
        &self,
        method: &Method,
        address: &str,
        range: Option<&str>,
    ) -> reqwest::Result<(Response, FileInfo)> {
        let mut address = address.to_owned();
        let mut info = FileInfo::default();
        for _ in 0..REDIRECTS {
            let own = self.is_own(&address);
            let mut request = self.http.request(method.clone(), &address).header(ACCEPT_ENCODING, "identity");
            if let (Some(token), true) = (&self.settings.token, own) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            let response = request.send().await?;
            if own {
                info.add(response.status(), response.headers());
            }
            let next = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let next = next.and_then(|to| response.url().join(to).ok()).map(String::from);
            match next {
                Some(next) if response.status().is_redirection() => {
                    if *method == Method::HEAD && !self.is_own(&next) {
                        return Ok((response, info));
                    }
                    address = next;
                }
                _ => return Ok((response, info)),
            }
        }
        let response = self.http.request(method.clone(), address).send().await?;
        Ok((response, info))
    }

    /// Returns true if an address is the Hub's own.
    fn is_own(&self, address: &str) -> bool {
        let origin = |address: &str| Url::parse(address).ok().map(|url| url.origin());
        origin(address).is_some_and(|of| Some(of) == origin(&self.settings.endpoint))
    }
}

impl FileInfo {
    fn add(&mut self, status: StatusCode, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let plain = |tag: &str| tag.trim_start_matches("W/").trim_matches('"').to_owned();
        // For a file on another server, the Hub's own answer holds these two.
        if let Some(tag) = text("x-linked-etag").or_else(|| self.tag.is_none().then(|| text(ETAG.as_str())).flatten()) {
            self.tag = Some(plain(tag));
        }
        let length = text(CONTENT_LENGTH.as_str()).filter(|_| status == StatusCode::OK);
        if let Some(bytes) = text("x-linked-size").or(length).and_then(|size| size.parse().ok()) {
            self.bytes = Some(bytes);
        }
    }
}

/// Returns the address of a repository on the Hub.
fn page(repo: &RepoName, settings: &Settings) -> String {
    format!("{}/{}{}", settings.endpoint, repo.kind.prefix(), repo.id())
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

pub(super) fn describe(repo: &RepoName, path: &str) -> String {
    match path {
        "" => repo.to_string(),
        path => format!("{repo}/{path}"),
    }
}

pub(super) fn unreachable(what: &str, error: &reqwest::Error) -> Error {
    Error::Store { path: what.to_owned(), source: super::super::with_causes(error).into() }
}

/// Describes the Hub's refusal, with advice.
fn refused(response: &Response, repo: &RepoName, path: &str, settings: &Settings) -> Error {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let status = response.status();
    let (code, said) = (header("x-error-code").unwrap_or_default(), header("x-error-message").unwrap_or_default());
    let page = page(repo, settings);
    let token = match settings.token {
        Some(_) => "give HF_TOKEN a token of an account that may read it (the one that is set may not)",
        None => "set HF_TOKEN (or run `hf auth login`) to a token of an account that may read it",
    };
    let reason = match (status.as_u16(), code) {
        (401 | 403, "GatedRepo") => format!("is gated: accept its license at {page}, then {token}"),
        (404, "RevisionNotFound") => format!("has no revision {:?}: look at {page}/tree/main", repo.revision()),
        (404, "EntryNotFound") => format!("the repository has no such file: look at {page}/tree/{}", repo.revision()),
        (401 | 404, "RepoNotFound") | (401 | 403, _) => {
            format!("there is no such repository, or it is private or gated: look at {page}; if it is there, {token}")
        }
        (404, _) => format!("the Hub has no such repository, revision or file: look at {page}"),
        (code, _) => {
            let said: String = said.chars().take(200).collect();
            return Error::Store {
                path: describe(repo, path),
                source: format!("the Hub answered {code} {said}").into(),
            };
        }
    };
    Error::Url { url: describe(repo, path), reason }
}
