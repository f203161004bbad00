//! Access control. Every call passes [`layer`], which identifies the caller, asks [`needed`] what the call requires,
//! and records it in the audit log. A call that [`needed`] does not know is refused.

mod audit;
mod certificates;
mod layer;
mod slowdown;
mod tokens;

use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as ValueError;

pub use audit::{AuditError, AuditLog};
pub use certificates::{Authority, identity};
pub(super) use layer::{Access, Subject, gate};
pub(super) use slowdown::Slowdown;
pub use tokens::{Token, TokenUse, Tokens, fresh_secret, sha256_of};

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let shown = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    shown.strip_prefix("Bearer ")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, strum::Display, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Role {
    Read,
    /// The caller also submits jobs, and cancels and resumes its own.
    Submit,
    /// The caller also cancels and resumes the jobs of others.
    Administer,
    /// The caller takes tasks and reports them, and sees no jobs.
    Worker,
    /// The coordinator identifies no callers, or serves only the user who started it.
    #[serde(skip_deserializing)]
    Anybody,
}

impl Role {
    pub fn may(self, need: Need) -> bool {
        match (self, need) {
            (Self::Anybody, _) | (Self::Worker, Need::Work) => true,
            (Self::Worker, _) | (_, Need::Work) => false,
            (Self::Read, Need::Look) => true,
            (Self::Read, Need::Change) => false,
            (Self::Submit | Self::Administer, Need::Look | Need::Change) => true,
        }
    }

    pub fn may_change_others(self) -> bool {
        matches!(self, Self::Administer | Self::Anybody)
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = Self::deserialize(text.into_deserializer());
        read.map_err(|_: ValueError| format!("{text:?} is not a role: read, submit, administer or worker"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Look,
    /// The right to start, stop or resume a job.
    Change,
    Work,
}

/// Returns the right that the call at this path requires, or `None` for a path that nobody may call.
pub fn needed(path: &str) -> Option<Need> {
    let (service, method) = path.strip_prefix("/llink.v1.")?.split_once('/')?;
    match (service, method) {
        ("JobService", "Get" | "List" | "Watch" | "Logs") => Some(Need::Look),
        ("JobService", "Submit" | "Cancel" | "Resume") => Some(Need::Change),
        ("WorkerService", "Register" | "Assignments" | "Heartbeat" | "Report" | "Rendezvous") => Some(Need::Work),
        _ => None,
    }
}

/// Returns the name of a call in logs and metrics. All unknown calls share one name, because callers could fill both
/// with invented paths.
pub fn call_name(path: &str) -> &str {
    let known = needed(path).and_then(|_| path.strip_prefix("/llink.v1."));
    known.unwrap_or("unknown")
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub role: Role,
    pub by: Proof,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    None,
    /// The caller showed a certificate that the authority signed.
    Certificate,
    Token {
        sha256: String,
        uses: TokenUse,
    },
}

impl Peer {
    /// Returns the caller of a coordinator that identifies no callers.
    pub fn anybody() -> Self {
        Self { name: "anybody".into(), role: Role::Anybody, by: Proof::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_may_what_they_should_and_no_more() {
        let table = [
            (Role::Read, [true, false, false]),
            (Role::Submit, [true, true, false]),
            (Role::Administer, [true, true, false]),
            (Role::Worker, [false, false, true]),
            (Role::Anybody, [true, true, true]),
        ];
        for (role, expected) in table {
            let may = [Need::Look, Need::Change, Need::Work].map(|need| role.may(need));
            assert_eq!(may, expected, "{role}");
        }
        assert!(Role::Administer.may_change_others() && !Role::Submit.may_change_others());
    }

    #[test]
    fn every_call_of_the_contract_has_a_need_and_others_have_none() {
        let proto = include_str!("../../../../proto/llink.proto");
        let mut service = "";
        let mut calls = 0;
        for line in proto.lines() {
            if let Some(name) = line.strip_prefix("service ") {
                service = name.trim_end_matches(" {");
            }
            if let Some(rest) = line.trim().strip_prefix("rpc ") {
                let method = rest.split('(').next().unwrap();
                assert!(needed(&format!("/llink.v1.{service}/{method}")).is_some(), "{service}/{method}");
                calls += 1;
            }
        }
        assert!(calls >= 12, "{calls}");
        assert_eq!(call_name("/llink.v1.JobService/Submit"), "JobService/Submit");
        for unknown in
            ["/", "/llink.v1.JobService/Drop", "/llink.v1.WorkerService/Submit", "/grpc.health.v1.Health/Check"]
        {
            assert_eq!((needed(unknown), call_name(unknown)), (None, "unknown"), "{unknown}");
        }
    }
}
