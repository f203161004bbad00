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
use super::ops::{AdapterGradient, AttentionSpans, Causality, Form, Rope};
use crate::Result;
use crate::llink::next_token_loss::{AnswerTokens, next_token_loss};
use crate::train::dropout::Dropout;

/// Logits that are held at once: 64 MiB of them; more on GPUs, which need large pieces to be busy.
const LOGITS_AT_ONCE: usize = 1 << 24;
const LOGITS_AT_ONCE_AS_TENSORS: usize = 1 << 27;

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
    loss: Loss,
}

/// A loss that is known, or one that the device may still be working on.
pub(crate) enum Loss {
    Known(f64),
    /// A number in f32.
    OnDevice(Tensor),
}

impl Loss {
    /// A number in f32 on `device`.
    pub(crate) fn tensor(&self, device: &candle_core::Device) -> Result<Tensor> {
        match self {
            Self::Known(loss) => Ok(Tensor::new(*loss as f32, device)?),
            Self::OnDevice(loss) => Ok(loss.clone()),
        }
    }

    fn number(&self) -> Result<f64> {
        match self {
            Self::Known(loss) => Ok(*loss),
            Self::OnDevice(loss) => Ok(f64::from(loss.to_scalar::<f32>()?)),
        }
    }
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
        let place = model.adapter_place();
        let dropout = batch.dropout.map(|(dropout, keys)| RowDropout { dropout, keys });
        let packed = Packed {
            ids: batch.ids.to_vec(),
            offsets: batch.offsets.to_vec(),
        };
        let offsets = || batch.offsets.to_vec();
        Ok(Self {
            adapter: match adapter.parameters {
                Some(parameters) => adapter.shape.layers_of(parameters, &place, dropout.as_ref())?,
                None => adapter.shape.on(&place, dropout.as_ref())?,
            },
            spans: AttentionSpans::new(place.form, offsets(), offsets(), Causality::Causal, dtype, device)?,
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

/// An adapter, and its parameters where they are on the device already.
#[derive(Clone, Copy)]
pub(crate) struct Adapter<'a> {
    pub(crate) shape: &'a LoraAdapter,
    pub(crate) parameters: Option<&'a Tensor>,
}

impl<'a> From<&'a LoraAdapter> for Adapter<'a> {
    fn from(shape: &'a LoraAdapter) -> Self {
        let parameters = None;
        Self { shape, parameters }
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
        self.train_from(adapter.into(), batch, self.on_device(embeddings)?, activations)
    }

    /// As [`Llama::train`], from embeddings [T, hidden] on the device.
    pub(crate) fn train_from(
        &self,
        adapter: Adapter<'_>,
        batch: &TrainingBatch<'_>,
        embeddings: Tensor,
        activations: Activations,
    ) -> Result<TrainingPass<'_>> {
        TrainingPass::forward(self, adapter, batch, embeddings, activations)
    }

    /// The loss of [`Llama::train`] alone, nothing kept.
    ///
    /// # Errors
    /// As [`Llama::train`].
    pub fn answer_loss(&self, adapter: &LoraAdapter, batch: &TrainingBatch<'_>, embeddings: &[f32]) -> Result<f64> {
        self.answer_loss_from(adapter.into(), batch, self.on_device(embeddings)?)?
            .number()
    }

    /// As [`Llama::answer_loss`], from embeddings [T, hidden] on the device.
    pub(crate) fn answer_loss_from(
        &self,
        adapter: Adapter<'_>,
        batch: &TrainingBatch<'_>,
        embeddings: Tensor,
    ) -> Result<Loss> {
        loss_only(self, adapter, batch, embeddings)
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
        adapter: Adapter<'_>,
        batch: &TrainingBatch<'_>,
        embeddings: Tensor,
        activations: Activations,
    ) -> Result<Self> {
        let setup = Setup::new(model, &adapter, batch, &embeddings)?;
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
                    layers.push(Kept::Input(match model.form() {
                        Form::Slices => x.copy()?,
                        Form::Tensors => x.clone(),
                    }));
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

    /// This rank's share of the mean next-token loss. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) when the device fails.
    pub fn loss(&self) -> Result<f64> {
        self.loss.number()
    }

    /// The same without waiting.
    pub(crate) fn loss_on_device(&self) -> &Loss {
        &self.loss
    }

    /// The gradient by the embeddings, [T, hidden] in f32. That by the adapter's parameters is added to `gradient`; `ready` is
    /// told of each part of it as soon as this pass will change it no more, the last layer's first.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) when the device fails; those of `ready`.
    pub fn backward(self, adapter: &LoraAdapter, gradient: &mut [f32], ready: Ready<'_>) -> Result<Vec<f32>> {
        let by = self.backward_by(&mut |index, backward| {
            let range = adapter.layer_range(index);
            let by = backward(&mut AdapterGradient::Slices(&mut gradient[range.clone()]))?;
            ready(range.clone(), &mut gradient[range])?;
            Ok(by)
        })?;
        Ok(by.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    /// As [`TrainingPass::backward`], with everything left on the device: `ready` is given each layer's gradient in f32.
    pub(crate) fn backward_on_device(self, ready: &mut dyn FnMut(usize, Tensor) -> Result<()>) -> Result<Tensor> {
        self.backward_by(&mut |index, backward| {
            let mut pieces = Vec::new();
            let by = backward(&mut AdapterGradient::Tensors(&mut pieces))?;
            pieces.sort_by_key(|(place, _)| place.start);
            let pieces: Vec<Tensor> = pieces.into_iter().map(|(_, values)| values).collect();
            ready(index, Tensor::cat(&pieces, 0)?)?;
            Ok(by)
        })
    }

    /// From the last layer to the first; `layer` is given each layer's index and what to run with a place for its gradient.
    fn backward_by(self, layer: &mut LayerBackward<'_>) -> Result<Tensor> {
        let (setup, mut by) = (self.setup, self.by_output);
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
            let backward =
                |gradient: &mut AdapterGradient<'_>| weights.backward(tape, by, &place, Some(corrections), gradient);
            by = layer(index, Box::new(backward))?;
        }
        Ok(by)
    }
}

/// Runs one layer's backward pass with a place for its adapter's gradient.
type Backward<'a> = Box<dyn FnOnce(&mut AdapterGradient<'_>) -> Result<Tensor> + 'a>;
type LayerBackward<'a> = dyn FnMut(usize, Backward<'_>) -> Result<Tensor> + 'a;

