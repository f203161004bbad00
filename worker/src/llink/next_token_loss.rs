//! The next-token loss of Stage B: the cross entropy of the answer's tokens, each given the tokens before it.
//!
//! Only positions that an answer token follows need logits. With a vocabulary of 128,256 tokens, logits take most of
//! the memory.

use std::cell::Cell;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::numerics::softmax::softmax;
use crate::ops::{edit, fused};
use crate::{Error, Result};

/// The label of a token that is not learned.
pub const IGNORED: i64 = -100;

/// The positions of a batch that predict answer tokens, and those tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerTokens {
    /// The positions `b · T + t` whose logits are needed, ascending.
    pub positions: Vec<usize>,
    /// The token that follows each position.
    pub targets: Vec<u32>,
}

impl AnswerTokens {
    /// Reads labels `[B, T]`. Position `t` predicts the label at `t + 1`, unless that label is [`IGNORED`].
    ///
    /// # Errors
    /// [`Error::Input`] when the labels are not whole rows, or a label is not a token of the vocabulary.
    pub fn new(labels: &[i64], length: usize, vocabulary: usize) -> Result<Self> {
        if length == 0 || !labels.len().is_multiple_of(length) {
            return Err(Error::Input(format!("{} labels are not whole rows of {length}", labels.len())));
        }
        let mut answer = Self { positions: Vec::new(), targets: Vec::new() };
        for (row, labels) in labels.chunks_exact(length).enumerate() {
            for (position, label) in labels.iter().skip(1).enumerate().filter(|(_, label)| **label != IGNORED) {
                let token = u32::try_from(*label).ok().filter(|token| (*token as usize) < vocabulary);
                let token = token.ok_or_else(|| {
                    Error::Input(format!("label {label} in row {row} is not a token of a vocabulary of {vocabulary}"))
                })?;
                answer.positions.push(row * length + position);
                answer.targets.push(token);
            }
        }
        Ok(answer)
    }
}

/// The results that a caller needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The loss alone.
    Loss,
    /// The loss and its gradient with respect to the logits.
    LossAndGradient,
}

/// Sums the cross entropies of `targets` given `logits` `[n, V]` and divides by `total`. Returns a scalar in f32, and
/// its gradient with respect to the logits if wanted.
///
/// `total` is the number of answer tokens in the global batch, so the shares of all ranks add up to the mean. Softmax
/// and loss are f32 for every dtype of the logits. The values of `logits` may be overwritten.
///
/// # Errors
/// [`Error::Input`] when logits and targets do not match, or the global batch has no answer tokens.
pub fn next_token_loss(
    logits: Tensor,
    targets: &[u32],
    total: usize,
    wanted: Wanted,
) -> Result<(Tensor, Option<Tensor>)> {
    let (rows, vocabulary) = logits.dims2()?;
    let known = targets.iter().all(|target| (*target as usize) < vocabulary);
    if total == 0 || rows != targets.len() || !known {
        let tokens = targets.len();
        return Err(Error::Input(format!(
            "the loss of {tokens} answer tokens, {total} in the whole batch, with {rows} rows of {vocabulary} logits"
        )));
    }
    match fused(&[&logits]) {
        true => fused_loss(logits, targets, total, wanted),
        false => composed_loss(&logits, targets, total, wanted),
    }
}

/// Computes the loss on the CPU. The gradient overwrites the logits.
fn fused_loss(logits: Tensor, targets: &[u32], total: usize, wanted: Wanted) -> Result<(Tensor, Option<Tensor>)> {
    let (vocabulary, factor) = (logits.dim(1)?, (1.0 / total as f64) as f32);
    let sum = Cell::new(0.0);
    edit(&logits, |logits| {
        let rows = logits.par_chunks_exact_mut(vocabulary).zip(targets);
        let losses = rows.map(|(row, target)| {
            let target = *target as usize;
            let logit = row[target];
            let (max, sum) = softmax(row, 1.0, factor);
            row[target] -= factor;
            f64::from(sum).ln() + f64::from(max - logit)
        });
        // The losses are collected before they are summed, so that the order of addition is that of the rows.
        sum.set(losses.collect::<Vec<_>>().into_iter().sum::<f64>());
    })?;
    let loss = Tensor::new((sum.get() / total as f64) as f32, logits.device())?;
    Ok((loss, (wanted == Wanted::LossAndGradient).then_some(logits)))
}

