//! What the ranks of a ring say to their neighbors over TCP.
//!
//! A sum is a reduce-scatter followed by an all-gather, both in segments. Segments are sent and received at the same
//! time over non-blocking sockets, so that buffers of any size can't deadlock. Each call opens with a header. Ranks
//! that are at different calls detect it and do not add wrong numbers.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::handshake::{Neighbours, connect};
use super::ring_call::{HEADER_BYTES, Kind, SEGMENT, chunk, describe, header, segments};
use super::{AbortHandle, RingOptions, check_counts, check_root};
use crate::{Error, Result};

/// The result of a transfer; the error says what was observed, before it is known which call it ends.
type Attempt<T> = std::result::Result<T, String>;

/// The connections of one rank, and the calls over them, one after another.
pub(super) struct Wire {
    rank: usize,
    world_size: usize,
    neighbours: Neighbours,
    timeout: Duration,
    abort: AbortHandle,
    /// Number of calls so far, which is equal on all ranks.
    sequence: u64,
    step: Option<u64>,
    /// The reason why every further call fails.
    broken: Option<String>,
    scratch: Vec<f32>,
}

/// One collective under way.
struct Call {
    header: [u8; HEADER_BYTES],
    deadline: Instant,
    /// True after the header was sent, which precedes the first values to the next rank.
    header_sent: bool,
    /// True after the header of the previous rank was received.
    header_received: bool,
}

impl Wire {
    /// Joins the ring, as [`Ring::connect`](super::Ring::connect) does.
    pub(super) fn connect(listener: &TcpListener, options: &RingOptions, abort: AbortHandle) -> Result<Self> {
        let (rank, world_size) = (options.rank, options.addresses.len());
        if rank >= world_size || world_size < 2 {
            return Err(Error::Input(format!("rank {rank} of {world_size} can't join a ring")));
        }
        let neighbours = connect(listener, options, &abort)?;
        for stream in clones(&neighbours)? {
            // Closing a socket wakes the threads that wait on it, on both sides.
            abort.on_abort(move |_| drop(stream.shutdown(Shutdown::Both)));
        }
        let (timeout, scratch) = (options.timeout, vec![0.0; SEGMENT]);
        Ok(Self { rank, world_size, neighbours, timeout, abort, sequence: 0, step: None, broken: None, scratch })
    }

    /// Another handle of each connection, for who has to close it from elsewhere.
    pub(super) fn streams(&self) -> Result<Vec<TcpStream>> {
        clones(&self.neighbours)
    }

    pub(super) fn begin_step(&mut self, step: u64) {
        self.step = Some(step);
    }

    pub(super) fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()> {
        self.call(Kind::AllReduce, values.len(), |ring, call| ring.sum(call, values))
    }

    pub(super) fn all_gather(&mut self, mine: &[f32], counts: &[usize]) -> Result<Vec<f32>> {
        check_counts(mine.len(), counts, self.rank, self.world_size)?;
        let start = |rank: usize| counts[..rank].iter().sum::<usize>();
        let mut values = vec![0.0; counts.iter().sum()];
        values[start(self.rank)..][..mine.len()].copy_from_slice(mine);
        self.call(Kind::AllGather, values.len(), |ring, call| {
            for step in 0..ring.world_size - 1 {
                let block = |rank: usize| start(rank)..start(rank) + counts[rank];
                let (send, receive) = (block(ring.rank_before(step)), block(ring.rank_before(step + 1)));
                let [send, receive] = values.get_disjoint_mut([send, receive]).expect("two blocks share nothing");
                ring.exchange(call, Some(send), Some(receive))?;
            }
            Ok(())
        })?;
        Ok(values)
    }

    pub(super) fn broadcast(&mut self, root: usize, values: &mut [f32]) -> Result<()> {
        check_root(root, self.world_size)?;
        let distance = self.rank_before(root);
        self.call(Kind::Broadcast { root }, values.len(), |ring, call| {
            // An empty buffer has a header too.
            let empty = values.is_empty().then_some(0..0);
            for segment in segments(0..values.len()).chain(empty) {
                if distance > 0 {
                    ring.exchange(call, None, Some(&mut values[segment.clone()]))?;
                }
                if distance + 1 < ring.world_size {
                    ring.exchange(call, Some(&values[segment]), None)?;
                }
            }
            Ok(())
        })
    }

