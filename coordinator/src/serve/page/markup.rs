//! The parts of the page as HTML, which are pure functions of the board. maud escapes texts, and control characters are
//! made visible.

use llink_datasets::measured::thousands;
use llink_datasets::page::{self, table};
use llink_datasets::report::Report;
use llink_proto::{Event, Job, JobState, Stage, StageState, shown};
use maud::{DOCTYPE, Markup, html};
use serde_json::json;
use time::OffsetDateTime;

use super::board::{Board, Seen, WORKERS};
use super::curves::Chart;
use crate::schedule::{LeaseView, WorkerView};
use crate::ui::{course, lines, report, stage_word, state_word};

/// The most bytes of an event or a failure that are shown.
const TEXT_BYTES: usize = 4 << 10;

/// A part of a page that is updated by itself.
pub(super) struct Part {
    pub(super) id: &'static str,
    pub(super) body: Markup,
}

/// A part under its title. One without content only keeps its place.
fn part(id: &'static str, title: &str, body: Markup) -> Part {
    let body = html! { @if !body.0.is_empty() { h2 { (title) } (body) } };
    Part { id, body }
}

/// Returns the part whose changes a screen reader announces.
fn status(text: &str) -> Part {
    Part { id: "status", body: html! { (shown::line(text)) } }
}

/// Renders a whole page. `live` is the URL of its updates, if it has any.
pub(super) fn page(title: &str, live: Option<&str>, parts: &[Part]) -> String {
    let title = shown::line(title);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · llink" }
                link rel="icon" href="data:,";
                link rel="stylesheet" href="/assets/uplot.css";
                link rel="stylesheet" href="/assets/page.css";
                @if live.is_some() {
                    noscript { meta http-equiv="refresh" content="5"; }
                    script src="/assets/uplot.js" defer {}
                    script src="/assets/page.js" defer {}
                }
            }
            body data-live=[live] {
                a.skip href="#main" { "Skip to the content" }
                header { a href="/" { "llink" } }
                main #main tabindex="-1" {
                    h1 { (title) }
                    p #offline role="alert" hidden {}
                    @for part in parts {
                        @if part.id == "status" {
                            p #status role="status" { (part.body) }
                        } @else {
                            section #(part.id) { (part.body) }
                        }
                    }
                }
            }
        }
    };
    page.into_string()
}

pub(super) fn overview(board: &Board, plans: &[(usize, Job)]) -> Vec<Part> {
    let running = board.jobs.iter().filter(|seen| seen.job.state() == JobState::Running).count();
    let all = count(board.jobs.len() + board.older, "job");
    let said = format!("{all}, {running} of them running; {}", count(board.workers_total, "worker"));
    let more = board.workers_total.saturating_sub(WORKERS);
    let connected = html! { (workers(&board.workers, None)) @if more > 0 { p { (more) " more are not shown." } } };
    let mut parts = vec![status(&said), part("jobs", "Jobs", jobs(board)), part("workers", "Workers", connected)];
    if !plans.is_empty() {
        let rows = plans.iter().map(|(number, job)| {
            let will_run = job.stages.iter().filter(|stage| stage.state() != StageState::Cached).count();
            vec![
                link(&format!("/plans/{number}"), &job.name),
                text(&job.id),
                html! { (will_run) " of " (count(job.stages.len(), "stage")) },
            ]
        });
        let rows = table("Plans of dry runs, the newest first", &["name", "job", "will run"], rows);
        parts.push(part("plans", "Plans", rows));
    }
    parts
}

fn jobs(board: &Board) -> Markup {
    if board.jobs.is_empty() {
        return html! { p { "There are no jobs yet: " code { "llink-coord submit job.toml" } " starts one." } };
    }
    let rows = board.jobs.iter().map(|seen| {
        let job = &seen.job;
        let (done, running) = course(job);
        let now = match (running, &job.failure) {
            (Some(stage), _) => {
                html! { (stage.name) " " (progress(stage)) " " (doing(seen, stage)) }
            }
            (None, Some(failure)) => text(failure.text.lines().next().unwrap_or_default()),
            (None, None) => text(&job.reason),
        };
        vec![
            html! { (link(&job_path(&job.id), &job.name)) br; small { (text(&job.id)) } },
            state(state_word(job)),
            html! { (done) "/" (job.stages.len()) },
            now,
            moment(job.submitted_at),
        ]
    });
    html! {
        (table("The newest first", &["job", "state", "stages done", "now", "submitted"], rows))
        @if board.older > 0 { p { (count(board.older, "older job")) " are not shown: " code { "llink-coord list" } " has them." } }
    }
}

