//! A rank's examples through the decoder, run by run: as many tokens at once as the budget allows and the memory holds.

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

/// What the runs of a step share.
pub(super) struct Pass<'a> {
    pub(super) decoder: &'a Llama,
    /// Where the parameters' layers lie.
    pub(super) shape: &'a LoraAdapter,
    pub(super) adapter: Adapter<'a>,
    pub(super) input: &'a InstructInput<'a>,
    /// Of all of the rank's examples, [b·K, d] in what the decoder computes in; none when no prompt has slots.
    pub(super) slots: Option<Tensor>,
    /// Whether the loss with zeros in the slots is wanted too.
    pub(super) due: bool,
}

/// Gradients and losses as they come together over the runs of a step.
pub(super) struct Sums {
    /// Of each decoder layer, f32.
    pub(super) layers: Vec<Tensor>,
    /// By the slots, run by run: [b·K, d] in all, f32.
    pub(super) grad_slots: Vec<Tensor>,
    /// Next-token loss and the same with zeros in the slots, this rank's shares: f32 [2].
    pub(super) losses: Tensor,
}

/// Memory that runs have taken so far.
#[derive(Default)]
pub(super) struct Runs {
    /// Tokens at once that are known to fit, once some did not.
    fits: Option<usize>,
    /// The largest runs that have fitted. Of a larger one nothing goes to the other ranks before all of it has fitted, so that it can
    /// be tried again with less.
    proven: Proven,
}

/// How far a run went within the memory that there is.
enum Passed<'a> {
    /// Forward: backward is known to fit as well.
    Forward(Box<Run<'a>>),
    /// All the way; each layer's gradient.
    Back(Range<usize>, Extent, Vec<(usize, Tensor)>, Found),
}

/// What a run's forward pass left.
struct Run<'a> {
    rows: Range<usize>,
    batch: InstructBatch,
    pass: TrainingPass<'a>,
    zero: Option<Tensor>,
}

/// What a run found beside the gradients of the layers.
struct Found {
    sft: Tensor,
    zero: Option<Tensor>,
    grad_slots: Option<Tensor>,
}

/// The sums while they are made.
struct Adding<'a> {
    layers: Vec<Option<Tensor>>,
    grad_slots: Vec<Tensor>,
    sft: Tensor,
    zero: Tensor,
    collective: &'a mut dyn Collective,
}

impl Adding<'_> {
    /// Adds a run's gradient of a layer. After the last run its sum goes to the other ranks.
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

    /// Adds the rest of what a run found.
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
    /// All of this rank's examples forward and back. In the last run each layer's gradient goes to the other ranks as soon as it is
    /// whole, beside the layers before it.
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
                    tracing::warn!(
                        budget,
                        "out of memory on the device: going on with half as many tokens at once"
                    );
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
            // A rank without rows takes part with zeros.
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

    /// The examples from `from` that fit into the budget: with zeros in the slots, if due, and with the slots.
    fn forward(&self, from: usize, budget: usize) -> Result<Run<'a>> {
        let Self { decoder, input, .. } = self;
        let lengths: Vec<usize> = input.examples[from..].iter().map(|example| example.tokens()).collect();
        let first = micro_batches(&lengths, budget).into_iter().next().unwrap_or(0..0);
        let rows = from..from + first.len();
        let batch = InstructBatch::new(input.examples[rows.clone()].iter().copied());
        let answer = batch.answer();
        let training = TrainingBatch {
            ids: &batch.ids,
            offsets: &batch.offsets,
            answer: &answer,
            answer_tokens: input.answer_tokens,
            dropout: input.dropout.map(|dropout| (dropout, batch.row_keys.as_slice())),
        };
        let tokens = decoder.embed(&batch.ids)?;
        let zero = match self.due {
            true => Some(decoder.answer_loss(&self.adapter, &training, without_slots(&tokens, &batch)?)?),
            false => None,
        };
        let embeddings = match &self.slots {
            Some(slots) => with_slots(&tokens, &batch, slots, rows.clone())?,
            None => tokens,
        };
        let pass = decoder.train(&self.adapter, &training, embeddings, input.activations)?;
        Ok(Run {
            rows,
            batch,
            pass,
            zero,
        })
    }

    /// A run's way back; `each` is given every layer's gradient, the last layer's first.
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

/// The losses of `examples`, `answer_tokens` in all, without gradient: with `slots` [n·K, d], and with zeros in their place. Without
/// slots there is only the first.
pub(super) fn held_out_losses(
    (decoder, adapter): (&Llama, &Adapter<'_>),
    examples: &[InstructExample],
    answer_tokens: usize,
    slots: Option<&Tensor>,
) -> Result<(Tensor, Option<Tensor>)> {
    let batch = InstructBatch::new(examples);
    let answer = batch.answer();
    let training = TrainingBatch {
        ids: &batch.ids,
        offsets: &batch.offsets,
        answer: &answer,
        answer_tokens,
        dropout: None,
    };
    let tokens = decoder.embed(&batch.ids)?;
    let loss = |embeddings: Tensor| decoder.answer_loss(adapter, &training, embeddings);
    let Some(slots) = slots else {
        return Ok((loss(tokens)?, None));
    };
    let zero = loss(without_slots(&tokens, &batch)?)?;
    Ok((
        loss(with_slots(&tokens, &batch, slots, 0..examples.len())?)?,
        Some(zero),
    ))
}

/// `tokens` [T, d] with zeros in the batch's slots.
fn without_slots(tokens: &Tensor, batch: &InstructBatch) -> Result<Tensor> {
    let nothing = Tensor::zeros((1, tokens.dim(1)?), tokens.dtype(), tokens.device())?;
    replaced_rows(tokens, &nothing, &batch.slot_rows, |_| 0)
}

/// `tokens` [T, d] with those of `slots` in the batch's slots that are of the examples `rows`, K of each.
fn with_slots(tokens: &Tensor, batch: &InstructBatch, slots: &Tensor, rows: Range<usize>) -> Result<Tensor> {
    let each = batch.slot_rows.len() / rows.len().max(1);
    let own = slots.narrow(0, rows.start * each, rows.len() * each)?;
    replaced_rows(tokens, &own, &batch.slot_rows, |slot| slot)
}
