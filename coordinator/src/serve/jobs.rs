//! `JobService`: the calls of people and programs.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use llink_proto::job_service_server::JobService;
use llink_proto::{
    CancelRequest, Failure, FailureKind, GetRequest, Job, JobState, JobUpdate, ListRequest, ListResponse, LogsRequest,
    LogsResponse, ResumeRequest, SubmitRequest, SubmitResponse, WatchRequest,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use llink_datasets::roots::Roots;
use llink_telemetry::{self as telemetry, SPANS};
use tracing::Instrument;
use tracing::field::Empty;

use super::access::{Peer, Subject};
use super::engine::{Engine, EngineHandle, EngineStopped};
use super::page::Plans;
use super::{dry_run, inputs};
use crate::schedule::{Cluster, Effects, Millis};
use crate::state::{EventPage, StateError};
use crate::{job, schedule};

/// The metadata key under which a refusal carries its [`FailureKind`].
pub const FAILURE_KIND_KEY: &str = "llink-failure-kind";
const EVENTS_AT_ONCE: usize = 1000;
const JOBS_AT_ONCE: usize = 200;
const WATCH_INTERVAL: Duration = Duration::from_millis(150);

pub(super) struct Jobs {
    engine: EngineHandle,
    roots: Roots,
    plans: Plans,
    stopped: watch::Receiver<bool>,
}

impl Jobs {
    pub(super) fn new(engine: EngineHandle, roots: Roots, plans: Plans, stopped: watch::Receiver<bool>) -> Self {
        Self { engine, roots, plans, stopped }
    }

    async fn view(&self, id: String) -> Result<Job, Status> {
        let wanted = id.clone();
        let found = self.engine.call(move |e| e.cluster.view(&wanted)).await?;
        found.ok_or_else(|| no_such_job(&id))
    }

    /// Takes a job in, which keeps the trace of its submission.
    async fn accept(
        &self,
        request: SubmitRequest,
        peer: Peer,
        trace: String,
    ) -> Result<Response<SubmitResponse>, Status> {
        let file = job::parse(&request.file_name, &request.job_toml)
            .map_err(|e| refused(Code::InvalidArgument, FailureKind::Input, e.to_string()))?;
        let (mut new, addresses) =
            inputs::resolve(file, &PathBuf::from(request.base_dir), &self.roots).await.map_err(failed)?;
        if request.dry_run {
            let job = dry_run::plan(&new).await.map_err(failed)?;
            self.plans.add(job.clone());
            return Ok(Response::new(SubmitResponse { job: Some(job), already_complete: false }));
        }
        let id = new.id.clone();
        new.trace = trace;
        let saved = self.engine.call(move |e| {
            may_change(e, &new.id, &peer)?;
            e.store.set_owner(&new.id, &peer.name)?;
            new.owner = e.store.owner(&new.id)?;
            e.withheld.keep(&new.id, addresses);
            e.step(|c, now, fx| c.submit(new, now, fx));
            Ok::<_, Status>(())
        });
        saved.await??;
        let job = self.view(id.clone()).await?;
        Ok(about(SubmitResponse { job: Some(job), already_complete: false }, id))
    }

    /// Changes a job for a caller who may do so, and returns the job.
    async fn change(&self, peer: Peer, id: String, change: Change) -> Result<Response<Job>, Status> {
        let wanted = id.clone();
        let changed = self.engine.call(move |e| {
            may_change(e, &wanted, &peer)?;
            Ok::<_, Status>(e.step(|c, now, fx| change(c, &wanted, now, fx)))
        });
        changed.await??.map_err(|_| no_such_job(&id))?;
        Ok(about(self.view(id.clone()).await?, id))
    }
}

type Change = fn(&mut Cluster, &str, Millis, &mut Effects) -> Result<(), String>;

/// Returns an answer whose subject, the id of a job or a worker, stands in the audit log.
pub(super) fn about<T>(answer: T, subject: String) -> Response<T> {
    let mut response = Response::new(answer);
    response.extensions_mut().insert(Subject(subject));
    response
}

pub(super) fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>().cloned();
    peer.ok_or_else(|| Status::internal("the call did not come through the gate"))
}

/// Refuses a change of another person's job to a caller who may only change their own.
fn may_change(engine: &Engine, job: &str, peer: &Peer) -> Result<(), Status> {
    if peer.role.may_change_others() {
        return Ok(());
    }
    match engine.store.owner(job)? {
        Some(owner) if owner != peer.name => Err(Status::permission_denied(format!(
            "job {job} is {owner}'s: {} may change their own jobs only",
            peer.name
        ))),
        // A job from before owners were recorded can only be changed by an administrator.
        None if engine.cluster.jobs.contains_key(job) => Err(Status::permission_denied(format!(
            "the owner of job {job} is unknown: only an administrator may change it"
        ))),
        _ => Ok(()),
    }
}

impl From<EngineStopped> for Status {
    fn from(error: EngineStopped) -> Self {
        refused(Code::Unavailable, FailureKind::Storage, error.0)
    }
}

impl From<StateError> for Status {
    fn from(error: StateError) -> Self {
        refused(Code::Internal, FailureKind::Storage, error.to_string())
    }
}

