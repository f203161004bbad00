//! The conversation with the coordinator: register, take assignments, keep leases alive, report.
//!
//! Tasks run on threads of their own; this side only talks. When the stream breaks every task is told to stop and the
//! worker registers anew: the coordinator has given its leases to others by then.

mod control;
mod heartbeat;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use llink_proto::worker_service_client::WorkerServiceClient;
use llink_proto::{
    Assignment, AssignmentsRequest, Device, Failure, FailureKind, Instruction, RegisterRequest, RegisterResponse,
    RendezvousRequest, ReportRequest, Seat, TaskResult, instruction, report_request,
};
use tokio::sync::mpsc;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

pub use control::{Progress, TaskControl};

use crate::tasks::{self, ModelCache, TaskContext};

type Client = WorkerServiceClient<Channel>;
/// Task and token: one lease.
type LeaseId = (u64, u64);

/// Large enough for a stage of a hundred thousand artefacts.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Between two tries to reach the coordinator.
const RETRY: Duration = Duration::from_millis(300);
/// A report is tried again for this long before the worker registers anew.
const REPORT_PATIENCE: Duration = Duration::from_secs(20);

/// How an agent is started.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The coordinator's URL.
    pub coordinator: String,
    /// What people call this worker.
    pub name: String,
    /// Threads to compute with.
    pub threads: usize,
    /// Give up when the coordinator was out of reach for so long; `None` never does.
    pub connect_timeout: Option<Duration>,
}

