//! One registration: its running tasks, and their reports.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llink_proto::{
    Assignment, Failure, FailureKind, Instruction, RegisterResponse, RendezvousRequest, RendezvousResponse,
    ReportRequest, Seat, TaskResult, instruction, report_request,
};
use llink_telemetry::{self as telemetry, SPANS};
use tokio::sync::mpsc;
use tonic::Code;
use tracing::Span;
use tracing::field::Empty;

use super::{AgentOptions, Client, LeaseId, RETRY, TaskControl, heartbeat};
use crate::tasks::{self, ModelCache, TaskContext, Turns};

/// A report is retried for this long before the worker registers again.
const REPORT_PATIENCE: Duration = Duration::from_secs(20);
/// A task that runs this long after it was told to stop counts as hung.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// A task that ignores the order to stop. Only the end of the process ends it.
#[derive(Debug, thiserror::Error)]
#[error("task {task} does not stop: it was told to {} s ago. This process ends, so that it can be started again", STUCK_AFTER.as_secs())]
pub(super) struct Stuck {
    pub(super) task: u64,
}

pub(super) type Outcome = Result<TaskResult, Failure>;

pub(super) struct Session {
    pub(super) client: Client,
    pub(super) registered: RegisterResponse,
    pub(super) options: AgentOptions,
    pub(super) models: Arc<ModelCache>,
    pub(super) turns: Arc<Turns>,
    pub(super) running: HashMap<LeaseId, Arc<TaskControl>>,
    pub(super) ended: mpsc::UnboundedSender<(LeaseId, Outcome)>,
    /// The time at which this worker was told to stop.
    pub(super) leaving: Option<Instant>,
}

impl Session {
    /// Returns true if a worker that was told to stop can end: no task is left, or their time is up.
    pub(super) fn has_left(&self) -> bool {
        self.leaving.is_some_and(|since| self.running.is_empty() || since.elapsed() > self.options.grace)
    }

    pub(super) fn check_stuck(&self) -> Result<(), Stuck> {
        let told_long_ago = |control: &TaskControl| control.stopped_for().is_some_and(|since| since > STUCK_AFTER);
        match self.running.iter().find(|(_, control)| told_long_ago(control)) {
            Some(((task, _), _)) => Err(Stuck { task: *task }),
            None => Ok(()),
        }
    }

    pub(super) async fn instructed(
        &mut self,
        instruction: Instruction,
        beats: &heartbeat::Heartbeats,
    ) -> anyhow::Result<()> {
        match instruction.kind {
            Some(instruction::Kind::Start(assignment)) if self.leaving.is_some() => {
                let lease = (assignment.task_id, assignment.token);
                return self.report(lease, Err(stopped())).await;
            }
            Some(instruction::Kind::Start(assignment)) => self.start(assignment, beats),
            Some(instruction::Kind::Abort(abort)) => {
                if let Some(control) = self.running.get(&(abort.task_id, abort.token)) {
                    control.stop(&abort.reason);
                }
            }
            None => tracing::warn!("an instruction that this version does not know was ignored"),
        }
        Ok(())
    }

    fn start(&mut self, assignment: Assignment, beats: &heartbeat::Heartbeats) {
        let lease = (assignment.task_id, assignment.token);
        let control = Arc::new(TaskControl::default());
        self.running.insert(lease, control.clone());
        beats.renew(lease, control.clone());
        let ended = self.ended.clone();
        let span = span_of(&assignment, &self.registered.worker_id);
        let Some(task) = assignment.task else {
            let failure = internal("the assignment holds no task".into());
            // The receiver lives as long as this session.
            let _ = ended.send((lease, Err(failure)));
            return;
        };
        let options = &self.options;
        let context = TaskContext {
            output_url: task.output_url.clone(),
            roots: options.roots.clone(),
            runtime: tokio::runtime::Handle::current(),
            control,
            seat: assignment.seat,
            rendezvous: self.rendezvous(lease, assignment.seat),
            local_address: local_address(&options.coordinator),
            compute: options.compute.clone(),
            models: self.models.clone(),
            turns: self.turns.clone(),
            built_in: options.built_in,
            token: assignment.token,
        };
        std::thread::spawn(move || {
            let run = std::panic::AssertUnwindSafe(|| span.in_scope(|| tasks::run(&context, task)));
            let outcome = match std::panic::catch_unwind(run) {
                Ok(outcome) => outcome.map_err(|e| tasks::failure(&e)),
                Err(panic) => Err(internal(format!("the task panicked: {}", panic_text(&*panic)))),
            };
            end(span, &outcome);
            // A session that has ended has returned the lease, so nobody waits for the outcome.
            let _ = ended.send((lease, outcome));
        });
    }

