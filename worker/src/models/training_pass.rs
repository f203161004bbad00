//! The decoder in training: a forward pass that keeps what the backward pass needs, the loss of the answer's tokens, and a
//! backward pass to the adapter and to the embeddings that went in, layer by layer.
//!
//! Frozen weights get no gradient. What is kept goes with each layer, and a layer's gradient is whole as soon as it is
//! handed on, so that it can be summed over ranks while the layers before it are still at work.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::batches::Packed;
use super::llama::Llama;
use super::llama_layer::{LayerTape, Place};
use super::lora::{LayerAdapter, LoraAdapter, RowDropout};
use super::ops::{AttentionSpans, Causality, Rope};
use crate::Result;
use crate::llink::next_token_loss::{AnswerTokens, next_token_loss};
use crate::train::dropout::Dropout;

/// Logits that are held at once: 64 MiB of them.
const LOGITS_AT_ONCE: usize = 1 << 24;

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

/// Told of each part of a gradient, and where it lies, as soon as it is whole.
pub type Ready<'a> = &'a mut dyn FnMut(Range<usize>, &mut [f32]) -> Result<()>;

/// A forward pass that is waiting for its backward pass.
pub struct TrainingPass<'a> {
    model: &'a Llama,
    setup: Setup,
    layers: Vec<Kept>,
    /// By the last layer's output, [T, hidden].
    by_output: Tensor,
    /// Of the answer's tokens, this rank's share.
    loss: f64,
}

/// What all layers of a pass need.
struct Setup {
    adapter: Vec<LayerAdapter>,
    spans: AttentionSpans,
    rope: Rope,
}

impl Setup {
    fn new(model: &Llama, adapter: &LoraAdapter, batch: &TrainingBatch<'_>, embeddings: &Tensor) -> Result<Self> {
        let (device, dtype) = (embeddings.device(), embeddings.dtype());
        let dropout = batch.dropout.map(|(dropout, keys)| RowDropout { dropout, keys });
        let packed = Packed {
            ids: batch.ids.to_vec(),
            offsets: batch.offsets.to_vec(),
        };
        let offsets = || batch.offsets.to_vec();
        Ok(Self {
            adapter: adapter.on(device, dropout.as_ref())?,
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
    /// The embeddings of token ids in f32, [T, hidden] row by row.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an id outside the vocabulary.
    pub fn embed_f32(&self, ids: &[u32]) -> Result<Vec<f32>> {
        self.check_vocabulary(ids)?;
        Ok(self.embed(ids)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    /// A forward pass in training, from embeddings [T, hidden]: the next-token loss of the answer's tokens, and what its backward
    /// pass needs.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) when the device fails.
    pub fn train(
        &self,
        adapter: &LoraAdapter,
        batch: &TrainingBatch<'_>,
        embeddings: &[f32],
        activations: Activations,
    ) -> Result<TrainingPass<'_>> {
        TrainingPass::forward(self, adapter, batch, self.on_device(embeddings)?, activations)
    }

    /// The loss of [`Llama::train`] alone, nothing kept.
    ///
    /// # Errors
    /// As [`Llama::train`].
    pub fn answer_loss(&self, adapter: &LoraAdapter, batch: &TrainingBatch<'_>, embeddings: &[f32]) -> Result<f64> {
        loss_only(self, adapter, batch, self.on_device(embeddings)?)
    }

    /// Embeddings [T, hidden] in the model's dtype on its device.
    pub(super) fn on_device(&self, embeddings: &[f32]) -> Result<Tensor> {
        let (width, (device, dtype)) = (self.config().hidden_size, self.activations());
        let embeddings = Tensor::from_slice(embeddings, (embeddings.len() / width, width), device)?;
        Ok(embeddings.to_dtype(dtype)?)
    }
}

impl<'a> TrainingPass<'a> {
    /// Runs `embeddings` [T, hidden] through the decoder and takes the loss of the answer's tokens.
    fn forward(
        model: &'a Llama,
        adapter: &LoraAdapter,
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
                    layers.push(Kept::Input(x.copy()?));
                    x = layer.forward(x, &setup.place(), None, Some(adapter), None)?;
                }
            }
        }
        let (loss, by_output) = answer_loss(model, &x, batch, Wanted::LossAndGradient)?;
        Ok(Self {
            model,
            setup,
            layers,
            by_output,
            loss,
        })
    }

    /// This rank's share of the mean next-token loss.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.loss
    }

