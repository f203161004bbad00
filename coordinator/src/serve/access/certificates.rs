//! The check of clients' certificates. It runs at every call, so that an expired certificate or a replaced authority
//! also counts on open connections.

use std::sync::Arc;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;

use super::{Peer, Proof, Role};

/// The authority that signs the certificates of clients.
#[derive(Debug, Clone)]
pub struct Authority {
    pub(crate) verifier: Arc<dyn ClientCertVerifier>,
}

impl Authority {
    /// Creates an authority that trusts these roots. With `optional`, a client may show a token instead of a
    /// certificate.
    pub fn new(roots: RootCertStore, optional: bool) -> Result<Self, String> {
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = if optional { builder.allow_unauthenticated() } else { builder };
        Ok(Self { verifier: builder.build().map_err(|e| e.to_string())? })
    }

    /// Returns the caller that the certificate names, if the authority signed it and it is valid now.
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, String> {
        let (leaf, rest) = chain.split_first().ok_or("no certificate")?;
        self.verifier.verify_client_cert(leaf, rest, UnixTime::now()).map_err(|e| e.to_string())?;
        let certificate = webpki::EndEntityCert::try_from(leaf).map_err(|e| e.to_string())?;
        let mut named = certificate.valid_uri_names().filter_map(identity);
        let (role, name) = named.next().ok_or(
            "the certificate names nobody: expected a URI such as spiffe://llink/worker/NAME or spiffe://llink/user/ROLE/NAME",
        )?;
        match named.next() {
            None => Ok(Peer { name, role, by: Proof::Certificate }),
            Some(_) => Err("the certificate names more than one".into()),
        }
    }
}

/// Parses the role and the name from a certificate's URI: `spiffe://llink/worker/NAME`,
/// `spiffe://llink/user/ROLE/NAME`.
pub fn identity(uri: &str) -> Option<(Role, String)> {
    let mut parts = uri.strip_prefix("spiffe://llink/")?.split('/');
    let role = match parts.next()? {
        "worker" => Role::Worker,
        "user" => parts.next()?.parse().ok().filter(|role| *role != Role::Worker)?,
        _ => return None,
    };
    let name = parts.next().filter(|name| is_name(name))?;
    parts.next().is_none().then(|| (role, name.to_owned()))
}

/// Returns whether a name has only letters, digits, `.`, `-`, `_` and `@`, so that it fits in a log and a URI.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-_@".contains(c);
    !name.is_empty() && name.len() <= 100 && name.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_one_role_and_one_name_or_nobody() {
        assert_eq!(identity("spiffe://llink/worker/gpu-1"), Some((Role::Worker, "gpu-1".into())));
        assert_eq!(identity("spiffe://llink/user/read/ada"), Some((Role::Read, "ada".into())));
        assert_eq!(identity("spiffe://llink/user/administer/a.b@c"), Some((Role::Administer, "a.b@c".into())));
        for wrong in [
            "spiffe://other/worker/gpu-1",
            "spiffe://llink/worker/",
            "spiffe://llink/worker/a/b",
            "spiffe://llink/user/worker/ada",
            "spiffe://llink/user/root/ada",
            "spiffe://llink/user/read/a\nb",
            "https://llink/worker/a",
            "spiffe://llink/coordinator",
        ] {
            assert_eq!(identity(wrong), None, "{wrong}");
        }
    }
}
