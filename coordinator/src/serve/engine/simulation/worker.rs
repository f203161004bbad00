//! A worker behaves as `llink-worker` does: it registers, sends heartbeats, computes, and repeats its reports. An artifact
//! is a hash of the task's settings and of the artifacts that the task reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use llink_datasets::manifest::sha256_hex;
use llink_datasets::store::Store;
use llink_proto::task::Kind;
use llink_proto::worker_service_server::WorkerService;
use llink_proto::{
    Artifact, Assignment, AssignmentsRequest, Failure, FailureKind, HeartbeatRequest, RegisterRequest,
    RegisterResponse, RendezvousRequest, ReportRequest, Task, TaskProgress, TaskResult, instruction, report_request,
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status};

use super::network::{Answer, request};
use super::world::Host;
use super::{Fault, Server, Sim, locked};
use crate::plan::fake;
use crate::schedule::Millis;

const RETRY: Millis = 300;
const REPORT_PATIENCE: Millis = 20_000;

type Lease = (u64, u64);
type Outcome = Result<TaskResult, Failure>;
/// The leases at work, each with the channel that stops it.
type Running = Arc<Mutex<BTreeMap<Lease, Option<oneshot::Sender<()>>>>>;

#[derive(Clone)]
pub(super) struct Worker {
    pub(super) sim: Arc<Sim>,
    pub(super) number: usize,
    pub(super) place: usize,
    pub(super) host: Host,
    pub(super) secret: String,
}

#[derive(Default)]
pub(super) struct Gang {
    here: BTreeSet<u32>,
    done: bool,
    broken: bool,
}

/// Breaks the gang if its rank ends early.
struct InGang<'a>(&'a Worker, Lease);

impl Drop for InGang<'_> {
    fn drop(&mut self) {
        self.0.gang(self.1, |gang| gang.broken |= !gang.done);
    }
}

fn stop(running: &Running, lease: Lease) {
    let mut running = locked(running);
    let stops = running.get_mut(&lease).and_then(Option::take);
    drop(running);
    stops.map(|stops| stops.send(()));
}

fn held(running: &Running) -> Vec<Lease> {
    let running = locked(running);
    running.keys().copied().collect()
}

fn failure(kind: FailureKind, text: impl ToString) -> Failure {
    Failure { kind: kind.into(), text: text.to_string() }
}

impl Worker {
    pub(super) async fn run(self) {
        loop {
            let _ = self.session().await;
            self.sim.world.sleep(RETRY).await;
        }
    }

    async fn session(&self) -> Result<(), Status> {
        let info = RegisterRequest {
            name: format!("sim{}", self.number),
            version: env!("CARGO_PKG_VERSION").into(),
            leases_ahead: self.number as u32 % 3,
            ..RegisterRequest::default()
        };
        let secret = self.secret.clone();
        let register = move |server: Arc<Server>| -> Answer<_> {
            let request = request(info.clone(), &secret);
            Box::pin(async move { Ok(server.workers.register(request).await?.into_inner()) })
        };
        let registered = self.sim.call(self.number, self.place, register).await?;
        let mut instructions = self.instructions(&registered).await?;
        let running = Running::default();
        let (lose, mut lost) = oneshot::channel();
        let beats = self.clone().beat(registered.clone(), running.clone(), lose);
        self.sim.world.spawn(self.host, beats);
        let (ended, mut endings) = mpsc::unbounded_channel();
        let why = loop {
            tokio::select! {
                biased;
                _ = &mut lost => break Ok(()),
                instruction = instructions.recv() => match instruction.and_then(|i| i.kind) {
                    None => break Ok(()),
                    Some(instruction::Kind::Start(start)) => self.start(&registered, start, &running, &ended),
                    Some(instruction::Kind::Abort(abort)) => stop(&running, (abort.task_id, abort.token)),
                },
                Some((lease, outcome)) = endings.recv() => {
                    locked(&running).remove(&lease);
                    if let Err(e) = self.report(&registered, lease, outcome).await {
                        break Err(e);
                    }
                }
            }
        };
        held(&running).into_iter().for_each(|lease| stop(&running, lease));
        while !held(&running).is_empty()
            && let Some((lease, _)) = endings.recv().await
        {
            locked(&running).remove(&lease);
        }
        why
    }

