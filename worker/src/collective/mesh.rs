//! Monitors the members of a gang over a connection between every two ranks, beside the transport of the numbers.
//!
//! NCCL reports that something is wrong, but not which rank. A process that dies closes its sockets, and the others
//! notice at once. A process that hangs does not answer questions about its place. A rank that gives up names the rank
//! at fault, so every rank reports the first fault and not its consequences.

use std::io::ErrorKind;
use std::net::{Shutdown, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::handshake::{lost, meet};
use super::sealed::{Line, Messages};
use super::{AbortHandle, RingOptions};
use crate::Result;
use crate::control::lock;

/// The time limit for a rank to report its place.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
const FRAME_BYTES: usize = 17;
const ASK: u8 = 1;
const PLACE: u8 = 2;
const GAVE_UP: u8 = 3;
const FINISHED: u8 = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) rank: usize,
    pub(super) how: String,
}

/// The progress of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// Number of collectives to which it has contributed.
    pub(super) calls: u64,
    pub(super) step: Option<u64>,
}

/// The connections of this rank to all others.
pub(super) struct Mesh {
    rank: usize,
    /// The connection to each rank; none for this one.
    peers: Vec<Option<Arc<Mutex<Messages>>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The first fault that was reported.
    lost: Mutex<Option<Lost>>,
    own: Mutex<Place>,
    /// The answer of each rank.
    theirs: Mutex<Vec<Option<Place>>>,
    /// For each rank, whether it said that it is done.
    finished: Mutex<Vec<bool>>,
}

impl Shared {
    fn lose(&self, rank: usize, how: impl Into<String>) {
        let mut lost = lock(&self.lost);
        if lost.is_none() {
            *lost = Some(Lost { rank, how: how.into() });
        }
    }
}

impl Mesh {
    /// Connects to every other rank within the timeout. It dials lower ranks and waits for higher ones.
    ///
    /// # Errors
    /// [`crate::Error::Peer`] naming the rank that did not come or belongs to another generation; [`crate::Error::Aborted`].
    pub(super) fn connect(listener: &TcpListener, options: &RingOptions, abort: &AbortHandle) -> Result<Self> {
        let mut lines: Vec<Option<Line>> = options.addresses.iter().map(|_| None).collect();
        let above: Vec<usize> = (options.rank + 1..lines.len()).collect();
        let (answered, accepted) = meet(listener, options, 0..options.rank, &above, abort)?;
        for (rank, line) in answered.into_iter().chain(accepted) {
            lines[rank] = Some(line);
        }
        Self::listen(options.rank, lines).map_err(|error| lost(options, format!("setting up the connections: {error}")))
    }

