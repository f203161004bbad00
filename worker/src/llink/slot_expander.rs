//! The slot expander: one projected vector into K soft tokens for the decoder.
//!
//! u = scale · LN(v) (no weights); x = LN(W₂ gelu(W₁ u)) for each slot; slot = m · x / |x|, where m is the median norm of the
//! decoder's embeddings, so that slots look to the decoder like tokens.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use super::align_losses::through_normalization;
use super::kernels::{dot, multiply, normalize, rows_per_task};
use super::layers::{activate, layer_norm, layer_norm_backward, standardize, sum_columns};
use super::matrix::{Matrix, Target, matmul};
use super::parameters::{self, initialize_linear, split, split_mut};
use crate::train::random::key;
use crate::train::tensor_file::{self, Tensor, TensorFile};
use crate::{Error, Result};

/// The key under which a file keeps the median norm.
const MEDIAN_NORM: &str = "median_norm";

/// Widths of a slot expander.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotExpanderShape {
    /// `d`, the decoder's width.
    pub width: usize,
    /// `h`, twice the decoder's width by default.
    pub hidden: usize,
    /// K.
    pub slots: usize,
}

/// A slot expander with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotExpander {
    shape: SlotExpanderShape,
    median_norm: f32,
    /// As [`SlotExpanderShape::tensors`] lists them, one after another.
    pub parameters: Vec<f32>,
}

/// What a forward pass leaves for the backward pass. Kept from step to step, so that nothing is allocated anew.
#[derive(Debug, Default)]
pub struct ExpanderActivations {
    /// LN(v), `[b, d]`.
    standardized: Vec<f32>,
    /// One over the deviation of v, `[b]`.
    input_inverse: Vec<f32>,
    /// u, `[b, d]`.
    scaled: Vec<f32>,
    /// After GELU, `[b, h]`.
    hidden: Vec<f32>,
    /// The derivative of `hidden` by what went into the GELU, `[b, h]`.
    slope: Vec<f32>,
    /// The LayerNorm's input less its mean, over its deviation, `[b · K, d]`.
    normalized: Vec<f32>,
    /// One over the deviation, `[b · K]`.
    inverse_deviation: Vec<f32>,
    /// x / |x|, `[b · K, d]`.
    directions: Vec<f32>,
    /// |x|, `[b · K]`.
    norms: Vec<f32>,
    /// The slots, `[b, K, d]`.
    pub slots: Vec<f32>,
}

impl SlotExpanderShape {
    /// Names and shapes of the parameters, in the order in which they lie in the flat buffer. `scale` is the first number: its
    /// learning rate is its own.
    #[must_use]
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

    /// Where each parameter lies in the flat buffer.
    #[must_use]
    pub fn ranges(&self) -> [Range<usize>; 7] {
        parameters::ranges(&self.tensors())
    }

    /// How many of the parameters are the scale's and the first Linear's: they come first.
    #[must_use]
    pub fn first_linear(&self) -> usize {
        parameters::count(&self.first_half())
    }

    fn first_half(&self) -> [(&'static str, Vec<usize>); 3] {
        let [scale, up, up_bias, ..] = self.tensors();
        [scale, up, up_bias]
    }

    fn second_half(&self) -> [(&'static str, Vec<usize>); 4] {
        let [_, _, _, down, down_bias, norm, norm_bias] = self.tensors();
        [down, down_bias, norm, norm_bias]
    }

    /// How many parameters there are.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        parameters::count(&self.tensors())
    }
}

impl SlotExpander {
    /// As PyTorch starts its layers, and a scale of 1.
    #[must_use]
    pub fn new(shape: SlotExpanderShape, median_norm: f32, seed: u64) -> Self {
        let mut parameters = vec![0.0; shape.parameter_count()];
        let ranges = shape.ranges();
        for (tensor, inputs) in [(1, shape.width), (2, shape.width), (3, shape.hidden), (4, shape.hidden)] {
            initialize_linear(
                &mut parameters[ranges[tensor].clone()],
                inputs,
                key(&[seed, tensor as u64]),
            );
        }
        parameters[ranges[0].clone()].fill(1.0);
        parameters[ranges[5].clone()].fill(1.0);
        Self {
            shape,
            median_norm,
            parameters,
        }
    }

    /// The parameters as tensors of a file, their names after `prefix`.
    #[must_use]
    pub fn tensors(&self, prefix: &str) -> Vec<Tensor<'_>> {
        parameters::tensors(&self.shape.tensors(), &self.parameters, prefix)
    }

