//! The processes of coordinators and workers. They die at any time and are started again.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use llink_datasets::Error;
use llink_datasets::roots::Roots;
use tokio::sync::{mpsc, watch};

use super::super::super::ServeOptions;
use super::super::super::jobs::Jobs;
use super::super::super::page::Plans;
use super::super::super::workers::Workers;
use super::super::{CALLS_AT_ONCE, Call, Engine, EngineHandle};
use super::worker::Worker;
use super::world::Host;
use super::{Fault, Node, PLACE, Sim, locked};
use crate::machine::{Machine, Process};
use crate::schedule::{Cluster, Effects, Keep, Millis, Timing};
use crate::serve::metrics::Saves;
use crate::state::{StateError, StateStore, replica};

/// The start of all clocks, in milliseconds since the epoch.
const EPOCH: Millis = 1_700_000_000_000;
/// The number of entries of a replica after which a snapshot is written.
const ENTRIES: u32 = 40;
/// The most instructions that may wait for a worker.
const INSTRUCTIONS: usize = 64;

pub(super) struct Server {
    pub(super) place: usize,
    pub(super) host: Host,
    pub(super) engine: EngineHandle,
    pub(super) jobs: Jobs,
    pub(super) workers: Workers,
    _stop: watch::Sender<bool>,
}

struct Simulated {
    sim: Arc<Sim>,
    place: usize,
    host: Host,
    /// The time of its own clock and of the world when the process began.
    began: (Millis, Millis),
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Simulated({})", self.host)
    }
}

impl Machine for Simulated {
    fn now(&self) -> Millis {
        self.began.0 + self.sim.world.now() - self.began.1
    }

    fn wall_clock(&self) -> Millis {
        self.sim.wall_clock(self.place)
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.sim.world.sleep(time.as_millis() as Millis))
    }

    fn spawn(&self, future: BoxFuture<'static, ()>) {
        self.sim.world.spawn(self.host, future);
    }

    fn work(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }

    fn process(&self) -> Process {
        let machine = if self.sim.plan.one_machine { 0 } else { self.host };
        Process { host: format!("machine-{machine}"), id: self.host as u32, space: machine.to_string() }
    }

    fn is_gone(&self, other: &Process) -> bool {
        other.space == self.process().space && !self.sim.world.lives(other.id as Host)
    }

    fn attempt_name(&self) -> String {
        format!("{:08x}", self.sim.world.random() as u32)
    }
}

impl Sim {
    fn wall_clock(&self, place: usize) -> Millis {
        EPOCH + self.world.now() + locked(&self.clocks)[place]
    }

    fn state(&self, node: Node) -> PathBuf {
        self.state.path().join(format!("{}-{}", node.place, node.number))
    }

    /// Opens the state of a coordinator. With a replica, its volume may have been lost.
    async fn open(&self, node: Node, machine: Arc<dyn Machine>) -> Result<StateStore, StateError> {
        let directory = self.state(node);
        if self.plan.on_replica == 0 {
            return StateStore::open(&directory);
        }
        if directory.exists() && self.may(Fault::VolumeLost, 3) {
            self.tell(|| format!("the volume of {node:?} is lost"));
            std::fs::remove_dir_all(&directory).unwrap();
        }
        let url = format!("memory://{PLACE}/replica-{}", node.place);
        replica::open(&directory, &url, machine, ENTRIES).await
    }

    fn options(&self, node: Node) -> ServeOptions {
        let folded = Keep { millis: 20_000, jobs: 1 };
        ServeOptions {
            keep: if self.plan.folds { folded } else { Keep::default() },
            ..ServeOptions::new(SocketAddr::from(([127, 0, 0, 1], 0)), self.state(node))
        }
    }
}

pub(super) async fn supervise(sim: Arc<Sim>, node: Node) {
    loop {
        let host = sim.world.boot();
        let gone = sim.world.gone(host);
        locked(&sim.coordinators).insert(node, host);
        sim.world.spawn(host, serve(sim.clone(), node, host));
        let _ = gone.await;
        locked(&sim.servers)[node.place].retain(|server| server.host != host);
        sim.world.sleep(sim.world.between(100, 15_000)).await;
    }
}

