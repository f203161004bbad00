//! One step of Stage B, and all that moves with it: LoRA on the frozen decoder, the slot expander and its scale.

use std::ops::Range;

use super::dropout::Dropout;
use super::instruct_batch::{InstructBatch, InstructExample, micro_batches};
use super::optimizer::{AdamW, AdamWOptions, clip_grad_norm};
use super::step::{Clock, StepSeconds, check_finite};
use crate::Result;
use crate::collective::Collective;
use crate::llink::kernels::add;
use crate::llink::slot_expander::{ExpanderActivations, SlotExpander};
use crate::llink::slot_losses::{SlotWeights, slot_losses};
use crate::llink::usage_contrast::UsageContrast;
use crate::models::lora::LoraAdapter;
use crate::models::{Activations, Llama, TrainingBatch};

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
    /// Their projected vectors, `[b, d]`; none when no prompt has slots.
    pub projected: &'a [f32],
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
    pub(super) fn new(weights: &InstructWeights, sft: f64, zero: Option<f64>, cosine: f64, info_nce: f64) -> Self {
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

/// Adapter, expander and their optimizers in training. The same on all ranks after each step.
pub struct InstructTrainer {
    /// Trained in place.
    pub adapter: LoraAdapter,
    /// Trained in place.
    pub expander: SlotExpander,
    /// LoRA's, the expander's, the scale's.
    pub optimizers: [AdamW; 3],
    weights: InstructWeights,
    activations: ExpanderActivations,
    /// By the adapter, then by the expander (its scale first), then this rank's shares of the losses of the slots.
    gradient: Vec<f32>,
}

impl InstructTrainer {
    /// AdamW's options of the three groups, where the weight decay is LoRA's and the expander's; the scale has none.
    #[must_use]
    pub fn optimizers(adapter: &LoraAdapter, expander: &SlotExpander, options: AdamWOptions) -> [AdamW; 3] {
        let without_decay = AdamWOptions {
            weight_decay: 0.0,
            ..options
        };
        [
            AdamW::new(options, adapter.parameters.len()),
            AdamW::new(options, expander.parameters.len() - 1),
            AdamW::new(without_decay, 1),
        ]
    }

    /// A trainer that goes on from these.
    #[must_use]
    pub fn new(adapter: LoraAdapter, expander: SlotExpander, optimizers: [AdamW; 3], weights: InstructWeights) -> Self {
        let gradient = vec![0.0; adapter.parameters.len() + expander.parameters.len() + 2];
        Self {
            adapter,
            expander,
            optimizers,
            weights,
            activations: ExpanderActivations::default(),
            gradient,
        }
    }

    /// The last step's gradient over the global batch, before clipping: by the adapter, and by the expander.
    #[must_use]
    pub fn gradient(&self) -> (&[f32], &[f32]) {
        let (by_adapter, rest) = self.gradient.split_at(self.adapter.parameters.len());
        (by_adapter, &rest[..self.expander.parameters.len()])
    }

    /// Trains on one global batch, of which each rank runs its own rows. All ranks take the same step.
    ///
    /// # Errors
    /// Those of the decoder and the collective; [`Error::Diverged`](crate::Error::Diverged) on NaN or infinity, with nothing changed
    /// by this step.
    pub fn step(
        &mut self,
        decoder: &Llama,
        input: &InstructInput<'_>,
        collective: &mut dyn Collective,
    ) -> Result<InstructOutcome> {
        let mut clock = Clock::start();
        let mut seconds = StepSeconds::default();
        self.gradient.fill(0.0);
        // Of the global batch, so that a rank without rows of its own takes the same step.
        let with_slots = !input.teacher.is_empty();
        self.activations.slots.clear();
        if with_slots {
            self.expander.forward(input.projected, &mut self.activations);
        }
        let mut by_slots = vec![0.0; self.activations.slots.len()];
        seconds.forward += clock.lap();

        let due = with_slots && self.weights.usage.is_due(input.step);
        let lengths: Vec<usize> = input.examples.iter().map(|example| example.tokens()).collect();
        let mut share = [0f32; 2]; // sft, zero
        for run in micro_batches(&lengths, input.token_budget) {
            let found = self.run(decoder, input, run, due, &mut by_slots, &mut clock, &mut seconds)?;
            share[0] += found.0 as f32;
            share[1] += found.1 as f32;
        }
        // Whether slots did worse than zeros is asked of the global batch.
        collective.all_reduce_sum(&mut share)?;
        let [sft, zero] = share.map(f64::from);
        seconds.reduce += clock.lap();

        let factor = if due {
            self.weights.usage.sft_factor(sft, zero)
        } else {
            1.0
        } as f32;
        let by_adapter = self.adapter.parameters.len();
        if factor != 1.0 {
            self.gradient[..by_adapter].iter_mut().for_each(|x| *x *= factor);
            by_slots.iter_mut().for_each(|x| *x *= factor);
        }
        if with_slots {
            let slots = slot_losses(
                &self.activations.slots,
                input.teacher,
                self.expander.shape().width,
                input.own.clone(),
                &self.weights.slots,
                &mut by_slots,
            );
            let (by_expander, losses) = self.gradient[by_adapter..].split_at_mut(self.expander.parameters.len());
            self.expander
                .backward(&mut self.activations, &mut by_slots, by_expander);
            losses.copy_from_slice(&[slots.cosine as f32, slots.info_nce as f32]);
        }
        seconds.backward += clock.lap();

        collective.all_reduce_sum(&mut self.gradient)?;
        seconds.reduce += clock.lap();

        let (gradient, losses) = self.gradient.split_at(self.gradient.len() - 2);
        let losses = self.losses(sft, due.then_some(zero), losses);
        let (grad_norm, scale) = clip_grad_norm(gradient, self.weights.gradient_clip);
        check_finite(input.step, input.ids, losses.loss, grad_norm)?;
        self.apply(scale, &input.learning_rates, with_slots);
        seconds.optimizer += clock.lap();
        Ok(InstructOutcome {
            losses,
            grad_norm,
            seconds,
        })
    }

    /// The losses of the examples `run` with slots and, if due, with zeros: this rank's shares. Their gradient goes to the adapter's
    /// part of the gradient and to `by_slots`.
    #[allow(clippy::too_many_arguments)]
    fn run(
        &mut self,
        decoder: &Llama,
        input: &InstructInput<'_>,
        run: Range<usize>,
        due: bool,
        by_slots: &mut [f32],
        clock: &mut Clock,
        seconds: &mut StepSeconds,
    ) -> Result<(f64, f64)> {
        let width = self.expander.shape().width;
        let slots_of = run.start * self.expander.shape().slots * width..run.end * self.expander.shape().slots * width;
        let batch = InstructBatch::new(input.examples[run].iter().copied());
        let answer = batch.answer();
        let training = TrainingBatch {
            ids: &batch.ids,
            offsets: &batch.offsets,
            answer: &answer,
            answer_tokens: input.answer_tokens,
            dropout: input.dropout.map(|dropout| (dropout, batch.row_keys.as_slice())),
        };
        let mut embeddings = decoder.embed_f32(&batch.ids)?;
        let mut zero = 0.0;
        if due {
            for row in &batch.slot_rows {
                embeddings[row * width..(row + 1) * width].fill(0.0);
            }
            zero = decoder.answer_loss(&self.adapter, &training, &embeddings)?;
        }
        let slots_of = if batch.slot_rows.is_empty() { 0..0 } else { slots_of };
        let slots = &self.activations.slots[slots_of.clone()];
        for (row, slot) in batch.slot_rows.iter().zip(slots.chunks_exact(width)) {
            embeddings[row * width..(row + 1) * width].copy_from_slice(slot);
        }
        let pass = decoder.train(&self.adapter, &training, &embeddings, input.activations)?;
        let sft = pass.loss()?;
        seconds.forward += clock.lap();

        let by_embeddings = pass.backward(&self.adapter, &mut self.gradient, &mut |_, _| Ok(()))?;
        let by_slots = by_slots[slots_of].chunks_exact_mut(width);
        for (row, by_slot) in batch.slot_rows.iter().zip(by_slots) {
            add(by_slot, &by_embeddings[row * width..(row + 1) * width]);
        }
        seconds.backward += clock.lap();
        Ok((sft, zero))
    }

    fn losses(&self, sft: f64, zero: Option<f64>, slots: &[f32]) -> InstructLosses {
        InstructLosses::new(&self.weights, sft, zero, f64::from(slots[0]), f64::from(slots[1]))
    }

    fn apply(&mut self, scale: f32, rates: &LearningRates, with_slots: bool) {
        let (by_adapter, rest) = self.gradient.split_at(self.adapter.parameters.len());
        let (by_scale, rest) = rest.split_at(1);
        let by_expander = &rest[..self.expander.parameters.len() - 1];
        let [of_adapter, of_expander, of_scale] = &mut self.optimizers;
        of_adapter.step(&mut self.adapter.parameters, by_adapter, scale, rates.lora);
        if !with_slots {
            return;
        }
        let (scale_parameter, others) = self.expander.parameters.split_at_mut(1);
        of_expander.step(others, by_expander, scale, rates.expander);
        of_scale.step(scale_parameter, by_scale, scale, rates.scale);
    }
}
