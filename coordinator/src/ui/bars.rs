//! Bars with rates and the time that remains.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use llink_proto::{Event, Job, Stage, StageState};

use super::lines;

/// A bar for each stage that has begun.
#[derive(Debug)]
pub struct Bars {
    screen: MultiProgress,
    bars: BTreeMap<String, (String, ProgressBar)>,
}

impl Bars {
    pub(super) fn new() -> Self {
        Self {
            screen: MultiProgress::new(),
            bars: BTreeMap::new(),
        }
    }

    pub(super) fn show(&mut self, job: &Job, events: &[Event]) {
        for event in events.iter().filter(|e| e.level != "info") {
            // Lines above the bars; a terminal that went away is no reason to fail.
            let _ = self.screen.println(super::event_line(event));
        }
        for stage in &job.stages {
            self.show_stage(stage);
        }
    }

    pub(super) fn close(self) {
        for (_, bar) in self.bars.values() {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }

    fn show_stage(&mut self, stage: &Stage) {
        if matches!(stage.state(), StageState::Waiting | StageState::Unspecified) {
            return;
        }
        let new = || {
            let bar = self.screen.add(ProgressBar::new(0));
            let unit = stage.unit.clone();
            bar.set_style(
                style("{prefix:>9} {bar:24} {human_pos}/{human_len} {rate} {eta} left  {msg}").with_key(
                    "rate",
                    // A broken terminal shows in the drawing itself.
                    move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                        let _ = write!(out, "{:.0} {unit}/s", state.per_sec());
                    },
                ),
            );
            bar.set_prefix(stage.name.clone());
            (String::new(), bar)
        };
        let (phase, bar) = self.bars.entry(stage.name.clone()).or_insert_with(new);
        if bar.is_finished() {
            return;
        }
        match stage.state() {
            StageState::Running => {
                // A new phase counts anew, so that its rate is its own.
                if *phase != stage.reason {
                    phase.clone_from(&stage.reason);
                    bar.reset();
                }
                bar.set_length(stage.total.max(stage.done));
                bar.set_position(stage.done);
                bar.set_message(format!("{} {}", stage.reason, lines::figures(stage)));
            }
            _ => {
                bar.set_style(style("{prefix:>9} {msg}"));
                bar.finish_with_message(lines::outcome(stage));
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates above are well formed")
        .progress_chars("━╸ ")
}
