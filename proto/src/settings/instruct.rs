//! The settings of Stage B (`[instruct]`).

use serde::{Deserialize, Serialize};

use super::{ABOVE_0, Expect, FRACTION, at_least, between, zero};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstructArm {
    /// The decoder gets soft slots.
    Slots,
    /// The decoder gets the tokens of the foreign text.
    Direct,
}

/// Keeps a switch that is off out of the stages' keys.
fn is_false(switch: &bool) -> bool {
    !switch
}

/// Keeps a count out of the stages' keys where it is 0.
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The parts of a foreign text that have vectors of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TextParts {
    /// The number of windows of a text, or of each of its sentences. With 0 there are none.
    pub windows: u32,
    /// The most sentences of a text. With 0 it is not split.
    pub sentences: u32,
}

crate::settings! {
    /// Stage B (`[instruct]`). The defaults are the paper's.
    pub struct InstructSettings = "instruct" {
        result {
            /// `slots`, `direct` for LoRA on the foreign text's own tokens, or `both` to compare them.
            mode: InstructMode = InstructMode::Slots;
            /// Passes over the instructions.
            epochs: f64 = 3.0;
            /// Optimizer steps; 0 is as many as `epochs` needs.
            #[serde(with = "zero")]
            steps: Option<u64> = None;
            /// The number of examples in a step, over all ranks.
            batch: u32 = 128, at_least(1.0);
            /// The number of soft slots in a prompt.
            slots: u32 = 8;
            /// The number of windows, which are equal parts of a foreign text. Each has a vector of its own, for `slots` /
            /// `windows` slots. With 0 the slots come from the text's one vector, as in the paper.
            #[serde(skip_serializing_if = "is_zero")]
            windows: u32 = 0;
            /// The most sentences of a foreign text. Each is read by itself, up to `embed.max_chars`, and has `slots` slots of
            /// its own. The last one has the rest of the text. With 0 a text is not split, as in the paper.
            #[serde(skip_serializing_if = "is_zero")]
            sentences: u32 = 0;
            /// `true` writes the foreign text's numbers in ASCII behind the slots. They are left out by default.
            #[serde(skip_serializing_if = "is_false")]
            numbers: bool = false;
            /// The slot expander's hidden width; 0 is twice the decoder's width.
            #[serde(with = "zero")]
            expander_hidden: Option<u32> = None;
            /// The rank of LoRA.
            lora_rank: u32 = 16, at_least(1.0);
            /// The LoRA update is scaled by this value over the rank.
            lora_alpha: f64 = 16.0, ABOVE_0;
            /// Dropout on the input of LoRA.
            lora_dropout: f64 = 0.05, FRACTION;
            /// The peak learning rate of LoRA.
            learning_rate: f64 = 1e-4, ABOVE_0;
            /// The peak learning rate of the slot expander.
            expander_learning_rate: f64 = 3e-5, at_least(0.0);
            /// The peak learning rate of the slots' scale.
            scale_learning_rate: f64 = 5e-4, at_least(0.0);
            /// A value above 0 keeps training the projector in Stage B at this peak learning rate. By default it is frozen.
            projector_learning_rate: f64 = 0.0, at_least(0.0);
            /// The share of the steps with linear warm-up.
            warmup_share: f64 = 0.15, FRACTION;
            /// The decoupled weight decay of AdamW, which the scale does not have.
            weight_decay: f64 = 0.01, at_least(0.0);
            /// The decay β₁ of AdamW's first moment.
            beta1: f64 = 0.9, FRACTION;
            /// The decay β₂ of AdamW's second moment.
            beta2: f64 = 0.999, FRACTION;
            /// Gradients are clipped to this norm.
            gradient_clip: f64 = 1.0, ABOVE_0;
            /// Steps from one usage contrast to the next; 0 turns it off.
            usage_every: u64 = 3;
            /// The weight of the usage contrast, max(0, L_sft − L_zero).
            usage_weight: f64 = 0.05, at_least(0.0);
            /// The weight of 1 − cos(mean slot, teacher).
            cosine_weight: f64 = 0.05, at_least(0.0);
            /// The weight of the slots' InfoNCE loss.
            info_nce_weight: f64 = 1e-3, at_least(0.0);
            /// The temperature τ of the slots' InfoNCE loss.
            info_nce_temperature: f64 = 0.07, ABOVE_0;
            /// Examples with more tokens in prompt and answer are left out and counted.
            max_tokens: u32 = 512, at_least(1.0);
        }
        run {
            /// A bundle from whose parts the training starts: its folder or URL. It must have been made with the same decoder
            /// and shapes. If `projector_learning_rate` is above 0, the projector starts from the bundle too, and not from Stage
            /// A. The bundle's content is part of the stage's key. Absent: the parts start from random numbers.
            #[serde(skip_serializing_if = "Option::is_none")]
            from: Option<String> = None;
            /// Tokens that go through the decoder at once. A rank splits its share of the batch into as many passes as needed.
            token_budget: u32 = 4_096, at_least(1.0);
            /// Keep only the input of each layer and run the layer again in the backward pass. This takes less memory and a
            /// third more time.
            recompute: bool = false;
            /// Steps between checkpoints; with 0, only `checkpoint_minutes` decides.
            #[serde(with = "zero")]
            checkpoint_every: Option<u64> = Some(100);
            /// Minutes between checkpoints; with 0, only `checkpoint_every` decides.
            #[serde(with = "zero")]
            checkpoint_minutes: Option<f64> = Some(10.0), between(0.0, 10_000.0);
            /// The number of newest checkpoints that are kept, beside the best.
            checkpoints_kept: u32 = 3, at_least(1.0);
            /// Steps between validations on held-out instructions; 0 turns them off.
            #[serde(with = "zero")]
            validate_every: Option<u64> = Some(100);
            /// Held-out instructions in a validation.
            validation_examples: u32 = 64;
            /// The longest time of a step, in seconds. A longer step counts as hung, and the gang is formed again.
            step_timeout_s: f64 = 600.0, ABOVE_0.at_most(86_400.0);
            /// The fewest ranks to train with.
            min_ranks: u32 = 1, at_least(1.0);
            /// The most ranks to train with; 0 takes every worker.
            #[serde(with = "zero")]
            max_ranks: Option<u32> = None;
        }
    }
}

