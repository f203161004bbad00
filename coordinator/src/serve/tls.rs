//! TLS in front of the server. The certificate and the clients' authority are read from files, again whenever these
//! change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

use super::access::{Authority, Tokens};

/// The interval at which files are read, because kubelet and cert-manager replace them without a signal.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// The files of the server's certificate and of the authority for clients.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The PEM file of certificates, the server's own first.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The PEM file of the authority that signs the certificates of workers and users. `None` means that they show
    /// tokens.
    pub client_authority: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct FileError {
    pub path: PathBuf,
    pub reason: String,
}

fn broken(path: &Path, reason: impl ToString) -> FileError {
    FileError { path: path.into(), reason: reason.to_string() }
}

#[derive(Debug, Clone)]
pub(super) struct Tls {
    pub(super) server: watch::Receiver<Arc<ServerConfig>>,
    pub(super) authority: Option<watch::Receiver<Authority>>,
}

/// Whether a client needs a certificate. It is optional where tokens are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientCertificate {
    Required,
    Optional,
}

pub(super) fn watch_files(files: TlsFiles, client: ClientCertificate) -> Result<Tls, FileError> {
    let (config, authority) = load(&files, client)?;
    let (server, server_now) = watch::channel(config);
    let (authorities, authority_now) = match authority {
        None => (None, None),
        Some(authority) => {
            let (sender, receiver) = watch::channel(authority);
            (Some(sender), Some(receiver))
        }
    };
    let mut paths = vec![files.certificate.clone(), files.key.clone()];
    paths.extend(files.client_authority.clone());
    tokio::spawn(on_change(paths, move || {
        let (config, authority) = load(&files, client).map_err(|e| e.to_string())?;
        server.send_replace(config);
        if let (Some(sender), Some(authority)) = (&authorities, authority) {
            sender.send_replace(authority);
        }
        Ok(server.receiver_count() > 0)
    }));
    Ok(Tls { server: server_now, authority: authority_now })
}

pub(super) fn watch_tokens(path: &Path) -> Result<watch::Receiver<Arc<Tokens>>, FileError> {
    let tokens = Tokens::read(path).map_err(|e| broken(path, e.reason))?;
    let (sender, receiver) = watch::channel(Arc::new(tokens));
    let file = path.to_owned();
    tokio::spawn(on_change(vec![path.into()], move || {
        let tokens = Tokens::read(&file).map_err(|e| e.to_string())?;
        sender.send_replace(Arc::new(tokens));
        Ok(sender.receiver_count() > 0)
    }));
    Ok(receiver)
}

/// Calls `reload` whenever a file's content has changed, until it says that nobody listens. After a file that cannot be
/// used, the earlier content stays in force.
async fn on_change(paths: Vec<PathBuf>, mut reload: impl FnMut() -> Result<bool, String> + Send) {
    let look = || -> Vec<Option<Vec<u8>>> { paths.iter().map(|p| std::fs::read(p).ok()).collect() };
    let mut seen = look();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = look();
        if now == seen {
            continue;
        }
        seen = now;
        let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        match reload() {
            Ok(true) => tracing::info!(files = names.join(" "), "read again"),
            Ok(false) => return,
            Err(e) => tracing::warn!("{e}: the earlier content stays in force"),
        }
    }
}

fn load(files: &TlsFiles, client: ClientCertificate) -> Result<(Arc<ServerConfig>, Option<Authority>), FileError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| broken(&files.key, e))?;
    let authority = match &files.client_authority {
        None => None,
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                roots.add(root).map_err(|e| broken(path, e))?;
            }
            let optional = client == ClientCertificate::Optional;
            Some(Authority::new(roots, optional).map_err(|e| broken(path, e))?)
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| broken(&files.certificate, e))?;
    let builder = match &authority {
        Some(authority) => builder.with_client_cert_verifier(authority.verifier.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| broken(&files.certificate, e))?;
    config.alpn_protocols.push(b"h2".to_vec());
    Ok((Arc::new(config), authority))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| broken(path, e))?.collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(broken(path, "holds no certificate")),
        Err(e) => Err(broken(path, e)),
    }
}
