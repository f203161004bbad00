//! The next-token loss of Stage B: cross entropy of the answer's tokens, each given what stands before it.
//!
//! Only positions that are followed by an answer token need logits: with a vocabulary of 128,256 that is most of the memory.

use std::cell::Cell;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::softmax::softmax;
use crate::models::{edit, fused};
use crate::{Error, Result};

/// A label that is no token to be learnt.
pub const IGNORED: i64 = -100;

/// Which positions of a batch predict answer tokens, and which tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerTokens {
    /// Positions `b · T + t` whose logits are needed, ascending.
    pub positions: Vec<usize>,
    /// The token that follows each.
    pub targets: Vec<u32>,
}

impl AnswerTokens {
    /// From labels `[B, T]`: position `t` predicts the label at `t + 1`, unless that is [`IGNORED`].
    ///
    /// # Errors
    /// [`Error::Input`] when the labels are not whole rows, or one of them is no token of the vocabulary.
    pub fn new(labels: &[i64], length: usize, vocabulary: usize) -> Result<Self> {
        if length == 0 || !labels.len().is_multiple_of(length) {
            return Err(Error::Input(format!(
                "{} labels are not whole rows of {length}",
                labels.len()
            )));
        }
        let mut answer = Self {
            positions: Vec::new(),
            targets: Vec::new(),
        };
        for (row, labels) in labels.chunks_exact(length).enumerate() {
            for (position, label) in labels
                .iter()
                .skip(1)
                .enumerate()
                .filter(|(_, label)| **label != IGNORED)
            {
                let token = u32::try_from(*label)
                    .ok()
                    .filter(|token| (*token as usize) < vocabulary);
                let token = token.ok_or_else(|| {
                    Error::Input(format!(
                        "label {label} in row {row} is no token of a vocabulary of {vocabulary}"
                    ))
                })?;
                answer.positions.push(row * length + position);
                answer.targets.push(token);
            }
        }
        Ok(answer)
    }
}

/// The results that are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Only the loss.
    Loss,
    /// The loss and its gradient by the logits.
    LossAndGradient,
}

/// The sum of the cross entropies of `targets` given `logits` [n, V], over `total`: a number in f32, and its gradient by the logits
/// where it is wanted. `total` is the number of answer tokens in the global batch, so that the shares of all ranks add up to the mean.
/// Softmax and loss are f32 in every dtype of the logits. The values of `logits` may be overwritten.
///
/// # Errors
/// [`Error::Input`] when logits and targets do not fit each other, or there are none in the whole batch.
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

/// On the CPU the gradient overwrites the logits.
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
        // Collected before they are summed, so that the order of addition is that of the rows.
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

    type Ways = fn(Tensor, &[u32], usize, Wanted) -> Result<(Tensor, Option<Tensor>)>;

    fn tensor(logits: &[f32], vocabulary: usize) -> Tensor {
        Tensor::from_slice(logits, (logits.len() / vocabulary, vocabulary), &Device::Cpu).unwrap()
    }

    #[test]
    fn labels_are_predicted_from_the_position_before() {
        let labels = [IGNORED, IGNORED, 5, 6, 3, IGNORED, 7, IGNORED];
        let answer = AnswerTokens::new(&labels, 4, 8).unwrap();
        assert_eq!(
            answer,
            AnswerTokens {
                positions: vec![1, 2, 5],
                targets: vec![5, 6, 7]
            }
        );
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
            let mut wide: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
            assert!((f64::from(found.to_scalar::<f32>().unwrap()) - loss(&wide)).abs() < 1e-5);
            let gradient: Vec<f32> = gradient.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for (index, derivative) in gradient.iter().enumerate() {
                let at = wide[index];
                wide[index] = at + 1e-5;
                let above = loss(&wide);
                wide[index] = at - 1e-5;
                let difference = (above - loss(&wide)) / 2e-5;
                wide[index] = at;
                assert!(
                    (difference - f64::from(*derivative)).abs() < 1e-6,
                    "{index}: {derivative} {difference}"
                );
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
        assert_eq!(
            loss(tensor(&[], 8), &[], 3).unwrap(),
            0.0,
            "a rank may have no answer tokens"
        );
        assert!(loss(tensor(&[0.0; 8], 8), &[1, 2], 2).is_err());
        assert!(loss(tensor(&[0.0; 8], 8), &[8], 1).is_err());
    }
}
