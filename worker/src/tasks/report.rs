//! Writes the measurements as a page for people.

use llink_datasets::measured;
use llink_datasets::role::Role;
use llink_proto::{Artifact, Evaluate, TaskResult};
use serde_json::Value;

use super::OpenContext;
use super::margin::{self, Dropped};
use crate::Result;
use crate::report::{Page, chart, curves};

/// The most answers that are shown.
const EXAMPLES: usize = 12;
/// The charts of each training: their titles and the numbers in them.
type Charts = &'static [(&'static str, &'static [&'static str])];
const ALIGN: Charts = &[
    ("loss", &["loss", "info_nce"]),
    ("temperature τ", &["temperature"]),
    ("learning rate", &["learning_rate"]),
    ("held-out retrieval", &["validation/r1", "validation/mrr", "validation/cosine_r1"]),
    ("gradient norm", &["grad_norm"]),
];
const INSTRUCT: Charts = &[
    ("loss", &["loss", "sft", "validation/sft"]),
    ("worth of the slots: loss with zeros − loss with slots", &["usage_gap", "validation/usage_gap"]),
    ("learning rates", &["learning_rate", "expander_learning_rate", "scale_learning_rate"]),
    ("gradient norm", &["grad_norm"]),
];

/// Returns the page of an evaluation whose figures are in `result`.
pub(super) fn page(context: &OpenContext<'_>, task: &Evaluate, result: &TaskResult) -> Result<String> {
    let mut page = Page::new("llink: what was learnt");
    for (number, section) in measured::sections(&result.figures).iter().enumerate() {
        page.measured(section);
        if number == 0 {
            page.note(&format!(
                "{} has the ids of these pairs, and the rank of each in every row of the table.",
                task.benchmark
            ));
        }
    }
    if let Some(artifact) = result.artifacts.iter().find(|a| a.role == Role::Answers) {
        examples(&mut page, &context.read(artifact)?);
    }
    if let Some(artifact) = task.dropped.iter().find(|artifact| artifact.rows > 0) {
        let name = context.describe(artifact);
        dropped(&mut page, &context.read(artifact)?, &name)?;
    }
    for (title, metrics, charts) in [
        ("Stage A: training the projector", &task.align_metrics, ALIGN),
        ("Stage B: training slots and adapter", &task.instruct_metrics, INSTRUCT),
    ] {
        trained(context, &mut page, title, metrics, charts)?;
    }
    Ok(page.html())
}

/// Adds the first answers, beside the expected ones.
fn examples(page: &mut Page, lines: &[u8]) {
    let lines = String::from_utf8_lossy(lines);
    let rows: Vec<Value> = lines.lines().take(EXAMPLES).filter_map(|line| serde_json::from_str(line).ok()).collect();
    let Some(given) = rows.first().and_then(|row| row["answers"].as_object()) else {
        return;
    };
    let given: Vec<&String> = given.keys().collect();
    page.section("Some answers");
    let mut columns = vec!["instruction", "text", "wanted"];
    columns.extend(given.iter().map(|name| name.as_str()));
    let cells = |row: &Value| {
        let answers = given.iter().map(|name| &row["answers"][name.as_str()]);
        let all = [&row["instruction"], &row["foreign"], &row["expected"]].into_iter().chain(answers);
        all.map(|value| value.as_str().unwrap_or_default().to_owned()).collect()
    };
    page.table(&columns, rows.iter().map(cells));
}

/// Adds the pairs with the lowest margins among those that were left out.
fn dropped(page: &mut Page, content: &[u8], name: &str) -> Result<()> {
    let pairs: Vec<Dropped> = margin::lines(content, name).take(EXAMPLES).collect::<Result<_>>()?;
    page.section("Training pairs left out for their low margin");
    page.note(&format!("These are the first of {name}, which lists all of its shard."));
    let cells = |pair: Dropped| vec![format!("{:.3}", pair.margin), pair.english, pair.foreign];
    page.table(&["margin", "English", "foreign"], pairs.into_iter().map(cells));
    Ok(())
}

fn trained(
    context: &OpenContext<'_>,
    page: &mut Page,
    title: &str,
    metrics: &[Artifact],
    charts: Charts,
) -> Result<()> {
    let Some(artifact) = metrics.first() else { return Ok(()) };
    let content = context.read(artifact)?;
    let lines = String::from_utf8_lossy(&content);
    page.section(title);
    for (title, names) in charts {
        let curves = curves(&lines, names);
        if !curves.is_empty() {
            page.svg(&chart(title, &curves)?);
        }
    }
    Ok(())
}
