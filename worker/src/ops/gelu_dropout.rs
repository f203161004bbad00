//! Bias, GELU and dropout in training, with the derivative that the backward pass multiplies by.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::{RowMasks, edit, fused, values};
use crate::Result;
use crate::numerics::kernels::rows_per_task;
use crate::numerics::layers::activate;

/// Computes GELU (erf) of x + bias `[b, h]` times its masks, and its derivative. It consumes x, whose values nothing
/// else may share.
pub(crate) fn gelu_dropout(x: Tensor, bias: &Tensor, masks: Option<&RowMasks>) -> Result<(Tensor, Tensor)> {
    if !fused(&[&x, bias]) {
        return composed(&x, bias, masks);
    }
    let (rows, width) = x.dims2()?;
    let masks = masks.map(|masks| masks.of_rows(rows)).transpose()?;
    let bias = values(bias)?;
    let mut hidden = vec![0f32; rows * width];
    edit(&x, |slope| {
        let each = hidden.par_chunks_mut(width).zip(slope.par_chunks_mut(width)).enumerate();
        each.with_min_len(rows_per_task(rows, width)).for_each(|(row, (hidden, slope))| {
            activate(hidden, slope, &bias, masks.map(|masks| masks[row]));
        });
    })?;
    Ok((Tensor::from_vec(hidden, (rows, width), x.device())?, x))
}

/// Computes GELU as x·Φ(x) and its derivative as Φ(x) + x·φ(x), both in f32.
fn composed(x: &Tensor, bias: &Tensor, masks: Option<&RowMasks>) -> Result<(Tensor, Tensor)> {
    let x = x.broadcast_add(bias)?;
    let wide = x.to_dtype(DType::F32)?;
    let cumulative = (&wide * std::f64::consts::FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
    let density =
        ((wide.sqr()? * -0.5)?.exp()? * (0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2))?;
    let hidden = (&wide * &cumulative)?.to_dtype(x.dtype())?;
    let slope = (cumulative + (wide * density)?)?.to_dtype(x.dtype())?;
    Ok(match masks {
        Some(masks) => (masks.apply(&hidden)?, masks.apply(&slope)?),
        None => (hidden, slope),
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::super::testing::{random, relative_error, tracked};
    use super::*;
    use crate::numerics::dropout::Dropout;

    #[test]
    fn value_and_derivative_are_those_of_the_graph_under_the_same_masks() {
        let (rows, width) = (70, 257);
        let (x, bias) = (random(rows, width, 1), random(1, width, 2).squeeze(0).unwrap());
        let dropout = Dropout::new(0.3, 5, 9);
        let masks = RowMasks::new((0..rows as u64).map(|row| dropout.row(row)).collect(), &Device::Cpu).unwrap();
        for masks in [None, Some(&masks)] {
            let var = Var::from_tensor(&x).unwrap();
            let graph = var.broadcast_add(&bias).unwrap().gelu_erf().unwrap();
            let masked = |x: &Tensor| masks.map_or(x.clone(), |masks| masks.apply(x).unwrap());
            let slope = graph.sum_all().unwrap().backward().unwrap();
            let slope = masked(slope.get(&var).unwrap());
            let expected = masked(&graph.detach());
            for x in [x.copy().unwrap(), tracked(&x)] {
                let (hidden, found) = gelu_dropout(x, &bias, masks).unwrap();
                assert!(relative_error(&hidden, &expected) < 1e-6);
                assert!(relative_error(&found, &slope) < 1e-6);
            }
        }
    }
}
