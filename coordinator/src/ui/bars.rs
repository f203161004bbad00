//! Progress bars with rates and the remaining time.

use std::collections::BTreeMap;
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use llink_proto::{Event, Job, Stage, StageState, shown};

use super::lines;
use super::pace::Pace;

#[derive(Debug)]
pub struct Bars {
    screen: MultiProgress,
    began: Instant,
    bars: BTreeMap<String, (Pace, ProgressBar)>,
}

impl Bars {
    pub(super) fn new() -> Self {
        Self { screen: MultiProgress::new(), began: Instant::now(), bars: BTreeMap::new() }
    }

    pub(super) fn show(&mut self, job: &Job, events: &[Event]) {
        for event in events.iter().filter(|e| e.level != "info") {
            // The line goes above the bars. A closed terminal is not an error.
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
            bar.set_style(style("{prefix:>10} {bar:24} {human_pos}/{human_len}  {msg}"));
            bar.set_prefix(shown::line(&stage.name).into_owned());
            (Pace::default(), bar)
        };
        let (pace, bar) = self.bars.entry(stage.name.clone()).or_insert_with(new);
        if bar.is_finished() {
            return;
        }
        match stage.state() {
            StageState::Running => {
                pace.see(stage, self.began.elapsed());
                bar.set_length(stage.total.max(stage.done));
                bar.set_position(stage.done);
                let told = [pace.text(stage), stage.reason.clone(), lines::figures(stage)];
                let told: Vec<String> = told.into_iter().filter(|text| !text.is_empty()).collect();
                bar.set_message(shown::line(&told.join("  ")).into_owned());
            }
            _ => {
                bar.set_style(style("{prefix:>10} {msg}"));
                bar.finish_with_message(shown::line(&lines::outcome(stage)).into_owned());
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are well formed").progress_chars("━╸ ")
}
