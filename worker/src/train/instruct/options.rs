//! The options of Stage B.

pub use llink_proto::settings::InstructArm;
use llink_proto::settings::InstructSettings;
use serde::{Deserialize, Serialize};

use super::step::LearningRates;
use crate::train::optimizer::AdamWOptions;
use crate::train::schedule::linear_lr;

/// The options of one training of Stage B: the settings of the job file, and what the job makes of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstructOptions {
    /// The seed of the initial weights, the batches and the dropout.
    pub seed: u64,
    /// The number of optimizer steps.
    pub steps: u64,
    /// The form in which the decoder gets the foreign text.
    pub arm: InstructArm,
    /// `[instruct]` of the job file.
    pub settings: InstructSettings,
}

impl InstructOptions {
    /// Returns the options that decide the result.
    pub(super) fn deciding(&self) -> Self {
        Self { settings: self.settings.deciding(), ..*self }
    }

    /// Returns whether the projector is trained too.
    pub fn moves_projector(&self) -> bool {
        self.arm == InstructArm::Slots && self.settings.projector_learning_rate > 0.0
    }

    pub(super) const fn adamw(&self) -> AdamWOptions {
        AdamWOptions {
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            weight_decay: self.settings.weight_decay,
        }
    }

    /// Returns the learning rate of each group at `step`.
    pub(super) fn learning_rates(&self, step: u64) -> LearningRates {
        let settings = &self.settings;
        let share = linear_lr(step, self.steps, settings.warmup_share);
        LearningRates {
            lora: share * settings.learning_rate,
            expander: share * settings.expander_learning_rate,
            scale: share * settings.scale_learning_rate,
            projector: share * settings.projector_learning_rate,
        }
    }
}
