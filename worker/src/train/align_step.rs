//! One step of Stage A, and all that moves with it.

use std::ops::Range;

use super::dropout::Dropout;
use super::optimizer::{AdamW, clip_grad_norm};
use super::step::{Clock, StepSeconds, check_finite};
use crate::Result;
use crate::collective::Collective;
use crate::llink::align_losses::{AlignBatch, AlignLosses, AlignWeights, LossBuffers, align_losses};
use crate::llink::projector::{Activations, Projector};
use crate::llink::teacher_queue::TeacherQueue;

/// What one step is given.
#[derive(Debug, Clone)]
pub struct StepInput<'a> {
    /// Counts from 0; for errors.
    pub step: u64,
    /// Pair ids of the global batch, `[B]`.
    pub ids: &'a [u64],
    /// Which rows of the global batch are this rank's.
    pub own: Range<usize>,
    /// Encoder vectors of this rank's rows, `[b, d_e]`.
    pub encoder: &'a [f32],
    /// Teacher vectors of the global batch, `[B, d]`.
    pub teacher: &'a [f32],
    /// τ of the InfoNCE.
    pub temperature: f64,
    /// Of AdamW.
    pub learning_rate: f64,
    /// The step's masks.
    pub dropout: Option<Dropout>,
}

/// What a step found. The same on all ranks.
#[derive(Debug, Clone, Copy)]
pub struct StepOutcome {
    /// Over the global batch, before the step.
    pub losses: AlignLosses,
    /// The gradient's L2 norm before clipping.
    pub grad_norm: f64,
    /// Where the time went.
    pub seconds: StepSeconds,
}

/// Projector, optimizer and queue in training. The same on all ranks after each step.
pub struct AlignTrainer {
    /// Trained in place.
    pub projector: Projector,
    /// AdamW with its moments.
    pub optimizer: AdamW,
    /// Teachers of the steps before.
    pub queue: TeacherQueue,
    weights: AlignWeights,
    gradient_clip: f64,
    activations: Activations,
    buffers: LossBuffers,
    /// By the parameters, then this rank's share of the three losses.
    gradient: Vec<f32>,
}

impl AlignTrainer {
    /// A trainer that goes on from these.
    #[must_use]
    pub fn new(
        projector: Projector,
        optimizer: AdamW,
        queue: TeacherQueue,
        weights: AlignWeights,
        gradient_clip: f64,
    ) -> Self {
        let gradient = vec![0.0; projector.parameters.len() + 3];
        let (activations, buffers) = (Activations::default(), LossBuffers::default());
        Self {
            projector,
            optimizer,
            queue,
            weights,
            gradient_clip,
            activations,
            buffers,
            gradient,
        }
    }

    /// The last step's gradient over the global batch, before clipping; in the parameters' order.
    #[must_use]
    pub fn gradient(&self) -> &[f32] {
        &self.gradient[..self.projector.parameters.len()]
    }

    /// Trains on one global batch, of which each rank projects its own rows. All ranks take the same step.
    ///
    /// # Errors
    /// Those of the collective; [`Error::Diverged`] on NaN or infinity, with nothing changed by this step.
    pub fn step(&mut self, input: &StepInput<'_>, collective: &mut dyn Collective) -> Result<StepOutcome> {
        let mut clock = Clock::start();
        let mut seconds = StepSeconds::default();

        let dropout = input
            .dropout
            .as_ref()
            .map(|dropout| (dropout, &input.ids[input.own.clone()]));
        self.projector.forward(input.encoder, dropout, &mut self.activations);
        let batch = AlignBatch {
            ids: input.ids,
            teacher: input.teacher,
            own: input.own.clone(),
            projected: &self.activations.projected,
            temperature: input.temperature,
        };
        let share = align_losses(&batch, &self.queue, &self.weights, collective, &mut self.buffers)?;
        seconds.forward = clock.lap();

        let (by_parameters, losses) = self.gradient.split_at_mut(self.projector.parameters.len());
        let by_projected = &mut self.buffers.gradient;
        self.projector
            .backward(input.encoder, &mut self.activations, by_projected, by_parameters);
        losses.copy_from_slice(&[share.info_nce as f32, share.direction as f32, share.log_norm as f32]);
        seconds.backward = clock.lap();

        collective.all_reduce_sum(&mut self.gradient)?;
        seconds.reduce = clock.lap();

        let (by_parameters, losses) = self.gradient.split_at(self.projector.parameters.len());
        let [info_nce, direction, log_norm] = [losses[0], losses[1], losses[2]].map(f64::from);
        let losses = AlignLosses {
            info_nce,
            direction,
            log_norm,
        };
        let (grad_norm, scale) = clip_grad_norm(by_parameters, self.gradient_clip);
        check_finite(input.step, input.ids, losses.total(&self.weights), grad_norm)?;
        self.optimizer.step(
            &mut self.projector.parameters,
            by_parameters,
            scale,
            input.learning_rate,
        );
        self.queue
            .push(self.buffers.normalized_teacher(self.queue.width()), input.ids);
        seconds.optimizer = clock.lap();
        Ok(StepOutcome {
            losses,
            grad_norm,
            seconds,
        })
    }
}
