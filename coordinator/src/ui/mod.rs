//! Output for people (progress bars while a job runs, a report at the end), or JSON lines for programs.

mod bars;
pub(crate) mod lines;
pub(crate) mod output;
pub(crate) mod pace;
pub(crate) mod report;

use std::io::IsTerminal;

use llink_datasets::measured::thousands;
use llink_proto::{Event, Job, JobState, Stage, StageState, shown};

use output::{say as print_line, say_json, tell};
pub use report::report;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Terminal,
    /// A line at intervals, for output to a file or a pipe.
    Lines,
    Json,
}

impl Style {
    /// Returns JSON if requested, otherwise the style that fits the output.
    pub fn of(json: bool) -> Self {
        match json {
            true => Self::Json,
            false if std::io::stderr().is_terminal() => Self::Terminal,
            false => Self::Lines,
        }
    }
}

#[derive(Debug)]
pub enum View {
    Bars(bars::Bars),
    Lines(lines::Lines),
    Json,
}

impl View {
    pub fn new(style: Style) -> Self {
        match style {
            Style::Terminal => Self::Bars(bars::Bars::new()),
            Style::Lines => Self::Lines(lines::Lines::default()),
            Style::Json => Self::Json,
        }
    }

    /// Shows the job's current state and the new events.
    pub fn show(&mut self, job: &Job, events: &[Event]) {
        match self {
            Self::Bars(bars) => bars.show(job, events),
            Self::Lines(lines) => lines.show(job, events),
            Self::Json => say_json(&job_json(job, events).to_string()),
        }
    }

    pub fn close(self) {
        if let Self::Bars(bars) = self {
            bars.close();
        }
    }
}

pub fn state_word(job: &Job) -> &'static str {
    job_word(job.state())
}

pub(crate) fn job_word(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "planned",
        JobState::Running => "running",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

pub(crate) fn stage_word(stage: &Stage) -> &'static str {
    match stage.state() {
        StageState::Unspecified | StageState::Waiting => "waiting",
        StageState::Running => "running",
        StageState::Done => "done",
        StageState::Cached => "cached",
        StageState::Failed => "failed",
        StageState::Cancelled => "cancelled",
        StageState::Planned => "will run",
        StageState::Depends => "depends",
    }
}

/// Returns the number of complete stages, and the stage that runs.
pub(crate) fn course(job: &Job) -> (usize, Option<&Stage>) {
    let done = job.stages.iter().filter(|s| matches!(s.state(), StageState::Done | StageState::Cached)).count();
    (done, job.stages.iter().find(|s| s.state() == StageState::Running))
}

fn seconds(stage: &Stage) -> f64 {
    (stage.ended_at - stage.started_at).max(0) as f64 / 1000.0
}

fn job_json(job: &Job, events: &[Event]) -> serde_json::Value {
    let stages: Vec<_> = job
        .stages
        .iter()
        .map(|s| {
            serde_json::json!({
                "stage": s.name, "state": stage_word(s), "reason": s.reason, "key": s.key, "done": s.done,
                "total": s.total, "unit": s.unit, "tasks_done": s.tasks_done, "tasks_total": s.tasks_total,
                "seconds": if s.ended_at > 0 { Some(seconds(s)) } else { None },
                "figures": s.figures, "warnings": s.warnings, "details": s.details,
            })
        })
        .collect();
    let events: Vec<_> = events
        .iter()
        .map(|e| serde_json::json!({"at": e.at, "stage": e.stage, "task": e.task_id, "level": e.level, "text": e.text}))
        .collect();
    let report: Option<serde_json::Value> = serde_json::from_str(&job.report_json).ok();
    serde_json::json!({
        "id": job.id, "name": job.name, "state": state_word(job), "reason": job.reason, "output": job.output_url,
        "submitted_at": job.submitted_at, "ended_at": job.ended_at, "workers": job.workers, "stages": stages,
        "warnings": job.warnings, "events": events, "report": report,
    })
}

