//! One step of Stage B on a device.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::adamw::DeviceAdamW;
use super::extent::{Extent, Proven};
use super::slots::{Projected, SlotGradients, SlotGraph, SlotTargets};
use super::{flat, sum_of_squares};
use crate::Result;
use crate::collective::Collective;
use crate::device::{Staging, within_memory};
use crate::llink::projector::{Projector, ProjectorShape};
use crate::llink::slot_expander::{SlotExpander, SlotExpanderShape};
use crate::models::lora::LoraAdapter;
use crate::models::{Adapter, Llama, TrainingBatch, TrainingPass};
use crate::train::instruct_batch::{InstructBatch, micro_batches};
use crate::train::instruct_step::{InstructInput, InstructLosses, InstructOutcome, InstructWeights};
use crate::train::moving_projector::MovingProjector;
use crate::train::optimizer::AdamW;
use crate::train::step::{Clock, StepSeconds, check_finite};

/// Adapter, expander and their optimizers in training on a device. The same on all ranks after each step.
pub struct DeviceInstructTrainer {
    device: Device,
    dtype: DType,
    /// What the adapter is like; its parameters are with the optimizer, and not here.
    adapter: LoraAdapter,
    shape: SlotExpanderShape,
    median_norm: f32,
    of_adapter: DeviceAdamW,
    of_expander: DeviceAdamW,
    of_scale: DeviceAdamW,
    /// The projector, where it moves.
    of_projector: Option<(ProjectorShape, DeviceAdamW)>,
    weights: InstructWeights,
    staging: Staging,
    /// Tokens at once that are known to fit.
    fits: usize,
    /// The largest runs that have fitted. Of a larger one nothing goes to the other ranks before all of it has fitted, so that it can
    /// be tried again with less.
    proven: Proven,
}

/// Gradients and losses as they come together over the runs of a step.
struct Sums {
    /// Of each decoder layer, f32.
    layers: Vec<Option<Tensor>>,
    /// By the slots, run by run: [b · K, d] in all.
    by_slots: Vec<Tensor>,
    sft: Tensor,
    zero: Tensor,
}

impl Sums {
    /// Adds a run's gradient of a layer. After the last run its sum goes to the other ranks.
    fn add(&mut self, layer: usize, gradient: Tensor, last: bool, collective: &mut dyn Collective) -> Result<()> {
        let sum = match self.layers[layer].take() {
            Some(before) => (before + gradient)?,
            None => gradient,
        };
        if last {
            collective.begin_all_reduce(&sum)?;
        }
        self.layers[layer] = Some(sum);
        Ok(())
    }

    /// Adds the rest of what a run found.
    fn finish(&mut self, found: Found) -> Result<()> {
        self.sft = (&self.sft + found.sft)?;
        if let Some(zero) = found.zero {
            self.zero = (&self.zero + zero)?;
        }
        self.by_slots.extend(found.by_slots);
        Ok(())
    }
}

/// What a run found beside the gradients of the layers.
struct Found {
    sft: Tensor,
    zero: Option<Tensor>,
    by_slots: Option<Tensor>,
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

impl DeviceInstructTrainer {
    /// A trainer that goes on from these, where `decoder` computes.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when the device fails.
    pub fn new(
        decoder: &Llama,
        mut adapter: LoraAdapter,
        expander: &SlotExpander,
        optimizers: &[AdamW; 3],
        weights: InstructWeights,
    ) -> Result<Self> {
        let (device, dtype) = decoder.activations();
        let (scale, others) = expander.parameters.split_at(1);
        let [of_adapter, of_expander, of_scale] = optimizers;
        let parameters = std::mem::take(&mut adapter.parameters);
        Ok(Self {
            of_adapter: DeviceAdamW::new(&parameters, of_adapter, device)?,
            of_expander: DeviceAdamW::new(others, of_expander, device)?,
            of_scale: DeviceAdamW::new(scale, of_scale, device)?,
            of_projector: None,
            device: device.clone(),
            dtype,
            adapter,
            shape: expander.shape(),
            median_norm: expander.median_norm(),
            weights,
            staging: Staging::default(),
            fits: usize::MAX,
            proven: Proven::default(),
        })
    }

    /// The same, that trains this projector too.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when the device fails.
    pub fn with_projector(mut self, projector: Option<MovingProjector>) -> Result<Self> {
        let put = |MovingProjector { projector, optimizer }: MovingProjector| {
            let moving = DeviceAdamW::new(&projector.parameters, &optimizer, &self.device)?;
            Ok::<_, crate::Error>((projector.shape(), moving))
        };
        self.of_projector = projector.map(put).transpose()?;
        Ok(self)
    }

