//! One step of Stage A on a device.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};

use super::adamw::DeviceAdamW;
use super::align_loss::{AlignLossInput, DeviceMetric, Normalized, align_loss};
use super::queue::DeviceQueue;
use super::{flat, sum_of_squares};
use crate::collective::Collective;
use crate::device::{Staging, is_out_of_memory};
use crate::llink::align_losses::{AlignLosses, AlignWeights};
use crate::llink::projector::{Projector, ProjectorShape};
use crate::llink::teacher_queue::TeacherQueue;
use crate::llink::whitening::Whitening;
use crate::models::{Backend, RowMasks};
use crate::train::align_step::{StepInput, StepOutcome, pieces};
use crate::train::batch::rank_slice;
use crate::train::optimizer::AdamW;
use crate::train::step::{Clock, StepSeconds, check_finite};
use crate::{Error, Result};

const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Projector, optimizer and queue in training on a device. The same on all ranks after each step.
pub struct DeviceAlignTrainer {
    backend: Backend,
    shape: ProjectorShape,
    optimizer: DeviceAdamW,
    queue: DeviceQueue,
    weights: AlignWeights,
    metric: Option<DeviceMetric>,
    gradient_clip: f64,
    staging: Staging,
    /// Rows whose activations are held at once; 0: all.
    micro_batch: usize,
}

/// What the forward pass leaves for the backward pass, b rows.
struct Tape {
    input: Tensor,      // [b, d_e]
    slope: Tensor,      // [b, h] the derivative of GELU
    hidden: Tensor,     // [b, h] after GELU and dropout
    normalized: Tensor, // [b, d] f32
    inverse: Tensor,    // [b, 1] one over the deviation, f32
    projected: Tensor,  // [b, d] f32
}

/// The projector's parameters in what the backend computes in; those of the LayerNorm in f32.
struct Weights {
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    norm: Tensor,
    norm_bias: Tensor,
}

impl DeviceAlignTrainer {
    /// A trainer that goes on from these, on the backend's device.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when the device fails.
    pub fn new(
        backend: &Backend,
        projector: &Projector,
        optimizer: &AdamW,
        queue: &TeacherQueue,
        weights: AlignWeights,
        gradient_clip: f64,
    ) -> Result<Self> {
        let device = backend.device();
        Ok(Self {
            backend: backend.clone(),
            shape: projector.shape(),
            optimizer: DeviceAdamW::new(&projector.parameters, optimizer, device)?,
            queue: DeviceQueue::new(queue, device)?,
            weights,
            metric: None,
            gradient_clip,
            staging: Staging::default(),
            micro_batch: 0,
        })
    }

    /// Holds the activations of so many rows at once, and computes them a second time for the backward pass; 0 holds all.
    #[must_use]
    pub const fn with_micro_batch(mut self, rows: usize) -> Self {
        self.micro_batch = rows;
        self
    }

    /// Compares vectors in this metric; none compares them as they are.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when the device fails.
    pub fn with_metric(mut self, metric: Option<&Whitening>) -> Result<Self> {
        let device = self.backend.device();
        self.metric = metric.map(|metric| DeviceMetric::new(metric, device)).transpose()?;
        Ok(self)
    }

    /// What moved, on the host.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when the device fails.
    pub fn to_host(&self) -> Result<(Projector, AdamW, TeacherQueue)> {
        let (parameters, optimizer) = self.optimizer.to_host()?;
        let mut projector = Projector::new(self.shape, 0);
        projector.parameters = parameters;
        Ok((projector, optimizer, self.queue.to_host()?))
    }

    /// Trains on one global batch, of which each rank projects its own rows. All ranks take the same step. One wait for the device:
    /// for the losses, before anything is changed.
    ///
    /// # Errors
    /// Those of the collective and the device; [`Error::Diverged`] on NaN or infinity, with nothing changed by this step;
    /// [`Error::OutOfMemory`], which says what to set.
    pub fn step(&mut self, input: &StepInput<'_>, collective: &mut dyn Collective) -> Result<StepOutcome> {
        let (pairs, own) = (input.ids.len(), input.own.len());
        let rows = if self.micro_batch == 0 {
            own
        } else {
            own.min(self.micro_batch)
        };
        self.try_step(input, collective).map_err(|error| match is_out_of_memory(&error) {
            true => Error::OutOfMemory(format!(
                "a step of Stage A with {pairs} pairs does not fit on the device ({error}). Set align.micro_batch below {rows}, take a \
                 smaller align.batch, or give the device to this worker alone"
            )),
            false => error,
        })
    }

