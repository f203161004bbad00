//! What ranks say to each other: sums, gathers and broadcasts over f32 buffers and over tensors, behind one trait. [`Ring`] speaks
//! TCP and runs everywhere; [`Nccl`] joins GPUs.
//!
//! Every rank of a gang makes the same calls in the same order. A rank that dies, falls silent or calls something else
//! shows up on its neighbours as [`crate::Error::Peer`] within the collective's timeout; an [`AbortHandle`] ends what is
//! pending at once. After an error a collective is broken for good: a gang that goes on does so in its next generation,
//! over new connections.

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

pub use abort::AbortHandle;
pub use gang::{Joining, Met};
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
pub trait Collective: Send {
    /// This rank, counted from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world_size(&self) -> usize;

    /// Names the training step that the following calls belong to. Errors carry it.
    fn begin_step(&mut self, step: u64);

    /// Replaces `values` by their sum over all ranks. The order of addition depends on the world size alone.
    ///
    /// # Errors
    /// [`crate::Error::Peer`] when a rank is lost, silent or elsewhere; [`crate::Error::Aborted`] after an abort.
    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()>;

    /// The ranks' values one after another, by rank. `counts[r]` is how many rank `r` brings, known to all ranks.
    ///
    /// # Errors
    /// As [`Collective::all_reduce_sum`], and [`crate::Error::Input`] when `mine` or `counts` have the wrong length.
    fn all_gather(&mut self, mine: &[f32], counts: &[usize]) -> Result<Vec<f32>>;

    /// Replaces `values` by those of rank `root`.
    ///
    /// # Errors
    /// As [`Collective::all_reduce_sum`], and [`crate::Error::Input`] when there is no such rank.
    fn broadcast(&mut self, root: usize, values: &mut [f32]) -> Result<()>;

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// As [`Collective::all_reduce_sum`].
    fn barrier(&mut self) -> Result<()>;

    /// Begins to replace the values of a contiguous f32 or bf16 tensor by their sum over all ranks, on its device. Nobody may touch
    /// them until [`Collective::settle`] has returned; what is computed meanwhile runs beside it.
    ///
    /// # Errors
    /// As [`Collective::all_reduce_sum`].
    fn begin_all_reduce(&mut self, tensor: &Tensor) -> Result<()> {
        by_host::all_reduce(self, tensor)
    }

    /// Returns when all sums that were begun are there.
    ///
    /// # Errors
    /// As [`Collective::all_reduce_sum`].
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// As [`Collective::all_gather`], on the device: a tensor of one dimension.
    ///
    /// # Errors
    /// As [`Collective::all_gather`].
    fn all_gather_tensor(&mut self, mine: &Tensor, counts: &[usize]) -> Result<Tensor> {
        by_host::all_gather(self, mine, counts)
    }

    /// What another thread needs to end this collective.
    fn abort_handle(&self) -> AbortHandle;
}

/// What an [`Collective::all_gather`] is told must fit the gang.
fn check_counts(mine: usize, counts: &[usize], rank: usize, world_size: usize) -> Result<()> {
    if counts.len() != world_size || counts[rank] != mine {
        return Err(crate::Error::Input(format!(
            "all_gather on rank {rank}: {mine} values with counts {counts:?}, but there are {world_size} ranks"
        )));
    }
    Ok(())
}
