//! A line now and then, for output that goes to a file or a pipe.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use llink_proto::{Event, Job, Stage, StageState};

use super::{seconds, stage_word, thousands};

/// How often a running stage is mentioned.
const EVERY: Duration = Duration::from_secs(5);

/// What was shown last.
#[derive(Debug, Default)]
pub struct Lines {
    states: BTreeMap<String, i32>,
    mentioned: Option<Instant>,
    last: BTreeMap<String, (u64, Instant)>,
}

impl Lines {
    pub(super) fn show(&mut self, job: &Job, events: &[Event]) {
        for event in events.iter().filter(|e| e.level != "info") {
            print(&super::event_line(event));
        }
        let due = self.mentioned.is_none_or(|at| at.elapsed() >= EVERY);
        for stage in &job.stages {
            let changed = self.states.insert(stage.name.clone(), stage.state) != Some(stage.state);
            let waiting = matches!(stage.state(), StageState::Waiting | StageState::Unspecified);
            let running = stage.state() == StageState::Running;
            if (changed && !waiting && !running) || (running && due && stage.total > 0) {
                print(&format!("{}{}", stage_line(stage), self.rate(stage)));
                self.mentioned = Some(Instant::now());
            }
        }
    }

    /// `, 1,234 rows/s, 12 s left`, from the progress since the last mention.
    fn rate(&mut self, stage: &Stage) -> String {
        if stage.state() != StageState::Running {
            return String::new();
        }
        let now = Instant::now();
        let before = self.last.insert(stage.name.clone(), (stage.done, now));
        let Some((done, at)) = before.filter(|(done, _)| *done < stage.done) else {
            return String::new();
        };
        let rate = (stage.done - done) as f64 / now.duration_since(at).as_secs_f64().max(1e-3);
        let left = stage.total.saturating_sub(stage.done) as f64 / rate;
        format!(", {} {}/s, {left:.0} s left", thousands(rate as u64), stage.unit)
    }
}

fn print(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// `align     running  1,200/2,000 steps  loss 1.234`
pub(super) fn stage_line(stage: &Stage) -> String {
    match stage.state() {
        StageState::Running => {
            let (done, total) = (thousands(stage.done), thousands(stage.total));
            let figures = figures(stage);
            let text = format!(
                "{:9} {done}/{total} {}  {} {figures}",
                stage.name, stage.unit, stage.reason
            );
            text.trim_end().to_owned()
        }
        StageState::Waiting | StageState::Unspecified => format!("{:9} waiting  {}", stage.name, stage.reason),
        _ => format!("{:9} {}", stage.name, outcome(stage)),
    }
}

/// How a stage ended.
pub(super) fn outcome(stage: &Stage) -> String {
    match stage.state() {
        StageState::Done => {
            let total = thousands(stage.total);
            let text = format!(
                "done in {:.1} s: {total} {} {}",
                seconds(stage),
                stage.unit,
                figures(stage)
            );
            text.trim_end().to_owned()
        }
        StageState::Cached => format!("cached under key {}", stage.key),
        _ => format!("{}: {}", stage_word(stage), stage.reason),
    }
}

/// The figures worth a place beside a bar.
pub(super) fn figures(stage: &Stage) -> String {
    let worth = ["loss", "temperature", "after.r1", "pairs_per_s", "ranks"];
    let shown: Vec<String> = worth
        .iter()
        .filter_map(|name| stage.figures.get(*name).map(|v| format!("{name} {}", short(*v))))
        .collect();
    shown.join(" ")
}

fn short(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 {
        thousands(value.max(0.0) as u64)
    } else {
        format!("{value:.3}")
    }
}
