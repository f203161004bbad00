//! Connects the ranks of a ring, and refuses callers that do not belong to it.
//!
//! Each rank dials the next one and identifies itself. Each rank listens for the previous one and answers with a
//! verdict. A caller of another generation, out of place, or without the gang's secret is refused, and the listener
//! continues to wait. Both sides prove that they know the secret without sending it, by an HMAC over the messages, the
//! listener's rank and the caller's nonce. In a sealed gang, each side also sends its part of Noise's handshake.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::Sha256;

use super::sealed::{self, Greeting, Incoming, Keys, Line, Outgoing};
use super::{AbortHandle, RingOptions};
use crate::{Error, Result};

const MAGIC: u64 = u64::from_le_bytes(*b"llinkgng");
const HELLO_BYTES: usize = 32;
const WELCOME: u8 = 1;
const OTHER_GENERATION: u8 = 2;
const OUT_OF_PLACE: u8 = 3;
const NO_PROOF: u8 = 4;
const NONCE_BYTES: usize = 16;
const PROOF_BYTES: usize = 32;
const OPENING_BYTES: usize = HELLO_BYTES + NONCE_BYTES + PROOF_BYTES;
/// The time limit for a caller's introduction; meanwhile the listener hears nobody else.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// The interval of the check for an abort, while there are no sockets that it could close.
pub(super) const PATIENCE: Duration = Duration::from_millis(20);

/// The two connections of a rank.
pub(super) struct Neighbours {
    pub(super) next: Outgoing,
    pub(super) previous: Incoming,
}

impl Neighbours {
    /// Returns the connections to the next rank and from the previous one.
    pub(super) fn streams(&self) -> [&TcpStream; 2] {
        [&self.next.stream, &self.previous.stream]
    }
}

/// Connects this rank to the next and the previous one within the timeout.
pub(super) fn connect(listener: TcpListener, options: &RingOptions, abort: &AbortHandle) -> Result<Neighbours> {
    let deadline = Instant::now() + options.timeout;
    let lost = |reason: String| lost(options, reason);
    listener.set_nonblocking(true).map_err(|error| lost(format!("its own listener: {error}")))?;
    let world_size = options.addresses.len();
    let next_rank = (options.rank + 1) % world_size;
    let previous_rank = (options.rank + world_size - 1) % world_size;
    let expected = |rank: usize| rank == previous_rank;
    let mut next = dial(options, next_rank, deadline, abort)?;
    let mut call = Call::new(options, next_rank)?;
    next.write_all(&call.opening).map_err(|error| lost(format!("rank {next_rank} hung up: {error}")))?;
    let (mut previous, mut welcome) = (None, None);
    while previous.is_none() || welcome.is_none() {
        abort.check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(lost(missing(options, previous.is_some(), welcome.is_some())));
        }
        let wait = Timespec::try_from(left.min(PATIENCE)).map_err(|error| lost(error.to_string()))?;
        let mut waiting = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&next, PollFlags::IN)];
        let (first, last) = (usize::from(previous.is_some()), if welcome.is_some() { 1 } else { 2 });
        match poll(&mut waiting[first..last], Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(lost(format!("waiting for connections: {error}"))),
        }
        let (caller, verdict) = (!waiting[0].revents().is_empty(), !waiting[1].revents().is_empty());
        if caller && let Ok((stream, _)) = listener.accept() {
            previous = answer(stream, options, expected).map(|(_, line)| line);
        }
        if verdict {
            let mut verdict = [0];
            next.read_exact(&mut verdict).map_err(|error| lost(format!("rank {next_rank} hung up: {error}")))?;
            welcome = Some(call.judge(verdict[0], &mut next, options)?);
        }
    }
    let previous = previous.expect("the loop ends once there is one");
    let next = Line { stream: next, keys: welcome.flatten() };
    let unusable = |error: std::io::Error| lost(format!("its keys: {error}"));
    let neighbours = Neighbours {
        next: Outgoing::new(next).map_err(unusable)?,
        previous: Incoming::new(previous).map_err(unusable)?,
    };
    for stream in neighbours.streams() {
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_nonblocking(true))
            .map_err(|error| lost(format!("setting up a socket: {error}")))?;
    }
    Ok(neighbours)
}

/// Connects to `rank`, and retries while it does not listen yet.
pub(super) fn dial(options: &RingOptions, rank: usize, deadline: Instant, abort: &AbortHandle) -> Result<TcpStream> {
    let address = &options.addresses[rank];
    loop {
        abort.check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        let attempt = address
            .to_socket_addrs()
            .and_then(|mut found| found.next().ok_or_else(|| ErrorKind::AddrNotAvailable.into()))
            .and_then(|socket| TcpStream::connect_timeout(&socket, left.clamp(PATIENCE, HELLO_TIMEOUT)));
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) if left.is_zero() => {
                return Err(lost(options, format!("rank {rank} at {address} can't be reached: {error}")));
            }
            Err(_) => std::thread::sleep(PATIENCE.min(left)),
        }
    }
}

/// A call from one rank to another, and the values for checking the answer.
pub(super) struct Call {
    /// The caller's hello, a nonce, and the proof that it knows the secret; then its part of the keys if the gang is
    /// sealed.
    pub(super) opening: Vec<u8>,
    listener: usize,
    greeting: Option<Greeting>,
}

