//! Length-sorted batches within a token budget, and sequences packed end to end.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// On the CPU larger batches than this only spill the caches.
const CPU_TOKENS: usize = 1_024;

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

/// Computes one vector for each sequence, batch by batch, and gives them in the order of `ids`.
///
/// `vectors` maps packed sequences to [B, width]. `progress` is told after each batch how many tokens are done so far.
pub(crate) fn in_batches(
    ids: &[Vec<u32>],
    device: &Device,
    token_budget: usize,
    progress: &mut dyn FnMut(u64),
    vectors: impl Fn(&Packed) -> Result<Tensor>,
) -> Result<Vec<Vec<f32>>> {
    let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
    let budget = if device.is_cpu() {
        token_budget.min(CPU_TOKENS)
    } else {
        token_budget
    };
    let mut out = vec![Vec::new(); ids.len()];
    let mut done = 0;
    for batch in token_batches(&lengths, budget) {
        let packed = Packed::new(batch.iter().map(|&index| ids[index].as_slice()));
        let rows = vectors(&packed)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        for (index, row) in batch.into_iter().zip(rows) {
            out[index] = row;
        }
        done += packed.ids.len() as u64;
        progress(done);
    }
    Ok(out)
}

/// Refuses sequences that a model can't read.
pub(crate) fn check_ids(ids: &[impl AsRef<[u32]>], vocab_size: usize, max_tokens: usize, path: &str) -> Result<()> {
    for (index, ids) in ids.iter().enumerate() {
        let ids = ids.as_ref();
        if ids.len() > max_tokens {
            let tokens = ids.len();
            return Err(Error::Input(format!(
                "sequence {index} has {tokens} tokens, {path} has positions for {max_tokens}"
            )));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::Input(format!(
                "sequence {index}: token id {id} is outside {path}'s {vocab_size}"
            )));
        }
    }
    Ok(())
}

/// Sequences laid end to end without padding: T tokens in all.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    /// Token ids, T of them.
    pub(crate) ids: Vec<u32>,
    /// Where each sequence starts, then T: one more than there are sequences.
    pub(crate) offsets: Vec<usize>,
}

impl Packed {
    /// Lays `sequences` end to end.
    pub(crate) fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
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
    pub(crate) fn positions(&self, first: usize) -> Vec<u32> {
        self.offsets
            .windows(2)
            .flat_map(|w| (0..w[1] - w[0]).map(move |i| (first + i) as u32))
            .collect()
    }

    /// The row of each sequence's last token.
    pub(crate) fn last_rows(&self) -> Vec<u32> {
        self.offsets[1..].iter().map(|&end| end as u32 - 1).collect()
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
