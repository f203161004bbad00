//! The headers of a ring's calls, and the segments of their buffers.

use std::ops::Range;

/// Numbers in a segment, which is sent before the received sums are added. It is large for the network and small enough
/// for the cache.
pub(super) const SEGMENT: usize = 64 * 1024;
pub(super) const HEADER_BYTES: usize = 32;

/// The kind of a call, for its header and for errors.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    AllReduce,
    AllGather,
    Broadcast { root: usize },
    Barrier,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce_sum",
            Self::AllGather => "all_gather",
            Self::Broadcast { .. } => "broadcast",
            Self::Barrier => "barrier",
        }
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
    let mut bytes = [0; HEADER_BYTES];
    let [code, root] = kind.code();
    for (slot, word) in bytes.chunks_exact_mut(8).zip([sequence, code, root, length as u64]) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Describes a header for people.
pub(super) fn describe(header: &[u8; HEADER_BYTES]) -> String {
    let word = |index: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[8 * index + byte]));
    let kind = match word(1) {
        1 => "all_reduce_sum",
        2 => "all_gather",
        3 => "broadcast",
        4 => "barrier",
        _ => "an unknown collective",
    };
    format!("call {}, {kind} of {} values", word(0), word(3))
}

/// Returns the part of a buffer that belongs to `rank`, when it is cut into `world_size` chunks.
pub(super) fn chunk(length: usize, world_size: usize, rank: usize) -> Range<usize> {
    rank * length / world_size..(rank + 1) * length / world_size
}

/// Cuts a range into segments. An empty range has none.
pub(super) fn segments(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(SEGMENT).map(move |start| start..(start + SEGMENT).min(range.end))
}
