//! The projector: encoder vectors into the decoder's hidden space.
//!
//! Linear `d_e → h`, GELU (erf), dropout, Linear `h → d`, LayerNorm (eps 1e-5). All parameters lie in one flat buffer, in the
//! order of [`ProjectorShape::tensors`], so that gradients are reduced, clipped and applied in one pass each.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::kernels::{multiply, rows_per_task};
use super::layers::{activate, layer_norm, layer_norm_backward, sum_columns_into};
use super::matrix::{Existing, Matrix, Target, matmul, multiply_into};
use super::parameters::{self, initialize_linear, split, split_mut};
use crate::train::dropout::Dropout;
use crate::train::random::key;
use crate::train::tensor_file::{self, Tensor, TensorFile};
use crate::{Error, Result};

/// Rows that are projected at once when nothing is kept for a backward pass.
const PROJECT_ROWS: usize = 1024;

/// Widths of a projector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectorShape {
    /// `d_e`, the encoder's width.
    pub input: usize,
    /// `h`, four times the encoder's width by default.
    pub hidden: usize,
    /// `d`, the decoder's width.
    pub output: usize,
}

/// A projector with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Projector {
    shape: ProjectorShape,
    /// As [`ProjectorShape::tensors`] lists them, one after another.
    pub parameters: Vec<f32>,
}

/// What a forward pass leaves for the backward pass. Kept from step to step, so that nothing is allocated anew.
#[derive(Debug, Default)]
pub struct Activations {
    /// After GELU and dropout, `[b, h]`.
    hidden: Vec<f32>,
    /// The derivative of `hidden` by what went into the GELU, `[b, h]`.
    slope: Vec<f32>,
    /// The LayerNorm's input less its mean, over its deviation, `[b, d]`.
    normalized: Vec<f32>,
    /// One over the deviation, `[b]`.
    inverse_deviation: Vec<f32>,
    /// The projected rows, `[b, d]`.
    pub projected: Vec<f32>,
}

impl ProjectorShape {
    /// Names and shapes of the parameters, in the order in which they lie in the flat buffer. Weights are
    /// `[outputs, inputs]`, as PyTorch keeps them.
    #[must_use]
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

    /// Where each parameter lies in the flat buffer.
    #[must_use]
    pub fn ranges(&self) -> [Range<usize>; 6] {
        parameters::ranges(&self.tensors())
    }

    /// How many of the parameters are the first Linear's: they come first.
    #[must_use]
    pub fn first_linear(&self) -> usize {
        parameters::count(&self.first_half())
    }

    fn first_half(&self) -> [(&'static str, Vec<usize>); 2] {
        let [up, up_bias, ..] = self.tensors();
        [up, up_bias]
    }

    fn second_half(&self) -> [(&'static str, Vec<usize>); 4] {
        let [_, _, down, down_bias, norm, norm_bias] = self.tensors();
        [down, down_bias, norm, norm_bias]
    }

    /// How many parameters there are.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        parameters::count(&self.tensors())
    }
}

impl Projector {
    /// PyTorch's default: weights and biases of a Linear uniform within ±1/√inputs, a LayerNorm of ones and zeros.
    #[must_use]
    pub fn new(shape: ProjectorShape, seed: u64) -> Self {
        let mut parameters = vec![0.0; shape.parameter_count()];
        let ranges = shape.ranges();
        for (tensor, inputs) in [(0, shape.input), (1, shape.input), (2, shape.hidden), (3, shape.hidden)] {
            initialize_linear(
                &mut parameters[ranges[tensor].clone()],
                inputs,
                key(&[seed, tensor as u64]),
            );
        }
        parameters[ranges[4].clone()].fill(1.0);
        Self { shape, parameters }
    }

    /// Starts the LayerNorm at the training teachers' deviation and mean of each dimension, `[d]` each.
    ///
    /// A fresh LayerNorm gives vectors of norm √d. Teachers of a middle layer are many times longer, and a whitened loss would see all
    /// projected vectors as one point.
    pub fn start_at(&mut self, deviation: &[f32], mean: &[f32]) {
        let [.., norm, norm_bias] = split_mut(&self.shape.tensors(), &mut self.parameters);
        norm.copy_from_slice(deviation);
        norm_bias.copy_from_slice(mean);
    }

