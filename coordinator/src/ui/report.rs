//! Prints the report at the end of a job.

use std::collections::BTreeMap;

use llink_datasets::measured::Table;
use llink_datasets::report::Report;
use llink_proto::{Job, StageState};

use super::{Style, job_json, print_line, say_json, thousands};

pub fn report(job: &Job, style: Style) {
    if style == Style::Json {
        return say_json(&job_json(job, &[]).to_string());
    }
    let report: Report = serde_json::from_str(&job.report_json).unwrap_or_default();
    let output = job.output_url.trim_end_matches('/');
    let cached = job.stages.iter().all(|s| s.state() == StageState::Cached);
    if cached {
        print_line(&format!("{}: nothing to do, every stage was finished before under the same key", job.id));
    } else {
        print_line(&format!("{}: succeeded in {:.1} s", job.id, report.seconds));
    }
    print_line("");
    for (corpus, rows) in rows(&report.counts) {
        print_line(&format!("{corpus:13} {rows}"));
    }
    measured(&report);
    if let Some(training) = report.training {
        print_line(&format!(
            "effective training time: {:.1} % of {:.1} s were steps that counted",
            100.0 * training.effective_time,
            training.seconds
        ));
    }
    for warning in &report.warnings {
        print_line(&format!("warning: {warning}"));
    }
    if let Some(bundle) = &report.bundle {
        let folder = format!("{output}/{bundle}");
        match job.stages.iter().any(|stage| stage.name == "instruct") {
            true => print_line(&format!("ask it: llink-coord generate --bundle {folder} \"…\"")),
            false => print_line(&format!("the projector as others load it: {folder}")),
        }
    }
    if let Some(benchmark) = &report.benchmark {
        print_line(&format!("the pairs of the benchmark and their ranks: {output}/{benchmark}"));
    }
    if report.page.is_some() {
        print_line(&format!("the report with its curves: {output}/report.html"));
    }
    print_line(&format!("artifacts in {}", job.output_url));
    for stage in &report.stages {
        let time = match stage.cached {
            true => "cached".to_owned(),
            false => format!("{:.1} s", stage.seconds),
        };
        let (directory, files, bytes) = (&stage.directory, stage.artifacts, thousands(stage.bytes / 1024));
        print_line(&format!("  {directory:28} {files:4} files {bytes:>10} KiB  {time:>8}"));
    }
}

/// Returns the corpora, each with its rows read, kept and dropped by reason.
pub(crate) fn rows(counts: &BTreeMap<String, u64>) -> Vec<(&'static str, String)> {
    let corpora = ["pairs", "instructions", "synthesized"].into_iter();
    corpora.filter_map(|corpus| Some((corpus, rows_of(counts, corpus)?))).collect()
}

fn rows_of(counts: &BTreeMap<String, u64>, corpus: &str) -> Option<String> {
    let get = |name: &str| counts.get(&format!("{corpus}.{name}")).copied();
    let mut parts = vec![format!("{} read", thousands(get("rows")?))];
    for side in ["train", "holdout", "validation"] {
        if let Some(rows) = get(&format!("split.{side}")) {
            parts.push(format!("{} {side}", thousands(rows)));
        }
    }
    for (done, words) in
        [("cut", "cut to length"), ("composed", "put in NFC"), ("stripped", "freed of invisible characters")]
    {
        if let Some(rows) = get(done).filter(|rows| *rows > 0) {
            parts.push(format!("{} {words}", thousands(rows)));
        }
    }
    let dropped = counts.iter().filter(|(name, n)| {
        name.strip_prefix(corpus).is_some_and(|n| n.contains("dropped_") || n.ends_with(".surplus")) && **n > 0
    });
    for (name, count) in dropped {
        let reason = name.rsplit('.').next().unwrap_or(name).trim_start_matches("dropped_").replace('_', " ");
        parts.push(format!("{} {reason}", thousands(*count)));
    }
    Some(parts.join(", "))
}

fn measured(report: &Report) {
    for section in report.measured() {
        print_line("");
        print_line(&section.title);
        let table = section.table.iter().flat_map(Table::text);
        table.for_each(|line| print_line(&line));
        section.notes.iter().for_each(|note| print_line(note));
    }
    print_line("");
}
