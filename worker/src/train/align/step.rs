//! One step of Stage A, and the state that it changes.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::collective::Collective;
use crate::device::{Staging, is_out_of_memory};
use crate::llink::align_losses::{AlignBatch, AlignLosses, AlignWeights, align_losses};
use crate::llink::mlp::{Mlp, MlpTape, halves};
use crate::llink::projector::{Projector, ProjectorShape};
use crate::llink::teacher_queue::{StoredQueue, TeacherQueue};
use crate::llink::whitening::{Metric, Whitening};
use crate::numerics::dropout::Dropout;
use crate::numerics::matrix::Existing;
use crate::ops::sum_of_squares;
use crate::ops::{Backend, RowMasks};
use crate::train::batch::rank_slice;
use crate::train::optimizer::{AdamW, AdamWState, PIECE, clip_factor, padded};
use crate::train::step::{Clock, StepOutcome, StepSeconds, check_finite};
use crate::{Error, Result};

/// The input of one step.
#[derive(Debug, Clone)]
pub struct StepInput<'a> {
    /// The number of the step, counted from 0. Errors name it.
    pub step: u64,
    /// The pair ids of the global batch, `[B]`.
    pub ids: &'a [u64],
    /// The rows of the global batch that belong to this rank.
    pub own: Range<usize>,
    /// The encoder vectors of this rank's rows, `[b, d_e]`, standardized if the training standardizes them.
    pub encoder: &'a [f32],
    /// The teacher vectors of the global batch, `[B, d]`.
    pub teacher: &'a [f32],
    /// The temperature τ of InfoNCE.
    pub temperature: f64,
    /// The learning rate of AdamW.
    pub learning_rate: f64,
    /// The dropout of this step.
    pub dropout: Option<Dropout>,
}

/// The projector, its optimizer and the queue in training. They are the same on all ranks after each step.
///
/// # Errors
/// Every call fails with [`Error::Tensor`] when the device fails.
pub struct AlignTrainer {
    backend: Backend,
    shape: ProjectorShape,
    optimizer: AdamW,
    queue: TeacherQueue,
    weights: AlignWeights,
    metric: Option<Metric>,
    gradient_clip: f64,
    staging: Staging,
    /// The number of rows whose activations are held at once; 0 holds all.
    micro_batch: Option<usize>,
    /// The gradient of the parameters in their order, padded with zeros, in f32.
    gradient: Tensor,
}

/// Divides a rank's rows into pieces of `micro_batch` rows, whose activations fit into memory; `None` makes one piece. A
/// rank without rows has one empty piece, because it takes part too.
fn pieces(rows: usize, micro_batch: Option<usize>) -> Vec<Range<usize>> {
    let size = micro_batch.unwrap_or(rows).max(1);
    let starts = (0..rows.max(1)).step_by(size);
    starts.map(|start| start..(start + size).min(rows)).collect()
}

impl AlignTrainer {
    /// Returns a trainer that continues from these parts, on the backend's device.
    pub fn new(
        backend: &Backend,
        projector: &Projector,
        optimizer: &AdamWState,
        queue: &StoredQueue,
        weights: AlignWeights,
        gradient_clip: f64,
    ) -> Result<Self> {
        let (shape, device) = (projector.shape(), backend.device());
        Ok(Self {
            backend: backend.clone(),
            shape,
            optimizer: AdamW::new(&projector.parameters, optimizer, device)?,
            queue: TeacherQueue::new(queue, backend)?,
            weights,
            metric: None,
            gradient_clip,
            staging: Staging::default(),
            micro_batch: None,
            gradient: Tensor::zeros(padded(shape.parameter_count()), DType::F32, device)?,
        })
    }

    /// Sets the number of rows whose activations are held at once; `None` holds all. Others are computed a second time for
    /// the backward pass.
    #[must_use]
    pub const fn with_micro_batch(mut self, rows: Option<usize>) -> Self {
        self.micro_batch = rows;
        self
    }