    pub(super) fn barrier(&mut self) -> Result<()> {
        self.call(Kind::Barrier, 0, |ring, call| {
            // A token from each rank reaches every other one. A rank that has all tokens knows that all ranks are here.
            (1..ring.world_size).try_for_each(|_| ring.exchange(call, Some(&[0.0]), Some(&mut [0.0])))
        })
    }

    /// Runs one collective. A failure breaks the ring, and the neighbors notice at once.
    fn call<T>(
        &mut self,
        kind: Kind,
        length: usize,
        run: impl FnOnce(&mut Self, &mut Call) -> Attempt<T>,
    ) -> Result<T> {
        self.abort.check()?;
        let result = match self.broken.take() {
            Some(reason) => Err(reason),
            None => {
                let mut call = Call {
                    header: header(self.sequence, kind, length),
                    deadline: Instant::now() + self.timeout,
                    header_sent: false,
                    header_received: false,
                };
                run(self, &mut call)
            }
        };
        self.sequence += 1;
        result.map_err(|reason| {
            self.broken = Some(reason.clone());
            for stream in self.neighbours.streams() {
                drop(stream.shutdown(Shutdown::Both));
            }
            let step = self.step.map_or_else(|| "before the first step".to_owned(), |step| format!("at step {step}"));
            let during = format!("{} {step}", kind.name());
            let (rank, world_size) = (self.rank, self.world_size);
            self.abort.check().err().unwrap_or(Error::Peer { rank, world_size, during, reason })
        })
    }

    fn next_rank(&self) -> usize {
        (self.rank + 1) % self.world_size
    }

    /// Returns the rank `steps` places before this one.
    fn rank_before(&self, steps: usize) -> usize {
        (self.rank + 2 * self.world_size - steps) % self.world_size
    }

    /// Sends and receives at the same time. A direction that is `None` has no header either.
    fn exchange(&mut self, call: &mut Call, send: Option<&[f32]>, receive: Option<&mut [f32]>) -> Attempt<()> {
        let mut heard = [0; HEADER_BYTES];
        let expects_header = receive.is_some() && !call.header_received;
        let header_out: &[u8] = if send.is_some() && !call.header_sent { &call.header } else { &[] };
        let header_in: &mut [u8] = if expects_header { &mut heard } else { &mut [] };
        call.header_sent |= send.is_some();
        call.header_received |= receive.is_some();
        let mut outgoing = [header_out, bytemuck::cast_slice(send.unwrap_or_default())];
        let mut incoming = [header_in, bytemuck::cast_slice_mut(receive.unwrap_or_default())];
        loop {
            let moved = self.send_some(&mut outgoing)? | self.receive_some(&mut incoming)?;
            let sending = outgoing.iter().any(|part| !part.is_empty()) || !self.neighbours.next.is_flushed();
            let receiving = incoming.iter().any(|part| !part.is_empty());
            if !sending && !receiving {
                break;
            }
            if !moved {
                self.wait(call, sending, receiving)?;
            }
        }
        if expects_header {
            self.check_header(call, &heard)?;
        }
        Ok(())
    }

    /// Sends as much as the socket accepts now. Returns true if any bytes were sent.
    fn send_some(&mut self, parts: &mut [&[u8]; 2]) -> Attempt<bool> {
        let rank = self.next_rank();
        let sent = self.neighbours.next.send_some(parts);
        sent.map_err(|error| format!("rank {rank} is gone: {error}"))
    }

    /// Receives what the socket has now. Returns true if any bytes came.
    fn receive_some(&mut self, parts: &mut [&mut [u8]; 2]) -> Attempt<bool> {
        let rank = self.rank_before(1);
        let received = self.neighbours.previous.receive_some(parts);
        received.map_err(|error| format!("rank {rank} is gone: {error}"))
    }

