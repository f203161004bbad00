//! The communication of ranks: sums, gathers and broadcasts over f32 buffers and tensors, behind one trait. [`Ring`]
//! uses TCP and runs everywhere; [`Nccl`] connects GPUs.
//!
//! Every rank of a gang makes the same calls in the same order. If a rank dies, falls silent or makes another call, its
//! neighbors get [`crate::Error::Peer`] within the collective's timeout. An [`AbortHandle`] ends a waiting call at
//! once. After an error a collective is broken for good. The gang continues in its next generation, over new
//! connections.

mod abort;
mod by_host;
mod gang;
mod handshake;
mod mesh;
mod nccl;
mod offer;
mod ring;
mod ring_call;
mod sealed;
mod solo;
mod watched;
mod wire;

pub use abort::AbortHandle;
pub use gang::Joining;
#[cfg(feature = "nccl")]
pub use nccl::CudaNccl;
pub use nccl::{Attempt, CommunicatorState, Nccl, NcclApi};
pub use offer::{NcclOffer, Offer, Transport, UniqueId};
pub use ring::{Ring, RingOptions};
pub use solo::Solo;
pub use watched::{Position, Watched};

use candle_core::Tensor;

use crate::Result;

/// A gang of ranks that work in step. The results of every call are bit-identical on all ranks.
///
/// # Errors
/// Every call fails with [`crate::Error::Peer`] when a rank is lost, silent or elsewhere, and with
/// [`crate::Error::Aborted`] after an abort.
pub trait Collective: Send {
    /// Returns this rank, counted from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn world_size(&self) -> usize;

    /// Names the training step that the following calls belong to. Errors carry it.
    fn begin_step(&mut self, step: u64);

    /// Replaces `values` by their sum over all ranks. The order of addition depends on the world size alone.
    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()>;

    /// Returns the values of all ranks, concatenated by rank. Rank `r` contributes `counts[r]` values, and every rank
    /// knows all counts.
    ///
    /// # Errors
    /// [`crate::Error::Input`] when `mine` or `counts` have the wrong length.
    fn all_gather(&mut self, mine: &[f32], counts: &[usize]) -> Result<Vec<f32>>;

    /// Replaces `values` by those of rank `root`.
    ///
    /// # Errors
    /// [`crate::Error::Input`] when there is no such rank.
    fn broadcast(&mut self, root: usize, values: &mut [f32]) -> Result<()>;

    /// Waits until every rank has called it.
    fn barrier(&mut self) -> Result<()>;

    /// Starts replacing the values of a contiguous f32 or bf16 tensor by their sum over all ranks, on its device. Do
    /// not read or write the values before [`Collective::settle`] returns. Other computation may run at the same time.
    fn begin_all_reduce(&mut self, tensor: &Tensor) -> Result<()> {
        by_host::all_reduce(self, tensor)
    }

    /// Waits until all started sums are complete.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// Does the same as [`Collective::all_gather`] on the device, with a one-dimensional tensor.
    fn all_gather_tensor(&mut self, mine: &Tensor, counts: &[usize]) -> Result<Tensor> {
        by_host::all_gather(self, mine, counts)
    }

    /// Returns a handle with which another thread ends this collective.
    fn abort_handle(&self) -> AbortHandle;
}

fn check_root(root: usize, world_size: usize) -> Result<()> {
    match root < world_size {
        true => Ok(()),
        false => Err(crate::Error::Input(format!("broadcast from rank {root} of {world_size}"))),
    }
}

fn check_counts(mine: usize, counts: &[usize], rank: usize, world_size: usize) -> Result<()> {
    if counts.len() != world_size || counts[rank] != mine {
        return Err(crate::Error::Input(format!(
            "all_gather on rank {rank}: {mine} values with counts {counts:?}, but there are {world_size} ranks"
        )));
    }
    Ok(())
}