    /// Sets the metric in which vectors are compared. `None` compares the vectors themselves.
    pub fn with_metric(mut self, metric: Option<&Whitening>) -> Result<Self> {
        self.metric = metric.map(|metric| Metric::new(metric, &self.backend)).transpose()?;
        Ok(self)
    }

    /// Returns a copy of the projector.
    pub fn projector(&self) -> Result<Projector> {
        let parameters = self.optimizer.parameters()?.to_vec1()?;
        Ok(Projector::from_parameters(self.shape, parameters))
    }

    /// Returns a copy of everything that a step changes.
    pub fn store(&self) -> Result<(Projector, AdamWState, StoredQueue)> {
        let (parameters, optimizer) = self.optimizer.store()?;
        Ok((Projector::from_parameters(self.shape, parameters), optimizer, self.queue.store()?))
    }

    /// Returns the last step's gradient over the global batch before clipping, in the order of the parameters.
    pub fn gradient(&self) -> Result<Vec<f32>> {
        Ok(self.gradient.narrow(0, 0, self.shape.parameter_count())?.to_vec1()?)
    }

    /// Trains on one global batch, of which each rank projects its own rows. All ranks take the same step. The host
    /// waits for the device once, for the losses, before anything changes.
    ///
    /// # Errors
    /// Those of the collective; [`Error::Diverged`] on NaN or infinity, before this step changes
    /// anything; [`Error::OutOfMemory`], which names the setting to change.
    pub fn step(&mut self, input: &StepInput<'_>, collective: &mut dyn Collective) -> Result<StepOutcome<AlignLosses>> {
        let (pairs, own) = (input.ids.len(), input.own.len());
        let rows = self.micro_batch.map_or(own, |rows| rows.min(own));
        self.try_step(input, collective).map_err(|error| match is_out_of_memory(&error) {
            true => Error::OutOfMemory(format!(
                "a step of Stage A with {pairs} pairs does not fit on the device ({error}). Set align.micro_batch below {rows}, take a \
                 smaller align.batch, or give the device to this worker alone"
            )),
            false => error,
        })
    }

    fn try_step(&mut self, input: &StepInput<'_>, collective: &mut dyn Collective) -> Result<StepOutcome<AlignLosses>> {
        let mut clock = Clock::start();
        let mut seconds = StepSeconds::default();
        let device = self.backend.device().clone();
        let width = self.shape.output;
        let teacher = self.staging.upload(input.teacher, (input.ids.len(), width), &device)?;
        let projection = Mlp::new(&self.shape.tensors(), &self.optimizer.parameters()?, self.backend.activations())?;
        let pieces = pieces(input.own.len(), self.micro_batch);
        let (own, tape) = self.project(&projection, input, &pieces)?;
        let batch = AlignBatch {
            ids: input.ids,
            projected: &gathered(own, input, width, collective, &device)?,
            teacher: &teacher,
            own: input.own.clone(),
            temperature: input.temperature,
            metric: self.metric.as_ref(),
        };
        let found = align_losses(&batch, &self.queue, &self.weights)?;
        seconds.forward = clock.lap();

        self.backward(&projection, (&pieces, tape), &found.gradient, input, collective)?;
        seconds.backward = clock.lap();
        collective.settle()?;
        seconds.reduce = clock.lap();

        let [info_nce, direction, log_norm] = found.losses;
        let numbers = [info_nce, direction, log_norm, sum_of_squares(&self.gradient, PIECE)?];
        let numbers: Vec<f32> = Tensor::stack(&numbers, 0)?.to_vec1()?;
        let number = |index: usize| f64::from(numbers[index]);
        let losses = AlignLosses { info_nce: number(0), direction: number(1), log_norm: number(2) };
        let grad_norm = number(3).sqrt();
        check_finite(input.step, input.ids, losses.total(&self.weights), grad_norm)?;
        let scale = clip_factor(grad_norm, self.gradient_clip);
        self.optimizer.step(&self.gradient, scale, input.learning_rate)?;
        self.queue.push(&found.teachers, input.ids)?;
        seconds.optimizer = clock.lap();
        Ok(StepOutcome { losses, grad_norm, seconds })
    }

