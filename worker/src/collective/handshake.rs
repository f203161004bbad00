//! Connects the ranks of a gang, and refuses callers that do not belong to it.
//!
//! Each rank dials some others and identifies itself. The others listen, and answer with a verdict. A caller of another
//! generation, out of place, or without the gang's secret is refused, and the listener continues to wait. Both sides
//! prove that they know the secret without sending it, by an HMAC over the messages, the listener's rank and the caller's
//! nonce. In a sealed gang, each side also sends its part of Noise's handshake.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::Sha256;

use super::sealed::{self, Greeting, Incoming, Line, Outgoing};
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
const PATIENCE: Duration = Duration::from_millis(20);

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
pub(super) fn connect(listener: &TcpListener, options: &RingOptions, abort: &AbortHandle) -> Result<Neighbours> {
    let lost = |what: &str, error: std::io::Error| lost(options, format!("{what}: {error}"));
    let world_size = options.addresses.len();
    let (next, previous) = ((options.rank + 1) % world_size, (options.rank + world_size - 1) % world_size);
    let (mut next, mut previous) = meet(listener, options, [next], &[previous], abort)?;
    let met = "every rank was met";
    let neighbours = Neighbours {
        next: Outgoing::new(next.pop().expect(met).1).map_err(|error| lost("its keys", error))?,
        previous: Incoming::new(previous.pop().expect(met).1).map_err(|error| lost("its keys", error))?,
    };
    for stream in neighbours.streams() {
        let set = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
        set.map_err(|error| lost("setting up a socket", error))?;
    }
    Ok(neighbours)
}

pub(super) type Lines = Vec<(usize, Line)>;

/// Calls some ranks, and waits for the calls of those that are `awaited`, within the timeout. Returns the lines of both.
pub(super) fn meet(
    listener: &TcpListener,
    options: &RingOptions,
    called: impl IntoIterator<Item = usize>,
    awaited: &[usize],
    abort: &AbortHandle,
) -> Result<(Lines, Lines)> {
    let deadline = Instant::now() + options.timeout;
    let lost = |reason: String| lost(options, reason);
    listener.set_nonblocking(true).map_err(|error| lost(format!("its own listener: {error}")))?;
    let calls = called.into_iter().map(|rank| Call::begin(options, rank, deadline, abort));
    let mut calls = calls.collect::<Result<Vec<Call>>>()?;
    let (mut answered, mut accepted) = (Lines::new(), Lines::new());
    loop {
        abort.check()?;
        let is_missing = |rank: &usize| accepted.iter().all(|(known, _)| known != rank);
        let missing = awaited.iter().find(|rank| is_missing(rank));
        if calls.is_empty() && missing.is_none() {
            return Ok((answered, accepted));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let seconds = options.timeout.as_secs_f64();
            return Err(lost(match missing {
                Some(rank) => format!("rank {rank} did not connect within {seconds} s"),
                None => {
                    let rank = calls[0].listener;
                    format!("rank {rank} at {} did not answer within {seconds} s", options.addresses[rank])
                }
            }));
        }
        let wait = Timespec::try_from(left.min(PATIENCE)).map_err(|error| lost(error.to_string()))?;
        let mut waiting: Vec<PollFd<'_>> = calls.iter().map(|call| PollFd::new(&call.stream, PollFlags::IN)).collect();
        waiting.extend(missing.map(|_| PollFd::new(listener, PollFlags::IN)));
        match poll(&mut waiting, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(lost(format!("waiting for connections: {error}"))),
        }
        let heard: Vec<bool> = waiting.iter().map(|polled| !polled.revents().is_empty()).collect();
        if missing.is_some()
            && let Ok((stream, _)) = listener.accept()
            && let Some(line) = answer(stream, options, |rank| awaited.contains(&rank) && is_missing(&rank))
        {
            accepted.push(line);
        }
        for (call, heard) in std::mem::take(&mut calls).into_iter().zip(heard) {
            match heard {
                true => answered.push((call.listener, call.judge(options)?)),
                false => calls.push(call),
            }
        }
    }
}

