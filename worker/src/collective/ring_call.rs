//! The headers of a ring's calls, and the segments of their buffers.

use std::ops::Range;

/// Numbers in a segment, which is sent before the received sums are added. It is large for the network and small enough
/// for the cache.
pub(super) const SEGMENT: usize = 64 * 1024;
pub(super) const HEADER_BYTES: usize = 32;

#[derive(Clone, Copy)]
pub(super) enum Kind {
    AllReduce,
    AllGather,
    Broadcast { root: usize },
    Barrier,
}

/// The names of the kinds, by their code from 1 on.
const NAMES: [&str; 4] = ["all_reduce_sum", "all_gather", "broadcast", "barrier"];

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        NAMES[self.code()[0] as usize - 1]
    }

    const fn code(self) -> [u64; 2] {
        match self {
            Self::AllReduce => [1, 0],
            Self::AllGather => [2, 0],
            Self::Broadcast { root } => [3, root as u64],
            Self::Barrier => [4, 0],
        }
    }
}

/// Returns sequence, kind, root and length as four little-endian u64.
pub(super) fn header(sequence: u64, kind: Kind, length: usize) -> [u8; HEADER_BYTES] {
    let [code, root] = kind.code();
    bytemuck::cast([sequence, code, root, length as u64].map(u64::to_le))
}

pub(super) fn describe(header: &[u8; HEADER_BYTES]) -> String {
    let [call, kind, _, values] = bytemuck::cast::<_, [u64; 4]>(*header).map(u64::from_le);
    let kind = (1..).zip(NAMES).find(|(code, _)| *code == kind).map_or("an unknown collective", |(_, name)| name);
    format!("call {call}, {kind} of {values} values")
}

/// Returns the part of a buffer that belongs to `rank`, when it is cut into `world_size` chunks.
pub(super) fn chunk(length: usize, world_size: usize, rank: usize) -> Range<usize> {
    rank * length / world_size..(rank + 1) * length / world_size
}

/// Cuts a range into segments. An empty range has none.
pub(super) fn segments(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(SEGMENT).map(move |start| start..(start + SEGMENT).min(range.end))
}
