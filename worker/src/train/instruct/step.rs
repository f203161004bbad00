//! What a step of Stage B is given and what it finds.

use std::ops::Range;

use super::batch::InstructExample;
use crate::llink::slot_losses::SlotWeights;
use crate::llink::usage_contrast::UsageContrast;
use crate::models::Activations;
use crate::train::dropout::Dropout;
use crate::train::step::StepSeconds;

/// How the losses are weighed and taken.
#[derive(Debug, Clone, Copy)]
pub struct InstructWeights {
    /// Of the slots against the teacher.
    pub slots: SlotWeights,
    /// Slots against zeros.
    pub usage: UsageContrast,
    /// The largest norm of a gradient.
    pub gradient_clip: f64,
}

/// A learning rate for each group of parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRates {
    /// Of LoRA.
    pub lora: f64,
    /// Of the slot expander but for its scale.
    pub expander: f64,
    /// Of the scale.
    pub scale: f64,
    /// Of the projector, where it moves.
    pub projector: f64,
}

/// What one step is given.
#[derive(Debug, Clone)]
pub struct InstructInput<'a> {
    /// Counts from 0.
    pub step: u64,
    /// Ids of the global batch, `[B]`; for errors.
    pub ids: &'a [u64],
    /// Which rows of the global batch are this rank's.
    pub own: Range<usize>,
    /// This rank's examples, b of them.
    pub examples: &'a [&'a InstructExample],
    /// Their projected vectors, `[b, d]`, or the encoder's, `[b, d_e]`, where the projector moves; none when no prompt has slots.
    pub vectors: &'a [f32],
    /// Teacher vectors of the global batch, `[B, d]`; none when no prompt has slots.
    pub teacher: &'a [f32],
    /// Answer tokens in the global batch.
    pub answer_tokens: usize,
    /// Of each group.
    pub learning_rates: LearningRates,
    /// LoRA's.
    pub dropout: Option<Dropout>,
    /// Tokens that go through the decoder at once; more make several passes.
    pub token_budget: usize,
    /// What the forward pass keeps.
    pub activations: Activations,
}

/// Over the global batch, before the step. The same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct InstructLosses {
    /// The weighted sum.
    pub loss: f64,
    /// Next-token loss of the answers.
    pub sft: f64,
    /// The same with zeros in the slots, on steps that contrast.
    pub zero: Option<f64>,
    /// max(0, sft − zero).
    pub usage: f64,
    /// Of mean slot and teacher.
    pub cosine: f64,
    /// Of mean slots among the batch's teachers.
    pub info_nce: f64,
}

impl InstructLosses {
    /// Weighs what was found.
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

/// What a step found.
#[derive(Debug, Clone, Copy)]
pub struct InstructOutcome {
    /// Over the global batch.
    pub losses: InstructLosses,
    /// Before clipping.
    pub grad_norm: f64,
    /// Where the time went.
    pub seconds: StepSeconds,
}
