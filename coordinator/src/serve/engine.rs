//! The engine: one thread that owns the cluster and the state store. A step changes the cluster, is saved, and only
//! then is acted on and answered. Queued steps are saved together in one write.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use llink_proto::{Failure, FailureKind, Instruction, instruction};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};

use super::keeper::Keeper;
use super::metrics::Saves;
use super::withheld::Withheld;
use super::workers::Session;
use super::{ServeOptions, Unfinished, stages};
use crate::machine::Machine;
use crate::plan::Claim;
use crate::schedule::{Action, Cluster, Effects, LookedUp, Millis, Work};
use crate::state::{Claimed, StateError, StateStore};

type Call = Box<dyn FnOnce(&mut Engine) + Send>;
/// The most calls that wait for the engine. Further callers wait until there is room.
const CALLS_QUEUED: usize = 1024;
/// The most calls whose steps are saved together.
const CALLS_AT_ONCE: usize = 256;
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Clone)]
pub struct EngineHandle {
    calls: mpsc::Sender<Call>,
    machine: Arc<dyn Machine>,
    broken: watch::Receiver<Option<String>>,
}

/// The error of an engine that has stopped, or that can no longer save.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct EngineStopped(pub String);

impl EngineHandle {
    /// Runs `f` on the engine's thread and returns its answer, once what `f` changed is saved.
    pub async fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Engine) -> R + Send + 'static,
    ) -> Result<R, EngineStopped> {
        let (reply, answer) = oneshot::channel();
        let call: Call = Box::new(move |engine| {
            let answer = f(engine);
            // The caller may have gone away. The step stands all the same.
            engine.answers.push(Box::new(move || drop(reply.send(answer))));
        });
        let stopped = || EngineStopped(self.broken.borrow().clone().unwrap_or_else(|| "the coordinator stops".into()));
        self.calls.send(call).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }

    /// Runs `f` on the engine's thread at some later time, without an answer.
    pub fn tell(&self, f: impl FnOnce(&mut Engine) + Send + 'static) {
        let calls = self.calls.clone();
        // A stopped engine needs to be told nothing.
        self.machine.spawn(Box::pin(async move { drop(calls.send(Box::new(f)).await) }));
    }

    pub(super) async fn sleep(&self, time: Duration) {
        self.machine.sleep(time).await;
    }

    /// Waits until the state store breaks, and returns the cause.
    pub async fn broken(&self) -> String {
        let mut broken = self.broken.clone();
        match broken.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "the engine stopped".into(),
        }
    }
}

/// The state that the coordinator's thread owns.
pub struct Engine {
    pub cluster: Cluster,
    pub(super) store: StateStore,
    outboxes: HashMap<String, Outbox>,
    machine: Arc<dyn Machine>,
    attempt: Arc<str>,
    handle: mpsc::WeakSender<Call>,
    unsaved: Effects,
    steps: u32,
    answers: Vec<Box<dyn FnOnce() + Send>>,
    broken: watch::Sender<Option<String>>,
    saves: Saves,
    /// The parts of jobs' addresses that are not saved.
    pub(super) withheld: Withheld,
    /// The last end of each job that each program of `[track]` was told.
    told: HashMap<(String, String), Millis>,
    keepers: HashMap<Work, Keeper>,
    releases: Vec<oneshot::Receiver<()>>,
    stops: bool,
}

/// The instructions for a worker, until its stream takes them.
#[derive(Debug)]
struct Outbox {
    sender: mpsc::UnboundedSender<Instruction>,
    receiver: Option<mpsc::UnboundedReceiver<Instruction>>,
    session: Session,
}

pub(super) fn start(
    store: StateStore,
    options: &ServeOptions,
    saves: Saves,
    machine: Arc<dyn Machine>,
) -> Result<EngineHandle, StateError> {
    let (engine, inbox, handle) = Engine::open(store, options, saves, machine)?;
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || runtime.block_on(engine.run(inbox)));
    Ok(handle)
}

/// Lets time pass, one tick after the other: those that the engine is late for do not queue up.
async fn tick(machine: Arc<dyn Machine>, calls: mpsc::WeakSender<Call>) {
    loop {
        let (done, is_done) = oneshot::channel();
        let tick: Call = Box::new(move |engine| {
            engine.step(|cluster, now, fx| cluster.tick(now, fx));
            engine.answers.push(Box::new(move || {
                let _ = done.send(());
            }));
        });
        let Some(calls) = calls.upgrade() else { return };
        if calls.send(tick).await.is_err() {
            return;
        }
        drop(calls);
        if is_done.await.is_err() {
            return;
        }
        machine.sleep(TICK).await;
    }
}

