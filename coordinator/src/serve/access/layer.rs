//! The gate that every call passes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use llink_proto::shown;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tonic::{Code, Status};

use super::audit::{AuditLog, DENIED, Entry};
use super::{Need, Peer, Proof, Slowdown, Tokens, bearer, call_name, needed, sha256_of};
use crate::machine::unix_ms;
use crate::serve::accept::Origin;
use crate::serve::connections::Source;
use crate::serve::metrics::Calls;
use crate::serve::tls::Tls;

/// The user who can act as any user anyway.
const ROOT: u32 = 0;
/// The most bytes of a refusal's text. A client takes 16 KiB of headers, and most characters take three bytes there.
const REFUSAL_BYTES: usize = 4 << 10;
const REASON_BYTES: usize = 1 << 10;

/// The subject of an answer: the id of a job or a worker. Handlers put it into their answer for the audit log.
#[derive(Debug, Clone)]
pub(in crate::serve) struct Subject(pub(in crate::serve) String);

#[derive(Debug)]
pub(in crate::serve) struct Access {
    pub(in crate::serve) open: bool,
    /// The user who may call, beside root, where callers are not identified.
    pub(in crate::serve) own_user: Option<u32>,
    /// The SHA-256 of the only token that counts, where this coordinator serves only the user who started it.
    pub(in crate::serve) own_token: Option<String>,
    /// Has the authority of clients' certificates.
    pub(in crate::serve) authority: Option<watch::Receiver<Tls>>,
    pub(in crate::serve) tokens: Option<watch::Receiver<Arc<Tokens>>>,
    pub(in crate::serve) audit: Option<Arc<AuditLog>>,
    pub(in crate::serve) calls: Calls,
    pub(in crate::serve) slowdown: Slowdown,
    pub(in crate::serve) token_file: Option<PathBuf>,
}

impl Access {
    fn peer(&self, origin: Option<&Origin>, headers: &HeaderMap) -> Result<Peer, Status> {
        self.identify(origin, bearer(headers).map(sha256_of).as_deref())
    }

    /// Identifies the caller from the connection's origin and the SHA-256 of the shown token.
    fn identify(&self, origin: Option<&Origin>, token: Option<&str>) -> Result<Peer, Status> {
        let user = origin.and_then(|origin| origin.user);
        let is_own_user = self.own_user.is_some_and(|own| user == Some(own) || user == Some(ROOT));
        if self.open {
            return match is_own_user || self.own_user.is_none() {
                true => Ok(Peer::anybody()),
                false => Err(Status::unauthenticated(
                    "this coordinator serves only the user who started it: start it with --tokens FILE to identify other callers, or \
                     with --insecure to serve every user of its machine",
                )),
            };
        }
        let certificates: Option<&[CertificateDer<'_>]> =
            origin.and_then(|o| o.certificates.as_deref().map(Vec::as_slice));
        let by_certificate = match (certificates, &self.authority) {
            (Some(chain), Some(tls)) => tls.borrow().authority.as_ref().map(|authority| authority.peer(chain)),
            _ => None,
        };
        if let Some(Ok(peer)) = by_certificate {
            return Ok(peer);
        }
        if let Some(own) = &self.own_token {
            return match is_own_user || token == Some(own) {
                true => Ok(Peer::anybody()),
                false => Err(Status::unauthenticated(
                    "this coordinator lives for one `submit` and serves only the user who started it: name that submit's \
                     state directory (--state DIR), whose coordinator.endpoint holds its token",
                )),
            };
        }
        if let (Some(token), Some(tokens)) = (token, &self.tokens) {
            let found = tokens.borrow().peer_by_hash(token, OffsetDateTime::now_utc());
            return found.map_err(Status::unauthenticated);
        }
        Err(Status::unauthenticated(match by_certificate {
            Some(Err(why)) => format!("the client's certificate does not count: {why}"),
            _ if token.is_some() => "this coordinator knows no tokens: show a certificate".into(),
            _ => format!("this coordinator must identify its callers: {}", self.wanted()),
        }))
    }

    /// Admits a person to the page `about`, who shows a token with that SHA-256 or none. A wrong token is delayed like
    /// that of a call.
    pub(in crate::serve) async fn look(&self, origin: &Origin, token: Option<&str>, about: &str) -> Result<(), Status> {
        let may = |peer: Peer| match peer.role.may(Need::Look) {
            true => Ok(peer),
            false => Err(Status::permission_denied(lacks(&peer, Need::Look))),
        };
        let found = self.identify(Some(origin), token).and_then(may);
        let (outcome, reason) = match &found {
            Ok(_) => ("ok", ""),
            Err(status) => (DENIED, status.message()),
        };
        let call = Call {
            peer: found.as_ref().map_or_else(|_| unknown(), Peer::clone),
            from: origin.address.to_string(),
            name: "Page/Look".into(),
        };
        self.note(&call, outcome, about, reason);
        if found.is_err() && token.is_some() {
            let wait = self.slowdown.wait(Some(Source::of(origin.address.ip())), Instant::now());
            tokio::time::sleep(wait).await;
        }
        found.map(drop)
    }

    pub(in crate::serve) fn knows_tokens(&self) -> bool {
        self.tokens.is_some() || self.own_token.is_some()
    }

    fn wanted(&self) -> &'static str {
        match (&self.authority, &self.token_file) {
            (Some(_), Some(_)) => "show a certificate (--tls-cert, --tls-key) or a token (--token-file)",
            (Some(_), None) => "show a certificate (--tls-cert, --tls-key)",
            _ => "show a token (--token-file)",
        }
    }