/// Connects to `rank`, and retries while it does not listen yet.
fn dial(options: &RingOptions, rank: usize, deadline: Instant, abort: &AbortHandle) -> Result<TcpStream> {
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
struct Call {
    stream: TcpStream,
    /// The caller's hello, a nonce, and the proof that it knows the secret.
    opening: [u8; OPENING_BYTES],
    listener: usize,
    greeting: Option<Greeting>,
}

impl Call {
    /// Calls `listener`: sends the opening, then this rank's part of the keys if the gang is sealed.
    fn begin(options: &RingOptions, listener: usize, deadline: Instant, abort: &AbortHandle) -> Result<Self> {
        let mut stream = dial(options, listener, deadline, abort)?;
        let mut opening = [0; OPENING_BYTES];
        let (said, rest) = opening.split_at_mut(HELLO_BYTES);
        let (nonce, shown) = rest.split_at_mut(NONCE_BYTES);
        said.copy_from_slice(&hello(options, options.rank));
        getrandom::fill(nonce).map_err(|error| lost(options, format!("no random bytes: {error}")))?;
        shown.copy_from_slice(&proof(options, b"caller", listener, said, nonce).finalize().into_bytes());
        let (mut message, mut greeting) = (opening.to_vec(), None);
        if options.sealed {
            let (made, keys) = Greeting::new(&options.secret, &opening)
                .map_err(|error| lost(options, format!("its own keys: {error}")))?;
            message.extend_from_slice(&keys);
            greeting = Some(made);
        }
        stream
            .write_all(&message)
            .and_then(|()| stream.set_read_timeout(Some(HELLO_TIMEOUT)))
            .map_err(|error| lost(options, format!("rank {listener} hung up: {error}")))?;
        Ok(Self { stream, opening, listener, greeting })
    }

    /// Reads the listener's verdict, and checks that it knows the secret.
    fn judge(mut self, options: &RingOptions) -> Result<Line> {
        let rank = self.listener;
        let refused = |reason: String| Err(lost(options, reason));
        let hung_up = |error: std::io::Error| lost(options, format!("rank {rank} hung up: {error}"));
        let mut verdict = [0];
        self.stream.read_exact(&mut verdict).map_err(hung_up)?;
        match verdict[0] {
            WELCOME => {}
            NO_PROOF => return refused(format!("rank {rank} has another secret of the gang")),
            OTHER_GENERATION => return refused(format!("rank {rank} is in another generation of the gang")),
            _ => return refused(format!("rank {rank} expects another rank in this one's place")),
        }
        let mut shown = [0; PROOF_BYTES];
        self.stream.read_exact(&mut shown).map_err(hung_up)?;
        let (said, rest) = self.opening.split_at(HELLO_BYTES);
        let expected = proof(options, b"listener", rank, said, &rest[..NONCE_BYTES]);
        let stranger = || {
            let reason = format!("the process that answers for rank {rank} does not know the gang's secret");
            lost(options, reason)
        };
        expected.verify_slice(&shown).map_err(|_| stranger())?;
        let Some(greeting) = self.greeting else {
            return Ok(Line { stream: self.stream, keys: None });
        };
        let mut message = [0; sealed::MESSAGE_BYTES];
        self.stream.read_exact(&mut message).map_err(hung_up)?;
        let keys = greeting.answered(&message).map_err(|_| stranger())?;
        Ok(Line { stream: self.stream, keys: Some(keys) })
    }
}

/// Returns the calling rank and its connection, if it is expected and knows the secret.
fn answer(mut stream: TcpStream, options: &RingOptions, expected: impl Fn(usize) -> bool) -> Option<(usize, Line)> {
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
    bytemuck::cast([MAGIC, options.generation, rank as u64, options.addresses.len() as u64].map(u64::to_le))
}

pub(super) fn lost(options: &RingOptions, reason: String) -> Error {
    Error::Peer {
        rank: options.rank,
        world_size: options.addresses.len(),
        during: "connecting the ranks".into(),
        reason,
    }
}
