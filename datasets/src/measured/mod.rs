//! The figures of trainings and of `evaluate`. A manifest holds them by name; here each has its type.
//!
//! The terminal, `report.html` and the model card show the same [`Section`]s; only their rendering differs.

mod cost;
mod judged;
mod sections;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use cost::AnswerCost;
pub use judged::Judged;
pub use sections::{Section, Table, sections, thousands};

/// Measured numbers by name, as in a manifest.
pub type Figures = BTreeMap<String, f64>;

/// The name of the metric that compares vectors unchanged.
pub const COSINE: &str = "cosine";
/// The name of the figure that holds the number of held-out pairs in the retrieval.
pub const PAIRS: &str = "pairs";
/// The name of the figure that holds the number of training pairs behind the encoder's means.
pub const CENTERED_ON: &str = "retrieval.centered_on";
/// The name of the figure that holds the number of answered instructions whose text Stage A may have been trained on.
pub const TRAINED_AS_PAIRS: &str = "answers.trained_as_pairs";
/// The name of the figure that holds the number of sentences of the evaluation set that are among the training rows.
pub const SET_TRAINED_ON: &str = "set.trained_on";

/// Adds the numbers of a part to figures, as `name.field`. Without a name they are called as the fields.
///
/// # Panics
/// When the part is no struct.
pub fn put(figures: &mut Figures, name: &str, part: &impl Serialize) {
    let part = serde_json::to_value(part).expect("a part is plain data");
    for (field, value) in part.as_object().expect("a part is a struct") {
        figures.extend(value.as_f64().map(|value| (dotted(name, field), value)));
    }
}

/// Returns the part that [`put`] added, if all of its figures are there.
#[must_use]
pub fn get<Part: DeserializeOwned>(figures: &Figures, name: &str) -> Option<Part> {
    serde_json::from_value(fields(figures, name).into()).ok()
}

fn dotted(name: &str, field: &str) -> String {
    if name.is_empty() { field.to_owned() } else { format!("{name}.{field}") }
}

fn fields(figures: &Figures, name: &str) -> serde_json::Map<String, Value> {
    let beginning = dotted(name, "");
    let field = |(figure, value): (&String, &f64)| {
        let field = figure.strip_prefix(&beginning).filter(|field| !field.contains('.'))?;
        // A count is a whole number.
        let whole = *value as u64;
        let is_whole = whole as f64 == *value;
        let value = if is_whole { Value::from(whole) } else { Value::from(*value) };
        Some((field.to_owned(), value))
    };
    figures.iter().filter_map(field).collect()
}

/// The time of a training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainingTime {
    /// The seconds of the steps that counted.
    pub step_seconds: f64,
    /// The share of the time that these steps took. The rest was lost with ranks, waited for, or done twice.
    pub effective_time: Option<f64>,
}

/// The mean number of decoder tokens in a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tokens {
    /// In an English sentence.
    pub english: f64,
    /// In a foreign sentence.
    pub foreign: f64,
}

impl Tokens {
    /// The name in figures.
    pub const NAME: &str = "decoder_tokens";
}

/// The origin of an answer.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, strum::Display, strum::EnumIter,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Arm {
    /// The decoder reads slots.
    Slots,
    /// The decoder reads slots of zeros.
    Zeroed,
    /// A decoder that was trained on the foreign text itself reads that text.
    Direct,
    /// The decoder as it came reads the foreign text.
    Base,
}

impl Arm {
    /// Returns the name in tables.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Slots => "with slots",
            Self::Zeroed => "with zeroed slots",
            Self::Direct => "direct fine-tuning",
            Self::Base => "the base decoder",
        }
    }
}

/// The instructions whose answers are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "snake_case")]
pub enum Scored {
    /// All held-out instructions.
    Answers,
    /// Those that ask for a translation.
    Translations,
    /// The sentences of the job's evaluation set.
    Set,
}

impl Scored {
    /// Returns the name of an arm's scores in figures.
    #[must_use]
    pub fn by(self, arm: Arm) -> String {
        format!("{self}.{arm}")
    }
}

