//! What Stage B is trained with.

use serde::{Deserialize, Serialize};

use super::step::{InstructWeights, LearningRates};
use crate::llink::slot_losses::SlotWeights;
use crate::llink::usage_contrast::UsageContrast;
use crate::models::lora::LoraOptions;
use crate::train::optimizer::AdamWOptions;
use crate::train::schedule::linear_lr;
use crate::{Error, Result};

/// What the decoder is given of the foreign text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstructMode {
    /// Soft slots, expanded from its projected vector.
    #[default]
    Slots,
    /// Its own tokens and no slots: LoRA fine-tuning as it is usually done, for comparison.
    Direct,
}

/// What Stage B is trained with. The defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InstructOptions {
    /// Of the initial weights, the batches and the dropout.
    pub seed: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Examples in a step, over all ranks.
    pub batch: usize,
    /// What the decoder is given.
    pub mode: InstructMode,
    /// K, the soft slots of a prompt.
    pub slots: usize,
    /// The slot expander's inner width; 0: twice the decoder's.
    pub expander_hidden: usize,
    /// The adapter.
    pub lora: LoraOptions,
    /// Of the adapter, after the warm-up.
    pub learning_rate: f64,
    /// Of the slot expander.
    pub expander_learning_rate: f64,
    /// Of its scale.
    pub scale_learning_rate: f64,
    /// Of the projector; 0 leaves it as Stage A made it.
    pub projector_learning_rate: f64,
    /// Share of the steps that warm up.
    pub warmup_share: f64,
    /// Decoupled, of AdamW; the scale has none.
    pub weight_decay: f64,
    /// Of AdamW's first moment.
    pub beta1: f64,
    /// Of AdamW's second moment.
    pub beta2: f64,
    /// The largest norm of a gradient.
    pub gradient_clip: f64,
    /// Steps from one usage contrast to the next; 0: never.
    pub usage_every: u64,
    /// Of the usage contrast.
    pub usage_weight: f64,
    /// Of the cosine between mean slot and teacher.
    pub cosine_weight: f64,
    /// Of the InfoNCE of mean slots against the batch's teachers.
    pub info_nce_weight: f64,
    /// Its τ.
    pub info_nce_temperature: f64,
}

impl Default for InstructOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 940, // three epochs of 40,000 examples
            batch: 128,
            mode: InstructMode::Slots,
            slots: 8,
            expander_hidden: 0,
            lora: LoraOptions::default(),
            learning_rate: 1e-4,
            expander_learning_rate: 3e-5,
            scale_learning_rate: 5e-4,
            projector_learning_rate: 0.0,
            warmup_share: 0.15,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            gradient_clip: 1.0,
            usage_every: 3,
            usage_weight: 0.05,
            cosine_weight: 0.05,
            info_nce_weight: 1e-3,
            info_nce_temperature: 0.07,
        }
    }
}

impl InstructOptions {
    /// Refuses what can't be trained with.
    ///
    /// # Errors
    /// [`Error::Input`] naming the option, its value and what it must be.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, value: String, must: &str| {
            Err(Error::Input(format!("instruct.{name} is {value}, it must be {must}")))
        };
        if self.batch == 0 {
            return wrong("batch", self.batch.to_string(), "at least 1");
        }
        if self.mode == InstructMode::Slots && self.slots == 0 {
            return wrong("slots", self.slots.to_string(), "at least 1");
        }
        if !(0.0..1.0).contains(&self.lora.dropout) {
            return wrong("lora_dropout", self.lora.dropout.to_string(), "at least 0 and below 1");
        }
        if !(self.info_nce_temperature.is_finite() && self.info_nce_temperature > 0.0) {
            return wrong("info_nce_temperature", self.info_nce_temperature.to_string(), "above 0");
        }
        Ok(())
    }

    /// Whether the projector is trained too.
    #[must_use]
    pub fn moves_projector(&self) -> bool {
        self.mode == InstructMode::Slots && self.projector_learning_rate > 0.0
    }

    pub(super) const fn adamw(&self) -> AdamWOptions {
        AdamWOptions {
            beta1: self.beta1,
            beta2: self.beta2,
            weight_decay: self.weight_decay,
        }
    }

    pub(super) const fn weights(&self) -> InstructWeights {
        InstructWeights {
            slots: SlotWeights {
                cosine: self.cosine_weight,
                info_nce: self.info_nce_weight,
                temperature: self.info_nce_temperature,
            },
            usage: UsageContrast {
                every: self.usage_every,
                weight: self.usage_weight,
            },
            gradient_clip: self.gradient_clip,
        }
    }

    /// Each group's learning rate at `step`.
    pub(super) fn learning_rates(&self, step: u64) -> LearningRates {
        let share = linear_lr(step, self.steps, self.warmup_share);
        LearningRates {
            lora: share * self.learning_rate,
            expander: share * self.expander_learning_rate,
            scale: share * self.scale_learning_rate,
            projector: share * self.projector_learning_rate,
        }
    }
}