    /// Projects this rank's rows, if it has any. The tape of the last piece is kept.
    fn project(
        &mut self,
        projection: &Mlp,
        input: &StepInput<'_>,
        pieces: &[Range<usize>],
    ) -> Result<(Option<Tensor>, Option<MlpTape>)> {
        let (mut projected, mut last) = (Vec::new(), None);
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            drop(last.take());
            let tape = self.forward(projection, input, piece)?;
            projected.push(tape.output.clone());
            last = Some(tape);
        }
        let projected = match projected.len() {
            0 | 1 => projected.pop(),
            _ => Some(Tensor::cat(&projected, 0)?),
        };
        Ok((projected, last))
    }

    /// Projects a piece of this rank's rows.
    fn forward(&mut self, projection: &Mlp, input: &StepInput<'_>, piece: &Range<usize>) -> Result<MlpTape> {
        let (width, device) = (self.shape.input, self.backend.device());
        let rows = &input.encoder[piece.start * width..piece.end * width];
        let rows = self.staging.upload(rows, (piece.len(), width), device)?;
        let masks = input.dropout.map(|dropout| {
            let ids = &input.ids[input.own.clone()][piece.clone()];
            let masks: Arc<[_]> = ids.iter().map(|id| dropout.row(*id)).collect();
            RowMasks::new(masks, device)
        });
        projection.forward(&rows, masks.transpose()?.as_ref())
    }

    /// Computes the gradient of the parameters. Once the collective is settled, it is summed over all ranks.
    ///
    /// The gradient of the second Linear and the LayerNorm is sent while that of the first Linear is computed. The
    /// pieces run from the last one, whose tape is kept, to the first.
    fn backward(
        &mut self,
        projection: &Mlp,
        (pieces, mut tape): (&[Range<usize>], Option<MlpTape>),
        grad_projected: &Tensor,
        input: &StepInput<'_>,
        collective: &mut dyn Collective,
    ) -> Result<()> {
        let [down, up] = halves(&self.shape.tensors(), &self.gradient)?;
        let mut existing = Existing::Overwritten;
        for (at, piece) in pieces.iter().enumerate().rev() {
            if piece.is_empty() {
                // A rank without rows contributes zeros.
                self.gradient.zero_set()?;
                collective.begin_all_reduce(&down)?;
                continue;
            }
            let tape = match tape.take() {
                Some(tape) => tape,
                None => self.forward(projection, input, piece)?,
            };
            let grad_piece = grad_projected.narrow(0, piece.start, piece.len())?;
            let grad_down = projection.backward_down(&tape, grad_piece, &down, existing)?;
            if at == 0 {
                collective.begin_all_reduce(&down)?;
            }
            projection.backward_up(&tape, &grad_down, &up, existing)?;
            existing = Existing::Kept;
        }
        collective.begin_all_reduce(&up)
    }
}

/// Gathers the projected rows of all ranks, `[B, d]`.
fn gathered(
    own: Option<Tensor>,
    input: &StepInput<'_>,
    width: usize,
    collective: &mut dyn Collective,
    device: &Device,
) -> Result<Tensor> {
    let (batch, ranks) = (input.ids.len(), collective.world_size());
    let own = match own {
        Some(own) if ranks == 1 => return Ok(own),
        Some(own) => own,
        None => Tensor::zeros((0, width), DType::F32, &Device::Cpu)?,
    };
    let counts: Vec<usize> = (0..ranks).map(|rank| rank_slice(batch, rank, ranks).len() * width).collect();
    let all = collective.all_gather_tensor(&own, &counts)?;
    Ok(all.reshape((batch, width))?.to_device(device)?)
}
