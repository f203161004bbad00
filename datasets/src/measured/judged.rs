//! The judge's preferences, and how far they can be trusted.

use serde::{Deserialize, Serialize};

use super::{Arm, Figures, Section, Table, get, thousands};

/// How often the judge preferred our answers to those of another arm, and how far this can be trusted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Ours were better.
    pub win: u64,
    /// Neither was better.
    pub tie: u64,
    /// Theirs were better.
    pub loss: u64,
    /// The judge said nothing that counts.
    pub unclear: u64,
    /// The share of the clear pairs that ours won. A tie counts half.
    pub preferred: Option<f64>,
    /// The lower end of the 95 % bootstrap interval of `preferred`.
    pub low: Option<f64>,
    /// The upper end of that interval.
    pub high: Option<f64>,
    /// The share of pairs whose two orders got different verdicts.
    pub order_flips: Option<f64>,
    /// The share of verdicts that differ between two runs, if there are several.
    pub run_flips: Option<f64>,
    /// The mean number of words of our answers.
    #[serde(default)]
    pub our_words: f64,
    /// The mean number of words of their answers.
    #[serde(default)]
    pub their_words: f64,
    /// The share of the decided pairs with answers of different lengths in which the longer one won.
    pub longer_won: Option<f64>,
}

impl Judged {
    /// Returns the name of the counts against an arm in figures.
    #[must_use]
    pub fn against(arm: Arm) -> String {
        format!("judged.{arm}")
    }

    /// Returns the name of the counts of one task against an arm in figures.
    #[must_use]
    pub fn by_task(arm: Arm, task: &str) -> String {
        format!("judged.{arm}.{task}")
    }

    /// Returns the counts against an arm, first those over all tasks and then those of each task.
    #[must_use]
    pub fn rows(figures: &Figures, arm: Arm) -> Vec<(String, Self)> {
        let beginning = Self::by_task(arm, "");
        let tasks = figures.keys().filter_map(|name| name.strip_prefix(&beginning)?.strip_suffix(".win"));
        let all = std::iter::once(("all".to_owned(), Self::against(arm)));
        let tasks = tasks.map(|task| (task.to_owned(), Self::by_task(arm, task)));
        all.chain(tasks).filter_map(|(task, name)| Some((task, get(figures, &name)?))).collect()
    }
}

/// Returns the sections on the judge's preferences, and on how steady they are.
pub(super) fn sections(figures: &Figures) -> Vec<Section> {
    let of = |arm: Arm| Judged::rows(figures, arm).into_iter().map(move |(task, row)| (arm, task, row));
    let rows: Vec<(Arm, String, Judged)> = [Arm::Base, Arm::Direct].into_iter().flat_map(of).collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let table = |numbers: Vec<&'static str>, cells: fn(&Judged) -> Vec<String>| {
        let row = |(arm, task, judged): &(Arm, String, Judged)| {
            let words = [arm.title().to_owned(), task.clone()];
            words.into_iter().chain(cells(judged)).collect()
        };
        Some(Table { words: vec!["", "task"], numbers, rows: rows.iter().map(row).collect() })
    };
    let repeated = rows.iter().any(|(.., row)| row.run_flips.is_some());
    let asked = match repeated {
        true => "Each pair of answers was judged in either order, in several runs.",
        false => "Each pair of answers was judged twice, in either order.",
    };
    vec![
        Section {
            title: "Judged preference: our answers against those of".to_owned(),
            table: table(vec!["win", "tie", "loss", "unclear", "preferred", "95 % interval"], preferred),
            notes: vec![
                asked.to_owned(),
                "\"preferred\" is the share of the clear pairs that ours won, where a tie counts half. Its interval is a bootstrap \
                 over the pairs and does not include errors of the judge."
                    .to_owned(),
            ],
        },
        Section {
            title: "How steady the judge's verdicts are".to_owned(),
            table: table(
                vec!["differ by order", "differ by run", "our words", "their words", "longer won"],
                steadiness,
            ),
            notes: vec![
                "The first two columns are the shares of verdicts that differ between the two orders and between two runs. The last \
                 one is the share of decided pairs whose longer answer won."
                    .to_owned(),
            ],
        },
    ]
}

fn preferred(judged: &Judged) -> Vec<String> {
    let interval = match (judged.low, judged.high) {
        (Some(low), Some(high)) => format!("{low:.3} to {high:.3}"),
        _ => String::new(),
    };
    let counts = [judged.win, judged.tie, judged.loss, judged.unclear].map(thousands);
    counts.into_iter().chain([share(judged.preferred), interval]).collect()
}

fn steadiness(judged: &Judged) -> Vec<String> {
    let words = [judged.our_words, judged.their_words].map(|words| format!("{words:.1}"));
    let flips = [judged.order_flips, judged.run_flips].map(share);
    flips.into_iter().chain(words).chain([share(judged.longer_won)]).collect()
}

fn share(share: Option<f64>) -> String {
    share.map_or_else(String::new, |share| format!("{share:.3}"))
}

#[cfg(test)]
mod tests {
    use super::super::put;
    use super::*;

    #[test]
    fn verdicts_are_shown_by_task_with_their_doubt() {
        let judged = Judged {
            win: 3,
            tie: 1,
            preferred: Some(0.875),
            low: Some(0.625),
            high: Some(1.0),
            order_flips: Some(0.25),
            our_words: 8.0,
            their_words: 9.5,
            ..Judged::default()
        };
        let mut figures = Figures::new();
        put(&mut figures, &Judged::against(Arm::Base), &judged);
        let name = Judged::by_task(Arm::Base, "bullet_points");
        put(&mut figures, &name, &Judged { win: 1, ..judged });
        let tables: Vec<Table> = sections(&figures).into_iter().filter_map(|s| s.table).collect();
        let cells = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            tables[0].rows,
            [
                cells(&["the base decoder", "all", "3", "1", "0", "0", "0.875", "0.625 to 1.000"]),
                cells(&["the base decoder", "bullet_points", "1", "1", "0", "0", "0.875", "0.625 to 1.000"]),
            ]
        );
        assert_eq!(tables[1].rows[0], cells(&["the base decoder", "all", "0.250", "", "8.0", "9.5", ""]));
    }
}