    /// The projector that gives for x what this one gives for (x − mean) / deviation, `[d_e]` each.
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

    /// The parameters as tensors of a file, their names after `prefix`.
    #[must_use]
    pub fn tensors(&self, prefix: &str) -> Vec<Tensor<'_>> {
        parameters::tensors(&self.shape.tensors(), &self.parameters, prefix)
    }

    /// The projector whose tensors a file holds, their names after `prefix`. The file decides the widths.
    ///
    /// # Errors
    /// [`Error::Model`] when a tensor is missing, or has a shape that does not fit the others.
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

    /// As a safetensors file, with a few strings.
    ///
    /// # Errors
    /// None that its invariants allow.
    pub fn to_safetensors(&self, metadata: HashMap<String, String>) -> Result<Vec<u8>> {
        tensor_file::write(&self.tensors(""), metadata)
    }

    /// From the safetensors file `name`, whose content is `bytes`.
    ///
    /// # Errors
    /// [`Error::Model`] when it is no such file or holds no projector.
    pub fn from_safetensors(name: &str, bytes: &[u8]) -> Result<Self> {
        Self::from_tensors(&TensorFile::new(name, bytes)?, "")
    }

    /// Its widths.
    #[must_use]
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
            return Err(Error::Input(format!(
                "{numbers} numbers are not whole rows of {width} for the projector"
            )));
        }
        let mut activations = Activations::default();
        let mut projected = Vec::with_capacity(rows.len() / self.shape.input * self.shape.output);
        for rows in rows.chunks(PROJECT_ROWS * self.shape.input) {
            self.forward(rows, None, &mut activations);
            projected.extend_from_slice(&activations.projected);
        }
        Ok(projected)
    }

    /// Projects rows `[b, d_e]` into `activations`. For training, `dropout` comes with the pair id of each row.
    pub fn forward(&self, rows: &[f32], dropout: Option<(&Dropout, &[u64])>, activations: &mut Activations) {
        let ProjectorShape {
            input,
            hidden: h,
            output: d,
        } = self.shape;
        let [up, up_bias, down, down_bias, norm, norm_bias] = split(&self.shape.tensors(), &self.parameters);
        let b = rows.len() / input;
        let Activations {
            hidden,
            slope,
            normalized,
            inverse_deviation,
            projected,
        } = activations;
        hidden.resize(b * h, 0.0);
        slope.resize(b * h, 0.0);
        normalized.resize(b * d, 0.0);
        inverse_deviation.resize(b, 0.0);
        projected.resize(b * d, 0.0);

        // [b, d_e] · [d_e, h]
        matmul(
            Matrix::new(rows, b, input),
            Matrix::new(up, h, input).transposed(),
            Target::new(slope, h),
        );
        let block = rows_per_task(b, h);
        let blocks = hidden
            .par_chunks_mut(block * h)
            .zip(slope.par_chunks_mut(block * h))
            .enumerate();
        blocks.for_each(|(at, (hidden, slope))| {
            for (row, (hidden, slope)) in hidden.chunks_exact_mut(h).zip(slope.chunks_exact_mut(h)).enumerate() {
                let mask = dropout.map(|(dropout, ids)| dropout.row(ids[at * block + row]));
                activate(hidden, slope, up_bias, mask);
            }
        });

        // [b, h] · [h, d]
        matmul(
            Matrix::new(hidden, b, h),
            Matrix::new(down, d, h).transposed(),
            Target::new(normalized, d),
        );
        let block = rows_per_task(b, d);
        let blocks = normalized
            .par_chunks_mut(block * d)
            .zip(projected.par_chunks_mut(block * d));
        blocks
            .zip(inverse_deviation.par_chunks_mut(block))
            .for_each(|((normalized, projected), inverse_deviation)| {
                let rows = normalized
                    .chunks_exact_mut(d)
                    .zip(projected.chunks_exact_mut(d))
                    .zip(inverse_deviation);
                rows.for_each(|((x, y), inverse)| *inverse = layer_norm(x, y, down_bias, norm, norm_bias));
            });
    }

    /// From the gradient by the projected rows (`[b, d]`, overwritten) to that by the parameters, which replaces `gradient`.
    pub fn backward(
        &self,
        rows: &[f32],
        activations: &mut Activations,
        by_projected: &mut [f32],
        gradient: &mut [f32],
    ) {
        let (up, down) = gradient.split_at_mut(self.shape.first_linear());
        self.backward_down(rows, activations, by_projected, down, Existing::Overwritten);
        self.backward_up(rows, activations, by_projected, up, Existing::Overwritten);
    }

    /// The first half: the gradient by the LayerNorm and the second Linear, which lie from
    /// [`ProjectorShape::first_linear`] on. Leaves in `by_projected` what [`Projector::backward_up`] goes on with.
    pub fn backward_down(
        &self,
        rows: &[f32],
        activations: &mut Activations,
        by_projected: &mut [f32],
        gradient: &mut [f32],
        existing: Existing,
    ) {
        let (h, d) = (self.shape.hidden, self.shape.output);
        let [_, _, _, _, norm, _] = split(&self.shape.tensors(), &self.parameters);
        let b = rows.len() / self.shape.input;
        let Activations {
            hidden,
            normalized,
            inverse_deviation,
            ..
        } = activations;
        let [by_down, by_down_bias, by_norm, by_norm_bias] = split_mut(&self.shape.second_half(), gradient);

        sum_columns_into(by_projected, Some(normalized), by_norm, existing);
        sum_columns_into(by_projected, None, by_norm_bias, existing);
        let block = rows_per_task(b, d);
        let blocks = by_projected
            .par_chunks_mut(block * d)
            .zip(normalized.par_chunks(block * d));
        blocks
            .zip(inverse_deviation.par_chunks(block))
            .for_each(|((by_projected, normalized), inverse_deviation)| {
                let rows = by_projected
                    .chunks_exact_mut(d)
                    .zip(normalized.chunks_exact(d))
                    .zip(inverse_deviation);
                rows.for_each(|((by, x), inverse)| layer_norm_backward(by, x, norm, *inverse));
            });

        sum_columns_into(by_projected, None, by_down_bias, existing);
        // [d, b] · [b, h]
        let by_output = Matrix::new(by_projected, b, d);
        multiply_into(
            by_output.transposed(),
            Matrix::new(hidden, b, h),
            Target::new(by_down, h),
            existing,
            1.0,
        );
    }

    /// The second half: the gradient by the first Linear, which lies before [`ProjectorShape::first_linear`].
    pub fn backward_up(
        &self,
        rows: &[f32],
        activations: &mut Activations,
        by_output: &[f32],
        gradient: &mut [f32],
        existing: Existing,
    ) {
        let ProjectorShape {
            input,
            hidden: h,
            output: d,
        } = self.shape;
        let [_, _, down, _, _, _] = split(&self.shape.tensors(), &self.parameters);
        let b = rows.len() / input;
        let Activations { hidden, slope, .. } = activations;
        let [by_up, by_up_bias] = split_mut(&self.shape.first_half(), gradient);

        // [b, d] · [d, h], into the place of the activations that are no longer needed
        matmul(
            Matrix::new(by_output, b, d),
            Matrix::new(down, d, h),
            Target::new(hidden, h),
        );
        let block = rows_per_task(b, h) * h;
        hidden
            .par_chunks_mut(block)
            .zip(slope.par_chunks(block))
            .for_each(|(by_hidden, slope)| multiply(by_hidden, slope));
        let by_up_output = &*hidden;

        sum_columns_into(by_up_output, None, by_up_bias, existing);
        // [h, b] · [b, d_e]
        multiply_into(
            Matrix::new(by_up_output, b, h).transposed(),
            Matrix::new(rows, b, input),
            Target::new(by_up, input),
            existing,
            1.0,
        );
    }
}

#[cfg(test)]
mod tests;