    /// The projector on the host, where it moves.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when the device fails.
    pub fn projector(&self) -> Result<Option<MovingProjector>> {
        let Some((shape, moving)) = &self.of_projector else {
            return Ok(None);
        };
        let (parameters, optimizer) = moving.to_host()?;
        let mut projector = Projector::new(*shape, 0);
        projector.parameters = parameters;
        Ok(Some(MovingProjector { projector, optimizer }))
    }

    /// What else moved, on the host.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when the device fails.
    pub fn to_host(&self) -> Result<(LoraAdapter, SlotExpander, [AdamW; 3])> {
        let mut adapter = self.adapter.clone();
        let (parameters, of_adapter) = self.of_adapter.to_host()?;
        adapter.parameters = parameters;
        let mut expander = SlotExpander::new(self.shape, self.median_norm, 0);
        let (others, of_expander) = self.of_expander.to_host()?;
        let (scale, of_scale) = self.of_scale.to_host()?;
        expander.parameters = [scale, others].concat();
        Ok((adapter, expander, [of_adapter, of_expander, of_scale]))
    }

    /// Trains on one global batch, of which each rank runs its own rows. All ranks take the same step. One wait for the device: for
    /// the losses, before anything is changed.
    ///
    /// # Errors
    /// Those of the decoder and the collective; [`Error::Diverged`](crate::Error::Diverged) on NaN or infinity, with nothing changed
    /// by this step; [`Error::OutOfMemory`](crate::Error::OutOfMemory) when not even one example fits.
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
        let graph = match with_slots && !input.own.is_empty() {
            true => Some(self.slot_graph(input)?),
            false => None,
        };
        let due = with_slots && self.weights.usage.is_due(input.step);
        let mut sums = self.runs(decoder, input, graph.as_ref(), due, collective)?;
        seconds.forward = clock.lap();

        // Whether slots did worse than zeros is asked of the global batch.
        let shares = Tensor::stack(&[&sums.sft, &sums.zero], 0)?;
        collective.begin_all_reduce(&shares)?;
        collective.settle()?;
        let factor = self.sft_factor(&shares, due)?;
        let slots = match with_slots {
            true => Some(self.slot_gradients(input, graph, &mut sums, &factor, collective)?),
            false => None,
        };
        collective.settle()?;
        let by_adapter = flat(&self.layers(&sums)?)?.broadcast_mul(&factor)?;
        let by_expander = slots
            .as_ref()
            .map(|slots| flat(std::slice::from_ref(&slots.by_others)))
            .transpose()?;
        let by_scale = slots
            .as_ref()
            .map(|slots| flat(std::slice::from_ref(&slots.by_scale)))
            .transpose()?;
        let by_projector = slots.as_ref().and_then(|slots| slots.by_projector.as_ref());
        let by_projector = by_projector.map(|by| flat(std::slice::from_ref(by))).transpose()?;
        let mut squares = sum_of_squares(&by_adapter)?;
        for gradient in by_expander.iter().chain(&by_scale).chain(&by_projector) {
            squares = (squares + sum_of_squares(gradient)?)?;
        }
        let mut numbers = vec![shares, squares.reshape(1)?];
        numbers.extend(slots.as_ref().map(|slots| slots.losses.clone()));
        let numbers: Vec<f32> = Tensor::cat(&numbers, 0)?.to_vec1()?;
        seconds.backward = clock.lap();

        let losses = self.losses(&numbers, due);
        let grad_norm = f64::from(numbers[2]).sqrt();
        check_finite(input.step, input.ids, losses.loss, grad_norm)?;
        let scale = (self.weights.gradient_clip / (grad_norm + 1e-6)).min(1.0) as f32;
        let rates = &input.learning_rates;
        self.of_adapter.step(&by_adapter, scale, rates.lora)?;
        if let (Some(by_expander), Some(by_scale)) = (by_expander, by_scale) {
            self.of_expander.step(&by_expander, scale, rates.expander)?;
            self.of_scale.step(&by_scale, scale, rates.scale)?;
        }
        if let (Some(by_projector), Some((_, moving))) = (by_projector, &mut self.of_projector) {
            moving.step(&by_projector, scale, rates.projector)?;
        }
        seconds.optimizer = clock.lap();
        Ok(InstructOutcome {
            losses,
            grad_norm,
            seconds,
        })
    }

