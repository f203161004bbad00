//! The input and the result of one step of Stage B.

use std::ops::Range;

use llink_proto::settings::InstructSettings;

use super::batch::InstructExample;
use crate::llink::slot_losses::SlotWeights;
use crate::llink::usage_contrast::UsageContrast;
use crate::models::Activations;
use crate::numerics::dropout::Dropout;
use crate::train::step::StepOutcome;

/// The weights of the losses, and the largest gradient.
#[derive(Debug, Clone, Copy)]
pub struct InstructWeights {
    /// Weights of the losses that compare the slots with the teacher.
    pub slots: SlotWeights,
    /// The loss that compares the slots with zeros.
    pub usage: UsageContrast,
    /// The largest norm of a gradient; longer gradients are clipped.
    pub gradient_clip: f64,
}

impl From<&InstructSettings> for InstructWeights {
    fn from(settings: &InstructSettings) -> Self {
        Self { slots: settings.into(), usage: settings.into(), gradient_clip: settings.gradient_clip }
    }
}

/// A learning rate for each group of parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRates {
    /// The learning rate of LoRA.
    pub lora: f64,
    /// The learning rate of the slot expander without its scale.
    pub expander: f64,
    /// The learning rate of the scale.
    pub scale: f64,
    /// The learning rate of the projector; 0 if it is frozen.
    pub projector: f64,
}

/// The input of one step.
#[derive(Debug, Clone)]
pub struct InstructInput<'a> {
    /// The number of the step, counted from 0.
    pub step: u64,
    /// The ids of the global batch, `[B]`. Errors name them.
    pub ids: &'a [u64],
    /// The rows of the global batch that belong to this rank.
    pub own: Range<usize>,
    /// The b examples of this rank.
    pub examples: &'a [&'a InstructExample],
    /// The projected vectors of the examples, `[b, 1 + W, d]`: of each text, and of its W windows. A text that is split has
    /// such rows for each sentence. If the projector is trained, these are encoder vectors, `[b, 1 + W, d_e]`. Empty if no
    /// prompt has slots.
    pub vectors: &'a [f32],
    /// The teacher vectors of the global batch, `[B, d]`. Empty if no prompt has slots.
    pub teacher: &'a [f32],
    /// The number of answer tokens in the global batch.
    pub answer_tokens: usize,
    /// The learning rate of each group.
    pub learning_rates: LearningRates,
    /// The dropout of LoRA in this step.
    pub dropout: Option<Dropout>,
    /// The number of tokens that go through the decoder at once. A larger batch takes several passes.
    pub token_budget: usize,
    /// The activations that the forward pass keeps.
    pub activations: Activations,
}

/// The losses of the global batch before the step. They are the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct InstructLosses {
    /// The weighted sum of the losses.
    pub loss: f64,
    /// The next-token loss of the answers.
    pub sft: f64,
    /// The same loss with zeros in the slots, on steps that compare the two.
    pub zero: Option<f64>,
    /// The usage contrast, max(0, sft − zero).
    pub usage: f64,
    /// The mean of 1 − cosine between the mean slot and the teacher.
    pub cosine: f64,
    /// The InfoNCE of the mean slots against the teachers of the batch.
    pub info_nce: f64,
}

impl InstructLosses {
    pub(super) fn new(weights: &InstructWeights, sft: f64, zero: Option<f64>, [cosine, info_nce]: [f64; 2]) -> Self {
        let usage = zero.map_or(0.0, |zero| weights.usage.loss(sft, zero));
        Self {
            loss: sft
                + weights.usage.weight * usage
                + weights.slots.cosine * cosine
                + weights.slots.info_nce * info_nce,
            sft,
            zero,
            usage,
            cosine,
            info_nce,
        }
    }
}

/// The outcome of a step of Stage B.
pub type InstructOutcome = StepOutcome<InstructLosses>;
