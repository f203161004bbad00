//! `[instruct]`: Stage B.

use serde::{Deserialize, Serialize};

use super::{JobFile, check::Expect};

/// What the decoder is given of the foreign text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstructMode {
    /// Soft slots, expanded from its projected vector.
    Slots,
    /// Its own tokens and no slots: LoRA fine-tuning as it is usually done, for comparison.
    Direct,
    /// Slots first, then direct with the same budget, so that the report can compare them.
    Both,
}

impl InstructMode {
    /// What is trained, one after the other.
    #[must_use]
    pub fn arms(self) -> &'static [InstructArm] {
        match self {
            Self::Slots => &[InstructArm::Slots],
            Self::Direct => &[InstructArm::Direct],
            Self::Both => &[InstructArm::Slots, InstructArm::Direct],
        }
    }
}

/// One training of Stage B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructArm {
    /// With soft slots.
    Slots,
    /// On the foreign text's own tokens.
    Direct,
}

/// `[instruct]`: Stage B. The defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InstructSection {
    /// `slots`, `direct` for LoRA on the foreign text's own tokens, or `both` to compare them.
    pub mode: InstructMode,
    /// Times through the instructions.
    pub epochs: f64,
    /// Optimiser steps; 0 is as many as `epochs` take.
    pub steps: u64,
    /// Examples in a step, over all ranks.
    pub batch: u32,
    /// Soft slots in a prompt.
    pub slots: u32,
    /// The slot expander's hidden width; 0 is twice the decoder's.
    pub expander_hidden: u32,
    /// LoRA's rank.
    pub lora_rank: u32,
    /// LoRA's corrections are scaled by this over the rank.
    pub lora_alpha: f64,
    /// Dropout before LoRA.
    pub lora_dropout: f64,
    /// LoRA's peak learning rate.
    pub learning_rate: f64,
    /// The slot expander's.
    pub expander_learning_rate: f64,
    /// Its scale's.
    pub scale_learning_rate: f64,
    /// The projector's; 0 leaves it as Stage A made it.
    pub projector_learning_rate: f64,
    /// Share of the steps that warm up.
    pub warmup_share: f64,
    /// AdamW's decoupled decay; the scale has none.
    pub weight_decay: f64,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// Gradients are scaled down to this norm.
    pub gradient_clip: f64,
    /// Steps from one usage contrast to the next; 0 never contrasts.
    pub usage_every: u64,
    /// Weight of max(0, L_sft − L_zero).
    pub usage_weight: f64,
    /// Weight of 1 − cos(mean slot, teacher).
    pub cosine_weight: f64,
    /// Weight of the slots' InfoNCE.
    pub info_nce_weight: f64,
    /// Its τ.
    pub info_nce_temperature: f64,
    /// Longer examples, prompt and answer in tokens, are left out and counted.
    pub max_tokens: u32,
    /// Tokens that go through the decoder at once; a rank's share of the batch is taken in as many passes as that needs.
    pub token_budget: u32,
    /// Keep each layer's input only and run the layer again in the backward pass: less memory, a third more time.
    pub recompute: bool,
    /// Steps between checkpoints; 0 leaves it to `checkpoint_minutes`.
    pub checkpoint_every: u64,
    /// Minutes between checkpoints; 0 leaves it to `checkpoint_every`.
    pub checkpoint_minutes: f64,
    /// How many of the newest checkpoints are kept, beside the best.
    pub checkpoints_kept: u32,
    /// Steps between looks at held-out instructions; 0 never looks.
    pub validate_every: u64,
    /// Held-out instructions that are looked at.
    pub validation_examples: u32,
    /// Seconds that a step may take before it is taken for hung and the gang is formed anew.
    pub step_timeout_s: f64,
    /// Fewest ranks to train with.
    pub min_ranks: u32,
    /// Most ranks to train with; 0 takes every worker.
    pub max_ranks: u32,
}