    fn try_step(&mut self, input: &StepInput<'_>, collective: &mut dyn Collective) -> Result<StepOutcome> {
        let mut clock = Clock::start();
        let mut seconds = StepSeconds::default();
        let device = self.backend.device().clone();
        let width = self.shape.output;
        let teacher = self.staging.upload(input.teacher, (input.ids.len(), width), &device)?;
        let weights = self.weights_of(&self.optimizer.parameters()?)?;
        let pieces = pieces(input.own.len(), self.micro_batch);
        let (own, tape) = self.project(&weights, input, &pieces)?;
        let projected = gathered(own.as_ref(), input, width, collective, &device)?;
        let raw = Normalized::new(&projected, &teacher)?;
        let whitened = match &self.metric {
            Some(metric) => Some(Normalized::new(&metric.apply(&projected)?, &metric.apply(&teacher)?)?),
            None => None,
        };
        let seen = whitened.as_ref().unwrap_or(&raw);
        let hard = self
            .queue
            .hardest(&seen.students.0, input.ids, self.weights.hard_negatives)?;
        let of = AlignLossInput {
            seen,
            raw: &raw,
            metric: self.metric.as_ref(),
            hard: hard.as_ref(),
            temperature: input.temperature,
        };
        let ([info_nce, direction, log_norm], by_projected) = align_loss(&of, &self.weights)?;
        seconds.forward = clock.lap();

        let (up, down) = self.backward(&weights, (&pieces, tape), &by_projected, input, collective)?;
        collective.settle()?;
        let gradient = flat(&[up, down])?;
        let numbers = [info_nce, direction, log_norm, sum_of_squares(&gradient)?];
        let numbers: Vec<f32> = Tensor::stack(&numbers, 0)?.to_vec1()?;
        seconds.backward = clock.lap();

        let losses = AlignLosses {
            info_nce: f64::from(numbers[0]),
            direction: f64::from(numbers[1]),
            log_norm: f64::from(numbers[2]),
        };
        let grad_norm = f64::from(numbers[3]).sqrt();
        check_finite(input.step, input.ids, losses.total(&self.weights), grad_norm)?;
        let scale = (self.gradient_clip / (grad_norm + 1e-6)).min(1.0) as f32;
        self.optimizer.step(&gradient, scale, input.learning_rate)?;
        self.queue.push(&seen.teachers.0, input.ids)?;
        seconds.optimizer = clock.lap();
        Ok(StepOutcome {
            losses,
            grad_norm,
            seconds,
        })
    }

    fn weights_of(&self, parameters: &Tensor) -> Result<Weights> {
        let cast = parameters.to_dtype(self.backend.dtype())?;
        let ProjectorShape { input, hidden, output } = self.shape;
        let [up, up_bias, down, down_bias, norm, norm_bias] = self.shape.ranges();
        let part = |of: &Tensor, range: Range<usize>| of.narrow(0, range.start, range.len());
        Ok(Weights {
            up: part(&cast, up)?.reshape((hidden, input))?,
            up_bias: part(&cast, up_bias)?,
            down: part(&cast, down)?.reshape((output, hidden))?,
            down_bias: part(&cast, down_bias)?,
            norm: part(parameters, norm)?,
            norm_bias: part(parameters, norm_bias)?,
        })
    }

    fn masks(&self, input: &StepInput<'_>, piece: &Range<usize>) -> Result<Option<RowMasks>> {
        let own = &input.ids[input.own.clone()][piece.clone()];
        let masks = input.dropout.map(|dropout| {
            let rows: Arc<[_]> = own.iter().map(|id| dropout.row(*id)).collect();
            RowMasks::new(rows, self.backend.device())
        });
        masks.transpose()
    }

