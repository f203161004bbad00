//! A coordinator inside the test, with its own certificate authority, and clients of every kind.

use std::net::SocketAddr;
use std::path::PathBuf;

use llink_coord::authority::{self, Made, Wanted};
use llink_coord::schedule::Timing;
use llink_coord::serve::access::{Role, Token, TokenUse};
use llink_coord::serve::{self, Running, Security, ServeOptions, TlsFiles};
use llink_datasets::roots::Roots;
use llink_proto::job_service_client::JobServiceClient;
use llink_proto::reach::{Connection, Credentials, with_causes};
use llink_proto::report_request::Outcome;
use llink_proto::worker_service_client::WorkerServiceClient;
use llink_proto::{
    Assignment, AssignmentsRequest, RegisterRequest, RegisterResponse, ReportRequest, TaskResult, instruction,
};
use time::Duration;
use tokio::runtime::Runtime;
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

    /// Returns a folder, and a coordinator that uses it.
    pub async fn served() -> (Self, Running) {
        let trial = Self::new();
        let coordinator = trial.serve().await;
        (trial, coordinator)
    }

    /// Returns the arguments by which a worker with this certificate reaches a coordinator.
    pub fn arguments(&self, url: &str, name: &str) -> String {
        let file = |name: &str| self.path("certs").join(name).display().to_string();
        let [authority, certificate, key] = ["ca.crt", &format!("{name}.crt"), &format!("{name}.key")].map(file);
        format!("--coordinator {url} --tls-ca {authority} --tls-cert {certificate} --tls-key {key}")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, folder: &str, made: &Made) {
        let folder = self.path(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let authority = ("ca", &made.authority.0, &made.authority.1);
        let pairs = made.pairs.iter().map(|pair| (&*pair.name, &pair.certificate, &pair.key));
        for (name, certificate, key) in pairs.chain([authority]) {
            std::fs::write(folder.join(format!("{name}.crt")), certificate).unwrap();
            std::fs::write(folder.join(format!("{name}.key")), key).unwrap();
        }
    }

    pub fn authority(&self, folder: &str) -> (String, String) {
        let read = |name: &str| std::fs::read_to_string(self.path(folder).join(name)).unwrap();
        (read("ca.crt"), read("ca.key"))
    }

    pub fn options(&self) -> ServeOptions {
        let certs = self.path("certs");
        ServeOptions {
            // The clients of tests send no heartbeats.
            timing: Timing { lease: 120_000, ..Timing::default() },
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

/// A worker that computes nothing, and reports what it is told to. Its calls block.
pub struct Worker {
    runtime: Runtime,
    client: Workers,
    id: String,
    instructions: tonic::Streaming<llink_proto::Instruction>,
}

impl Worker {
    /// Joins a coordinator on loopback.
    pub fn join(url: &str, info: RegisterRequest) -> Self {
        let runtime = Runtime::new().unwrap();
        let (client, id, instructions) = runtime.block_on(async {
            let mut client = workers(url, &Credentials::default(), "a").await;
            let id = client.register(info).await.unwrap().into_inner().worker_id;
            let request = AssignmentsRequest { worker_id: id.clone() };
            let instructions = client.assignments(request).await.unwrap().into_inner();
            (client, id, instructions)
        });
        Self { runtime, client, id, instructions }
    }

    pub fn lease(&mut self) -> Assignment {
        let first = self.runtime.block_on(self.instructions.message()).unwrap().unwrap();
        match first.kind {
            Some(instruction::Kind::Start(lease)) => lease,
            other => panic!("{other:?}"),
        }
    }

    /// Reports the end of a lease's task, and returns whether that counts.
    pub fn report(&mut self, lease: &Assignment, outcome: Outcome) -> bool {
        let request = ReportRequest {
            worker_id: self.id.clone(),
            task_id: lease.task_id,
            token: lease.token,
            outcome: Some(outcome),
        };
        self.runtime.block_on(self.client.report(request)).unwrap().into_inner().accepted
    }

    pub fn is_done(&mut self, lease: &Assignment) -> bool {
        self.report(lease, Outcome::Done(TaskResult::default()))
    }
}
