//! The figures that `evaluate` measures, as its manifest holds them, and the tables that are made of them.
//!
//! The terminal, `report.html` and the model card show the same [`Section`]s; only their rendering differs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// Measured numbers by name, as in a manifest.
pub type Figures = BTreeMap<String, f64>;

/// The name of the metric that compares vectors unchanged.
pub const COSINE: &str = "cosine";
/// The name of the figure that holds the number of held-out pairs in the retrieval.
pub const PAIRS: &str = "pairs";
/// The name of the figure that holds the number of training pairs behind the encoder's means.
pub const CENTRED_ON: &str = "retrieval.centred_on";
/// The names of the figures with the mean number of decoder tokens in an English and in a foreign sentence.
pub const TOKENS: [&str; 2] = ["decoder_tokens.english", "decoder_tokens.foreign"];

/// The vectors that find the English sentence of a foreign one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retriever {
    /// Random guessing finds the sentence.
    Chance,
    /// The encoder's vectors of both sentences, without decoder or training.
    Encoder,
    /// The projected vector, compared with the teacher's.
    StageA,
    /// The mean of Stage B's slots, compared with the teacher's vector.
    StageB,
}

impl Retriever {
    /// All retrievers, from the weakest baseline on.
    pub const ALL: [Self; 4] = [Self::Chance, Self::Encoder, Self::StageA, Self::StageB];

    /// Returns the name in figures.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chance => "chance",
            Self::Encoder => "encoder",
            Self::StageA => "stage_a",
            Self::StageB => "stage_b",
        }
    }

    /// Returns the name in tables.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Chance => "chance",
            Self::Encoder => "encoder alone",
            Self::StageA => "after Stage A",
            Self::StageB => "after Stage B, by mean slot",
        }
    }
}

/// How well held-out sentences find their translations; a row of the retrieval table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// The vectors that find the translations.
    pub retriever: Retriever,
    /// The metric that compares vectors: [`COSINE`] or another metric of `[align]`. Empty for chance.
    pub metric: String,
    /// Share of sentences whose own translation comes first.
    pub r1: f64,
    /// Share of sentences whose own translation is among the first 5.
    pub r5: f64,
    /// Share of sentences whose own translation is among the first 10.
    pub r10: f64,
    /// Mean of the reciprocal rank.
    pub mrr: f64,
    /// Mean rank; 1 is best.
    pub mean_rank: f64,
}

impl Retrieval {
    /// Returns the name of the row in figures and in `benchmark.jsonl`: `stage_a.cosine`, or `chance`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.metric.as_str() {
            "" => self.retriever.as_str().to_owned(),
            metric => format!("{}.{metric}", self.retriever.as_str()),
        }
    }

    /// Returns the row as figures: `retrieval.stage_a.cosine.r1` and so on.
    pub fn figures(&self) -> impl Iterator<Item = (String, f64)> {
        let name = self.name();
        let values = [
            ("r1", self.r1),
            ("r5", self.r5),
            ("r10", self.r10),
            ("mrr", self.mrr),
            ("mean_rank", self.mean_rank),
        ];
        values
            .into_iter()
            .map(move |(figure, value)| (format!("retrieval.{name}.{figure}"), value))
    }

    /// Returns the rows that the figures hold, by retriever, plain cosine first.
    #[must_use]
    pub fn rows(figures: &Figures) -> Vec<Self> {
        let mut rows: Vec<Self> = figures.keys().filter_map(|name| Self::at(figures, name)).collect();
        rows.sort_by_key(|row| (row.retriever, row.metric != COSINE, row.metric.clone()));
        rows
    }

    /// Returns the row whose figures begin with `name`.
    fn at(figures: &Figures, name: &str) -> Option<Self> {
        let of = name.strip_suffix(".r1")?;
        let row = of.strip_prefix("retrieval.")?;
        let (retriever, metric) = row.split_once('.').unwrap_or((row, ""));
        let get = |figure: &str| figures.get(&format!("{of}.{figure}")).copied();
        Some(Self {
            retriever: Retriever::ALL.into_iter().find(|r| r.as_str() == retriever)?,
            metric: metric.to_owned(),
            r1: get("r1")?,
            r5: get("r5")?,
            r10: get("r10")?,
            mrr: get("mrr")?,
            mean_rank: get("mean_rank")?,
        })
    }
}

/// A part of the measurements: a heading, an optional table, and notes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The heading of the section.
    pub title: String,
    /// The table of its numbers.
    pub table: Option<Table>,
    /// Notes on the numbers, of one or two sentences each.
    pub notes: Vec<String>,
}

/// A table of numbers with headings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Headings of the columns that hold words; the first is usually empty.
    pub words: Vec<&'static str>,
    /// Headings of the columns that hold numbers.
    pub numbers: Vec<&'static str>,
    /// The rows, with a cell for each column.
    pub rows: Vec<Vec<String>>,
}

