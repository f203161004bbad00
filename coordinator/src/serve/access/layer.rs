//! The gate that every call passes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::audit::{AuditLog, Entry};
use super::{Authority, Need, Peer, Proof, Tokens, needed};
use crate::serve::metrics::Calls;

/// What an answer was about: a job's id or a worker's. Handlers put it into their answer for the audit log.
#[derive(Debug, Clone)]
pub(in crate::serve) struct Subject(pub(in crate::serve) String);

/// Who is let in, and where it is noted.
#[derive(Debug, Clone)]
pub(in crate::serve) struct Access {
    /// Nobody is asked who they are.
    pub(in crate::serve) open: bool,
    pub(in crate::serve) authority: Option<watch::Receiver<Authority>>,
    pub(in crate::serve) tokens: Option<watch::Receiver<Arc<Tokens>>>,
    pub(in crate::serve) audit: Option<Arc<AuditLog>>,
    pub(in crate::serve) calls: Calls,
    /// For what is said to a client that cannot be told apart.
    pub(in crate::serve) token_file: Option<PathBuf>,
}

impl Access {
    /// Who calls.
    fn peer(&self, certificates: Option<&[CertificateDer<'_>]>, headers: &HeaderMap) -> Result<Peer, Status> {
        if self.open {
            return Ok(Peer::anybody());
        }
        let by_certificate = match (certificates, &self.authority) {
            (Some(chain), Some(authority)) => Some(authority.borrow().peer(chain)),
            _ => None,
        };
        if let Some(Ok(peer)) = by_certificate {
            return Ok(peer);
        }
        let bearer = headers
            .get("authorization")
            .and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
        if let (Some(bearer), Some(tokens)) = (bearer, &self.tokens) {
            let found = tokens.borrow().peer(bearer, OffsetDateTime::now_utc());
            return found.map_err(Status::unauthenticated);
        }
        Err(Status::unauthenticated(match by_certificate {
            Some(Err(why)) => format!("the client's certificate does not count: {why}"),
            _ if bearer.is_some() => "this coordinator knows no tokens: show a certificate".into(),
            _ => format!("this coordinator wants to know who calls: {}", self.wanted()),
        }))
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
        // Ten a second from each worker would bury the rest.
        if call.name.ends_with("/Heartbeat") && outcome == "ok" {
            return;
        }
        if outcome == "denied" {
            tracing::warn!(
                who = call.peer.name,
                from = call.from,
                call = call.name,
                "denied: {reason}"
            );
        }
        let Some(audit) = &self.audit else { return };
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
        let by = match &call.peer.by {
            Proof::None => "none",
            Proof::Certificate => "certificate",
            Proof::Token { .. } => "token",
        };
        audit.note(&Entry {
            at: now as i64,
            who: &call.peer.name,
            role: call.peer.role.as_str(),
            by,
            from: &call.from,
            call: &call.name,
            about,
            outcome,
            reason,
        });
    }
}

/// A call on its way through the gate.
struct Call {
    peer: Peer,
    from: String,
    name: String,
}

/// Puts the gate before a service.
#[derive(Debug, Clone)]
pub(in crate::serve) struct AccessLayer(pub(in crate::serve) Arc<Access>);

impl<S> Layer<S> for AccessLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            access: self.0.clone(),
            inner,
        }
    }
}

/// A service behind the gate.
#[derive(Debug, Clone)]
pub(in crate::serve) struct Gate<S> {
    access: Arc<Access>,
    inner: S,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (from, certificates) = connection(&request);
        let path = request.uri().path();
        let name = path.strip_prefix("/llink.v1.").unwrap_or(path).to_owned();
        let peer = self
            .access
            .peer(certificates.as_deref().map(Vec::as_slice), request.headers());
        let admitted = peer
            .map_err(|status| (status, unknown()))
            .and_then(|peer| match needed(path) {
                Some(need) if peer.role.may(need) => Ok(peer),
                Some(need) => Err((Status::permission_denied(lacks(&peer, need)), peer)),
                None => Err((Status::unimplemented("there is no such call"), peer)),
            });
        let access = self.access.clone();
        match admitted {
            Err((status, peer)) => {
                let call = Call { peer, from, name };
                access.note(&call, "denied", "", status.message());
                Box::pin(async move { Ok(status.into_http()) })
            }
            Ok(peer) => {
                request.extensions_mut().insert(peer.clone());
                let answer = self.inner.call(request);
                let call = Call { peer, from, name };
                Box::pin(async move {
                    let response = answer.await?;
                    let (outcome, reason) = ending(&response);
                    let about = response.extensions().get::<Subject>().map_or("", |s| s.0.as_str());
                    access.note(&call, &outcome, about, &reason);
                    Ok(response)
                })
            }
        }
    }
}

fn unknown() -> Peer {
    Peer {
        name: "unknown".into(),
        ..Peer::anybody()
    }
}

fn lacks(peer: &Peer, need: Need) -> String {
    let needs = match need {
        Need::Look => "read, submit or administer",
        Need::Change => "submit or administer",
        Need::Work => "worker",
    };
    format!("{} has the role {}: this call takes {needs}", peer.name, peer.role)
}

/// Where a call comes from, and the certificates that its connection was opened with.
#[allow(clippy::type_complexity)]
fn connection(request: &Request<Body>) -> (String, Option<Arc<Vec<CertificateDer<'static>>>>) {
    let say = |address: Option<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    if let Some(tls) = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>() {
        return (say(tls.get_ref().remote_addr()), tls.peer_certs());
    }
    let plain = request.extensions().get::<TcpConnectInfo>();
    (say(plain.and_then(TcpConnectInfo::remote_addr)), None)
}

/// How a call ended, from the head of its answer. One that ends well, or a stream that began, has no status there yet.
fn ending(response: &Response<Body>) -> (String, String) {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return ("ok".into(), String::new());
    };
    match status.code() {
        Code::Ok => ("ok".into(), String::new()),
        Code::PermissionDenied | Code::Unauthenticated => ("denied".into(), status.message().into()),
        code => (format!("{code:?}"), status.message().into()),
    }
}
