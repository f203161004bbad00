//! The collective of a single rank.

use super::{AbortHandle, Collective, check_counts};
use crate::{Error, Result};

/// The collective of a single rank. It sends nothing, and an abort still works.
#[derive(Debug, Clone, Default)]
pub struct Solo {
    abort: AbortHandle,
}

impl Solo {
    /// Makes a gang of one rank that `abort` ends.
    pub fn new(abort: AbortHandle) -> Self {
        Self { abort }
    }
}

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn begin_step(&mut self, _step: u64) {}

    fn all_reduce_sum(&mut self, _values: &mut [f32]) -> Result<()> {
        self.abort.check()
    }

    fn all_gather(&mut self, mine: &[f32], counts: &[usize]) -> Result<Vec<f32>> {
        self.abort.check()?;
        check_counts(mine.len(), counts, 0, 1)?;
        Ok(mine.to_vec())
    }

    fn broadcast(&mut self, root: usize, _values: &mut [f32]) -> Result<()> {
        self.abort.check()?;
        if root != 0 {
            return Err(Error::Input(format!("broadcast from rank {root} in a gang of one")));
        }
        Ok(())
    }

    fn barrier(&mut self) -> Result<()> {
        self.abort.check()
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}