    /// Returns the function with which a task of a gang meets the other ranks.
    fn rendezvous(
        &self,
        lease: LeaseId,
        seat: Option<Seat>,
    ) -> Box<dyn Fn(String) -> crate::Result<RendezvousResponse> + Send + Sync> {
        let client = self.client.clone();
        let worker_id = self.registered.worker_id.clone();
        let runtime = tokio::runtime::Handle::current();
        let rank = seat.map_or(0, |s| s.rank);
        Box::new(move |address| {
            let mut client = client.clone();
            let request =
                RendezvousRequest { worker_id: worker_id.clone(), task_id: lease.0, token: lease.1, rank, address };
            let met = runtime.block_on(client.rendezvous(request));
            let met = met.map_err(|s| crate::Error::Aborted(format!("rendezvous: {}", s.message())))?;
            Ok(met.into_inner())
        })
    }

    pub(super) async fn report(&mut self, lease: LeaseId, outcome: Outcome) -> anyhow::Result<()> {
        let outcome = match outcome {
            Ok(result) => report_request::Outcome::Done(result),
            // Whatever the error is, the task was stopped and did not fail.
            Err(_) if self.leaving.is_some() => report_request::Outcome::Failed(stopped()),
            Err(failure) => {
                tracing::warn!(task = lease.0, "{}", failure.text);
                report_request::Outcome::Failed(failure)
            }
        };
        let mut request = ReportRequest {
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
                // The same report would be refused again.
                Err(e) if e.code() == Code::InvalidArgument && !has_failed(&request) => {
                    let text = format!("the coordinator refuses the result of the task: {}", e.message());
                    tracing::warn!(task = lease.0, "{text}");
                    request.outcome = Some(report_request::Outcome::Failed(internal(text)));
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

    pub(super) fn stop_all(&self, reason: &str) {
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

/// Returns the span of a task, in the trace of its job.
fn span_of(assignment: &Assignment, worker: &str) -> Span {
    let seat = assignment.seat;
    let span = tracing::info_span!(
        target: SPANS,
        parent: None,
        "task",
        otel.name = format!("task {}", assignment.stage),
        otel.kind = "consumer",
        job = assignment.job_id,
        stage = assignment.stage,
        task = assignment.task_id,
        attempt = assignment.attempt,
        rank = seat.map(|seat| seat.rank),
        generation = seat.map(|seat| seat.generation),
        worker,
        rows = Empty,
        bytes = Empty,
    );
    telemetry::continue_trace(&span, &assignment.trace);
    span
}

/// Ends the span of a task with what the task wrote, or why it failed.
fn end(span: Span, outcome: &Outcome) {
    match outcome {
        Ok(result) => {
            span.record("rows", result.artifacts.iter().map(|file| file.rows).sum::<u64>());
            span.record("bytes", result.artifacts.iter().map(|file| file.bytes).sum::<u64>());
        }
        Err(failure) => telemetry::failed(&span, &failure.text),
    }
}

fn has_failed(report: &ReportRequest) -> bool {
    matches!(report.outcome, Some(report_request::Outcome::Failed(_)))
}

fn stopped() -> Failure {
    Failure { kind: FailureKind::Stopped.into(), text: "its worker was told to stop".into() }
}

fn internal(text: String) -> Failure {
    Failure { kind: FailureKind::Internal.into(), text }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// Returns this machine's address in the coordinator's network, at which other ranks reach it.
fn local_address(coordinator: &str) -> std::net::IpAddr {
    let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
    let authority = coordinator.split("://").last().unwrap_or("").trim_end_matches('/');
    let probe = || -> std::io::Result<std::net::IpAddr> {
        // Connecting a datagram socket sends nothing and only consults the routing table.
        let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(authority)?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(loopback)
}