    /// Sleeps until a socket is ready or the call's time is up.
    fn wait(&self, call: &Call, sending: bool, receiving: bool) -> Attempt<()> {
        let left = call.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let (action, rank) =
                if receiving { ("sent nothing", self.rank_before(1)) } else { ("took nothing", self.next_rank()) };
            let seconds = self.timeout.as_secs_f64();
            return Err(format!("rank {rank} {action} within {seconds} s ({})", describe(&call.header)));
        }
        let [next, previous] = self.neighbours.streams();
        let mut waiting = [PollFd::new(next, PollFlags::OUT), PollFd::new(previous, PollFlags::IN)];
        let timeout = Timespec::try_from(left).map_err(|error| error.to_string())?;
        match poll(&mut waiting[usize::from(!sending)..1 + usize::from(receiving)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(format!("waiting for a socket: {error}")),
        }
    }

    /// Sums the values around the ring in `2 (world_size - 1)` rounds. In each round a rank sends the chunk that it
    /// received in the round before. It passes a segment on as soon as the segment has arrived and its own values are
    /// added, so the network's delay counts once for each round and not for each segment.
    fn sum(&mut self, call: &Call, values: &mut [f32]) -> Attempt<()> {
        let (length, world_size) = (values.len(), self.world_size);
        let of_round = |round: usize| segments(chunk(length, world_size, self.rank_before(round)));
        let count = |rounds: Range<usize>| rounds.flat_map(of_round).count();
        let last = 2 * (world_size - 1);
        // The path of this rank's sends. The receives are the same path from the second round on.
        let path: Vec<Range<usize>> = (0..=last).flat_map(of_round).collect();
        let (sends, added) = (count(0..last), count(0..world_size));
        let (mut sent, mut received) = (0, count(0..1));
        let (mut sent_bytes, mut received_bytes, mut heard) = (0, 0, [0; HEADER_BYTES]);
        let (mut header_out, mut header_in) = (0, 0);
        let mut scratch = std::mem::take(&mut self.scratch);
        loop {
            let own = if sent < sends.min(received) { path[sent].clone() } else { 0..0 };
            let own: &[u8] = bytemuck::cast_slice(&values[own]);
            let mut outgoing = [&call.header[header_out..], &own[sent_bytes..]];
            let mut moved = self.send_some(&mut outgoing)?;
            (header_out, sent_bytes) = (HEADER_BYTES - outgoing[0].len(), own.len() - outgoing[1].len());
            if sent_bytes == own.len() {
                (sent, sent_bytes) = (sent + usize::from(!own.is_empty()), 0);
            }
            let segment = path.get(received).cloned().unwrap_or(0..0);
            let theirs: &mut [u8] = bytemuck::cast_slice_mut(&mut scratch[..segment.len()]);
            let whole = theirs.len();
            let mut incoming = [&mut heard[header_in..], &mut theirs[received_bytes..]];
            moved |= self.receive_some(&mut incoming)?;
            (header_in, received_bytes) = (HEADER_BYTES - incoming[0].len(), whole - incoming[1].len());
            if header_in == HEADER_BYTES {
                self.check_header(call, &heard)?;
            }
            if received_bytes == whole && whole > 0 {
                let (own, theirs) = (&mut values[segment], &scratch[..whole / size_of::<f32>()]);
                match received < added {
                    true => own.iter_mut().zip(theirs).for_each(|(own, theirs)| *own += *theirs),
                    false => own.copy_from_slice(theirs),
                }
                (received, received_bytes) = (received + 1, 0);
            }
            let sending = header_out < HEADER_BYTES || sent < sends.min(received) || !self.neighbours.next.is_flushed();
            let receiving = header_in < HEADER_BYTES || received < path.len();
            if !sending && !receiving {
                break;
            }
            if !moved {
                self.wait(call, sending, receiving)?;
            }
        }
        self.scratch = scratch;
        Ok(())
    }

    /// Refuses the values of a rank that is at another call.
    fn check_header(&self, call: &Call, heard: &[u8; HEADER_BYTES]) -> Attempt<()> {
        match *heard == call.header {
            true => Ok(()),
            false => Err(format!(
                "rank {} is at {}, this rank at {}",
                self.rank_before(1),
                describe(heard),
                describe(&call.header)
            )),
        }
    }
}

fn clones(neighbours: &Neighbours) -> Result<Vec<TcpStream>> {
    let clone =
        |stream: &TcpStream| stream.try_clone().map_err(|source| Error::Io { path: "a ring's socket".into(), source });
    neighbours.streams().into_iter().map(clone).collect()
}
