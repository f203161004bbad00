//! The losses of the slots in Stage B. The mean of a pair's slots must point at its teacher's vector, and not at
//! another pair's.
//!
//! Let ŝ be the normalized mean of all slots of a text, and t̂ the normalized teachers of the global batch of B pairs. Then
//! `cosine` = mean (1 − ŝ·t̂), and `info_nce` = mean CE of row i of ŝ t̂ᵀ / τ, label i.

use std::ops::Range;

use candle_core::{DType, Tensor};
use llink_proto::settings::InstructSettings;

use crate::Result;
use crate::ops::UnitRows;

/// The weights of the slots' losses in the total.
#[derive(Debug, Clone, Copy)]
pub struct SlotWeights {
    /// The weight of `cosine`.
    pub cosine: f64,
    /// The weight of `info_nce`.
    pub info_nce: f64,
    /// The temperature τ of `info_nce`.
    pub temperature: f64,
}

impl From<&InstructSettings> for SlotWeights {
    fn from(settings: &InstructSettings) -> Self {
        Self {
            cosine: settings.cosine_weight,
            info_nce: settings.info_nce_weight,
            temperature: settings.info_nce_temperature,
        }
    }
}

/// A rank's shares of the losses. The shares of all ranks add up to the losses of the global batch.
pub struct SlotLosses {
    /// The shares of `cosine` and `info_nce`, f32 `[2]`.
    pub shares: Tensor,
    /// The gradient of the weighted losses with respect to the slots, f32 `[Σ counts, d]`.
    pub grad_slots: Tensor,
}

impl SlotLosses {
    /// Computes the losses of a rank with slots `[Σ counts, d]`, which belong to rows `own` of the global batch. `counts` has
    /// the number of slots of each text, `[b]`. The global batch has teachers `[B, d]`. Slots and teachers are f32.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) when the shapes do not match, or the device fails.
    pub fn new(
        slots: &Tensor,
        counts: &[usize],
        teacher: &Tensor,
        own: Range<usize>,
        weights: &SlotWeights,
    ) -> Result<Self> {
        let (batch, (pairs, width)) = (own.len(), teacher.dims2()?);
        let texts = counts.iter().enumerate().flat_map(|(text, count)| vec![text as u32; *count]);
        let texts = Tensor::from_iter(texts, slots.device())?; // of each slot
        let counts: Vec<f32> = counts.iter().map(|count| *count as f32).collect();
        let counts = Tensor::from_vec(counts, (batch, 1), slots.device())?;
        let sums = Tensor::zeros((batch, width), DType::F32, slots.device())?.index_add(&texts, slots, 0)?;
        let students = UnitRows::of(&sums.broadcast_div(&counts)?)?;
        let teachers = UnitRows::of(teacher)?.unit;
        let cosines = students.unit.matmul(&teachers.t()?)?; // [b, B]
        let labels: Vec<u32> = (own.start as u32..own.end as u32).collect();
        let labels = Tensor::from_vec(labels, (batch, 1), cosines.device())?;
        let of_own = cosines.gather(&labels, 1)?;
        let largest = cosines.max_keepdim(1)?;
        let (each, tau) = (1.0 / pairs as f64, weights.temperature);
        let exponentials = (cosines.broadcast_sub(&largest)? / tau)?.exp()?;
        let sums = exponentials.sum_keepdim(1)?;
        let cosine = ((1.0 - &of_own)?.sum_all()? * each)?;
        let info_nce = ((sums.log()? + ((largest - of_own)? / tau)?)?.sum_all()? * each)?;

        let of_info_nce = weights.info_nce * each / tau;
        let softmax = exponentials.broadcast_mul(&(sums.recip()? * of_info_nce)?)?;
        let label = -(of_info_nce + weights.cosine * each) as f32;
        let label = Tensor::full(label, (batch, 1), softmax.device())?;
        let grad_students = softmax.scatter_add(&labels, &label, 1)?.matmul(&teachers)?;
        let grad_means = students.backward(grad_students)?;
        Ok(Self {
            shares: Tensor::stack(&[cosine, info_nce], 0)?,
            grad_slots: grad_means.broadcast_div(&counts)?.index_select(&texts, 0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::testing::differences;

    const D: usize = 5;
    /// The slots of each text: one of them has two sentences.
    const COUNTS: [usize; 4] = [3, 3, 6, 3];
    const WEIGHTS: SlotWeights = SlotWeights { cosine: 0.05, info_nce: 0.01, temperature: 0.07 };

    fn numbers(count: usize, key: f64) -> Vec<f64> {
        (0..count).map(|i| ((i as f64 + 1.0) * key).sin()).collect()
    }

    fn narrow(values: &[f64]) -> Vec<f32> {
        values.iter().map(|x| *x as f32).collect()
    }

    fn rows_of(texts: Range<usize>) -> Range<usize> {
        let before = |text: usize| D * COUNTS[..text].iter().sum::<usize>();
        before(texts.start)..before(texts.end)
    }

    fn definition(slots: &[f64], teacher: &[f64]) -> [f64; 2] {
        let unit = |row: Vec<f64>| {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter().map(|x| x / norm).collect::<Vec<_>>()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mean = |rows: &[f64]| {
            let count = rows.len() / D;
            (0..D).map(|c| rows.iter().skip(c).step_by(D).sum::<f64>() / count as f64).collect()
        };
        let s: Vec<_> = (0..COUNTS.len()).map(|text| unit(mean(&slots[rows_of(text..text + 1)]))).collect();
        let t: Vec<_> = teacher.chunks(D).map(|row| unit(row.to_vec())).collect();
        let mut losses = [0.0; 2];
        for (i, s) in s.iter().enumerate() {
            let sum: f64 = t.iter().map(|t| (dot(s, t) / WEIGHTS.temperature).exp()).sum();
            losses[0] += (1.0 - dot(s, &t[i])) / t.len() as f64;
            losses[1] += (sum.ln() - dot(s, &t[i]) / WEIGHTS.temperature) / t.len() as f64;
        }
        losses
    }

    #[test]
    fn losses_and_gradient_follow_the_definition_and_ranks_add_up() {
        let (slots, teacher) = (numbers(rows_of(0..4).end, 0.77), numbers(4 * D, 1.9));
        let tensor = |values: &[f64]| Tensor::from_vec(narrow(values), (values.len() / D, D), &Device::Cpu).unwrap();
        let (mut gradient, mut sum) = (Vec::new(), [0.0; 2]);
        for rows in [0..3, 3..4] {
            let (own, counts) = (tensor(&slots[rows_of(rows.clone())]), &COUNTS[rows.clone()]);
            let share = SlotLosses::new(&own, counts, &tensor(&teacher), rows, &WEIGHTS).unwrap();
            let losses: Vec<f32> = share.shares.to_vec1().unwrap();
            sum = [sum[0] + f64::from(losses[0]), sum[1] + f64::from(losses[1])];
            gradient.extend(share.grad_slots.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
        let expected = definition(&slots, &teacher);
        for (found, expected) in sum.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{sum:?} {expected:?}");
        }
        let total = |slots: &[f64]| {
            let [cosine, info_nce] = definition(slots, &teacher);
            WEIGHTS.cosine * cosine + WEIGHTS.info_nce * info_nce
        };
        for (index, (derivative, difference)) in gradient.iter().zip(differences(&slots, 1e-5, total)).enumerate() {
            let error = (difference - f64::from(*derivative)).abs();
            assert!(error < 1e-5, "{index}: {derivative} {difference}");
        }
    }
}
