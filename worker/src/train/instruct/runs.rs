//! Runs the examples of a rank through the decoder. A run holds as many tokens as the budget allows and the memory
//! holds.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::batch::{InstructBatch, InstructExample, micro_batches};
use super::extent::{Extent, Proven};
use super::step::InstructInput;
use crate::Result;
use crate::collective::Collective;
use crate::device::within_memory;
use crate::models::lora::LoraAdapter;
use crate::models::{Adapter, Llama, TrainingBatch, TrainingPass, replaced_rows};
use crate::train::step::{Clock, StepSeconds};

/// The inputs that all runs of a step share.
pub(super) struct Pass<'a> {
    pub(super) decoder: &'a Llama,
    /// The layout of the adapter's parameters.
    pub(super) shape: &'a LoraAdapter,
    pub(super) adapter: Adapter<'a>,
    pub(super) input: &'a InstructInput<'a>,
    /// The slots of all examples of the rank, one after the other, in the decoder's dtype. `None` if no prompt has slots.
    pub(super) slots: Option<Tensor>,
    /// Whether the loss with zeros in the slots is needed too.
    pub(super) due: bool,
}

/// The gradients and losses of a step, summed over its runs.
pub(super) struct Sums {
    /// The gradient of each decoder layer's adapter, f32.
    pub(super) layers: Vec<Tensor>,
    /// The gradient of the slots, f32, one tensor for each run.
    pub(super) grad_slots: Vec<Tensor>,
    /// This rank's shares of the next-token loss and of the same loss with zeros in the slots, f32 `[2]`.
    pub(super) losses: Tensor,
}

/// Knowledge about which runs fit into the memory.
#[derive(Default)]
pub(super) struct Runs {
    /// The number of tokens that fit, after a larger run did not.
    fits: Option<usize>,
    /// The largest runs that have fitted. A larger run sends nothing to the other ranks until all of it has fitted. It
    /// can then be repeated with fewer tokens.
    proven: Proven,
}

/// The part of a run that was done under the memory check.
enum Passed<'a> {
    /// The forward pass. The backward pass is known to fit.
    Forward(Box<Run<'a>>),
    /// Both passes, with the gradient of each layer.
    Back(Range<usize>, Extent, Vec<(usize, Tensor)>, Found),
}

/// A run after its forward pass.
struct Run<'a> {
    rows: Range<usize>,
    batch: InstructBatch,
    pass: TrainingPass<'a>,
    zero: Option<Tensor>,
}

/// The results of a run without the gradients of the layers.
struct Found {
    sft: Tensor,
    zero: Option<Tensor>,
    grad_slots: Option<Tensor>,
}

/// The sums while runs are added.
struct Adding<'a> {
    layers: Vec<Option<Tensor>>,
    grad_slots: Vec<Tensor>,
    sft: Tensor,
    zero: Tensor,
    collective: &'a mut dyn Collective,
}

impl Adding<'_> {
    /// Adds the gradient of a layer. After the last run the sum over all ranks begins.
    fn layer(&mut self, layer: usize, gradient: Tensor, last: bool) -> Result<()> {
        let sum = match self.layers[layer].take() {
            Some(before) => (before + gradient)?,
            None => gradient,
        };
        if last {
            self.collective.begin_all_reduce(&sum)?;
        }
        self.layers[layer] = Some(sum);
        Ok(())
    }

    fn rest(&mut self, found: Found) -> Result<()> {
        self.sft = (&self.sft + found.sft)?;
        if let Some(zero) = found.zero {
            self.zero = (&self.zero + zero)?;
        }
        self.grad_slots.extend(found.grad_slots);
        Ok(())
    }
}

impl Runs {
    /// Runs the forward and backward pass of all examples of this rank. In the last run the sum of each layer's
    /// gradient begins as soon as it is complete, while the layers before it are computed.
    pub(super) fn all(
        &mut self,
        of: &Pass<'_>,
        collective: &mut dyn Collective,
        (clock, seconds): (&mut Clock, &mut StepSeconds),
    ) -> Result<Sums> {
        let (device, count) = (of.device(), of.input.examples.len());
        let nothing = || Tensor::zeros((), DType::F32, device);
        let mut sums = Adding {
            layers: vec![None; of.shape.layers()],
            grad_slots: Vec::new(),
            sft: nothing()?,
            zero: nothing()?,
            collective,
        };
        let mut from = 0;
        while from < count {
            let mut budget = of.input.token_budget.min(self.fits.unwrap_or(usize::MAX));
            let passed = within_memory(
                &mut budget,
                &mut |budget| {
                    tracing::warn!(budget, "out of memory on the device: continuing with half as many tokens at once");
                    self.fits = Some(budget);
                },
                |budget| {
                    let run = of.forward(from, budget)?;
                    seconds.forward += clock.lap();
                    let extent = Extent::of(&run.batch.offsets);
                    if self.proven.holds(extent) {
                        return Ok(Passed::Forward(Box::new(run)));
                    }
                    let (rows, mut layers) = (run.rows.clone(), Vec::new());
                    let found = of.backward(run, &mut |layer, gradient| {
                        layers.push((layer, gradient));
                        Ok(())
                    })?;
                    Ok(Passed::Back(rows, extent, layers, found))
                },
            )?;
            let found = match passed {
                Passed::Forward(run) => {
                    from = run.rows.end;
                    of.backward(*run, &mut |layer, gradient| sums.layer(layer, gradient, from == count))?
                }
                Passed::Back(rows, extent, layers, found) => {
                    from = rows.end;
                    self.proven.add(extent);
                    for (layer, gradient) in layers {
                        sums.layer(layer, gradient, from == count)?;
                    }
                    found
                }
            };
            sums.rest(found)?;
            seconds.backward += clock.lap();
        }
        if count == 0 {
            // A rank without rows contributes zeros.
            for layer in (0..of.shape.layers()).rev() {
                let zeros = Tensor::zeros(of.shape.layer_range(layer).len(), DType::F32, device)?;
                sums.layer(layer, zeros, true)?;
            }
        }
        Ok(Sums {
            layers: sums.layers.into_iter().flatten().collect(),
            grad_slots: sums.grad_slots,
            losses: Tensor::stack(&[sums.sft, sums.zero], 0)?,
        })
    }
}

