//! `WorkerService`: the calls of workers.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use llink_proto::reach::INSTANCE_KEY;
use llink_proto::task::Kind;
use llink_proto::worker_service_server::WorkerService;
use llink_proto::{
    AssignmentsRequest, Failure, FailureKind, HeartbeatRequest, HeartbeatResponse, Instruction, RegisterRequest,
    RegisterResponse, RendezvousRequest, RendezvousResponse, ReportRequest, ReportResponse, TaskResult, report_request,
    shown,
};
use tokio::sync::watch;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status};

use super::access::{Peer, Proof, TokenUse, sha256_of};
use super::bounds;
use super::engine::{Engine, EngineHandle};
use super::jobs::{about, peer_of};
use crate::plan;
use crate::schedule::{Cluster, Outcome, Rendezvous, Reported, Timing};
use crate::state::Claimed;

/// The interval at which a rendezvous checks whether all ranks are there.
const RENDEZVOUS_INTERVAL: Duration = Duration::from_millis(20);
const HEARTBEATS_PER_LEASE: i64 = 10;

pub(super) struct Workers {
    engine: EngineHandle,
    timing: Timing,
    stopped: watch::Receiver<bool>,
    /// The key of the gangs' secrets. It belongs to this process alone, since leases do not outlive it.
    gang_key: String,
    /// Whether this coordinator speaks TLS. Then gangs encrypt their traffic too.
    sealed: bool,
}

/// The owner of a registration: the caller with its certificate or token, and the secret of its process. Many know a
/// worker's id, so calls in its name need both of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    peer: String,
    instance: String,
}

fn session_of<T>(request: &Request<T>) -> Result<(Peer, Session), Status> {
    let peer = peer_of(request)?;
    let secret = request.metadata().get(INSTANCE_KEY).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if secret.len() < 32 {
        return Err(Status::unauthenticated(format!("a worker's calls carry {INSTANCE_KEY}, a secret of its process")));
    }
    let session = Session { peer: peer.name.clone(), instance: sha256_of(secret) };
    Ok((peer, session))
}

/// Refuses calls in the name of another's registration. The caller handles a registration that does not exist.
fn check_session(engine: &Engine, worker: &str, session: &Session) -> Result<(), Status> {
    match engine.session(worker) {
        Some(owner) if owner != session => Err(Status::permission_denied(format!(
            "worker {worker} was registered by another process: its leases are not this one's"
        ))),
        _ => Ok(()),
    }
}

/// Returns the first artifact outside the folder of the task's stage, where no task writes.
fn stray<'a>(cluster: &Cluster, task: u64, result: &'a TaskResult) -> Option<&'a str> {
    let record = cluster.tasks.get(&task)?;
    let job = cluster.jobs.get(&*record.job)?;
    let stage = job.stage(record.stage)?;
    let folder = format!("{}/", plan::directory(stage.name, &stage.key));
    // The result of a split names shards that other tasks will write in the folder.
    let splits = || matches!(record.spec().kind, Some(Kind::SplitCorpus(_)));
    let lies_there = |path: &str| {
        let within = path.strip_prefix(&folder).or_else(|| splits().then_some(path));
        within.is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
    };
    result.artifacts.iter().map(|a| a.path.as_str()).find(|path| !lies_there(path))
}

impl Workers {
    pub(super) fn new(
        engine: EngineHandle,
        timing: Timing,
        stopped: watch::Receiver<bool>,
        gang_key: String,
        sealed: bool,
    ) -> Self {
        Self { engine, timing, stopped, gang_key, sealed }
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        let (peer, session) = session_of(&request)?;
        let info = request.into_inner();
        let ours = env!("CARGO_PKG_VERSION");
        if info.version != ours {
            return Err(Status::failed_precondition(format!(
                "this coordinator is llink {ours} and the worker is {}: run the same version",
                shown::quoted(&info.version, 100)
            )));
        }
        if !bounds::is_worker_name(&info.name) {
            return Err(Status::invalid_argument(format!(
                "a worker's name is at most 100 printable characters without spaces, this one is {:?}",
                shown::quoted(&info.name, 100)
            )));
        }
        let info = bounds::registration(info);
        let joined = self.engine.call(move |e| {
            if let Proof::Token { sha256, uses: TokenUse::Once } = &peer.by
                && e.claim_token(sha256, &session.instance)? == Claimed::ByAnother
            {
                return Err(Status::unauthenticated(format!(
                    "the token of {} is of one use, and another worker used it before: make a new one",
                    peer.name
                )));
            }
            let id = e.step(|c, now, _| c.register(info, now));
            e.open_outbox(&id, session);
            Ok(id)
        });
        let worker_id = joined.await??;
        tracing::info!(worker = worker_id, "registered");
        let answer = RegisterResponse {
            worker_id: worker_id.clone(),
            heartbeat_interval_ms: (self.timing.lease / HEARTBEATS_PER_LEASE).clamp(50, 2_000) as u32,
            lease_ms: self.timing.lease as u32,
        };
        Ok(about(answer, worker_id))
    }

