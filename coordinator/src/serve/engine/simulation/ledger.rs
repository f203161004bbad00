//! The ledger notes every lease and every acknowledgement, and checks them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::FutureExt;
use llink_datasets::manifest::{Manifest, sha256_hex};
use llink_proto::{Assignment, ReportRequest, TaskResult};
use object_store::ObjectStoreExt;

use super::process::Server;
use super::{Fault, Sim};

/// The stage, role, rows and hash of every artifact of a job.
pub(super) type Results = Vec<(String, String, u64, String)>;

#[derive(Default)]
pub(super) struct Ledger {
    /// The worker of each lease, by coordinator, task, token and rank.
    leases: BTreeMap<(usize, u64, u64, u32), usize>,
    /// Accepted reports by coordinator, task, token and worker.
    acknowledged: BTreeSet<(usize, u64, u64, String)>,
    /// The number of accepted results for each path.
    done: BTreeMap<(usize, String), u32>,
    /// Jobs whose submission was acknowledged.
    pub(super) submitted: BTreeSet<(usize, String)>,
    /// The knowledge of each coordinator that died right after a save.
    pub(super) known: BTreeMap<usize, Vec<String>>,
    /// The paths of each job's manifests at the end.
    pub(super) made: BTreeMap<usize, Vec<String>>,
}

impl Ledger {
    pub(super) fn leased(&mut self, server: &Server, worker: usize, start: &Assignment) {
        let rank = start.seat.map_or(0, |seat| seat.rank);
        let lease = (server.place, start.task_id, start.token, rank);
        let before = self.leases.insert(lease, worker);
        assert_eq!(before, None, "lease {lease:?} was given to worker {worker} too");
    }

    /// Notes an accepted report. `made` is its result, unless a gang made it.
    pub(super) fn acknowledged(&mut self, server: &Server, report: &ReportRequest, made: Option<&TaskResult>) {
        let of = (server.place, report.task_id, report.token, report.worker_id.clone());
        assert!(self.acknowledged.insert(of.clone()), "{of:?} was acknowledged twice");
        let files = made.into_iter().flat_map(|made| &made.artifacts);
        for file in files.filter(|file| !file.sha256.is_empty()) {
            *self.done.entry((server.place, file.path.clone())).or_default() += 1;
        }
    }

    /// Checks a run at its end, and returns the results of each job.
    pub(super) fn checked(&self, sim: &Sim) -> BTreeMap<usize, Results> {
        let vanishes = sim.plan.faults.contains(&Fault::Vanishes);
        // One of several coordinators may take over another's work, and folded tasks are forgotten.
        if !vanishes && !sim.plan.folds && sim.plan.places == 1 {
            for (path, times) in &self.done {
                assert_eq!(*times, 1, "{path:?} was acknowledged, lost, and made again");
            }
        }
        let made = self.made.iter();
        made.map(|(job, manifests)| (*job, manifests.iter().flat_map(|path| of_stage(sim, path)).collect())).collect()
    }
}

fn read(sim: &Sim, path: &str) -> Bytes {
    let path = format!("out/{path}").into();
    let found = sim.inside.get(&path).now_or_never().unwrap();
    let found = found.unwrap_or_else(|e| panic!("a manifest counts, and {path} is gone: {e}"));
    found.bytes().now_or_never().unwrap().unwrap()
}

/// Returns the artifacts of a manifest, all of which must exist.
fn of_stage(sim: &Sim, path: &str) -> Results {
    let manifest: Manifest = serde_json::from_slice(&read(sim, path)).unwrap();
    let files = manifest.artifacts.into_iter().map(|file| {
        assert_eq!(sha256_hex(&read(sim, &file.path)), file.sha256, "{} is not what its manifest says", file.path);
        (manifest.stage.clone(), file.role.to_string(), file.rows, file.sha256)
    });
    files.collect()
}
