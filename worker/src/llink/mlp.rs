//! Linear, GELU, Linear, LayerNorm: what the projector and the slot expander have in common, with the gradient derived by hand.

use candle_core::{DType, Tensor};

use super::matrix::Existing;
use crate::Result;
use crate::models::ops::{
    Normed, RowMasks, gelu_dropout, layer_norm_backward, layer_norm_kept, matmul, matmul_into, multiply, sum_rows_into,
};

/// Names and shapes of the parameters, in the order in which they lie in a flat buffer.
pub(crate) type MlpShapes = [(&'static str, Vec<usize>); 6];

/// The views of a flat gradient that the backward pass finds one after the other: by the second Linear and the LayerNorm, then by the first
/// Linear, which stands before them.
pub(crate) fn halves(shapes: &MlpShapes, gradient: &Tensor) -> Result<[Tensor; 2]> {
    let count = |shapes: &[(&str, Vec<usize>)]| -> usize {
        let counts = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>());
        counts.sum()
    };
    let (first, second) = (count(&shapes[..2]), count(&shapes[2..]));
    Ok([gradient.narrow(0, first, second)?, gradient.narrow(0, 0, first)?])
}

/// The parameters, those of the Linears in the dtype of the products. An output row of the second Linear is K rows of `d` numbers,
/// each of which the LayerNorm takes for itself.
pub(crate) struct Mlp {
    up: Tensor,        // [h, i]
    up_bias: Tensor,   // [h]
    down: Tensor,      // [K·d, h]
    down_bias: Tensor, // [K·d]
    norm: Tensor,      // [d], f32
    norm_bias: Tensor, // [d], f32
}

/// What the forward pass of b rows leaves for the backward pass.
pub(crate) struct MlpTape {
    input: Tensor,  // [b, i]
    slope: Tensor,  // [b, h] the derivative of `hidden` by what went into the GELU
    hidden: Tensor, // [b, h] after GELU and dropout
    normed: Normed, // [b·K, d]
    /// [b·K, d] in f32.
    pub(crate) output: Tensor,
}

impl Mlp {
    /// Of a flat buffer [n] in f32; products are in `dtype`. Where that is f32 nothing is copied.
    pub(crate) fn new(shapes: &MlpShapes, parameters: &Tensor, dtype: DType) -> Result<Self> {
        let mut start = 0;
        let mut next = |index: usize, dtype: DType| {
            let shape = shapes[index].1.as_slice();
            let count: usize = shape.iter().product();
            start += count;
            parameters
                .narrow(0, start - count, count)?
                .reshape(shape)?
                .to_dtype(dtype)
        };
        Ok(Self {
            up: next(0, dtype)?,
            up_bias: next(1, dtype)?,
            down: next(2, dtype)?,
            down_bias: next(3, dtype)?,
            norm: next(4, DType::F32)?,
            norm_bias: next(5, DType::F32)?,
        })
    }

    /// x [b, i] in f32 → [b·K, d] in f32. Training may mask what the GELU gives, row by row.
    pub(crate) fn forward(&self, x: &Tensor, masks: Option<&RowMasks>) -> Result<MlpTape> {
        let input = x.to_dtype(self.up.dtype())?;
        let before = matmul(&input, &self.up.t()?)?; // [b, h]
        let (hidden, slope) = gelu_dropout(before, &self.up_bias, masks)?;
        let out = matmul(&hidden, &self.down.t()?)?; // [b, K·d]
        let (output, normed) = layer_norm_kept(out, &self.down_bias, &self.norm, &self.norm_bias)?;
        Ok(MlpTape {
            input,
            slope,
            hidden,
            normed,
            output,
        })
    }

    /// From the gradient by the output [b·K, d] to that by the parameters, which is written to the [`halves`] of a gradient, and by the
    /// input [b, i], in f32. `ready` is given each of them as soon as it is whole. Takes `grad` over.
    pub(crate) fn backward(
        &self,
        tape: &MlpTape,
        grad: Tensor,
        [down, up]: &[Tensor; 2],
        ready: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let grad = self.backward_down(tape, grad, down, Existing::Overwritten)?;
        ready(down)?;
        let grad = self.backward_up(tape, &grad, up, Existing::Overwritten)?;
        ready(up)?;
        Ok(matmul(&grad, &self.up)?.to_dtype(DType::F32)?)
    }

    /// From the gradient by the output [b·K, d] to that by the first of [`halves`], which is written there, or added. Returns the
    /// gradient by the second Linear's output [b, K·d], with which [`Mlp::backward_up`] goes on. Takes `grad` over.
    pub(crate) fn backward_down(
        &self,
        tape: &MlpTape,
        grad: Tensor,
        gradient: &Tensor,
        existing: Existing,
    ) -> Result<Tensor> {
        let (outputs, hidden) = self.down.dims2()?;
        let width = self.norm.elem_count();
        let bias = outputs * hidden;
        let norm = bias + outputs;
        let normalized = &tape.normed.normalized;
        sum_rows_into(&gradient.narrow(0, norm, width)?, &grad, Some(normalized), existing)?;
        sum_rows_into(&gradient.narrow(0, norm + width, width)?, &grad, None, existing)?;
        let grad = layer_norm_backward(grad, &tape.normed, &self.norm)?.reshape(((), outputs))?;
        sum_rows_into(&gradient.narrow(0, bias, outputs)?, &grad, None, existing)?;
        let grad = grad.to_dtype(self.down.dtype())?;
        matmul_into(&gradient.narrow(0, 0, bias)?, &grad.t()?, &tape.hidden, existing)?;
        Ok(grad)
    }

    /// The gradient by the second of [`halves`], which is written there, or added. Returns that by the first Linear's output [b, h].
    pub(crate) fn backward_up(
        &self,
        tape: &MlpTape,
        grad: &Tensor,
        gradient: &Tensor,
        existing: Existing,
    ) -> Result<Tensor> {
        let (hidden, inputs) = self.up.dims2()?;
        let grad = multiply(matmul(grad, &self.down)?, &tape.slope)?;
        sum_rows_into(&gradient.narrow(0, hidden * inputs, hidden)?, &grad, None, existing)?;
        matmul_into(
            &gradient.narrow(0, 0, hidden * inputs)?,
            &grad.t()?,
            &tape.input,
            existing,
        )?;
        Ok(grad)
    }
}