/// The scores of a set of answers. Each share counts only the references that it applies to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerScores {
    /// The number of answers.
    pub count: usize,
    /// The share of answers that equal the reference word for word.
    pub exact: f64,
    /// The mean share of the reference's words that the answer has. Numbers are left out, and a repeated word counts
    /// each time.
    pub word_recall: f64,
    /// The share of the references with numbers whose answer has exactly the same numbers, each with its magnitude and unit.
    pub numbers: f64,
    /// The number of references with numbers.
    #[serde(default)]
    pub with_numbers: usize,
    /// The chrF2 over all answers, from 0 to 100.
    pub chrf: f64,
    /// The chrF2++ over all answers, from 0 to 100.
    #[serde(default)]
    pub chrf_pp: f64,
    /// The BLEU over all answers, from 0 to 100.
    #[serde(default)]
    pub bleu: f64,
    /// The number of references in Chinese script.
    #[serde(default)]
    pub chinese: usize,
}

impl AnswerScores {
    /// Returns whether most references are Chinese, so that BLEU counts characters.
    #[must_use]
    pub fn is_chinese(&self) -> bool {
        self.chinese * 2 > self.count
    }

    /// Returns sacrebleu's signatures of the public measures.
    #[must_use]
    pub fn signatures(&self) -> String {
        let tokens = if self.is_chinese() { "zh" } else { "13a" };
        format!(
            "chrF2 is `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0` of sacrebleu, chrF2++ the same with `nw:2`, and BLEU \
             `nrefs:1|case:mixed|eff:no|tok:{tokens}|smooth:exp|version:2.6.0`."
        )
    }
}

/// The vectors that find the English sentence of a foreign one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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
            "" => self.retriever.to_string(),
            metric => format!("{}.{metric}", self.retriever),
        }
    }

    /// Adds the row to figures: `retrieval.stage_a.cosine.r1` and so on.
    pub fn put(&self, figures: &mut Figures) {
        put(figures, &format!("retrieval.{}", self.name()), self);
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
        let mut fields = fields(figures, of);
        fields
            .extend([("retriever", retriever), ("metric", metric)].map(|(name, text)| (name.to_owned(), text.into())));
        serde_json::from_value(fields.into()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn row(retriever: Retriever, metric: &str, r1: f64) -> Retrieval {
        Retrieval { retriever, metric: metric.into(), r1, r5: 0.5, r10: 0.6, mrr: 0.3, mean_rank: 12.34 }
    }

    #[test]
    fn rows_come_back_from_figures_in_their_order() {
        let rows = [
            row(Retriever::Chance, "", 0.001),
            row(Retriever::Encoder, COSINE, 0.67),
            row(Retriever::Encoder, "centered", 0.818),
            row(Retriever::StageA, COSINE, 0.61),
            row(Retriever::StageA, "whitened", 0.83),
            row(Retriever::StageB, COSINE, 0.4),
        ];
        let mut figures = Figures::new();
        rows.iter().rev().for_each(|row| row.put(&mut figures));
        assert_eq!(figures["retrieval.stage_a.whitened.r1"], 0.83);
        assert_eq!(figures["retrieval.chance.mean_rank"], 12.34);
        assert_eq!(Retrieval::rows(&figures), rows);
    }

    #[test]
    fn a_part_comes_back_whole_or_not_at_all() {
        let mut figures = Figures::from([("loss".to_owned(), 1.5)]);
        let time = TrainingTime { step_seconds: 12.0, effective_time: None };
        put(&mut figures, "", &time);
        let scores = AnswerScores { count: 40, chrf: 41.2, ..AnswerScores::default() };
        let name = Scored::Answers.by(Arm::Slots);
        put(&mut figures, &name, &scores);
        assert_eq!((get(&figures, ""), get(&figures, &name)), (Some(time), Some(scores)));
        figures.remove("answers.slots.exact").unwrap();
        assert_eq!(get::<AnswerScores>(&figures, &name), None);
    }
}
