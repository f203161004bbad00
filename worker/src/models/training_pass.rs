//! The decoder in training: a forward pass that keeps what the backward pass needs, the loss of the answer's tokens, and a
//! backward pass to the adapter and to the embeddings that went in, layer by layer.
//!
//! Frozen weights get no gradient. What is kept goes with each layer, and a layer's gradient is whole as soon as it is
//! handed on, so that it can be summed over ranks while the layers before it are still at work.

use candle_core::{DType, Device, Tensor};

use super::batches::Packed;
use super::llama::Llama;
use super::llama_layer::{LayerTape, Place};
use super::lora::{LayerAdapter, LoraAdapter, RowDropout};
use super::ops::{AttentionSpans, Causality, Rope};
use crate::Result;
use crate::llink::next_token_loss::{AnswerTokens, Wanted, next_token_loss};
use crate::train::dropout::Dropout;

/// What the forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// All that is dear to compute: about 19 · hidden_size numbers for each token and layer of Llama 3.2 1B.
    #[default]
    Kept,
    /// Each layer's input; the backward pass runs each layer forward again.
    Recomputed,
}

/// Sequences laid end to end, T tokens in all.
#[derive(Debug, Clone)]
pub struct TrainingBatch<'a> {
    /// Token ids, T of them.
    pub ids: &'a [u32],
    /// Where each sequence starts, then T.
    pub offsets: &'a [usize],
    /// Which rows are followed by answer tokens.
    pub answer: &'a AnswerTokens,
    /// Answer tokens in the global batch.
    pub answer_tokens: usize,
    /// LoRA's dropout in this step, and a key for each row.
    pub dropout: Option<(Dropout, &'a [u64])>,
}

/// An adapter whose parameters are on the decoder's device.
#[derive(Clone)]
pub struct Adapter<'a> {
    shape: &'a LoraAdapter,
    parameters: Tensor,
}

impl<'a> Adapter<'a> {
    /// Copies an adapter's parameters to where `model` computes.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) when the device fails.
    pub fn new(adapter: &'a LoraAdapter, model: &Llama) -> Result<Self> {
        let parameters = adapter.parameters_on(model.activations().0)?;
        Ok(Self::of_tensor(adapter, parameters))
    }

    /// An adapter with the layout of `shape` and with parameters [n] in f32 that are already on the device.
    pub(crate) const fn of_tensor(shape: &'a LoraAdapter, parameters: Tensor) -> Self {
        Self { shape, parameters }
    }
}

/// A forward pass that is waiting for its backward pass.
pub struct TrainingPass<'a> {
    model: &'a Llama,
    setup: Setup,
    layers: Vec<Kept>,
    /// By the last layer's output, [T, hidden].
    grad_output: Tensor,
    loss: Tensor,
}

/// What all layers of a pass need.
struct Setup {
    adapter: Vec<LayerAdapter>,
    spans: AttentionSpans,
    rope: Rope,
}

impl Setup {
    fn new(model: &Llama, adapter: &Adapter<'_>, batch: &TrainingBatch<'_>, embeddings: &Tensor) -> Result<Self> {
        let (device, dtype) = (embeddings.device(), embeddings.dtype());
        let dropout = batch.dropout.map(|(dropout, keys)| RowDropout { dropout, keys });
        let packed = Packed {
            ids: batch.ids.to_vec(),
            offsets: batch.offsets.to_vec(),
        };
        let offsets = || batch.offsets.to_vec();
        Ok(Self {
            adapter: adapter
                .shape
                .layers_of(&adapter.parameters, &model.adapter_place(), dropout.as_ref())?,
            spans: AttentionSpans::new(offsets(), offsets(), Causality::Causal, dtype, device)?,
            rope: model.rope(&packed, 0, dtype, device)?,
        })
    }

    fn place(&self) -> Place<'_> {
        Place {
            spans: &self.spans,
            rope: &self.rope,
            only: None,
        }
    }
}

enum Kept {
    Tape(LayerTape),
    Input(Tensor),
}

impl Llama {
    /// A forward pass in training, from embeddings [T, hidden]: the next-token loss of the answer's tokens, and what its backward
    /// pass needs.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) when the device fails.
    pub fn train(
        &self,
        adapter: &Adapter<'_>,
        batch: &TrainingBatch<'_>,
        embeddings: Tensor,
        activations: Activations,
    ) -> Result<TrainingPass<'_>> {
        TrainingPass::forward(self, adapter, batch, embeddings, activations)
    }

    /// Only the loss of [`Llama::train`]: a number in f32 that the device may still be computing.
    ///
    /// # Errors
    /// As [`Llama::train`].
    pub fn answer_loss(&self, adapter: &Adapter<'_>, batch: &TrainingBatch<'_>, embeddings: Tensor) -> Result<Tensor> {
        let setup = Setup::new(self, adapter, batch, &embeddings)?;
        let mut x = embeddings;
        for (layer, adapter) in self.layers.iter().zip(&setup.adapter) {
            x = layer.forward(x, &setup.place(), None, Some(adapter), None)?;
        }
        Ok(answer_loss(self, &x, batch, Wanted::Loss)?.0)
    }
}