pub(super) async fn keep_worker(sim: Arc<Sim>, number: usize) {
    loop {
        sim.world.sleep(sim.world.between(0, 10_000)).await;
        let host = sim.world.boot();
        let gone = sim.world.gone(host);
        locked(&sim.workers)[number] = host;
        let worker = Worker {
            sim: sim.clone(),
            number,
            place: number % sim.plan.places,
            host,
            secret: format!("{:032x}", sim.world.random()),
        };
        sim.world.spawn(host, worker.run());
        let _ = gone.await;
    }
}

async fn serve(sim: Arc<Sim>, node: Node, host: Host) {
    let place = node.place;
    let machine: Arc<dyn Machine> =
        Arc::new(Simulated { began: (sim.wall_clock(place), sim.world.now()), sim: sim.clone(), place, host });
    let store = match sim.open(node, machine.clone()).await {
        Ok(store) => store,
        Err(e) => {
            let store_failed = matches!(e, StateError::Replica(Error::Store { .. }));
            assert!(store_failed || matches!(e, StateError::Succeeded { .. }), "{e}");
            sim.tell(|| format!("{node:?} does not start: {e}"));
            return sim.world.kill(host);
        }
    };
    if let Some(known) = sim.ledger().known.remove(&place) {
        let (jobs, tasks) = store.load().unwrap();
        let found = Cluster::restore(Timing::default(), jobs, tasks, 0).known();
        assert_eq!(found, known, "what is saved is what was known");
    }
    store.without_sync();
    let opened = Engine::open(store, &sim.options(node), Saves::default(), machine);
    let (engine, inbox, handle) = opened.unwrap();
    sim.tell(|| format!("coordinator {place} starts as {host}"));
    let (stop, stopped) = watch::channel(false);
    let timing = Timing::default();
    let server = Arc::new(Server {
        place,
        host,
        engine: handle.clone(),
        jobs: Jobs::new(handle.clone(), Roots::Any, Plans::default(), stopped.clone()),
        workers: Workers::new(handle, timing, stopped, "key".into(), false),
        _stop: stop,
    });
    locked(&sim.servers)[place].push(server);
    turn(&sim, place, host, engine, inbox).await;
    // The program ends too if its state store is broken.
    sim.world.kill(host);
}

/// Does the same as [`Engine::run`], with a slow disk and a process that may die before and after each save.
async fn turn(sim: &Arc<Sim>, place: usize, host: Host, mut engine: Engine, mut inbox: mpsc::Receiver<Call>) {
    while let Some(fx) = save(sim, place, host, &mut engine).await {
        if engine.stops {
            return engine.end().await;
        }
        engine.act_on(fx);
        let Some(first) = inbox.recv().await else { return };
        engine.run_queued(first, &mut inbox);
        check_bounds(&engine);
        if sim.world.one_in(40) {
            engine.cluster.check();
        }
    }
}

async fn save(sim: &Arc<Sim>, place: usize, host: Host, engine: &mut Engine) -> Option<Effects> {
    if sim.plan.answers_first {
        std::mem::take(&mut engine.answers).into_iter().for_each(|answer| answer());
    }
    if !engine.unsaved.change_nothing() {
        let slow = if sim.may(Fault::SlowDisk, 10) { 2_000 } else { 4 };
        let stalls = sim.may(Fault::DiskStalls, 100);
        sim.world.sleep(if stalls { 60_000 } else { sim.world.between(0, slow) }).await;
        if sim.may(Fault::CoordinatorDies, 80) {
            die(sim, host).await;
        }
        if sim.may(Fault::DiskFull, 30) {
            engine.store.leave_room_for(sim.world.between(0, 3)).unwrap();
        }
    }
    let fx = engine.save().await?;
    if !fx.actions.is_empty() && sim.may(Fault::CoordinatorDies, 40) {
        // A standby may have led since then.
        if sim.plan.on_replica < 2 {
            sim.ledger().known.insert(place, engine.cluster.known());
        }
        die(sim, host).await;
    }
    Some(fx)
}

async fn die(sim: &Arc<Sim>, host: Host) {
    sim.tell(|| format!("coordinator process {host} dies beside a save"));
    sim.world.kill(host);
    std::future::pending().await
}

fn check_bounds(engine: &Engine) {
    assert!(engine.answers.len() <= CALLS_AT_ONCE, "{} answers", engine.answers.len());
    for (worker, outbox) in &engine.outboxes {
        let waiting = outbox.receiver.as_ref().map_or(0, mpsc::UnboundedReceiver::len);
        assert!(waiting <= INSTRUCTIONS, "{waiting} instructions wait for {worker}");
    }
}
