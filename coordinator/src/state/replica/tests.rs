//! Replicas on a disk and a store that fail at any point.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use llink_datasets::Error;
use llink_datasets::store::Store;
use tokio::runtime::Runtime;

use super::objects::{Kind, Objects, Position, Writer};
use super::{Lead, Pace, open_with};
use crate::machine::{Machine, ThisMachine};
use crate::schedule::{Cluster, Effects, Timing};
use crate::state::{StateError, StateStore};

/// A coordinator whose process ends at a write: at the n-th of these points, and every one after it.
#[derive(Debug, Clone)]
pub(in crate::state::replica) struct Faults(Arc<AtomicI64>);

impl Default for Faults {
    fn default() -> Self {
        Self::after(i64::MAX)
    }
}

impl Faults {
    fn after(points: i64) -> Self {
        Self(Arc::new(AtomicI64::new(points)))
    }

    pub(in crate::state::replica) fn strike(&self) -> llink_datasets::Result<()> {
        match self.0.fetch_sub(1, Ordering::SeqCst) > 0 {
            true => Ok(()),
            false => Err(Error::Store { path: "the store".into(), source: "the process is gone".into() }),
        }
    }

    fn has_struck(&self) -> bool {
        self.0.load(Ordering::SeqCst) < 0
    }
}

/// Nobody waits.
const AT_ONCE: Pace = Pace { look: Duration::ZERO, silence: Duration::ZERO };

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap())
}

fn machine() -> Arc<dyn Machine> {
    let _runtime = runtime().enter();
    Arc::new(ThisMachine::new())
}

/// A coordinator with its state directory.
struct Coordinator {
    store: StateStore,
    cluster: Cluster,
}

impl Coordinator {
    fn start(directory: &Path, url: &str, faults: Faults, snapshot_after: u32) -> Result<Self, StateError> {
        let mut objects = Objects::new(Store::open(url).unwrap());
        objects.faults = faults;
        let store = runtime().block_on(open_with(directory, objects, AT_ONCE, snapshot_after, machine()))?;
        store.without_sync();
        Ok(Self { store, cluster: Cluster::new(Timing::default()) })
    }

    /// One step; it is acknowledged if this is `Ok`.
    fn step(&mut self, job: u64) -> Result<(), StateError> {
        self.store.set_owner(&format!("{job:05}"), &"x".repeat(300))?;
        let saved = runtime().block_on(self.store.save(&self.cluster, &Effects::default()));
        if let Some(snapshot) = self.store.replica.as_mut().and_then(|replica| replica.snapshot.take()) {
            // It ends without a message.
            runtime().block_on(snapshot).unwrap_err();
        }
        saved
    }

    fn jobs(&self) -> BTreeSet<u64> {
        let mut statement = self.store.connection.prepare("SELECT job FROM owners").unwrap();
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.map(|job| job.unwrap().parse().unwrap()).collect()
    }
}

fn fresh_url() -> String {
    static NUMBER: AtomicI64 = AtomicI64::new(0);
    format!("memory://replica-{}", NUMBER.fetch_add(1, Ordering::SeqCst))
}

fn objects(url: &str) -> Objects {
    Objects::new(Store::open(url).unwrap())
}

fn on_empty_volume(url: &str) -> BTreeSet<u64> {
    let directory = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(directory.path(), url, Faults::default(), 1_000).unwrap();
    coordinator.store.check().unwrap();
    coordinator.jobs()
}

#[test]
fn between_any_two_writes_the_process_may_end_and_nothing_that_was_acknowledged_is_lost() {
    let mut points = 0;
    loop {
        let (url, directory) = (fresh_url(), tempfile::tempdir().unwrap());
        let mut acknowledged = BTreeSet::new();
        let mut tried = BTreeSet::new();
        let faults = Faults::after(points);
        // It starts, works, and starts again in its directory.
        for round in 0..2 {
            let Ok(mut coordinator) = Coordinator::start(directory.path(), &url, faults.clone(), 3) else {
                break;
            };
            for job in 0..8 {
                let job = round * 8 + job;
                tried.insert(job);
                match coordinator.step(job) {
                    Ok(()) => acknowledged.insert(job),
                    Err(_) => break,
                };
            }
        }
        let restored = on_empty_volume(&url);
        assert!(restored.is_superset(&acknowledged), "point {points}: {restored:?}, {acknowledged:?}");
        assert!(restored.is_subset(&tried), "point {points}: {restored:?}, {tried:?}");
        // The directory of before goes on too.
        let here = Coordinator::start(directory.path(), &url, Faults::default(), 3).unwrap();
        assert_eq!(here.jobs(), restored, "point {points}");
        if !faults.has_struck() {
            assert!(points > 50, "{points} points");
            return;
        }
        points += 1;
    }
}

