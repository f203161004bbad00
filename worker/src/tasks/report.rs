//! What was measured as a page for people.

use llink_datasets::store::Store;
use llink_proto::{Artifact, Evaluate, TaskResult};
use serde_json::Value;

use super::TaskContext;
use crate::Result;
use crate::report::{Page, Table, chart, curves};

/// Answers that are shown.
const EXAMPLES: usize = 12;
/// Charts of each training: their titles and the numbers in them.
type Charts = &'static [(&'static str, &'static [&'static str])];
const ALIGN: Charts = &[
    ("loss", &["loss", "info_nce"]),
    ("temperature τ", &["temperature"]),
    ("learning rate", &["learning_rate"]),
    ("held-out retrieval", &["validation/r1", "validation/mrr"]),
    ("gradient norm", &["grad_norm"]),
];
const INSTRUCT: Charts = &[
    ("loss", &["loss", "sft", "validation/sft"]),
    (
        "worth of the slots: loss with zeros − loss with slots",
        &["usage_gap", "validation/usage_gap"],
    ),
    (
        "learning rates",
        &["learning_rate", "expander_learning_rate", "scale_learning_rate"],
    ),
    ("gradient norm", &["grad_norm"]),
];

/// The page of an evaluation whose figures are in `result`.
pub(super) fn page(context: &TaskContext, store: &Store, task: &Evaluate, result: &TaskResult) -> Result<String> {
    let mut page = Page::new("llink: what was learnt");
    let figures = Figures(result);
    figures.retrieval(&mut page);
    figures.tokens(&mut page);
    figures.answers(&mut page);
    figures.judged(&mut page);
    if let Some(artifact) = result.artifacts.iter().find(|a| a.role == "answers") {
        examples(&mut page, &context.read(store, artifact)?);
    }
    for (title, metrics, charts) in [
        ("Stage A: training the projector", &task.align_metrics, ALIGN),
        ("Stage B: training slots and adapter", &task.instruct_metrics, INSTRUCT),
    ] {
        trained(context, store, &mut page, title, metrics, charts)?;
    }
    Ok(page.html())
}

struct Figures<'a>(&'a TaskResult);

impl Figures<'_> {
    fn get(&self, name: &str) -> Option<f64> {
        self.0.figures.get(name).copied()
    }

    /// Values of `of.figure`, if all are there.
    fn row(&self, of: &str, figures: &[&str], digits: usize) -> Option<Vec<String>> {
        let values = figures.iter().map(|figure| self.get(&format!("{of}.{figure}")));
        values
            .map(|value| value.map(|value| format!("{value:.digits$}")))
            .collect()
    }

    fn retrieval(&self, page: &mut Page) {
        let Some(pairs) = self.get("pairs") else { return };
        page.section(&format!("Retrieval among {pairs} held-out pairs"));
        let mut table = Table::new(&["", "R@1", "R@5", "R@10", "MRR", "mean rank"]);
        for (name, of) in [
            ("chance", "chance"),
            ("before alignment", "before"),
            ("after alignment", "after"),
            ("by mean slot", "instructed"),
        ] {
            if let (Some(mut row), Some(rank)) = (
                self.row(of, &["r1", "r5", "r10", "mrr"], 4),
                self.row(of, &["mean_rank"], 1),
            ) {
                row.extend(rank);
                table.numbers(name, &row);
            }
        }
        page.table(table);
    }

    fn tokens(&self, page: &mut Page) {
        let (Some(foreign), Some(english)) = (self.get("decoder_tokens.foreign"), self.get("decoder_tokens.english"))
        else {
            return;
        };
        page.section("Token inflation");
        page.note(&format!(
            "The decoder's tokenizer spends {foreign:.1} tokens on a foreign sentence and {english:.1} on its English twin: {:.1} \
             times as many.",
            foreign / english
        ));
    }

    fn answers(&self, page: &mut Page) {
        for (of, title) in [
            ("answers", "held-out instructions"),
            ("translations", "their translations"),
        ] {
            let given = [
                ("slots", "with slots"),
                ("zeroed", "with zeroed slots"),
                ("direct", "direct fine-tuning"),
            ];
            let rows: Vec<_> = given
                .iter()
                .filter_map(|(name, title)| {
                    let count = self.get(&format!("{of}.{name}.count")).filter(|count| *count > 0.0)?;
                    let row = self.row(&format!("{of}.{name}"), &["exact", "word_recall", "numbers"], 4)?;
                    Some((*title, count, row))
                })
                .collect();
            let Some((_, count, _)) = rows.first() else { continue };
            page.section(&format!("Answers to {count} {title}"));
            let mut table = Table::new(&["", "exact", "word recall", "numbers right"]);
            rows.iter().for_each(|(title, _, row)| table.numbers(title, row));
            page.table(table);
        }
    }

    fn judged(&self, page: &mut Page) {
        let against = [("base", "the base decoder"), ("direct", "direct fine-tuning")];
        let rows: Vec<_> = against
            .iter()
            .filter_map(|(name, title)| {
                Some((
                    *title,
                    self.row(&format!("judged.{name}"), &["win", "tie", "loss", "unclear"], 0)?,
                ))
            })
            .collect();
        if rows.is_empty() {
            return;
        }
        page.section("Judged preference");
        let mut table = Table::new(&["our answer against that of", "win", "tie", "loss", "unclear"]);
        rows.iter().for_each(|(title, row)| table.numbers(title, row));
        page.table(table);
        page.note("Each pair of answers was judged twice, in either order.");
    }
}

/// The first answers, beside what was wanted.
fn examples(page: &mut Page, lines: &[u8]) {
    let lines = String::from_utf8_lossy(lines);
    let rows: Vec<Value> = lines
        .lines()
        .take(EXAMPLES)
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let Some(given) = rows.first().and_then(|row| row["answers"].as_object()) else {
        return;
    };
    let given: Vec<&String> = given.keys().collect();
    page.section("Some answers");
    let mut columns = vec!["instruction", "text", "wanted"];
    columns.extend(given.iter().map(|name| name.as_str()));
    let mut table = Table::new(&columns);
    for row in &rows {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut cells = vec![text(&row["instruction"]), text(&row["foreign"]), text(&row["expected"])];
        cells.extend(given.iter().map(|name| text(&row["answers"][name.as_str()])));
        table.texts(&cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    page.table(table);
}

fn trained(
    context: &TaskContext,
    store: &Store,
    page: &mut Page,
    title: &str,
    metrics: &[Artifact],
    charts: Charts,
) -> Result<()> {
    let Some(artifact) = metrics.first() else { return Ok(()) };
    let content = context.read(store, artifact)?;
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