    type AssignmentsStream = Assignments;

    async fn assignments(&self, request: Request<AssignmentsRequest>) -> Result<Response<Assignments>, Status> {
        let (_, session) = session_of(&request)?;
        let worker = request.into_inner().worker_id;
        let wanted = worker.clone();
        let taken = self.engine.call(move |e| {
            check_session(e, &wanted, &session)?;
            let instructions = e.take_outbox(&wanted);
            e.step(|c, _, _| c.listens(&wanted));
            Ok::<_, Status>(instructions)
        });
        let instructions = taken.await??;
        let Some(instructions) = instructions else {
            return Err(Status::not_found(format!("worker {worker} is not registered, or has its stream already")));
        };
        // The stream ends with the server, so that a graceful shutdown does not wait for workers.
        let mut stop = self.stopped.clone();
        let stop = async move { drop(stop.wait_for(|s| *s).await) };
        let guard = StreamGuard { worker, engine: self.engine.clone() };
        let held = move |_: &Instruction| {
            let _ = &guard;
        };
        let instructions = UnboundedReceiverStream::new(instructions).inspect(held);
        Ok(Response::new(instructions.map(Ok).take_until(Box::pin(stop)).boxed()))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        let (_, session) = session_of(&request)?;
        let mut request = request.into_inner();
        bounds::progress(&mut request).map_err(Status::invalid_argument)?;
        let HeartbeatRequest { worker_id, running } = request;
        let renewed = self.engine.call(move |e| {
            check_session(e, &worker_id, &session)?;
            let aborts = e.step(|c, now, _| c.heartbeat(&worker_id, &running, now));
            Ok::<_, Status>((aborts, e.cluster.has_work()))
        });
        let (aborts, work_left) = renewed.await??;
        Ok(Response::new(HeartbeatResponse {
            registered: aborts.is_some(),
            aborts: aborts.unwrap_or_default(),
            work_left,
        }))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let (_, session) = session_of(&request)?;
        let request = request.into_inner();
        let outcome = match request.outcome {
            Some(report_request::Outcome::Done(result)) => {
                Outcome::Done(bounds::result(result).map_err(Status::invalid_argument)?)
            }
            Some(report_request::Outcome::Failed(failure)) => bounds::failure(failure).into(),
            None => Outcome::Failed(Failure {
                kind: FailureKind::Internal.into(),
                text: format!("worker {} reported no outcome", request.worker_id),
            }),
        };
        let (worker, task, token) = (request.worker_id, request.task_id, request.token);
        let subject = worker.clone();
        let told = self.engine.call(move |e| {
            check_session(e, &worker, &session)?;
            if e.session(&worker).is_none() {
                return Ok(Reported::Refused(format!("worker {worker} is not registered")));
            }
            if let Outcome::Done(result) = &outcome
                && let Some(path) = stray(&e.cluster, task, result)
            {
                return Err(Status::invalid_argument(format!("{path:?} lies outside of the task's stage")));
            }
            Ok(e.step(|c, now, fx| c.report(&worker, task, token, outcome, now, fx)))
        });
        let answer = match told.await?? {
            Reported::Accepted => ReportResponse { accepted: true, reason: String::new() },
            Reported::Refused(reason) => ReportResponse { accepted: false, reason },
        };
        Ok(about(answer, subject))
    }

    async fn rendezvous(&self, request: Request<RendezvousRequest>) -> Result<Response<RendezvousResponse>, Status> {
        let (_, session) = session_of(&request)?;
        let request = request.into_inner();
        bounds::address(&request.address).map_err(Status::invalid_argument)?;
        loop {
            let (r, session) = (request.clone(), session.clone());
            let met = self.engine.call(move |e| {
                check_session(e, &r.worker_id, &session)?;
                Ok::<_, Status>(e.cluster.rendezvous(&r.worker_id, r.task_id, r.token, &r.address))
            });
            match met.await?? {
                Rendezvous::Complete(addresses) => {
                    let secret = gang_secret(&self.gang_key, request.task_id, request.token);
                    let sealed = self.sealed;
                    return Ok(Response::new(RendezvousResponse { addresses, secret, sealed }));
                }
                Rendezvous::Refused(reason) => return Err(Status::aborted(reason)),
                Rendezvous::Waiting => self.engine.sleep(RENDEZVOUS_INTERVAL).await,
            }
        }
    }
}

/// Returns the secret that only the ranks of one lease share.
fn gang_secret(key: &str, task: u64, token: u64) -> Vec<u8> {
    sha256_of(&format!("{key} {task} {token}")).into_bytes()
}

pub(super) type Assignments = BoxStream<'static, Result<Instruction, Status>>;

/// Gives a worker's leases back when its stream ends for any reason.
struct StreamGuard {
    worker: String,
    engine: EngineHandle,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let worker = std::mem::take(&mut self.worker);
        self.engine.tell(move |e| {
            e.close_outbox(&worker);
            e.step(|c, now, fx| c.worker_gone(&worker, "its connection closed", now, fx));
        });
    }
}