/// The mean next-token loss of a batch without gradient, this rank's share.
fn loss_only(model: &Llama, adapter: Adapter<'_>, batch: &TrainingBatch<'_>, embeddings: Tensor) -> Result<Loss> {
    let setup = Setup::new(model, &adapter, batch, &embeddings)?;
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
fn answer_loss(model: &Llama, x: &Tensor, batch: &TrainingBatch<'_>, wanted: Wanted) -> Result<(Loss, Tensor)> {
    let (device, vocabulary) = (x.device(), model.config().vocab_size);
    let (positions, targets) = (&batch.answer.positions, &batch.answer.targets);
    let at_once = match model.form() {
        Form::Slices => LOGITS_AT_ONCE,
        Form::Tensors => LOGITS_AT_ONCE_AS_TENSORS,
    };
    let rows_at_once = (at_once / vocabulary).max(1);
    let mut loss = match model.form() {
        Form::Slices => Loss::Known(0.0),
        Form::Tensors => Loss::OnDevice(Tensor::zeros((), DType::F32, device)?),
    };
    let (mut gradients, mut rows_of) = (Vec::new(), Vec::new());
    for (positions, targets) in positions.chunks(rows_at_once).zip(targets.chunks(rows_at_once)) {
        let rows = Tensor::from_vec(
            positions.iter().map(|row| *row as u32).collect::<Vec<_>>(),
            positions.len(),
            device,
        )?;
        let hidden = x.index_select(&rows, 0)?;
        let logits = model.logits(&model.final_norm(&hidden)?)?;
        let by_logits = match &mut loss {
            Loss::Known(loss) => token_loss(logits, targets, batch.answer_tokens, loss)?,
            Loss::OnDevice(loss) => token_loss_by_tensors(&logits, targets, batch.answer_tokens, wanted, loss)?,
        };
        if wanted == Wanted::LossAndGradient {
            let by_normed = model.head.input_gradient(&by_logits)?;
            gradients.push(model.final_norm_backward(&hidden, &by_normed)?);
            rows_of.push(rows);
        }
    }
    let by_output = match (gradients.is_empty(), model.form()) {
        (true, _) => x.zeros_like()?,
        (false, Form::Slices) => {
            let (rows, gradients) = (Tensor::cat(&rows_of, 0)?, Tensor::cat(&gradients, 0)?);
            x.zeros_like()?.index_add(&rows, &gradients, 0)?
        }
        (false, Form::Tensors) => spread(&gradients, positions, x)?,
    };
    Ok((loss, by_output))
}

/// Rows at `positions` of what is otherwise zeros like x [T, hidden]. A GPU reads many rows at once and adds them one by one.
fn spread(rows: &[Tensor], positions: &[usize], x: &Tensor) -> Result<Tensor> {
    let (count, width) = x.dims2()?;
    let zero = Tensor::zeros((1, width), x.dtype(), x.device())?;
    let rows: Vec<&Tensor> = rows.iter().chain([&zero]).collect();
    let mut from = vec![positions.len() as u32; count];
    for (row, position) in (0..).zip(positions) {
        from[*position] = row;
    }
    Ok(Tensor::cat(&rows, 0)?.index_select(&Tensor::from_vec(from, count, x.device())?, 0)?)
}

/// Adds this rank's share of the mean cross entropy to `loss`; its gradient by the logits [n, vocab].
fn token_loss(logits: Tensor, targets: &[u32], answer_tokens: usize, loss: &mut f64) -> Result<Tensor> {
    let (shape, dtype, device) = (logits.shape().clone(), logits.dtype(), logits.device().clone());
    let vocabulary = shape.dims2()?.1;
    // Softmax and loss in f32 whatever the model computes in.
    let mut values: Vec<f32> = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    drop(logits);
    *loss += next_token_loss(&mut values, targets, vocabulary, answer_tokens)?;
    Ok(Tensor::from_vec(values, shape, &device)?.to_dtype(dtype)?)
}

/// As [`token_loss`], on the device; the gradient only where it is wanted.
fn token_loss_by_tensors(
    logits: &Tensor,
    targets: &[u32],
    answer_tokens: usize,
    wanted: Wanted,
    loss: &mut Tensor,
) -> Result<Tensor> {
    let (rows, dtype) = (targets.len(), logits.dtype());
    let targets = Tensor::from_slice(targets, (rows, 1), logits.device())?;
    let share = 1.0 / answer_tokens as f64;
    let logits = logits.to_dtype(DType::F32)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
    let exponentials = shifted.exp()?;
    let sums = exponentials.sum_keepdim(1)?;
    let entropies = (sums.log()? - shifted.gather(&targets, 1)?)?;
    *loss = (&*loss + (entropies.sum_all()? * share)?)?;
    if wanted == Wanted::Loss {
        return Ok(logits);
    }
    let softmax = exponentials.broadcast_mul(&(sums.recip()? * share)?)?;
    let label = Tensor::full(-share as f32, (rows, 1), softmax.device())?;
    Ok(softmax.scatter_add(&targets, &label, 1)?.to_dtype(dtype)?)
}