/// Random coordinators on one replica: they start on new and on used volumes, are held up for any time while others lead,
/// go on, and end at any write.
fn several(seed: u64) {
    let url = fresh_url();
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = move |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    let mut volumes: Vec<(tempfile::TempDir, Option<Coordinator>)> = Vec::new();
    let (mut acknowledged, mut tried) = (BTreeSet::new(), BTreeSet::new());
    for job in 0..60 {
        if volumes.is_empty() || below(6) == 0 {
            let at = below(4) as usize;
            if at >= volumes.len() {
                volumes.push((tempfile::tempdir().unwrap(), None));
            }
            let at = at.min(volumes.len() - 1);
            // The process of before is gone, since another one gets the lock.
            volumes[at].1 = None;
            let faults = match below(2) {
                0 => Faults::default(),
                _ => Faults::after(below(60) as i64),
            };
            let started = Coordinator::start(volumes[at].0.path(), &url, faults, 1 + below(5) as u32);
            if let Ok(coordinator) = &started {
                let jobs = coordinator.jobs();
                assert!(jobs.is_superset(&acknowledged), "seed {seed}: {jobs:?} of {acknowledged:?}");
            }
            volumes[at].1 = started.ok();
        }
        let at = below(volumes.len() as u64) as usize;
        let Some(coordinator) = &mut volumes[at].1 else {
            continue;
        };
        tried.insert(job);
        match coordinator.step(job) {
            Ok(()) => {
                acknowledged.insert(job);
            }
            // Its engine stops then.
            Err(_) => volumes[at].1 = None,
        }
    }
    let restored = on_empty_volume(&url);
    assert!(restored.is_superset(&acknowledged), "seed {seed}: {restored:?} of {acknowledged:?}");
    assert!(restored.is_subset(&tried), "seed {seed}");
}

#[test]
fn of_any_number_of_coordinators_only_the_leader_acknowledges() {
    (0..200).for_each(several);
}

#[test]
fn a_leader_that_was_held_up_learns_of_its_successor_even_when_the_log_of_that_time_is_gone() {
    let url = fresh_url();
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut held_up = Coordinator::start(first.path(), &url, Faults::default(), 1_000).unwrap();
    held_up.step(1).unwrap();
    let mut leader = Coordinator::start(second.path(), &url, Faults::default(), 2).unwrap();
    for job in 2..20 {
        leader.step(job).unwrap();
    }
    let log = runtime().block_on(objects(&url).log()).unwrap();
    assert!(log.len() < 8, "{log:?}");
    let refused = held_up.step(99).unwrap_err();
    assert!(matches!(&refused, StateError::Succeeded { .. }), "{refused}");
    assert_eq!(on_empty_volume(&url), BTreeSet::from_iter(1..20));
}

#[test]
fn a_seal_where_the_leader_has_gone_on_and_removed_its_log_gives_no_lead() {
    let (url, directory) = (fresh_url(), tempfile::tempdir().unwrap());
    let mut leader = Coordinator::start(directory.path(), &url, Faults::default(), 2).unwrap();
    let log = runtime().block_on(objects(&url).log()).unwrap();
    let stale = log.last().unwrap().after(Kind::Pages);
    for job in 0..9 {
        leader.step(job).unwrap();
    }
    let writer = Writer { process: "a standby that was held up".into(), directory: "other".into(), id: "other".into() };
    let (from, machine) = (objects(&url), machine());
    let seal = Lead::seal(&from, &writer, stale, &machine);
    let sealed = runtime().block_on(seal).unwrap();
    assert!(sealed.is_none());
    leader.step(9).unwrap();
    assert_eq!(on_empty_volume(&url), BTreeSet::from_iter(0..10));
}

#[test]
fn a_standby_does_not_lead_before_the_silence_has_lasted() {
    let (url, directory) = (fresh_url(), tempfile::tempdir().unwrap());
    let mut leader = Coordinator::start(directory.path(), &url, Faults::default(), 1_000).unwrap();
    let other = tempfile::tempdir().unwrap();
    let pace = Pace { look: Duration::from_millis(1), silence: Duration::from_secs(3_600) };
    let path: PathBuf = other.path().into();
    let opening = async move { open_with(&path, objects(&url), pace, 1_000, machine()).await };
    let standby = runtime().spawn(async move { opening.await.map(drop) });
    for job in 0..50 {
        leader.step(job).unwrap();
    }
    assert!(!standby.is_finished());
    standby.abort();
}