impl<'a> Pass<'a> {
    fn device(&self) -> &'a Device {
        self.decoder.activations().0
    }

    /// Runs the examples from `from` that fit into the budget: with zeros in the slots if needed, then with the slots.
    fn forward(&self, from: usize, budget: usize) -> Result<Run<'a>> {
        let Self { decoder, input, .. } = self;
        let lengths: Vec<usize> = input.examples[from..].iter().map(|example| example.tokens()).collect();
        let first = micro_batches(&lengths, budget).into_iter().next().unwrap_or(0..0);
        let rows = from..from + first.len();
        let batch = InstructBatch::new(input.examples[rows.clone()].iter().copied());
        let training = TrainingBatch {
            ids: &batch.ids,
            offsets: &batch.offsets,
            answer: &batch.answer,
            answer_tokens: input.answer_tokens,
            dropout: input.dropout.map(|dropout| (dropout, batch.row_keys.as_slice())),
        };
        let tokens = decoder.embed(&batch.ids)?;
        let without_slots = || decoder.answer_loss(&self.adapter, &training, without_slots(&tokens, &batch)?);
        let zero = self.due.then(without_slots).transpose()?;
        let embeddings = match &self.slots {
            Some(slots) => {
                let before = input.examples[..from].iter().map(|example| example.slots.len()).sum();
                with_slots(&tokens, &batch, slots, before)?
            }
            None => tokens,
        };
        let pass = decoder.train(&self.adapter, &training, embeddings, input.activations)?;
        Ok(Run { rows, batch, pass, zero })
    }

    /// Runs the backward pass. `each` is called with the gradient of every layer, from the last to the first.
    fn backward(&self, run: Run<'_>, each: &mut dyn FnMut(usize, Tensor) -> Result<()>) -> Result<Found> {
        let Run { batch, pass, zero, .. } = run;
        let sft = pass.loss().clone();
        let grad_embeddings = pass.backward(each)?;
        let grad_slots = match batch.slot_rows.is_empty() {
            true => None,
            false => {
                let rows: Vec<u32> = batch.slot_rows.iter().map(|row| *row as u32).collect();
                let rows = Tensor::new(rows, self.device())?;
                Some(grad_embeddings.index_select(&rows, 0)?.to_dtype(DType::F32)?)
            }
        };
        Ok(Found { sft, zero, grad_slots })
    }
}

/// Computes the losses of `examples` without a gradient: with their `slots`, and with zeros in their place.
/// Without slots there is only the first loss. `answer_tokens` is the number of answer tokens that the mean is over.
pub(super) fn held_out_losses(
    (decoder, adapter): (&Llama, &Adapter<'_>),
    examples: &[InstructExample],
    answer_tokens: usize,
    slots: Option<&Tensor>,
) -> Result<(Tensor, Option<Tensor>)> {
    let batch = InstructBatch::new(examples);
    let InstructBatch { ids, offsets, answer, .. } = &batch;
    let training = TrainingBatch { ids, offsets, answer, answer_tokens, dropout: None };
    let tokens = decoder.embed(&batch.ids)?;
    let loss = |embeddings: Tensor| decoder.answer_loss(adapter, &training, embeddings);
    let Some(slots) = slots else {
        return Ok((loss(tokens)?, None));
    };
    let zero = loss(without_slots(&tokens, &batch)?)?;
    Ok((loss(with_slots(&tokens, &batch, slots, 0)?)?, Some(zero)))
}

/// Returns `tokens` [T, d] with zeros in the slots of the batch.
fn without_slots(tokens: &Tensor, batch: &InstructBatch) -> Result<Tensor> {
    let nothing = Tensor::zeros((1, tokens.dim(1)?), tokens.dtype(), tokens.device())?;
    replaced_rows(tokens, &nothing, &batch.slot_rows, |_| 0)
}

/// Returns `tokens` [T, d] with the rows of `slots` from `first` on in the slots of the batch.
fn with_slots(tokens: &Tensor, batch: &InstructBatch, slots: &Tensor, first: usize) -> Result<Tensor> {
    let own = slots.narrow(0, first, batch.slot_rows.len())?;
    replaced_rows(tokens, &own, &batch.slot_rows, |slot| slot)
}