impl InstructSettings {
    /// Returns the optimizer steps for this many instructions.
    #[must_use]
    pub fn steps_for(&self, rows: u64) -> u64 {
        let steps = self.epochs * rows as f64 / f64::from(self.batch.max(1));
        self.steps.unwrap_or((steps.ceil() as u64).max(1))
    }

    /// Returns the parts of a text that the slots read, if there are slots and they read any.
    #[must_use]
    pub fn text_parts(&self) -> Option<TextParts> {
        let Self { windows, sentences, .. } = *self;
        let any = windows > 0 || sentences > 0;
        (any && self.mode != InstructMode::Direct).then_some(TextParts { windows, sentences })
    }

    /// Reports invalid values.
    pub fn check(&self, expect: Expect<'_>) {
        self.check_bounds(expect);
        let counted = self.steps.is_some() || ABOVE_0.contains(self.epochs);
        expect(counted, "instruct.epochs", &self.epochs, "above 0");
        let reserved = (1..=10).contains(&self.slots) || self.mode == InstructMode::Direct;
        let expected = "1 to 10, the number of the decoder's reserved tokens";
        expect(reserved, "instruct.slots", &self.slots, expected);
        let windows = self.text_parts().unwrap_or_default().windows;
        let shared = windows == 0 || self.slots.is_multiple_of(windows);
        let expected = "0 or a divisor of `instruct.slots`, so that each window has equally many slots";
        expect(shared, "instruct.windows", &self.windows, expected);
        let from = self.from.as_deref().unwrap_or_default();
        let has_slots = self.mode == InstructMode::Slots || self.from.is_none();
        let expected = "no bundle unless `instruct.mode` is \"slots\": a bundle holds no adapter for the direct arm";
        expect(has_slots, "instruct.from", &from, expected);
        let ranks = self.max_ranks.unwrap_or(self.min_ranks);
        expect(ranks >= self.min_ranks, "instruct.max_ranks", &ranks, "0, or at least `instruct.min_ranks`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_make_steps_unless_steps_are_given() {
        let settings = InstructSettings::default();
        assert_eq!(settings.steps_for(40_000), 938);
        assert_eq!(settings.steps_for(1), 1);
        let fixed = InstructSettings { steps: Some(7), ..settings };
        assert_eq!(fixed.steps_for(40_000), 7);
    }
}
