//! One step of Stage B, and all that moves with it: LoRA on the frozen decoder, the slot expander and its scale, and the projector
//! where it is not left as it is.

use std::ops::Range;

use super::dropout::Dropout;
use super::instruct_batch::{InstructBatch, InstructExample, micro_batches};
use super::moving_projector::MovingProjector;
use super::optimizer::{AdamW, AdamWOptions, clip_grad_norm};
use super::overlap::{Buckets, Reducer, while_reducing};
use super::step::{Clock, StepSeconds, check_finite};
use crate::Result;
use crate::collective::Collective;
use crate::llink::kernels::add;
use crate::llink::projector;
use crate::llink::slot_expander::{ExpanderActivations, SlotExpander};
use crate::llink::slot_losses::{SlotWeights, slot_losses};
use crate::llink::usage_contrast::UsageContrast;
use crate::models::lora::LoraAdapter;
use crate::models::{Activations, Llama, TrainingBatch, TrainingPass};

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
    /// Trained in place, where it is not left as it is.
    pub projector: Option<MovingProjector>,
    weights: InstructWeights,
    activations: ExpanderActivations,
    projecting: projector::Activations,
    /// By the adapter, by the projector if it moves, by the expander (its scale first), then this rank's shares of the losses of the
    /// slots.
    gradient: Vec<f32>,
}

