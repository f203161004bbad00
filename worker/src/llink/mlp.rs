//! Linear, GELU, Linear, LayerNorm: what the projector and the slot expander have in common, with the gradient derived by hand.

use candle_core::{DType, Device, Tensor};

use super::rows::{gelu_with_slope, standardized, through_standardization};
use crate::Result;

/// Names and shapes of the parameters, in the order in which they lie in a flat buffer.
pub(crate) type MlpShapes = [(&'static str, Vec<usize>); 6];

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

/// What the forward pass leaves for the backward pass.
pub(crate) struct MlpTape {
    input: Tensor,        // [b, i]
    slope: Tensor,        // [b, h] the derivative of GELU
    hidden: Tensor,       // [b, h] after GELU
    standardized: Tensor, // [b·K, d] f32
    inverse: Tensor,      // [b·K, 1] one over the deviation, f32
}

/// Gradients by the parameters, f32.
pub(crate) struct MlpGradient {
    /// By weight and bias of the second Linear, then by those of the LayerNorm.
    pub(crate) down: [Tensor; 4],
    /// By weight and bias of the first Linear.
    pub(crate) up: [Tensor; 2],
}

impl MlpGradient {
    /// That of a rank without rows.
    pub(crate) fn zeros(shapes: &MlpShapes, device: &Device) -> Result<Self> {
        let zeros = |index: usize| Tensor::zeros(shapes[index].1.as_slice(), DType::F32, device);
        Ok(Self {
            down: [zeros(2)?, zeros(3)?, zeros(4)?, zeros(5)?],
            up: [zeros(0)?, zeros(1)?],
        })
    }

    /// In the order in which [`Mlp::backward`] finds them.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &Tensor> {
        self.down.iter().chain(&self.up)
    }

    /// In the order of the flat buffer.
    pub(crate) fn pieces(self) -> Vec<Tensor> {
        self.up.into_iter().chain(self.down).collect()
    }
}

impl Mlp {
    /// Of a flat buffer [n] in f32; products are in `dtype`.
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

    /// x [b, i] in f32 → [b·K, d] in f32.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<(Tensor, MlpTape)> {
        let input = x.to_dtype(self.up.dtype())?;
        let before = input.matmul(&self.up.t()?)?.broadcast_add(&self.up_bias)?; // [b, h]
        let (hidden, slope) = gelu_with_slope(&before)?;
        let out = hidden.matmul(&self.down.t()?)?.broadcast_add(&self.down_bias)?; // [b, K·d]
        let rows = out.to_dtype(DType::F32)?.reshape(((), self.norm.dim(0)?))?;
        let (standardized, inverse) = standardized(&rows)?;
        let y = standardized.broadcast_mul(&self.norm)?.broadcast_add(&self.norm_bias)?;
        let tape = MlpTape {
            input,
            slope,
            hidden,
            standardized,
            inverse,
        };
        Ok((y, tape))
    }

    /// From the gradient by the output [b·K, d] to those by the parameters and by the input [b, i], in f32. `ready` is given each of
    /// [`MlpGradient::down`] and then of [`MlpGradient::up`] as soon as it is whole.
    pub(crate) fn backward(
        &self,
        tape: &MlpTape,
        grad: &Tensor,
        ready: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<(MlpGradient, Tensor)> {
        let (batch, dtype) = (tape.input.dim(0)?, self.up.dtype());
        let grad_norm = (grad * &tape.standardized)?.sum(0)?;
        let grad_norm_bias = grad.sum(0)?;
        let grad = through_standardization(&grad.broadcast_mul(&self.norm)?, &tape.standardized, &tape.inverse)?;
        let grad = grad.reshape((batch, ()))?; // [b, K·d]
        let grad_down_bias = grad.sum(0)?;
        let grad = grad.to_dtype(dtype)?;
        let grad_down = grad.t()?.matmul(&tape.hidden)?.to_dtype(DType::F32)?;
        let down = [grad_down, grad_down_bias, grad_norm, grad_norm_bias];
        down.iter().try_for_each(&mut *ready)?;

        let grad = (grad.matmul(&self.down)? * &tape.slope)?; // [b, h]
        let grad_up = grad.t()?.matmul(&tape.input)?.to_dtype(DType::F32)?;
        let grad_up_bias = grad.to_dtype(DType::F32)?.sum(0)?;
        let up = [grad_up, grad_up_bias];
        up.iter().try_for_each(&mut *ready)?;
        let grad_input = grad.matmul(&self.up)?.to_dtype(DType::F32)?;
        Ok((MlpGradient { down, up }, grad_input))
    }
}
