//! `WorkerService`: what workers say and are told.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use llink_proto::worker_service_server::WorkerService;
use llink_proto::{
    AssignmentsRequest, Failure, FailureKind, HeartbeatRequest, HeartbeatResponse, Instruction, RegisterRequest,
    RegisterResponse, RendezvousRequest, RendezvousResponse, ReportRequest, ReportResponse, report_request,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::engine::EngineHandle;
use super::jobs::stopped;
use crate::schedule::{Outcome, Rendezvous, Reported, Timing};

/// How often a rendezvous looks whether everybody is there.
const RENDEZVOUS_INTERVAL: Duration = Duration::from_millis(20);
/// Heartbeats in the time that a lease lasts.
const HEARTBEATS_PER_LEASE: i64 = 10;

pub(super) struct Workers {
    engine: EngineHandle,
    timing: Timing,
    stopped: watch::Receiver<bool>,
}

impl Workers {
    pub(super) fn new(engine: EngineHandle, timing: Timing, stopped: watch::Receiver<bool>) -> Self {
        Self {
            engine,
            timing,
            stopped,
        }
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        let info = request.into_inner();
        let ours = env!("CARGO_PKG_VERSION");
        if info.version != ours {
            return Err(Status::failed_precondition(format!(
                "this coordinator is llink {ours} and the worker is {}: run the same version",
                info.version
            )));
        }
        let joined = self.engine.call(move |e| {
            let id = e.step(|c, now, _| c.register(info, now))?;
            e.open_outbox(&id);
            Ok(id)
        });
        let worker_id = joined.await.and_then(|id| id).map_err(stopped)?;
        tracing::info!(worker = worker_id, "registered");
        Ok(Response::new(RegisterResponse {
            worker_id,
            heartbeat_interval_ms: (self.timing.lease / HEARTBEATS_PER_LEASE).clamp(50, 2_000) as u32,
            lease_ms: self.timing.lease as u32,
        }))
    }

    type AssignmentsStream = Assignments;

    async fn assignments(&self, request: Request<AssignmentsRequest>) -> Result<Response<Assignments>, Status> {
        let worker = request.into_inner().worker_id;
        let wanted = worker.clone();
        let taken = self.engine.call(move |e| {
            let instructions = e.take_outbox(&wanted);
            e.step(|c, _, _| c.listens(&wanted)).map(|()| instructions)
        });
        let instructions = taken.await.and_then(|i| i).map_err(stopped)?;
        let Some(instructions) = instructions else {
            return Err(Status::not_found(format!(
                "worker {worker} is not registered, or has its stream already"
            )));
        };
        // The stream itself ends with the server, so that a graceful shutdown does not wait for workers.
        let mut stop = self.stopped.clone();
        let stop = Box::pin(async move { drop(stop.wait_for(|s| *s).await) });
        Ok(Response::new(Assignments {
            instructions,
            stop,
            guard: StreamGuard {
                worker,
                engine: self.engine.clone(),
            },
        }))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        let HeartbeatRequest { worker_id, running } = request.into_inner();
        let renewed = self
            .engine
            .call(move |e| e.step(|c, now, _| c.heartbeat(&worker_id, &running, now)))
            .await;
        let aborts = renewed.and_then(|r| r).map_err(stopped)?;
        Ok(Response::new(HeartbeatResponse {
            registered: aborts.is_some(),
            aborts: aborts.unwrap_or_default(),
        }))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let request = request.into_inner();
        let outcome = match request.outcome {
            Some(report_request::Outcome::Done(result)) => Outcome::Done(result),
            Some(report_request::Outcome::Failed(failure)) => Outcome::Failed(failure),
            None => Outcome::Failed(Failure {
                kind: FailureKind::Internal.into(),
                text: format!("worker {} reported no outcome", request.worker_id),
            }),
        };
        let (worker, task, token) = (request.worker_id, request.task_id, request.token);
        let told = self
            .engine
            .call(move |e| e.step(|c, now, fx| c.report(&worker, task, token, outcome, now, fx)))
            .await;
        Ok(Response::new(match told.and_then(|t| t).map_err(stopped)? {
            Reported::Accepted => ReportResponse {
                accepted: true,
                reason: String::new(),
            },
            Reported::Refused(reason) => ReportResponse {
                accepted: false,
                reason,
            },
        }))
    }

    async fn rendezvous(&self, request: Request<RendezvousRequest>) -> Result<Response<RendezvousResponse>, Status> {
        let request = request.into_inner();
        loop {
            let r = request.clone();
            let met = self
                .engine
                .call(move |e| e.cluster.rendezvous(&r.worker_id, r.task_id, r.token, &r.address))
                .await
                .map_err(stopped)?;
            match met {
                Rendezvous::Complete(addresses) => return Ok(Response::new(RendezvousResponse { addresses })),
                Rendezvous::Refused(reason) => return Err(Status::aborted(reason)),
                Rendezvous::Waiting => tokio::time::sleep(RENDEZVOUS_INTERVAL).await,
            }
        }
    }
}

/// A worker's stream of instructions. When it ends, for whatever reason, the worker's leases are given back.
pub(super) struct Assignments {
    instructions: mpsc::UnboundedReceiver<Instruction>,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    // Held for its drop alone.
    #[allow(dead_code)]
    guard: StreamGuard,
}

struct StreamGuard {
    worker: String,
    engine: EngineHandle,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let worker = std::mem::take(&mut self.worker);
        self.engine.tell(move |e| {
            e.close_outbox(&worker);
            // A store that cannot save has been announced already.
            let _ = e.step(|c, now, fx| c.worker_gone(&worker, "its connection closed", now, fx));
        });
    }
}

impl Stream for Assignments {
    type Item = Result<Instruction, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        self.instructions.poll_recv(cx).map(|i| i.map(Ok))
    }
}