    fn slot_graph(&mut self, input: &InstructInput<'_>) -> Result<SlotGraph> {
        let width = match &self.of_projector {
            Some((shape, _)) => shape.input,
            None => self.shape.width,
        };
        let shape = (input.own.len(), width);
        let vectors = self.staging.upload(input.vectors, shape, &self.device)?;
        let projected = match &self.of_projector {
            Some((shape, moving)) => Projected::moving(*shape, self.dtype, &moving.parameters()?, &vectors)?,
            None => Projected::fixed(vectors),
        };
        let parameters = (&self.of_scale.parameters()?, &self.of_expander.parameters()?);
        SlotGraph::new(self.shape, self.median_norm, self.dtype, parameters, projected)
    }

    /// All of this rank's examples forward and back, run by run. In the last run each layer's gradient goes to the other ranks as soon
    /// as it is whole, beside the layers before it.
    fn runs(
        &mut self,
        decoder: &Llama,
        input: &InstructInput<'_>,
        graph: Option<&SlotGraph>,
        due: bool,
        collective: &mut dyn Collective,
    ) -> Result<Sums> {
        let nothing = || Tensor::zeros((), DType::F32, &self.device);
        let mut sums = Sums {
            layers: vec![None; self.adapter.layers()],
            by_slots: Vec::new(),
            sft: nothing()?,
            zero: nothing()?,
        };
        let slots = graph
            .map(|graph| graph.slots.detach().to_dtype(self.dtype))
            .transpose()?;
        let parameters = self.of_adapter.parameters()?;
        let adapter = self.adapter.clone();
        let adapter = Adapter {
            shape: &adapter,
            parameters: Some(&parameters),
        };
        let mut from = 0;
        while from < input.examples.len() {
            let mut budget = input.token_budget.min(self.fits);
            let passed = within_memory(
                &mut budget,
                &mut |budget| {
                    tracing::warn!(
                        budget,
                        "out of memory on the device: going on with half as many tokens at once"
                    )
                },
                |budget| {
                    let run = self.forward(decoder, adapter, input, slots.as_ref(), due, (from, budget))?;
                    let extent = Extent::of(&run.batch.offsets);
                    if self.proven.holds(extent) {
                        return Ok(Passed::Forward(Box::new(run)));
                    }
                    let (rows, mut layers) = (run.rows.clone(), Vec::new());
                    let found = self.backward(run, &mut |layer, gradient| {
                        layers.push((layer, gradient));
                        Ok(())
                    })?;
                    Ok(Passed::Back(rows, extent, layers, found))
                },
            )?;
            self.fits = self.fits.min(budget);
            let found = match passed {
                Passed::Forward(run) => {
                    from = run.rows.end;
                    let last = from == input.examples.len();
                    self.backward(*run, &mut |layer, gradient| sums.add(layer, gradient, last, collective))?
                }
                Passed::Back(rows, extent, layers, found) => {
                    from = rows.end;
                    self.proven.add(extent);
                    let last = from == input.examples.len();
                    for (layer, gradient) in layers {
                        sums.add(layer, gradient, last, collective)?;
                    }
                    found
                }
            };
            sums.finish(found)?;
        }
        if input.examples.is_empty() {
            // A rank without rows takes part with zeros.
            for layer in (0..self.adapter.layers()).rev() {
                let zeros = Tensor::zeros(self.adapter.layer_range(layer).len(), DType::F32, &self.device)?;
                collective.begin_all_reduce(&zeros)?;
                sums.layers[layer] = Some(zeros);
            }
        }
        Ok(sums)
    }