/// Formats an event of the log. Further lines of its text are indented, so that none looks like another event.
pub fn event_line(event: &Event) -> String {
    let since_midnight = event.at.rem_euclid(86_400_000);
    let (h, m, s) = (since_midnight / 3_600_000, since_midnight / 60_000 % 60, since_midnight / 1000 % 60);
    let ms = since_midnight % 1000;
    let stage = if event.stage.is_empty() { "job" } else { &event.stage };
    let (level, stage) = (shown::line(&event.level), shown::line(stage));
    let text = indented(&event.text);
    format!("{h:02}:{m:02}:{s:02}.{ms:03}Z {level:5} {stage:8} {text}")
}

/// Indents the further lines of a text from elsewhere, so that none looks like a line of llink's own.
fn indented(text: &str) -> String {
    shown::text(text).replace('\n', "\n    ")
}

pub fn plan(job: &Job, style: Style) {
    if style == Style::Json {
        return say_json(&job_json(job, &[]).to_string());
    }
    print_line(&format!("{}: nothing was started", job.id));
    for stage in &job.stages {
        let key = if stage.key.is_empty() { "-" } else { &stage.key };
        let word = stage_word(stage);
        print_line(&format!("  {:10} {word:8}  {key:16}  {}", stage.name, stage.reason));
        for detail in &stage.details {
            print_line(&format!("  {:10} {detail}", ""));
        }
    }
    for warning in &job.warnings {
        print_line(&format!("warning: {warning}"));
    }
}

/// Shows, before the job starts, what it asks for and will not get. In JSON, the job itself holds this.
pub fn warnings(job: &Job, style: Style) {
    if style != Style::Json {
        for warning in &job.warnings {
            tell(&format!("warning: {warning}"));
        }
    }
}

pub fn list(jobs: &[Job], style: Style) {
    if style == Style::Json {
        for job in jobs {
            say_json(&job_json(job, &[]).to_string());
        }
        return;
    }
    if jobs.is_empty() {
        return print_line("no jobs yet: `llink-coord submit job.toml` starts one");
    }
    let width = jobs.iter().map(|j| j.id.len()).max().unwrap_or(0);
    for job in jobs {
        let (done, now) = course(job);
        let detail = match (now, job.failure.as_ref()) {
            (Some(stage), _) => format!("{}: {}", stage.name, stage.reason),
            (None, Some(failure)) => failure.text.lines().next().unwrap_or("").to_owned(),
            (None, None) => job.output_url.clone(),
        };
        let id = &job.id;
        print_line(&format!(
            "{id:width$}  {:9}  {done}/{} stages  {}",
            state_word(job),
            job.stages.len(),
            shown::quoted(&detail, 200)
        ));
    }
}

pub fn job(job: &Job, style: Style) {
    if style == Style::Json {
        return say_json(&job_json(job, &[]).to_string());
    }
    let workers = match job.state() {
        JobState::Running => format!(" ({} workers)", job.workers),
        _ => String::new(),
    };
    print_line(&format!("{}: {}{workers}", job.id, state_word(job)));
    print_line(&format!("output {}", job.output_url));
    for stage in &job.stages {
        print_line(&format!("  {}", indented(&lines::stage_line(stage))));
    }
    if job.state() != JobState::Succeeded {
        for warning in &job.warnings {
            print_line(&format!("warning: {warning}"));
        }
    }
    if let Some(failure) = &job.failure {
        print_line(&format!("failed: {}", indented(&failure.text)));
    }
    if job.state() == JobState::Succeeded {
        report(job, style);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_time_of_day() {
        let event = Event { at: 86_400_000 + 3_661_007, level: "warn".into(), text: "x".into(), ..Event::default() };
        assert_eq!(event_line(&event), "01:01:01.007Z warn  job      x");
        let hostile = Event { text: "x\u{1b}[2J\n01:01:01.008Z info  job      forged".into(), ..event };
        let line = event_line(&hostile);
        assert!(!line.contains('\u{1b}') && line.lines().nth(1).unwrap().starts_with("    01:"), "{line}");
    }
}
