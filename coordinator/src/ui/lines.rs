//! Progress lines at intervals, for output to a file or a pipe.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use llink_datasets::measured::{Retrieval, Retriever};
use llink_proto::{Event, Job, Stage, StageState};

use super::output::tell;
use super::pace::Pace;
use super::{seconds, stage_word, thousands};

/// The interval between two lines about a running stage.
const EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Lines {
    began: Instant,
    states: BTreeMap<String, i32>,
    mentioned: Option<Instant>,
    paces: BTreeMap<String, Pace>,
}

impl Default for Lines {
    fn default() -> Self {
        Self { began: Instant::now(), states: BTreeMap::new(), mentioned: None, paces: BTreeMap::new() }
    }
}

impl Lines {
    pub(super) fn show(&mut self, job: &Job, events: &[Event]) {
        for event in events.iter().filter(|e| e.level != "info") {
            tell(&super::event_line(event));
        }
        let due = self.mentioned.is_none_or(|at| at.elapsed() >= EVERY);
        for stage in &job.stages {
            let changed = self.states.insert(stage.name.clone(), stage.state) != Some(stage.state);
            let waiting = matches!(stage.state(), StageState::Waiting | StageState::Unspecified);
            let running = stage.state() == StageState::Running;
            let mut pace = String::new();
            if running {
                let seen = self.paces.entry(stage.name.clone()).or_default();
                seen.see(stage, self.began.elapsed());
                pace = seen.text(stage);
            }
            if (changed && !waiting && !running) || (running && due && stage.total > 0) {
                let comma = if pace.is_empty() { "" } else { ", " };
                tell(&super::indented(&format!("{}{comma}{pace}", stage_line(stage))));
                self.mentioned = Some(Instant::now());
            }
        }
    }
}

/// Formats a stage: `align running 1,200/2,000 steps loss 1.234`.
pub(super) fn stage_line(stage: &Stage) -> String {
    match stage.state() {
        StageState::Running => {
            let (done, total) = (thousands(stage.done), thousands(stage.total));
            let figures = figures(stage);
            let text = format!("{:10} {done}/{total} {}  {} {figures}", stage.name, stage.unit, stage.reason);
            text.trim_end().to_owned()
        }
        StageState::Waiting | StageState::Unspecified => format!("{:10} waiting  {}", stage.name, stage.reason),
        _ => format!("{:10} {}", stage.name, outcome(stage)),
    }
}

pub(crate) fn outcome(stage: &Stage) -> String {
    match stage.state() {
        StageState::Done => {
            let total = thousands(stage.total);
            let text = format!("done in {:.1} s: {total} {} {}", seconds(stage), stage.unit, figures(stage));
            text.trim_end().to_owned()
        }
        StageState::Cached => format!("cached under key {}", stage.key),
        _ => format!("{}: {}", stage_word(stage), stage.reason),
    }
}

pub(crate) fn figures(stage: &Stage) -> String {
    let worth = ["loss", "temperature", "pairs_per_s", "ranks"];
    let figure = |name: &&str| stage.figures.get(*name).map(|v| format!("{name} {}", short(*v)));
    // The metric of the training comes after plain cosine.
    let rows = Retrieval::rows(&stage.figures);
    let aligned = rows.iter().rfind(|row| row.retriever == Retriever::StageA);
    let aligned = aligned.map(|row| format!("R@1 {:.3}", row.r1));
    let shown: Vec<String> = worth.iter().filter_map(figure).chain(aligned).collect();
    shown.join(" ")
}

fn short(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 { thousands(value.max(0.0) as u64) } else { format!("{value:.3}") }
}