    /// The expander whose tensors a file holds, their names after `prefix`. The file decides the widths.
    ///
    /// # Errors
    /// [`Error::Model`] when a tensor is missing, or has a shape that does not fit the others.
    pub fn from_tensors(file: &TensorFile<'_>, prefix: &str, median_norm: f32) -> Result<Self> {
        let shape = |name: &str| file.f32(&format!("{prefix}{name}")).map(|(shape, _)| shape);
        let (up, down) = (shape("up.weight")?, shape("down.weight")?);
        let (&[hidden, width], &[outputs, _]) = (&up[..], &down[..]) else {
            return Err(file.error(format!("{prefix}up.weight and {prefix}down.weight must be matrices")));
        };
        if width == 0 || !outputs.is_multiple_of(width) {
            return Err(file.error(format!(
                "{prefix}down.weight has {outputs} rows, not a multiple of {width}"
            )));
        }
        let shape = SlotExpanderShape {
            width,
            hidden,
            slots: outputs / width,
        };
        let parameters = parameters::read(&shape.tensors(), file, prefix)?;
        Ok(Self {
            shape,
            median_norm,
            parameters,
        })
    }

    /// As a safetensors file, with a few strings beside the median norm.
    ///
    /// # Errors
    /// None that its invariants allow.
    pub fn to_safetensors(&self, mut metadata: HashMap<String, String>) -> Result<Vec<u8>> {
        metadata.insert(MEDIAN_NORM.into(), self.median_norm.to_string());
        tensor_file::write(&self.tensors(""), metadata)
    }

    /// From the safetensors file `name`, whose content is `bytes`.
    ///
    /// # Errors
    /// [`Error::Model`] when it is no such file or holds no slot expander.
    pub fn from_safetensors(name: &str, bytes: &[u8]) -> Result<Self> {
        let file = TensorFile::new(name, bytes)?;
        let text = file.text(MEDIAN_NORM)?;
        let median_norm = text
            .parse()
            .map_err(|_| file.error(format!("`{MEDIAN_NORM}` is `{text}`, not a number")))?;
        Self::from_tensors(&file, "", median_norm)
    }

    /// Its widths.
    #[must_use]
    pub const fn shape(&self) -> SlotExpanderShape {
        self.shape
    }

    /// The norm of every slot.
    #[must_use]
    pub const fn median_norm(&self) -> f32 {
        self.median_norm
    }

    /// Expands projected vectors `[b, d]` into slots `[b, K, d]`, which are left in `activations`.
    pub fn forward(&self, projected: &[f32], activations: &mut ExpanderActivations) {
        let SlotExpanderShape {
            width: d,
            hidden: h,
            slots: k,
        } = self.shape;
        let [scale, up, up_bias, down, down_bias, norm, norm_bias] = split(&self.shape.tensors(), &self.parameters);
        let (b, outputs) = (projected.len() / d, k * d);
        let ExpanderActivations {
            standardized,
            input_inverse,
            scaled,
            hidden,
            slope,
            normalized,
            ..
        } = activations;
        standardized.clear();
        standardized.extend_from_slice(projected);
        input_inverse.clear();
        input_inverse.extend(standardized.chunks_exact_mut(d).map(standardize));
        scaled.clear();
        scaled.extend(standardized.iter().map(|x| scale[0] * x));
        hidden.resize(b * h, 0.0);
        slope.resize(b * h, 0.0);
        normalized.resize(b * outputs, 0.0);

        // [b, d] · [d, h]
        matmul(
            Matrix::new(scaled, b, d),
            Matrix::new(up, h, d).transposed(),
            Target::new(slope, h),
        );
        let block = rows_per_task(b, h) * h;
        hidden
            .par_chunks_mut(block)
            .zip(slope.par_chunks_mut(block))
            .for_each(|(hidden, slope)| {
                let rows = hidden.chunks_exact_mut(h).zip(slope.chunks_exact_mut(h));
                rows.for_each(|(hidden, slope)| activate(hidden, slope, up_bias, None));
            });

        // [b, h] · [h, K d], whose rows are K slots each
        let down = Matrix::new(down, outputs, h).transposed();
        matmul(Matrix::new(hidden, b, h), down, Target::new(normalized, outputs));
        let ExpanderActivations {
            normalized,
            inverse_deviation,
            directions,
            norms,
            slots,
            ..
        } = activations;
        inverse_deviation.resize(b * k, 0.0);
        norms.resize(b * k, 0.0);
        directions.resize(b * outputs, 0.0);
        slots.resize(b * outputs, 0.0);
        let rows = normalized
            .par_chunks_mut(d)
            .zip(slots.par_chunks_mut(d))
            .zip(directions.par_chunks_mut(d));
        let numbers = inverse_deviation.par_iter_mut().zip(norms.par_iter_mut());
        rows.zip(numbers)
            .enumerate()
            .for_each(|(row, (((x, slot), direction), (inverse, length)))| {
                let bias = &down_bias[row % k * d..][..d];
                *inverse = layer_norm(x, slot, bias, norm, norm_bias);
                *length = normalize(slot, direction);
                slot.iter_mut()
                    .zip(direction)
                    .for_each(|(slot, x)| *slot = self.median_norm * *x);
            });
    }

    /// From the gradient by the slots (`[b, K, d]`, overwritten) to that by the parameters, which replaces `gradient`. The projected
    /// vectors come from a frozen projector and get none.
    pub fn backward(&self, activations: &mut ExpanderActivations, by_slots: &mut [f32], gradient: &mut [f32]) {
        let (up, down) = gradient.split_at_mut(self.shape.first_linear());
        self.backward_down(activations, by_slots, down);
        self.backward_up(activations, by_slots, up);
    }