    /// The examples from `from` that fit into the budget: with zeros in the slots, if due, and with the slots.
    fn forward<'a>(
        &self,
        decoder: &'a Llama,
        adapter: Adapter<'_>,
        input: &InstructInput<'_>,
        slots: Option<&Tensor>,
        due: bool,
        (from, budget): (usize, usize),
    ) -> Result<Run<'a>> {
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
        let zero = match due {
            true => {
                let nothing = Tensor::zeros((1, self.shape.width), self.dtype, &self.device)?;
                let embeddings = in_slots(&tokens, &nothing, &batch.slot_rows, |_| 0)?;
                Some(
                    decoder
                        .answer_loss_from(adapter, &training, embeddings)?
                        .tensor(&self.device)?,
                )
            }
            false => None,
        };
        let embeddings = match slots {
            Some(slots) if !batch.slot_rows.is_empty() => {
                let own = slots.narrow(0, rows.start * self.shape.slots, rows.len() * self.shape.slots)?;
                in_slots(&tokens, &own, &batch.slot_rows, |slot| slot)?
            }
            _ => tokens,
        };
        let pass = decoder.train_from(adapter, &training, embeddings, input.activations)?;
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
        let sft = pass.loss_on_device().tensor(&self.device)?;
        let by_embeddings = pass.backward_on_device(each)?;
        let by_slots = match batch.slot_rows.is_empty() {
            true => None,
            false => {
                let rows: Vec<u32> = batch.slot_rows.iter().map(|row| *row as u32).collect();
                let rows = Tensor::new(rows, &self.device)?;
                Some(by_embeddings.index_select(&rows, 0)?.to_dtype(DType::F32)?)
            }
        };
        Ok(Found { sft, zero, by_slots })
    }

    /// What the gradient of the next-token loss is multiplied with, [1]: known on the device, so that nobody waits for it.
    fn sft_factor(&self, shares: &Tensor, due: bool) -> Result<Tensor> {
        if !due {
            return Ok(Tensor::ones(1, DType::F32, &self.device)?);
        }
        let worse = shares
            .narrow(0, 0, 1)?
            .gt(&shares.narrow(0, 1, 1)?)?
            .to_dtype(DType::F32)?;
        Ok(worse.affine(self.weights.usage.weight, 1.0)?)
    }

    /// The gradient by the expander, on its way to its sum over all ranks.
    fn slot_gradients(
        &mut self,
        input: &InstructInput<'_>,
        graph: Option<SlotGraph>,
        sums: &mut Sums,
        factor: &Tensor,
        collective: &mut dyn Collective,
    ) -> Result<SlotGradients> {
        let gradients = match graph {
            Some(graph) => {
                let pairs = input.teacher.len() / self.shape.width;
                let teacher = self
                    .staging
                    .upload(input.teacher, (pairs, self.shape.width), &self.device)?;
                let by_slots = Tensor::cat(&sums.by_slots, 0)?.broadcast_mul(factor)?;
                let targets = SlotTargets {
                    teacher: &teacher,
                    own: input.own.clone(),
                    weights: &self.weights.slots,
                };
                graph.backward(&by_slots, &targets)?
            }
            None => {
                let zeros = |count: usize| Tensor::zeros(count, DType::F32, &self.device);
                SlotGradients {
                    by_scale: zeros(1)?,
                    by_others: zeros(self.shape.parameter_count() - 1)?,
                    by_projector: match &self.of_projector {
                        Some((shape, _)) => Some(zeros(shape.parameter_count())?),
                        None => None,
                    },
                    losses: zeros(2)?,
                }
            }
        };
        let parts = [&gradients.by_others, &gradients.by_scale, &gradients.losses];
        for part in parts.into_iter().chain(&gradients.by_projector) {
            collective.begin_all_reduce(part)?;
        }
        Ok(gradients)
    }

    fn layers(&self, sums: &Sums) -> Result<Vec<Tensor>> {
        let zeros = |layer: usize| Tensor::zeros(self.adapter.layer_range(layer).len(), DType::F32, &self.device);
        let layers = sums.layers.iter().enumerate().map(|(index, layer)| match layer {
            Some(layer) => Ok(layer.clone()),
            None => Ok(zeros(index)?),
        });
        layers.collect()
    }

    /// From the step's numbers: next-token loss, the same with zeros, the gradient's square, the two losses of the slots.
    fn losses(&self, numbers: &[f32], due: bool) -> InstructLosses {
        let number = |index: usize| numbers.get(index).copied().map_or(0.0, f64::from);
        let (sft, zero) = (number(0), due.then(|| number(1)));
        let (cosine, info_nce) = (number(3), number(4));
        InstructLosses::new(&self.weights, sft, zero, cosine, info_nce)
    }
}

/// `tokens` [T, d] with rows of `others` in the place of `rows`; `of` says which for the n-th of them.
pub(crate) fn in_slots(
    tokens: &Tensor,
    others: &Tensor,
    rows: &[usize],
    of: impl Fn(usize) -> usize,
) -> Result<Tensor> {
    let count = tokens.dim(0)?;
    let mut from: Vec<u32> = (0..count as u32).collect();
    for (n, row) in rows.iter().enumerate() {
        from[*row] = (count + of(n)) as u32;
    }
    let both = Tensor::cat(&[tokens, others], 0)?;
    Ok(both.index_select(&Tensor::from_vec(from, count, tokens.device())?, 0)?)
}
