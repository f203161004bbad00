//! Reads files from web servers.

use async_trait::async_trait;
use bytes::Bytes;
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpRequest, HttpRequestBody, HttpResponse, HttpService,
};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};
use std::sync::Arc;
use std::time::Duration;

use super::open::bad_url;
use super::{Store, Transfer, with_causes};
use crate::Result;
use crate::roots::percent_decoded;
use crate::shown::{ShownUrl, secrets_of};

/// The time limit for connecting to a web server.
const CONNECTING: Duration = Duration::from_secs(10);
/// The longest silence of a server. A whole download may take any time.
const SILENCE: Duration = Duration::from_secs(60);
/// The number of retries of a request.
const RETRIES: usize = 6;

impl Store {
    /// Opens a folder on a web server, whose query is sent with every request.
    pub(super) fn open_web(url: &str) -> Result<Self> {
        let address = parsed(url)?;
        let prefix = Path::from_url_path(address.path().trim_start_matches('/'));
        let prefix = prefix.map_err(|e| bad_url(url, &with_causes(&e)))?;
        let mut root = address.clone();
        root.set_path("/");
        Self::on_web(url, &address, Web::new(&address, None), &root, prefix)
    }

    /// Opens one file on a web server. Its address is requested exactly as given, because a signature may cover the way
    /// it is escaped.
    pub(super) fn open_web_file(url: &str, folder: &str) -> Result<Self> {
        let address = parsed(url)?;
        let mut root = address.clone();
        root.set_path("/");
        root.set_query(None);
        let web = Web::new(&address, Some(without_user(&address).into()));
        Self::on_web(folder, &address, web, &root, Path::default())
    }

    fn on_web(url: &str, address: &Url, web: reqwest::Result<Web>, root: &Url, prefix: Path) -> Result<Self> {
        let refused = |e: &dyn std::error::Error| bad_url(url, &with_causes(e));
        let retry = RetryConfig { max_retries: RETRIES, ..RetryConfig::default() };
        let objects = HttpBuilder::new()
            .with_url(without_user(root))
            .with_http_connector(web.map_err(|e| refused(&e))?)
            .with_retry(retry)
            .build()
            .map_err(|e| refused(&e))?;
        let objects: Arc<dyn ObjectStore> = Arc::new(objects);
        let shown = ShownUrl::of(url);
        Ok(Self {
            secrets: secrets_of(address).into(),
            ..Self::with_objects(shown.as_str(), objects, prefix, Transfer::PartsIfAble)
        })
    }
}

fn parsed(url: &str) -> Result<Url> {
    let mut address = Url::parse(url).map_err(|e| bad_url(url, &e.to_string()))?;
    address.set_fragment(None);
    Ok(address)
}

fn without_user(address: &Url) -> Url {
    let mut address = address.clone();
    // These calls fail only for URLs without a host, which have no credentials.
    let _ = address.set_username("");
    let _ = address.set_password(None);
    address
}

/// Sends requests to a web server, without a referrer that would reveal the query.
#[derive(Debug, Clone)]
struct Web {
    client: reqwest::Client,
    /// The address of every request; `None` leaves the request's own.
    address: Option<String>,
    /// The credentials from the name and password of the URL. They are not sent to the target of a redirect.
    authorization: Option<HeaderValue>,
}

impl Web {
    fn new(given: &Url, address: Option<String>) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("llink/", env!("CARGO_PKG_VERSION")))
            // A referrer would reveal a signed query to the target of a redirect.
            .referer(false)
            .connect_timeout(CONNECTING)
            .read_timeout(SILENCE)
            // Sizes and ranges are those of the stored file.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .http1_only()
            .build()?;
        let authorization = match (given.username(), given.password()) {
            ("", None) => None,
            (name, password) => {
                let decoded = |text: &str| percent_decoded(text).unwrap_or_else(|| text.to_owned());
                let request = client.get(without_user(given)).basic_auth(decoded(name), password.map(decoded));
                request.build()?.headers().get(AUTHORIZATION).cloned()
            }
        };
        Ok(Self { client, address, authorization })
    }
}

impl HttpConnector for Web {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Web {
    async fn call(&self, mut request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        if let Some(Ok(address)) = self.address.as_ref().map(|address| address.parse()) {
            *request.uri_mut() = address;
        }
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        if request.method() != Method::HEAD {
            return self.client.call(request).await;
        }
        let (parts, _) = request.into_parts();
        let asked = HttpRequest::from_parts(parts.clone(), HttpRequestBody::empty());
        let answer = self.client.call(asked).await?;
        if answer.status().is_success() || answer.status().is_redirection() {
            return Ok(answer);
        }
        // The URL is signed for GET alone, or the server supports no other method.
        let mut first = HttpRequest::from_parts(parts, HttpRequestBody::empty());
        *first.method_mut() = Method::GET;
        first.headers_mut().insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        Ok(as_head(self.client.call(first).await?))
    }
}

/// Makes the answer to HEAD from the answer to GET for the first byte.
fn as_head(answer: HttpResponse) -> HttpResponse {
    if !answer.status().is_success() {
        return answer;
    }
    let (mut parts, _) = answer.into_parts();
    if parts.status == StatusCode::PARTIAL_CONTENT {
        let range = parts.headers.remove(CONTENT_RANGE);
        let size: Option<u64> = range.as_ref().and_then(|range| range.to_str().ok()?.rsplit_once('/')?.1.parse().ok());
        match size {
            Some(size) => drop(parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(size))),
            None => drop(parts.headers.remove(CONTENT_LENGTH)),
        }
        parts.status = StatusCode::OK;
    }
    HttpResponse::from_parts(parts, Bytes::new().into())
}