/// Refuses the calls in the queue. A receiver that is only dropped leaves a call in it that is queued at that moment, whose
/// caller would then wait as long as anybody else can call.
async fn refuse(mut inbox: mpsc::Receiver<Call>) {
    inbox.close();
    while inbox.recv().await.is_some() {}
}

impl Engine {
    /// Makes an engine on what the state store remembers. Its first step is not saved yet. Also returns the queue of its
    /// calls, and the handle that fills the queue.
    fn open(
        store: StateStore,
        options: &ServeOptions,
        saves: Saves,
        machine: Arc<dyn Machine>,
    ) -> Result<(Self, mpsc::Receiver<Call>, EngineHandle), StateError> {
        let (jobs, tasks) = store.load()?;
        let mut cluster = Cluster::restore(options.timing, jobs, tasks, machine.now());
        cluster.number_tasks_after(store.highest_forgotten_task()?);
        cluster.expected_workers = options.expected_workers;
        cluster.keep = options.keep;
        cluster.at_most_per_person = options.at_most_per_person;
        let told = store.told()?;
        let (calls, inbox) = mpsc::channel::<Call>(CALLS_QUEUED);
        let (broken, is_broken) = watch::channel(None);
        let mut engine = Self {
            cluster,
            store,
            outboxes: HashMap::new(),
            machine: machine.clone(),
            attempt: machine.attempt_name().into(),
            handle: calls.downgrade(),
            unsaved: Effects::default(),
            steps: 0,
            answers: Vec::new(),
            broken,
            saves,
            withheld: Withheld::default(),
            told,
            keepers: HashMap::new(),
            releases: Vec::new(),
            stops: false,
        };
        let unfinished = options.unfinished;
        engine.step(|cluster, now, fx| match unfinished {
            Unfinished::GoesOn => cluster.wake(now, fx),
            Unfinished::IsEnded => cluster.interrupt(now, fx),
        });
        machine.spawn(Box::pin(tick(machine.clone(), calls.downgrade())));
        let handle = EngineHandle { calls, machine, broken: is_broken };
        Ok((engine, inbox, handle))
    }

    /// Runs calls until it is stopped, nobody can call any more, or the store cannot save. It saves after all calls in the
    /// queue.
    async fn run(mut self, mut inbox: mpsc::Receiver<Call>) {
        while let Some(fx) = self.save().await {
            if self.stops {
                self.end().await;
                return refuse(inbox).await;
            }
            self.act_on(fx);
            let Some(first) = inbox.recv().await else { return };
            self.run_queued(first, &mut inbox);
        }
        drop(self);
        refuse(inbox).await;
    }

    /// Ends the engine after the steps so far. Its replica is left to the next leader.
    pub(super) fn stop(&mut self) {
        self.stops = true;
    }

    /// Gives up the lead, and then answers. Nobody acts on what was saved last: the next leader does.
    async fn end(self) {
        if let Err(e) = self.store.close().await {
            tracing::warn!("a standby takes over later: {e}");
        }
        self.answers.into_iter().for_each(|answer| answer());
    }

    fn run_queued(&mut self, first: Call, inbox: &mut mpsc::Receiver<Call>) {
        first(self);
        for _ in 1..CALLS_AT_ONCE {
            let Ok(call) = inbox.try_recv() else { return };
            call(self);
        }
    }

    /// Runs one step. Its changes are saved, and acted on and answered after that.
    pub fn step<R>(&mut self, f: impl FnOnce(&mut Cluster, Millis, &mut Effects) -> R) -> R {
        let now = self.machine.now();
        let answer = f(&mut self.cluster, now, &mut self.unsaved);
        self.cluster.dispatch(now, &mut self.unsaved);
        self.steps += 1;
        answer
    }

    /// Saves what the steps so far changed, and returns their effects. If the store cannot save, it returns none: nothing is
    /// done, the engine must stop, and those who wait for an answer are told why.
    async fn save(&mut self) -> Option<Effects> {
        let fx = std::mem::take(&mut self.unsaved);
        let began = Instant::now();
        let saved = self.store.save(&self.cluster, &fx).await;
        let seconds = began.elapsed().as_secs_f64();
        (0..std::mem::take(&mut self.steps)).for_each(|_| self.saves.0.observe(seconds));
        if let Err(e) = saved {
            let text = format!("{e}. Nothing that was acknowledged is lost: remove the cause and start again");
            tracing::error!("{text}");
            self.broken.send_replace(Some(text));
            return None;
        }
        Some(fx)
    }