/// Returns everything that `evaluate` measured, in reading order.
#[must_use]
pub fn sections(figures: &Figures) -> Vec<Section> {
    let answers = [
        ("answers", "held-out instructions"),
        ("translations", "held-out sentences to translate"),
    ];
    let mut found = Vec::new();
    found.extend(retrieval(figures));
    found.extend(token_inflation(figures));
    found.extend(
        answers
            .into_iter()
            .filter_map(|(of, title)| answered(figures, of, title)),
    );
    found.extend(judged(figures));
    found
}

fn retrieval(figures: &Figures) -> Option<Section> {
    let pairs = figures.get(PAIRS)?;
    let rows = Retrieval::rows(figures);
    let cells = |row: &Retrieval| {
        let shares = [row.r1, row.r5, row.r10, row.mrr].map(|share| format!("{share:.4}"));
        let words = [row.retriever.title().to_owned(), row.metric.clone()];
        let rank = [format!("{:.1}", row.mean_rank)];
        words.into_iter().chain(shares).chain(rank).collect()
    };
    let mut notes = Vec::new();
    if rows.iter().any(|row| row.retriever == Retriever::Encoder) {
        let mut note =
            "The encoder alone compares its vectors of both sentences: no decoder, no training on pairs.".to_owned();
        if let Some(centred_on) = figures.get(CENTRED_ON) {
            let _ = write!(
                note,
                " Its centred row takes from each language the mean of {} training sentences.",
                thousands(*centred_on as u64)
            );
        }
        notes.push(note);
    }
    Some(Section {
        title: format!("Retrieval among {} held-out pairs", thousands(*pairs as u64)),
        table: Some(Table {
            words: vec!["", "metric"],
            numbers: vec!["R@1", "R@5", "R@10", "MRR", "mean rank"],
            rows: rows.iter().map(cells).collect(),
        }),
        notes,
    })
}

fn token_inflation(figures: &Figures) -> Option<Section> {
    let [english, foreign] = TOKENS.map(|name| figures.get(name).copied());
    let (english, foreign) = (english?, foreign?);
    Some(Section {
        title: "Token inflation".to_owned(),
        table: None,
        notes: vec![format!(
            "The decoder's own tokenizer spends {foreign:.1} tokens on a foreign sentence and {english:.1} on its English \
             translation: {:.1} times as many.",
            foreign / english
        )],
    })
}

/// Returns the section on answers, by the input of the decoder.
fn answered(figures: &Figures, of: &str, title: &str) -> Option<Section> {
    let given = [
        ("slots", "with slots"),
        ("zeroed", "with zeroed slots"),
        ("direct", "direct fine-tuning"),
    ];
    let get = |given: &str, figure: &str| figures.get(&format!("{of}.{given}.{figure}")).copied();
    let rows: Vec<Vec<String>> = given
        .iter()
        .filter_map(|(name, title)| {
            let shares = ["exact", "word_recall", "numbers"].map(|figure| get(name, figure));
            let mut cells = vec![(*title).to_owned()];
            for share in shares {
                cells.push(format!("{:.4}", share?));
            }
            cells.push(format!("{:.2}", get(name, "chrf")?));
            Some(cells)
        })
        .collect();
    let count = given
        .iter()
        .find_map(|(name, _)| get(name, "count"))
        .filter(|n| *n > 0.0)?;
    let seen = figures.get("answers.trained_as_pairs").filter(|seen| **seen > 0.0);
    let note = |seen: &f64| {
        format!(
            "{} of the validation instructions have a text that Stage A may have been trained on as a pair: on new text the answers \
             are worse.",
            thousands(*seen as u64)
        )
    };
    Some(Section {
        title: format!("Answers to {} {title}", thousands(count as u64)),
        table: Some(Table {
            words: vec![""],
            numbers: vec!["exact", "word recall", "numbers", "chrF2"],
            rows,
        }),
        notes: seen.map(note).into_iter().collect(),
    })
}

/// Returns the section on the judge's preferences.
fn judged(figures: &Figures) -> Option<Section> {
    let counts = ["win", "tie", "loss", "unclear"];
    let against = [("base", "the base decoder"), ("direct", "direct fine-tuning")];
    let rows: Vec<Vec<String>> = against
        .iter()
        .filter_map(|(name, title)| {
            let mut cells = vec![(*title).to_owned()];
            for count in counts {
                cells.push(thousands(*figures.get(&format!("judged.{name}.{count}"))? as u64));
            }
            Some(cells)
        })
        .collect();
    (!rows.is_empty()).then(|| Section {
        title: "Judged preference: our answers against those of".to_owned(),
        table: Some(Table {
            words: vec![""],
            numbers: counts.to_vec(),
            rows,
        }),
        notes: vec!["Each pair of answers was judged twice, in either order.".to_owned()],
    })
}

