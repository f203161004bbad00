//! The slot expander, which turns one projected vector into K slots for the decoder.
//!
//! u = scale · LN(v), without weights; x = LN(W₂ gelu(W₁ u)) for each slot; slot = m · x / |x|. The norm m is the
//! median norm of the decoder's embeddings, so slots resemble tokens.
//!
//! A text may have W windows, each with a projected vector of its own; W divides K. Then u of window k·W/K, rounded down, is
//! added to x of slot k. There are no further parameters: the expander's own part is a residual.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::mlp::{Mlp, MlpShapes, MlpTape};
use super::parameters;
use crate::numerics::kernels::dot;
use crate::numerics::random::{fill_uniform, key};
use crate::numerics::tensor_file::{self, TensorFile};
use crate::ops::{Normed, UnitRows, standardized};
use crate::{Error, Result};

/// The key of the median norm in a file.
const MEDIAN_NORM: &str = "median_norm";

/// The widths of a slot expander.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotExpanderShape {
    /// The decoder's width, `d`.
    pub width: usize,
    /// The hidden width, `h`. The default is twice the decoder's width.
    pub hidden: usize,
    /// The number of slots, K.
    pub slots: usize,
}

/// A slot expander with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotExpander {
    shape: SlotExpanderShape,
    median_norm: f32,
    /// The parameters, in the order of [`SlotExpanderShape::tensors`].
    pub parameters: Vec<f32>,
}

impl SlotExpanderShape {
    /// Returns the names and shapes of the parameters, in the order of the flat buffer. `scale` is the first value and
    /// has its own learning rate.
    pub fn tensors(&self) -> [(&'static str, Vec<usize>); 7] {
        let outputs = self.slots * self.width;
        [
            ("scale", vec![]),
            ("up.weight", vec![self.hidden, self.width]),
            ("up.bias", vec![self.hidden]),
            ("down.weight", vec![outputs, self.hidden]),
            ("down.bias", vec![outputs]),
            ("norm.weight", vec![self.width]),
            ("norm.bias", vec![self.width]),
        ]
    }

    /// Returns the position of each parameter in the flat buffer.
    pub fn ranges(&self) -> [Range<usize>; 7] {
        parameters::ranges(&self.tensors())
    }

    /// Returns the shapes of all parameters but the scale.
    pub(crate) fn mlp(&self) -> MlpShapes {
        let [_, up, up_bias, down, down_bias, norm, norm_bias] = self.tensors();
        [up, up_bias, down, down_bias, norm, norm_bias]
    }

    /// Returns the number of parameters.
    pub fn parameter_count(&self) -> usize {
        parameters::count(&self.tensors())
    }
}

impl SlotExpander {
    /// Initializes a slot expander as PyTorch does, with a scale of 1.
    pub fn new(shape: SlotExpanderShape, median_norm: f32, seed: u64) -> Self {
        let mut parameters = vec![0.0; shape.parameter_count()];
        let ranges = shape.ranges();
        for (tensor, inputs) in [(1, shape.width), (2, shape.width), (3, shape.hidden), (4, shape.hidden)] {
            fill_uniform(&mut parameters[ranges[tensor].clone()], inputs, key(&[seed, tensor as u64]));
        }
        parameters[ranges[0].clone()].fill(1.0);
        parameters[ranges[5].clone()].fill(1.0);
        Self { shape, median_norm, parameters }
    }

    /// Returns the parameters as tensors of a file. Their names begin with `prefix`.
    pub fn tensors(&self, prefix: &str) -> Vec<tensor_file::Tensor<'_>> {
        parameters::tensors(&self.shape.tensors(), &self.parameters, prefix)
    }