fn no_such_job(id: &str) -> Status {
    let text = format!("there is no job {id:?}: `llink-coord list` shows those there are");
    refused(Code::NotFound, FailureKind::Input, text)
}

fn refused(code: Code, kind: FailureKind, text: String) -> Status {
    let mut status = Status::new(code, text);
    status.metadata_mut().insert(FAILURE_KIND_KEY, i32::from(kind).into());
    status
}

fn failed(failure: Failure) -> Status {
    let code = match failure.kind() {
        FailureKind::Input => Code::InvalidArgument,
        FailureKind::Storage => Code::Unavailable,
        _ => Code::Internal,
    };
    refused(code, failure.kind(), failure.text)
}

#[tonic::async_trait]
impl JobService for Jobs {
    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
        let peer = peer_of(&request)?;
        let metadata = request.metadata();
        let asked = telemetry::trace_in(|name| Some(metadata.get(name)?.to_str().ok()?.to_owned()));
        let span = tracing::info_span!(
            target: SPANS,
            parent: None,
            "JobService/Submit",
            otel.kind = "server",
            rpc.system = "grpc",
            job = Empty,
        );
        telemetry::continue_trace(&span, &asked);
        let trace = telemetry::trace_with(&span, &asked);
        let answer = self.accept(request.into_inner(), peer, trace).instrument(span.clone()).await;
        match &answer {
            Ok(answer) => {
                span.record("job", answer.get_ref().job.as_ref().map(|job| &*job.id));
            }
            Err(refused) => telemetry::failed(&span, refused.message()),
        }
        answer
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Job>, Status> {
        Ok(Response::new(self.view(request.into_inner().job_id).await?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let ListRequest { after_job_id, limit } = request.into_inner();
        let limit = at_once(limit, JOBS_AT_ONCE);
        let page = self.engine.call(move |e| {
            let age = |job: &schedule::Job| (job.submitted_at, job.id.clone());
            let after = e.cluster.jobs.get(&after_job_id).map(age);
            let mut ages: Vec<_> = e.cluster.jobs.values().map(age).collect();
            ages.retain(|age| after.as_ref().is_none_or(|after| age > after));
            ages.sort_unstable();
            let more = ages.len() > limit;
            let jobs = ages.into_iter().take(limit).filter_map(|(_, id)| e.cluster.view(&id));
            ListResponse { jobs: jobs.collect(), more }
        });
        Ok(Response::new(page.await?))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<JobUpdate, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let id = request.into_inner().job_id;
        self.view(id.clone()).await?;
        let (updates, stream) = mpsc::channel(4);
        let (engine, stop) = (self.engine.clone(), self.stopped.clone());
        tokio::spawn(async move { follow(&engine, id, &updates, stop).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<Job>, Status> {
        let peer = peer_of(&request)?;
        self.change(peer, request.into_inner().job_id, Cluster::cancel).await
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<Job>, Status> {
        let peer = peer_of(&request)?;
        self.change(peer, request.into_inner().job_id, Cluster::resume).await
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<LogsResponse>, Status> {
        let request = request.into_inner();
        self.view(request.job_id.clone()).await?;
        let limit = at_once(request.limit, EVENTS_AT_ONCE);
        let read = self.engine.call(move |e| e.store.events(&request.job_id, request.after_sequence, limit)).await;
        let EventPage { events, more } = read??;
        Ok(Response::new(LogsResponse { events, more }))
    }
}

/// Returns the length of a page: the requested one, or `most` for 0 and for more than `most`.
fn at_once(asked: u32, most: usize) -> usize {
    match asked as usize {
        0 => most,
        asked => asked.min(most),
    }
}

/// Sends the job whenever it has changed, until it ends or the client is gone.
async fn follow(
    engine: &EngineHandle,
    id: String,
    updates: &mpsc::Sender<Result<JobUpdate, Status>>,
    stop: watch::Receiver<bool>,
) {
    let mut shown: Option<Job> = None;
    let mut sequence = 0;
    loop {
        let wanted = id.clone();
        let look = engine.call(move |e| (e.cluster.view(&wanted), e.store.events(&wanted, sequence, EVENTS_AT_ONCE)));
        let (job, EventPage { mut events, more }) = match look.await {
            Ok((Some(job), Ok(page))) => (job, page),
            Ok((Some(_), Err(e))) => return drop(updates.send(Err(e.into())).await),
            Ok((None, _)) => return drop(updates.send(Err(no_such_job(&id))).await),
            Err(e) => return drop(updates.send(Err(e.into())).await),
        };
        sequence = events.last().map_or(sequence, |e| e.sequence);
        // The log also has the events of earlier submissions.
        events.retain(|event| event.at >= job.submitted_at);
        let ended = job.state() != JobState::Running;
        if shown.as_ref() != Some(&job) || !events.is_empty() {
            let update = JobUpdate { job: Some(job.clone()), events };
            if updates.send(Ok(update)).await.is_err() {
                return;
            }
            shown = Some(job);
        }
        if more {
            continue;
        }
        if ended || *stop.borrow() {
            return;
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}
