//! A coordinator inside the test, with its own certificate authority, and clients of every kind.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::PathBuf;

use llink_coord::authority::{self, Made, Wanted};
use llink_coord::serve::access::{Role, Token, TokenUse};
use llink_coord::serve::{self, Running, Security, ServeOptions, TlsFiles};
use llink_datasets::roots::Roots;
use llink_proto::job_service_client::JobServiceClient;
use llink_proto::reach::{Connection, Credentials, with_causes};
use llink_proto::report_request::Outcome;
use llink_proto::worker_service_client::WorkerServiceClient;
use llink_proto::{
    Assignment, AssignmentsRequest, RegisterRequest, RegisterResponse, ReportRequest, ReportResponse, instruction,
};
use time::Duration;
use tonic::Code;

/// A folder with certificates, tokens and state.
pub struct Trial {
    pub dir: tempfile::TempDir,
}

pub type Jobs = JobServiceClient<Connection>;
pub type Workers = WorkerServiceClient<Connection>;

pub fn wanted(lasts: Duration) -> Wanted {
    Wanted {
        server_names: vec!["localhost".into(), "127.0.0.1".into()],
        users: vec![
            ("root".into(), Role::Administer),
            ("ada".into(), Role::Submit),
            ("bob".into(), Role::Submit),
            ("eve".into(), Role::Read),
        ],
        lasts,
    }
}

impl Trial {
    pub fn new() -> Self {
        let trial = Self { dir: tempfile::tempdir().unwrap() };
        trial.write("certs", &authority::make(&wanted(Duration::days(1)), None).unwrap());
        trial
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, folder: &str, made: &Made) {
        std::fs::create_dir_all(self.path(folder)).unwrap();
        std::fs::write(self.path(folder).join("ca.crt"), &made.authority.0).unwrap();
        std::fs::write(self.path(folder).join("ca.key"), &made.authority.1).unwrap();
        for pair in &made.pairs {
            std::fs::write(self.path(folder).join(format!("{}.crt", pair.name)), &pair.certificate).unwrap();
            std::fs::write(self.path(folder).join(format!("{}.key", pair.name)), &pair.key).unwrap();
        }
    }

    pub fn authority(&self, folder: &str) -> (String, String) {
        let read = |name: &str| std::fs::read_to_string(self.path(folder).join(name)).unwrap();
        (read("ca.crt"), read("ca.key"))
    }

    pub fn options(&self) -> ServeOptions {
        let certs = self.path("certs");
        ServeOptions {
            security: Security {
                tls: Some(TlsFiles {
                    certificate: certs.join("coordinator.crt"),
                    key: certs.join("coordinator.key"),
                    client_authority: Some(certs.join("ca.crt")),
                }),
                tokens: Some(self.path("tokens.toml")),
                audit: Some(self.path("audit.jsonl")),
                roots: Roots::of(&[self.path("data").to_string_lossy().into_owned()]).unwrap(),
                roots_named: true,
                insecure: false,
            },
            ..ServeOptions::new(SocketAddr::from(([127, 0, 0, 1], 0)), self.path("state"))
        }
    }

    pub async fn serve(&self) -> Running {
        serve::start(self.options()).await.unwrap()
    }

    pub fn certificate(&self, name: &str) -> Credentials {
        self.certificate_of("certs", name)
    }

    pub fn certificate_of(&self, folder: &str, name: &str) -> Credentials {
        Credentials {
            authority: Some(self.path("certs/ca.crt")),
            certificate: Some(self.path(folder).join(format!("{name}.crt"))),
            key: Some(self.path(folder).join(format!("{name}.key"))),
            ..Credentials::default()
        }
    }

    pub fn token(&self, name: &str, role: Role, lasts: Option<Duration>, uses: TokenUse) -> Credentials {
        use std::io::Write;
        let (token, secret) = Token::make(name, role, lasts, uses).unwrap();
        let mut file = std::fs::File::options().create(true).append(true).open(self.path("tokens.toml")).unwrap();
        file.write_all(token.entry().as_bytes()).unwrap();
        let kept = self.path(&format!("{name}.token"));
        std::fs::write(&kept, secret).unwrap();
        Credentials { authority: Some(self.path("certs/ca.crt")), token: Some(kept), ..Credentials::default() }
    }

    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.path("audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub async fn jobs(url: &str, credentials: &Credentials) -> Result<Jobs, String> {
    let (endpoint, caller) = credentials.endpoint(url).map_err(|e| e.to_string())?;
    let channel = endpoint.connect().await.map_err(|e| with_causes(&e))?;
    Ok(JobServiceClient::with_interceptor(channel, caller))
}

pub async fn workers(url: &str, credentials: &Credentials, instance: &str) -> Workers {
    let (endpoint, caller) = credentials.endpoint(url).unwrap();
    let channel = endpoint.connect().await.unwrap();
    WorkerServiceClient::with_interceptor(channel, caller.with_instance(&instance.repeat(32)).unwrap())
}

pub fn register(name: &str) -> RegisterRequest {
    RegisterRequest { name: name.into(), version: env!("CARGO_PKG_VERSION").into(), ..RegisterRequest::default() }
}

pub async fn registered(client: &mut Workers, name: &str) -> Result<RegisterResponse, (Code, String)> {
    let answer = client.register(register(name)).await;
    answer.map(tonic::Response::into_inner).map_err(|s| (s.code(), s.message().to_owned()))
}

/// A worker that computes nothing, and reports what it is told to.
pub struct Worker {
    client: Workers,
    id: String,
    instructions: tonic::Streaming<llink_proto::Instruction>,
}

impl Worker {
    /// Joins a coordinator on loopback.
    pub async fn join(url: &str, info: RegisterRequest) -> Self {
        let mut client = workers(url, &Credentials::default(), "a").await;
        let id = client.register(info).await.unwrap().into_inner().worker_id;
        let request = AssignmentsRequest { worker_id: id.clone() };
        let instructions = client.assignments(request).await.unwrap().into_inner();
        Self { client, id, instructions }
    }

    pub async fn lease(&mut self) -> Assignment {
        let first = self.instructions.message().await.unwrap().unwrap();
        match first.kind {
            Some(instruction::Kind::Start(lease)) => lease,
            other => panic!("{other:?}"),
        }
    }

    pub async fn report(&mut self, lease: &Assignment, outcome: Outcome) -> ReportResponse {
        let request = ReportRequest {
            worker_id: self.id.clone(),
            task_id: lease.task_id,
            token: lease.token,
            outcome: Some(outcome),
        };
        self.client.report(request).await.unwrap().into_inner()
    }
}
