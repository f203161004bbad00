//! Length-sorted batches within a token budget, and sequences packed end to end.

use candle_core::{Device, Tensor};

use crate::Result;

/// Indices of `lengths` in batches: longest first, each batch as many as `sequences × longest ≤ budget` allows, at least one.
///
/// Sequences of similar length share a batch, so padding for attention is rare; memory stays within the budget.
/// Ties keep their order.
pub fn token_batches(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut longest = 0;
    for index in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * longest <= budget => batch.push(index),
            _ => {
                longest = lengths[index];
                batches.push(vec![index]);
            }
        }
    }
    batches
}

/// Sequences laid end to end without padding: T tokens in all.
#[derive(Debug, Clone)]
pub struct Packed {
    /// Token ids, T of them.
    pub ids: Vec<u32>,
    /// Where each sequence starts, then T: one more than there are sequences.
    pub offsets: Vec<usize>,
}

impl Packed {
    /// Lays `sequences` end to end.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut packed = Self {
            ids: Vec::new(),
            offsets: vec![0],
        };
        for sequence in sequences {
            packed.ids.extend_from_slice(sequence);
            packed.offsets.push(packed.ids.len());
        }
        packed
    }

    /// The position of each token in its own sequence, from `first`.
    pub fn positions(&self, first: usize) -> Vec<u32> {
        self.offsets
            .windows(2)
            .flat_map(|w| (0..w[1] - w[0]).map(move |i| (first + i) as u32))
            .collect()
    }

    /// The row of each sequence's last token.
    pub fn last_rows(&self) -> Vec<u32> {
        self.offsets[1..]
            .iter()
            .map(|&end| end as u32 - 1)
            .collect()
    }

    /// The ids as a tensor [T].
    ///
    /// # Errors
    /// When the device refuses the copy.
    pub fn ids_tensor(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.ids, self.ids.len(), device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_stands_in_one_batch_within_the_budget() {
        let lengths: Vec<usize> = (0..500).map(|i| 1 + (i * 7919) % 97).collect();
        for budget in [1, 50, 97, 400, 100_000] {
            let batches = token_batches(&lengths, budget);
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..500).collect::<Vec<_>>(), "budget {budget}");
            for batch in &batches {
                let longest = batch.iter().map(|&i| lengths[i]).max().unwrap();
                assert!(
                    batch.len() == 1 || batch.len() * longest <= budget,
                    "budget {budget}: {batch:?}"
                );
            }
        }
    }

    #[test]
    fn packed_positions_restart_with_each_sequence() {
        let packed = Packed::new([&[7u32, 8, 9][..], &[5][..], &[1, 2][..]]);
        assert_eq!(packed.positions(2), [2, 3, 4, 2, 2, 3]);
        assert_eq!(packed.last_rows(), [2, 3, 5]);
    }
}
