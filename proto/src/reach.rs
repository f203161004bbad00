//! Connects a client to a coordinator: the URL, the certificate authority that it trusts, and the client's credentials.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

/// The metadata key of a worker's own secret, which shows that two calls come from the same process.
pub const INSTANCE_KEY: &str = "llink-instance";

/// The environment variable that holds a token itself, for processes that another process starts.
pub const TOKEN_VARIABLE: &str = "LLINK_TOKEN";

/// A connection whose calls carry the caller's credentials.
pub type Connection = InterceptedService<Channel, Caller>;

/// The client's credentials, and the authority that it trusts. The files are read at every connection, so a changed
/// file takes effect.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The file of the authority that signed the coordinator's certificate.
    pub authority: Option<PathBuf>,
    /// The file of this client's certificate.
    pub certificate: Option<PathBuf>,
    /// The private key of the client's certificate.
    pub key: Option<PathBuf>,
    /// A file that holds a token and nothing else.
    pub token: Option<PathBuf>,
    /// The token itself, if no file is named.
    pub secret: Option<Secret>,
    /// The name in the coordinator's certificate, if it differs from the host in the URL.
    pub server_name: Option<String>,
}

/// A token's text, which no debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the secret text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The reason why a coordinator cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The URL is invalid.
    #[error("{url}: not a URL such as http://host:7070 or https://host:7070 ({reason})")]
    Url {
        /// The URL as given.
        url: String,
        /// The reason, for people.
        reason: String,
    },
    /// A file of the credentials cannot be used.
    #[error("{path}: {reason}")]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The reason, for people.
        reason: String,
    },
    /// Options that do not fit each other; the text says which.
    #[error("{0}")]
    Options(String),
}

/// Adds the caller's credentials to every call.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    authorization: Option<MetadataValue<Ascii>>,
    instance: Option<MetadataValue<Ascii>>,
}

impl Caller {
    /// Returns the same caller with a secret that marks this process.
    ///
    /// # Errors
    /// When the secret is not printable ASCII.
    pub fn with_instance(mut self, secret: &str) -> Result<Self, ReachError> {
        let value = secret.parse().map_err(|_| ReachError::Options("the instance's secret is not ASCII".into()))?;
        self.instance = Some(value);
        Ok(self)
    }
}

impl Interceptor for Caller {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        if let Some(instance) = &self.instance {
            request.metadata_mut().insert(INSTANCE_KEY, instance.clone());
        }
        Ok(request)
    }
}

impl Credentials {
    /// Builds the endpoint for a URL and the caller that goes with it.
    ///
    /// # Errors
    /// When the URL, a file or their combination is wrong.
    pub fn endpoint(&self, url: &str) -> Result<(Endpoint, Caller), ReachError> {
        let wrong = |reason: String| ReachError::Url { url: url.into(), reason };
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| wrong(e.to_string()))?;
        let uri = endpoint.uri().clone();
        let endpoint = match uri.scheme_str() {
            Some("https") => endpoint.tls_config(self.tls()?).map_err(|e| wrong(with_causes(&e)))?,
            Some("http") if self.certificate.is_some() || self.authority.is_some() => {
                return Err(ReachError::Options(format!(
                    "{url} is plain text, and certificates were named: write https://"
                )));
            }
            Some("http") if self.shows_a_token() && !is_loopback(uri.host().unwrap_or_default()) => {
                return Err(ReachError::Options(format!("{url}: a token would travel in plain text: write https://")));
            }
            Some("http") => endpoint,
            _ => return Err(wrong("its scheme is neither http nor https".into())),
        };
        let endpoint = endpoint.connect_timeout(Duration::from_secs(5)).tcp_nodelay(true);
        Ok((endpoint, self.caller()?))
    }

    fn tls(&self) -> Result<ClientTlsConfig, ReachError> {
        let Some(authority) = &self.authority else {
            return Err(ReachError::Options(
                "https:// needs the authority that signed the coordinator's certificate: --tls-ca FILE".into(),
            ));
        };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(authority)?));
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?)),
            (None, None) => {}
            _ => {
                return Err(ReachError::Options(
                    "a client's certificate needs its key and the other way round: --tls-cert FILE --tls-key FILE"
                        .into(),
                ));
            }
        }
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        Ok(tls)
    }

    /// Returns true if calls carry a token.
    #[must_use]
    pub fn shows_a_token(&self) -> bool {
        self.token.is_some() || self.secret.is_some()
    }

    fn caller(&self) -> Result<Caller, ReachError> {
        let Some(token) = self.token_text()? else {
            return Ok(Caller::default());
        };
        let value: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
        let mut value = value.map_err(|_| ReachError::Options("the token is not printable ASCII".into()))?;
        value.set_sensitive(true);
        Ok(Caller { authorization: Some(value), instance: None })
    }

    fn token_text(&self) -> Result<Option<String>, ReachError> {
        let Some(path) = &self.token else {
            return Ok(self.secret.as_ref().map(|secret| secret.text().trim().to_owned()));
        };
        let file = |reason: &str| ReachError::File { path: path.clone(), reason: reason.into() };
        let bytes = read(path)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| file("holds no text"))?.trim();
        match text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
            true => Err(file("expected one token and nothing else")),
            false => Ok(Some(text.to_owned())),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ReachError> {
    std::fs::read(path).map_err(|e| ReachError::File { path: path.into(), reason: e.to_string() })
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Returns an error's text followed by the texts of its causes, each once.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_travels_in_plain_text_beyond_this_machine() {
        let token = std::env::temp_dir().join(format!("llink-token-{}", std::process::id()));
        std::fs::write(&token, "llk_1\n").unwrap();
        let credentials = Credentials { token: Some(token.clone()), ..Credentials::default() };
        for here in ["http://127.0.0.1:7070", "http://localhost:7070", "http://[::1]:7070"] {
            assert!(credentials.endpoint(here).is_ok(), "{here}");
        }
        let said = credentials.endpoint("http://head:7070").unwrap_err().to_string();
        assert!(said.contains("plain text"), "{said}");
        std::fs::write(&token, "two words").unwrap();
        assert!(credentials.endpoint("http://127.0.0.1:7070").is_err());
        std::fs::remove_file(token).unwrap();
    }

    #[test]
    fn what_is_missing_for_https_is_named() {
        let said = Credentials::default().endpoint("https://head:7070").unwrap_err().to_string();
        assert!(said.contains("--tls-ca"), "{said}");
        let said = Credentials::default().endpoint("ftp://head").unwrap_err().to_string();
        assert!(said.contains("neither http nor https"), "{said}");
    }
}
