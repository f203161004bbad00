//! One step of Stage B and the state that it changes: LoRA on the frozen decoder, the slot expander, its scale, and
//! optionally the projector.
//!
//! Everything is a tensor on the decoder's device. Parameters and moments are f32. Products are in the decoder's dtype.

use candle_core::{DType, Device, Tensor};

use super::batch::InstructExample;
use super::runs::{Pass, Runs, Sums, held_out_losses};
use super::state::InstructParts;
use super::step::{InstructInput, InstructLosses, InstructOutcome, InstructWeights};
use crate::Result;
use crate::collective::Collective;
use crate::device::Staging;
use crate::llink::mlp::{Mlp, MlpTape, halves};
use crate::llink::projector::{Projector, ProjectorShape};
use crate::llink::slot_expander::{Expansion, ExpansionTape, SlotExpander, SlotExpanderShape};
use crate::llink::slot_losses::SlotLosses;
use crate::models::lora::LoraAdapter;
use crate::models::{Adapter, Llama};
use crate::ops::sum_of_squares;
use crate::train::optimizer::{AdamW, AdamWState, PIECE, clip_factor, flat, padded};
use crate::train::step::{Clock, StepSeconds, check_finite};

/// The adapter, the expander and their optimizers in training. They are the same on all ranks after each step.
///
/// # Errors
/// Every call fails with [`Error::Tensor`](crate::Error::Tensor) when the device fails.
pub struct InstructTrainer {
    device: Device,
    dtype: DType,
    /// The adapter's shape. Its parameters are with the optimizer.
    adapter: LoraAdapter,
    shape: SlotExpanderShape,
    median_norm: f32,
    /// The projector's shape, if Stage B trains it.
    projector: Option<ProjectorShape>,
    /// The groups of parameters, in the order of [`InstructParts::optimizers`].
    groups: Vec<AdamW>,
    weights: InstructWeights,
    staging: Staging,
    runs: Runs,
}

/// This rank's slots, and the values that their backward pass needs.
struct Slots {
    expansion: Expansion,
    tape: ExpansionTape,
    projector: Option<(Mlp, MlpTape)>,
}

const LORA: usize = 0;
const EXPANDER: usize = 1;
const SCALE: usize = 2;
const PROJECTOR: usize = 3;

impl InstructTrainer {
    /// Returns a trainer that continues from these parts, on the decoder's device.
    pub fn new(decoder: &Llama, parts: InstructParts, weights: InstructWeights) -> Result<Self> {
        let (device, dtype) = decoder.activations();
        let InstructParts { mut adapter, expander, projector, optimizers } = parts;
        let parameters = std::mem::take(&mut adapter.parameters);
        let (scale, others) = expander.parameters.split_at(1);
        let of_projector = projector.as_ref().map_or(&[][..], |projector| &projector.parameters);
        let groups = [&parameters[..], others, scale, of_projector].into_iter().zip(&optimizers);
        let groups = groups.map(|(parameters, optimizer)| AdamW::new(parameters, optimizer, device));
        Ok(Self {
            projector: projector.as_ref().map(Projector::shape),
            groups: groups.collect::<Result<_>>()?,
            device: device.clone(),
            dtype,
            adapter,
            shape: expander.shape(),
            median_norm: expander.median_norm(),
            weights,
            staging: Staging::default(),
            runs: Runs::default(),
        })
    }

    /// Returns a copy of the trained parts on the host.
    pub fn store(&self) -> Result<InstructParts> {
        let stored = self.groups.iter().map(AdamW::store).collect::<Result<Vec<_>>>()?;
        let (mut parameters, optimizers): (Vec<Vec<f32>>, Vec<AdamWState>) = stored.into_iter().unzip();
        let mut adapter = self.adapter.clone();
        adapter.parameters = std::mem::take(&mut parameters[LORA]);
        let mut expander = SlotExpander::new(self.shape, self.median_norm, 0);
        expander.parameters = [&parameters[SCALE][..], &parameters[EXPANDER]].concat();
        let projector =
            self.projector.map(|shape| Projector::from_parameters(shape, parameters.swap_remove(PROJECTOR)));
        Ok(InstructParts { adapter, expander, projector, optimizers })
    }