impl Default for InstructSection {
    fn default() -> Self {
        Self {
            mode: InstructMode::Slots,
            epochs: 3.0,
            steps: 0,
            batch: 128,
            slots: 8,
            expander_hidden: 0,
            lora_rank: 16,
            lora_alpha: 16.0,
            lora_dropout: 0.05,
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
            max_tokens: 512,
            token_budget: 4_096,
            recompute: false,
            checkpoint_every: 100,
            checkpoint_minutes: 10.0,
            checkpoints_kept: 3,
            validate_every: 100,
            validation_examples: 64,
            step_timeout_s: 600.0,
            min_ranks: 1,
            max_ranks: 0,
        }
    }
}

impl InstructSection {
    /// Optimiser steps for so many instructions.
    #[must_use]
    pub fn steps_for(&self, rows: u64) -> u64 {
        if self.steps > 0 {
            return self.steps;
        }
        let steps = self.epochs * rows as f64 / f64::from(self.batch.max(1));
        (steps.ceil() as u64).max(1)
    }
}

/// Refuses values that can't be meant.
pub(super) fn problems(job: &JobFile, expect: Expect<'_>) {
    let Some(i) = &job.instruct else { return };
    let positive = |x: f64| x.is_finite() && x > 0.0;
    let not_negative = |x: f64| x.is_finite() && x >= 0.0;
    let fraction = |x: f64| (0.0..1.0).contains(&x);
    expect(
        job.instructions.is_some() || job.synthesize.is_some(),
        "instruct",
        &"given",
        "an [instructions] section with what it trains on",
    );
    expect(
        positive(i.epochs) || i.steps > 0,
        "instruct.epochs",
        &i.epochs,
        "above 0",
    );
    expect(i.batch >= 1, "instruct.batch", &i.batch, "at least 1");
    expect(
        (1..=10).contains(&i.slots) || i.mode == InstructMode::Direct,
        "instruct.slots",
        &i.slots,
        "1 to 10: as many reserved tokens has the decoder",
    );
    expect(i.lora_rank >= 1, "instruct.lora_rank", &i.lora_rank, "at least 1");
    for (key, value) in [
        ("instruct.lora_alpha", i.lora_alpha),
        ("instruct.learning_rate", i.learning_rate),
        ("instruct.gradient_clip", i.gradient_clip),
        ("instruct.info_nce_temperature", i.info_nce_temperature),
        ("instruct.step_timeout_s", i.step_timeout_s),
    ] {
        expect(positive(value), key, &value, "above 0");
    }
    for (key, value) in [
        ("instruct.expander_learning_rate", i.expander_learning_rate),
        ("instruct.scale_learning_rate", i.scale_learning_rate),
        ("instruct.projector_learning_rate", i.projector_learning_rate),
        ("instruct.weight_decay", i.weight_decay),
        ("instruct.usage_weight", i.usage_weight),
        ("instruct.cosine_weight", i.cosine_weight),
        ("instruct.info_nce_weight", i.info_nce_weight),
        ("instruct.checkpoint_minutes", i.checkpoint_minutes),
    ] {
        expect(not_negative(value), key, &value, "0 or more");
    }
    for (key, value) in [
        ("instruct.lora_dropout", i.lora_dropout),
        ("instruct.warmup_share", i.warmup_share),
        ("instruct.beta1", i.beta1),
        ("instruct.beta2", i.beta2),
    ] {
        expect(fraction(value), key, &value, "0 up to, not including, 1");
    }
    for (key, value) in [
        ("instruct.max_tokens", i.max_tokens),
        ("instruct.token_budget", i.token_budget),
        ("instruct.checkpoints_kept", i.checkpoints_kept),
        ("instruct.min_ranks", i.min_ranks),
    ] {
        expect(value >= 1, key, &value, "at least 1");
    }
    let ranks_ok = i.max_ranks == 0 || i.max_ranks >= i.min_ranks;
    expect(
        ranks_ok,
        "instruct.max_ranks",
        &i.max_ranks,
        "0, or at least `instruct.min_ranks`",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_make_steps_unless_steps_are_given() {
        let section = InstructSection::default();
        assert_eq!(section.steps_for(40_000), 938);
        assert_eq!(section.steps_for(1), 1);
        let fixed = InstructSection { steps: 7, ..section };
        assert_eq!(fixed.steps_for(40_000), 7);
    }
}
