//! The options of Stage A.

use llink_proto::settings::AlignSettings;
use serde::{Deserialize, Serialize};

use crate::train::optimizer::AdamWOptions;

/// The options of Stage A: the settings of the job file, and the job's seed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignOptions {
    /// The seed of the initial weights, the batches and the dropout.
    pub seed: u64,
    /// `[align]` of the job file.
    pub settings: AlignSettings,
}

impl AlignOptions {
    /// Returns the options that decide the result.
    pub(super) fn deciding(&self) -> Self {
        Self { seed: self.seed, settings: self.settings.key() }
    }

    /// Returns the options of AdamW.
    pub const fn adamw(&self) -> AdamWOptions {
        AdamWOptions {
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            weight_decay: self.settings.weight_decay,
        }
    }
}