impl<'a> TrainingPass<'a> {
    /// Runs `embeddings` [T, hidden] through the decoder and takes the loss of the answer's tokens.
    fn forward(
        model: &'a Llama,
        adapter: &Adapter<'_>,
        batch: &TrainingBatch<'_>,
        embeddings: Tensor,
        activations: Activations,
    ) -> Result<Self> {
        let setup = Setup::new(model, adapter, batch, &embeddings)?;
        let mut layers = Vec::with_capacity(model.layers.len());
        let mut x = embeddings;
        for (layer, adapter) in model.layers.iter().zip(&setup.adapter) {
            match activations {
                Activations::Kept => {
                    let mut tape = None;
                    x = layer.forward(x, &setup.place(), None, Some(adapter), Some(&mut tape))?;
                    layers.extend(tape.map(Kept::Tape));
                }
                Activations::Recomputed => {
                    layers.push(Kept::Input(x.clone()));
                    x = layer.forward(x, &setup.place(), None, Some(adapter), None)?;
                }
            }
        }
        let (loss, grad_output) = answer_loss(model, &x, batch, Wanted::LossAndGradient)?;
        Ok(Self {
            model,
            setup,
            layers,
            grad_output,
            loss,
        })
    }

    /// This rank's share of the mean next-token loss: a number in f32 that the device may still be computing.
    #[must_use]
    pub const fn loss(&self) -> &Tensor {
        &self.loss
    }

    /// The gradient by the embeddings, [T, hidden]. `ready` is given the index of each layer, from the last to the first, and the
    /// gradient by its part of the adapter, f32 [n], as soon as it is complete.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) when the device fails; those of `ready`.
    pub fn backward(self, ready: &mut dyn FnMut(usize, Tensor) -> Result<()>) -> Result<Tensor> {
        let (setup, mut grad) = (self.setup, self.grad_output);
        let place = setup.place();
        let layers = self.model.layers.iter().zip(&setup.adapter).zip(self.layers);
        for (index, ((weights, corrections), kept)) in layers.enumerate().rev() {
            let tape = match kept {
                Kept::Tape(tape) => tape,
                Kept::Input(input) => {
                    let mut tape = None;
                    weights.forward(input, &place, None, Some(corrections), Some(&mut tape))?;
                    tape.ok_or_else(|| candle_core::Error::Msg("a layer left no tape".into()))?
                }
            };
            let (grad_input, grad_adapter) = weights.backward(tape, grad, &place, corrections)?;
            ready(index, grad_adapter)?;
            grad = grad_input;
        }
        Ok(grad)
    }
}

/// The loss of the answer's tokens and its gradient by the last layer's output x [T, hidden] (zeros unless it is wanted).
/// Logits are computed where an answer token follows and nowhere else, a few rows at a time.
fn answer_loss(model: &Llama, x: &Tensor, batch: &TrainingBatch<'_>, wanted: Wanted) -> Result<(Tensor, Tensor)> {
    let device = x.device();
    let (positions, targets) = (&batch.answer.positions, &batch.answer.targets);
    let rows_at_once = (logits_at_once(device) / model.config().vocab_size).max(1);
    let mut loss = Tensor::zeros((), DType::F32, device)?;
    let mut gradients = Vec::new();
    for (positions, targets) in positions.chunks(rows_at_once).zip(targets.chunks(rows_at_once)) {
        let rows: Vec<u32> = positions.iter().map(|row| *row as u32).collect();
        let hidden = x.index_select(&Tensor::from_vec(rows, positions.len(), device)?, 0)?;
        let logits = model.logits(&model.final_norm(&hidden)?)?;
        let (of_rows, grad_logits) = next_token_loss(logits, targets, batch.answer_tokens, wanted)?;
        loss = (loss + of_rows)?;
        if let Some(grad_logits) = grad_logits {
            let grad_normed = model.head.input_gradient(&grad_logits)?;
            gradients.push(model.final_norm_backward(&hidden, &grad_normed)?);
        }
    }
    Ok((loss, spread(&gradients, positions, x)?))
}

/// Logits that are held at once: 64 MiB of them; more on GPUs, which need large pieces to be busy.
fn logits_at_once(device: &Device) -> usize {
    match device.is_cpu() {
        true => 1 << 24,
        false => 1 << 27,
    }
}

/// Rows at `positions` of what is otherwise zeros like x [T, hidden]. A GPU reads many rows at once and adds them one by one.
fn spread(rows: &[Tensor], positions: &[usize], x: &Tensor) -> Result<Tensor> {
    if rows.is_empty() {
        return Ok(x.zeros_like()?);
    }
    let (count, width) = x.dims2()?;
    let zero = Tensor::zeros((1, width), x.dtype(), x.device())?;
    let rows: Vec<&Tensor> = rows.iter().chain([&zero]).collect();
    let mut from = vec![positions.len() as u32; count];
    for (row, position) in (0..).zip(positions) {
        from[*position] = row;
    }
    Ok(Tensor::cat(&rows, 0)?.index_select(&Tensor::from_vec(from, count, x.device())?, 0)?)
}
