//! The options that say where the coordinator is, and who asks.

use std::path::PathBuf;

use llink_proto::reach::Credentials;

use crate::serve::Endpoint;

/// The location of the coordinator.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Reach {
    /// URL of a running coordinator. By default, the one that uses the state directory.
    #[arg(long, env = "LLINK_COORDINATOR", value_name = "URL")]
    pub(super) coordinator: Option<String>,
    /// Directory of the state store.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    pub(super) state: PathBuf,
    #[command(flatten)]
    pub(super) who: Who,
}

/// The caller's credentials, and the authority that the caller trusts.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Who {
    /// The certificate authority that signed the coordinator's certificate, for https:// URLs.
    #[arg(long, env = "LLINK_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The file of your certificate.
    #[arg(long, env = "LLINK_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of your certificate.
    #[arg(long, env = "LLINK_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// The name in the coordinator's certificate, if it differs from the host in the URL (for example through a
    /// tunnel).
    #[arg(long, env = "LLINK_TLS_SERVER_NAME", value_name = "NAME")]
    tls_server_name: Option<String>,
    /// The file of your token.
    #[arg(long, env = "LLINK_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Reach {
    /// Returns the options by which another command reaches the same coordinator.
    pub(super) fn options(&self) -> String {
        match &self.coordinator {
            Some(url) => format!(" --coordinator {url}"),
            None => format!(" --state {}", self.state.display()),
        }
    }

    /// Returns the credentials for the coordinator at `url`. If it is the one of the state directory and serves its own
    /// user only, the token is in the state directory.
    pub(super) fn credentials(&self, url: &str) -> Credentials {
        let noted = Endpoint::read(&self.state).filter(|noted| noted.url == url.trim_end_matches('/'));
        match noted.and_then(|noted| noted.token) {
            // Credentials in the environment are for another coordinator.
            Some(token) => Credentials { secret: Some(token), ..Credentials::default() },
            None => self.who.credentials(),
        }
    }
}

impl Who {
    pub(super) fn credentials(&self) -> Credentials {
        Credentials {
            authority: self.tls_ca.clone(),
            certificate: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            token: self.token_file.clone(),
            secret: None,
            server_name: self.tls_server_name.clone(),
        }
    }
}
