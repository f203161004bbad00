//! Prints the report at the end of a job.

use llink_datasets::measured::{self, Figures};
use llink_proto::{Job, StageState};
use serde_json::{Map, Value};

use super::{Style, job_json, print_line, say_json, thousands};

/// Prints the report of a job that succeeded.
pub fn report(job: &Job, style: Style) {
    if style == Style::Json {
        return say_json(&job_json(job, &[]).to_string());
    }
    let report: Value = serde_json::from_str(&job.report_json).unwrap_or_default();
    let cached = job.stages.iter().all(|s| s.state() == StageState::Cached);
    if cached {
        print_line(&format!(
            "{}: nothing to do, every stage was finished before under the same key",
            job.id
        ));
    } else {
        let took = report["seconds"].as_f64().unwrap_or_default();
        print_line(&format!("{}: succeeded in {took:.1} s", job.id));
    }
    print_line("");
    for (corpus, rows) in rows(&report["counts"]) {
        print_line(&format!("{corpus:13} {rows}"));
    }
    measured(&report["figures"]["evaluate"]);
    if let (Some(share), Some(seconds)) = (
        report["training"]["effective_time"].as_f64(),
        report["training"]["seconds"].as_f64(),
    ) {
        print_line(&format!(
            "effective training time: {:.1} % of {seconds:.1} s were steps that counted",
            100.0 * share
        ));
    }
    for warning in report["warnings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        print_line(&format!("warning: {warning}"));
    }
    if let Some(bundle) = report["bundle"].as_str() {
        let folder = format!("{}/{bundle}", job.output_url.trim_end_matches('/'));
        match job.stages.iter().any(|stage| stage.name == "instruct") {
            true => print_line(&format!("ask it: llink-coord generate --bundle {folder} \"…\"")),
            false => print_line(&format!("the projector as others load it: {folder}")),
        }
    }
    if let Some(benchmark) = report["benchmark"].as_str() {
        let output = job.output_url.trim_end_matches('/');
        print_line(&format!(
            "the pairs of the benchmark and their ranks: {output}/{benchmark}"
        ));
    }
    if report["page"].is_string() {
        let output = job.output_url.trim_end_matches('/');
        print_line(&format!("the report with its curves: {output}/report.html"));
    }
    print_line(&format!("artifacts in {}", job.output_url));
    for stage in report["stages"].as_array().into_iter().flatten() {
        let text = |key: &str| stage[key].as_str().unwrap_or_default().to_owned();
        let seconds = stage["seconds"].as_f64().unwrap_or_default();
        let time = if stage["cached"] == true {
            "cached".to_owned()
        } else {
            format!("{seconds:.1} s")
        };
        let bytes = thousands(stage["bytes"].as_u64().unwrap_or_default() / 1024);
        let files = stage["artifacts"].as_u64().unwrap_or_default();
        let directory = text("directory");
        print_line(&format!("  {directory:28} {files:4} files {bytes:>10} KiB  {time:>8}"));
    }
}

/// Returns the corpora, each with its rows read, kept and dropped by reason.
pub(crate) fn rows(counts: &Value) -> Vec<(&'static str, String)> {
    let Some(counts) = counts.as_object() else {
        return Vec::new();
    };
    let corpora = ["pairs", "instructions", "synthesized"].into_iter();
    corpora
        .filter_map(|corpus| Some((corpus, rows_of(counts, corpus)?)))
        .collect()
}

fn rows_of(counts: &Map<String, Value>, corpus: &str) -> Option<String> {
    let get = |name: &str| counts.get(&format!("{corpus}.{name}")).and_then(Value::as_u64);
    let mut parts = vec![format!("{} read", thousands(get("rows")?))];
    for side in ["train", "holdout", "validation"] {
        if let Some(rows) = get(&format!("split.{side}")) {
            parts.push(format!("{} {side}", thousands(rows)));
        }
    }
    for (done, words) in [
        ("cut", "cut to length"),
        ("composed", "put in NFC"),
        ("stripped", "freed of invisible characters"),
    ] {
        if let Some(rows) = get(done).filter(|rows| *rows > 0) {
            parts.push(format!("{} {words}", thousands(rows)));
        }
    }
    let dropped = counts.iter().filter(|(name, n)| {
        name.strip_prefix(corpus)
            .is_some_and(|n| n.contains("dropped_") || n.ends_with(".surplus"))
            && n.as_u64().is_some_and(|n| n > 0)
    });
    for (name, count) in dropped {
        let reason = name
            .rsplit('.')
            .next()
            .unwrap_or(name)
            .trim_start_matches("dropped_")
            .replace('_', " ");
        parts.push(format!("{} {reason}", thousands(count.as_u64().unwrap_or_default())));
    }
    Some(parts.join(", "))
}

/// Prints what `evaluate` measured.
fn measured(figures: &Value) {
    let figures: Figures = serde_json::from_value(figures.clone()).unwrap_or_default();
    for section in measured::sections(&figures) {
        print_line("");
        print_line(&section.title);
        let table = section.table.iter().flat_map(measured::Table::text);
        table.for_each(|line| print_line(&line));
        section.notes.iter().for_each(|note| print_line(note));
    }
    print_line("");
}