    fn act_on(&mut self, fx: Effects) {
        for event in &fx.events {
            tracing::info!(job = event.job, stage = event.stage, level = event.level.as_ref(), "{}", event.text);
        }
        for action in fx.actions {
            self.act(action);
        }
        std::mem::take(&mut self.answers).into_iter().for_each(|answer| answer());
    }

    pub(super) fn open_outbox(&mut self, worker: &str, session: Session) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let outbox = Outbox { sender, receiver: Some(receiver), session };
        self.outboxes.insert(worker.into(), outbox);
    }

    pub(super) fn session(&self, worker: &str) -> Option<&Session> {
        self.outboxes.get(worker).map(|outbox| &outbox.session)
    }

    /// Records that a process used a token of one use, unless another process did so before.
    pub(super) fn claim_token(&mut self, token: &str, instance: &str) -> Result<Claimed, StateError> {
        self.store.claim_token(token, instance, self.machine.now())
    }

    pub(super) fn told(&self, job: &str, program: &str) -> Option<Millis> {
        self.told.get(&(job.to_owned(), program.to_owned())).copied()
    }

    pub(super) fn set_told(&mut self, job: &str, program: &str, ended_at: Millis) -> Result<(), StateError> {
        self.told.insert((job.to_owned(), program.to_owned()), ended_at);
        self.store.set_told(job, program, ended_at)
    }

    /// Takes the worker's instructions for its stream. They can be taken once.
    pub fn take_outbox(&mut self, worker: &str) -> Option<mpsc::UnboundedReceiver<Instruction>> {
        self.outboxes.get_mut(worker)?.receiver.take()
    }

    pub fn close_outbox(&mut self, worker: &str) {
        self.outboxes.remove(worker);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start { worker, mut assignment } => {
                let job = self.cluster.tasks.get(&assignment.task_id).map(|task| &task.job);
                if let (Some(job), Some(task)) = (job, assignment.task.as_mut()) {
                    self.withheld.fill(job, task);
                }
                self.instruct(&worker, instruction::Kind::Start(*assignment));
            }
            Action::Abort { worker, abort } => self.instruct(&worker, instruction::Kind::Abort(abort)),
            Action::Forget { worker } => self.close_outbox(&worker),
            Action::LookUp { work, claim, kept } => self.look_up(work, claim, kept),
            Action::Commit { work, claim, manifest } => {
                let (machine, of) = (self.machine.clone(), work.clone());
                self.spawn(
                    async move { stages::commit(&machine, &of, &claim, *manifest).await },
                    move |engine, written| {
                        if written.is_ok() {
                            // The commit removes the claims.
                            engine.keepers.remove(&work);
                        }
                        engine.step(|c, now, fx| c.committed(&work, written, now, fx));
                    },
                );
            }
            Action::Release { work, claim } => self.release(&work, &claim),
            Action::Publish { job, output, report, files } => {
                self.spawn(async move { stages::publish(&output, report, &files).await }, move |engine, written| {
                    engine.step(|c, now, fx| c.published(&job, written, now, fx));
                })
            }
        }
    }

    fn look_up(&mut self, work: Work, held: Option<Claim>, kept: BTreeMap<String, u64>) {
        let (machine, own, of) = (self.machine.clone(), self.attempt.clone(), work.clone());
        self.spawn(
            async move { stages::look_up(&machine, &of, held.as_ref(), &own, &kept).await },
            move |engine, found| {
                if let Ok(LookedUp::Claimed { claim, .. }) = &found {
                    engine.keep(&work, claim);
                }
                engine.step(|c, now, fx| c.looked_up(&work, found, now, fx));
            },
        );
    }

    /// Starts to renew a claim, unless that is done already.
    fn keep(&mut self, work: &Work, claim: &Claim) {
        if self.keepers.get(work).is_some_and(|k| k.attempt == claim.attempt && !k.has_ended()) {
            return;
        }
        let (calls, of, attempt) = (self.handle.clone(), work.clone(), claim.attempt.clone());
        let lost = async move {
            let call: Call = Box::new(move |engine| {
                engine.step(|c, now, fx| c.claim_lost(&of, &attempt, now, fx));
            });
            if let Some(calls) = calls.upgrade() {
                let _ = calls.send(call).await;
            }
        };
        let keeper = Keeper::start(&self.machine, work.clone(), claim.clone(), lost);
        self.keepers.insert(work.clone(), keeper);
    }

    fn release(&mut self, work: &Work, claim: &Claim) {
        if self.keepers.get(work).is_some_and(|keeper| keeper.attempt == claim.attempt)
            && let Some(keeper) = self.keepers.remove(work)
        {
            self.releases.retain_mut(|release| matches!(release.try_recv(), Err(TryRecvError::Empty)));
            self.releases.push(keeper.release());
        }
    }

    pub(super) fn releases(&mut self) -> Vec<oneshot::Receiver<()>> {
        std::mem::take(&mut self.releases)
    }

    fn instruct(&self, worker: &str, kind: instruction::Kind) {
        if let Some(outbox) = self.outboxes.get(worker) {
            // The guard of a closed stream notices it and gives the lease back.
            let _ = outbox.sender.send(Instruction { kind: Some(kind) });
        }
    }

    /// Runs a future on the runtime and brings its result back to this thread.
    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
        then: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        let calls = self.handle.clone();
        self.machine.spawn(Box::pin(async move {
            let result = work.await;
            if let Some(calls) = calls.upgrade() {
                let call: Call = Box::new(move |engine| then(engine, result));
                let _ = calls.send(call).await;
            }
        }));
    }
}