    /// Trains on one global batch, of which each rank runs its own rows. All ranks take the same step.
    ///
    /// # Errors
    /// Those of the decoder and the collective; [`Error::Diverged`](crate::Error::Diverged) on NaN or infinity, before
    /// this step changes anything; [`Error::OutOfMemory`](crate::Error::OutOfMemory) when one example alone does not
    /// fit.
    pub fn step(
        &mut self,
        decoder: &Llama,
        input: &InstructInput<'_>,
        collective: &mut dyn Collective,
    ) -> Result<InstructOutcome> {
        let mut clock = Clock::start();
        let mut seconds = StepSeconds::default();
        // The global batch decides, so that a rank without rows of its own takes the same step.
        let with_slots = !input.teacher.is_empty();
        let counts: Vec<usize> = input.examples.iter().map(|example| example.slots.len()).collect();
        let has_slots = with_slots && !input.own.is_empty();
        let slots = has_slots.then(|| self.slots(input.vectors, counts.iter().sum())).transpose()?;
        let due = with_slots && self.weights.usage.is_due(input.step);
        let pass = Pass {
            decoder,
            shape: &self.adapter,
            adapter: Adapter::of_tensor(&self.adapter, self.groups[LORA].parameters()?),
            input,
            slots: slots.as_ref().map(|slots| slots.tape.slots.to_dtype(self.dtype)).transpose()?,
            due,
        };
        let sums = self.runs.all(&pass, collective, (&mut clock, &mut seconds))?;

        // The losses of the global batch decide whether slots are worse than zeros.
        collective.begin_all_reduce(&sums.losses)?;
        collective.settle()?;
        seconds.reduce += clock.lap();
        let factor = match due {
            true => {
                let loss = |index: usize| sums.losses.narrow(0, index, 1);
                self.weights.usage.sft_factor(&loss(0)?, &loss(1)?)?
            }
            false => Tensor::ones(1, DType::F32, &self.device)?,
        };
        let slots = slots.map(|slots| (slots, counts));
        let slots = with_slots.then(|| self.slot_gradients(input, slots, &sums, &factor, collective)).transpose()?;
        let (of_slots, slot_losses) = slots.unzip();
        let mut gradients = vec![flat(&sums.layers)?.broadcast_mul(&factor)?];
        gradients.extend(of_slots.into_iter().flatten());
        let mut squares = sum_of_squares(&gradients[LORA], PIECE)?;
        for gradient in &gradients[EXPANDER..] {
            squares = (squares + sum_of_squares(gradient, PIECE)?)?;
        }
        let mut numbers = vec![sums.losses, squares.reshape(1)?];
        numbers.extend(slot_losses);
        // The host waits for the device once, for the losses, before anything changes.
        let numbers: Vec<f32> = Tensor::cat(&numbers, 0)?.to_vec1()?;
        seconds.backward += clock.lap();

        let number = |index: usize| numbers.get(index).copied().map_or(0.0, f64::from);
        let zero = due.then(|| number(1));
        let losses = InstructLosses::new(&self.weights, number(0), zero, [number(3), number(4)]);
        let grad_norm = number(2).sqrt();
        check_finite(input.step, input.ids, losses.loss, grad_norm)?;
        let scale = clip_factor(grad_norm, self.weights.gradient_clip);
        let rates = &input.learning_rates;
        let rates = [rates.lora, rates.expander, rates.scale, rates.projector];
        for ((group, gradient), rate) in self.groups.iter_mut().zip(&gradients).zip(rates) {
            group.step(gradient, scale, rate)?;
        }
        seconds.optimizer += clock.lap();
        Ok(InstructOutcome { losses, grad_norm, seconds })
    }

    /// Computes the losses of held-out examples without a gradient: with the slots of their `vectors`, and with zeros
    /// in their place. `vectors` is as in [`InstructInput::vectors`]. Without vectors there is only the first loss.
    /// `answer_tokens` is the number of all answer tokens.
    ///
    /// # Errors
    /// Those of the decoder.
    pub fn held_out(
        &mut self,
        decoder: &Llama,
        examples: &[InstructExample],
        vectors: &[f32],
        answer_tokens: usize,
    ) -> Result<(f64, Option<f64>)> {
        let count = examples.iter().map(|example| example.slots.len()).sum();
        let slots = (!vectors.is_empty()).then(|| self.slots(vectors, count)).transpose()?;
        let slots = slots.map(|slots| slots.tape.slots.to_dtype(self.dtype)).transpose()?;
        let adapter = Adapter::of_tensor(&self.adapter, self.groups[LORA].parameters()?);
        let (sft, zero) = held_out_losses((decoder, &adapter), examples, answer_tokens, slots.as_ref())?;
        let number = |loss: &Tensor| loss.to_scalar::<f32>().map(f64::from);
        Ok((number(&sft)?, zero.as_ref().map(number).transpose()?))
    }