    /// The first half: the gradient by the LayerNorm and the second Linear, which lie from
    /// [`SlotExpanderShape::first_linear`] on. Leaves in `by_slots` what [`SlotExpander::backward_up`] goes on with.
    pub fn backward_down(&self, activations: &mut ExpanderActivations, by_slots: &mut [f32], gradient: &mut [f32]) {
        let SlotExpanderShape {
            width: d,
            hidden: h,
            slots: k,
        } = self.shape;
        let [_, _, _, _, _, norm, _] = split(&self.shape.tensors(), &self.parameters);
        let [by_down, by_down_bias, by_norm, by_norm_bias] = split_mut(&self.shape.second_half(), gradient);
        let (b, outputs) = (by_slots.len() / (k * d), k * d);
        let ExpanderActivations {
            hidden,
            normalized,
            inverse_deviation,
            directions,
            norms,
            ..
        } = activations;

        let rows = by_slots
            .par_chunks_mut(d)
            .zip(directions.par_chunks(d))
            .zip(norms.par_iter());
        rows.for_each(|((by, direction), norm)| {
            by.iter_mut().for_each(|x| *x *= self.median_norm);
            through_normalization(by, direction, 1.0 / norm.max(1e-12));
        });
        sum_columns(by_slots, Some(normalized), by_norm);
        sum_columns(by_slots, None, by_norm_bias);
        let rows = by_slots
            .par_chunks_mut(d)
            .zip(normalized.par_chunks(d))
            .zip(inverse_deviation.par_iter());
        rows.for_each(|((by, x), inverse)| layer_norm_backward(by, x, norm, *inverse));

        sum_columns(by_slots, None, by_down_bias);
        // [K d, b] · [b, h]
        matmul(
            Matrix::new(by_slots, b, outputs).transposed(),
            Matrix::new(hidden, b, h),
            Target::new(by_down, h),
        );
    }

    /// The second half: the gradient by the scale and the first Linear, which lie before
    /// [`SlotExpanderShape::first_linear`].
    pub fn backward_up(&self, activations: &mut ExpanderActivations, by_output: &[f32], gradient: &mut [f32]) {
        let SlotExpanderShape {
            width: d,
            hidden: h,
            slots: k,
        } = self.shape;
        let [_, up, _, down, _, _, _] = split(&self.shape.tensors(), &self.parameters);
        let [by_scale, by_up, by_up_bias] = split_mut(&self.shape.first_half(), gradient);
        let (b, outputs) = (by_output.len() / (k * d), k * d);
        let ExpanderActivations {
            standardized,
            scaled,
            hidden,
            slope,
            ..
        } = activations;
        // [b, K d] · [K d, h], into the place of the activations that are no longer needed
        matmul(
            Matrix::new(by_output, b, outputs),
            Matrix::new(down, outputs, h),
            Target::new(hidden, h),
        );
        multiply(hidden, slope);
        let by_up_output = &*hidden;

        sum_columns(by_up_output, None, by_up_bias);
        // [h, b] · [b, d]
        let by_up_matrix = Matrix::new(by_up_output, b, h);
        matmul(
            by_up_matrix.transposed(),
            Matrix::new(scaled, b, d),
            Target::new(by_up, d),
        );
        // [b, h] · [h, d]
        matmul(by_up_matrix, Matrix::new(up, h, d), Target::new(scaled, d));
        by_scale[0] = dot(scaled, standardized);
    }

    /// After [`SlotExpander::backward_up`]: the gradient by the projected vectors, `[b, d]`.
    pub fn by_projected<'a>(&self, activations: &'a mut ExpanderActivations) -> &'a mut [f32] {
        let d = self.shape.width;
        let scale = vec![self.parameters[0]; d];
        let ExpanderActivations {
            standardized,
            input_inverse,
            scaled,
            ..
        } = activations;
        let rows = scaled.chunks_exact_mut(d).zip(standardized.chunks_exact(d));
        for ((by, x), inverse) in rows.zip(input_inverse) {
            layer_norm_backward(by, x, &scale, *inverse);
        }
        scaled
    }
}

/// The lower median of the norms of an embedding's rows (`[V, width]`), as `torch.median` takes it.
///
/// # Errors
/// [`Error::Input`] when there are no rows.
pub fn median_embedding_norm(embedding: &[f32], width: usize) -> Result<f32> {
    let mut norms: Vec<f32> = embedding
        .par_chunks_exact(width.max(1))
        .map(|row| dot(row, row).sqrt())
        .collect();
    if norms.is_empty() {
        return Err(Error::Input("an embedding without rows has no median norm".into()));
    }
    let middle = (norms.len() - 1) / 2;
    Ok(*norms.select_nth_unstable_by(middle, f32::total_cmp).1)
}

#[cfg(test)]
mod tests;
