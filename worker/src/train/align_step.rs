//! One step of Stage A, and all that moves with it.

use std::ops::Range;

use super::dropout::Dropout;
use super::optimizer::{AdamW, clip_grad_norm};
use super::overlap::reduce_while;
use super::step::{Clock, StepSeconds, check_finite};
use crate::Result;
use crate::collective::Collective;
use crate::llink::align_losses::{AlignBatch, AlignLosses, AlignWeights, LossBuffers, align_losses};
use crate::llink::matrix::Existing;
use crate::llink::projector::{Activations, Projector};
use crate::llink::teacher_queue::TeacherQueue;
use crate::llink::whitening::Whitening;

/// This rank's share of the three losses is summed over ranks behind the gradient.
const LOSSES: usize = 3;

/// What one step is given.
#[derive(Debug, Clone)]
pub struct StepInput<'a> {
    /// Counts from 0; for errors.
    pub step: u64,
    /// Pair ids of the global batch, `[B]`.
    pub ids: &'a [u64],
    /// Which rows of the global batch are this rank's.
    pub own: Range<usize>,
    /// Encoder vectors of this rank's rows, `[b, d_e]`, standardized where the training does so.
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
    metric: Option<Whitening>,
    gradient_clip: f64,
    micro_batch: usize,
    activations: Activations,
    /// This rank's rows, `[b, d]`, when their activations are not all held at once.
    projected: Vec<f32>,
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
        let gradient = vec![0.0; projector.parameters.len() + LOSSES];
        let (activations, buffers) = (Activations::default(), LossBuffers::default());
        Self {
            projector,
            optimizer,
            queue,
            weights,
            metric: None,
            gradient_clip,
            micro_batch: 0,
            activations,
            projected: Vec::new(),
            buffers,
            gradient,
        }
    }

    /// Holds the activations of so many rows at once, and computes them a second time for the backward pass; 0 holds all.
    #[must_use]
    pub const fn with_micro_batch(mut self, rows: usize) -> Self {
        self.micro_batch = rows;
        self
    }

    /// Compares vectors in this metric; none compares them as they are.
    #[must_use]
    pub fn with_metric(mut self, metric: Option<Whitening>) -> Self {
        self.metric = metric;
        self
    }

    /// The last step's gradient over the global batch, before clipping; in the parameters' order.
    #[must_use]
    pub fn gradient(&self) -> &[f32] {
        &self.gradient[..self.projector.parameters.len()]
    }

    /// Trains on one global batch, of which each rank projects its own rows. All ranks take the same step.
    ///
    /// # Errors
    /// Those of the collective; [`Error::Diverged`](crate::Error::Diverged) on NaN or infinity, with nothing changed by this step.
    pub fn step(&mut self, input: &StepInput<'_>, collective: &mut dyn Collective) -> Result<StepOutcome> {
        let mut clock = Clock::start();
        let mut seconds = StepSeconds::default();

        let pieces = pieces(input.own.len(), self.micro_batch);
        self.forward(input, &pieces);
        let batch = AlignBatch {
            ids: input.ids,
            teacher: input.teacher,
            own: input.own.clone(),
            projected: if pieces.len() > 1 {
                &self.projected
            } else {
                &self.activations.projected
            },
            temperature: input.temperature,
            metric: self.metric.as_ref(),
        };
        let share = align_losses(&batch, &self.queue, &self.weights, collective, &mut self.buffers)?;
        seconds.forward = clock.lap();

        let parameters = self.projector.parameters.len();
        let losses = [share.info_nce as f32, share.direction as f32, share.log_norm as f32];
        self.gradient[parameters..].copy_from_slice(&losses);
        self.backward(input, &pieces, collective, &mut clock, &mut seconds)?;

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

/// A range of this rank's rows.
type Piece = Range<usize>;

/// How a rank's rows are cut so that the activations of one piece, `micro_batch` rows, fit; 0 takes all at once. At least one
/// piece, for a rank without rows takes part too.
pub(super) fn pieces(rows: usize, micro_batch: usize) -> Vec<Piece> {
    let size = if micro_batch == 0 { rows } else { micro_batch };
    let starts = (0..rows.max(1)).step_by(size.max(1));
    starts.map(|start| start..(start + size).min(rows)).collect()
}

impl AlignTrainer {
    /// Projects this rank's rows. The activations of the last piece stay.
    fn forward(&mut self, input: &StepInput<'_>, pieces: &[Piece]) {
        self.projected.clear();
        for piece in pieces {
            self.forward_piece(input, piece);
            if pieces.len() > 1 {
                self.projected.extend_from_slice(&self.activations.projected);
            }
        }
    }

    fn forward_piece(&mut self, input: &StepInput<'_>, piece: &Piece) {
        let ids = &input.ids[input.own.clone()][piece.clone()];
        let dropout = input.dropout.as_ref().map(|dropout| (dropout, ids));
        self.projector
            .forward(input.rows(piece, &self.projector), dropout, &mut self.activations);
    }

    /// The gradient by the parameters, summed over all ranks. What is found first, that of the second Linear and the
    /// LayerNorm, crosses the network while that of the first Linear is still computed.
    fn backward(
        &mut self,
        input: &StepInput<'_>,
        pieces: &[Piece],
        collective: &mut dyn Collective,
        clock: &mut Clock,
        seconds: &mut StepSeconds,
    ) -> Result<()> {
        let width = self.queue.width();
        let first_bucket = self.projector.shape().first_linear();
        let mut gradient = std::mem::take(&mut self.gradient);
        let (up, down) = gradient.split_at_mut(first_bucket);
        let mut existing = Existing::Overwritten;
        let mut reduced = Ok(());
        // From the last piece to the first: the activations of the last one are still there.
        for (at, piece) in pieces.iter().enumerate().rev() {
            if at + 1 < pieces.len() {
                self.forward_piece(input, piece);
            }
            let rows = input.rows(piece, &self.projector);
            let by_projected = &mut self.buffers.gradient[piece.start * width..piece.end * width];
            let losses = down.len() - LOSSES;
            self.projector
                .backward_down(rows, &mut self.activations, by_projected, &mut down[..losses], existing);
            let (projector, activations) = (&self.projector, &mut self.activations);
            let mut compute = || projector.backward_up(rows, activations, by_projected, up, existing);
            if at == 0 {
                reduced = reduce_while(collective, down, compute);
            } else {
                compute();
            }
            existing = Existing::Kept;
        }
        seconds.backward = clock.lap();
        let reduced = reduced.and_then(|()| collective.all_reduce_sum(up));
        seconds.reduce = clock.lap();
        self.gradient = gradient;
        reduced
    }
}

impl<'a> StepInput<'a> {
    fn rows(&self, piece: &Piece, projector: &Projector) -> &'a [f32] {
        let width = projector.shape().input;
        &self.encoder[piece.start * width..piece.end * width]
    }
}
