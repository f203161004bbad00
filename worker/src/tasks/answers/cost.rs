//! Measures what an answer costs: the decoder's tokens, and the times of the encoder and of the first token.

use std::time::Instant;

use llink_datasets::measured::AnswerCost;

use super::{Answerer, Asked, Slots, TextReader, TextVectors};
use crate::Result;
use crate::models::{ChatPrompt, GenerateOptions};

/// The number of texts that are timed, one after the other.
const TIMED: usize = 16;

/// What makes slots of the texts' vectors.
pub(super) struct FromVectors<'a> {
    pub slots: &'a Slots,
    /// Computes the vector of a text.
    pub reader: &'a TextReader,
}

impl Answerer<'_> {
    /// Returns the cost of answers. Without slots the decoder reads the text.
    pub(super) fn cost(
        &self,
        asked: &Asked,
        answers: Option<&[String]>,
        from: Option<&FromVectors<'_>>,
    ) -> Result<AnswerCost> {
        let rows = &asked.rows;
        let prompts = match from {
            Some(from) => self.slot_prompts(asked, &from.slots.expander)?,
            None => self.direct_prompts(rows)?,
        };
        let written = |answer: &String| Ok(self.decoder.answer_tokens(answer)?.len());
        let written: Option<Vec<usize>> =
            answers.map(|answers| answers.iter().map(written).collect::<Result<_>>()).transpose()?;
        let read: Vec<usize> = prompts.iter().map(|prompt| prompt.ids.len()).collect();
        let encoder_ms = match from {
            Some(from) => self.median_ms(rows.len(), |row| from.reader.embed(&[&rows[row].foreign]).map(drop))?,
            None => None,
        };
        let first_token = |row: usize| {
            let from = from.map(|from| (from.slots, &asked.vectors));
            self.first_token(&prompts[row], row, from)
        };
        Ok(AnswerCost {
            prompt_tokens: mean(&read),
            answer_tokens: written.map(|written| mean(&written)),
            first_token_ms: self.median_ms(rows.len(), first_token)?,
            encoder_ms,
        })
    }

    fn first_token(&self, prompt: &ChatPrompt, row: usize, from: Option<(&Slots, &TextVectors)>) -> Result<()> {
        let slots = from.map(|(slots, vectors)| slots.of(vectors.of(row), vectors.width)).transpose()?;
        let options = GenerateOptions { max_tokens: 1, stop: Vec::new(), ..self.options.clone() };
        let model = self.decoder.model();
        model.generate(prompt, slots.as_deref(), &self.adapter, &options).map(|_| ())
    }

    /// Returns the median time of `run` for the first rows. The first call is not counted, because it also warms up.
    fn median_ms(&self, rows: usize, run: impl Fn(usize) -> Result<()>) -> Result<Option<f64>> {
        if rows == 0 {
            return Ok(None);
        }
        run(0)?;
        let mut times = Vec::new();
        for row in 0..rows.min(TIMED) {
            self.context.control.check()?;
            let began = Instant::now();
            run(row)?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok(Some(times[times.len() / 2]))
    }
}

fn mean(counts: &[usize]) -> f64 {
    counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64
}