    async fn instructions(
        &self,
        registered: &RegisterResponse,
    ) -> Result<mpsc::UnboundedReceiver<llink_proto::Instruction>, Status> {
        let (this, worker_id) = (self.clone(), registered.worker_id.clone());
        let listen = move |server: Arc<Server>| -> Answer<_> {
            let (this, worker_id) = (this.clone(), worker_id.clone());
            Box::pin(async move {
                let request = request(AssignmentsRequest { worker_id }, &this.secret);
                let stream = server.workers.assignments(request).await?.into_inner();
                let (to, instructions) = mpsc::unbounded_channel();
                let (sim, host) = (this.sim.clone(), server.host);
                let carried = sim.clone().carry(server, stream, (this.number, this.host), to);
                sim.world.spawn(host, carried);
                Ok(instructions)
            })
        };
        self.sim.call(self.number, self.place, listen).await
    }

    async fn beat(self, registered: RegisterResponse, running: Running, lose: oneshot::Sender<()>) {
        let (interval, lease) = (Millis::from(registered.heartbeat_interval_ms), Millis::from(registered.lease_ms));
        let world = &self.sim.world;
        let mut heard = world.now();
        while !lose.is_closed() {
            world.sleep(interval).await;
            let progress = held(&running).into_iter().map(|(task_id, token)| TaskProgress {
                task_id,
                token,
                ..TaskProgress::default()
            });
            let beat = HeartbeatRequest { worker_id: registered.worker_id.clone(), running: progress.collect() };
            let secret = self.secret.clone();
            let ask = move |server: Arc<Server>| -> Answer<_> {
                let request = request(beat.clone(), &secret);
                Box::pin(async move { Ok(server.workers.heartbeat(request).await?.into_inner()) })
            };
            tokio::select! {
                biased;
                answer = self.sim.call(self.number, self.place, ask) => match answer {
                    Ok(answer) => {
                        heard = world.now();
                        answer.aborts.iter().for_each(|abort| stop(&running, (abort.task_id, abort.token)));
                        if !answer.registered {
                            break;
                        }
                    }
                    Err(_) if world.now() - heard > lease => break,
                    Err(_) => {}
                },
                () = world.sleep(lease) => break,
            }
        }
        let _ = lose.send(());
    }

    fn start(
        &self,
        registered: &RegisterResponse,
        start: Assignment,
        running: &Running,
        ended: &mpsc::UnboundedSender<(Lease, Outcome)>,
    ) {
        let lease = (start.task_id, start.token);
        let (stops, stopped) = oneshot::channel();
        locked(running).insert(lease, Some(stops));
        let (this, worker_id, ended) = (self.clone(), registered.worker_id.clone(), ended.clone());
        self.sim.world.spawn(self.host, async move {
            let outcome = tokio::select! {
                biased;
                _ = stopped => Err(failure(FailureKind::Peer, "stopped")),
                outcome = this.compute(&worker_id, &start) => outcome,
            };
            let _ = ended.send((lease, outcome));
        });
    }

    async fn report(&self, registered: &RegisterResponse, lease: Lease, outcome: Outcome) -> Result<(), Status> {
        let mut report = ReportRequest {
            worker_id: registered.worker_id.clone(),
            task_id: lease.0,
            token: lease.1,
            outcome: Some(match outcome {
                Ok(result) => report_request::Outcome::Done(result),
                Err(failure) => report_request::Outcome::Failed(failure),
            }),
        };
        let began = self.sim.world.now();
        loop {
            let (this, of) = (self.clone(), report.clone());
            let ask = move |server: Arc<Server>| -> Answer<_> {
                let (this, of) = (this.clone(), of.clone());
                Box::pin(async move {
                    let answer = server.workers.report(request(of.clone(), &this.secret)).await?;
                    let accepted = answer.into_inner().accepted;
                    let gangs = locked(&this.sim.gangs).contains_key(&(this.place, of.task_id, of.token));
                    let made = match &of.outcome {
                        Some(report_request::Outcome::Done(result)) if !gangs => Some(result),
                        _ => None,
                    };
                    if accepted {
                        this.sim.ledger().acknowledged(&server, &of, made);
                    }
                    Ok(accepted)
                })
            };
            match self.sim.call(self.number, self.place, ask).await {
                Ok(_) => return Ok(()),
                Err(e) if e.code() == Code::InvalidArgument => {
                    let refused = failure(FailureKind::Internal, e.message());
                    report.outcome = Some(report_request::Outcome::Failed(refused));
                }
                Err(e) if self.sim.world.now() - began >= REPORT_PATIENCE => return Err(e),
                Err(_) => self.sim.world.sleep(RETRY).await,
            }
        }
    }

    async fn compute(&self, worker_id: &str, start: &Assignment) -> Outcome {
        let sim = &self.sim;
        sim.world.sleep(sim.world.between(50, 3_000)).await;
        if sim.may(Fault::Tasks, 40) {
            return Err(failure(FailureKind::Internal, "bad luck"));
        }
        let task = start.task.as_ref().expect("an assignment has a task");
        match start.seat {
            Some(seat) if seat.world_size > 1 => self.train(worker_id, start, task, seat.rank).await,
            _ => write(task).await,
        }
    }

