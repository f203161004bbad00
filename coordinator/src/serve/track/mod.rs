//! Tells the programs of `[track]` a job's figures while it runs, and its end.
//!
//! The tracker reads the engine once a second. Each program has a [`Feed`]: a task with a bounded queue, which tries again
//! for as long as needed. So a program that is slow or gone delays neither the job nor another program.

mod feed;
mod http;
mod mlflow;
mod program;
#[cfg(test)]
mod tests;
mod trackio;
mod webhook;

use std::collections::HashMap;
use std::time::Duration;

use llink_proto::{Job, JobState, StageState};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::engine::{Engine, EngineHandle, EngineStopped};
use super::page::curves::step_of;
use crate::job::{JobFile, TrackSection};
use crate::machine::unix_ms;
use crate::schedule::Millis;
use feed::Feed;
use program::Program;

const INTERVAL: Duration = Duration::from_secs(1);
/// The interval between two reads while the coordinator stops.
const LAST_INTERVAL: Duration = Duration::from_millis(50);
/// The time that a coordinator that stops leaves for the ends of jobs. The next one on its state tells what is left.
const LAST_MOMENT: Duration = Duration::from_secs(10);
/// The time for an answer of the engine while the coordinator stops.
const ENGINE_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq)]
struct Point {
    /// The stage and the figure, such as `align/loss`.
    name: String,
    step: u64,
    value: f64,
    at: Millis,
}

/// What a tracker is told of a job at first.
#[derive(Debug, Clone)]
struct Run {
    experiment: String,
    job: String,
    submitted_at: Millis,
    /// The job file.
    config: Value,
}

/// A job of which its programs do not know all yet.
struct Watched {
    submitted_at: Millis,
    /// The queue of each program, with the program's key.
    feeds: Vec<(&'static str, Feed)>,
}

struct Look {
    job: Job,
    /// The keys of the programs that do not know all of the job yet.
    open: Vec<&'static str>,
    file: Option<Box<JobFile>>,
}

/// Checks that this coordinator has the secrets that a job names.
pub(super) fn check_secrets(file: &JobFile) -> Result<(), String> {
    let mut variables = file.track.iter().flat_map(TrackSection::variables);
    variables.try_for_each(|(key, name)| match secret(name) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("`{key}`: {e}")),
    })
}

/// Reads a secret from a variable, or from the file that the variable with `_FILE` behind its name names.
fn secret(name: &str) -> Result<String, String> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let text = match (set(name), set(&format!("{name}_FILE"))) {
        (Some(text), _) => text,
        (None, Some(path)) => std::fs::read_to_string(&path).map_err(|e| format!("{name}_FILE: {path}: {e}"))?,
        (None, None) => {
            return Err(format!(
                "neither {name} nor {name}_FILE is set on the coordinator: one of them must give the secret"
            ));
        }
    };
    Ok(text.trim().to_owned())
}

/// Tells programs what they do not know yet, until `stopped`, and then the ends of jobs for a moment.
pub(super) async fn keep(engine: EngineHandle, mut stopped: watch::Receiver<bool>) {
    let (mut watched, mut last) = (HashMap::new(), None);
    loop {
        let stops = *stopped.borrow();
        // An engine that waits for its disk or its replica is not waited for.
        let patience = if stops { ENGINE_PATIENCE } else { Duration::MAX };
        if !matches!(timeout(patience, see(&engine, &mut watched)).await, Ok(Ok(()))) {
            return;
        }
        if stops {
            let last = *last.get_or_insert_with(|| Instant::now() + LAST_MOMENT);
            if Instant::now() > last || !watched.values().any(Watched::is_delivering) {
                return;
            }
        }
        let interval = if stops { LAST_INTERVAL } else { INTERVAL };
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            // Without a sender the server has ended.
            changed = stopped.changed(), if !stops => if changed.is_err() { return },
        }
    }
}

/// Reads the engine once, passes the news on, and records the programs that know all.
async fn see(engine: &EngineHandle, watched: &mut HashMap<String, Watched>) -> Result<(), EngineStopped> {
    let known: HashMap<String, Millis> = watched.iter().map(|(id, of)| (id.clone(), of.submitted_at)).collect();
    let looks = engine.call(move |engine| look(engine, &known)).await?;
    watched.retain(|id, _| looks.iter().any(|look| look.job.id == *id));
    for Look { job, open, file } in looks {
        if let Some(file) = file {
            let programs = Program::all_of(&file, &job).into_iter();
            let programs = programs.filter(|(key, _)| open.contains(key));
            let new = Watched {
                submitted_at: job.submitted_at,
                feeds: programs.map(|(key, program)| (key, Feed::start(program, engine.clone(), &job.id))).collect(),
            };
            watched.insert(job.id.clone(), new);
        }
        let Some(of) = watched.get_mut(&job.id) else { continue };
        let points = points(&job, unix_ms());
        let ended = (job.state() != JobState::Running).then_some(&job);
        for (key, feed) in &mut of.feeds {
            feed.pass(&points, ended);
            if ended.is_some() && feed.is_over() && open.contains(key) {
                let (id, key, ended_at) = (job.id.clone(), *key, job.ended_at);
                let saved = engine.call(move |engine| engine.set_told(&id, key, ended_at)).await?;
                if let Err(e) = saved {
                    tracing::warn!("that {key} was told of the end of job {} can't be recorded: {e}", job.id);
                }
            }
        }
    }
    Ok(())
}

impl Watched {
    /// Whether the job has ended, and a program that answers does not know it yet.
    fn is_delivering(&self) -> bool {
        self.feeds.iter().any(|(_, feed)| feed.is_delivering())
    }
}

fn look(engine: &Engine, known: &HashMap<String, Millis>) -> Vec<Look> {
    let look = |job: &crate::schedule::Job| {
        let programs = job.file.track.iter().flat_map(TrackSection::urls).map(|(key, _)| key);
        let is_open = |key: &&str| job.state == JobState::Running || engine.told(&job.id, key) != job.ended_at;
        let open: Vec<&'static str> = programs.filter(is_open).collect();
        if open.is_empty() {
            return None;
        }
        let is_new = known.get(&job.id) != Some(&job.submitted_at);
        Some(Look { job: engine.cluster.view(&job.id)?, open, file: is_new.then(|| Box::new(job.file.clone())) })
    };
    engine.cluster.jobs.values().filter_map(look).collect()
}

/// Returns the newest figures of the trainings that run, and the figures of the stages that are complete.
fn points(job: &Job, at: Millis) -> Vec<Point> {
    let mut points = Vec::new();
    for stage in &job.stages {
        let trains = stage.state() == StageState::Running && stage.unit == "steps";
        if !trains && !matches!(stage.state(), StageState::Done | StageState::Cached) {
            continue;
        }
        let finite = stage.figures.iter().filter(|(_, value)| value.is_finite());
        points.extend(finite.map(|(name, value)| Point {
            name: plain(&format!("{}/{name}", stage.name)),
            step: if trains { step_of(stage, name) } else { stage.done },
            value: *value,
            at,
        }));
    }
    points
}

/// Returns a name with only the characters that every tracker takes.
fn plain(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect()
}
