//! The projector, which maps encoder vectors into the decoder's hidden space.
//!
//! Its layers are Linear `d_e → h`, GELU (erf), dropout, Linear `h → d`, LayerNorm (eps 1e-5). All parameters lie in
//! one flat buffer, in the order of [`ProjectorShape::tensors`]. Gradients are therefore reduced, clipped and applied
//! in one pass each.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use super::mlp::Mlp;
use super::parameters::{self, split_mut};
use crate::numerics::random::{fill_uniform, key};
use crate::numerics::tensor_file::{self, Tensor, TensorFile};
use crate::{Error, Result};

/// The number of rows that are projected together when there is no backward pass.
const PROJECT_ROWS: usize = 1024;

/// The widths of a projector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectorShape {
    /// The encoder's width, `d_e`.
    pub input: usize,
    /// The hidden width, `h`. The default is four times the encoder's width.
    pub hidden: usize,
    /// The decoder's width, `d`.
    pub output: usize,
}

/// A projector with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Projector {
    shape: ProjectorShape,
    /// The parameters, in the order of [`ProjectorShape::tensors`].
    pub parameters: Vec<f32>,
}

impl ProjectorShape {
    /// Returns the names and shapes of the parameters, in the order of the flat buffer. Weights are
    /// `[outputs, inputs]`, as in PyTorch.
    pub fn tensors(&self) -> [(&'static str, Vec<usize>); 6] {
        [
            ("up.weight", vec![self.hidden, self.input]),
            ("up.bias", vec![self.hidden]),
            ("down.weight", vec![self.output, self.hidden]),
            ("down.bias", vec![self.output]),
            ("norm.weight", vec![self.output]),
            ("norm.bias", vec![self.output]),
        ]
    }

    /// Returns the position of each parameter in the flat buffer.
    pub fn ranges(&self) -> [Range<usize>; 6] {
        parameters::ranges(&self.tensors())
    }

    /// Returns the number of parameters.
    pub fn parameter_count(&self) -> usize {
        parameters::count(&self.tensors())
    }
}

impl Projector {
    /// Initializes a projector as PyTorch does: Linears are uniform within ±1/√inputs, and the LayerNorm is ones and
    /// zeros.
    pub fn new(shape: ProjectorShape, seed: u64) -> Self {
        let mut parameters = vec![0.0; shape.parameter_count()];
        let ranges = shape.ranges();
        for (tensor, inputs) in [(0, shape.input), (1, shape.input), (2, shape.hidden), (3, shape.hidden)] {
            fill_uniform(&mut parameters[ranges[tensor].clone()], inputs, key(&[seed, tensor as u64]));
        }
        parameters[ranges[4].clone()].fill(1.0);
        Self { shape, parameters }
    }

    /// Returns a projector with these parameters, in the order of [`ProjectorShape::tensors`].
    ///
    /// # Panics
    /// When the number of parameters does not match the shape.
    pub fn from_parameters(shape: ProjectorShape, parameters: Vec<f32>) -> Self {
        assert_eq!(parameters.len(), shape.parameter_count(), "a projector's parameters");
        Self { shape, parameters }
    }

    /// Returns the projector that maps x as this one maps (x − mean) / deviation. Mean and deviation are `[d_e]`.
    #[must_use]
    pub fn folded(&self, mean: &[f32], deviation: &[f32]) -> Self {
        let mut folded = self.clone();
        let [up, up_bias, ..] = split_mut(&self.shape.tensors(), &mut folded.parameters);
        for (row, bias) in up.chunks_exact_mut(self.shape.input).zip(up_bias) {
            let mut shift = 0.0_f64;
            for ((weight, mean), deviation) in row.iter_mut().zip(mean).zip(deviation) {
                let scaled = f64::from(*weight) / f64::from(*deviation);
                shift += scaled * f64::from(*mean);
                *weight = scaled as f32;
            }
            *bias = (f64::from(*bias) - shift) as f32;
        }
        folded
    }

    /// Returns the parameters as tensors of a file. Their names begin with `prefix`.
    pub fn tensors(&self, prefix: &str) -> Vec<Tensor<'_>> {
        parameters::tensors(&self.shape.tensors(), &self.parameters, prefix)
    }

    /// Reads a projector from the tensors of a file whose names begin with `prefix`. The file decides the widths.
    ///
    /// # Errors
    /// [`Error::Model`] when a tensor is missing, or its shape does not match the others.
    pub fn from_tensors(file: &TensorFile<'_>, prefix: &str) -> Result<Self> {
        let shape = |name: &str| file.f32(&format!("{prefix}{name}")).map(|(shape, _)| shape);
        let (up, down) = (shape("up.weight")?, shape("down.weight")?);
        let (&[hidden, input], &[output, _]) = (&up[..], &down[..]) else {
            return Err(file.error(format!("{prefix}up.weight and {prefix}down.weight must be matrices")));
        };
        let shape = ProjectorShape { input, hidden, output };
        let parameters = parameters::read(&shape.tensors(), file, prefix)?;
        Ok(Self { shape, parameters })
    }

    /// Returns a safetensors file of the projector with `metadata`.
    pub fn to_safetensors(&self, metadata: HashMap<String, String>) -> Result<Vec<u8>> {
        tensor_file::write(&self.tensors(""), metadata)
    }

    /// Reads a projector from the safetensors file `name` with content `bytes`.
    ///
    /// # Errors
    /// [`Error::Model`] when the content is not such a file or holds no projector.
    pub fn from_safetensors(name: &str, bytes: &[u8]) -> Result<Self> {
        Self::from_tensors(&TensorFile::new(name, bytes)?, "")
    }

    /// Returns the widths.
    pub const fn shape(&self) -> ProjectorShape {
        self.shape
    }

    /// Projects rows `[n, d_e]` to `[n, d]` without dropout, as after training.
    ///
    /// # Errors
    /// [`Error::Input`] when `rows` is not whole rows.
    pub fn project(&self, rows: &[f32]) -> Result<Vec<f32>> {
        if !rows.len().is_multiple_of(self.shape.input) {
            let (numbers, width) = (rows.len(), self.shape.input);
            return Err(Error::Input(format!("{numbers} numbers are not whole rows of {width} for the projector")));
        }
        let count = self.parameters.len();
        let parameters = candle_core::Tensor::from_slice(&self.parameters, count, &Device::Cpu)?;
        let mlp = Mlp::new(&self.shape.tensors(), &parameters, DType::F32)?;
        let mut projected = Vec::with_capacity(rows.len() / self.shape.input * self.shape.output);
        for rows in rows.chunks(PROJECT_ROWS * self.shape.input) {
            let shape = (rows.len() / self.shape.input, self.shape.input);
            let tape = mlp.forward(&candle_core::Tensor::from_slice(rows, shape, &Device::Cpu)?, None)?;
            projected.extend(tape.output.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(projected)
    }
}

#[cfg(test)]
mod tests;