fn composed_loss(logits: &Tensor, targets: &[u32], total: usize, wanted: Wanted) -> Result<(Tensor, Option<Tensor>)> {
    let (rows, dtype) = (targets.len(), logits.dtype());
    let targets = Tensor::from_slice(targets, (rows, 1), logits.device())?;
    let share = 1.0 / total as f64;
    let logits = logits.to_dtype(DType::F32)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
    let exponentials = shifted.exp()?;
    let sums = exponentials.sum_keepdim(1)?;
    let entropies = (sums.log()? - shifted.gather(&targets, 1)?)?;
    let loss = (entropies.sum_all()? * share)?;
    if wanted == Wanted::Loss {
        return Ok((loss, None));
    }
    let softmax = exponentials.broadcast_mul(&(sums.recip()? * share)?)?;
    let label = Tensor::full(-share as f32, (rows, 1), softmax.device())?;
    Ok((loss, Some(softmax.scatter_add(&targets, &label, 1)?.to_dtype(dtype)?)))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::testing::differences;

    type Ways = fn(Tensor, &[u32], usize, Wanted) -> Result<(Tensor, Option<Tensor>)>;

    fn tensor(logits: &[f32], vocabulary: usize) -> Tensor {
        Tensor::from_slice(logits, (logits.len() / vocabulary, vocabulary), &Device::Cpu).unwrap()
    }

    #[test]
    fn labels_are_predicted_from_the_position_before() {
        let labels = [IGNORED, IGNORED, 5, 6, 3, IGNORED, 7, IGNORED];
        let answer = AnswerTokens::new(&labels, 4, 8).unwrap();
        assert_eq!(answer, AnswerTokens { positions: vec![1, 2, 5], targets: vec![5, 6, 7] });
        for wrong in [[0, 8], [0, -1]] {
            assert!(AnswerTokens::new(&wrong, 2, 8).is_err(), "{wrong:?}");
        }
        assert!(AnswerTokens::new(&labels, 3, 8).is_err());
    }

    #[test]
    fn loss_and_gradient_follow_the_definition() {
        let (n, vocabulary, total) = (3, 45, 5);
        let logits: Vec<f32> = (0..n * vocabulary).map(|i| (i as f32 * 0.83).sin() * 6.0).collect();
        let targets = [44, 0, 17];
        let loss = |logits: &[f64]| {
            let rows = logits.chunks(vocabulary).zip(targets);
            let sum = rows.map(|(row, target)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[target as usize]);
            sum.sum::<f64>() / total as f64
        };
        let of = |ways: Ways| ways(tensor(&logits, vocabulary), &targets, total, Wanted::LossAndGradient).unwrap();
        let composed: Ways = |logits, targets, total, wanted| composed_loss(&logits, targets, total, wanted);
        for (found, gradient) in [of(fused_loss), of(composed)] {
            let wide: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
            assert!((f64::from(found.to_scalar::<f32>().unwrap()) - loss(&wide)).abs() < 1e-5);
            let gradient: Vec<f32> = gradient.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for (index, (derivative, difference)) in gradient.iter().zip(differences(&wide, 1e-5, loss)).enumerate() {
                assert!((difference - f64::from(*derivative)).abs() < 1e-6, "{index}: {derivative} {difference}");
            }
        }
    }

    #[test]
    fn no_answer_at_all_is_refused() {
        let loss = |logits: Tensor, targets: &[u32], total| {
            let (loss, _) = next_token_loss(logits, targets, total, Wanted::Loss)?;
            Result::Ok(loss.to_scalar::<f32>()?)
        };
        assert!(loss(tensor(&[], 8), &[], 0).is_err());
        assert_eq!(loss(tensor(&[], 8), &[], 3).unwrap(), 0.0, "a rank may have no answer tokens");
        assert!(loss(tensor(&[0.0; 8], 8), &[1, 2], 2).is_err());
        assert!(loss(tensor(&[0.0; 8], 8), &[8], 1).is_err());
    }
}