/// All workers, or those that work on one job, and what they do.
fn workers(workers: &[WorkerView], of: Option<&str>) -> Markup {
    let row = |worker: &WorkerView| {
        let leases = worker.leases.iter().filter(|lease| of.is_none_or(|job| lease.job == job));
        let leases: Vec<Markup> = leases.map(|lease| leased(lease, of.is_none())).collect();
        (of.is_none() || !leases.is_empty())
            .then(|| vec![text(&worker.info.name), device(worker), does(worker, leases)])
    };
    let rows: Vec<_> = workers.iter().filter_map(row).collect();
    let (none, caption) = match of {
        None => ("No worker is connected.", "Those that are connected"),
        Some(_) => ("No worker works on this job.", "Those that work on this job"),
    };
    match rows.is_empty() {
        true => html! { p { (none) } },
        false => table(caption, &["worker", "device", "works on"], rows),
    }
}

fn does(worker: &WorkerView, leases: Vec<Markup>) -> Markup {
    match (worker.listening, leases.as_slice()) {
        (false, []) => html! { "is connecting" },
        (true, []) => html! { "is idle" },
        (_, [one]) => one.clone(),
        (_, all) => html! { ol { @for lease in all { li { (lease) } } } },
    }
}

fn leased(lease: &LeaseView, with_job: bool) -> Markup {
    let (done, total) = lease.progress;
    let (rank, ranks) = lease.rank;
    html! {
        @if with_job { (link(&job_path(&lease.job), &lease.job)) ": " }
        (text(&lease.stage)) ", " (text(&lease.task))
        @if ranks > 1 { ", rank " (rank) " of " (ranks) }
        @if total > 0 { ", " (thousands(done)) "/" (thousands(total)) }
        ", since " (moment(lease.since))
    }
}

fn device(worker: &WorkerView) -> Markup {
    let info = &worker.info;
    let gib = |bytes: u64| format!("{:.0} GiB", bytes as f64 / f64::from(1 << 30));
    match &info.device {
        Some(device) if device.kind != "cpu" => html! {
            (text(&device.name)) " (" (text(&device.kind)) " " (device.index) ", " (gib(device.memory_bytes)) ") on " (text(&info.host))
        },
        _ => {
            html! { "CPU, " (count(info.threads as usize, "thread")) ", " (gib(info.memory_bytes)) ", on " (text(&info.host)) }
        }
    }
}

/// A job: its stages, curves, workers, report and newest events.
pub(super) fn job(seen: &Seen, workers_now: &[WorkerView], events: &[Event]) -> Vec<Part> {
    let job = &seen.job;
    let charts = html! {
        @for (stage, charts) in &seen.charts {
            h3 { (text(stage)) }
            div.charts { @for (at, drawn) in charts.iter().enumerate() { (chart(stage, at, drawn)) } }
        }
    };
    let rows = events.iter().map(|event| {
        let stage = if event.stage.is_empty() { "job" } else { &event.stage };
        vec![moment(event.at), state(&event.level), text(stage), long(&event.text)]
    });
    let events = table("The newest first", &["time", "level", "stage", "what happened"], rows);
    vec![
        status(&said(job)),
        part("summary", "Summary", summary(job)),
        part("stages", "Stages", stages(seen)),
        part("report", "Report", reported(job)),
        part("curves", "Curves", charts),
        part("workers", "Workers", workers(workers_now, Some(&job.id))),
        part("events", "Events", events),
    ]
}

pub(super) fn plan(job: &Job) -> Vec<Part> {
    let seen = Seen { job: job.clone(), ..Seen::default() };
    vec![
        status("A plan: nothing was started"),
        part("summary", "Summary", summary(job)),
        part("stages", "Stages", stages(&seen)),
    ]
}

/// Renders a page with only a message. With `form` a token can be entered.
pub(super) fn notice(said: &str, form: bool) -> Vec<Part> {
    let body = html! {
        p { (text(said)) }
        @if form {
            form method="post" action="/login" {
                label for="token" { "Token" }
                input #token type="password" name="token" required autocomplete="off" spellcheck="false";
                button { "Show the page" }
            }
        }
    };
    vec![Part { id: "notice", body: html! { h2 { @if form { "Who are you?" } @else { "Nothing to see" } } (body) } }]
}

fn said(job: &Job) -> String {
    let (done, running) = course(job);
    let now = running.map(|stage| format!(", now {}", stage.name)).unwrap_or_default();
    format!("{}: {done} of {} done{now}", state_word(job), count(job.stages.len(), "stage"))
}

