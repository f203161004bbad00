//! Who may do what. Every call passes [`layer`], which finds out who calls, asks [`needed`] what the call takes, and
//! notes it in the audit log. A call that [`needed`] does not know is refused.

mod audit;
mod certificates;
mod layer;
mod slowdown;
mod tokens;

use std::fmt;

pub use audit::{AuditError, AuditLog};
pub use certificates::{Authority, identity};
pub(super) use layer::{Access, AccessLayer, Subject};
pub(super) use slowdown::Slowdown;
pub use tokens::{Token, TokenError, TokenUse, Tokens, fresh_secret, sha256_of};

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks at jobs.
    Read,
    /// Also submits jobs, and cancels and resumes its own.
    Submit,
    /// Also cancels and resumes the jobs of others.
    Administer,
    /// Takes tasks and reports them; sees no jobs.
    Worker,
    /// This coordinator asks nobody who they are, or serves nobody but the user who started it.
    #[serde(skip_deserializing)]
    Anybody,
}

impl Role {
    /// The roles that a person can be given, as they are written.
    pub const WRITTEN: [(&'static str, Self); 4] = [
        ("read", Self::Read),
        ("submit", Self::Submit),
        ("administer", Self::Administer),
        ("worker", Self::Worker),
    ];

    /// Whether this role is enough.
    #[must_use]
    pub fn may(self, need: Need) -> bool {
        match (self, need) {
            (Self::Anybody, _) | (Self::Worker, Need::Work) => true,
            (Self::Worker, _) | (_, Need::Work) => false,
            (Self::Read, Need::Look) => true,
            (Self::Read, Need::Change) => false,
            (Self::Submit | Self::Administer, Need::Look | Need::Change) => true,
        }
    }

    /// Whether it may change the jobs of others.
    #[must_use]
    pub fn may_change_others(self) -> bool {
        matches!(self, Self::Administer | Self::Anybody)
    }

    /// As it is written in tokens, certificates and the audit log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let written = Self::WRITTEN.iter().find(|(_, role)| *role == self);
        written.map_or("anybody", |(name, _)| name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let written = Self::WRITTEN.iter().find(|(name, _)| *name == text);
        written
            .map(|(_, role)| *role)
            .ok_or_else(|| format!("{text:?} is no role: read, submit, administer or worker"))
    }
}

/// What a call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To see jobs.
    Look,
    /// To start, stop or resume one.
    Change,
    /// To be a worker.
    Work,
}

/// What the call at this path takes; `None` for a path that no one may call.
#[must_use]
pub fn needed(path: &str) -> Option<Need> {
    let (service, method) = path.strip_prefix("/llink.v1.")?.split_once('/')?;
    match (service, method) {
        ("JobService", "Get" | "List" | "Watch" | "Logs") => Some(Need::Look),
        ("JobService", "Submit" | "Cancel" | "Resume") => Some(Need::Change),
        ("WorkerService", "Register" | "Assignments" | "Heartbeat" | "Report" | "Rendezvous") => Some(Need::Work),
        _ => None,
    }
}

/// What the call at this path is called in logs and metrics. All that there are not have one name: their paths are the caller's
/// invention, and would fill both.
#[must_use]
pub fn call_name(path: &str) -> &str {
    let known = needed(path).and_then(|_| path.strip_prefix("/llink.v1."));
    known.unwrap_or("unknown")
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// As the certificate or the token names it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// How that is known.
    pub by: Proof,
}

/// How it is known who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It is not.
    None,
    /// A certificate that the authority signed.
    Certificate,
    /// A token.
    Token {
        /// Of the token.
        sha256: String,
        /// How often it counts.
        uses: TokenUse,
    },
}

impl Peer {
    /// Nobody was asked.
    #[must_use]
    pub fn anybody() -> Self {
        Self {
            name: "anybody".into(),
            role: Role::Anybody,
            by: Proof::None,
        }
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
                assert!(
                    needed(&format!("/llink.v1.{service}/{method}")).is_some(),
                    "{service}/{method}"
                );
                calls += 1;
            }
        }
        assert!(calls >= 12, "{calls}");
        assert_eq!(call_name("/llink.v1.JobService/Submit"), "JobService/Submit");
        for unknown in [
            "/",
            "/llink.v1.JobService/Drop",
            "/llink.v1.WorkerService/Submit",
            "/grpc.health.v1.Health/Check",
        ] {
            assert_eq!((needed(unknown), call_name(unknown)), (None, "unknown"), "{unknown}");
        }
    }
}