impl Table {
    /// Returns the headings of all columns.
    pub fn headings(&self) -> impl Iterator<Item = &'static str> {
        self.words.iter().chain(&self.numbers).copied()
    }

    /// Returns the lines for a terminal, with words aligned left and numbers aligned right.
    #[must_use]
    pub fn text(&self) -> Vec<String> {
        let headings: Vec<String> = self.headings().map(str::to_owned).collect();
        let all = || std::iter::once(&headings).chain(&self.rows);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate();
            let aligned = cells.map(|(column, (cell, width))| match column < self.words.len() {
                true => format!("{cell:width$}"),
                false => format!("{cell:>width$}"),
            });
            format!("  {}", aligned.collect::<Vec<_>>().join("  ").trim_end())
        };
        all().map(line).collect()
    }

    /// Returns the table as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let alignment = self
            .words
            .iter()
            .map(|_| "---")
            .chain(self.numbers.iter().map(|_| "---:"));
        let mut text = markdown_row(self.headings());
        text.push_str(&markdown_row(alignment));
        for cells in &self.rows {
            text.push_str(&markdown_row(cells.iter().map(String::as_str)));
        }
        text
    }
}

fn markdown_row<'a>(cells: impl Iterator<Item = &'a str>) -> String {
    format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

/// Formats a number with thousands separators: 12345 becomes 12,345.
#[must_use]
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(retriever: Retriever, metric: &str, r1: f64) -> Retrieval {
        Retrieval {
            retriever,
            metric: metric.into(),
            r1,
            r5: 0.5,
            r10: 0.6,
            mrr: 0.3,
            mean_rank: 12.34,
        }
    }

    #[test]
    fn rows_come_back_from_figures_in_their_order() {
        let rows = [
            row(Retriever::Chance, "", 0.001),
            row(Retriever::Encoder, COSINE, 0.67),
            row(Retriever::Encoder, "centred", 0.818),
            row(Retriever::StageA, COSINE, 0.61),
            row(Retriever::StageA, "whitened", 0.83),
            row(Retriever::StageB, COSINE, 0.4),
        ];
        let figures: Figures = rows.iter().rev().flat_map(Retrieval::figures).collect();
        assert_eq!(figures["retrieval.stage_a.whitened.r1"], 0.83);
        assert_eq!(figures["retrieval.chance.mean_rank"], 12.34);
        assert_eq!(Retrieval::rows(&figures), rows);
    }

    #[test]
    fn a_table_is_aligned_in_a_terminal_and_in_markdown() {
        let mut figures: Figures = row(Retriever::Encoder, "centred", 0.818).figures().collect();
        figures.extend(row(Retriever::Chance, "", 0.001).figures());
        figures.extend([(PAIRS.to_owned(), 1024.0), (CENTRED_ON.to_owned(), 4096.0)]);
        let section = &sections(&figures)[0];
        assert_eq!(section.title, "Retrieval among 1,024 held-out pairs");
        let table = section.table.as_ref().unwrap();
        assert_eq!(
            table.text(),
            [
                "                 metric      R@1     R@5    R@10     MRR  mean rank",
                "  chance                  0.0010  0.5000  0.6000  0.3000       12.3",
                "  encoder alone  centred  0.8180  0.5000  0.6000  0.3000       12.3",
            ]
        );
        let markdown = table.markdown();
        assert!(markdown.starts_with("|  | metric | R@1 |"), "{markdown}");
        assert!(markdown.contains("\n| --- | --- | ---: |"), "{markdown}");
        assert!(markdown.contains("| encoder alone | centred | 0.8180 |"), "{markdown}");
        assert!(
            section.notes[0].contains("the mean of 4,096 training sentences"),
            "{:?}",
            section.notes
        );
    }

    #[test]
    fn what_was_not_measured_is_not_shown() {
        assert_eq!(sections(&Figures::new()), []);
        let answered = [
            ("count", 40.0),
            ("exact", 0.1),
            ("word_recall", 0.5),
            ("numbers", 0.25),
            ("chrf", 41.234),
        ];
        let figures: Figures = answered.map(|(name, x)| (format!("answers.slots.{name}"), x)).into();
        let found = sections(&figures);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].title, "Answers to 40 held-out instructions");
        let rows = &found[0].table.as_ref().unwrap().rows;
        assert_eq!(
            rows,
            &[["with slots", "0.1000", "0.5000", "0.2500", "41.23"].map(str::to_owned)]
        );
        assert_eq!(found[0].notes, [""; 0]);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1000), "1,000");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