    /// Reads a slot expander from the tensors of a file whose names begin with `prefix`. The file decides the widths.
    ///
    /// # Errors
    /// [`Error::Model`] when a tensor is missing, or its shape does not match the others.
    pub fn from_tensors(file: &TensorFile<'_>, prefix: &str, median_norm: f32) -> Result<Self> {
        let shape = |name: &str| file.f32(&format!("{prefix}{name}")).map(|(shape, _)| shape);
        let (up, down) = (shape("up.weight")?, shape("down.weight")?);
        let (&[hidden, width], &[outputs, _]) = (&up[..], &down[..]) else {
            return Err(file.error(format!("{prefix}up.weight and {prefix}down.weight must be matrices")));
        };
        if width == 0 || !outputs.is_multiple_of(width) {
            return Err(file.error(format!("{prefix}down.weight has {outputs} rows, not a multiple of {width}")));
        }
        let shape = SlotExpanderShape { width, hidden, slots: outputs / width };
        let parameters = parameters::read(&shape.tensors(), file, prefix)?;
        Ok(Self { shape, median_norm, parameters })
    }

    /// Returns a safetensors file of the slot expander with the median norm and `metadata`.
    pub fn to_safetensors(&self, mut metadata: HashMap<String, String>) -> Result<Vec<u8>> {
        metadata.insert(MEDIAN_NORM.into(), self.median_norm.to_string());
        tensor_file::write(&self.tensors(""), metadata)
    }

    /// Reads a slot expander from the safetensors file `name` with content `bytes`.
    ///
    /// # Errors
    /// [`Error::Model`] when the content is not such a file or holds no slot expander.
    pub fn from_safetensors(name: &str, bytes: &[u8]) -> Result<Self> {
        let file = TensorFile::new(name, bytes)?;
        let text = file.text(MEDIAN_NORM)?;
        let median_norm = text.parse().map_err(|_| file.error(format!("`{MEDIAN_NORM}` is `{text}`, not a number")))?;
        Self::from_tensors(&file, "", median_norm)
    }

    /// Returns the widths.
    pub const fn shape(&self) -> SlotExpanderShape {
        self.shape
    }

    /// Returns the norm of every slot.
    pub const fn median_norm(&self) -> f32 {
        self.median_norm
    }

    /// Expands projected vectors `[b, 1 + windows, d]` into slots `[b, K, d]` on the CPU. A text's vector comes before
    /// those of its windows.
    ///
    /// # Errors
    /// [`Error::Input`] when the vectors have another width, or the windows do not divide the slots.
    pub fn expand(&self, projected: &[f32], windows: usize) -> Result<Vec<f32>> {
        let width = self.shape.width;
        if !projected.len().is_multiple_of((1 + windows) * width) {
            let (count, each) = (projected.len(), 1 + windows);
            return Err(Error::Input(format!(
                "{count} numbers are not whole projected vectors of {width}, {each} for each text"
            )));
        }
        if projected.is_empty() {
            return Ok(Vec::new());
        }
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        let (scale, others) = self.parameters.split_at(1);
        let (scale, others) = (tensor(scale)?, tensor(others)?);
        let expander = Expansion::new(self.shape, self.median_norm, (&scale, &others), DType::F32)?;
        let tape = expander.forward(&tensor(projected)?.reshape(((), width))?, windows)?;
        Ok(tape.slots.flatten_all()?.to_vec1()?)
    }
}

/// A slot expander on a device, with products in one dtype.
pub(crate) struct Expansion {
    shape: SlotExpanderShape,
    median_norm: f32,
    scale: Tensor, // [1]
    mlp: Mlp,
}

/// The values of the forward pass that the backward pass needs, in f32.
pub(crate) struct ExpansionTape {
    windows: usize, // W
    normed: Normed, // [b·(1 + W), d]
    mlp: MlpTape,
    directions: UnitRows, // [b·K, d]
    /// The slots, [b·K, d].
    pub(crate) slots: Tensor,
}

/// The gradients of the scale and of the projected vectors, in f32.
pub(crate) struct ExpansionGradient {
    pub(crate) scale: Tensor,     // [1]
    pub(crate) projected: Tensor, // [b·(1 + W), d]
}

