//! What one training step is to those who watch it: named numbers, whatever the stage.

use serde_json::{Map, Value, json};

/// Seconds of one step on this rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepSeconds {
    /// Reading the batch.
    pub data: f64,
    /// Up to the loss.
    pub forward: f64,
    /// Gradients by the parameters.
    pub backward: f64,
    /// Waiting for gradients to be summed over ranks.
    pub reduce: f64,
    /// Clipping, the optimizer, and what else a step changes.
    pub optimizer: f64,
    /// The whole step.
    pub total: f64,
}

/// What a held-out set said after a step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Validation {
    /// By name.
    pub numbers: Vec<(&'static str, f64)>,
    /// What checkpoints are compared by: less is better.
    pub score: f64,
}

/// One step. Numbers are over the global batch, before the step changed anything, and the same on all ranks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepRecord {
    /// Counts from 0.
    pub step: u64,
    /// By name: the loss that is minimized first, then its terms, the gradient's norm, learning rates, temperatures.
    pub numbers: Vec<(&'static str, f64)>,
    /// Pairs or examples in the global batch.
    pub pairs: u64,
    /// Tokens in the global batch; 0 where a stage counts none.
    pub tokens: u64,
    /// Where the time went.
    pub seconds: StepSeconds,
    /// On the steps after which held-out data were looked at, on rank 0.
    pub validation: Option<Validation>,
}

impl StepRecord {
    /// The loss that is minimized; NaN when the step named no number.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.numbers.first().map_or(f64::NAN, |(_, loss)| *loss)
    }

    /// One of the numbers.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        let found = self.numbers.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value)
    }

    /// Everything by name, as charts show it: losses as they are, rates by the second, `seconds/…`, `validation/…`.
    #[must_use]
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let seconds = &self.seconds;
        let rate = |count: u64| count as f64 / seconds.total.max(1e-9);
        let mut all: Vec<(String, f64)> = self.numbers.iter().map(|(name, v)| ((*name).into(), *v)).collect();
        all.push(("pairs_per_s".into(), rate(self.pairs)));
        if self.tokens > 0 {
            all.push(("tokens_per_s".into(), rate(self.tokens)));
        }
        all.extend(seconds.named().map(|(name, v)| (format!("seconds/{name}"), v)));
        let held_out = self.validation.iter().flat_map(|v| &v.numbers);
        all.extend(held_out.map(|(name, v)| (format!("validation/{name}"), *v)));
        all
    }

    /// As a JSON line, newline included. `ranks` is how many took the step.
    #[must_use]
    pub fn line(&self, ranks: usize) -> String {
        let mut line = Map::new();
        line.insert("step".into(), json!(self.step));
        let named = |numbers: &[(&'static str, f64)]| -> Map<String, Value> {
            numbers.iter().map(|(name, v)| ((*name).into(), json!(v))).collect()
        };
        line.extend(named(&self.numbers));
        line.insert("pairs".into(), json!(self.pairs));
        if self.tokens > 0 {
            line.insert("tokens".into(), json!(self.tokens));
        }
        line.insert("ranks".into(), json!(ranks));
        line.insert("seconds".into(), named(&self.seconds.named()).into());
        if let Some(validation) = &self.validation {
            line.insert("validation".into(), named(&validation.numbers).into());
        }
        format!("{}\n", Value::from(line))
    }
}

impl StepSeconds {
    fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("data", self.data),
            ("forward", self.forward),
            ("backward", self.backward),
            ("reduce", self.reduce),
            ("optimizer", self.optimizer),
            ("total", self.total),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_every_number() {
        let record = StepRecord {
            step: 7,
            numbers: vec![("loss", 1.5), ("grad_norm", 0.25)],
            pairs: 64,
            seconds: StepSeconds {
                total: 0.5,
                ..StepSeconds::default()
            },
            validation: Some(Validation {
                numbers: vec![("r1", 0.75)],
                score: 2.0,
            }),
            ..StepRecord::default()
        };
        let line: Value = serde_json::from_str(&record.line(2)).unwrap();
        assert_eq!(
            (&line["step"], &line["loss"], &line["ranks"]),
            (&json!(7), &json!(1.5), &json!(2))
        );
        assert_eq!(
            (&line["seconds"]["total"], &line["validation"]["r1"]),
            (&json!(0.5), &json!(0.75))
        );
        assert!(line.get("tokens").is_none());
        assert!((record.loss() - 1.5).abs() < 1e-12 && record.number("grad_norm") == Some(0.25));
        let scalars = record.scalars();
        assert!(scalars.contains(&("pairs_per_s".into(), 128.0)), "{scalars:?}");
        assert!(scalars.contains(&("validation/r1".into(), 0.75)), "{scalars:?}");
    }
}
