//! A program's queue, and the task that empties it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use llink_proto::Job;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::Point;
use super::program::Program;
use crate::machine::unix_ms;
use crate::schedule::Millis;
use crate::serve::engine::EngineHandle;

/// The most batches of figures that wait. While the queue is full no more are taken, and the curve gets coarser.
const QUEUED: usize = 600;
/// The wait before the second try. Each further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The time after a job's end in which a program is tried.
const TRIED_FOR: Millis = 24 * 60 * 60 * 1000;

pub(super) struct Feed {
    /// Closed once the program needs no more figures.
    pub(super) points: Option<mpsc::Sender<Vec<Point>>>,
    ended: watch::Sender<Option<Arc<Job>>>,
    /// The step and the value of each figure that the queue took last.
    pub(super) passed: HashMap<String, (u64, f64)>,
    fails: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Feed {
    /// Starts to tell a program of a job. Without a program, the job gets a warning with the reason.
    pub(super) fn start(program: Result<Program, String>, engine: EngineHandle, job: &str) -> Self {
        let (points, queue) = mpsc::channel(QUEUED);
        let (ended, end) = watch::channel(None);
        let fails = Arc::new(AtomicBool::new(false));
        let log = Log { engine, job: job.to_owned(), fails: fails.clone(), warned: false };
        let task = tokio::spawn(async move {
            match program {
                Ok(program) => tell(program, queue, end, log).await,
                Err(reason) => log.warn(reason),
            }
        });
        Self { points: Some(points), ended, passed: HashMap::new(), fails, task }
    }

    /// Queues the figures that changed, and then the end of the job. What finds no place is passed again at the next read.
    pub(super) fn pass(&mut self, points: &[Point], ended: Option<&Job>) {
        let Some(queue) = &self.points else { return };
        let is_new = |point: &&Point| self.passed.get(&point.name) != Some(&(point.step, point.value));
        let new: Vec<Point> = points.iter().filter(is_new).cloned().collect();
        if !new.is_empty() {
            let passed: Vec<_> = new.iter().map(|p| (p.name.clone(), (p.step, p.value))).collect();
            if let Err(mpsc::error::TrySendError::Full(_)) = queue.try_send(new) {
                return;
            }
            self.passed.extend(passed);
        }
        if let Some(job) = ended {
            self.ended.send_replace(Some(Arc::new(job.clone())));
            self.points = None;
        }
    }

    /// Whether the program knows all, or is not told any more.
    pub(super) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Whether the job has ended, and the program answers and does not know it yet.
    pub(super) fn is_delivering(&self) -> bool {
        self.points.is_none() && !self.is_over() && !self.fails.load(Ordering::Relaxed)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The warnings that the job's events get: one when the program fails first, and one when it is given up.
struct Log {
    engine: EngineHandle,
    job: String,
    fails: Arc<AtomicBool>,
    warned: bool,
}

impl Log {
    fn warn(&self, text: String) {
        let job = self.job.clone();
        self.engine.tell(move |engine| engine.step(|cluster, now, fx| cluster.warn(&job, text, now, fx)));
    }
}

async fn tell(
    mut program: Program,
    mut queue: mpsc::Receiver<Vec<Point>>,
    end: watch::Receiver<Option<Arc<Job>>>,
    mut log: Log,
) {
    loop {
        let mut batches = Vec::new();
        let is_last = queue.recv_many(&mut batches, QUEUED).await == 0;
        let ended = end.borrow().clone();
        let ended = ended.filter(|_| is_last);
        if is_last && ended.is_none() {
            return;
        }
        let told = tell_once(&mut program, &batches.concat(), ended.as_deref(), &end, &mut log).await;
        if told.is_err() || is_last {
            return;
        }
    }
}

struct GivenUp;

async fn tell_once(
    program: &mut Program,
    points: &[Point],
    ended: Option<&Job>,
    end: &watch::Receiver<Option<Arc<Job>>>,
    log: &mut Log,
) -> Result<(), GivenUp> {
    let mut wait = FIRST_WAIT;
    loop {
        let Err(fault) = program.tell(points, ended).await else {
            log.fails.store(false, Ordering::Relaxed);
            return Ok(());
        };
        log.fails.store(true, Ordering::Relaxed);
        let ended_at = end.borrow().as_ref().map(|job| job.ended_at);
        let is_late = ended_at.is_some_and(|at| unix_ms() - at > TRIED_FOR);
        if !fault.passes || is_late {
            log.warn(format!("{program} is told no more of this job: {}", fault.text));
            return Err(GivenUp);
        }
        if !log.warned {
            log.warned = true;
            log.warn(format!(
                "{program} can't be told of this job now: {}. The job continues, and it is tried again",
                fault.text
            ));
        }
        tokio::time::sleep(fault.wait.unwrap_or(wait).min(LONGEST_WAIT)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}
