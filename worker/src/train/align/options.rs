//! What Stage A is trained with.

use serde::{Deserialize, Serialize};

use crate::llink::align_losses::AlignWeights;
use crate::train::optimizer::AdamWOptions;
use crate::{Error, Result};

/// Queue positions travel between ranks as f32, which is exact up to here.
const MAX_QUEUE: usize = 1 << 24;

/// What Stage A is trained with. The defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlignOptions {
    /// Of the initial weights, the batches and the dropout.
    pub seed: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Pairs in a step, over all ranks.
    pub batch: usize,
    /// Teacher vectors to remember for mining.
    pub queue_capacity: usize,
    /// Hard negatives in a step.
    pub hard_negatives: usize,
    /// τ at the first step.
    pub temperature_start: f64,
    /// τ at the end.
    pub temperature_end: f64,
    /// After the warm-up.
    pub learning_rate: f64,
    /// At the end.
    pub learning_rate_floor: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decoupled, of AdamW.
    pub weight_decay: f64,
    /// Of AdamW's first moment.
    pub beta1: f64,
    /// Of AdamW's second moment.
    pub beta2: f64,
    /// The largest norm of a gradient.
    pub gradient_clip: f64,
    /// Probability, in the projector.
    pub dropout: f64,
    /// Of the direction loss.
    pub weight_direction: f64,
    /// Of the log-norm loss.
    pub weight_log_norm: f64,
    /// The projector's inner width; 0: four times the encoder's.
    pub projector_hidden: usize,
}

impl Default for AlignOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 20_000,
            batch: 128,
            queue_capacity: 32_768,
            hard_negatives: 256,
            temperature_start: 0.17,
            temperature_end: 0.08,
            learning_rate: 1e-3,
            learning_rate_floor: 1e-5,
            warmup_steps: 3_000,
            weight_decay: 0.05,
            beta1: 0.9,
            beta2: 0.98,
            gradient_clip: 1.0,
            dropout: 0.10,
            weight_direction: 0.05,
            weight_log_norm: 0.02,
            projector_hidden: 0,
        }
    }
}

impl AlignOptions {
    /// How the losses are weighed.
    #[must_use]
    pub const fn weights(&self) -> AlignWeights {
        AlignWeights {
            hard_negatives: self.hard_negatives,
            direction: self.weight_direction,
            log_norm: self.weight_log_norm,
        }
    }

    /// How AdamW is set.
    #[must_use]
    pub const fn adamw(&self) -> AdamWOptions {
        AdamWOptions {
            beta1: self.beta1,
            beta2: self.beta2,
            weight_decay: self.weight_decay,
        }
    }

    /// Refuses what can't be trained with.
    ///
    /// # Errors
    /// [`Error::Input`] that names the option.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: f64, fits: bool, range: &str| {
            if fits {
                Ok(())
            } else {
                Err(Error::Input(format!("`{name}` is {value}, but must be {range}")))
            }
        };
        let positive = |name, value: f64| within(name, value, value.is_finite() && value > 0.0, "above 0");
        let share = |name, value: f64| within(name, value, (0.0..1.0).contains(&value), "at least 0 and below 1");
        positive("temperature_start", self.temperature_start)?;
        positive("temperature_end", self.temperature_end)?;
        positive("learning_rate", self.learning_rate)?;
        positive("gradient_clip", self.gradient_clip)?;
        share("beta1", self.beta1)?;
        share("beta2", self.beta2)?;
        share("dropout", self.dropout)?;
        let capacity = self.queue_capacity;
        within(
            "queue_capacity",
            capacity as f64,
            capacity <= MAX_QUEUE,
            &format!("at most {MAX_QUEUE}"),
        )
    }
}

impl From<&llink_proto::AlignOptions> for AlignOptions {
    fn from(options: &llink_proto::AlignOptions) -> Self {
        Self {
            seed: options.seed,
            steps: options.steps,
            batch: options.batch as usize,
            queue_capacity: options.queue_capacity as usize,
            hard_negatives: options.hard_negatives as usize,
            temperature_start: options.temperature_start,
            temperature_end: options.temperature_end,
            learning_rate: options.learning_rate,
            learning_rate_floor: options.learning_rate_floor,
            warmup_steps: options.warmup_steps,
            weight_decay: options.weight_decay,
            beta1: options.beta1,
            beta2: options.beta2,
            gradient_clip: options.gradient_clip,
            dropout: options.dropout,
            weight_direction: options.weight_direction,
            weight_log_norm: options.weight_log_norm,
            projector_hidden: options.projector_hidden as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cant_be_trained_with_is_refused_by_name() {
        AlignOptions::default().check().unwrap();
        for (name, options) in [
            (
                "dropout",
                AlignOptions {
                    dropout: 1.0,
                    ..AlignOptions::default()
                },
            ),
            (
                "temperature_end",
                AlignOptions {
                    temperature_end: 0.0,
                    ..AlignOptions::default()
                },
            ),
            (
                "learning_rate",
                AlignOptions {
                    learning_rate: f64::NAN,
                    ..AlignOptions::default()
                },
            ),
            (
                "queue_capacity",
                AlignOptions {
                    queue_capacity: MAX_QUEUE + 1,
                    ..AlignOptions::default()
                },
            ),
        ] {
            let text = options.check().unwrap_err().to_string();
            assert!(text.contains(&format!("`{name}`")), "{text}");
        }
    }

    #[test]
    fn an_unknown_option_is_refused() {
        assert!(serde_json::from_str::<AlignOptions>("{\"steps\": 5}").is_ok_and(|options| options.steps == 5));
        assert!(serde_json::from_str::<AlignOptions>("{\"step\": 5}").is_err());
    }
}
