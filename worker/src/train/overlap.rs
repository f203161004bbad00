//! Gradients that cross the network while others are still computed.

use crate::Result;
use crate::collective::Collective;

/// Sums `bucket` over all ranks while `compute` runs on this thread. A rank alone just computes.
///
/// # Errors
/// Those of the collective; `compute` has run to its end all the same.
pub fn reduce_while(collective: &mut dyn Collective, bucket: &mut [f32], compute: impl FnOnce()) -> Result<()> {
    if collective.world_size() == 1 {
        compute();
        return collective.all_reduce_sum(bucket);
    }
    std::thread::scope(|scope| {
        let reducing = scope.spawn(|| collective.all_reduce_sum(bucket));
        compute();
        reducing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
