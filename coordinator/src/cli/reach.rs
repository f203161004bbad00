//! Where the coordinator is, and who asks.

use std::path::PathBuf;

use llink_proto::reach::Credentials;

use crate::serve::Endpoint;

/// Where the coordinator is.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Reach {
    /// URL of a running coordinator. Without it: the one that uses the state directory.
    #[arg(long, env = "LLINK_COORDINATOR", value_name = "URL")]
    pub(super) coordinator: Option<String>,
    /// Directory of the state store.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    pub(super) state: PathBuf,
    #[command(flatten)]
    pub(super) who: Who,
}

/// Who asks, and whom they trust.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Who {
    /// The authority that signed the coordinator's certificate, for https:// URLs.
    #[arg(long, env = "LLINK_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Your certificate.
    #[arg(long, env = "LLINK_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, env = "LLINK_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// The name in the coordinator's certificate, where it is not the URL's (a tunnel, for one).
    #[arg(long, env = "LLINK_TLS_SERVER_NAME", value_name = "NAME")]
    tls_server_name: Option<String>,
    /// A file with your token.
    #[arg(long, env = "LLINK_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Reach {
    /// The options by which another command reaches the same coordinator.
    pub(super) fn options(&self) -> String {
        match &self.coordinator {
            Some(url) => format!(" --coordinator {url}"),
            None => format!(" --state {}", self.state.display()),
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

impl Reach {
    /// Who asks the coordinator at `url`. Where it is the one of the state directory and serves its own user alone, the token
    /// stands there.
    pub(super) fn credentials(&self, url: &str) -> Credentials {
        let noted = Endpoint::read(&self.state).filter(|noted| noted.url == url.trim_end_matches('/'));
        match noted.and_then(|noted| noted.token) {
            // What an environment names for another coordinator is not for this one.
            Some(token) => Credentials {
                secret: Some(token),
                ..Credentials::default()
            },
            None => self.who.credentials(),
        }
    }
}