fn summary(job: &Job) -> Markup {
    html! {
        dl {
            dt { "State" } dd { (state(state_word(job))) @if job.failure.is_none() && !job.reason.is_empty() { " " (text(&job.reason)) } }
            dt { "Job" } dd { code { (text(&job.id)) } }
            dt { "Output" } dd { code { (text(&job.output_url)) } }
            @if job.submitted_at > 0 { dt { "Submitted" } dd { (moment(job.submitted_at)) } }
            @if job.ended_at > 0 { dt { "Ended" } dd { (moment(job.ended_at)) } }
        }
        @if let Some(failure) = &job.failure { p.failure { "It failed: " (long(&failure.text)) } }
        // The report has the warnings of a job that succeeded.
        @if job.state() != JobState::Succeeded { @for warning in &job.warnings { p.warning { "Warning: " (text(warning)) } } }
    }
}

fn stages(seen: &Seen) -> Markup {
    let rows = seen.job.stages.iter().map(|stage| {
        let told = match stage.state() {
            StageState::Done | StageState::Cached => text(&lines::outcome(stage)),
            _ => html! {
                (doing(seen, stage))
                @for detail in &stage.details { br; small { (text(detail)) } }
            },
        };
        let warnings = html! { @for warning in &stage.warnings { br; span.warning { "Warning: " (text(warning)) } } };
        vec![text(&stage.name), state(stage_word(stage)), progress(stage), html! { (told) (warnings) }]
    });
    table("In the order in which they run", &["stage", "state", "progress", "what it does or waits for"], rows)
}

/// Renders what a stage does or waits for, its speed, and its newest figures.
fn doing(seen: &Seen, stage: &Stage) -> Markup {
    let pace = seen.paces.get(&stage.name).cloned().unwrap_or_default();
    let figures = lines::figures(stage);
    let told: Vec<&str> =
        [stage.reason.as_str(), &pace, &figures].into_iter().filter(|told| !told.is_empty()).collect();
    text(&told.join("; "))
}

fn progress(stage: &Stage) -> Markup {
    let (done, total) = (stage.done.min(stage.total), stage.total);
    html! {
        @if stage.state() == StageState::Running && total > 0 {
            progress max=(total) value=(done) aria-label=(format!("progress of {}", stage.name)) {}
            " " (thousands(done)) "/" (thousands(total)) " " (text(&stage.unit))
        } @else if is_complete(stage) && total > 0 {
            (thousands(total)) " " (text(&stage.unit))
        } @else {
            span aria-hidden="true" { "–" }
        }
    }
}

fn chart(stage: &str, at: usize, chart: &Chart) -> Markup {
    let mut data = vec![json!(chart.steps)];
    data.extend(chart.values.iter().map(|values| json!(values)));
    html! {
        figure {
            div.chart id=(format!("chart-{stage}-{at}")) data-chart=(json!({"names": chart.names, "data": data})) aria-hidden="true" {}
            figcaption { (chart.in_words()) }
        }
    }
}

fn reported(job: &Job) -> Markup {
    let Ok(report) = serde_json::from_str::<Report>(&job.report_json) else {
        return html! {};
    };
    let artifacts = report.stages.iter().map(|stage| {
        let took = match stage.cached {
            true => "cached".to_owned(),
            false => format!("{:.1} s", stage.seconds),
        };
        vec![
            text(&stage.directory),
            html! { (stage.artifacts) },
            html! { (thousands(stage.bytes / 1024)) " KiB" },
            text(&took),
        ]
    });
    html! {
        p { "It took " (format!("{:.1}", report.seconds)) " s." }
        dl { @for (corpus, rows) in report::rows(&report.counts) { dt { (corpus) } dd { (text(&rows)) } } }
        @for section in report.measured() { h3 { (text(&section.title)) } (page::measured(&section)) }
        @for warning in &report.warnings { p.warning { "Warning: " (text(warning)) } }
        @if report.page.is_some() { p { "The report with examples and all curves is " code { (text(job.output_url.trim_end_matches('/'))) "/report.html" } "." } }
        (table("Artifacts below the output", &["folder", "files", "size", "took"], artifacts))
    }
}

/// Where a job's page is. Ids are letters, digits and `-_.`.
pub(super) fn job_path(id: &str) -> String {
    format!("/jobs/{id}")
}

fn link(path: &str, said: &str) -> Markup {
    html! { a href=(path) { (text(said)) } }
}

fn text(text: &str) -> Markup {
    html! { (shown::text(text)) }
}

fn long(said: &str) -> Markup {
    html! { span.long { (text(&shown::bounded(said, TEXT_BYTES))) } }
}

