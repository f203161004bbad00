//! The settings of Stage A (`[align]`).

use serde::{Deserialize, Serialize};

use super::{ABOVE_0, Expect, FRACTION, at_least, between, zero};

/// Positions in the queue travel between ranks as f32, which is exact up to here.
const LONGEST_QUEUE: f64 = (1 << 24) as f64;

/// The metric in which Stage A compares vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Cosine similarity of the vectors themselves, as in the paper.
    #[default]
    Cosine,
    /// Cosine similarity after the teachers' mean is subtracted.
    #[serde(alias = "centred")]
    Centered,
    /// Cosine similarity after the teachers' mean is subtracted and each direction is divided by its deviation.
    Whitened,
}

impl Metric {
    /// Returns the name in job files, reports and bundles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Centered => "centered",
            Self::Whitened => "whitened",
        }
    }
}

crate::settings! {
    /// Stage A (`[align]`). The defaults are the paper's.
    pub struct AlignSettings = "align" {
        result {
            /// The number of optimizer steps.
            steps: u64 = 20_000, at_least(1.0);
            /// The number of pairs in a step, over all ranks.
            batch: u32 = 128, at_least(2.0).because("a contrastive loss needs negatives");
            /// The number of teacher vectors in the queue for mining.
            queue: u32 = 32_768, between(0.0, LONGEST_QUEUE);
            /// The number of hardest negatives from the queue that join the batch.
            hard_negatives: u32 = 256;
            /// The temperature τ at the first step.
            temperature_start: f64 = 0.17, ABOVE_0;
            /// The temperature τ at the last step.
            temperature_end: f64 = 0.08, ABOVE_0;
            /// The peak learning rate.
            learning_rate: f64 = 1e-3, ABOVE_0;
            /// The learning rate at the end.
            learning_rate_floor: f64 = 1e-5, at_least(0.0);
            /// The number of steps with linear warm-up.
            warmup_steps: u64 = 3_000;
            /// The decoupled weight decay of AdamW.
            weight_decay: f64 = 0.05, at_least(0.0);
            /// The decay β₁ of AdamW's first moment.
            beta1: f64 = 0.9, FRACTION;
            /// The decay β₂ of AdamW's second moment.
            beta2: f64 = 0.98, FRACTION;
            /// Gradients are clipped to this norm.
            gradient_clip: f64 = 1.0, ABOVE_0;
            /// The dropout rate in the projector.
            dropout: f64 = 0.10, FRACTION;
            /// The weight of the direction loss, 1 − cos(p, t).
            direction_weight: f64 = 0.05, at_least(0.0);
            /// The weight of the log-norm loss, (ln|p| − ln|t|)².
            log_norm_weight: f64 = 0.02, at_least(0.0);
            /// The projector's hidden width; 0 is four times the encoder's width.
            #[serde(with = "zero")]
            projector_hidden: Option<u32> = None;
            /// The metric of InfoNCE, mining, the queue and retrieval: `cosine`, `centered` or `whitened`. The direction and
            /// log-norm losses always use the vectors themselves. Statistics are fitted once, on the training split's teachers.
            metric: Metric = Metric::Cosine;
            /// The share of the largest variance that whitening adds to every variance. A smaller value distinguishes
            /// directions of small variance better.
            whitening_eps: f64 = 1e-3, ABOVE_0.at_most(1.0);
            /// Scale each dimension of the encoder's vectors to mean 0 and deviation 1 before the projector.
            standardize: bool = false;
            /// Start the projector's LayerNorm at the teachers' deviation and mean instead of 1 and 0. Absent: true unless the
            /// metric is `cosine`. A middle layer's states are so long that a whitened loss cannot distinguish the outputs of a
            /// fresh LayerNorm.
            #[serde(skip_serializing_if = "Option::is_none")]
            start_at_teachers: Option<bool> = None;
        }
        run {
            /// Pairs of a rank that are computed at once; 0 is all. A smaller value takes less memory and more time.
            #[serde(with = "zero")]
            micro_batch: Option<u32> = None;
            /// Steps between checkpoints; with 0, only `checkpoint_minutes` decides.
            #[serde(with = "zero")]
            checkpoint_every: Option<u64> = Some(1_000);
            /// Minutes between checkpoints; with 0, only `checkpoint_every` decides.
            #[serde(with = "zero")]
            checkpoint_minutes: Option<f64> = Some(10.0), between(0.0, 10_000.0);
            /// The number of newest checkpoints that are kept, beside the best.
            checkpoints_kept: u32 = 3, at_least(1.0);
            /// Steps between validations on held-out pairs; 0 turns them off, and then no checkpoint is the best.
            #[serde(with = "zero")]
            validate_every: Option<u64> = Some(1_000);
            /// The number of held-out pairs in a validation.
            validation_pairs: u32 = 512;
            /// The longest time of a step, in seconds. A longer step counts as hung, and the gang is formed again.
            step_timeout_s: f64 = 60.0, ABOVE_0.at_most(86_400.0);
            /// The fewest ranks to train with.
            min_ranks: u32 = 1, at_least(1.0);
            /// The most ranks to train with; 0 takes every worker.
            #[serde(with = "zero")]
            max_ranks: Option<u32> = None;
        }
    }
}

impl AlignSettings {
    /// Returns true if the projector's LayerNorm starts at the teachers' statistics.
    #[must_use]
    pub fn starts_at_teachers(&self) -> bool {
        self.start_at_teachers.unwrap_or(self.metric != Metric::Cosine)
    }

    /// Returns true if statistics are fitted on the training split before the first step.
    #[must_use]
    pub fn fits_statistics(&self) -> bool {
        self.metric != Metric::Cosine || self.standardize || self.starts_at_teachers()
    }

    /// Returns what decides the result, in one form for all settings that mean the same.
    #[must_use]
    pub fn key(&self) -> Self {
        Self { start_at_teachers: Some(self.starts_at_teachers()), ..self.deciding() }
    }

    /// Reports invalid values.
    pub fn check(&self, expect: Expect<'_>) {
        self.check_bounds(expect);
        let floor = self.learning_rate_floor;
        expect(floor <= self.learning_rate, "align.learning_rate_floor", &floor, "at most `align.learning_rate`");
        let (pairs, measurable) = (self.validation_pairs, "at least 2, or `align.validate_every = 0`");
        expect(self.validate_every.is_none() || pairs >= 2, "align.validation_pairs", &pairs, measurable);
        let ranks = self.max_ranks.unwrap_or(self.min_ranks);
        expect(ranks >= self.min_ranks, "align.max_ranks", &ranks, "0, or at least `align.min_ranks`");
        expect(ranks.max(self.min_ranks) <= self.batch, "align.max_ranks", &ranks, "at most `align.batch`");
    }
}
