//! The symmetric InfoNCE of one batch, and its gradient with respect to the cosines.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use crate::Result;
use crate::numerics::kernels::rows_per_task;
use crate::numerics::softmax::{Columns, softmaxes};
use crate::ops::{edit, fused};

/// Returns ½ (mean CE of row i of [s | h] / τ, label i + mean CE of column j of s / τ, label j) and its gradient.
///
/// `cosines` `[B, B + H]` holds s and h. The gradient overwrites it, so nothing else may share its values.
pub(crate) fn info_nce(cosines: Tensor, temperature: f64) -> Result<(Tensor, Tensor)> {
    if !fused(&[&cosines]) {
        return composed(&cosines, temperature);
    }
    let (pairs, width) = cosines.dims2()?;
    let n = pairs as f64;
    let inverse_temperature = (1.0 / temperature) as f32;
    let (of_softmax, of_label) = ((0.5 / (n * temperature)) as f32, (1.0 / (n * temperature)) as f32);
    let mut sum = 0.0_f64;
    edit(&cosines, |cosines| {
        let columns = Columns::of(cosines, width, pairs, temperature as f32);
        let inverse_sums: Vec<f32> = columns.sums.iter().map(|sum| of_softmax / sum).collect();
        let block = rows_per_task(pairs, width);
        let shares = cosines.par_chunks_mut(block * width).enumerate().map(|(at, rows)| {
            let mut share = 0.0;
            for (row, label) in rows.chunks_exact_mut(width).zip(at * block..) {
                let cosine = row[label];
                let (max, row_sum) = softmaxes(row, &columns, &inverse_sums, inverse_temperature, of_softmax);
                row[label] -= of_label;
                let entropy = |max: f32, sum: f32| f64::from(sum).ln() + f64::from(max - cosine) / temperature;
                share += entropy(max, row_sum) + entropy(columns.maxima[label], columns.sums[label]);
            }
            share
        });
        sum = shares.collect::<Vec<f64>>().into_iter().sum();
    })?;
    let loss = Tensor::new((0.5 * sum / n) as f32, cosines.device())?;
    Ok((loss, cosines))
}

fn composed(cosines: &Tensor, temperature: f64) -> Result<(Tensor, Tensor)> {
    let (pairs, width) = cosines.dims2()?;
    let n = pairs as f64;
    let labels = Tensor::arange(0u32, pairs as u32, cosines.device())?.reshape((pairs, 1))?;
    let own = cosines.gather(&labels, 1)?; // [B, 1], the diagonal
    let (by_rows, row_entropy) = cross_entropy(cosines, &own, temperature, D::Minus1)?;
    let among = cosines.narrow(1, 0, pairs)?.contiguous()?;
    let (by_columns, column_entropy) = cross_entropy(&among, &own.t()?, temperature, D::Minus2)?;
    let softmaxes = (by_rows + by_columns.pad_with_zeros(1, 0, width - pairs)?)?;
    let of_label = Tensor::full(-2.0_f32, (pairs, 1), cosines.device())?;
    let gradient = (softmaxes.scatter_add(&labels, &of_label, 1)? * (0.5 / (n * temperature)))?;
    Ok((((row_entropy + column_entropy)? * (0.5 / n))?, gradient))
}

/// Returns softmax(cosines / τ) along `dim`, and the sum of the cross entropies. `own` holds the cosines of the labels.
fn cross_entropy(cosines: &Tensor, own: &Tensor, tau: f64, dim: D) -> Result<(Tensor, Tensor)> {
    let largest = cosines.max_keepdim(dim)?;
    let exponentials = (cosines.broadcast_sub(&largest)? * (1.0 / tau))?.exp()?;
    let sums = exponentials.sum_keepdim(dim)?;
    let entropies = (sums.log()? + ((largest - own)? * (1.0 / tau))?)?;
    Ok((exponentials.broadcast_div(&sums)?, entropies.sum_all()?.to_dtype(DType::F32)?))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::numerics::random::noise;
    use crate::ops::testing::tracked;

    #[test]
    fn the_gradient_is_that_of_the_graph_with_and_without_negatives() {
        for (pairs, negatives) in [(1, 0), (1, 3), (37, 0), (40, 21), (300, 256)] {
            let width = pairs + negatives;
            let values: Vec<f32> = noise(7, pairs * width).into_iter().map(|x| 0.4 * x).collect();
            let cosines = Tensor::from_vec(values, (pairs, width), &Device::Cpu).unwrap();
            let var = Var::from_tensor(&cosines).unwrap();
            let expected = composed(var.as_tensor(), 0.1).unwrap().0;
            let graph = expected.backward().unwrap();
            let expected_gradient: Vec<f32> = graph.get(&var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for cosines in [cosines.copy().unwrap(), tracked(&cosines)] {
                let (loss, gradient) = info_nce(cosines.copy().unwrap(), 0.1).unwrap();
                let [loss, expected] = [&loss, &expected].map(|x| x.to_scalar::<f32>().unwrap());
                assert!((loss - expected).abs() < 1e-5 * expected.abs().max(1.0), "{loss} {expected}");
                let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
                let worst = gradient.iter().zip(&expected_gradient).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{pairs} {negatives}: {worst}");
            }
        }
    }
}