fn state(word: &str) -> Markup {
    html! { span.state data-state=(word) { (text(word)) } }
}

fn moment(at: i64) -> Markup {
    let at = OffsetDateTime::from_unix_timestamp(at / 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, (h, m, s)) = (at.date(), at.to_hms());
    html! { time datetime=(format!("{date}T{h:02}:{m:02}:{s:02}Z")) { (date) " " (format!("{h:02}:{m:02}:{s:02}")) " UTC" } }
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", thousands(number as u64))
}

fn is_complete(stage: &Stage) -> bool {
    matches!(stage.state(), StageState::Done | StageState::Cached)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llink_proto::{Device, RegisterRequest};

    use super::*;

    const SCRIPT: &str = "<script>alert(1)</script>\u{202e}";

    fn seen(state: JobState) -> Seen {
        let stage = |name: &str, state: StageState, reason: &str| Stage {
            name: name.into(),
            state: state.into(),
            reason: reason.into(),
            unit: "steps".into(),
            done: 1_200,
            total: 2_000,
            figures: [("loss".to_owned(), 1.5)].into(),
            ..Stage::default()
        };
        let report = json!({"seconds": 12.5, "counts": {"pairs.rows": 10}, "figures": {"evaluate": {"pairs": 1024.0}},
            "stages": [{"directory": "shard/1", "artifacts": 2, "bytes": 4096, "cached": true}], "page": "p"});
        Seen {
            job: Job {
                id: "small-1".into(),
                name: SCRIPT.into(),
                state: state.into(),
                submitted_at: 1_764_000_000_000,
                output_url: "out".into(),
                report_json: report.to_string(),
                stages: vec![
                    stage("align", StageState::Running, "train"),
                    stage("instruct", StageState::Waiting, "waits for align"),
                ],
                ..Job::default()
            },
            paces: [("align".to_owned(), "1.0 steps/s, 13 min left".to_owned())].into(),
            charts: vec![(
                "align".into(),
                vec![Chart {
                    title: "loss",
                    names: vec!["loss", "info_nce"],
                    steps: vec![1, 2],
                    values: vec![vec![Some(2.0), Some(1.5)], vec![None, Some(1.25)]],
                }],
            )],
        }
    }

    fn worker() -> WorkerView {
        WorkerView {
            info: RegisterRequest {
                name: "host-7".into(),
                host: SCRIPT.into(),
                device: Some(Device { kind: "cuda".into(), name: "H200".into(), index: 1, memory_bytes: 141 << 30 }),
                ..RegisterRequest::default()
            },
            listening: true,
            leases: vec![LeaseView {
                job: "small-1".into(),
                stage: "align".into(),
                task: "train".into(),
                since: 1_764_000_001_000,
                progress: (1_200, 2_000),
                rank: (0, 2),
            }],
        }
    }

    /// Renders a page with each starting element on its own line.
    fn shown(title: &str, parts: &[Part]) -> String {
        let page = page(title, Some("/live/"), parts);
        assert!(!page.contains("<script>") && !page.contains('\u{202e}'), "{page}");
        assert!(!page.contains("style=") && !page.contains("http://") && !page.contains("https://"), "{page}");
        let page = page.split_once("<main").expect("a page has a main part").1;
        ["<section", "<tr", "<h2", "<figure", "<p", "<dl", "<form"]
            .iter()
            .fold(page.to_owned(), |page, tag| page.replace(tag, &format!("\n{tag}")))
    }

    #[test]
    fn jobs_and_workers_are_listed() {
        let board = Board {
            jobs: vec![Arc::new(seen(JobState::Running))],
            older: 3,
            workers: vec![worker()],
            workers_total: 1,
        };
        let plans = [(4, seen(JobState::Unspecified).job)];
        insta::assert_snapshot!(shown("Jobs", &overview(&board, &plans)));
        assert!(shown("Jobs", &overview(&Board::default(), &[])).contains("No worker is connected"));
    }

    #[test]
    fn a_job_shows_its_stages_curves_workers_report_and_events() {
        let event = Event { at: 1_764_000_002_000, level: "warn".into(), text: SCRIPT.into(), ..Event::default() };
        insta::assert_snapshot!(shown(SCRIPT, &job(&seen(JobState::Succeeded), &[worker()], &[event])));
    }

    #[test]
    fn a_page_that_only_says_something_asks_for_a_token_where_one_helps() {
        insta::assert_snapshot!(shown("llink", &notice("Who?", true)));
        assert!(!shown("llink", &notice("No.", false)).contains("<form"));
    }
}