    /// The gradient by the embeddings, [T, hidden] in f32. That by the adapter's parameters is added to `gradient`; `ready` is
    /// told of each part of it as soon as this pass will change it no more, the last layer's first.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) when the device fails; those of `ready`.
    pub fn backward(self, adapter: &LoraAdapter, gradient: &mut [f32], ready: Ready<'_>) -> Result<Vec<f32>> {
        let (setup, mut by) = (self.setup, self.by_output);
        let place = setup.place();
        let layers = self.model.layers.iter().zip(&setup.adapter).zip(self.layers);
        for (index, ((layer, corrections), kept)) in layers.enumerate().rev() {
            let tape = match kept {
                Kept::Tape(tape) => tape,
                Kept::Input(input) => {
                    let mut tape = None;
                    layer.forward(input, &place, None, Some(corrections), Some(&mut tape))?;
                    tape.ok_or_else(|| candle_core::Error::Msg("a layer left no tape".into()))?
                }
            };
            let range = adapter.layer_range(index);
            by = layer.backward(tape, by, &place, Some(corrections), &mut gradient[range.clone()])?;
            ready(range.clone(), &mut gradient[range])?;
        }
        Ok(by.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

/// The mean next-token loss of a batch without gradient, this rank's share.
fn loss_only(model: &Llama, adapter: &LoraAdapter, batch: &TrainingBatch<'_>, embeddings: Tensor) -> Result<f64> {
    let setup = Setup::new(model, adapter, batch, &embeddings)?;
    let mut x = embeddings;
    for (layer, adapter) in model.layers.iter().zip(&setup.adapter) {
        x = layer.forward(x, &setup.place(), None, Some(adapter), None)?;
    }
    Ok(answer_loss(model, &x, batch, Wanted::Loss)?.0)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Loss,
    LossAndGradient,
}

/// The loss of the answer's tokens and its gradient by the last layer's output x [T, hidden] (zeros unless it is wanted).
/// Logits are computed where an answer token follows and nowhere else, a few rows at a time.
fn answer_loss(model: &Llama, x: &Tensor, batch: &TrainingBatch<'_>, wanted: Wanted) -> Result<(f64, Tensor)> {
    let (device, vocabulary) = (x.device(), model.config().vocab_size);
    let (positions, targets) = (&batch.answer.positions, &batch.answer.targets);
    let rows_at_once = (LOGITS_AT_ONCE / vocabulary).max(1);
    let (mut loss, mut gradients, mut rows_of) = (0.0, Vec::new(), Vec::new());
    for (positions, targets) in positions.chunks(rows_at_once).zip(targets.chunks(rows_at_once)) {
        let rows = Tensor::from_vec(
            positions.iter().map(|row| *row as u32).collect::<Vec<_>>(),
            positions.len(),
            device,
        )?;
        let hidden = x.index_select(&rows, 0)?;
        let logits = model.logits(&model.final_norm(&hidden)?)?;
        let (part, by_logits) = token_loss(logits, targets, batch.answer_tokens)?;
        loss += part;
        if wanted == Wanted::LossAndGradient {
            let by_normed = model.head.input_gradient(&by_logits)?;
            gradients.push(model.final_norm_backward(&hidden, &by_normed)?);
            rows_of.push(rows);
        }
    }
    let mut by_output = x.zeros_like()?;
    if !gradients.is_empty() {
        let (rows, gradients) = (Tensor::cat(&rows_of, 0)?, Tensor::cat(&gradients, 0)?);
        by_output = by_output.index_add(&rows, &gradients, 0)?;
    }
    Ok((loss, by_output))
}

/// This rank's share of the mean cross entropy and its gradient by the logits [n, vocab].
fn token_loss(logits: Tensor, targets: &[u32], answer_tokens: usize) -> Result<(f64, Tensor)> {
    let (shape, dtype, device) = (logits.shape().clone(), logits.dtype(), logits.device().clone());
    let vocabulary = shape.dims2()?.1;
    // Softmax and loss in f32 whatever the model computes in.
    let mut values: Vec<f32> = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    drop(logits);
    let loss = next_token_loss(&mut values, targets, vocabulary, answer_tokens)?;
    Ok((loss, Tensor::from_vec(values, shape, &device)?.to_dtype(dtype)?))
}