impl Call {
    pub(super) fn new(options: &RingOptions, listener: usize) -> Result<Self> {
        let mut opening = [0; OPENING_BYTES];
        let (said, rest) = opening.split_at_mut(HELLO_BYTES);
        let (nonce, shown) = rest.split_at_mut(NONCE_BYTES);
        said.copy_from_slice(&hello(options, options.rank));
        getrandom::fill(nonce).map_err(|error| lost(options, format!("no random bytes: {error}")))?;
        shown.copy_from_slice(&proof(options, b"caller", listener, said, nonce).finalize().into_bytes());
        let (mut opening, mut greeting) = (opening.to_vec(), None);
        if options.sealed {
            let (made, message) = Greeting::new(&options.secret, &opening)
                .map_err(|error| lost(options, format!("its own keys: {error}")))?;
            opening.extend_from_slice(&message);
            greeting = Some(made);
        }
        Ok(Self { opening, listener, greeting })
    }

    /// Interprets the listener's verdict after checking that it knows the secret, and returns the keys of a sealed
    /// connection.
    pub(super) fn judge(&mut self, verdict: u8, stream: &mut TcpStream, options: &RingOptions) -> Result<Option<Keys>> {
        let rank = self.listener;
        let refused = |reason: String| Err(lost(options, reason));
        match verdict {
            WELCOME => {}
            NO_PROOF => return refused(format!("rank {rank} has another secret of the gang")),
            OTHER_GENERATION => return refused(format!("rank {rank} is in another generation of the gang")),
            _ => return refused(format!("rank {rank} expects another rank in this one's place")),
        }
        let mut shown = [0; PROOF_BYTES];
        stream
            .set_read_timeout(Some(HELLO_TIMEOUT))
            .and_then(|()| stream.read_exact(&mut shown))
            .map_err(|error| lost(options, format!("rank {rank} hung up: {error}")))?;
        let (said, rest) = self.opening.split_at(HELLO_BYTES);
        let expected = proof(options, b"listener", rank, said, &rest[..NONCE_BYTES]);
        let stranger = || {
            let reason = format!("the process that answers for rank {rank} does not know the gang's secret");
            lost(options, reason)
        };
        expected.verify_slice(&shown).map_err(|_| stranger())?;
        let Some(greeting) = self.greeting.take() else {
            return Ok(None);
        };
        let mut message = [0; sealed::MESSAGE_BYTES];
        stream.read_exact(&mut message).map_err(|error| lost(options, format!("rank {rank} hung up: {error}")))?;
        greeting.answered(&message).map(Some).map_err(|_| stranger())
    }
}

/// Returns the calling rank and its connection, if it is expected and knows the secret.
pub(super) fn answer(
    mut stream: TcpStream,
    options: &RingOptions,
    expected: impl Fn(usize) -> bool,
) -> Option<(usize, Line)> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT)).ok()?;
    let mut opening = [0; OPENING_BYTES];
    stream.read_exact(&mut opening).ok()?;
    let (said, rest) = opening.split_at(HELLO_BYTES);
    let (nonce, shown) = rest.split_at(NONCE_BYTES);
    let caller = (0..options.addresses.len()).find(|rank| said == hello(options, *rank));
    let verdict = match caller {
        Some(rank) if !expected(rank) => OUT_OF_PLACE,
        Some(_) => match proof(options, b"caller", options.rank, said, nonce).verify_slice(shown) {
            Ok(()) => WELCOME,
            Err(_) => NO_PROOF,
        },
        None if said[..16] == hello(options, 0)[..16] => OUT_OF_PLACE,
        None => OTHER_GENERATION,
    };
    let mut greeting = [0; sealed::MESSAGE_BYTES];
    if options.sealed {
        // The rest is read in any case, because a verdict over unread bytes may not arrive.
        stream.read_exact(&mut greeting).ok()?;
    }
    let (mut said_back, mut keys) = (vec![verdict], None);
    if verdict == WELCOME {
        let own = proof(options, b"listener", options.rank, said, nonce);
        said_back.extend_from_slice(&own.finalize().into_bytes());
        if options.sealed {
            let (answer, made) = sealed::answer(&options.secret, &opening, &greeting).ok()?;
            said_back.extend_from_slice(&answer);
            keys = Some(made);
        }
    }
    // A refused caller may not receive the verdict.
    stream.write_all(&said_back).ok()?;
    let rank = caller.filter(|_| verdict == WELCOME)?;
    Some((rank, Line { stream, keys }))
}

/// Computes a proof that only members of the gang can make. It covers who proves it, the listener's rank, the caller's
/// message (which holds the caller's rank), and the caller's nonce.
fn proof(options: &RingOptions, who: &[u8], listener: usize, said: &[u8], nonce: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&options.secret).expect("HMAC takes a key of any length");
    for part in [who, (listener as u64).to_le_bytes().as_slice(), said, nonce] {
        mac.update(part);
    }
    mac
}

/// Returns magic, generation, rank and world size as four little-endian u64.
fn hello(options: &RingOptions, rank: usize) -> [u8; HELLO_BYTES] {
    let mut bytes = [0; HELLO_BYTES];
    let words = [MAGIC, options.generation, rank as u64, options.addresses.len() as u64];
    for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn missing(options: &RingOptions, has_previous: bool, welcome: bool) -> String {
    let world_size = options.addresses.len();
    let seconds = options.timeout.as_secs_f64();
    let (next, previous) = ((options.rank + 1) % world_size, (options.rank + world_size - 1) % world_size);
    match (has_previous, welcome) {
        (false, _) => format!("rank {previous} did not connect within {seconds} s"),
        (true, _) => format!("rank {next} at {} did not answer within {seconds} s", options.addresses[next]),
    }
}

pub(super) fn lost(options: &RingOptions, reason: String) -> Error {
    Error::Peer {
        rank: options.rank,
        world_size: options.addresses.len(),
        during: "connecting the ranks".into(),
        reason,
    }
}