    fn note(&self, call: &Call, outcome: &str, about: &str, reason: &str) {
        self.calls.count(&call.name, outcome);
        // Ten heartbeats a second from each worker would hide the other calls.
        if call.name.ends_with("/Heartbeat") && outcome == "ok" {
            return;
        }
        let Some(audit) = &self.audit else { return };
        let by = match &call.peer.by {
            Proof::None => "none",
            Proof::Certificate => "certificate",
            Proof::Token { .. } => "token",
        };
        audit.note(Entry {
            at: unix_ms(),
            who: call.peer.name.clone(),
            role: call.peer.role.into(),
            by,
            from: call.from.clone(),
            call: call.name.clone(),
            about: about.into(),
            outcome: outcome.into(),
            reason: shown::bounded(reason, REASON_BYTES).into_owned(),
        });
    }
}

struct Call {
    peer: Peer,
    from: String,
    name: String,
}

/// Lets a call pass to the services if its caller may make it, and notes every call.
pub(in crate::serve) async fn gate(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    let origin = request.extensions().get::<Origin>().cloned();
    let from = origin.as_ref().map(|origin| origin.address.to_string()).unwrap_or_default();
    let path = request.uri().path();
    let name = call_name(path).to_owned();
    let peer = access.peer(origin.as_ref(), request.headers());
    let admitted = peer.map_err(|status| (status, unknown())).and_then(|peer| match needed(path) {
        Some(need) if peer.role.may(need) => Ok(peer),
        Some(need) => Err((Status::permission_denied(lacks(&peer, need)), peer)),
        None => Err((Status::unimplemented("there is no such call"), peer)),
    });
    match admitted {
        Err((status, peer)) => {
            access.note(&Call { peer, from, name }, DENIED, "", status.message());
            if status.code() == Code::Unauthenticated {
                let source = origin.map(|origin| Source::of(origin.address.ip()));
                tokio::time::sleep(access.slowdown.wait(source, Instant::now())).await;
            }
            status.into_http()
        }
        Ok(peer) => {
            request.extensions_mut().insert(peer.clone());
            let response = short(next.run(request).await);
            let (outcome, reason) = ending(&response);
            let about = response.extensions().get::<Subject>().map_or("", |s| s.0.as_str());
            access.note(&Call { peer, from, name }, &outcome, about, &reason);
            response
        }
    }
}

fn unknown() -> Peer {
    Peer { name: "unknown".into(), ..Peer::anybody() }
}

fn lacks(peer: &Peer, need: Need) -> String {
    let needs = match need {
        Need::Look => "read, submit or administer",
        Need::Change => "submit or administer",
        Need::Work => "worker",
    };
    format!("{} has the role {}: this call takes {needs}", peer.name, peer.role)
}

/// Cuts a refusal's text so that it fits in a header, because it may contain texts of jobs and workers.
fn short(response: Response) -> Response {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.message().len() > REFUSAL_BYTES => {
            let text = shown::bounded(status.message(), REFUSAL_BYTES);
            Status::with_metadata(status.code(), text, status.metadata().clone()).into_http()
        }
        _ => response,
    }
}

/// Returns how a call ended, from the head of its answer. A successful call or an open stream has no status there yet.
fn ending(response: &Response) -> (String, String) {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return ("ok".into(), String::new());
    };
    match status.code() {
        Code::Ok => ("ok".into(), String::new()),
        Code::PermissionDenied | Code::Unauthenticated => (DENIED.into(), status.message().into()),
        code => (format!("{code:?}"), status.message().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(own_user: Option<u32>, own_token: Option<&str>) -> Access {
        Access {
            open: own_token.is_none(),
            own_user,
            own_token: own_token.map(sha256_of),
            authority: None,
            tokens: None,
            audit: None,
            calls: Calls::default(),
            slowdown: Slowdown::default(),
            token_file: None,
        }
    }

    fn admits(access: &Access, user: Option<u32>, bearer: &str) -> bool {
        let origin = Origin { address: "127.0.0.1:1".parse().unwrap(), user, certificates: None };
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("Bearer {bearer}").parse().unwrap());
        access.peer(Some(&origin), &headers).is_ok()
    }

    #[test]
    fn on_loopback_other_users_are_strangers() {
        let own = access(Some(1000), None);
        assert!(admits(&own, Some(1000), "") && admits(&own, Some(ROOT), ""));
        assert!(!admits(&own, Some(65534), "") && !admits(&own, None, ""));
        assert!(admits(&access(None, None), None, ""), "where the system does not tell, or it was said so");
        let by_token = access(None, Some("secret"));
        assert!(admits(&by_token, None, "secret"));
        for wrong in ["", "secre", "secret2", &sha256_of("secret")] {
            assert!(!admits(&by_token, Some(ROOT), wrong), "{wrong}");
        }
    }
}