    /// Trains with the other ranks. All of them must run until rank 0 has written the result.
    async fn train(&self, worker_id: &str, start: &Assignment, task: &Task, rank: u32) -> Outcome {
        let lease = (start.task_id, start.token);
        let met = RendezvousRequest {
            worker_id: worker_id.into(),
            task_id: lease.0,
            token: lease.1,
            rank,
            address: format!("rank-{rank}"),
        };
        let secret = self.secret.clone();
        let meet = move |server: Arc<Server>| -> Answer<_> {
            let request = request(met.clone(), &secret);
            Box::pin(async move { Ok(server.workers.rendezvous(request).await?.into_inner()) })
        };
        let _here = InGang(self, lease);
        let met = self.sim.call(self.number, self.place, meet).await;
        let ranks = met.map_err(|e| failure(FailureKind::Peer, e.message()))?.addresses;
        self.gang(lease, |gang| gang.here.insert(rank));
        let mut steps = 0;
        loop {
            self.sim.world.sleep(200).await;
            let (all, done, broken) = self.gang(lease, |gang| (gang.here.len() == ranks.len(), gang.done, gang.broken));
            if broken {
                return Err(failure(FailureKind::Peer, "lost its peer"));
            }
            if done {
                return Ok(TaskResult::default());
            }
            steps += u32::from(all);
            if rank == 0 && steps > 10 {
                let result = write(task).await;
                self.gang(lease, |gang| gang.done = result.is_ok());
                return result;
            }
        }
    }

    fn gang<R>(&self, (task, token): Lease, f: impl FnOnce(&mut Gang) -> R) -> R {
        let mut gangs = locked(&self.sim.gangs);
        f(gangs.entry((self.place, task, token)).or_default())
    }
}

async fn write(task: &Task) -> Outcome {
    let of_store = |e: llink_datasets::Error| match e {
        llink_datasets::Error::Store { .. } => failure(FailureKind::Storage, e),
        _ => failure(FailureKind::Input, e),
    };
    let store = Store::open(&task.output_url).map_err(of_store)?;
    let kind = task.kind.as_ref().expect("a task has a kind");
    let mut read = how(kind);
    if let Kind::CleanSource(clean) = kind {
        let (from, name) = Store::open_object(&clean.source.as_ref().expect("a source").url).map_err(of_store)?;
        read += &sha256_hex(&from.get(&name).await.map_err(of_store)?);
    }
    for path in inputs(kind) {
        read += &sha256_hex(&store.get(&path).await.map_err(of_store)?);
    }
    let mut result = TaskResult::default();
    for (role, path) in fake::outputs(kind) {
        let content = sha256_hex(format!("{role} of {read}").as_bytes());
        result.artifacts.push(Artifact {
            path: path.clone(),
            role,
            rows: 10,
            bytes: content.len() as u64,
            sha256: sha256_hex(content.as_bytes()),
            ..Artifact::default()
        });
        store.put(&path, Bytes::from(content)).await.map_err(of_store)?;
    }
    match kind {
        Kind::SplitCorpus(_) => result.artifacts.extend(fake::shards()),
        Kind::PrepareModel(model) => {
            let url = format!("{}/{}", task.output_url, model.path);
            result.facts.extend(fake::facts(model, &result.artifacts[0].sha256, &url));
        }
        _ => {}
    }
    Ok(result)
}

/// Returns the settings of a task without its paths, URLs and keys.
fn how(kind: &Kind) -> String {
    let is_place = |text: &str| text.contains('/') || text.len() == 16;
    let told = format!("{kind:?}");
    let texts = told.split('"').enumerate().filter(|(at, text)| at % 2 == 0 || !is_place(text));
    texts.map(|(_, text)| text).collect()
}

fn inputs(kind: &Kind) -> Vec<String> {
    // The task's debug form shows the artifacts of every kind of task.
    let told = format!("{kind:?}");
    let artifacts = told.split("Artifact { path: \"").skip(1);
    let mut paths: Vec<String> = artifacts.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect();
    match kind {
        Kind::SplitCorpus(split) => paths.extend(split.cleaned.iter().cloned()),
        Kind::WriteShard(shard) => paths.extend(shard.cleaned.iter().chain([&shard.assignment]).cloned()),
        Kind::PrepareModel(model) => paths.extend(model.text_shards.iter().cloned()),
        _ => {}
    }
    paths
}