impl Expansion {
    /// Takes the scale `[1]` and the other parameters `[n]`, both in f32.
    pub(crate) fn new(
        shape: SlotExpanderShape,
        median_norm: f32,
        (scale, others): (&Tensor, &Tensor),
        dtype: DType,
    ) -> Result<Self> {
        Ok(Self { shape, median_norm, scale: scale.clone(), mlp: Mlp::new(&shape.mlp(), others, dtype)? })
    }

    /// Expands projected vectors `[b·(1 + W), d]` in f32, where W is the number of `windows` of a text.
    pub(crate) fn forward(&self, projected: &Tensor, windows: usize) -> Result<ExpansionTape> {
        let SlotExpanderShape { width, slots, .. } = self.shape;
        if windows > 0 && !slots.is_multiple_of(windows) {
            return Err(Error::Input(format!(
                "{slots} slots cannot be shared by {windows} windows: their number must divide that of the slots"
            )));
        }
        let normed = standardized(projected)?;
        let scaled = normed.normalized.broadcast_mul(&self.scale)?;
        let (mlp, rows) = if windows == 0 {
            let mlp = self.mlp.forward(&scaled, None)?;
            let rows = mlp.output.clone();
            (mlp, rows)
        } else {
            let scaled = scaled.reshape(((), 1 + windows, width))?;
            let mlp = self.mlp.forward(&scaled.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?, None)?;
            let of_windows = scaled.narrow(1, 1, windows)?.unsqueeze(2)?; // [b, W, 1, d]
            let output = mlp.output.reshape(((), windows, slots / windows, width))?;
            let rows = output.broadcast_add(&of_windows)?.reshape(((), width))?; // [b·K, d]
            (mlp, rows)
        };
        let directions = UnitRows::of(&rows)?;
        Ok(ExpansionTape { slots: (&directions.unit * f64::from(self.median_norm))?, windows, normed, mlp, directions })
    }

    /// Computes all gradients from the gradient of the slots, `[b·K, d]`.
    ///
    /// The gradient of the parameters beside the scale is written to the [`halves`](super::mlp::halves) of a gradient.
    /// `ready` is called with each gradient once it is complete: as [`Mlp::backward`] does, then with that of the
    /// scale.
    pub(crate) fn backward(
        &self,
        tape: &ExpansionTape,
        grad_slots: &Tensor,
        halves: &[Tensor; 2],
        ready: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<ExpansionGradient> {
        let SlotExpanderShape { width, slots, .. } = self.shape;
        let windows = tape.windows;
        let grad = tape.directions.backward((grad_slots * f64::from(self.median_norm))?)?;
        let of_windows = match windows {
            0 => None,
            // The sum over the slots of each window, [b, W, d].
            _ => Some(grad.reshape(((), windows, slots / windows, width))?.sum(2)?),
        };
        let mut grad = self.mlp.backward(&tape.mlp, grad, halves, ready)?;
        if let Some(of_windows) = of_windows {
            grad = Tensor::cat(&[grad.unsqueeze(1)?, of_windows], 1)?.reshape(((), width))?;
        }
        let scale = (&grad * &tape.normed.normalized)?.sum_all()?.reshape(1)?;
        ready(&scale)?;
        let projected = tape.normed.backward(&grad.broadcast_mul(&self.scale)?)?;
        Ok(ExpansionGradient { scale, projected })
    }
}

/// Returns the lower median of the norms of an embedding's rows (`[V, width]`), as `torch.median` does.
///
/// # Errors
/// [`Error::Input`] when there are no rows.
pub fn median_embedding_norm(embedding: &[f32], width: usize) -> Result<f32> {
    let mut norms: Vec<f32> = embedding.par_chunks_exact(width.max(1)).map(|row| dot(row, row).sqrt()).collect();
    if norms.is_empty() {
        return Err(Error::Input("an embedding without rows has no median norm".into()));
    }
    let middle = (norms.len() - 1) / 2;
    Ok(*norms.select_nth_unstable_by(middle, f32::total_cmp).1)
}

#[cfg(test)]
mod tests;
