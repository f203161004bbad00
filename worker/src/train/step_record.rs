//! The record of one training step for observers, with named numbers for every stage.

use serde_json::{Map, Value, json};

/// The seconds of one step on this rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepSeconds {
    /// The time to read the batch.
    pub data: f64,
    /// The time from the batch to the loss.
    pub forward: f64,
    /// The time to compute the gradients of the parameters.
    pub backward: f64,
    /// The time to wait for the sums of gradients over the ranks.
    pub reduce: f64,
    /// The time for clipping, the optimizer, and other changes of the state.
    pub optimizer: f64,
    /// The time of the whole step.
    pub total: f64,
}

/// The result of a measurement on held-out data.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Validation {
    /// The numbers, each with its name.
    pub numbers: Vec<(&'static str, f64)>,
    /// The score by which checkpoints are compared. Lower is better.
    pub score: f64,
}

/// The record of one step. Its numbers are over the global batch before the step, and the same on all ranks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepRecord {
    /// The number of the step, counted from 0.
    pub step: u64,
    /// The numbers, each with its name. The minimized loss is first, then its terms, the gradient's norm, learning
    /// rates and temperatures.
    pub numbers: Vec<(&'static str, f64)>,
    /// The number of pairs or examples in the global batch.
    pub pairs: u64,
    /// The number of tokens in the global batch; 0 if the stage does not count them.
    pub tokens: u64,
    /// The time of each phase.
    pub seconds: StepSeconds,
    /// The validation after this step, on rank 0.
    pub validation: Option<Validation>,
}

impl StepRecord {
    /// Returns the minimized loss, or NaN if the step has no numbers.
    pub fn loss(&self) -> f64 {
        self.numbers.first().map_or(f64::NAN, |(_, loss)| *loss)
    }

    /// Returns one of the numbers.
    pub fn number(&self, name: &str) -> Option<f64> {
        let found = self.numbers.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value)
    }

    /// Returns all numbers by name as charts show them: losses, rates per second, `seconds/…` and `validation/…`.
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

    /// Returns a JSON line with its newline. `ranks` is the number of ranks that took the step.
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
            seconds: StepSeconds { total: 0.5, ..StepSeconds::default() },
            validation: Some(Validation { numbers: vec![("r1", 0.75)], score: 2.0 }),
            ..StepRecord::default()
        };
        let line: Value = serde_json::from_str(&record.line(2)).unwrap();
        assert_eq!((&line["step"], &line["loss"], &line["ranks"]), (&json!(7), &json!(1.5), &json!(2)));
        assert_eq!((&line["seconds"]["total"], &line["validation"]["r1"]), (&json!(0.5), &json!(0.75)));
        assert!(line.get("tokens").is_none());
        assert!((record.loss() - 1.5).abs() < 1e-12 && record.number("grad_norm") == Some(0.25));
        let scalars = record.scalars();
        assert!(scalars.contains(&("pairs_per_s".into(), 128.0)), "{scalars:?}");
        assert!(scalars.contains(&("validation/r1".into(), 0.75)), "{scalars:?}");
    }
}
