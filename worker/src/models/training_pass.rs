//! The decoder in training. The forward pass keeps what the backward pass needs and computes the loss of the answer's
//! tokens. The backward pass returns the gradients of the adapter and of the embeddings, layer by layer.
//!
//! Frozen weights have no gradient. Each layer frees its values once its gradient is complete. The gradient can be
//! summed over ranks while earlier layers are computed.

use candle_core::{DType, Device, Tensor};

use super::batches::Packed;
use super::llama::Llama;
use super::llama_layer::{LayerTape, Place};
use super::lora::{LayerAdapter, LoraAdapter};
use crate::Result;
use crate::llink::next_token_loss::{AnswerTokens, Wanted, next_token_loss};
use crate::numerics::dropout::Dropout;
use crate::ops::{AttentionSpans, Causality, Rope};

/// The activations that the forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// Everything that is expensive to compute: about 19 · hidden_size values for each token and layer of Llama 3.2 1B.
    #[default]
    Kept,
    /// The input of each layer. The backward pass computes each layer's forward pass again.
    Recomputed,
}

/// Sequences laid end to end, T tokens in total.
#[derive(Debug, Clone)]
pub struct TrainingBatch<'a> {
    /// The token ids, `[T]`.
    pub ids: &'a [u32],
    /// The start of each sequence, then T.
    pub offsets: &'a [usize],
    /// The rows that an answer token follows.
    pub answer: &'a AnswerTokens,
    /// The number of answer tokens in the global batch.
    pub answer_tokens: usize,
    /// The dropout of LoRA in this step, and a key for each row.
    pub dropout: Option<(Dropout, &'a [u64])>,
}

/// An adapter whose parameters are on the decoder's device.
#[derive(Clone)]
pub struct Adapter<'a> {
    shape: &'a LoraAdapter,
    parameters: Tensor,
}

impl<'a> Adapter<'a> {
    /// Copies an adapter's parameters to the device of `model`.
    pub fn new(adapter: &'a LoraAdapter, model: &Llama) -> Result<Self> {
        let parameters = adapter.parameters_on(model.activations().0)?;
        Ok(Self::of_tensor(adapter, parameters))
    }

    /// Returns an adapter with the layout of `shape`, given parameters in f32 `[n]` on the device.
    pub(crate) const fn of_tensor(shape: &'a LoraAdapter, parameters: Tensor) -> Self {
        Self { shape, parameters }
    }
}

/// A forward pass before its backward pass.
pub struct TrainingPass<'a> {
    model: &'a Llama,
    setup: Setup,
    layers: Vec<Kept>,
    /// The gradient of the last layer's output, `[T, hidden]`.
    grad_output: Tensor,
    loss: Tensor,
}

/// The inputs that all layers of a pass share.
struct Setup {
    adapter: Vec<LayerAdapter>,
    spans: AttentionSpans,
    rope: Rope,
}

impl Setup {
    fn new(model: &Llama, adapter: &Adapter<'_>, batch: &TrainingBatch<'_>, embeddings: &Tensor) -> Result<Self> {
        let (device, dtype) = (embeddings.device(), embeddings.dtype());
        let packed = Packed { ids: batch.ids.to_vec(), offsets: batch.offsets.to_vec() };
        let offsets = || batch.offsets.to_vec();
        Ok(Self {
            adapter: adapter.shape.layers_of(&adapter.parameters, dtype, batch.dropout)?,
            spans: AttentionSpans::new(offsets(), offsets(), Causality::Causal, dtype, device)?,
            rope: model.rope(&packed, |_| 0, dtype, device)?,
        })
    }

    fn place(&self) -> Place<'_> {
        Place { spans: &self.spans, rope: &self.rope, only: None }
    }
}

enum Kept {
    Tape(LayerTape),
    Input(Tensor),
}

impl Llama {
    /// Runs the forward pass from embeddings `[T, hidden]`. Returns the next-token loss of the answer's tokens with
    /// what its backward pass needs.
    pub fn train(
        &self,
        adapter: &Adapter<'_>,
        batch: &TrainingBatch<'_>,
        embeddings: Tensor,
        activations: Activations,
    ) -> Result<TrainingPass<'_>> {
        let setup = Setup::new(self, adapter, batch, &embeddings)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        let mut x = embeddings;
        for (layer, adapter) in self.layers.iter().zip(&setup.adapter) {
            let (y, tape) = layer.forward(x.clone(), &setup.place(), None, Some(adapter))?;
            layers.push(match activations {
                Activations::Kept => Kept::Tape(tape),
                Activations::Recomputed => Kept::Input(x),
            });
            x = y;
        }
        let (loss, grad_output) = answer_loss(self, &x, batch, Wanted::LossAndGradient)?;
        Ok(TrainingPass { model: self, setup, layers, grad_output, loss })
    }

    /// Computes only the loss of [`Llama::train`], a scalar in f32 that the device may still be computing.
    pub fn answer_loss(&self, adapter: &Adapter<'_>, batch: &TrainingBatch<'_>, embeddings: Tensor) -> Result<Tensor> {
        let setup = Setup::new(self, adapter, batch, &embeddings)?;
        let mut x = embeddings;
        for (layer, adapter) in self.layers.iter().zip(&setup.adapter) {
            x = layer.forward(x, &setup.place(), None, Some(adapter))?.0;
        }
        Ok(answer_loss(self, &x, batch, Wanted::Loss)?.0)
    }
}

impl TrainingPass<'_> {
    /// Returns this rank's share of the mean next-token loss, a scalar in f32 that the device may still be computing.
    pub const fn loss(&self) -> &Tensor {
        &self.loss
    }

    /// Returns the gradient of the embeddings, `[T, hidden]`. `ready` is called for each layer, from the last to the
    /// first, once its gradient is complete. It gets the layer's index and the gradient of its part of the adapter, f32
    /// `[n]`.
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
                Kept::Input(input) => weights.forward(input, &place, None, Some(corrections))?.1,
            };
            let (grad_input, grad_adapter) = weights.backward(tape, grad, &place, corrections)?;
            ready(index, grad_adapter)?;
            grad = grad_input;
        }
        Ok(grad)
    }
}

/// Returns the loss of the answer's tokens, and the gradient of the last layer's output x `[T, hidden]`, or zeros if it
/// is not needed. Logits are computed only where an answer token follows, a few rows at a time.
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

/// Returns the number of logits that are held at once: 64 MiB of them, and more on GPUs, which need large pieces.
fn logits_at_once(device: &Device) -> usize {
    if device.is_cpu() { 1 << 24 } else { 1 << 27 }
}

/// Writes rows to `positions` of a tensor of zeros like x `[T, hidden]`. A GPU gathers rows in parallel, but would add
/// them one by one.
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
