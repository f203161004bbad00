//! The connection to the coordinator: registers, takes assignments, renews leases, and reports.
//!
//! Tasks run on threads of their own. When the stream breaks, every task is told to stop and the worker registers
//! again, because the coordinator gives its leases to others. A worker that is told to stop lets its tasks save their
//! state, and returns the leases.

mod health;
mod heartbeat;
mod session;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use llink_datasets::built_in::BuiltIn;
use llink_datasets::roots::Roots;
use llink_proto::reach::{Connection, Credentials, ReachError, with_causes};
use llink_proto::worker_service_client::WorkerServiceClient;
use llink_proto::{AssignmentsRequest, Device, Instruction, RegisterRequest, RegisterResponse};
use tokio::sync::mpsc;
use tonic::Code;
use tonic_health::ServingStatus;

use crate::control::TaskControl;
use crate::device::Compute;
use crate::tasks::ModelCache;
pub use health::NotFree;
use health::Readiness;
use session::{Session, Stuck};

type Client = WorkerServiceClient<Connection>;
/// A lease, identified by task and token.
type LeaseId = (u64, u64);

/// The message limit, which is large enough for a stage of a hundred thousand artifacts.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// The wait between two tries to reach the coordinator.
const RETRY: Duration = Duration::from_millis(300);

/// The options of an agent.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    pub coordinator: String,
    /// The worker's name for people.
    pub name: String,
    pub threads: usize,
    pub compute: Compute,
    /// The longest time without the coordinator before giving up; `None` never gives up.
    pub connect_timeout: Option<Duration>,
    /// The worker's credentials, and the authority that it trusts.
    pub credentials: Credentials,
    /// The time that tasks have to save their state after this worker is told to stop.
    pub grace: Duration,
    /// The worker ends after this long without a running job; `None` waits forever.
    pub idle_exit: Option<Duration>,
    /// The roots below which tasks may read and write.
    pub roots: Roots,
    /// The corpus and the models that the program carries inside.
    pub built_in: Option<&'static dyn BuiltIn>,
    pub health: Option<SocketAddr>,
}

