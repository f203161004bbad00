//! The check of where a coordinator may listen. Beyond loopback it needs TLS, callers that can be told apart, and jobs
//! that are confined to roots.

use std::net::SocketAddr;
use std::path::PathBuf;

use llink_datasets::roots::Roots;

use super::TlsFiles;

/// The rules for callers and jobs. The default is for loopback, where this user may do anything.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// The certificate of the server. `None` means plain text.
    pub tls: Option<TlsFiles>,
    pub tokens: Option<PathBuf>,
    pub audit: Option<PathBuf>,
    /// The URLs below which jobs may read and write.
    pub roots: Roots,
    /// Whether roots were named. Beyond loopback a person must decide on them.
    pub roots_named: bool,
    /// Whether to listen beyond loopback without protection, and on loopback for every user.
    pub insecure: bool,
}

/// Refuses an address where everyone who reaches it could use the coordinator.
pub fn check(listen: SocketAddr, security: &Security) -> Result<(), String> {
    check_callers("--listen", listen, security)?;
    if listen.ip().is_loopback() || security.insecure || security.roots_named {
        return Ok(());
    }
    Err(format!(
        "--listen {listen}: a job could read and write whatever this coordinator and its workers can. Name what jobs \
         may use, as in --allow-root s3://bucket/llink, or --allow-root any"
    ))
}

/// Refuses an address beyond loopback without TLS, or where callers cannot be told apart. `flag` names the address.
pub fn check_callers(flag: &str, listen: SocketAddr, security: &Security) -> Result<(), String> {
    if listen.ip().is_loopback() || security.insecure {
        return Ok(());
    }
    let Some(tls) = &security.tls else {
        return Err(format!(
            "{flag} {listen} is reached from other machines, and everything would go there in plain text: name \
             --tls-cert and --tls-key (`llink-coord certs DIR` makes some), listen on 127.0.0.1, or say --insecure \
             where the network is trusted"
        ));
    };
    if tls.client_authority.is_none() && security.tokens.is_none() {
        return Err(format!(
            "{flag} {listen}: callers could not be told apart. Name the authority of their certificates \
             (--tls-client-ca FILE), their tokens (--tokens FILE), or both"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_each_missing_guard_is_named() {
        let wide: SocketAddr = "0.0.0.0:7070".parse().unwrap();
        let mut security = Security::default();
        for here in ["127.0.0.1:7070", "[::1]:7070"] {
            assert_eq!(check(here.parse().unwrap(), &security), Ok(()));
        }
        assert!(check(wide, &security).unwrap_err().contains("--tls-cert"));
        assert!(check("10.0.0.3:7070".parse().unwrap(), &security).is_err());
        security.tls = Some(TlsFiles { certificate: "c".into(), key: "k".into(), client_authority: None });
        assert!(check(wide, &security).unwrap_err().contains("--tls-client-ca"));
        security.tokens = Some("tokens.toml".into());
        assert!(check(wide, &security).unwrap_err().contains("--allow-root"));
        security.roots_named = true;
        assert_eq!(check(wide, &security), Ok(()));
        let forced = Security { insecure: true, ..Security::default() };
        assert_eq!(check(wide, &forced), Ok(()));
    }
}