    /// Computes `count` slots. The vectors are the encoder's if the projector is trained, else projected ones. The vectors of
    /// a text or of a sentence are its own and those of its windows.
    fn slots(&mut self, vectors: &[f32], count: usize) -> Result<Slots> {
        let rows = count / self.shape.slots;
        let width = self.projector.map_or(self.shape.width, |shape| shape.input);
        let each = vectors.len() / (rows * width);
        let vectors = self.staging.upload(vectors, (rows * each, width), &self.device)?;
        let (projected, projector) = match self.projector {
            Some(shape) => {
                let projector = Mlp::new(&shape.tensors(), &self.groups[PROJECTOR].parameters()?, self.dtype)?;
                let tape = projector.forward(&vectors, None)?;
                (tape.output.clone(), Some((projector, tape)))
            }
            None => (vectors, None),
        };
        let parameters = (&self.groups[SCALE].parameters()?, &self.groups[EXPANDER].parameters()?);
        let expansion = Expansion::new(self.shape, self.median_norm, parameters, self.dtype)?;
        Ok(Slots { tape: expansion.forward(&projected, each.saturating_sub(1))?, expansion, projector })
    }

    /// Computes the gradients of the groups besides the adapter, each a flat buffer, and the losses of the slots, `[2]`, summed
    /// over all ranks. A complete gradient is sent while the rest is computed. A rank without rows contributes zeros. The
    /// slots come with their number in each example.
    fn slot_gradients(
        &mut self,
        input: &InstructInput<'_>,
        slots: Option<(Slots, Vec<usize>)>,
        sums: &Sums,
        factor: &Tensor,
        collective: &mut dyn Collective,
    ) -> Result<(Vec<Tensor>, Tensor)> {
        let zeros = |count: usize| Tensor::zeros(count, DType::F32, &self.device);
        let mut sum = |part: &Tensor| collective.begin_all_reduce(part);
        let expander = zeros(padded(self.shape.parameter_count() - 1))?;
        let halves_of_expander = halves(&self.shape.mlp(), &expander)?;
        let gradient_of = |shape: ProjectorShape| -> Result<_> {
            let gradient = zeros(padded(shape.parameter_count()))?;
            Ok((halves(&shape.tensors(), &gradient)?, gradient))
        };
        let projector = self.projector.map(gradient_of).transpose()?;
        let (losses, scale) = match slots {
            Some((slots, counts)) => {
                let width = self.shape.width;
                let shape = (input.teacher.len() / width, width);
                let teacher = self.staging.upload(input.teacher, shape, &self.device)?;
                let (own, weights) = (input.own.clone(), &self.weights.slots);
                let losses = SlotLosses::new(&slots.tape.slots, &counts, &teacher, own, weights)?;
                sum(&losses.shares)?;
                let grad_slots = Tensor::cat(&sums.grad_slots, 0)?.broadcast_mul(factor)?;
                let grad_slots = (grad_slots + losses.grad_slots)?;
                let expansion = &slots.expansion;
                let found = expansion.backward(&slots.tape, &grad_slots, &halves_of_expander, &mut sum)?;
                if let (Some((mlp, tape)), Some((halves, _))) = (&slots.projector, &projector) {
                    mlp.backward(tape, found.projected, halves, &mut sum)?;
                }
                (losses.shares, found.scale)
            }
            None => {
                let (losses, scale) = (zeros(2)?, zeros(1)?);
                sum(&losses)?;
                halves_of_expander.iter().try_for_each(&mut sum)?;
                sum(&scale)?;
                let of_projector = projector.iter().flat_map(|(halves, _)| halves);
                of_projector.into_iter().try_for_each(&mut sum)?;
                (losses, scale)
            }
        };
        collective.settle()?;
        let mut gradients = vec![expander, flat(&[scale])?];
        gradients.extend(projector.map(|(_, gradient)| gradient));
        Ok((gradients, losses))
    }
}
