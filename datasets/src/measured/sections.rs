//! The tables that are made of the figures.

use std::fmt::Write;

use strum::IntoEnumIterator;

use super::{
    AnswerScores, Arm, CENTERED_ON, Figures, PAIRS, Retrieval, Retriever, SET_TRAINED_ON, Scored, TRAINED_AS_PAIRS,
    Tokens, cost, get, judged,
};

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
    let translations = (Scored::Translations, "held-out sentences to translate");
    let answers = match are_all_translations(figures) {
        true => vec![translations],
        false => vec![(Scored::Answers, "held-out instructions"), translations],
    };
    let mut found = Vec::new();
    found.extend(retrieval(figures));
    found.extend(token_inflation(figures));
    found.extend(answers.into_iter().filter_map(|(of, title)| answered(figures, of, title)));
    found.extend(answered(figures, Scored::Set, "sentences of the evaluation set"));
    found.extend(cost::section(figures));
    found.extend(judged::sections(figures));
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
        if let Some(centered_on) = figures.get(CENTERED_ON) {
            let _ = write!(
                note,
                " Its centered row takes from each language the mean of {} training sentences.",
                thousands(*centered_on as u64)
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
    let Tokens { english, foreign } = get(figures, Tokens::NAME)?;
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

/// Returns whether every answered instruction asks for a translation, so that the two tables are the same.
fn are_all_translations(figures: &Figures) -> bool {
    let counts = |of: Scored| Arm::iter().map(move |arm| figures.get(&format!("{}.count", of.by(arm))));
    counts(Scored::Answers).eq(counts(Scored::Translations))
}

/// Returns the section on answers, by the input of the decoder.
fn answered(figures: &Figures, of: Scored, title: &str) -> Option<Section> {
    let scores = |arm: Arm| Some((arm, get::<AnswerScores>(figures, &of.by(arm))?));
    let scores: Vec<(Arm, AnswerScores)> = Arm::iter().filter_map(scores).collect();
    let cells = |(arm, s): &(Arm, AnswerScores)| {
        let shares = [s.exact, s.word_recall, s.numbers].map(|share| format!("{share:.4}"));
        let title = [arm.title().to_owned()];
        title.into_iter().chain(shares).chain([s.chrf, s.chrf_pp, s.bleu].map(|score| format!("{score:.2}"))).collect()
    };
    let count = scores.first().map(|(_, scores)| scores.count).filter(|count| *count > 0)?;
    let signatures = scores.first().map(|(_, scores)| scores.signatures());
    let (name, what) = match of {
        Scored::Set => (SET_TRAINED_ON, "of its texts are among the training rows: on new text the answers are worse."),
        Scored::Answers | Scored::Translations => (
            TRAINED_AS_PAIRS,
            "of the validation instructions have a text that Stage A may have been trained on as a pair: on new text the answers are \
             worse.",
        ),
    };
    let seen = figures.get(name).filter(|seen| **seen > 0.0);
    let note = |seen: &f64| format!("{} {what}", thousands(*seen as u64));
    Some(Section {
        title: format!("Answers to {} {title}", thousands(count as u64)),
        table: Some(Table {
            words: vec![""],
            numbers: vec!["exact", "word recall", "numbers", "chrF2", "chrF2++", "BLEU"],
            rows: scores.iter().map(cells).collect(),
        }),
        notes: signatures.into_iter().chain(seen.map(note)).collect(),
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
        let alignment = self.words.iter().map(|_| "---").chain(self.numbers.iter().map(|_| "---:"));
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
    let mut groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).collect();
    groups.reverse();
    String::from_utf8(groups.join(&b',')).expect("digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::super::tests::row;
    use super::*;

    #[test]
    fn a_table_is_aligned_in_a_terminal_and_in_markdown() {
        let mut figures = Figures::new();
        row(Retriever::Encoder, "centered", 0.818).put(&mut figures);
        row(Retriever::Chance, "", 0.001).put(&mut figures);
        figures.extend([(PAIRS.to_owned(), 1024.0), (CENTERED_ON.to_owned(), 4096.0)]);
        let section = &sections(&figures)[0];
        assert_eq!(section.title, "Retrieval among 1,024 held-out pairs");
        let table = section.table.as_ref().unwrap();
        assert_eq!(
            table.text(),
            [
                "                 metric       R@1     R@5    R@10     MRR  mean rank",
                "  chance                   0.0010  0.5000  0.6000  0.3000       12.3",
                "  encoder alone  centered  0.8180  0.5000  0.6000  0.3000       12.3",
            ]
        );
        let markdown = table.markdown();
        assert!(markdown.starts_with("|  | metric | R@1 |"), "{markdown}");
        assert!(markdown.contains("\n| --- | --- | ---: |"), "{markdown}");
        assert!(markdown.contains("| encoder alone | centered | 0.8180 |"), "{markdown}");
        assert!(section.notes[0].contains("the mean of 4,096 training sentences"), "{:?}", section.notes);
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
            ("chrf_pp", 43.5),
            ("bleu", 12.0),
        ];
        let figures: Figures = answered.map(|(name, x)| (format!("answers.slots.{name}"), x)).into();
        let found = sections(&figures);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].title, "Answers to 40 held-out instructions");
        let rows = &found[0].table.as_ref().unwrap().rows;
        assert_eq!(rows, &[["with slots", "0.1000", "0.5000", "0.2500", "41.23", "43.50", "12.00"].map(str::to_owned)]);
        assert_eq!(found[0].notes.len(), 1);
        assert!(found[0].notes[0].contains("tok:13a"), "{:?}", found[0].notes);
    }

    #[test]
    fn translations_alone_make_one_table() {
        let scores = AnswerScores { count: 40, ..AnswerScores::default() };
        let mut figures = Figures::new();
        for of in [Scored::Answers, Scored::Translations] {
            super::super::put(&mut figures, &of.by(Arm::Slots), &scores);
        }
        let titles = |figures: &Figures| sections(figures).into_iter().map(|s| s.title).collect::<Vec<_>>();
        let translated = "Answers to 40 held-out sentences to translate";
        assert_eq!(titles(&figures), [translated]);
        figures.insert("answers.slots.count".into(), 60.0);
        assert_eq!(titles(&figures), ["Answers to 60 held-out instructions", translated]);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
