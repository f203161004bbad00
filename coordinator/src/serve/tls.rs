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

/// What the files hold.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    pub(super) server: Arc<ServerConfig>,
    pub(super) authority: Option<Authority>,
}

/// Whether a client needs a certificate. It is optional where tokens are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientCertificate {
    Required,
    Optional,
}

pub(super) fn watch_files(files: TlsFiles, client: ClientCertificate) -> Result<watch::Receiver<Tls>, FileError> {
    let mut paths = vec![files.certificate.clone(), files.key.clone()];
    paths.extend(files.client_authority.clone());
    watched(paths, move || load(&files, client))
}

pub(super) fn watch_tokens(path: &Path) -> Result<watch::Receiver<Arc<Tokens>>, FileError> {
    let file = path.to_owned();
    watched(vec![path.into()], move || Tokens::read(&file).map(Arc::new))
}

/// Loads what files hold, and again whenever their content has changed, while somebody listens. After a file that
/// cannot be used, the earlier content stays in force.
fn watched<T: Send + Sync + 'static>(
    paths: Vec<PathBuf>,
    load: impl Fn() -> Result<T, FileError> + Send + 'static,
) -> Result<watch::Receiver<T>, FileError> {
    let (sender, receiver) = watch::channel(load()?);
    tokio::spawn(async move {
        let look = || -> Vec<Option<Vec<u8>>> { paths.iter().map(|p| std::fs::read(p).ok()).collect() };
        let mut seen = look();
        while !sender.is_closed() {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let now = look();
            if now == seen {
                continue;
            }
            seen = now;
            match load() {
                Ok(loaded) => {
                    sender.send_replace(loaded);
                    let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
                    tracing::info!(files = names.join(" "), "read again");
                }
                Err(e) => tracing::warn!("{e}: the earlier content stays in force"),
            }
        }
    });
    Ok(receiver)
}

fn load(files: &TlsFiles, client: ClientCertificate) -> Result<Tls, FileError> {
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
    Ok(Tls { server: Arc::new(config), authority })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| broken(path, e))?.collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(broken(path, "holds no certificate")),
        Err(e) => Err(broken(path, e)),
    }
}
