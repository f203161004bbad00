//! The board: the content of the page. It is read from the engine once a second for all watchers, so that watchers cost
//! the engine nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use llink_proto::{Job, JobState, StageState};
use tokio::sync::watch;

use super::curves::{Chart, Curves};
use crate::schedule::{Cluster, Millis, WorkerView};
use crate::serve::engine::EngineHandle;
use crate::ui::pace::Pace;

const INTERVAL: Duration = Duration::from_secs(1);
/// The divisor of the engine's time. Reads take at most 1 / `SHARE` of it.
const SHARE: u32 = 20;
/// The most jobs that are shown, the newest.
const JOBS: usize = 200;
pub(super) const WORKERS: usize = 200;

#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) job: Job,
    /// The speed and the remaining time of each running stage.
    pub(super) paces: BTreeMap<String, String>,
    pub(super) charts: Vec<(String, Vec<Chart>)>,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Board {
    pub(super) jobs: Vec<Arc<Seen>>,
    /// The number of older jobs, which are not listed.
    pub(super) older: usize,
    pub(super) workers: Vec<WorkerView>,
    pub(super) workers_total: usize,
}

impl Board {
    pub(super) fn job(&self, id: &str) -> Option<&Arc<Seen>> {
        self.jobs.iter().find(|seen| seen.job.id == id)
    }
}

/// The result of one read. A job that had already ended is not read again.
struct Look {
    jobs: Vec<(String, Option<Job>)>,
    /// The board without jobs.
    board: Board,
    took: Duration,
}

impl Look {
    fn at(cluster: &Cluster, ended: &HashMap<String, Millis>) -> Self {
        let began = Instant::now();
        let mut ages: Vec<_> = cluster.jobs.values().map(|job| (job.submitted_at, &job.id)).collect();
        ages.sort_unstable_by(|a, b| b.cmp(a));
        let look = |(_, id): &(Millis, &String)| {
            let job = cluster.jobs.get(*id)?;
            let known = job.state != JobState::Running && job.ended_at.is_some_and(|at| ended.get(*id) == Some(&at));
            Some(((*id).clone(), if known { None } else { cluster.view(id) }))
        };
        Self {
            jobs: ages.iter().take(JOBS).filter_map(look).collect(),
            board: Board {
                jobs: Vec::new(),
                older: ages.len().saturating_sub(JOBS),
                workers: cluster.worker_views(WORKERS),
                workers_total: cluster.workers.len(),
            },
            took: began.elapsed(),
        }
    }
}

#[derive(Default)]
struct Watcher {
    paces: HashMap<(String, String), Pace>,
    curves: HashMap<String, BTreeMap<String, Curves>>,
}

impl Watcher {
    /// Returns the board after a read at the time `at`, which counts from any fixed moment.
    fn see(&mut self, before: &Board, look: Look, at: Duration) -> Board {
        let jobs = look.jobs.into_iter().filter_map(|(id, job)| match job {
            Some(job) => Some(Arc::new(self.see_job(job, at))),
            None => before.job(&id).cloned(),
        });
        let board = Board { jobs: jobs.collect(), ..look.board };
        self.paces.retain(|(id, _), _| board.job(id).is_some_and(|seen| is_running(&seen.job)));
        self.curves.retain(|id, _| board.job(id).is_some());
        board
    }

    fn see_job(&mut self, job: Job, at: Duration) -> Seen {
        let mut paces = BTreeMap::new();
        let curves = self.curves.entry(job.id.clone()).or_default();
        for stage in job.stages.iter().filter(|stage| stage.state() == StageState::Running) {
            let pace = self.paces.entry((job.id.clone(), stage.name.clone())).or_default();
            pace.see(stage, at);
            let text = pace.text(stage);
            if !text.is_empty() {
                paces.insert(stage.name.clone(), text);
            }
            curves.entry(stage.name.clone()).or_default().see(stage);
        }
        let charts = curves.iter().map(|(stage, curves)| (stage.clone(), curves.charts()));
        Seen { charts: charts.filter(|(_, charts)| !charts.is_empty()).collect(), paces, job }
    }
}

fn is_running(job: &Job) -> bool {
    job.state() == JobState::Running
}

/// Updates the board until `stopped`, and once more after that.
pub(super) async fn keep(engine: EngineHandle, board: watch::Sender<Arc<Board>>, mut stopped: watch::Receiver<bool>) {
    let (mut watcher, began) = (Watcher::default(), Instant::now());
    loop {
        let is_last = *stopped.borrow();
        let before = board.borrow().clone();
        let ended = before.jobs.iter().filter(|seen| !is_running(&seen.job));
        let ended: HashMap<String, Millis> = ended.map(|seen| (seen.job.id.clone(), seen.job.ended_at)).collect();
        let Ok(look) = engine.call(move |e| Look::at(&e.cluster, &ended)).await else {
            return;
        };
        let wait = INTERVAL.max(look.took * SHARE);
        board.send_replace(Arc::new(watcher.see(&before, look, began.elapsed())));
        if is_last {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Without a sender the server has ended.
            changed = stopped.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use llink_proto::Stage;

    use super::*;

    fn look(done: u64, state: JobState) -> Look {
        let stage = Stage {
            name: "align".into(),
            state: StageState::Running.into(),
            unit: "steps".into(),
            reason: "train".into(),
            done,
            total: 100,
            figures: [("loss".to_owned(), 1.0 / done as f64)].into(),
            ..Stage::default()
        };
        let job = Job { id: "a".into(), state: state.into(), stages: vec![stage], ..Job::default() };
        Look { jobs: vec![("a".into(), Some(job))], board: Board::default(), took: Duration::ZERO }
    }

    #[test]
    fn a_running_job_has_its_pace_and_curves_and_an_ended_one_keeps_its_curves() {
        let (mut watcher, mut board) = (Watcher::default(), Board::default());
        for second in 1..5 {
            board = watcher.see(&board, look(second, JobState::Running), Duration::from_secs(second));
        }
        let seen = board.job("a").unwrap();
        assert_eq!(seen.paces["align"], "1.0 steps/s, 2 min left");
        assert_eq!(seen.charts[0].1[0].steps, [1, 2, 3, 4]);
        let ended = watcher.see(&board, look(100, JobState::Succeeded), Duration::from_secs(9));
        assert!(watcher.paces.is_empty());
        // An ended job is not read again.
        let known = Look { jobs: vec![("a".into(), None)], ..look(0, JobState::Succeeded) };
        let later = watcher.see(&ended, known, Duration::from_secs(10));
        assert_eq!(later.job("a"), ended.job("a"));
        assert_eq!(later.job("a").unwrap().charts[0].1[0].steps.last(), Some(&100));
    }
}