    fn listen(rank: usize, lines: Vec<Option<Line>>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            theirs: Mutex::new(vec![None; lines.len()]),
            finished: Mutex::new(vec![false; lines.len()]),
            ..Shared::default()
        });
        let mut peers = Vec::with_capacity(lines.len());
        for (peer, line) in lines.into_iter().enumerate() {
            let Some(line) = line else {
                peers.push(None);
                continue;
            };
            line.stream.set_nodelay(true)?;
            line.stream.set_read_timeout(None)?;
            line.stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            let (reader, writer) = Messages::both_ends(line)?;
            let writer = Arc::new(Mutex::new(writer));
            let (answers, told) = (writer.clone(), shared.clone());
            // The thread ends when either side closes the connection.
            std::thread::spawn(move || hear(reader, peer, &answers, &told));
            peers.push(Some(writer));
        }
        Ok(Self { rank, peers, shared })
    }

    /// Sets the place of this rank, for ranks that ask.
    pub(super) fn is_at(&self, place: Place) {
        *lock(&self.shared.own) = place;
    }

    /// Returns the first fault that this rank has heard of.
    pub(super) fn lost(&self) -> Option<Lost> {
        lock(&self.shared.lost).clone()
    }

    /// Waits a moment for the name of the lost rank, after the transport has noticed a loss.
    pub(super) fn lost_within(&self, patience: Duration) -> Option<Lost> {
        let deadline = Instant::now() + patience;
        loop {
            let lost = self.lost();
            if lost.is_some() || Instant::now() >= deadline {
                return lost;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks every rank for its place. After a moment it returns the first rank that is behind `place` or does not
    /// answer, and a description of all of them.
    pub(super) fn laggards(&self, place: Place) -> (Option<usize>, String) {
        lock(&self.shared.theirs).fill(None);
        self.tell_all(ASK, 0, 0);
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let others = || (0..self.peers.len()).filter(|rank| *rank != self.rank);
        while Instant::now() < deadline && others().any(|rank| lock(&self.shared.theirs)[rank].is_none()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let theirs = lock(&self.shared.theirs).clone();
        let behind = others().filter_map(|rank| match theirs[rank] {
            None => Some((rank, format!("rank {rank} does not answer"))),
            Some(their) if their.calls < place.calls => {
                let step = their.step.map_or_else(|| "the beginning".into(), |step| format!("step {step}"));
                Some((rank, format!("rank {rank} is behind, at {step} after call {}", their.calls)))
            }
            Some(_) => None,
        });
        let (ranks, words): (Vec<usize>, Vec<String>) = behind.unzip();
        if words.is_empty() {
            let words = "all ranks are at the same call: the network between the GPUs, or NCCL itself, is stuck";
            return (None, words.into());
        }
        (ranks.first().copied(), words.join(", "))
    }

    /// Tells the others that this rank is done, so that its closed connection is not a fault.
    pub(super) fn finish(&self) {
        self.tell_all(FINISHED, 0, 0);
    }

    /// Tells the others that this rank gives up, and which rank is at fault.
    pub(super) fn give_up(&self, culprit: usize) {
        self.tell_all(GAVE_UP, culprit as u64, 0);
    }

    fn tell_all(&self, kind: u8, a: u64, b: u64) {
        for peer in self.peers.iter().flatten() {
            // A rank that can't be told has died, which is noticed elsewhere.
            let _ = lock(peer).say(&frame(kind, a, b));
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for peer in self.peers.iter().flatten() {
            let _ = lock(peer).stream().shutdown(Shutdown::Both);
        }
    }
}

/// Reads the messages of one rank until the connection ends.
fn hear(mut reader: Messages, peer: usize, answers: &Mutex<Messages>, shared: &Shared) {
    let mut said = [0; FRAME_BYTES];
    loop {
        if let Err(error) = reader.hear(&mut said) {
            if !lock(&shared.finished)[peer] {
                let how = match error.kind() {
                    ErrorKind::UnexpectedEof => "its connection closed, its process has ended".to_owned(),
                    _ => format!("its connection broke: {error}"),
                };
                shared.lose(peer, how);
            }
            return;
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| said[at + byte]));
        match said[0] {
            ASK => {
                let own = *lock(&shared.own);
                let step = own.step.map_or(u64::MAX, |step| step);
                let _ = lock(answers).say(&frame(PLACE, own.calls, step));
            }
            PLACE => {
                let step = Some(word(9)).filter(|step| *step != u64::MAX);
                lock(&shared.theirs)[peer] = Some(Place { calls: word(1), step });
            }
            GAVE_UP if word(1) == peer as u64 => shared.lose(peer, "it gave up"),
            GAVE_UP => shared.lose(word(1) as usize, format!("rank {peer} gave up on it")),
            FINISHED => lock(&shared.finished)[peer] = true,
            // A later version may send other messages.
            _ => {}
        }
    }
}

fn frame(kind: u8, a: u64, b: u64) -> [u8; FRAME_BYTES] {
    let mut bytes = [kind; FRAME_BYTES];
    bytes[1..9].copy_from_slice(&a.to_le_bytes());
    bytes[9..].copy_from_slice(&b.to_le_bytes());
    bytes
}
