//! How the ranks of a ring find each other, and turn away who does not belong.
//!
//! Each rank dials the next one and says who it is; each rank listens for the previous one and answers with a verdict.
//! A caller of another generation, out of place, or without the gang's secret is refused and the listener goes on waiting.
//! Caller and listener prove that they know the secret without sending it: an HMAC over what was said, the caller's nonce and
//! the listener's rank.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::Sha256;

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
/// How long a caller may take to introduce itself; meanwhile nobody else is heard.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// How often an abort is looked for while there are no sockets that it could close.
const PATIENCE: Duration = Duration::from_millis(20);

/// The two connections of a rank.
pub(super) struct Neighbours {
    pub(super) next: TcpStream,
    pub(super) previous: TcpStream,
}

/// Connects this rank to the next and the previous one within the timeout.
pub(super) fn connect(listener: TcpListener, options: &RingOptions, abort: &AbortHandle) -> Result<Neighbours> {
    let deadline = Instant::now() + options.timeout;
    let lost = |reason: String| lost(options, reason);
    listener
        .set_nonblocking(true)
        .map_err(|error| lost(format!("its own listener: {error}")))?;
    let next_rank = (options.rank + 1) % options.addresses.len();
    let mut next = dial(options, next_rank, deadline, abort)?;
    next.set_read_timeout(Some(HELLO_TIMEOUT))
        .map_err(|error| lost(format!("setting up a socket: {error}")))?;
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|error| lost(format!("no random bytes: {error}")))?;
    let said = hello(options);
    let mut opening = said.to_vec();
    opening.extend_from_slice(&nonce);
    opening.extend_from_slice(&proof(options, b"caller", &said, &nonce).finalize().into_bytes());
    next.write_all(&opening)
        .map_err(|error| lost(format!("rank {next_rank} hung up: {error}")))?;
    let (mut previous, mut welcome) = (None, false);
    while previous.is_none() || !welcome {
        abort.check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(lost(missing(options, previous.is_some(), welcome)));
        }
        let wait = Timespec::try_from(left.min(PATIENCE)).map_err(|error| lost(error.to_string()))?;
        let mut waiting = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&next, PollFlags::IN)];
        let (first, last) = (usize::from(previous.is_some()), if welcome { 1 } else { 2 });
        match poll(&mut waiting[first..last], Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(lost(format!("waiting for connections: {error}"))),
        }
        let (caller, verdict) = (!waiting[0].revents().is_empty(), !waiting[1].revents().is_empty());
        if caller && let Ok((stream, _)) = listener.accept() {
            previous = answer(stream, options);
        }
        if verdict {
            let mut byte = [0];
            next.read_exact(&mut byte)
                .map_err(|error| lost(format!("rank {next_rank} hung up: {error}")))?;
            welcome = match byte[0] {
                WELCOME => {
                    let mut shown = [0; PROOF_BYTES];
                    next.read_exact(&mut shown)
                        .map_err(|error| lost(format!("rank {next_rank} hung up: {error}")))?;
                    let expected = proof(options, b"listener", &said, &nonce);
                    expected.verify_slice(&shown).map_err(|_| {
                        lost(format!(
                            "who answers for rank {next_rank} does not know the gang's secret"
                        ))
                    })?;
                    true
                }
                NO_PROOF => {
                    return Err(lost(format!("rank {next_rank} has another secret of the gang")));
                }
                OTHER_GENERATION => {
                    return Err(lost(format!("rank {next_rank} is in another generation of the gang")));
                }
                _ => {
                    return Err(lost(format!("rank {next_rank} expects another rank before it")));
                }
            };
        }
    }
    let previous = previous.expect("the loop ends once there is one");
    for stream in [&next, &previous] {
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_nonblocking(true))
            .map_err(|error| lost(format!("setting up a socket: {error}")))?;
    }
    Ok(Neighbours { next, previous })
}

/// Connects to `rank`, again and again while it does not listen yet.
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
                return Err(lost(
                    options,
                    format!("rank {rank} at {address} can't be reached: {error}"),
                ));
            }
            Err(_) => std::thread::sleep(PATIENCE.min(left)),
        }
    }
}

/// The connection, if it is the previous rank of this generation that calls.
fn answer(mut stream: TcpStream, options: &RingOptions) -> Option<TcpStream> {
    let world_size = options.addresses.len();
    let expected = hello(&RingOptions {
        rank: (options.rank + world_size - 1) % world_size,
        ..options.clone()
    });
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT)).ok()?;
    let mut said = [0; HELLO_BYTES];
    stream.read_exact(&mut said).ok()?;
    let verdict = if said == expected {
        return welcome(stream, options, &said);
    } else if said[..16] == expected[..16] {
        OUT_OF_PLACE
    } else {
        OTHER_GENERATION
    };
    // Turned away; whether it hears of it is its own affair.
    let _ = stream.write_all(&[verdict]);
    None
}

/// The connection, if the caller, who has said the right things, proves that it knows the secret.
fn welcome(mut stream: TcpStream, options: &RingOptions, said: &[u8; HELLO_BYTES]) -> Option<TcpStream> {
    let mut rest = [0; NONCE_BYTES + PROOF_BYTES];
    stream.read_exact(&mut rest).ok()?;
    let (nonce, shown) = rest.split_at(NONCE_BYTES);
    if proof(options, b"caller", said, nonce).verify_slice(shown).is_err() {
        let _ = stream.write_all(&[NO_PROOF]);
        return None;
    }
    let mut answer = vec![WELCOME];
    answer.extend_from_slice(&proof(options, b"listener", said, nonce).finalize().into_bytes());
    stream.write_all(&answer).ok()?;
    Some(stream)
}

/// What only members of the gang can compute: over who proves it, what the caller said, and the caller's nonce. What was
/// said names the caller's rank, and so the listener's.
fn proof(options: &RingOptions, who: &[u8], said: &[u8; HELLO_BYTES], nonce: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&options.secret).expect("HMAC takes a key of any length");
    for part in [who, said.as_slice(), nonce] {
        mac.update(part);
    }
    mac
}

/// Magic, generation, rank, world size: four little-endian u64.
fn hello(options: &RingOptions) -> [u8; HELLO_BYTES] {
    let mut bytes = [0; HELLO_BYTES];
    let words = [
        MAGIC,
        options.generation,
        options.rank as u64,
        options.addresses.len() as u64,
    ];
    for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn missing(options: &RingOptions, has_previous: bool, welcome: bool) -> String {
    let world_size = options.addresses.len();
    let seconds = options.timeout.as_secs_f64();
    let (next, previous) = (
        (options.rank + 1) % world_size,
        (options.rank + world_size - 1) % world_size,
    );
    match (has_previous, welcome) {
        (false, _) => format!("rank {previous} did not connect within {seconds} s"),
        (true, _) => format!(
            "rank {next} at {} did not answer within {seconds} s",
            options.addresses[next]
        ),
    }
}

fn lost(options: &RingOptions, reason: String) -> Error {
    Error::Peer {
        rank: options.rank,
        world_size: options.addresses.len(),
        during: "connecting the ring".into(),
        reason,
    }
}
