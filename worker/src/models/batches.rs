//! Length-sorted batches within a token budget, and sequences packed end to end.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};

use crate::device::{TokenCost, free_memory, token_budget, within_memory};
use crate::ops::NO_TOKEN;
use crate::{Error, Result};

/// One vector for each sequence.
pub type Vectors = Vec<Vec<f32>>;
/// Gets the number of tokens that are done, after each batch.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// The largest batch on the CPU. Larger ones do not fit into its caches.
const CPU_TOKENS: usize = 1_024;

/// Divides the indices of `lengths` into batches, the longest first. Each batch holds as many as
/// `sequences × longest ≤ budget` allows, but at least one.
///
/// Sequences of similar length share a batch, so attention needs little padding, and memory stays within the budget.
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

/// The token budget of a model's batches. A budget that ran out of memory is not tried again.
pub(crate) struct Batching {
    cost: TokenCost,
    /// The largest budget that is known to fit.
    fits: AtomicUsize,
}

impl Batching {
    pub(crate) fn new(cost: TokenCost) -> Self {
        let fits = AtomicUsize::new(usize::MAX);
        Self { cost, fits }
    }

    /// Returns the first budget to try, which is the wished one if the free memory allows it.
    fn budget(&self, device: &Device, wished: usize) -> usize {
        let wished = if device.is_cpu() { wished.min(CPU_TOKENS) } else { wished };
        token_budget(free_memory(device), self.cost, wished).min(self.fits.load(Ordering::Relaxed))
    }

    fn learn(&self, budget: usize) {
        self.fits.fetch_min(budget, Ordering::Relaxed);
    }
}

/// Computes one vector for each sequence, batch by batch, and returns them in the order of `ids`.
///
/// `vectors` maps packed sequences to `[B, width]`. After each batch, `progress` gets the number of tokens that are
/// done or handed to the device. If memory runs out, the budget is halved.
pub(crate) fn in_batches(
    ids: &[Vec<u32>],
    device: &Device,
    token_budget: usize,
    batching: &Batching,
    progress: Progress<'_>,
    mut vectors: impl FnMut(&Packed) -> Result<Tensor>,
) -> Result<Vectors> {
    let mut left: Vec<usize> = (0..ids.len()).collect();
    let mut out = vec![Vec::new(); ids.len()];
    let mut on_device = OnDevice::default();
    let mut done = 0;
    let mut budget = batching.budget(device, token_budget);
    let mut told = |budget: usize| {
        tracing::warn!(budget, "out of memory on the device: continuing with half as many tokens at once");
        batching.learn(budget);
    };
    within_memory(&mut budget, &mut told, |budget| {
        let lengths: Vec<usize> = left.iter().map(|index| ids[*index].len()).collect();
        let batches: Vec<Vec<usize>> = token_batches(&lengths, budget)
            .into_iter()
            .map(|batch| batch.into_iter().map(|place| left[place]).collect())
            .collect();
        for batch in batches {
            let packed = Packed::new(batch.iter().map(|&index| ids[index].as_slice()));
            let rows = vectors(&packed)?.to_dtype(DType::F32)?;
            let taken: HashSet<usize> = batch.iter().copied().collect();
            left.retain(|index| !taken.contains(index));
            done += packed.ids.len() as u64;
            // Copying a row to the host waits for the device, so the next batch is started first.
            on_device.push(batch, rows);
            if device.is_cpu() {
                on_device.fetch(&mut out)?;
            }
            progress(done);
        }
        Ok(())
    })?;
    on_device.fetch(&mut out)?;
    Ok(out)
}

/// Vectors that the device may still be computing.
#[derive(Default)]
struct OnDevice {
    sequences: Vec<usize>,
    rows: Vec<Tensor>,
}

impl OnDevice {
    fn push(&mut self, batch: Vec<usize>, rows: Tensor) {
        self.sequences.extend(batch);
        self.rows.push(rows);
    }