/// Runs tasks until `stop` resolves.
///
/// # Errors
/// When the URL is wrong, the coordinator refuses this worker, or is out of reach for too long. [`WorkLeft`] when `stop` resolves while a
/// job runs.
pub async fn run(options: AgentOptions, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let readiness = Readiness::serve(options.health).await?;
    let secret = instance_secret()?;
    let models = Arc::new(ModelCache::default());
    // Until the coordinator says otherwise there may be work.
    let work_left = Arc::new(AtomicBool::new(true));
    let mut unreachable_since = None;
    tokio::pin!(stop);
    loop {
        let ended = session(&options, &secret, &readiness, &models, &work_left, stop.as_mut()).await;
        readiness.set(ServingStatus::NotServing).await;
        match ended {
            Ok(Ended::Left) => return leave(&work_left),
            Ok(Ended::Closed) => unreachable_since = None,
            Err(e) if refused(&e) || e.is::<Stuck>() || e.is::<ReachError>() => return Err(e),
            Err(e) => {
                let since = *unreachable_since.get_or_insert_with(Instant::now);
                tracing::warn!("{e:#}");
                if options.connect_timeout.is_some_and(|limit| since.elapsed() > limit) {
                    return Err(e.context(OutOfReach(options.coordinator.clone())));
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.as_mut() => return leave(&work_left),
        }
    }
}

fn leave(work_left: &AtomicBool) -> anyhow::Result<()> {
    match work_left.load(Ordering::Relaxed) {
        true => Err(WorkLeft.into()),
        false => Ok(()),
    }
}

/// The worker was told to stop while a job was running. Another one has to be started in its place.
#[derive(Debug, thiserror::Error)]
#[error("stopped on request while a job may still run: start another worker in its place")]
pub struct WorkLeft;

/// No coordinator answered within the time limit.
#[derive(Debug, thiserror::Error)]
#[error("no coordinator at {0}")]
pub struct OutOfReach(String);

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The coordinator closed it, and the worker may register again.
    Closed,
    /// This worker was told to stop, and has stopped.
    Left,
}

/// Returns true if another try is pointless.
fn refused(error: &anyhow::Error) -> bool {
    let status = error.downcast_ref::<tonic::Status>();
    status
        .is_some_and(|s| matches!(s.code(), Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated))
}

/// Runs one registration, until the stream ends or this worker is told to stop. None of its tasks runs afterwards.
async fn session(
    options: &AgentOptions,
    secret: &str,
    readiness: &Readiness,
    models: &Arc<ModelCache>,
    work_left: &Arc<AtomicBool>,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> anyhow::Result<Ended> {
    let joined = tokio::select! {
        joined = join(options, secret) => joined?,
        () = stop.as_mut() => return Ok(Ended::Left),
    };
    let (client, registered, mut instructions) = joined;
    readiness.set(ServingStatus::Serving).await;
    let (ended, mut endings) = mpsc::unbounded_channel();
    let mut session = Session {
        client: client.clone(),
        registered: registered.clone(),
        options: options.clone(),
        models: models.clone(),
        turns: Arc::default(),
        running: HashMap::new(),
        ended,
        leaving: None,
    };
    let mut beats = heartbeat::start(client, &registered, work_left.clone());
    let mut looks = tokio::time::interval(Duration::from_secs(1));
    let mut busy = Instant::now();
    let why = loop {
        if session.has_left() {
            return Ok(Ended::Left);
        }
        tokio::select! {
            instruction = instructions.message() => match instruction {
                Ok(Some(instruction)) => session.instructed(instruction, &beats).await?,
                Ok(None) => break Ok("the coordinator closed the connection".to_owned()),
                Err(e) => break Err(anyhow::Error::from(e).context("the connection to the coordinator broke")),
            },
            Some((lease, outcome)) = endings.recv() => {
                session.running.remove(&lease);
                beats.forget(lease);
                session.report(lease, outcome).await?;
            }
            lost = beats.lost() => break Err(anyhow::anyhow!("{lost}")),
            _ = looks.tick() => {
                session.check_stuck()?;
                if beats.work_left() || !session.running.is_empty() {
                    busy = Instant::now();
                }
                if options.idle_exit.is_some_and(|limit| busy.elapsed() > limit) {
                    tracing::info!("no job has run for {} s: this worker ends", busy.elapsed().as_secs());
                    return Ok(Ended::Left);
                }
            }
            () = stop.as_mut(), if session.leaving.is_none() => {
                session.leaving = Some(Instant::now());
                session.stop_all("the worker was told to stop");
            }
        }
    };
    let told = why.as_ref().map_or_else(ToString::to_string, Clone::clone);
    session.stop_all(&told);
    // The coordinator gives the leases to others, so nobody waits for these results. But running tasks would compete
    // with the next ones for this machine.
    while !session.running.is_empty() && !session.has_left() {
        tokio::select! {
            Some((lease, _)) = endings.recv() => drop(session.running.remove(&lease)),
            _ = looks.tick() => session.check_stuck()?,
            () = stop.as_mut(), if session.leaving.is_none() => session.leaving = Some(Instant::now()),
        }
    }
    match session.leaving {
        Some(_) => Ok(Ended::Left),
        None => why.map(|_| Ended::Closed),
    }
}

/// Registers, and opens the stream of instructions.
async fn join(
    options: &AgentOptions,
    secret: &str,
) -> anyhow::Result<(Client, RegisterResponse, tonic::Streaming<Instruction>)> {
    // The endpoint is built again each time, so that replaced certificates take effect.
    let (endpoint, caller) = options.credentials.endpoint(&options.coordinator)?;
    let caller = caller.with_instance(secret)?;
    let endpoint =
        endpoint.http2_keep_alive_interval(Duration::from_secs(10)).keep_alive_timeout(Duration::from_secs(10));
    let connected = endpoint.connect().await;
    let channel = connected.map_err(|e| anyhow::anyhow!("cannot reach the coordinator: {}", with_causes(&e)))?;
    let mut client = WorkerServiceClient::with_interceptor(channel, caller)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let registered = client.register(description(options)).await?.into_inner();
    let request = AssignmentsRequest { worker_id: registered.worker_id.clone() };
    let instructions = client.assignments(request).await?.into_inner();
    tracing::info!(worker = registered.worker_id, coordinator = options.coordinator, "registered");
    Ok((client, registered, instructions))
}

/// Returns 256 random bits that show the coordinator that two calls come from the same process.
fn instance_secret() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("the system gives no random bytes: {e}"))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn description(options: &AgentOptions) -> RegisterRequest {
    RegisterRequest {
        name: options.name.clone(),
        host: host_name(),
        process_id: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: Some(Device {
            kind: options.compute.kind().into(),
            name: options.compute.name.clone(),
            index: options.compute.index as u32,
            memory_bytes: options.compute.memory,
        }),
        threads: options.threads as u32,
        memory_bytes: crate::device::total_memory(),
        leases_ahead: 1,
    }
}

/// Returns this machine's name, or `worker`.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "worker".into(),
        name => name.into(),
    }
}