pub(super) fn failure(error: &llink_datasets::Error) -> Failure {
    let kind = match error {
        llink_datasets::Error::Store { .. } => FailureKind::Storage,
        _ => FailureKind::Input,
    };
    Failure { kind: kind.into(), text: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::machine::ThisMachine;
    use crate::schedule::NewJob;

    fn started(directory: &Path) -> EngineHandle {
        let local = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let options = ServeOptions::new(local, directory.into());
        let store = StateStore::open(directory).unwrap();
        start(store, &options, Saves::default(), Arc::new(ThisMachine::new())).unwrap()
    }

    /// Submits a job. Returns its id, and whether that was answered.
    async fn submit(engine: EngineHandle, number: usize) -> (String, bool) {
        let text = format!("output = \"memory://engine\"\nseed = {number}\n[corpus]\nsource = \"/none.tsv\"\n");
        let id = format!("job-{number:03}");
        let new = NewJob::new(&*id, crate::job::parse("job.toml", &text).unwrap());
        let answer = engine.call(move |e| e.step(|c, now, fx| c.submit(new, now, fx))).await;
        (id, answer.is_ok())
    }

    fn on_disk(directory: &Path) -> BTreeSet<String> {
        let (jobs, _) = StateStore::open_read_only(directory).unwrap().load().unwrap();
        jobs.into_iter().map(|job| job.id).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_calls_at_once_each_is_on_disk_before_it_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let engine = started(directory.path());
        let calls = (0..100).map(|number| {
            let (engine, directory) = (engine.clone(), directory.path().to_owned());
            async move {
                let (id, answered) = submit(engine, number).await;
                assert!(answered && on_disk(&directory).contains(&id), "{id}");
            }
        });
        futures::future::join_all(calls).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn calls_that_come_while_the_engine_ends_are_refused() {
        for _ in 0..2_000 {
            let (calls, inbox) = mpsc::channel::<Call>(CALLS_QUEUED);
            let (_, broken) = watch::channel(None);
            let engine = EngineHandle { calls, machine: Arc::new(ThisMachine::new()), broken };
            let call = |_| {
                let engine = engine.clone();
                tokio::spawn(async move { engine.call(|_| ()).await.is_err() })
            };
            let callers: Vec<_> = (0..3).map(call).collect();
            refuse(inbox).await;
            let refused = futures::future::join_all(callers);
            let refused = tokio::time::timeout(Duration::from_secs(60), refused).await.expect("nobody waits");
            assert!(refused.into_iter().all(Result::unwrap));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn when_the_disk_is_full_what_is_not_saved_is_not_answered_and_the_rest_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let engine = started(directory.path());
        assert!(submit(engine.clone(), 0).await.1);
        let calls = async {
            let full = engine.call(|e| e.store.leave_room_for(64));
            full.await.unwrap().unwrap();
            let calls = (1..200).map(|number| submit(engine.clone(), number));
            futures::future::join_all(calls).await
        };
        let answers = calls.await;
        let answered: BTreeSet<String> = answers.iter().filter(|(_, ok)| *ok).map(|(id, _)| id.clone()).collect();
        assert!(answered.len() < answers.len(), "the disk was to be full");
        let mut kept = on_disk(directory.path());
        assert!(kept.remove("job-000"));
        assert_eq!(kept, answered);
        let why = engine.broken().await;
        assert!(why.contains("full") && why.contains("Nothing that was acknowledged is lost"), "{why}");
    }
}

#[cfg(test)]
mod simulation;