/// Works until `stop` resolves.
///
/// # Errors
/// When the URL is wrong, the coordinator refuses this worker, or is out of reach for too long.
pub async fn run(options: AgentOptions, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let endpoint = Endpoint::from_shared(options.coordinator.clone())
        .with_context(|| {
            format!(
                "--coordinator {}: not a URL such as http://host:7070",
                options.coordinator
            )
        })?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .tcp_nodelay(true);
    let models = Arc::new(ModelCache::default());
    let work = async {
        let mut unreachable_since = None;
        loop {
            match session(&endpoint, &options, &models).await {
                Ok(()) => unreachable_since = None,
                Err(e) if refused(&e) => return Err(e),
                Err(e) => {
                    let since = *unreachable_since.get_or_insert_with(Instant::now);
                    tracing::warn!("{e:#}");
                    if options.connect_timeout.is_some_and(|limit| since.elapsed() > limit) {
                        return Err(e.context(format!("no coordinator at {}", options.coordinator)));
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        ended = work => ended,
        () = stop => Ok(()),
    }
}

/// Whether trying again is pointless.
fn refused(error: &anyhow::Error) -> bool {
    let status = error.downcast_ref::<tonic::Status>();
    status.is_some_and(|s| {
        matches!(
            s.code(),
            Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated
        )
    })
}

/// One registration, until the stream ends.
async fn session(endpoint: &Endpoint, options: &AgentOptions, models: &Arc<ModelCache>) -> anyhow::Result<()> {
    let channel = endpoint.connect().await.context("cannot reach the coordinator")?;
    let mut client = WorkerServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let registered = client.register(description(options)).await?.into_inner();
    let request = AssignmentsRequest {
        worker_id: registered.worker_id.clone(),
    };
    let mut instructions = client.assignments(request).await?.into_inner();
    tracing::info!(
        worker = registered.worker_id,
        coordinator = options.coordinator,
        "registered"
    );
    let (ended, mut endings) = mpsc::unbounded_channel();
    let mut session = Session {
        client: client.clone(),
        registered: registered.clone(),
        threads: options.threads,
        models: models.clone(),
        running: HashMap::new(),
        ended,
        coordinator: options.coordinator.clone(),
    };
    let mut beats = heartbeat::start(client, &registered);
    loop {
        tokio::select! {
            instruction = instructions.message() => match instruction {
                Ok(Some(instruction)) => session.instructed(instruction, &beats),
                Ok(None) => { session.stop_all("the coordinator closed the connection"); return Ok(()); }
                Err(e) => { session.stop_all("the connection to the coordinator broke"); return Err(e.into()); }
            },
            Some((lease, outcome)) = endings.recv() => {
                session.running.remove(&lease);
                beats.forget(lease);
                session.report(lease, outcome).await?;
            }
            lost = beats.lost() => {
                session.stop_all(&lost);
                bail!("{lost}");
            }
        }
    }
}

fn description(options: &AgentOptions) -> RegisterRequest {
    RegisterRequest {
        name: options.name.clone(),
        host: host_name(),
        process_id: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: Some(Device {
            kind: "cpu".into(),
            name: std::env::consts::ARCH.into(),
            index: 0,
            memory_bytes: total_memory(),
        }),
        threads: options.threads as u32,
        memory_bytes: total_memory(),
    }
}

/// This machine's name, or `worker`.
#[must_use]
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "worker".into(),
        name => name.into(),
    }
}

/// Bytes of memory in this machine, 0 when the system does not say.
fn total_memory() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

type Outcome = Result<TaskResult, Failure>;

struct Session {
    client: Client,
    registered: RegisterResponse,
    threads: usize,
    models: Arc<ModelCache>,
    running: HashMap<LeaseId, Arc<TaskControl>>,
    ended: mpsc::UnboundedSender<(LeaseId, Outcome)>,
    coordinator: String,
}

impl Session {
    fn instructed(&mut self, instruction: Instruction, beats: &heartbeat::Heartbeats) {
        match instruction.kind {
            Some(instruction::Kind::Start(assignment)) => self.start(assignment, beats),
            Some(instruction::Kind::Abort(abort)) => {
                if let Some(control) = self.running.get(&(abort.task_id, abort.token)) {
                    control.stop(&abort.reason);
                }
            }
            None => tracing::warn!("an instruction that this version does not know was left alone"),
        }
    }

    fn start(&mut self, assignment: Assignment, beats: &heartbeat::Heartbeats) {
        let lease = (assignment.task_id, assignment.token);
        let control = Arc::new(TaskControl::default());
        self.running.insert(lease, control.clone());
        beats.renew(lease, control.clone());
        let ended = self.ended.clone();
        let Some(task) = assignment.task else {
            let failure = internal("the assignment holds no task".into());
            // The receiver lives as long as this session.
            let _ = ended.send((lease, Err(failure)));
            return;
        };
        let context = TaskContext {
            output_url: task.output_url.clone(),
            runtime: tokio::runtime::Handle::current(),
            control,
            seat: assignment.seat,
            rendezvous: self.rendezvous(lease, assignment.seat),
            local_address: local_address(&self.coordinator),
            threads: self.threads,
            models: self.models.clone(),
            token: assignment.token,
        };
        std::thread::spawn(move || {
            let run = std::panic::AssertUnwindSafe(|| tasks::run(&context, task));
            let outcome = match std::panic::catch_unwind(run) {
                Ok(outcome) => outcome.map_err(|e| tasks::failure(&e)),
                Err(panic) => Err(internal(format!("the task panicked: {}", panic_text(&*panic)))),
            };
            // A session that ended has given the lease back; nobody waits for the outcome.
            let _ = ended.send((lease, outcome));
        });
    }

    /// What a gang's task calls to meet the other ranks.
    fn rendezvous(
        &self,
        lease: LeaseId,
        seat: Option<Seat>,
    ) -> Box<dyn Fn(String) -> crate::Result<Vec<String>> + Send + Sync> {
        let client = self.client.clone();
        let worker_id = self.registered.worker_id.clone();
        let runtime = tokio::runtime::Handle::current();
        let rank = seat.map_or(0, |s| s.rank);
        Box::new(move |address| {
            let mut client = client.clone();
            let request = RendezvousRequest {
                worker_id: worker_id.clone(),
                task_id: lease.0,
                token: lease.1,
                rank,
                address,
            };
            let met = runtime.block_on(client.rendezvous(request));
            let addresses = met.map_err(|s| crate::Error::Aborted(format!("rendezvous: {}", s.message())))?;
            Ok(addresses.into_inner().addresses)
        })
    }

    async fn report(&mut self, lease: LeaseId, outcome: Outcome) -> anyhow::Result<()> {
        let outcome = match outcome {
            Ok(result) => report_request::Outcome::Done(result),
            Err(failure) => {
                tracing::warn!(task = lease.0, "{}", failure.text);
                report_request::Outcome::Failed(failure)
            }
        };
        let request = ReportRequest {
            worker_id: self.registered.worker_id.clone(),
            task_id: lease.0,
            token: lease.1,
            outcome: Some(outcome),
        };
        let began = Instant::now();
        loop {
            match self.client.report(request.clone()).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    if !answer.accepted {
                        tracing::info!(task = lease.0, "report refused: {}", answer.reason);
                    }
                    return Ok(());
                }
                Err(e) if began.elapsed() < REPORT_PATIENCE => {
                    tracing::warn!(task = lease.0, "report: {e}");
                    tokio::time::sleep(RETRY).await;
                }
                Err(e) => {
                    self.stop_all("the coordinator cannot be reached");
                    return Err(e.into());
                }
            }
        }
    }

    fn stop_all(&self, reason: &str) {
        for control in self.running.values() {
            control.stop(reason);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_all("the worker is stopping");
    }
}

fn internal(text: String) -> Failure {
    Failure {
        kind: FailureKind::Internal.into(),
        text,
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}

/// The address under which the coordinator's network sees this machine; other ranks reach it there.
fn local_address(coordinator: &str) -> std::net::IpAddr {
    let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
    let authority = coordinator.split("://").last().unwrap_or("").trim_end_matches('/');
    let probe = || -> std::io::Result<std::net::IpAddr> {
        // Connecting a datagram socket sends nothing; it only asks the routing table.
        let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(authority)?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(loopback)
}
