//! Decides how many tokens go through a model at once: as many as the free memory holds, and half as many after each
//! out-of-memory error.

use candle_core::Device;

use crate::{Error, Result};

/// The share of memory that is reserved for the allocator's slack, cuBLAS's workspace and NCCL.
const RESERVED_SHARE: f64 = 0.2;
/// The largest useful budget. More tokens at once do not use a device better.
const MOST_TOKENS: usize = 1 << 18;
/// The smallest budget that is tried, about one sequence of usual length.
const FEWEST_TOKENS: usize = 64;

/// The memory of a token in a model, at its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCost {
    /// Bytes of activations for each token.
    pub bytes: usize,
}

impl TokenCost {
    /// Returns the cost in a forward pass that keeps nothing. It counts a few rows of the hidden size, and the
    /// feed-forward block twice. It also counts attention's scores against `longest` tokens, in f32 and in the model's
    /// own format.
    pub fn forward(hidden: usize, inner: usize, heads: usize, longest: usize, value_bytes: usize) -> Self {
        let rows = (8 * hidden + 3 * inner) * value_bytes;
        let scores = heads * longest * (2 * 4 + value_bytes);
        Self { bytes: rows + scores }
    }

    /// Returns the cost in a training pass: [`TokenCost::forward`], and what each of `layers` keeps for the backward
    /// pass.
    pub fn training(self, layers: usize, hidden: usize, inner: usize, value_bytes: usize) -> Self {
        Self { bytes: self.bytes + layers * (6 * hidden + 2 * inner) * value_bytes }
    }
}

/// Returns how many tokens fit into `free` bytes, at most `wished`. If `free` is 0, it is not known, and the result is
/// `wished`.
pub fn token_budget(free: u64, cost: TokenCost, wished: usize) -> usize {
    if free == 0 || cost.bytes == 0 {
        return wished;
    }
    let room = free as f64 * (1.0 - RESERVED_SHARE) / cost.bytes as f64;
    let fitting = (room as usize).clamp(FEWEST_TOKENS, MOST_TOKENS);
    wished.min(fitting).max(1)
}

/// Returns the free bytes of a device: the GPU driver's number, or the system's available memory within the limits of a
/// container.
pub fn free_memory(device: &Device) -> u64 {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let stream = cuda.cuda_stream();
            stream.context().mem_get_info().map_or(0, |(free, _)| free as u64)
        }
        _ => {
            let available = meminfo("MemAvailable:");
            match cgroup_room() {
                Some(room) if available == 0 || room < available => room,
                _ => available,
            }
        }
    }
}

/// Returns the memory of this machine in bytes, or 0 if the system does not say.
pub(crate) fn total_memory() -> u64 {
    meminfo("MemTotal:")
}

fn meminfo(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// Returns the rest of a container's memory limit, if there is one (cgroup version 2).
fn cgroup_room() -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    room_below(&read("memory.max")?, &read("memory.current")?)
}

fn room_below(limit: &str, used: &str) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    Some(limit.saturating_sub(used.trim().parse().ok()?))
}

/// Returns true if an error means that a device has no memory left.
pub fn is_out_of_memory(error: &Error) -> bool {
    let Error::Tensor(error) = error else {
        return matches!(error, Error::OutOfMemory(_));
    };
    let text = error.to_string().to_lowercase();
    ["out_of_memory", "out of memory", "alloc_failed"].iter().any(|words| text.contains(words))
}

/// Runs `work` within a budget of tokens. When the device runs out of memory, the budget is halved permanently, `told`
/// gets the new budget, and the work runs again.
///
/// # Errors
/// Those of the work; [`Error::OutOfMemory`] when there is no smaller budget.
pub fn within_memory<T>(
    budget: &mut usize,
    told: &mut dyn FnMut(usize),
    mut work: impl FnMut(usize) -> Result<T>,
) -> Result<T> {
    loop {
        match work(*budget) {
            Err(error) if is_out_of_memory(&error) => {
                let half = *budget / 2;
                if half < FEWEST_TOKENS {
                    return Err(Error::OutOfMemory(format!(
                        "not even {budget} tokens at once fit on the device ({error}). Give it to this worker alone, or use a \
                         smaller model"
                    )));
                }
                *budget = half;
                told(half);
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oom() -> Error {
        Error::Tensor(candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into()))
    }

    #[test]
    fn the_budget_follows_the_free_memory_within_bounds() {
        let cost = TokenCost { bytes: 100_000 };
        assert_eq!(token_budget(10 << 30, cost, usize::MAX), 85_899);
        assert_eq!(token_budget(10 << 30, cost, 4_096), 4_096, "no more than was wished");
        assert_eq!(token_budget(1 << 20, cost, 4_096), FEWEST_TOKENS, "and never nothing");
        assert_eq!(token_budget(1 << 50, cost, usize::MAX), MOST_TOKENS);
        assert_eq!(token_budget(0, cost, 4_096), 4_096, "what is not known changes nothing");
    }

    #[test]
    fn a_training_token_costs_more_than_a_forward_one() {
        let forward = TokenCost::forward(2048, 8192, 32, 128, 2);
        assert_eq!(forward.bytes, (8 * 2048 + 3 * 8192) * 2 + 32 * 128 * 10);
        assert_eq!(forward.training(16, 2048, 8192, 2).bytes - forward.bytes, 16 * (6 * 2048 + 2 * 8192) * 2);
    }

    #[test]
    fn out_of_memory_halves_the_budget_goes_on_and_says_so() {
        let (mut budget, mut told, mut tried) = (1_000, Vec::new(), Vec::new());
        let done = within_memory(&mut budget, &mut |budget| told.push(budget), |budget| {
            tried.push(budget);
            if budget > 300 { Err(oom()) } else { Ok(budget) }
        });
        assert_eq!(done.unwrap(), 250);
        assert_eq!((budget, told, tried), (250, vec![500, 250], vec![1_000, 500, 250]));
    }

    #[test]
    fn what_never_fits_says_so_and_other_errors_pass() {
        let mut budget = 200;
        let error = within_memory(&mut budget, &mut |_| {}, |_| Err::<(), _>(oom())).unwrap_err();
        assert!(matches!(&error, Error::OutOfMemory(text) if text.contains("100 tokens")), "{error}");
        let mut tries = 0;
        let error = within_memory(&mut budget, &mut |_| {}, |_| {
            tries += 1;
            Err::<(), _>(Error::Input("no".into()))
        });
        assert!(matches!(error, Err(Error::Input(_))) && tries == 1);
    }

    #[test]
    fn a_containers_limit_counts() {
        assert_eq!(room_below("1000\n", "300\n"), Some(700));
        assert_eq!(room_below("max\n", "300\n"), None);
        assert_eq!(room_below("100\n", "300\n"), Some(0));
    }
}
