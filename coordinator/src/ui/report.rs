//! The report at the end of a job.

use llink_proto::{Job, StageState};
use serde_json::Value;

use super::{Style, job_json, print_line, thousands};

/// Prints the report of a job that succeeded.
pub fn report(job: &Job, style: Style) {
    if style == Style::Json {
        return print_line(&job_json(job, &[]).to_string());
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
    rows(&report["counts"]);
    retrieval(&report["figures"]["evaluate"]);
    answers(&report["figures"]["evaluate"]);
    judged(&report["figures"]["evaluate"]);
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
    if report["page"].is_string() {
        let output = job.output_url.trim_end_matches('/');
        print_line(&format!("the report with its curves: {output}/report.html"));
    }
    print_line(&format!("artefacts in {}", job.output_url));
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

/// Rows read, kept and dropped by reason, for each corpus.
fn rows(counts: &Value) {
    let Some(counts) = counts.as_object() else { return };
    for corpus in ["pairs", "instructions", "synthesized"] {
        let get = |name: &str| counts.get(&format!("{corpus}.{name}")).and_then(Value::as_u64);
        let Some(read) = get("rows") else { continue };
        let mut parts = vec![format!("{} read", thousands(read))];
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
        print_line(&format!("{corpus:13} {}", parts.join(", ")));
    }
}

/// Retrieval before and after alignment, beside chance.
fn retrieval(figures: &Value) {
    let get = |name: &str| figures[name].as_f64();
    let Some(pairs) = get("pairs") else { return };
    print_line("");
    print_line(&format!("retrieval among {} held-out pairs", thousands(pairs as u64)));
    print_line("                      R@1     R@5    R@10     MRR   mean rank");
    for (name, prefix) in [
        ("chance", "chance"),
        ("before alignment", "before"),
        ("after alignment", "after"),
        ("by mean slot", "instructed"),
    ] {
        if get(&format!("{prefix}.r1")).is_none() {
            continue;
        }
        let value = |figure: &str| get(&format!("{prefix}.{figure}")).unwrap_or(f64::NAN);
        print_line(&format!(
            "  {name:17} {:6.4}  {:6.4}  {:6.4}  {:6.4}  {:10.1}",
            value("r1"),
            value("r5"),
            value("r10"),
            value("mrr"),
            value("mean_rank"),
        ));
    }
    if let (Some(foreign), Some(english)) = (get("decoder_tokens.foreign"), get("decoder_tokens.english")) {
        print_line(&format!(
            "the decoder's tokenizer spends {foreign:.1} tokens on a foreign sentence and {english:.1} on its English \
             twin: {:.1} times as many",
            foreign / english
        ));
    }
    print_line("");
}

/// Answers to held-out instructions, by what the decoder was given.
fn answers(figures: &Value) {
    let get = |name: &str| figures[name].as_f64();
    for (of, title) in [
        ("answers", "held-out instructions"),
        ("translations", "their translations"),
    ] {
        let count = |given: &str| get(&format!("{of}.{given}.count"));
        let Some(answers) = count("slots").or_else(|| count("direct")).filter(|n| *n > 0.0) else {
            continue;
        };
        print_line(&format!("answers to {} {title}", thousands(answers as u64)));
        print_line("                    exact  word recall  numbers");
        for (name, given) in [
            ("with slots", "slots"),
            ("with zeroed slots", "zeroed"),
            ("direct", "direct"),
        ] {
            let value = |figure: &str| get(&format!("{of}.{given}.{figure}"));
            if let (Some(exact), Some(recall), Some(numbers)) = (value("exact"), value("word_recall"), value("numbers"))
            {
                print_line(&format!("  {name:17} {exact:6.4}  {recall:11.4}  {numbers:7.4}"));
            }
        }
        print_line("");
    }
}

/// Whose answers a judge preferred.
fn judged(figures: &Value) {
    let count = |against: &str, name: &str| figures[format!("judged.{against}.{name}")].as_f64();
    let rows: Vec<String> = [("base", "the base decoder"), ("direct", "direct fine-tuning")]
        .iter()
        .filter_map(|(against, title)| {
            let [win, tie, loss, unclear] = ["win", "tie", "loss", "unclear"].map(|name| count(against, name));
            Some(format!("  {title:18} {:5} {:5} {:5} {:8}", win?, tie?, loss?, unclear?))
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    print_line("our answers judged against those of, in both orders");
    print_line("                       win   tie  loss  unclear");
    rows.iter().for_each(|row| print_line(row));
    print_line("");
}
