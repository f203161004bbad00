//! The layers that the projector and the slot expander share: Linear, GELU, Linear, LayerNorm. Their gradient is
//! derived by hand.

use candle_core::{DType, Tensor};

use super::parameters::{Shapes, count, ranges};
use crate::Result;
use crate::numerics::matrix::Existing;
use crate::ops::{
    Normed, RowMasks, gelu_dropout, layer_norm_backward, layer_norm_kept, matmul, matmul_into, multiply, sum_rows_into,
};

/// The names and shapes of the parameters, in the order of the flat buffer.
pub(crate) type MlpShapes = Shapes<6>;

/// Splits a flat gradient into the two views that the backward pass fills one after the other. The first has the second
/// Linear and the LayerNorm; the second has the first Linear.
pub(crate) fn halves(shapes: &MlpShapes, gradient: &Tensor) -> Result<[Tensor; 2]> {
    let first = ranges(shapes)[2].start;
    Ok([gradient.narrow(0, first, count(shapes) - first)?, gradient.narrow(0, 0, first)?])
}

/// The parameters. The Linears are in the dtype of the products. An output row of the second Linear is K rows of `d`
/// values, and the LayerNorm normalizes each.
pub(crate) struct Mlp {
    up: Tensor,        // [h, i]
    up_bias: Tensor,   // [h]
    down: Tensor,      // [K·d, h]
    down_bias: Tensor, // [K·d]
    norm: Tensor,      // [d], f32
    norm_bias: Tensor, // [d], f32
}

/// The values of the forward pass of b rows that the backward pass needs.
pub(crate) struct MlpTape {
    input: Tensor,  // [b, i]
    slope: Tensor,  // [b, h], the derivative of the GELU and dropout
    hidden: Tensor, // [b, h], after the GELU and dropout
    normed: Normed, // [b·K, d]
    /// The output in f32, `[b·K, d]`.
    pub(crate) output: Tensor,
}

impl Mlp {
    /// Reads the parameters from a flat buffer `[n]` in f32. Products are computed in `dtype`, and f32 parameters are
    /// not copied.
    pub(crate) fn new(shapes: &MlpShapes, parameters: &Tensor, dtype: DType) -> Result<Self> {
        let ranges = ranges(shapes);
        let part = |index: usize, dtype: DType| {
            let (range, shape) = (&ranges[index], shapes[index].1.as_slice());
            parameters.narrow(0, range.start, range.len())?.reshape(shape)?.to_dtype(dtype)
        };
        Ok(Self {
            up: part(0, dtype)?,
            up_bias: part(1, dtype)?,
            down: part(2, dtype)?,
            down_bias: part(3, dtype)?,
            norm: part(4, DType::F32)?,
            norm_bias: part(5, DType::F32)?,
        })
    }

    /// Maps x `[b, i]` in f32 to `[b·K, d]` in f32. `masks` apply dropout to the output of the GELU, row by row.
    pub(crate) fn forward(&self, x: &Tensor, masks: Option<&RowMasks>) -> Result<MlpTape> {
        let input = x.to_dtype(self.up.dtype())?;
        let before = matmul(&input, &self.up.t()?)?; // [b, h]
        let (hidden, slope) = gelu_dropout(before, &self.up_bias, masks)?;
        let out = matmul(&hidden, &self.down.t()?)?; // [b, K·d]
        let (output, normed) = layer_norm_kept(out, &self.down_bias, &self.norm, &self.norm_bias)?;
        Ok(MlpTape { input, slope, hidden, normed, output })
    }

    /// Computes the gradients of the parameters and of the input `[b, i]`, in f32, from the gradient of the output
    /// `[b·K, d]`.
    ///
    /// The parameters' gradient is written to the [`halves`] of a gradient. `ready` is called with each half once it is
    /// complete. `grad` is consumed.
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

    /// Writes or adds the gradient of the first of the [`halves`], given the gradient of the output `[b·K, d]`.
    ///
    /// Returns the gradient of the second Linear's output `[b, K·d]`, which [`Mlp::backward_up`] takes. `grad` is
    /// consumed.
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

    /// Writes or adds the gradient of the second of the [`halves`]. Returns the gradient of the first Linear's output,
    /// `[b, h]`.
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
        matmul_into(&gradient.narrow(0, 0, hidden * inputs)?, &grad.t()?, &tape.input, existing)?;
        Ok(grad)
    }
}