    fn fetch(&mut self, out: &mut [Vec<f32>]) -> Result<()> {
        let (sequences, rows) = (std::mem::take(&mut self.sequences), std::mem::take(&mut self.rows));
        if rows.is_empty() {
            return Ok(());
        }
        for (index, row) in sequences.into_iter().zip(Tensor::cat(&rows, 0)?.to_vec2::<f32>()?) {
            out[index] = row;
        }
        Ok(())
    }
}

pub(crate) fn check_ids(ids: &[impl AsRef<[u32]>], vocab_size: usize, max_tokens: usize, path: &str) -> Result<()> {
    for (index, ids) in ids.iter().enumerate() {
        let ids = ids.as_ref();
        if ids.len() > max_tokens {
            let tokens = ids.len();
            return Err(Error::Input(format!(
                "sequence {index} has {tokens} tokens, but {path} has positions for {max_tokens}"
            )));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size && id != NO_TOKEN) {
            return Err(Error::Input(format!(
                "sequence {index}: token id {id} is outside the {vocab_size} ids of {path}"
            )));
        }
    }
    Ok(())
}

/// Sequences laid end to end without padding, T tokens in total.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    /// The token ids, `[T]`.
    pub(crate) ids: Vec<u32>,
    /// The start of each sequence, then T.
    pub(crate) offsets: Vec<usize>,
}

impl Packed {
    pub(crate) fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut packed = Self { ids: Vec::new(), offsets: vec![0] };
        for sequence in sequences {
            packed.ids.extend_from_slice(sequence);
            packed.offsets.push(packed.ids.len());
        }
        packed
    }

    /// Returns the position of each token in its own sequence. `first` gives the position of a sequence's first token.
    pub(crate) fn positions(&self, first: impl Fn(usize) -> usize) -> Vec<u32> {
        let sequences = self.offsets.windows(2).enumerate();
        sequences
            .flat_map(|(sequence, w)| {
                let first = first(sequence) as u32;
                first..first + (w[1] - w[0]) as u32
            })
            .collect()
    }

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
                assert!(batch.len() == 1 || batch.len() * longest <= budget, "budget {budget}: {batch:?}");
            }
        }
    }

    #[test]
    fn out_of_memory_in_the_middle_loses_no_sequence_and_is_remembered() {
        let ids: Vec<Vec<u32>> = (0..60u32).map(|i| vec![i; 1 + i as usize % 13]).collect();
        let batching = Batching::new(TokenCost { bytes: 1 });
        let pass = |at_most: usize| {
            let mut sizes = Vec::new();
            let rows = in_batches(&ids, &Device::Cpu, 300, &batching, &mut |_| {}, |packed| {
                if packed.ids.len() > at_most {
                    return Err(candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into()).into());
                }
                sizes.push(packed.ids.len());
                let first: Vec<f32> = packed.offsets.windows(2).map(|w| packed.ids[w[0]] as f32).collect();
                let count = first.len();
                Ok(Tensor::from_vec(first, (count, 1), &Device::Cpu)?)
            });
            (rows, sizes)
        };
        let expected: Vec<Vec<f32>> = (0..60).map(|i| vec![i as f32]).collect();
        let (rows, sizes) = pass(usize::MAX);
        assert_eq!(rows.unwrap(), expected);
        assert!(sizes.iter().any(|size| *size > 150), "{sizes:?}");
        let (rows, sizes) = pass(100);
        assert_eq!(rows.unwrap(), expected);
        assert!(sizes.iter().all(|size| *size <= 100), "{sizes:?}");
        // The next pass starts with the budget that fitted.
        let (rows, sizes) = pass(usize::MAX);
        assert_eq!(rows.unwrap(), expected);
        assert!(sizes.iter().all(|size| *size <= 100), "{sizes:?}");
        assert!(matches!(pass(1).0, Err(Error::OutOfMemory(_))));
    }

    #[test]
    fn packed_positions_restart_with_each_sequence() {
        let packed = Packed::new([&[7u32, 8, 9][..], &[5][..], &[1, 2][..]]);
        assert_eq!(packed.positions(|_| 2), [2, 3, 4, 2, 2, 3]);
        assert_eq!(packed.positions(|sequence| 10 * sequence), [0, 1, 2, 10, 20, 21]);
        assert_eq!(packed.last_rows(), [2, 3, 5]);
    }
}