/// A forward pass of some of this rank's examples.
struct Forward<'a> {
    pass: TrainingPass<'a>,
    /// The loss with zeros in the slots; 0 unless it was asked for.
    zero: f64,
    /// Where the run's slots lie among this rank's.
    slots: Range<usize>,
    /// The rows that they stand in.
    slot_rows: Vec<usize>,
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
            projector: None,
            weights,
            activations: ExpanderActivations::default(),
            projecting: projector::Activations::default(),
            gradient,
        }
    }

    /// The same, that trains this projector too.
    #[must_use]
    pub fn with_projector(mut self, projector: Option<MovingProjector>) -> Self {
        self.projector = projector;
        let count = self.adapter.parameters.len() + self.projector_count() + self.expander.parameters.len();
        self.gradient = vec![0.0; count + 2];
        self
    }

    fn projector_count(&self) -> usize {
        self.projector.as_ref().map_or(0, MovingProjector::count)
    }

    /// The last step's gradient over the global batch, before clipping: by the adapter, and by the expander.
    #[must_use]
    pub fn gradient(&self) -> (&[f32], &[f32]) {
        let (by_adapter, rest) = self.gradient.split_at(self.adapter.parameters.len());
        (
            by_adapter,
            &rest[self.projector_count()..][..self.expander.parameters.len()],
        )
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
        // Of the global batch, so that a rank without rows of its own takes the same step.
        let with_slots = !input.teacher.is_empty();
        let due = with_slots && self.weights.usage.is_due(input.step);
        let mut gradient = std::mem::take(&mut self.gradient);
        gradient.fill(0.0);
        let found = self.gradients(
            decoder,
            input,
            due,
            &mut gradient,
            collective,
            (&mut clock, &mut seconds),
        );
        self.gradient = gradient;
        let [sft, zero] = found?;
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

    /// The gradient of the global batch, summed over all ranks, and its loss with slots and with zeros. Each part crosses the
    /// network as soon as it is whole: the adapter's layers, the last one first, while the decoder's backward pass goes on; the
    /// expander's second Linear while its first one is computed.
    fn gradients(
        &mut self,
        decoder: &Llama,
        input: &InstructInput<'_>,
        due: bool,
        gradient: &mut [f32],
        collective: &mut dyn Collective,
        (clock, seconds): (&mut Clock, &mut StepSeconds),
    ) -> Result<[f64; 2]> {
        let mut activations = std::mem::take(&mut self.activations);
        let mut projecting = std::mem::take(&mut self.projecting);
        activations.slots.clear();
        let with_slots = !input.teacher.is_empty();
        if with_slots {
            let projected = match &self.projector {
                Some(moving) => {
                    moving.forward(input.vectors, &mut projecting);
                    &projecting.projected
                }
                None => input.vectors,
            };
            self.expander.forward(projected, &mut activations);
        }
        let mut by_slots = vec![0.0; activations.slots.len()];
        seconds.forward += clock.lap();
        let (by_adapter, rest) = gradient.split_at_mut(self.adapter.parameters.len());
        let (by_projector, by_expander) = rest.split_at_mut(self.projector_count());
        let (by_up, by_down) = by_expander.split_at_mut(self.expander.shape().first_linear());
        let losses = while_reducing(collective, |reducer| {
            let slots = (activations.slots.as_slice(), by_slots.as_mut_slice());
            let buckets = self.by_answers(
                decoder,
                input,
                due,
                slots,
                by_adapter,
                reducer,
                (&mut *clock, &mut *seconds),
            )?;
            // Whether slots did worse than zeros is asked of the global batch.
            let losses = reducer.summed()?;
            let [sft, zero] = [losses[0], losses[1]].map(f64::from);
            seconds.reduce += clock.lap();
            let factor = match due {
                true => self.weights.usage.sft_factor(sft, zero) as f32,
                false => 1.0,
            };
            if with_slots {
                by_slots.iter_mut().for_each(|x| *x *= factor);
                let width = self.expander.shape().width;
                let (slots, own) = (&activations.slots, input.own.clone());
                let slots = slot_losses(slots, input.teacher, width, own, &self.weights.slots, &mut by_slots);
                let (parameters, losses) = by_down.split_at_mut(by_down.len() - 2);
                losses.copy_from_slice(&[slots.cosine as f32, slots.info_nce as f32]);
                self.expander.backward_down(&mut activations, &mut by_slots, parameters);
                reducer.sum_in_place(by_down)?;
                self.expander.backward_up(&mut activations, &by_slots, by_up);
                reducer.sum_in_place(by_up)?;
                if let Some(MovingProjector { projector, .. }) = &self.projector {
                    let by_projected = self.expander.by_projected(&mut activations);
                    projector.backward(input.vectors, &mut projecting, by_projected, by_projector);
                    reducer.sum_in_place(by_projector)?;
                }
            }
            seconds.backward += clock.lap();
            buckets.collect(by_adapter, factor, reducer)?;
            Ok([sft, zero])
        });
        (self.activations, self.projecting) = (activations, projecting);
        losses
    }

    /// This rank's examples forth and back. Hands the losses over, with slots and with zeros, then the gradient by the adapter in
    /// buckets; leaves the gradient by the slots in the second of `slots`.
    #[allow(clippy::too_many_arguments)]
    fn by_answers(
        &self,
        decoder: &Llama,
        input: &InstructInput<'_>,
        due: bool,
        (slots, by_slots): (&[f32], &mut [f32]),
        by_adapter: &mut [f32],
        reducer: &mut Reducer<'_>,
        (clock, seconds): (&mut Clock, &mut StepSeconds),
    ) -> Result<Buckets> {
        let lengths: Vec<usize> = input.examples.iter().map(|example| example.tokens()).collect();
        let runs = micro_batches(&lengths, input.token_budget);
        let mut buckets = Buckets::default();
        let mut share = [0f32; 2]; // sft, zero
        for (at, run) in runs.iter().enumerate() {
            let forward = self.forward(decoder, input, run.clone(), due, slots)?;
            share[0] += forward.pass.loss()? as f32;
            share[1] += forward.zero as f32;
            seconds.forward += clock.lap();
            let last = at + 1 == runs.len();
            if last {
                reducer.sum(share.to_vec())?;
            }
            let ready = &mut |range: Range<usize>, part: &mut [f32]| match last {
                true => buckets.push(range, part, reducer),
                false => Ok(()),
            };
            let width = self.expander.shape().width;
            let by_embeddings = forward.pass.backward(&self.adapter, by_adapter, ready)?;
            let by_slots = by_slots[forward.slots].chunks_exact_mut(width);
            for (row, by_slot) in forward.slot_rows.iter().zip(by_slots) {
                add(by_slot, &by_embeddings[row * width..(row + 1) * width]);
            }
            seconds.backward += clock.lap();
        }
        if runs.is_empty() {
            // Nothing of its own to add, but the same calls as everyone.
            reducer.sum(share.to_vec())?;
            for layer in (0..self.adapter.layers()).rev() {
                let range = self.adapter.layer_range(layer);
                buckets.push(range.clone(), &by_adapter[range], reducer)?;
            }
        }
        buckets.send(reducer)?;
        Ok(buckets)
    }

    /// The examples `run` through the decoder, with slots and, if due, with zeros.
    fn forward<'d>(
        &self,
        decoder: &'d Llama,
        input: &InstructInput<'_>,
        run: Range<usize>,
        due: bool,
        slots: &[f32],
    ) -> Result<Forward<'d>> {
        let shape = self.expander.shape();
        let (width, each) = (shape.width, shape.slots * shape.width);
        let of_run = run.start * each..run.end * each;
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
        let of_run = if batch.slot_rows.is_empty() { 0..0 } else { of_run };
        for (row, slot) in batch.slot_rows.iter().zip(slots[of_run.clone()].chunks_exact(width)) {
            embeddings[row * width..(row + 1) * width].copy_from_slice(slot);
        }
        Ok(Forward {
            pass: decoder.train(&self.adapter, &training, &embeddings, input.activations)?,
            zero,
            slots: of_run,
            slot_rows: batch.slot_rows,
        })
    }

    fn losses(&self, sft: f64, zero: Option<f64>, slots: &[f32]) -> InstructLosses {
        InstructLosses::new(&self.weights, sft, zero, f64::from(slots[0]), f64::from(slots[1]))
    }

    fn apply(&mut self, scale: f32, rates: &LearningRates, with_slots: bool) {
        let (by_adapter, rest) = self.gradient.split_at(self.adapter.parameters.len());
        let (by_projector, rest) = rest.split_at(self.projector_count());
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
        if let Some(MovingProjector { projector, optimizer }) = &mut self.projector {
            optimizer.step(&mut projector.parameters, by_projector, scale, rates.projector);
        }
    }
}
