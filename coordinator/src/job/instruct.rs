//! The settings of Stage B (`[instruct]`).

use serde::{Deserialize, Serialize};

use super::{JobFile, check::Expect};

/// The form in which the decoder gets the foreign text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstructMode {
    /// Soft slots, expanded from the projected vector of the text.
    Slots,
    /// The tokens of the text and no slots: the usual LoRA fine-tuning, for comparison.
    Direct,
    /// First `slots`, then `direct` with the same budget, so that the report can compare them.
    Both,
}

impl InstructMode {
    /// Returns the arms to train, one after the other.
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
    /// The decoder gets soft slots.
    Slots,
    /// The decoder gets the tokens of the foreign text.
    Direct,
}

/// Stage B (`[instruct]`). The defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InstructSection {
    /// `slots`, `direct` for LoRA on the foreign text's own tokens, or `both` to compare them.
    pub mode: InstructMode,
    /// Passes over the instructions.
    pub epochs: f64,
    /// Optimizer steps; 0 is as many as `epochs` needs.
    pub steps: u64,
    /// The number of examples in a step, over all ranks.
    pub batch: u32,
    /// The number of soft slots in a prompt.
    pub slots: u32,
    /// The slot expander's hidden width; 0 is twice the decoder's width.
    pub expander_hidden: u32,
    /// The rank of LoRA.
    pub lora_rank: u32,
    /// The LoRA update is scaled by this value over the rank.
    pub lora_alpha: f64,
    /// Dropout on the input of LoRA.
    pub lora_dropout: f64,
    /// The peak learning rate of LoRA.
    pub learning_rate: f64,
    /// The peak learning rate of the slot expander.
    pub expander_learning_rate: f64,
    /// The peak learning rate of the slots' scale.
    pub scale_learning_rate: f64,
    /// A value above 0 keeps training the projector in Stage B at this peak learning rate. By default it is frozen.
    pub projector_learning_rate: f64,
    /// The share of the steps with linear warm-up.
    pub warmup_share: f64,
    /// The decoupled weight decay of AdamW, which the scale does not have.
    pub weight_decay: f64,
    /// The decay β₁ of AdamW's first moment.
    pub beta1: f64,
    /// The decay β₂ of AdamW's second moment.
    pub beta2: f64,
    /// Gradients are clipped to this norm.
    pub gradient_clip: f64,
    /// Steps from one usage contrast to the next; 0 turns it off.
    pub usage_every: u64,
    /// The weight of the usage contrast, max(0, L_sft − L_zero).
    pub usage_weight: f64,
    /// The weight of 1 − cos(mean slot, teacher).
    pub cosine_weight: f64,
    /// The weight of the slots' InfoNCE loss.
    pub info_nce_weight: f64,
    /// The temperature τ of the slots' InfoNCE loss.
    pub info_nce_temperature: f64,
    /// Examples with more tokens in prompt and answer are left out and counted.
    pub max_tokens: u32,
    /// Tokens that go through the decoder at once. A rank splits its share of the batch into as many passes as needed.
    pub token_budget: u32,
    /// Keep only the input of each layer and run the layer again in the backward pass. This takes less memory and a
    /// third more time.
    pub recompute: bool,
    /// Steps between checkpoints; with 0, only `checkpoint_minutes` decides.
    pub checkpoint_every: u64,
    /// Minutes between checkpoints; with 0, only `checkpoint_every` decides.
    pub checkpoint_minutes: f64,
    /// The number of newest checkpoints that are kept, beside the best.
    pub checkpoints_kept: u32,
    /// Steps between validations on held-out instructions; 0 turns them off.
    pub validate_every: u64,
    /// Held-out instructions in a validation.
    pub validation_examples: u32,
    /// The longest time of a step, in seconds. A longer step counts as hung, and the gang is formed again.
    pub step_timeout_s: f64,
    /// The fewest ranks to train with.
    pub min_ranks: u32,
    /// The most ranks to train with; 0 takes every worker.
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
    /// Returns the optimizer steps for this many instructions.
    #[must_use]
    pub fn steps_for(&self, rows: u64) -> u64 {
        if self.steps > 0 {
            return self.steps;
        }
        let steps = self.epochs * rows as f64 / f64::from(self.batch.max(1));
        (steps.ceil() as u64).max(1)
    }
}

/// Reports invalid values.
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
        "1 to 10, the number of the decoder's reserved tokens",
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