    /// Projects this rank's rows; none where it has none. The tape of the last piece stays.
    fn project(
        &mut self,
        weights: &Weights,
        input: &StepInput<'_>,
        pieces: &[Range<usize>],
    ) -> Result<(Option<Tensor>, Option<Tape>)> {
        let (mut projected, mut last) = (Vec::new(), None);
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            drop(last.take());
            let tape = self.forward(weights, input, piece)?;
            projected.push(tape.projected.clone());
            last = Some(tape);
        }
        let projected = match projected.is_empty() {
            true => None,
            false => Some(Tensor::cat(&projected, 0)?),
        };
        Ok((projected, last))
    }

    /// Projects some of this rank's rows.
    fn forward(&mut self, weights: &Weights, input: &StepInput<'_>, piece: &Range<usize>) -> Result<Tape> {
        let (dtype, device) = (self.backend.dtype(), self.backend.device().clone());
        let width = self.shape.input;
        let rows = &input.encoder[piece.start * width..piece.end * width];
        let encoder = self.staging.upload(rows, (piece.len(), width), &device)?;
        let encoder = encoder.to_dtype(dtype)?;
        let before = encoder.matmul(&weights.up.t()?)?.broadcast_add(&weights.up_bias)?;
        let (activated, slope) = gelu_with_slope(&before)?;
        let hidden = match self.masks(input, piece)? {
            Some(masks) => masks.apply(&activated)?,
            None => activated,
        };
        let down = hidden.matmul(&weights.down.t()?)?.broadcast_add(&weights.down_bias)?;
        let down = down.to_dtype(DType::F32)?;
        let centred = down.broadcast_sub(&down.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let inverse = (variance + LAYER_NORM_EPSILON)?.sqrt()?.recip()?;
        let normalized = centred.broadcast_mul(&inverse)?;
        let projected = normalized
            .broadcast_mul(&weights.norm)?
            .broadcast_add(&weights.norm_bias)?;
        Ok(Tape {
            input: encoder,
            slope,
            hidden,
            normalized,
            inverse,
            projected,
        })
    }

    /// The gradient by the first Linear and by the rest, summed over all ranks once the collective is settled. The second Linear's
    /// crosses while the first one's is computed. From the last piece, whose tape is there, to the first.
    fn backward(
        &mut self,
        weights: &Weights,
        (pieces, mut tape): (&[Range<usize>], Option<Tape>),
        by_projected: &Tensor,
        input: &StepInput<'_>,
        collective: &mut dyn Collective,
    ) -> Result<(Tensor, Tensor)> {
        let first = self.shape.first_linear();
        let device = self.backend.device().clone();
        let zeros = |count: usize| Tensor::zeros(count, DType::F32, &device);
        let (mut up, mut down) = (zeros(first)?, zeros(self.shape.parameter_count() - first)?);
        for (at, piece) in pieces.iter().enumerate().rev() {
            if piece.is_empty() {
                // A rank without rows takes part with zeros.
                collective.begin_all_reduce(&down)?;
                continue;
            }
            let tape = match tape.take() {
                Some(tape) => tape,
                None => self.forward(weights, input, piece)?,
            };
            let by = by_projected.narrow(0, input.own.start + piece.start, piece.len())?;
            let (of_piece, by_down_sum) = self.backward_down(weights, &tape, &by)?;
            down = (down + of_piece)?;
            if at == 0 {
                collective.begin_all_reduce(&down)?;
            }
            let masks = self.masks(input, piece)?;
            up = (up + backward_up(weights, &tape, &by_down_sum, masks)?)?;
        }
        collective.begin_all_reduce(&up)?;
        Ok((up, down))
    }

    /// The gradient by the second Linear and the LayerNorm, and that by the second Linear's output, of a piece.
    fn backward_down(&self, weights: &Weights, tape: &Tape, by: &Tensor) -> Result<(Tensor, Tensor)> {
        let by_norm = (by * &tape.normalized)?.sum(0)?;
        let by_norm_bias = by.sum(0)?;
        let by_normalized = by.broadcast_mul(&weights.norm)?;
        let along = (&by_normalized * &tape.normalized)?.mean_keepdim(D::Minus1)?;
        let inner = by_normalized
            .broadcast_sub(&by_normalized.mean_keepdim(D::Minus1)?)?
            .sub(&tape.normalized.broadcast_mul(&along)?)?;
        let by_down_sum = inner.broadcast_mul(&tape.inverse)?;
        let by_down_bias = by_down_sum.sum(0)?;
        let by_down_sum = by_down_sum.to_dtype(self.backend.dtype())?;
        let by_down = by_down_sum.t()?.matmul(&tape.hidden)?; // [d, h]
        let down = concatenated(&[by_down, by_down_bias, by_norm, by_norm_bias])?;
        Ok((down, by_down_sum))
    }
}

/// The gradient by the first Linear, of a piece.
fn backward_up(weights: &Weights, tape: &Tape, by_down_sum: &Tensor, masks: Option<RowMasks>) -> Result<Tensor> {
    let mut by_hidden = by_down_sum.matmul(&weights.down)?; // [b, h]
    if let Some(masks) = masks {
        by_hidden = masks.apply(&by_hidden)?;
    }
    let by_before = (by_hidden * &tape.slope)?;
    let by_up = by_before.t()?.matmul(&tape.input)?; // [h, d_e]
    let by_up_bias = by_before.to_dtype(DType::F32)?.sum(0)?;
    concatenated(&[by_up, by_up_bias])
}

/// All ranks' projected rows [B, d].
fn gathered(
    own: Option<&Tensor>,
    input: &StepInput<'_>,
    width: usize,
    collective: &mut dyn Collective,
    device: &Device,
) -> Result<Tensor> {
    let ranks = collective.world_size();
    if let (Some(own), 1) = (own, ranks) {
        return Ok(own.clone());
    }
    let batch = input.ids.len();
    let counts: Vec<usize> = (0..ranks)
        .map(|rank| rank_slice(batch, rank, ranks).len() * width)
        .collect();
    let empty = Tensor::zeros((0, width), DType::F32, &Device::Cpu)?;
    let all = collective.all_gather_tensor(own.unwrap_or(&empty), &counts)?;
    Ok(all.reshape((batch, width))?.to_device(device)?)
}

/// Pieces one after another in f32.
pub(super) fn concatenated(pieces: &[Tensor]) -> Result<Tensor> {
    let pieces = pieces.iter().map(|piece| piece.flatten_all()?.to_dtype(DType::F32));
    Ok(Tensor::cat(&pieces.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

/// GELU with the error function, x·Φ(x), and its derivative Φ(x) + x·φ(x), reckoned in f32.
pub(super) fn gelu_with_slope(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let dtype = x.dtype();
    let wide = x.to_dtype(DType::F32)?;
    let cumulative = ((&wide * std::f64::consts::FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5))?;
    let density =
        ((wide.sqr()? * -0.5)?.exp()? * (0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2))?;
    let activated = (&wide * &cumulative)?;
    let slope = (cumulative + (wide * density)?)?;
    Ok((activated.to_dtype(dtype)?, slope.to_dtype(dtype)?))
}
