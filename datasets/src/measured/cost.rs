//! What an answer costs.

use serde::{Deserialize, Serialize};
use strum::IntoEnumIterator;

use super::{Arm, Figures, Section, Table, get};

/// The cost of an answer in one arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerCost {
    /// The mean number of tokens and slots that the decoder reads.
    pub prompt_tokens: f64,
    /// The mean number of tokens that it writes, if the arm's answers were generated.
    pub answer_tokens: Option<f64>,
    /// The median time from the text's vector, or from the prompt, to the first token, in milliseconds.
    pub first_token_ms: Option<f64>,
    /// The median time of the encoder for a text, in milliseconds, if the arm needs it.
    pub encoder_ms: Option<f64>,
}

impl AnswerCost {
    /// Returns the name of an arm's cost in figures.
    #[must_use]
    pub fn of(arm: Arm) -> String {
        format!("cost.{arm}")
    }

    /// Returns the figures without times, which are those of one machine.
    #[must_use]
    pub fn without_times(figures: &Figures) -> Figures {
        let is_time = |name: &str| name.starts_with("cost.") && name.ends_with("_ms");
        let kept = figures.iter().filter(|(name, _)| !is_time(name));
        kept.map(|(name, value)| (name.clone(), *value)).collect()
    }

    fn cells(&self) -> [Option<f64>; 5] {
        let uncached = self.encoder_ms.zip(self.first_token_ms).map(|(encoder, first)| encoder + first);
        let prompt = Some(self.prompt_tokens);
        [prompt, self.answer_tokens, self.encoder_ms, self.first_token_ms, uncached]
    }
}

/// Returns the section on costs.
pub(super) fn section(figures: &Figures) -> Option<Section> {
    let cost = |arm: Arm| Some((arm, get::<AnswerCost>(figures, &AnswerCost::of(arm))?));
    let costs: Vec<(Arm, AnswerCost)> = Arm::iter().filter_map(cost).collect();
    let number = |cell: Option<f64>| cell.map_or_else(String::new, |cell| format!("{cell:.1}"));
    let row = |(arm, cost): &(Arm, AnswerCost)| {
        let cells = cost.cells().map(number);
        std::iter::once(arm.title().to_owned()).chain(cells).collect()
    };
    let of = |wanted| costs.iter().find(|(arm, _)| *arm == wanted).map(|(_, cost)| cost);
    let fewer = of(Arm::Slots).zip(of(Arm::Base)).map(|(slots, base)| {
        format!(
            "The base decoder reads {:.1} times as many tokens as the prompt with slots has.",
            base.prompt_tokens / slots.prompt_tokens
        )
    });
    let timed = costs.iter().any(|(_, cost)| cost.first_token_ms.is_some()).then(|| {
        "Times are medians over a few texts, one after the other. A cached vector saves the encoder's time; the last column is the \
         time to the first token without one."
            .to_owned()
    });
    (!costs.is_empty()).then(|| Section {
        title: "Cost of an answer".to_owned(),
        table: Some(Table {
            words: vec![""],
            numbers: vec!["prompt tokens", "answer tokens", "encoder ms", "first token ms", "both ms"],
            rows: costs.iter().map(row).collect(),
        }),
        notes: fewer.into_iter().chain(timed).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::put;
    use super::*;

    #[test]
    fn a_card_has_the_tokens_and_a_report_the_times_too() {
        let mut figures = Figures::new();
        let slots = AnswerCost {
            prompt_tokens: 40.0,
            answer_tokens: Some(12.0),
            first_token_ms: Some(20.5),
            encoder_ms: Some(5.0),
        };
        let base = AnswerCost { prompt_tokens: 120.0, first_token_ms: Some(60.0), ..AnswerCost::default() };
        put(&mut figures, &AnswerCost::of(Arm::Slots), &slots);
        put(&mut figures, &AnswerCost::of(Arm::Base), &base);
        let shown = section(&figures).unwrap();
        let rows = shown.table.unwrap().rows;
        assert_eq!(rows[0], ["with slots", "40.0", "12.0", "5.0", "20.5", "25.5"]);
        assert_eq!(rows[1], ["the base decoder", "120.0", "", "", "60.0", ""]);
        assert!(shown.notes[0].contains("3.0 times"), "{:?}", shown.notes);
        let shown = section(&AnswerCost::without_times(&figures)).unwrap();
        assert_eq!(shown.table.unwrap().rows[0], ["with slots", "40.0", "12.0", "", "", ""]);
        assert_eq!(shown.notes.len(), 1);
    }
}