#[test]
fn a_leader_that_gives_up_the_lead_is_followed_at_once() {
    let (url, [first, second]) = (fresh_url(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let mut leader = Coordinator::start(first.path(), &url, Faults::default(), 3).unwrap();
    (0..7).for_each(|job| leader.step(job).unwrap());
    let patient = Pace { look: Duration::from_millis(1), silence: Duration::from_secs(3_600) };
    let (path, from): (PathBuf, _) = (second.path().into(), objects(&url));
    let standby = runtime().spawn(async move { open_with(&path, from, patient, 3, machine()).await });
    leader.step(7).unwrap();
    assert!(!standby.is_finished());
    runtime().block_on(leader.store.close()).unwrap();
    let next = Coordinator { store: runtime().block_on(standby).unwrap().unwrap(), cluster: leader.cluster };
    assert_eq!(next.jobs(), BTreeSet::from_iter(0..8));
    // A coordinator of an earlier version reads a sign of life there, and waits as it did.
    let log = runtime().block_on(objects(&url).log()).unwrap();
    let end = log[log.len() - 2];
    let entry = runtime().block_on(Store::open(&url).unwrap().get(&format!("log/{end}"))).unwrap();
    let head: serde_json::Value = serde_json::from_slice(&entry).unwrap();
    assert_eq!((&head["kind"], &head["ends"]), (&"beat".into(), &true.into()));
}

#[test]
fn a_state_that_was_there_before_its_replica_is_copied_and_another_one_is_refused() {
    let url = fresh_url();
    let [here, there] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for (directory, job) in [(&here, "00007"), (&there, "00008")] {
        let mut store = StateStore::open(directory.path()).unwrap();
        store.set_owner(job, "x").unwrap();
    }
    drop(Coordinator::start(here.path(), &url, Faults::default(), 9).unwrap());
    assert_eq!(on_empty_volume(&url), BTreeSet::from([7]));
    let refused = Coordinator::start(there.path(), &url, Faults::default(), 9).err().unwrap();
    assert!(refused.to_string().contains("it is no copy of memory://"), "{refused}");
    // A directory that went on without its replica is no copy any more.
    super::forget(here.path());
    assert!(Coordinator::start(here.path(), &url, Faults::default(), 9).is_err());
}

#[test]
fn more_than_the_write_ahead_log_holds_is_copied() {
    let (url, directory) = (fresh_url(), tempfile::tempdir().unwrap());
    let mut leader = Coordinator::start(directory.path(), &url, Faults::default(), 1_000).unwrap();
    let text = "x".repeat(3 << 20);
    for job in 0..9 {
        leader.store.set_owner(&format!("{job:05}"), &text).unwrap();
        leader.step(100 + job).unwrap();
    }
    assert!(leader.store.replica.as_ref().unwrap().log.read() < 12 << 20);
    // What another process reads meanwhile keeps the log from starting anew, and nothing is missed.
    let reader = StateStore::open_read_only(directory.path()).unwrap();
    reader.connection.execute_batch("BEGIN; SELECT * FROM owners").unwrap();
    for job in 9..18 {
        leader.store.set_owner(&format!("{job:05}"), &text).unwrap();
        leader.step(100 + job).unwrap();
    }
    drop(reader);
    for job in 18..24 {
        leader.store.set_owner(&format!("{job:05}"), &text).unwrap();
        leader.step(100 + job).unwrap();
    }
    assert_eq!(on_empty_volume(&url), BTreeSet::from_iter((0..24).chain(100..124)));
}

#[test]
fn a_log_with_a_gap_is_refused_by_the_name_of_what_is_missing() {
    let (folder, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = folder.path().to_str().unwrap();
    let mut leader = Coordinator::start(directory.path(), url, Faults::default(), 1_000).unwrap();
    (0..5).for_each(|job| leader.step(job).unwrap());
    let missing = Position { term: 1, number: 3 };
    std::fs::remove_file(folder.path().join(format!("log/{missing}"))).unwrap();
    let refused = Coordinator::start(directory.path(), url, Faults::default(), 9).err().unwrap();
    assert!(refused.to_string().contains(&missing.to_string()), "{refused}");
}
